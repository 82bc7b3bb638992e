//! Appending batches.

use super::Uuid;

/// When the broker answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Acks {
    /// When the batch is committed: the default, and the only one with which nothing acknowledged is lost.
    All = 0,
    /// When the leader has reached the stage that the topic's durability asks for.
    Leader = 1,
    /// When the leader has accepted the batch into its queue.
    None = 2,
}

/// How far a batch had come, on the least of the replicas counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Stage {
    /// In the leader's queue: lost when the process ends.
    Accepted = 0,
    /// In the operating system's page cache: survives the process, not a power cut.
    Written = 1,
    /// On stable storage: survives a power cut.
    Flushed = 2,
}

/// Batches for any number of partitions. The attachment has them in order, end to end.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ProduceRequest {
    /// When to answer.
    #[prost(enumeration = "Acks", tag = "1")]
    pub acks: i32,
    /// Milliseconds after which to answer `timed_out` for batches that are not there yet; 0: the broker's default.
    #[prost(uint32, tag = "2")]
    pub timeout_ms: u32,
    /// One entry a batch.
    #[prost(message, repeated, tag = "3")]
    pub batches: Vec<ProduceBatch>,
}

/// One batch of the attachment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ProduceBatch {
    /// Its topic.
    #[prost(message, optional, tag = "1")]
    pub topic_id: Option<Uuid>,
    /// Its partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// Its place among the batches that this connection sent to this partition, from 0. After a refused batch, later
    /// numbers are refused with `out_of_order` until the refused number comes again.
    #[prost(uint64, tag = "3")]
    pub number: u64,
    /// Bytes in the attachment.
    #[prost(uint32, tag = "4")]
    pub length: u32,
}

/// One result a batch, in the order of the request.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ProduceReply {
    /// The results.
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<ProduceResult>,
}

/// What became of a batch.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ProduceResult {
    /// An [`ErrorCode`](crate::error_code::ErrorCode).
    #[prost(uint32, tag = "1")]
    pub error: u32,
    /// For people, when there is an error.
    #[prost(string, tag = "2")]
    pub message: String,
    /// The offset of its first record.
    #[prost(uint64, tag = "3")]
    pub base_offset: u64,
    /// When the leader appended it, in microseconds since the Unix epoch.
    #[prost(int64, tag = "4")]
    pub append_time: i64,
    /// How far the least of the counted replicas had come.
    #[prost(enumeration = "Stage", tag = "5")]
    pub stage: i32,
    /// How many replicas had reached that stage.
    #[prost(uint32, tag = "6")]
    pub replicas_counted: u32,
    /// How many replicas the partition has.
    #[prost(uint32, tag = "7")]
    pub replicas_total: u32,
    /// For `out_of_order`: the number that is accepted next.
    #[prost(uint64, tag = "8")]
    pub next_number: u64,
}

/// Raises the produce window. Latest value wins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ProduceCredit {
    /// Bytes of attachments that this connection may have produced in all.
    #[prost(uint64, tag = "1")]
    pub limit: u64,
}
