//! Stamps for what a leader appends.

use highwater_protocol::batch::LeaderStamp;
use highwater_protocol::ids::Offset;

use super::{Replica, State};
use crate::time::Wall;

impl Replica {
    /// Begins an append: the stamps of the batches that are written next, one after another. Only for a leader.
    #[must_use]
    pub fn stamper(&self, now: Wall) -> Stamper {
        // What is durable on every member that copies the batch, so that whoever finds it bad knows that it was there.
        let durable_end = match &self.state {
            State::Leader(leader) => self.high_watermark.min(leader.set.least_flushed()),
            _ => Offset::ZERO,
        };
        Stamper {
            next: LeaderStamp {
                leader_flags: 0,
                base_offset: self.ends.log_end,
                leader_epoch: self.epoch(),
                append_time: now.0.max(self.append_time),
                durable_end,
            },
        }
    }
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
