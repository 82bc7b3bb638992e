//! One replica of a partition as a machine: what may be acknowledged, what may be read, and what a flush, a failed flush
//! or a changed durability does to both.
//!
//! The chain that holds at all times: accepted ≤ written ≤ flushed for each batch; for the replica
//! `flushed end <= log end` and `high watermark <= log end`. The high watermark never moves back while the log keeps
//! what it has.

mod durability_change;
mod in_sync;

use highwater_protocol::batch::LeaderStamp;
use highwater_protocol::ids::{LeaderEpoch, NodeId, Offset};
use highwater_protocol::messages::Stage;

use crate::durability::Durability;
use crate::time::{Mono, Wall};

use durability_change::DurabilityChange;
pub use in_sync::{Ends, InSyncSet};

/// What the log and the metadata say about a partition when its replica starts to lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// This broker.
    pub node: NodeId,
    /// The epoch that it leads in; above every epoch in the log.
    pub epoch: LeaderEpoch,
    /// Replicas that the partition is assigned.
    pub replication: u32,
    /// In-sync replicas without which nothing is committed.
    pub min_in_sync: u32,
    /// What the topic asks for.
    pub durability_wanted: Durability,
    /// What is recorded as holding.
    pub durability_effective: Durability,
    /// Next offset to write.
    pub log_end: Offset,
    /// Next offset that is not on stable storage. After recovery: the log end.
    pub flushed_end: Offset,
    /// The high watermark that is known from before, at least the last `durable_end`.
    pub high_watermark: Offset,
    /// Counts truncations and resets of the log.
    pub log_generation: u64,
    /// The append time of the last batch, 0 if there is none.
    pub append_time: i64,
}

