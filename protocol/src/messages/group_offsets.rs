//! The positions of consumer groups: committing, fetching, changing, and how far they are behind.

use super::{GroupPartitions, Uuid};

/// Records how far a group has come. Goes to its coordinator.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct CommitOffsetsRequest {
    /// The group.
    #[prost(string, tag = "1")]
    pub group: String,
    /// The member; empty: none, which only a group without members accepts.
    #[prost(string, tag = "2")]
    pub member_id: String,
    /// The generation of the member's last heartbeat reply; 0 without a member.
    #[prost(uint32, tag = "3")]
    pub generation: u32,
    /// The positions.
    #[prost(message, repeated, tag = "4")]
    pub offsets: Vec<CommitOffset>,
}

/// How far a group has come in one partition.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct CommitOffset {
    /// The topic.
    #[prost(message, optional, tag = "1")]
    pub topic_id: Option<Uuid>,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The next offset to process: everything below it is done.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    /// The leader epoch of the last record below it, if known.
    #[prost(uint32, optional, tag = "4")]
    pub leader_epoch: Option<u32>,
    /// Anything the application wants to find again with the position.
    #[prost(string, tag = "5")]
    pub metadata: String,
}

/// One result a position, in the order of the request. What has no error is committed, and survives whatever a
/// committed record survives.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct CommitOffsetsReply {
    /// The results.
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<PartitionResult>,
}

/// What became of one partition of a request.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct PartitionResult {
    /// The topic.
    #[prost(message, optional, tag = "1")]
    pub topic_id: Option<Uuid>,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// An [`ErrorCode`](crate::error_code::ErrorCode).
    #[prost(uint32, tag = "3")]
    pub error: u32,
    /// For people, when there is an error.
    #[prost(string, tag = "4")]
    pub message: String,
}

/// Asks a group's coordinator how far the group has come.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct FetchOffsetsRequest {
    /// The group.
    #[prost(string, tag = "1")]
    pub group: String,
    /// The member that asks; empty: none.
    #[prost(string, tag = "2")]
    pub member_id: String,
    /// The generation of the member's last heartbeat reply; 0 without a member.
    #[prost(uint32, tag = "3")]
    pub generation: u32,
    /// Which partitions; empty: all that are committed.
    #[prost(message, repeated, tag = "4")]
    pub partitions: Vec<GroupPartitions>,
}

/// The positions asked for, in the order of the request; all of them by topic id and partition.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct FetchOffsetsReply {
    /// The positions.
    #[prost(message, repeated, tag = "1")]
    pub offsets: Vec<CommittedOffset>,
}

/// How far a group has come in one partition.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct CommittedOffset {
    /// The topic.
    #[prost(message, optional, tag = "1")]
    pub topic_id: Option<Uuid>,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// An [`ErrorCode`](crate::error_code::ErrorCode).
    #[prost(uint32, tag = "3")]
    pub error: u32,
    /// For people, when there is an error.
    #[prost(string, tag = "4")]
    pub message: String,
    /// The next offset to process; absent: nothing is committed.
    #[prost(uint64, optional, tag = "5")]
    pub offset: Option<u64>,
    /// The leader epoch of the last record below it, if the committer knew it.
    #[prost(uint32, optional, tag = "6")]
    pub leader_epoch: Option<u32>,
    /// What was committed with it.
    #[prost(string, tag = "7")]
    pub metadata: String,
    /// When it was committed, in milliseconds since the Unix epoch.
    #[prost(int64, tag = "8")]
    pub commit_time_ms: i64,
}

/// How far a group is in one partition, and how far behind.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct GroupLag {
    /// The topic.
    #[prost(message, optional, tag = "1")]
    pub topic_id: Option<Uuid>,
    /// Its name; empty when the topic is deleted.
    #[prost(string, tag = "2")]
    pub topic: String,
    /// The partition.
    #[prost(uint32, tag = "3")]
    pub partition: u32,
    /// The next offset to process; absent: nothing is committed.
    #[prost(uint64, optional, tag = "4")]
    pub committed: Option<u64>,
    /// First offset of the partition; absent when its leader did not answer.
    #[prost(uint64, optional, tag = "5")]
    pub log_start: Option<u64>,
    /// Next offset that is not committed by producers; absent when the partition's leader did not answer.
    #[prost(uint64, optional, tag = "6")]
    pub high_watermark: Option<u64>,
    /// Records between the position and the watermark; absent when either is unknown.
    #[prost(uint64, optional, tag = "7")]
    pub lag: Option<u64>,
    /// Who owns the partition.
    #[prost(string, optional, tag = "8")]
    pub member_id: Option<String>,
    /// What was committed with the position.
    #[prost(string, tag = "9")]
    pub metadata: String,
    /// When it was committed, in milliseconds since the Unix epoch; 0 when nothing is.
    #[prost(int64, tag = "10")]
    pub commit_time_ms: i64,
    /// The leader epoch of the last record below the position, if the committer knew it.
    #[prost(uint32, optional, tag = "11")]
    pub leader_epoch: Option<u32>,
    /// Offsets a minute by which the position has moved lately; absent before a second commit was seen.
    #[prost(uint64, optional, tag = "12")]
    pub offsets_per_minute: Option<u64>,
}

/// Sets or removes positions of partitions that no member owns.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AlterGroupOffsetsRequest {
    /// The group.
    #[prost(string, tag = "1")]
    pub group: String,
    /// Say what would change, change nothing.
    #[prost(bool, tag = "2")]
    pub dry_run: bool,
    /// The changes.
    #[prost(message, repeated, tag = "3")]
    pub targets: Vec<OffsetTarget>,
}

/// Where a group is to go on in one partition.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct OffsetTarget {
    /// The topic.
    #[prost(message, optional, tag = "1")]
    pub topic_id: Option<Uuid>,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The next offset to process; absent: remove the position.
    #[prost(uint64, optional, tag = "3")]
    pub offset: Option<u64>,
}

/// One result a change, in the order of the request.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AlterGroupOffsetsReply {
    /// The results.
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<AlteredOffset>,
}

/// What became of a position.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AlteredOffset {
    /// The topic.
    #[prost(message, optional, tag = "1")]
    pub topic_id: Option<Uuid>,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// An [`ErrorCode`](crate::error_code::ErrorCode).
    #[prost(uint32, tag = "3")]
    pub error: u32,
    /// For people, when there is an error.
    #[prost(string, tag = "4")]
    pub message: String,
    /// The position before; absent: none.
    #[prost(uint64, optional, tag = "5")]
    pub before: Option<u64>,
    /// The position after, or as it would be; absent: none.
    #[prost(uint64, optional, tag = "6")]
    pub after: Option<u64>,
}
