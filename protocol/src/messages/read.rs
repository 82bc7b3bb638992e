//! A plain bounded read, for tools.

use super::Uuid;

/// Reads once, without waiting.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ReadRequest {
    /// The topic.
    #[prost(message, optional, tag = "1")]
    pub topic_id: Option<Uuid>,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The first offset wanted. The first batch returned may start before it.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    /// Bytes to return at most, but always one whole batch if there is one; 0: the protocol's default.
    #[prost(uint32, tag = "4")]
    pub bytes_max: u32,
}

/// The attachment has whole batches, end to end; empty at the high watermark.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ReadReply {
    /// Next offset that is not committed.
    #[prost(uint64, tag = "1")]
    pub high_watermark: u64,
    /// First offset that can be read.
    #[prost(uint64, tag = "2")]
    pub log_start: u64,
    /// Next offset to be written.
    #[prost(uint64, tag = "3")]
    pub log_end: u64,
    /// The leader's epoch.
    #[prost(uint32, tag = "4")]
    pub leader_epoch: u32,
}
