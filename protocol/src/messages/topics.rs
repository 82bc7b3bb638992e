//! Making, describing, changing and removing topics.

use std::collections::BTreeMap;

use super::{PartitionInfo, Uuid};

/// Makes a topic.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct CreateTopicRequest {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// How many partitions; 0: the broker's default.
    #[prost(uint32, tag = "2")]
    pub partitions: u32,
    /// How many replicas of each; 0: the broker's default.
    #[prost(uint32, tag = "3")]
    pub replication: u32,
    /// Settings that differ from the broker's defaults.
    #[prost(btree_map = "string, string", tag = "4")]
    pub config: BTreeMap<String, String>,
    /// Check everything, make nothing.
    #[prost(bool, tag = "5")]
    pub validate_only: bool,
}

/// The topic is there and its partitions accept batches.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct CreateTopicReply {
    /// Absent when only validated.
    #[prost(message, optional, tag = "1")]
    pub topic_id: Option<Uuid>,
    /// As made.
    #[prost(uint32, tag = "2")]
    pub partitions: u32,
    /// As made.
    #[prost(uint32, tag = "3")]
    pub replication: u32,
}

/// Asks for settings and state.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DescribeTopicsRequest {
    /// Topics by name; empty: all.
    #[prost(string, repeated, tag = "1")]
    pub names: Vec<String>,
    /// Leave the partitions' state out: cheaper for lists.
    #[prost(bool, tag = "2")]
    pub summary: bool,
}

/// What the topics are.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DescribeTopicsReply {
    /// In the order asked for; by name for all.
    #[prost(message, repeated, tag = "1")]
    pub topics: Vec<TopicDescription>,
}

/// One topic.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct TopicDescription {
    /// `unknown_topic` when there is none.
    #[prost(uint32, tag = "1")]
    pub error: u32,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its id.
    #[prost(message, optional, tag = "3")]
    pub topic_id: Option<Uuid>,
    /// How many replicas each partition has.
    #[prost(uint32, tag = "4")]
    pub replication: u32,
    /// How many partitions.
    #[prost(uint32, tag = "5")]
    pub partition_count: u32,
    /// Every setting with its value and where the value comes from, by name.
    #[prost(message, repeated, tag = "6")]
    pub config: Vec<ConfigEntry>,
    /// State of each partition; empty in a summary.
    #[prost(message, repeated, tag = "7")]
    pub partitions: Vec<PartitionDescription>,
    /// Microseconds since the Unix epoch.
    #[prost(int64, tag = "8")]
    pub created_at_us: i64,
}

/// Where the value of a setting comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ConfigSource {
    /// Built in or from the broker's configuration.
    Default = 0,
    /// Set for this topic.
    Topic = 1,
}

/// One setting.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ConfigEntry {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value, as `alter` takes it.
    #[prost(string, tag = "2")]
    pub value: String,
    /// Where the value comes from.
    #[prost(enumeration = "ConfigSource", tag = "3")]
    pub source: i32,
}

/// A range of offsets whose bytes are corrupt on the replica that answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct CorruptRange {
    /// First offset that cannot be read.
    #[prost(uint64, tag = "1")]
    pub start: u64,
    /// First offset after it that can be read again.
    #[prost(uint64, tag = "2")]
    pub end: u64,
}

/// The state of one partition, told by its leader.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct PartitionDescription {
    /// `not_leader` and the like when the state is not known here.
    #[prost(uint32, tag = "1")]
    pub error: u32,
    /// Leader, replicas and sets.
    #[prost(message, optional, tag = "2")]
    pub info: Option<PartitionInfo>,
    /// First offset that can be read.
    #[prost(uint64, tag = "3")]
    pub log_start: u64,
    /// Next offset to be written.
    #[prost(uint64, tag = "4")]
    pub log_end: u64,
    /// Next offset that is not on stable storage.
    #[prost(uint64, tag = "5")]
    pub flushed_end: u64,
    /// Next offset that is not committed.
    #[prost(uint64, tag = "6")]
    pub high_watermark: u64,
    /// Bytes of its segments.
    #[prost(uint64, tag = "7")]
    pub bytes: u64,
    /// Segments.
    #[prost(uint32, tag = "8")]
    pub segments: u32,
    /// `fsync`, `interval(…)` or `os`: what holds now, which follows the setting after a change.
    #[prost(string, tag = "9")]
    pub durability: String,
    /// `online`, `suspect`, `offline`, `read_only`.
    #[prost(string, tag = "10")]
    pub state: String,
    /// Ranges that cannot be read from this replica.
    #[prost(message, repeated, tag = "11")]
    pub corrupt: Vec<CorruptRange>,
    /// How far each replica is, as the leader knows.
    #[prost(message, repeated, tag = "12")]
    pub replicas: Vec<ReplicaDescription>,
}

/// How far a replica is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ReplicaDescription {
    /// Whose.
    #[prost(uint32, tag = "1")]
    pub node_id: u32,
    /// Next offset to be written.
    #[prost(uint64, tag = "2")]
    pub log_end: u64,
    /// Next offset that is not on stable storage.
    #[prost(uint64, tag = "3")]
    pub flushed_end: u64,
    /// It counts towards the high watermark.
    #[prost(bool, tag = "4")]
    pub in_sync: bool,
    /// It follows at the moment.
    #[prost(bool, tag = "5")]
    pub connected: bool,
}

/// Changes a topic. Either everything that is asked for happens, or nothing.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AlterTopicRequest {
    /// Which topic.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Settings to set.
    #[prost(btree_map = "string, string", tag = "2")]
    pub set: BTreeMap<String, String>,
    /// Settings to return to the broker's default.
    #[prost(string, repeated, tag = "3")]
    pub unset: Vec<String>,
    /// The new number of partitions; 0: unchanged. Cannot shrink.
    #[prost(uint32, tag = "4")]
    pub partitions: u32,
    /// Check everything, change nothing.
    #[prost(bool, tag = "5")]
    pub validate_only: bool,
}

/// The change is durable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct AlterTopicReply {
    /// Partitions afterwards.
    #[prost(uint32, tag = "1")]
    pub partitions: u32,
}

/// Removes a topic. Its files go to the trash first.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DeleteTopicRequest {
    /// Which topic.
    #[prost(string, tag = "1")]
    pub name: String,
    /// If set, only the topic with this id.
    #[prost(message, optional, tag = "2")]
    pub topic_id: Option<Uuid>,
}

/// The topic is gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct DeleteTopicReply {}
