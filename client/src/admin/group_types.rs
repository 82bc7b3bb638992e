//! What [`Admin`](super::Admin) asks and tells about groups.

use highwater_protocol::ids::{NodeId, Offset, PartitionId};

use crate::error::Error;
use crate::group::GroupPartition;

/// All groups that could be found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct GroupList {
    /// By name.
    pub groups: Vec<ListedGroup>,
    /// Who could not say which groups it coordinates, and why: groups may be missing.
    pub unavailable: Vec<Error>,
}

/// A group in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedGroup {
    /// Its name.
    pub group: String,
    /// `empty`: no members; `assigning`: a new assignment is due; `moving`: partitions are on their way from member to
    /// member; `stable`.
    pub state: String,
    /// How many members it has.
    pub member_count: u32,
    /// How its partitions are shared out.
    pub assignor: String,
}

/// A group as its coordinator knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupDetails {
    /// Its name.
    pub group: String,
    /// As in [`ListedGroup::state`].
    pub state: String,
    /// Raised with each new assignment.
    pub generation: u32,
    /// How its partitions are shared out.
    pub assignor: String,
    /// The broker that coordinates it.
    pub coordinator: NodeId,
    /// Its members.
    pub members: Vec<GroupMemberDetails>,
    /// Every partition that it has a position in, or that a member owns.
    pub positions: Vec<GroupPosition>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupMemberDetails {
    /// Its id, another one each time that it joins.
    pub member_id: String,
    /// Its name, if it is a static member.
    pub instance_id: Option<String>,
    /// Its failure domain.
    pub rack: Option<String>,
    /// What its client calls itself.
    pub client: String,
    /// Where it is connected from.
    pub host: String,
    /// The generation of its assignment.
    pub generation: u32,
    /// `stable`; `revoking`: it has to give something up; `waiting`: others have not yet given up what it is to have;
    /// `away`: a static member that is restarting.
    pub state: String,
    /// What it may own now.
    pub assigned: Vec<GroupPartition>,
    /// What it is to have in the end.
    pub target: Vec<GroupPartition>,
    /// Topics that it subscribes to by name.
    pub topics: Vec<String>,
    /// The pattern that it subscribes to.
    pub pattern: Option<String>,
    /// Milliseconds since it was last heard of.
    pub heard_ms_ago: u64,
    /// Its session time-out in milliseconds.
    pub session_timeout_ms: u32,
}

/// Where a group is in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupPosition {
    /// Which one; a topic that is deleted by its id.
    pub partition: GroupPartition,
    /// The next offset to process; `None`: nothing is committed.
    pub committed: Option<Offset>,
    /// The first offset of the log, if its leader answered.
    pub log_start: Option<Offset>,
    /// The next offset that producers have not committed, if its leader answered.
    pub high_watermark: Option<Offset>,
    /// Records that the group has before it.
    pub lag: Option<u64>,
    /// Offsets a minute by which the position has moved lately.
    pub offsets_per_minute: Option<u64>,
    /// Who owns the partition.
    pub member_id: Option<String>,
    /// What was committed with the position.
    pub metadata: String,
    /// When it was committed, in milliseconds since the Unix epoch.
    pub commit_time_ms: Option<i64>,
}

/// Where a group is to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResetTo {
    /// At the first record that is there.
    Earliest,
    /// At the next record that will be committed.
    Latest,
    /// At this offset.
    Offset(Offset),
    /// At the first record whose timestamp, in milliseconds since the Unix epoch, is at least this.
    Time(i64),
    /// The position is removed: the group begins as its members are set up.
    Forget,
}

/// A change of a group's positions.
///
/// ```
/// use highwater_client::{ResetGroup, ResetTo};
///
/// let reset = ResetGroup::new("billing", ResetTo::Earliest).topics(["orders"]).dry_run();
/// ```
#[derive(Debug, Clone)]
#[must_use = "positions are changed by Admin::reset_group"]
pub struct ResetGroup {
    pub(super) group: String,
    pub(super) to: ResetTo,
    pub(super) topics: Vec<String>,
    pub(super) partitions: Vec<PartitionId>,
    pub(super) dry_run: bool,
}

impl ResetGroup {
    /// Moves all positions of the group.
    pub fn new(group: impl Into<String>, to: ResetTo) -> Self {
        Self { group: group.into(), to, topics: Vec::new(), partitions: Vec::new(), dry_run: false }
    }

    /// Only in these topics. Default: in all that the group has positions in.
    pub fn topics<I>(mut self, topics: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.topics = topics.into_iter().map(Into::into).collect();
        self
    }

    /// Only in these partitions of each topic. Default: in all.
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = PartitionId>) -> Self {
        self.partitions = partitions.into_iter().collect();
        self
    }

    /// Says what would change, and changes nothing.
    pub const fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }
}

/// What became of a position.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ResetOffset {
    /// Which one.
    pub partition: GroupPartition,
    /// Where it was; `None`: nowhere.
    pub before: Option<Offset>,
    /// Where it is, or would be; `None`: nowhere.
    pub after: Option<Offset>,
    /// What was asked for, if that is not in the log.
    pub clamped_from: Option<Offset>,
    /// Why it was not moved.
    pub error: Option<Error>,
}
