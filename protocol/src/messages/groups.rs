//! Consumer groups: where their coordinators are, who is in them, what each member is given.

use super::{GroupLag, Uuid};

/// Asks any broker who coordinates groups.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct FindCoordinatorRequest {
    /// The groups.
    #[prost(string, repeated, tag = "1")]
    pub groups: Vec<String>,
}

/// One entry a group, in the order of the request.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct FindCoordinatorReply {
    /// The coordinators.
    #[prost(message, repeated, tag = "1")]
    pub coordinators: Vec<Coordinator>,
}

/// Who coordinates a group at the moment.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Coordinator {
    /// The group.
    #[prost(string, tag = "1")]
    pub group: String,
    /// An [`ErrorCode`](crate::error_code::ErrorCode): `no_coordinator`, `invalid_group`.
    #[prost(uint32, tag = "2")]
    pub error: u32,
    /// For people, when there is an error.
    #[prost(string, tag = "3")]
    pub message: String,
    /// The broker.
    #[prost(uint32, tag = "4")]
    pub node_id: u32,
    /// `host:port` of its protocol port.
    #[prost(string, tag = "5")]
    pub address: String,
}

/// Partitions of one topic.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct GroupPartitions {
    /// The topic.
    #[prost(message, optional, tag = "1")]
    pub topic_id: Option<Uuid>,
    /// Its partitions, ascending.
    #[prost(uint32, repeated, tag = "2")]
    pub partitions: Vec<u32>,
}

/// Partitions that a member is given, or says that it owns.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct GroupAssignment {
    /// By topic, each once.
    #[prost(message, repeated, tag = "1")]
    pub topics: Vec<GroupPartitions>,
}

/// What a member wants to read.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct GroupSubscription {
    /// Topics by name. They may be made later.
    #[prost(string, repeated, tag = "1")]
    pub topics: Vec<String>,
    /// Patterns, separated by commas, in which `*` stands for any characters and `?` for one: every topic whose whole
    /// name matches one of them, also those that are made later.
    #[prost(string, optional, tag = "2")]
    pub pattern: Option<String>,
}

/// What a member does with a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum GroupAction {
    /// It is alive; with generation 0 it joins.
    Alive = 0,
    /// It leaves for good: what it owned goes to others at once.
    Leave = 1,
    /// A static member stops for a restart: what it owned waits for it, for the session time-out.
    LeaveForRestart = 2,
}

/// A member of a group joins, is alive, or leaves. Goes to the group's coordinator.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct GroupHeartbeatRequest {
    /// The group.
    #[prost(string, tag = "1")]
    pub group: String,
    /// The member: made by the client, random, another one for every consumer and after every `unknown_member` and
    /// `fenced_generation`.
    #[prost(string, tag = "2")]
    pub member_id: String,
    /// The generation of the last reply; 0: the member joins, and owns nothing.
    #[prost(uint32, tag = "3")]
    pub generation: u32,
    /// What the member does.
    #[prost(enumeration = "GroupAction", tag = "4")]
    pub action: i32,
    /// The name of a static member, which it keeps over restarts.
    #[prost(string, optional, tag = "5")]
    pub instance_id: Option<String>,
    /// The failure domain of the member.
    #[prost(string, optional, tag = "6")]
    pub rack: Option<String>,
    /// The client's name, for people. Read when the member joins.
    #[prost(string, tag = "7")]
    pub client: String,
    /// Milliseconds without a heartbeat after which the member is taken for dead. Read when the member joins; 0: the
    /// broker's default.
    #[prost(uint32, tag = "8")]
    pub session_timeout_ms: u32,
    /// Milliseconds that the member may take to give up partitions. Read when the member joins; 0: the broker's default.
    #[prost(uint32, tag = "9")]
    pub rebalance_timeout_ms: u32,
    /// What the member wants to read; absent: unchanged. Needed to join.
    #[prost(message, optional, tag = "10")]
    pub subscription: Option<GroupSubscription>,
    /// What the member owns: everything that it reads or may still commit for. Absent: unchanged since the last
    /// heartbeat that was answered.
    #[prost(message, optional, tag = "11")]
    pub owned: Option<GroupAssignment>,
    /// How the group's partitions are assigned: `consistent`, `range`, `uniform`. Absent: as the group does. Read when
    /// the member joins.
    #[prost(string, optional, tag = "12")]
    pub assignor: Option<String>,
    /// Take the place of a member of the same `instance_id` even if it is alive. Read when the member joins.
    #[prost(bool, tag = "13")]
    pub take_over: bool,
}

/// The member is known.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct GroupHeartbeatReply {
    /// The generation of the member's assignment, for its next heartbeats and its commits; 0 after it has left.
    #[prost(uint32, tag = "1")]
    pub generation: u32,
    /// Milliseconds until the next heartbeat. When the member gives something up it says so at once.
    #[prost(uint32, tag = "2")]
    pub heartbeat_interval_ms: u32,
    /// Everything that the member may own now. Absent: as in the last reply.
    #[prost(message, optional, tag = "3")]
    pub assignment: Option<GroupAssignment>,
    /// Topics subscribed to by name that do not exist. Only with `assignment`.
    #[prost(string, repeated, tag = "4")]
    pub unmatched_topics: Vec<String>,
}

