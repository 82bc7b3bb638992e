//! What replicas tell each other apart from subscriptions: starting over, repair, comparison.

use super::{ReplicaIdentity, Uuid};

/// Asks a leader for what a follower needs whose log ends below the leader's log start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ReplicaResetRequest {
    /// The topic.
    #[prost(message, optional, tag = "1")]
    pub topic_id: Option<Uuid>,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The leader epoch that the follower follows.
    #[prost(uint32, tag = "3")]
    pub leader_epoch: u32,
    /// The follower.
    #[prost(message, optional, tag = "4")]
    pub replica: Option<ReplicaIdentity>,
}

/// Where to start over. The attachment has the snapshot of the producers at `log_start`, empty if there is none.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ReplicaResetReply {
    /// The first offset of the leader's log.
    #[prost(uint64, tag = "1")]
    pub log_start: u64,
    /// Where each leader epoch starts, up to `log_start`, oldest first.
    #[prost(message, repeated, tag = "2")]
    pub epochs: Vec<EpochEntry>,
}

/// Where a leader epoch starts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct EpochEntry {
    /// The epoch.
    #[prost(uint32, tag = "1")]
    pub epoch: u32,
    /// Its first offset.
    #[prost(uint64, tag = "2")]
    pub start: u64,
}

/// Reads a range from any replica, to fill a hole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ReplicaReadRequest {
    /// The topic.
    #[prost(message, optional, tag = "1")]
    pub topic_id: Option<Uuid>,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The first offset wanted.
    #[prost(uint64, tag = "3")]
    pub start: u64,
    /// The offset after the last one wanted.
    #[prost(uint64, tag = "4")]
    pub end: u64,
    /// Bytes to return at most, but always one whole batch; 0: the protocol's default.
    #[prost(uint32, tag = "5")]
    pub bytes_max: u32,
}

/// The attachment has whole batches, end to end, from the one that has `start`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ReplicaReadReply {
    /// First offset of the replica's log.
    #[prost(uint64, tag = "1")]
    pub log_start: u64,
    /// Next offset of the replica's log.
    #[prost(uint64, tag = "2")]
    pub log_end: u64,
}

/// Asks any replica for a checksum over a range of its log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ReplicaChecksumRequest {
    /// The topic.
    #[prost(message, optional, tag = "1")]
    pub topic_id: Option<Uuid>,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The first offset; below the log start: from there.
    #[prost(uint64, tag = "3")]
    pub start: u64,
    /// The offset after the last one; 0: up to the high watermark that the replica knows.
    #[prost(uint64, tag = "4")]
    pub end: u64,
    /// Bytes to read at most in this step; 0: the broker's default.
    #[prost(uint32, tag = "5")]
    pub bytes_max: u32,
    /// 0: a checksum over whole batches. Otherwise one over the last record of each key in the whole range, as long as it
    /// has a value, and over records without a key, which are the same on replicas that are compacted at different
    /// moments: of the keys whose XXH3-64 modulo this is `key_slice`; records without a key belong to slice 0.
    #[prost(uint32, tag = "6")]
    pub key_slices: u32,
    /// Which part of the keys, if `key_slices` is not 0.
    #[prost(uint32, tag = "7")]
    pub key_slice: u32,
}

/// The checksum of whole batches, read from the disk and verified.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ReplicaChecksumReply {
    /// The offset of the first batch covered.
    #[prost(uint64, tag = "1")]
    pub start: u64,
    /// The offset after the last batch covered. Below the end that was asked for: ask again from here.
    #[prost(uint64, tag = "2")]
    pub end: u64,
    /// CRC-32 of the batches as they are stored, one after another, or of the records that were asked for.
    #[prost(uint32, tag = "3")]
    pub checksum: u32,
    /// How many batches, or records.
    #[prost(uint64, tag = "4")]
    pub batches: u64,
    /// Ranges among them that this replica cannot read. They are not in the checksum.
    #[prost(message, repeated, tag = "5")]
    pub corrupt: Vec<super::CorruptRange>,
    /// First offset of the replica's log.
    #[prost(uint64, tag = "6")]
    pub log_start: u64,
    /// Next offset of the replica's log.
    #[prost(uint64, tag = "7")]
    pub log_end: u64,
    /// The high watermark that the replica knows.
    #[prost(uint64, tag = "8")]
    pub high_watermark: u64,
    /// The log is compacted: compare replicas by keys, over a range that ends at `compacted_end` or later.
    #[prost(bool, tag = "9")]
    pub compacted: bool,
    /// Compaction has looked for later records of keys up to here at the most.
    #[prost(uint64, tag = "10")]
    pub compacted_end: u64,
    /// 0, or: there are more keys than there is room for, nothing was compared; ask again with so many slices.
    #[prost(uint32, tag = "11")]
    pub key_slices_needed: u32,
}
