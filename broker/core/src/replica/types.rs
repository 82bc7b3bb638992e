//! What goes into a replica and what comes out of it.

use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, NodeId, Offset};
use highwater_protocol::messages::Stage;

use super::in_sync::Ends;
use crate::durability::Durability;
use crate::log::manifest::EpochStart;

/// What the log says about a replica when it is opened, and what the topic asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// This broker.
    pub node: NodeId,
    /// First offset of the log.
    pub log_start: Offset,
    /// Next offset to write.
    pub log_end: Offset,
    /// Next offset that is not on stable storage. After recovery: the log end.
    pub flushed_end: Offset,
    /// The high watermark that is known from before: the greatest `durable_end` in the log, or the log start.
    pub high_watermark: Offset,
    /// Counts truncations and resets of the log.
    pub log_generation: u64,
    /// The append time of the last batch, 0 if there is none.
    pub append_time: i64,
    /// Where each leader epoch starts, oldest first.
    pub epochs: Vec<EpochStart>,
    /// What the topic asks for.
    pub durability_wanted: Durability,
    /// What is recorded as holding.
    pub durability_effective: Durability,
}

/// A partition as the controller decided it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Who leads; `None` while nobody can.
    pub leader: Option<NodeId>,
    /// Raised at every change of leader and at every registration of the broker that leads.
    pub epoch: LeaderEpoch,
    /// Raised at every change of the partition. Proposals name it.
    pub version: u64,
    /// All that hold a replica or get one, preferred leader first; contains `adding`.
    pub replicas: Vec<NodeId>,
    /// Those that get one.
    pub adding: Vec<NodeId>,
    /// The in-sync set, each member with the broker epoch that it is registered under in the same image.
    pub in_sync: Vec<(NodeId, BrokerEpoch)>,
    /// Who can be elected although it is not in sync: it has everything committed. Disjoint from `in_sync`.
    pub eligible: Vec<NodeId>,
    /// In-sync replicas without which nothing is committed.
    pub min_in_sync: u32,
    /// Which durability is recorded as holding.
    pub durability_effective: Durability,
    /// Which durability the topic asks for.
    pub durability_wanted: Durability,
    /// The last epoch whose leader came from outside the in-sync and eligible sets: what it lacked is lost, so that
    /// logs without a batch of that epoch may be cut below their high watermark.
    pub unclean_epoch: Option<LeaderEpoch>,
}

impl Assignment {
    /// Of a partition with one replica: `node` leads it in `epoch`.
    #[must_use]
    pub fn alone(
        node: NodeId,
        broker_epoch: BrokerEpoch,
        epoch: LeaderEpoch,
        durability_effective: Durability,
        durability_wanted: Durability,
    ) -> Self {
        Self {
            leader: Some(node),
            epoch,
            version: 0,
            replicas: vec![node],
            adding: Vec::new(),
            in_sync: vec![(node, broker_epoch)],
            eligible: Vec::new(),
            min_in_sync: 1,
            durability_effective,
            durability_wanted,
            unclean_epoch: None,
        }
    }

    /// Whether `node` is in the in-sync or in the eligible set.
    #[must_use]
    pub fn is_member(&self, node: NodeId) -> bool {
        self.in_sync.iter().any(|(member, _)| *member == node) || self.eligible.contains(&node)
    }
}

/// What a leader's push says about one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchedBatch {
    /// Its first offset.
    pub base_offset: Offset,
    /// The offset after its last one.
    pub end_offset: Offset,
    /// The epoch that it was written in.
    pub epoch: LeaderEpoch,
    /// When it was appended.
    pub append_time: i64,
}