/// What happens to a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
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
    /// The log was verified past the page cache and cut to what is there; it leads again, in a new epoch.
    Verified {
        /// The epoch that it leads in from here on.
        epoch: LeaderEpoch,
        /// The log's generation now.
        log_generation: u64,
        /// Next offset to write; everything below is on stable storage.
        log_end: Offset,
    },
    /// The topic asks for this durability now.
    DurabilityWanted(Durability),
    /// This durability is recorded as the one that holds.
    DurabilityRecorded(Durability),
    /// In-sync replicas without which nothing is committed, from here on.
    MinInSync(u32),
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Readers may see everything below; waiters for it are answered.
    HighWatermark(Offset),
    /// Waiters for the leader's own flush are answered.
    FlushedEnd(Offset),
    /// Record that this durability holds, then give `DurabilityRecorded` back.
    RecordDurability(Durability),
    /// Flush by this durability from here on.
    FlushBy(Durability),
    /// Mark the log suspect and verify it past the page cache, then give `Verified` back. Every waiter is told that the
    /// outcome of its batch is not known.
    VerifyLog,
    /// Leads again after verification. Readers start over if they are past the log end.
    Resumed {
        /// The new epoch.
        epoch: LeaderEpoch,
        /// The log end, which may lie below an offset that was readable, when the topic does not wait for flushes.
        log_end: Offset,
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

/// A replica that leads its partition.
#[derive(Debug, Clone)]
pub struct Replica {
    node: NodeId,
    epoch: LeaderEpoch,
    /// The log end when this epoch began.
    epoch_start: Offset,
    replication: u32,
    min_in_sync: u32,
    log_generation: u64,
    ends: Ends,
    high_watermark: Offset,
    append_time: i64,
    in_sync: InSyncSet,
    durability: DurabilityChange,
    health: Health,
}

impl Replica {
    /// Starts to lead. `out` receives what follows from it.
    ///
    /// # Panics
    /// When the ends contradict each other: the caller got them from one log.
    #[must_use]
    pub fn lead(start: Start, out: &mut Vec<Output>) -> Self {
        let ends = Ends { log_end: start.log_end, flushed_end: start.flushed_end };
        let mut replica = Self {
            node: start.node,
            epoch: start.epoch,
            epoch_start: start.log_end,
            replication: start.replication,
            min_in_sync: start.min_in_sync,
            log_generation: start.log_generation,
            ends,
            high_watermark: start.high_watermark.min(start.log_end),
            append_time: start.append_time,
            in_sync: InSyncSet::alone(start.node, ends),
            durability: DurabilityChange::new(start.durability_effective),
            health: Health::Online,
        };
        replica.durability.want(start.durability_wanted, replica.flushed_past_watermark(), out);
        replica.advance(out);
        replica.check_invariants();
        replica
    }

    /// Takes one input and appends what follows from it to `out`.
    pub fn step(&mut self, _now: Mono, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Appended { log_end, append_time } => self.appended(log_end, append_time, out),
            Input::Flushed { log_generation, upto } => self.flushed(log_generation, upto, out),
            Input::FlushFailed { log_generation } => {
                if log_generation == self.log_generation && self.health == Health::Online {
                    self.health = Health::Suspect;
                    out.push(Output::VerifyLog);
                }
            }
            Input::Verified { epoch, log_generation, log_end } => {
                self.verified(epoch, log_generation, log_end, out);
            }
            Input::DurabilityWanted(wanted) => {
                self.durability.want(wanted, self.flushed_past_watermark(), out);
                self.advance(out);
            }
            Input::DurabilityRecorded(recorded) => {
                self.durability.recorded(recorded, self.flushed_past_watermark(), out);
                self.advance(out);
            }
            Input::MinInSync(count) => {
                self.min_in_sync = count;
                self.advance(out);
            }
        }
        self.check_invariants();
    }

    /// When [`Replica::step`] has to be called although nothing happened. A leader on its own waits for nothing.
    #[must_use]
    pub const fn next_deadline(&self) -> Option<Mono> {
        None
    }

    /// Begins an append: the stamps of the batches that are written next, one after another.
    #[must_use]
    pub fn stamper(&self, now: Wall) -> Stamper {
        Stamper {
            next: LeaderStamp {
                leader_flags: 0,
                base_offset: self.ends.log_end,
                leader_epoch: self.epoch,
                append_time: now.0.max(self.append_time),
                durable_end: self.high_watermark.min(self.in_sync.least_flushed()),
            },
        }
    }

    /// The gate that every acknowledgement goes through: what may be said about `condition` now, or `None` while it is
    /// not reached.
    #[must_use]
    pub fn reached(&self, condition: Condition) -> Option<Reached> {
        if self.health != Health::Online {
            return None;
        }
        match condition {
            Condition::Committed(end) => (end <= self.high_watermark).then(|| Reached {
                stage: stage_of(self.in_sync.least_flushed(), end),
                replicas_counted: self.in_sync.written_count(end),
                replicas_total: self.replication,
            }),
            Condition::LeaderStage(end) => {
                let reached = end <= self.ends.counted(self.durability.gate())
                    || cfg!(hw_mutate = "h26_ack_without_gate");
                reached.then(|| Reached {
                    stage: stage_of(self.ends.flushed_end, end),
                    replicas_counted: 1,
                    replicas_total: self.replication,
                })
            }
        }
    }

    /// The epoch that it leads in.
    #[must_use]
    pub const fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// Next offset that is not committed.
    #[must_use]
    pub const fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// How many replicas the partition has.
    #[must_use]
    pub const fn replication(&self) -> u32 {
        self.replication
    }

    /// Its own ends.
    #[must_use]
    pub const fn ends(&self) -> Ends {
        self.ends
    }

    /// The log generation that flush completions must name.
    #[must_use]
    pub const fn log_generation(&self) -> u64 {
        self.log_generation
    }

    /// Whether the log can be relied on.
    #[must_use]
    pub const fn health(&self) -> Health {
        self.health
    }

    /// The durability that is recorded as holding.
    #[must_use]
    pub const fn durability_effective(&self) -> Durability {
        self.durability.effective()
    }

    /// The durability that flushes and the high watermark go by: the stricter of wanted and effective.
    #[must_use]
    pub fn durability_gate(&self) -> Durability {
        self.durability.gate()
    }

    /// Who is in sync.
    #[must_use]
    pub const fn in_sync(&self) -> &InSyncSet {
        &self.in_sync
    }

    /// Whether requests that need the end can be answered: the high watermark has reached the start of the epoch.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.health == Health::Online && self.high_watermark >= self.epoch_start
    }

    /// Whether enough replicas are in sync for anything to be committed.
    #[must_use]
    pub fn has_quorum(&self) -> bool {
        self.in_sync.count() >= self.min_in_sync
    }

    /// Checks what must always hold.
    ///
    /// # Panics
    /// When it does not: a defect.
    pub fn check_invariants(&self) {
        assert!(self.ends.flushed_end <= self.ends.log_end, "flushed end past log end: {self:?}");
        assert!(self.high_watermark <= self.ends.log_end, "high watermark past log end: {self:?}");
        assert!(self.in_sync.count() >= 1, "empty in-sync set: {self:?}");
    }

    fn appended(&mut self, log_end: Offset, append_time: i64, out: &mut Vec<Output>) {
        assert!(self.health == Health::Online, "appended while suspect");
        assert!(log_end >= self.ends.log_end, "log end moved back by an append");
        assert!(append_time >= self.append_time, "append time moved back");
        self.ends.log_end = log_end;
        self.append_time = append_time;
        self.in_sync.update(self.node, self.ends);
        self.advance(out);
    }

    fn flushed(&mut self, log_generation: u64, upto: Offset, out: &mut Vec<Output>) {
        // A completion from before a truncation says nothing about the log that is there now.
        if log_generation != self.log_generation || self.health != Health::Online {
            return;
        }
        assert!(upto <= self.ends.log_end, "flushed past the log end");
        if upto <= self.ends.flushed_end {
            return;
        }
        self.ends.flushed_end = upto;
        self.in_sync.update(self.node, self.ends);
        out.push(Output::FlushedEnd(upto));
        self.advance(out);
        self.durability.progressed(self.flushed_past_watermark(), out);
    }

    fn verified(&mut self, epoch: LeaderEpoch, log_generation: u64, log_end: Offset, out: &mut Vec<Output>) {
        assert!(epoch > self.epoch, "a verified log leads in a new epoch");
        assert!(log_end <= self.ends.log_end, "verification made the log longer");
        self.health = Health::Online;
        self.epoch = epoch;
        self.epoch_start = log_end;
        self.log_generation = log_generation;
        self.ends = Ends { log_end, flushed_end: log_end };
        self.in_sync.update(self.node, self.ends);
        // Under `fsync` nothing below the high watermark was unflushed, so this changes nothing then.
        self.high_watermark = self.high_watermark.min(log_end);
        out.push(Output::Resumed { epoch, log_end });
        self.advance(out);
        self.durability.progressed(self.flushed_past_watermark(), out);
    }

    /// Moves the high watermark as far as the in-sync set allows; never back.
    fn advance(&mut self, out: &mut Vec<Output>) {
        if self.health != Health::Online || !self.has_quorum() {
            return;
        }
        let candidate = self.in_sync.least_counted(self.durability.gate());
        if candidate > self.high_watermark {
            self.high_watermark = candidate;
            out.push(Output::HighWatermark(candidate));
        }
    }

    fn flushed_past_watermark(&self) -> bool {
        self.in_sync.least_flushed() >= self.high_watermark
    }
}

fn stage_of(flushed_end: Offset, end: Offset) -> Stage {
    if flushed_end >= end { Stage::Flushed } else { Stage::Written }
}

/// Hands out the stamps of consecutive batches. Nothing changes in the replica until `Appended` says what was written.
#[derive(Debug, Clone, Copy)]
pub struct Stamper {
    next: LeaderStamp,
}

impl Stamper {
    /// The stamp of the next batch, which takes `offset_count` offsets; `None` when offsets run out.
    pub fn next(&mut self, offset_count: u64) -> Option<LeaderStamp> {
        let stamp = self.next;
        self.next.base_offset = stamp.base_offset.checked_add_count(offset_count)?;
        Some(stamp)
    }

    /// The offset after the last stamped batch.
    #[must_use]
    pub const fn end(&self) -> Offset {
        self.next.base_offset
    }

    /// The append time of all its stamps.
    #[must_use]
    pub const fn append_time(&self) -> i64 {
        self.next.append_time
    }
}

#[cfg(test)]
mod tests;
