//! Brokers among themselves: who is there, what is asked of the controller, and the messages of consensus; and what
//! operators see and ask for.

use bytes::Bytes;

use super::Uuid;

/// Which broker speaks, in handshakes between brokers.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct BrokerIdentity {
    /// The broker.
    #[prost(uint32, tag = "1")]
    pub node_id: u32,
    /// Its data directory.
    #[prost(message, optional, tag = "2")]
    pub directory_id: Option<Uuid>,
    /// Its registration; 0 while it has none.
    #[prost(uint64, tag = "3")]
    pub broker_epoch: u64,
    /// What the brokers of a cluster share; empty: nothing.
    #[prost(string, tag = "4")]
    pub secret: String,
}

/// Asks a listed voter what it is, before the cluster exists and whenever a voter starts.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct BootstrapRequest {
    /// Who asks.
    #[prost(uint32, tag = "1")]
    pub node_id: u32,
    /// The data directory of who asks.
    #[prost(message, optional, tag = "2")]
    pub directory_id: Option<Uuid>,
    /// The list of voters of who asks, sorted; empty if it joins.
    #[prost(message, repeated, tag = "3")]
    pub voters: Vec<Voter>,
}

/// One of the first brokers.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Voter {
    /// The broker.
    #[prost(uint32, tag = "1")]
    pub node_id: u32,
    /// `host:port` of its protocol port.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Its data directory, once known.
    #[prost(message, optional, tag = "3")]
    pub directory_id: Option<Uuid>,
}

/// What a voter is. Its list and its directory are on stable storage before it answers.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct BootstrapReply {
    /// Who answers.
    #[prost(uint32, tag = "1")]
    pub node_id: u32,
    /// Its data directory.
    #[prost(message, optional, tag = "2")]
    pub directory_id: Option<Uuid>,
    /// The list that it was started with; empty if it joins.
    #[prost(message, repeated, tag = "3")]
    pub voters: Vec<Voter>,
    /// Its cluster, if it is in one.
    #[prost(message, optional, tag = "4")]
    pub cluster_id: Option<Uuid>,
    /// Whether it takes part in consensus already.
    #[prost(bool, tag = "5")]
    pub initialised: bool,
    /// The members of consensus that it knows, with their directories.
    #[prost(message, repeated, tag = "6")]
    pub members: Vec<Voter>,
}

/// A broker comes: after each start, and after it was told that it is not known.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct RegisterBrokerRequest {
    /// Who.
    #[prost(uint32, tag = "1")]
    pub node_id: u32,
    /// Its data directory.
    #[prost(message, optional, tag = "2")]
    pub directory_id: Option<Uuid>,
    /// Made at the start of the process: a request that is sent again is the same registration.
    #[prost(message, optional, tag = "3")]
    pub incarnation: Option<Uuid>,
    /// `host:port` of its protocol port, for clients and brokers.
    #[prost(string, tag = "4")]
    pub address: String,
    /// Its failure domain; empty: none.
    #[prost(string, tag = "5")]
    pub rack: String,
    /// The lowest feature level that it can work at.
    #[prost(uint32, tag = "6")]
    pub feature_min: u32,
    /// The highest feature level that it can work at.
    #[prost(uint32, tag = "7")]
    pub feature_max: u32,
    /// It was not stopped in order since it last reported.
    #[prost(bool, tag = "8")]
    pub unclean: bool,
    /// It has run under another kernel since it last reported: power may have been cut.
    #[prost(bool, tag = "9")]
    pub other_kernel: bool,
    /// A flush has failed since it last reported.
    #[prost(bool, tag = "10")]
    pub flush_failed: bool,
}

/// The registration is decided. The broker is fenced until a heartbeat says that it is ready.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct RegisterBrokerReply {
    /// The new registration.
    #[prost(uint64, tag = "1")]
    pub broker_epoch: u64,
    /// The version of the image that has it.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// Milliseconds without a heartbeat after which the broker is fenced.
    #[prost(uint64, tag = "3")]
    pub lease_ms: u64,
}