/// Asks a broker for the groups that it coordinates.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ListGroupsRequest {}

/// The groups that the broker coordinates.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ListGroupsReply {
    /// By name.
    #[prost(message, repeated, tag = "1")]
    pub groups: Vec<ListedGroup>,
    /// Coordinators of this broker that cannot say at the moment.
    #[prost(message, repeated, tag = "2")]
    pub unavailable: Vec<UnavailableCoordinator>,
}

/// A group in a list.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ListedGroup {
    /// The group.
    #[prost(string, tag = "1")]
    pub group: String,
    /// `empty`: no members; `assigning`: a new assignment is due; `moving`: partitions are on their way from member to
    /// member; `stable`.
    #[prost(string, tag = "2")]
    pub state: String,
    /// How many members.
    #[prost(uint32, tag = "3")]
    pub members: u32,
    /// How partitions are assigned.
    #[prost(string, tag = "4")]
    pub assignor: String,
}

/// A partition of the internal topic whose groups are not in a list.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct UnavailableCoordinator {
    /// The partition.
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    /// An [`ErrorCode`](crate::error_code::ErrorCode).
    #[prost(uint32, tag = "2")]
    pub error: u32,
    /// For people.
    #[prost(string, tag = "3")]
    pub message: String,
}

/// Asks the coordinator of groups for their members and offsets.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DescribeGroupsRequest {
    /// The groups.
    #[prost(string, repeated, tag = "1")]
    pub groups: Vec<String>,
}

/// One entry a group, in the order of the request.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DescribeGroupsReply {
    /// The groups.
    #[prost(message, repeated, tag = "1")]
    pub groups: Vec<DescribedGroup>,
}

/// What there is to know about a group.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DescribedGroup {
    /// The group.
    #[prost(string, tag = "1")]
    pub group: String,
    /// An [`ErrorCode`](crate::error_code::ErrorCode): `unknown_group`, `not_coordinator`, …
    #[prost(uint32, tag = "2")]
    pub error: u32,
    /// For people, when there is an error.
    #[prost(string, tag = "3")]
    pub message: String,
    /// As in [`ListedGroup`].
    #[prost(string, tag = "4")]
    pub state: String,
    /// The generation of the group.
    #[prost(uint32, tag = "5")]
    pub generation: u32,
    /// How partitions are assigned.
    #[prost(string, tag = "6")]
    pub assignor: String,
    /// The broker that coordinates it.
    #[prost(uint32, tag = "7")]
    pub coordinator: u32,
    /// The members, by member id.
    #[prost(message, repeated, tag = "8")]
    pub members: Vec<GroupMember>,
    /// Every partition that is committed or owned, by topic and partition.
    #[prost(message, repeated, tag = "9")]
    pub offsets: Vec<GroupLag>,
}

/// A member of a group.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct GroupMember {
    /// The member.
    #[prost(string, tag = "1")]
    pub member_id: String,
    /// Its name, if it is static.
    #[prost(string, optional, tag = "2")]
    pub instance_id: Option<String>,
    /// Its failure domain.
    #[prost(string, optional, tag = "3")]
    pub rack: Option<String>,
    /// The client's name.
    #[prost(string, tag = "4")]
    pub client: String,
    /// Where it is connected from.
    #[prost(string, tag = "5")]
    pub host: String,
    /// The generation of its assignment.
    #[prost(uint32, tag = "6")]
    pub generation: u32,
    /// `stable`; `revoking`: it has to give something up; `waiting`: others have not yet given up what it is to have;
    /// `away`: a static member that is restarting.
    #[prost(string, tag = "7")]
    pub state: String,
    /// What it may own now.
    #[prost(message, optional, tag = "8")]
    pub assigned: Option<GroupAssignment>,
    /// What it is to have in the end.
    #[prost(message, optional, tag = "9")]
    pub target: Option<GroupAssignment>,
    /// Topics subscribed to by name.
    #[prost(string, repeated, tag = "10")]
    pub topics: Vec<String>,
    /// The pattern subscribed to.
    #[prost(string, optional, tag = "11")]
    pub pattern: Option<String>,
    /// Milliseconds since its last heartbeat.
    #[prost(uint64, tag = "12")]
    pub heard_ms_ago: u64,
    /// Its session time-out in milliseconds.
    #[prost(uint32, tag = "13")]
    pub session_timeout_ms: u32,
}

/// Removes groups without members, with their offsets.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DeleteGroupsRequest {
    /// The groups.
    #[prost(string, repeated, tag = "1")]
    pub groups: Vec<String>,
}

/// One entry a group, in the order of the request.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DeleteGroupsReply {
    /// The results.
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<GroupResult>,
}

/// What became of a group.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct GroupResult {
    /// The group.
    #[prost(string, tag = "1")]
    pub group: String,
    /// An [`ErrorCode`](crate::error_code::ErrorCode).
    #[prost(uint32, tag = "2")]
    pub error: u32,
    /// For people, when there is an error.
    #[prost(string, tag = "3")]
    pub message: String,
}
