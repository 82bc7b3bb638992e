//! What [`Admin`](super::Admin) asks for and gets.

use std::collections::BTreeMap;
use std::ops::Range;

use highwater_protocol::ids::{ClusterId, LeaderEpoch, NodeId, Offset, PartitionId, TopicId};
use highwater_protocol::messages::ConfigSource;

use crate::error::Error;
use crate::record::ConsumedBatch;

/// A topic to create.
///
/// ```
/// use highwater_client::NewTopic;
///
/// let topic = NewTopic::new("orders").partitions(8).replication(1).config("durability", "fsync");
/// ```
#[derive(Debug, Clone)]
#[must_use = "a topic is created by Admin::create_topic"]
pub struct NewTopic {
    pub(crate) name: String,
    pub(crate) partitions: u32,
    pub(crate) replication: u32,
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) validate_only: bool,
}

impl NewTopic {
    /// A topic with the broker's defaults.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            partitions: 0,
            replication: 0,
            config: BTreeMap::new(),
            validate_only: false,
        }
    }

    /// How many partitions.
    pub const fn partitions(mut self, count: u32) -> Self {
        self.partitions = count;
        self
    }

    /// How many replicas each partition gets.
    pub const fn replication(mut self, count: u32) -> Self {
        self.replication = count;
        self
    }

    /// Sets a topic setting, such as `durability` to `fsync`.
    pub fn config(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.insert(name.into(), value.into());
        self
    }

    /// Checks everything and creates nothing.
    pub const fn validate_only(mut self) -> Self {
        self.validate_only = true;
        self
    }
}

/// A topic as it was created.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreatedTopic {
    /// Its id; absent when it was only validated.
    pub topic_id: Option<TopicId>,
    /// How many partitions.
    pub partitions: u32,
    /// How many replicas each partition has.
    pub replication: u32,
}

/// A change of a topic. Either all of it happens or nothing.
#[derive(Debug, Clone)]
#[must_use = "a topic is altered by Admin::alter_topic"]
pub struct AlterTopic {
    pub(crate) name: String,
    pub(crate) set: BTreeMap<String, String>,
    pub(crate) unset: Vec<String>,
    pub(crate) partitions: u32,
    pub(crate) validate_only: bool,
}

impl AlterTopic {
    /// A change of nothing yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            set: BTreeMap::new(),
            unset: Vec::new(),
            partitions: 0,
            validate_only: false,
        }
    }

    /// Sets a topic setting.
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.set.insert(name.into(), value.into());
        self
    }

    /// Returns a setting to the broker's default.
    pub fn unset(mut self, name: impl Into<String>) -> Self {
        self.unset.push(name.into());
        self
    }

    /// Raises the number of partitions. Most keys move to another partition by this.
    pub const fn partitions(mut self, count: u32) -> Self {
        self.partitions = count;
        self
    }

    /// Checks everything and changes nothing.
    pub const fn validate_only(mut self) -> Self {
        self.validate_only = true;
        self
    }
}

/// A topic after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AlteredTopic {
    /// How many partitions it has now.
    pub partitions: u32,
}

/// Brokers and topics at one version of the cluster image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterMetadata {
    /// The cluster.
    pub cluster_id: Option<ClusterId>,
    /// The version of the cluster image; grows.
    pub version: u64,
    /// The controller, while there is one.
    pub controller: Option<NodeId>,
    /// Every broker that is registered.
    pub brokers: Vec<Broker>,
    /// The topics asked for.
    pub topics: Vec<TopicMetadata>,
}

/// A broker.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Broker {
    /// Its id.
    pub node_id: NodeId,
    /// `host:port` as clients reach it.
    pub address: String,
    /// Where it stands; empty: not told.
    pub rack: String,
}

/// Where the partitions of a topic are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicMetadata {
    /// Its name.
    pub name: String,
    /// Its id.
    pub topic_id: TopicId,
    /// Ordered by partition, without gaps.
    pub partitions: Vec<PartitionMetadata>,
    /// The bytes that one of its batches may have.
    pub batch_bytes_max: u32,
}

/// Who has a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionMetadata {
    /// The partition.
    pub partition: PartitionId,
    /// Its leader, while there is one.
    pub leader: Option<NodeId>,
    /// The epoch of that leader.
    pub leader_epoch: LeaderEpoch,
    /// Who is assigned a replica, preferred leader first.
    pub replicas: Vec<NodeId>,
    /// Which of them are in sync.
    pub in_sync: Vec<NodeId>,
    /// Which others may still be elected without loss.
    pub eligible: Vec<NodeId>,
}

/// Settings and state of a topic.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TopicDetails {
    /// Its name.
    pub name: String,
    /// Its id.
    pub topic_id: TopicId,
    /// How many replicas each partition has.
    pub replication: u32,
    /// How many partitions.
    pub partition_count: u32,
    /// Every setting, by name.
    pub config: Vec<ConfigSetting>,
    /// State of each partition; empty in a list.
    pub partitions: Vec<PartitionState>,
    /// Microseconds since the Unix epoch.
    pub created_at_us: i64,
}

/// A setting of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigSetting {
    /// Its name.
    pub name: String,
    /// Its value, as [`AlterTopic::set`] takes it.
    pub value: String,
    /// Where the value comes from.
    pub source: ConfigSource,
}

/// The state of a partition, told by its leader.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PartitionState {
    /// Leader, replicas and sets.
    pub metadata: PartitionMetadata,
    /// Why the numbers below are not known, if they are not.
    pub error: Option<Error>,
    /// The first offset that can be read.
    pub log_start: Offset,
    /// The next offset to be written.
    pub log_end: Offset,
    /// The next offset that is not on stable storage.
    pub flushed_end: Offset,
    /// The next offset that is not committed.
    pub high_watermark: Offset,
    /// Bytes of its segments.
    pub bytes: u64,
    /// How many segments.
    pub segment_count: u32,
    /// The durability that holds now: it follows the setting after a change.
    pub durability: String,
    /// `online`, `suspect`, `offline` or `read_only`.
    pub state: String,
    /// Offsets that cannot be read from this replica.
    pub corrupt: Vec<Range<Offset>>,
    /// How far each replica is, as the leader knows.
    pub replicas: Vec<ReplicaState>,
}

/// How far a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplicaState {
    /// Whose.
    pub node_id: NodeId,
    /// The next offset to be written.
    pub log_end: Offset,
    /// The next offset that is not on stable storage.
    pub flushed_end: Offset,
    /// It counts towards the high watermark.
    pub in_sync: bool,
    /// It follows at the moment.
    pub connected: bool,
}

/// An offset that was looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedOffset {
    /// In which partition.
    pub partition: PartitionId,
    /// The offset.
    pub offset: Offset,
    /// The timestamp of the record there, in milliseconds since the Unix epoch, if it is there yet.
    pub timestamp_ms: Option<i64>,
    /// The leader epoch of the record there, or the current one.
    pub leader_epoch: LeaderEpoch,
}

/// What a plain read returned.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReadBatches {
    /// Whole batches, verified; the first one may have started before the offset asked for. Empty at the high
    /// watermark.
    pub batches: Vec<ConsumedBatch>,
    /// The next offset that is not committed.
    pub high_watermark: Offset,
    /// The first offset that can be read.
    pub log_start: Offset,
    /// The next offset to be written.
    pub log_end: Offset,
    /// The leader's epoch.
    pub leader_epoch: LeaderEpoch,
}