/// A broker is alive. Goes to the controller.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct HeartbeatRequest {
    /// Who.
    #[prost(uint32, tag = "1")]
    pub node_id: u32,
    /// Its registration.
    #[prost(uint64, tag = "2")]
    pub broker_epoch: u64,
    /// The version of the image that it follows.
    #[prost(uint64, tag = "3")]
    pub version: u64,
    /// It has opened its logs and can lead.
    #[prost(bool, tag = "4")]
    pub ready: bool,
    /// It is about to stop and wants its leaderships handed over.
    #[prost(bool, tag = "5")]
    pub stopping: bool,
}

/// The lease is renewed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct HeartbeatReply {
    /// Milliseconds without a heartbeat after which the broker is fenced.
    #[prost(uint64, tag = "1")]
    pub lease_ms: u64,
    /// The broker is fenced at the moment.
    #[prost(bool, tag = "2")]
    pub fenced: bool,
    /// Nothing is led by the broker any more: it may stop.
    #[prost(bool, tag = "3")]
    pub may_stop: bool,
}

/// A broker asks the controller for a change.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ProposeRequest {
    /// An encoded command.
    #[prost(bytes = "bytes", tag = "1")]
    pub command: Bytes,
    /// Say what would come of it, change nothing.
    #[prost(bool, tag = "2")]
    pub validate_only: bool,
}

/// The change is on stable storage of a majority.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ProposeReply {
    /// The encoded outcome: a reply or a refusal.
    #[prost(bytes = "bytes", tag = "1")]
    pub outcome: Bytes,
    /// The version of the image that has it.
    #[prost(uint64, tag = "2")]
    pub version: u64,
}

/// A message of consensus; what is in it is the consensus library's affair.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct RaftRequest {
    /// Which message.
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    /// Its encoding.
    #[prost(bytes = "bytes", tag = "2")]
    pub payload: Bytes,
    /// The directory that it is meant for.
    #[prost(message, optional, tag = "3")]
    pub to_directory: Option<Uuid>,
}

/// The answer to a message of consensus.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct RaftReply {
    /// Its encoding.
    #[prost(bytes = "bytes", tag = "1")]
    pub payload: Bytes,
}

/// Asks for the state of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct DescribeClusterRequest {}

/// The state of the cluster, as the broker that answers knows it.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DescribeClusterReply {
    /// The cluster.
    #[prost(message, optional, tag = "1")]
    pub cluster_id: Option<Uuid>,
    /// The version of the image.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// The controller, 0 while there is none.
    #[prost(uint32, tag = "3")]
    pub controller: u32,
    /// The members of consensus that vote.
    #[prost(uint32, repeated, tag = "4")]
    pub voters: Vec<u32>,
    /// What new records, messages and formats may be used.
    #[prost(uint32, tag = "5")]
    pub feature_level: u32,
    /// Every broker that was ever registered and not removed.
    #[prost(message, repeated, tag = "6")]
    pub brokers: Vec<BrokerDescription>,
    /// Replicas on the move.
    #[prost(message, repeated, tag = "7")]
    pub moves: Vec<MoveDescription>,
    /// Partitions of all topics.
    #[prost(uint64, tag = "8")]
    pub partitions: u64,
    /// Partitions without a leader.
    #[prost(uint64, tag = "9")]
    pub partitions_offline: u64,
    /// Partitions with fewer replicas in sync than assigned.
    #[prost(uint64, tag = "10")]
    pub partitions_under_replicated: u64,
    /// Bytes a second that replicas on the move may fetch, on each broker.
    #[prost(uint64, tag = "11")]
    pub move_bytes_per_second: u64,
}