/// What happens to a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The image changed, or this broker registered anew. The shell passes only images that are at least as new as
    /// the broker's registration.
    Assigned {
        /// The partition in that image.
        assignment: Assignment,
        /// The registration that this broker runs under.
        own_epoch: BrokerEpoch,
    },
    /// The log took batches: they are in the page cache.
    Appended {
        /// Next offset to write.
        log_end: Offset,
        /// Of the last batch.
        append_time: i64,
    },
    /// A flush is over.
    Flushed {
        /// The log's generation when the flush began.
        log_generation: u64,
        /// Everything below is on stable storage.
        upto: Offset,
    },
    /// A flush failed: what was written since the last good one may be gone although it can still be read.
    FlushFailed {
        /// The log's generation when the flush began.
        log_generation: u64,
    },
    /// The log was verified past the page cache and cut to what is there. It leads again only in a new epoch.
    Verified {
        /// The log's generation now.
        log_generation: u64,
        /// Next offset to write; everything below is on stable storage.
        log_end: Offset,
    },
    /// Retention moved the start of the log.
    LogStart {
        /// First offset of the log.
        log_start: Offset,
    },
    /// The topic asks for this durability now.
    DurabilityWanted(Durability),
    /// This durability is recorded as the one that holds.
    DurabilityRecorded(Durability),
    /// In-sync replicas without which nothing is committed, from here on.
    MinInSync(u32),
    /// Leader: a follower's subscription is live. Its log is a prefix of the leader's.
    SessionOpened {
        /// Never used twice by this process.
        session: u64,
        /// The follower.
        node: NodeId,
        /// The registration that it runs under.
        broker_epoch: BrokerEpoch,
        /// Where its log ends.
        log_end: Offset,
    },
    /// Leader: a follower says how far it is.
    Acked {
        /// Its session.
        session: u64,
        /// The epoch that it follows.
        leader_epoch: LeaderEpoch,
        /// The registration that it runs under.
        broker_epoch: BrokerEpoch,
        /// How far it is.
        ends: Ends,
    },
    /// Leader: a follower's subscription is gone.
    SessionClosed {
        /// Its session.
        session: u64,
    },
    /// Leader: the controller refused what was proposed at this version, or could not be asked.
    ProposalRefused {
        /// The version that the proposal named.
        version: u64,
    },
    /// Follower: the subscription is live, so that everything up to the log end is the leader's too.
    Following {
        /// The leader's epoch.
        leader_epoch: LeaderEpoch,
        /// The leader's high watermark.
        high_watermark: Offset,
    },
    /// Follower: the leader pushed batches, or only a watermark.
    Fetched {
        /// The batches, one after another.
        batches: Vec<FetchedBatch>,
        /// The leader's epoch.
        leader_epoch: LeaderEpoch,
        /// The leader's high watermark.
        high_watermark: Offset,
    },
    /// Follower: the log has left the leader's.
    Diverged {
        /// The largest epoch of the leader that is not above the follower's last one.
        epoch: LeaderEpoch,
        /// Where that epoch ends in the leader's log.
        end_offset: Offset,
    },
    /// Follower: the leader's log begins above the end of this one.
    ResetOffered {
        /// First offset of the leader's log.
        log_start: Offset,
    },
    /// The log was cut as asked.
    Truncated {
        /// The log's generation now.
        log_generation: u64,
        /// Next offset to write.
        log_end: Offset,
        /// Next offset that is not on stable storage.
        flushed_end: Offset,
    },
    /// The log was replaced by an empty one, as asked.
    WasReset {
        /// The log's generation now.
        log_generation: u64,
        /// Where it starts, and ends.
        log_start: Offset,
        /// The leader's epochs up to there.
        epochs: Vec<EpochStart>,
    },
    /// Follower: the subscription is gone, or could not be opened, or what was asked for last could not be done.
    LinkLost,
    /// Nothing but time has passed.
    Tick,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Readers may see everything below; waiters for it are answered.
    HighWatermark(Offset),
    /// Waiters for this replica's own flush are answered.
    FlushedEnd(Offset),
    /// Record that this durability holds, then give `DurabilityRecorded` back.
    RecordDurability(Durability),
    /// Flush by this durability from here on.
    FlushBy(Durability),
    /// Mark the log suspect and verify it past the page cache, then give `Verified` back. Every waiter is told that the
    /// outcome of its batch is not known.
    VerifyLog,
    /// The log can be relied on again after verification. Readers start over if they are past the log end.
    Resumed {
        /// The log end, which may lie below an offset that was readable, when the topic does not wait for flushes.
        log_end: Offset,
    },
    /// Ask the controller for another in-sync set, if the partition is still at this epoch and version.
    Propose {
        /// The version that this builds on.
        version: u64,
        /// The epoch that it leads in.
        leader_epoch: LeaderEpoch,
        /// The whole set.
        in_sync: Vec<(NodeId, BrokerEpoch)>,
    },
    /// It leads from here on: appends may be stamped.
    StartLeading {
        /// The epoch.
        epoch: LeaderEpoch,
    },
    /// The same follower has opened another session: this one's subscription ends, so that whichever of the two the
    /// follower believes in, it comes again if it was the wrong one.
    EndSession {
        /// The session.
        session: u64,
    },
    /// It leads no longer: every waiter is told that the outcome of its batch is not known, every subscription ends.
    StopLeading,
    /// Subscribe at the leader. Every earlier subscription is over.
    Subscribe {
        /// Whom to ask.
        leader: NodeId,
        /// The epoch to name.
        epoch: LeaderEpoch,
        /// The first offset wanted.
        offset: Offset,
        /// The epoch of the record before.
        last_epoch: Option<LeaderEpoch>,
    },
    /// The subscription at the leader is over.
    Unsubscribe,
    /// Append the batches that were fetched last, then give `Appended` back, or `LinkLost` if that failed.
    Append,
    /// Cut the log, then give `Truncated` back.
    Truncate {
        /// The new log end.
        to: Offset,
    },
    /// Get what the leader says about its log start, replace the log by an empty one there, then give `WasReset` back,
    /// or `LinkLost` if that failed.
    Reset,
    /// Tell the leader how far this replica is. The latest value is enough.
    SendAck {
        /// The epoch that it follows.
        leader_epoch: LeaderEpoch,
        /// How far it is.
        ends: Ends,
    },
    /// Tell the controller, and the operator.
    Report(Problem),
}

