//! Subscriptions: how consumers and followers get batches without polling.

use super::Uuid;

/// What a subscriber may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Isolation {
    /// Records below the high watermark.
    Committed = 0,
    /// Records below the last stable offset: without open transactions.
    Stable = 1,
    /// Everything up to the log end. Only for followers.
    LogEnd = 2,
}

/// Which replica subscribes, in follower subscriptions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ReplicaIdentity {
    /// The follower's broker.
    #[prost(uint32, tag = "1")]
    pub node_id: u32,
    /// The data directory that it writes to.
    #[prost(message, optional, tag = "2")]
    pub directory_id: Option<Uuid>,
    /// The registration that it runs under.
    #[prost(uint64, tag = "3")]
    pub broker_epoch: u64,
}

/// Opens a subscription.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct SubscribeRequest {
    /// Chosen by the subscriber; greater than all before it on the connection.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The topic.
    #[prost(message, optional, tag = "2")]
    pub topic_id: Option<Uuid>,
    /// The partition.
    #[prost(uint32, tag = "3")]
    pub partition: u32,
    /// The leader epoch that the subscriber knows; absent: it does not care.
    #[prost(uint32, optional, tag = "4")]
    pub current_epoch: Option<u32>,
    /// The first offset wanted.
    #[prost(uint64, tag = "5")]
    pub offset: u64,
    /// The leader epoch of the record before `offset`, if the subscriber has it.
    #[prost(uint32, optional, tag = "6")]
    pub last_epoch: Option<u32>,
    /// Bytes that may be pushed before the first `Credit`; cumulative.
    #[prost(uint64, tag = "7")]
    pub credit: u64,
    /// What the subscriber may see.
    #[prost(enumeration = "Isolation", tag = "8")]
    pub isolation: i32,
    /// Set by followers.
    #[prost(message, optional, tag = "9")]
    pub replica: Option<ReplicaIdentity>,
}

/// The subscription is live; pushes follow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct SubscribeReply {
    /// The leader's epoch.
    #[prost(uint32, tag = "1")]
    pub leader_epoch: u32,
    /// Next offset that is not committed.
    #[prost(uint64, tag = "2")]
    pub high_watermark: u64,
    /// First offset that can be read.
    #[prost(uint64, tag = "3")]
    pub log_start: u64,
    /// Next offset to be written.
    #[prost(uint64, tag = "4")]
    pub log_end: u64,
    /// Set when the subscriber's log has left the leader's: the subscription is not live, and the subscriber cuts its log
    /// as this says and subscribes again.
    #[prost(message, optional, tag = "5")]
    pub divergence: Option<Divergence>,
    /// Set for a follower whose offset is below the log start: the subscription is not live, and the follower starts over
    /// (`ReplicaReset`).
    #[prost(bool, tag = "6")]
    pub reset: bool,
}

/// Batches for a subscription, or, without an attachment, a watermark that moved.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Push {
    /// The subscription.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The leader's epoch.
    #[prost(uint32, tag = "2")]
    pub leader_epoch: u32,
    /// Next offset that is not committed.
    #[prost(uint64, tag = "3")]
    pub high_watermark: u64,
    /// Next offset that belongs to an open transaction, or the high watermark.
    #[prost(uint64, tag = "4")]
    pub last_stable: u64,
    /// First offset that can be read.
    #[prost(uint64, tag = "5")]
    pub log_start: u64,
    /// Records of aborted transactions among the batches.
    #[prost(message, repeated, tag = "6")]
    pub aborted: Vec<AbortedRange>,
}

/// The records of one aborted transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct AbortedRange {
    /// Whose.
    #[prost(uint64, tag = "1")]
    pub producer_id: u64,
    /// Its first offset.
    #[prost(uint64, tag = "2")]
    pub first_offset: u64,
}

/// Raises what may be pushed. Latest value wins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Credit {
    /// The subscription.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Bytes that may have been pushed in all. While the rest is above 0, one whole batch may go out.
    #[prost(uint64, tag = "2")]
    pub limit: u64,
}

/// Ends a subscription. After the reply nothing more comes for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct UnsubscribeRequest {
    /// The subscription.
    #[prost(uint64, tag = "1")]
    pub id: u64,
}

/// The subscription is gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct UnsubscribeReply {}

/// The end of what two logs share.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Divergence {
    /// The largest epoch that is not above the subscriber's last one.
    #[prost(uint32, tag = "1")]
    pub epoch: u32,
    /// Where that epoch ends in the leader's log.
    #[prost(uint64, tag = "2")]
    pub end_offset: u64,
}

/// The broker ended the subscription.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Ended {
    /// The subscription.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// An [`ErrorCode`](crate::error_code::ErrorCode).
    #[prost(uint32, tag = "2")]
    pub code: u32,
    /// For people.
    #[prost(string, tag = "3")]
    pub message: String,
    /// Who leads now, 0 if not known.
    #[prost(uint32, tag = "4")]
    pub leader: u32,
    /// First offset that can be read.
    #[prost(uint64, tag = "5")]
    pub log_start: u64,
    /// Next offset to be written.
    #[prost(uint64, tag = "6")]
    pub log_end: u64,
    /// Set when the subscriber's log has left the leader's.
    #[prost(message, optional, tag = "7")]
    pub divergence: Option<Divergence>,
    /// Set for `corrupt_range`: what cannot be read.
    #[prost(message, optional, tag = "8")]
    pub corrupt: Option<super::CorruptRange>,
}

/// How far a follower is. Latest value wins; dropped unless its session is live.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ReplicaAck {
    /// The subscription.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The leader epoch that the follower follows.
    #[prost(uint32, tag = "2")]
    pub leader_epoch: u32,
    /// The follower's registration.
    #[prost(uint64, tag = "3")]
    pub broker_epoch: u64,
    /// Its next offset to write.
    #[prost(uint64, tag = "4")]
    pub log_end: u64,
    /// Its next offset that is not on stable storage.
    #[prost(uint64, tag = "5")]
    pub flushed_end: u64,
}
