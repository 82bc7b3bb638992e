//! Finding offsets by position and by time.

use super::Uuid;

/// Where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Position {
    /// The log start.
    Earliest = 0,
    /// The high watermark: the next record that will be committed.
    Latest = 1,
    /// The first record whose timestamp is at least `timestamp_ms`; the high watermark if there is none yet.
    Time = 2,
}

/// Looks up one offset a partition.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ListOffsetsRequest {
    /// The look-ups.
    #[prost(message, repeated, tag = "1")]
    pub queries: Vec<OffsetQuery>,
}

/// One look-up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct OffsetQuery {
    /// The topic.
    #[prost(message, optional, tag = "1")]
    pub topic_id: Option<Uuid>,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// Where to look.
    #[prost(enumeration = "Position", tag = "3")]
    pub position: i32,
    /// For `Time`: milliseconds since the Unix epoch.
    #[prost(int64, tag = "4")]
    pub timestamp_ms: i64,
}

/// One result a look-up, in the order of the request.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ListOffsetsReply {
    /// The results.
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<OffsetResult>,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct OffsetResult {
    /// An [`ErrorCode`](crate::error_code::ErrorCode).
    #[prost(uint32, tag = "1")]
    pub error: u32,
    /// For people, when there is an error.
    #[prost(string, tag = "2")]
    pub message: String,
    /// The offset.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    /// The timestamp of the record there, in milliseconds; -1 when there is no record yet.
    #[prost(int64, tag = "4")]
    pub timestamp_ms: i64,
    /// The leader epoch of the record there, or the current one.
    #[prost(uint32, tag = "5")]
    pub leader_epoch: u32,
}
