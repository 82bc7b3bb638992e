//! Where things are.

use super::Uuid;

/// Asks for brokers and topics.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct MetadataRequest {
    /// Topics by name.
    #[prost(string, repeated, tag = "1")]
    pub names: Vec<String>,
    /// Topics by id.
    #[prost(message, repeated, tag = "2")]
    pub topic_ids: Vec<Uuid>,
    /// All topics; `names` and `topic_ids` are ignored.
    #[prost(bool, tag = "3")]
    pub all_topics: bool,
    /// From here on tell about changes of the topics asked for, and of the brokers, by `MetadataPush`. A later request
    /// with this flag replaces an earlier one on the connection.
    #[prost(bool, tag = "4")]
    pub watch: bool,
}

/// The metadata at one version of the cluster image.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct MetadataReply {
    /// The cluster.
    #[prost(message, optional, tag = "1")]
    pub cluster_id: Option<Uuid>,
    /// The version of the cluster image; grows.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// The controller, 0 while there is none.
    #[prost(uint32, tag = "3")]
    pub controller: u32,
    /// Every broker that is registered.
    #[prost(message, repeated, tag = "4")]
    pub brokers: Vec<BrokerInfo>,
    /// One entry for each topic asked for, in that order (names before ids); by name for all topics.
    #[prost(message, repeated, tag = "5")]
    pub topics: Vec<TopicInfo>,
}

/// What has changed: brokers whole, topics as far as they are watched and have changed. A topic that was deleted comes
/// with `unknown_topic`.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct MetadataPush {
    /// The version of the cluster image; grows.
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// The controller, 0 while there is none.
    #[prost(uint32, tag = "2")]
    pub controller: u32,
    /// Every broker that is registered.
    #[prost(message, repeated, tag = "3")]
    pub brokers: Vec<BrokerInfo>,
    /// The watched topics that have changed.
    #[prost(message, repeated, tag = "4")]
    pub topics: Vec<TopicInfo>,
}

/// A broker and its address.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct BrokerInfo {
    /// Its id.
    #[prost(uint32, tag = "1")]
    pub node_id: u32,
    /// `host:port` of the protocol port, as clients reach it.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Empty: none.
    #[prost(string, tag = "3")]
    pub rack: String,
}

/// A topic and its partitions.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct TopicInfo {
    /// `unknown_topic` when there is none; then only `name` or `topic_id` is set as asked.
    #[prost(uint32, tag = "1")]
    pub error: u32,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its id.
    #[prost(message, optional, tag = "3")]
    pub topic_id: Option<Uuid>,
    /// Ordered by partition, without gaps.
    #[prost(message, repeated, tag = "4")]
    pub partitions: Vec<PartitionInfo>,
    /// The bytes that one of its batches may have.
    #[prost(uint32, tag = "5")]
    pub batch_bytes_max: u32,
}

/// Who has a partition.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct PartitionInfo {
    /// The partition.
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    /// Its leader, 0 while there is none.
    #[prost(uint32, tag = "2")]
    pub leader: u32,
    /// The epoch of that leader.
    #[prost(uint32, tag = "3")]
    pub leader_epoch: u32,
    /// Who is assigned a replica, preferred leader first.
    #[prost(uint32, repeated, tag = "4")]
    pub replicas: Vec<u32>,
    /// Which of them are in sync.
    #[prost(uint32, repeated, tag = "5")]
    pub in_sync: Vec<u32>,
    /// Which others may still be elected without loss.
    #[prost(uint32, repeated, tag = "6")]
    pub eligible: Vec<u32>,
}
