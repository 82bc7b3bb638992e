//! What is recorded of groups: keys and values of the internal topic, which is compacted by key.
//!
//! The state of a coordinator is a function of the last value of each key, in whatever order they are read. A record
//! without a value removes its key.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_protocol::ids::{LeaderEpoch, Offset, TopicPartition};

use super::assignor::Assignor;

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The group.
    pub group: Arc<str>,
    /// What of it, and its value.
    pub change: Change,
}

/// What a record changes in a group. `None` removes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The group as a whole.
    Group(Option<Epochs>),
    /// Who a member is.
    Member(Arc<str>, Option<Arc<Profile>>),
    /// What a member is to have.
    Target(Arc<str>, Option<Target>),
    /// What a member may own now.
    Current(Arc<str>, Option<Current>),
    /// How far the group has come in a partition.
    Position(TopicPartition, Option<Position>),
}

/// The group as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epochs {
    /// Raised whenever members, subscriptions or topics have changed.
    pub generation: u32,
    /// The generation for which targets were made. Lower than `generation`: an assignment is due.
    pub assigned: u32,
    /// How partitions are assigned.
    pub assignor: Assignor,
    /// Since when there are no members, in milliseconds since the Unix epoch.
    pub empty_since_ms: Option<i64>,
}

/// Who a member is and what it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The name of a static member.
    pub instance_id: Option<Arc<str>>,
    /// Its failure domain.
    pub rack: Option<Arc<str>>,
    /// The client's name.
    pub client: Arc<str>,
    /// Where it is connected from.
    pub host: Arc<str>,
    /// Milliseconds without a heartbeat after which it is taken for dead.
    pub session_timeout_ms: u32,
    /// Milliseconds that it may take to give partitions up.
    pub rebalance_timeout_ms: u32,
    /// What it wants to read.
    pub subscription: Subscription,
    /// The generation in which it (last) joined: nothing from before concerns it.
    pub joined: u32,
    /// The generation in which it got this subscription: targets from before are not for it.
    pub subscribed: u32,
    /// A static member that has stopped for a restart.
    pub away: bool,
}

/// What a member wants to read.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subscription {
    /// Topics by name, sorted.
    pub topics: Vec<Arc<str>>,
    /// Patterns of topic names.
    pub pattern: Option<Arc<str>>,
}

/// What a member is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The generation in which it was decided.
    pub generation: u32,
    /// Sorted.
    pub partitions: Arc<[TopicPartition]>,
}

/// What a member may own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Current {
    /// The generation that it has been told of.
    pub generation: u32,
    /// What it was told that it may own, each with the member's generation when it got it.
    pub assigned: BTreeMap<TopicPartition, u32>,
    /// What it was told to give up, and has not said that it has.
    pub revoking: BTreeMap<TopicPartition, u32>,
}

/// How far a group has come in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The next offset to process.
    pub offset: Offset,
    /// The leader epoch of the last record below it, if the committer knew it.
    pub leader_epoch: Option<LeaderEpoch>,
    /// What the application said with it.
    pub metadata: Arc<str>,
    /// When it was committed, in milliseconds since the Unix epoch.
    pub commit_time_ms: i64,
}

impl Record {
    /// A change of a group.
    #[must_use]
    pub fn new(group: &Arc<str>, change: Change) -> Self {
        Self { group: Arc::clone(group), change }
    }
}