/// What the controller or the operator has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// A flush failed: the replica neither leads nor follows until its log has been verified.
    Suspect,
    /// The log has been verified, and what it had lost of the committed records has been fetched again. It leads again
    /// only in a new epoch.
    Recovered,
    /// The leader lacks what this replica knows to be committed. The replica keeps its log and stays out of sync.
    Refused {
        /// Where the leader would have it end.
        to: Offset,
        /// Everything below was committed.
        high_watermark: Offset,
    },
}

/// What a producer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Everything below is committed.
    Committed(Offset),
    /// Everything below has reached the stage that the topic asks for, on the leader.
    LeaderStage(Offset),
}

/// What an acknowledgement says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The least stage over the replicas counted.
    pub stage: Stage,
    /// How many replicas had reached it.
    pub replicas_counted: u32,
    /// How many replicas the partition has.
    pub replicas_total: u32,
}

/// Whether the replica's log can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Online,
    /// A flush failed; nothing is appended, acknowledged or committed until the log has been verified.
    Suspect,
}

/// What a replica does for its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Nothing: nobody leads, it is not assigned, or its log is not relied on.
    Idle,
    /// It takes writes.
    Leader,
    /// It copies the leader's log.
    Follower,
}

/// How far one replica is, as its leader knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaProgress {
    /// Which broker.
    pub node: NodeId,
    /// How far it is; zeroes if it has not said.
    pub ends: Ends,
    /// Whether it is in the in-sync set as decided.
    pub in_sync: bool,
    /// Whether it has a live session; the leader itself has.
    pub connected: bool,
}