/// A broker as the cluster knows it.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct BrokerDescription {
    /// Who.
    #[prost(uint32, tag = "1")]
    pub node_id: u32,
    /// Where.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Its failure domain; empty: none.
    #[prost(string, tag = "3")]
    pub rack: String,
    /// `active`, `starting`, `fenced`, `draining`, `stopping`.
    #[prost(string, tag = "4")]
    pub state: String,
    /// Its registration.
    #[prost(uint64, tag = "5")]
    pub broker_epoch: u64,
    /// Its data directory.
    #[prost(message, optional, tag = "6")]
    pub directory_id: Option<Uuid>,
    /// Whether it votes on metadata.
    #[prost(bool, tag = "7")]
    pub voter: bool,
    /// Replicas that it is assigned.
    #[prost(uint64, tag = "8")]
    pub replicas: u64,
    /// Partitions that it leads.
    #[prost(uint64, tag = "9")]
    pub leaders: u64,
    /// The lowest feature level that it can work at.
    #[prost(uint32, tag = "10")]
    pub feature_min: u32,
    /// The highest feature level that it can work at.
    #[prost(uint32, tag = "11")]
    pub feature_max: u32,
}

/// A partition whose replicas are being moved.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct MoveDescription {
    /// The topic.
    #[prost(string, tag = "1")]
    pub topic: String,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// Who gets a replica.
    #[prost(uint32, repeated, tag = "3")]
    pub adding: Vec<u32>,
    /// Who gives one up.
    #[prost(uint32, repeated, tag = "4")]
    pub removing: Vec<u32>,
    /// Who has one now.
    #[prost(uint32, repeated, tag = "5")]
    pub replicas: Vec<u32>,
    /// `planned`: waits for its turn; `copying`: under way.
    #[prost(string, tag = "6")]
    pub state: String,
    /// Offsets that the slowest new replica still lacks, if known.
    #[prost(uint64, optional, tag = "7")]
    pub lag: Option<u64>,
}

/// What an operator asks of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ClusterOperation {
    /// Nothing.
    Unspecified = 0,
    /// Restore the bounds on replicas and leaders with the smallest plan.
    Rebalance = 1,
    /// Move everything off a broker, which keeps running.
    Drain = 2,
    /// Take a drained broker back into service.
    Undrain = 3,
    /// Forget a broker that has no replica and does not run.
    Remove = 4,
    /// Stop moving: what is not complete is undone.
    CancelMoves = 5,
    /// Elect a leader that may lack committed records. `topic`, `partition` and `node_id` say where and whom.
    ElectUnclean = 6,
    /// Change how fast replicas may move.
    Throttle = 7,
}

/// Changes the cluster, or, with `dry_run`, says what would be done.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AlterClusterRequest {
    /// What to do.
    #[prost(enumeration = "ClusterOperation", tag = "1")]
    pub operation: i32,
    /// Which broker.
    #[prost(uint32, tag = "2")]
    pub node_id: u32,
    /// Say what would be done, do nothing.
    #[prost(bool, tag = "3")]
    pub dry_run: bool,
    /// For `elect_unclean`: the topic's name.
    #[prost(string, tag = "4")]
    pub topic: String,
    /// For `elect_unclean`.
    #[prost(uint32, tag = "5")]
    pub partition: u32,
    /// For `throttle`: bytes a second on each broker.
    #[prost(uint64, tag = "6")]
    pub bytes_per_second: u64,
    /// For `elect_unclean`: the operator has read what is lost.
    #[prost(bool, tag = "7")]
    pub accept_loss: bool,
}

/// The change is recorded and goes on by itself.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AlterClusterReply {
    /// The moves that follow from it.
    #[prost(message, repeated, tag = "1")]
    pub moves: Vec<MoveDescription>,
    /// Replicas that change places.
    #[prost(uint64, tag = "2")]
    pub replicas_moved: u64,
    /// Leaderships that change places.
    #[prost(uint64, tag = "3")]
    pub leaders_moved: u64,
    /// What will happen, or what is lost, for people.
    #[prost(string, tag = "4")]
    pub message: String,
}
