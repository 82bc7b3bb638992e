//! The log of a simulated replica, in memory: what a crash or a failed flush takes from it, and what it keeps.

use std::ops::Range;

use highwater_broker_core::log::manifest::{EpochStart, note_epoch, start_epochs_at, truncate_epochs};
use highwater_protocol::batch::LeaderStamp;
use highwater_protocol::ids::{LeaderEpoch, Offset};

use super::random::Random;

/// A batch in a log. Two batches are the same if all of this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Batch {
    /// Its offsets.
    pub offsets: Range<u64>,
    /// The epoch of its leader.
    pub epoch: u32,
    /// The identity of its first record; the others follow.
    pub first_id: u64,
    /// When it was appended.
    pub append_time: i64,
    /// What its leader knew to be durable.
    pub durable_end: u64,
}

/// What a log says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// First offset.
    pub log_start: u64,
    /// Next offset to write.
    pub log_end: u64,
    /// Next offset that is not on stable storage.
    pub flushed_end: u64,
    /// Counts truncations and resets.
    pub generation: u64,
    /// Where each epoch starts.
    pub epochs: Vec<EpochStart>,
    /// The greatest that any batch says.
    pub durable_end: u64,
    /// Of the last batch.
    pub append_time: i64,
}

/// What a process tells about the end of the one before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Boot {
    /// It was not stopped in order.
    pub unclean: bool,
    /// The power may have been cut.
    pub other_kernel: bool,
    /// A flush had failed.
    pub flush_failed: bool,
}

/// How a flush ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flush {
    /// Everything below is on stable storage.
    Done {
        /// The generation when it began.
        generation: u64,
        /// What was written when it began.
        upto: u64,
    },
    /// What it was about may be gone.
    Failed {
        /// The generation when it began.
        generation: u64,
    },
}

/// A log in memory.
#[derive(Debug, Default)]
pub(super) struct Store {
    batches: Vec<Batch>,
    log_start: u64,
    flushed_end: u64,
    generation: u64,
    epochs: Vec<EpochStart>,
    /// Flushes that have begun: generation and end then.
    flights: Vec<(u64, u64)>,
    fails: bool,
    boot: Boot,
}

impl Store {
    fn log_end(&self) -> u64 {
        self.batches.last().map_or(self.log_start, |last| last.offsets.end)
    }

    fn cut(&mut self, to: u64) {
        self.batches.retain(|batch| batch.offsets.end <= to);
        truncate_epochs(&mut self.epochs, Offset(to));
        self.flushed_end = self.flushed_end.min(to);
    }

    /// Batches that were not flushed are gone from some point on.
    fn lose_some(&mut self, seed: u64) {
        let ends = self.batches.iter().map(|batch| batch.offsets.end);
        let mut ends: Vec<u64> = ends.filter(|end| *end > self.flushed_end).collect();
        ends.push(self.flushed_end);
        let to = Random::new(seed).pick(&ends).copied().unwrap_or(self.flushed_end);
        self.cut(to);
    }

    /// A batch as its leader writes it.
    pub(super) fn batch(stamp: LeaderStamp, ids: Range<u64>) -> Batch {
        let base = stamp.base_offset.get();
        Batch {
            offsets: base..base + (ids.end - ids.start),
            epoch: stamp.leader_epoch.get(),
            first_id: ids.start,
            append_time: stamp.append_time,
            durable_end: stamp.durable_end.get(),
        }
    }

    /// The process starts: the log is recovered.
    pub(super) fn start(&mut self) -> Boot {
        // Recovery syncs what it keeps.
        self.flushed_end = self.log_end();
        self.fails = false;
        self.boot
    }

    /// The controller has answered to what was told about the last end.
    pub(super) fn boot_reported(&mut self) {
        self.boot = Boot { unclean: true, ..Boot::default() };
    }

    /// What the log says.
    pub(super) fn facts(&self) -> Facts {
        Facts {
            log_start: self.log_start,
            log_end: self.log_end(),
            flushed_end: self.flushed_end,
            generation: self.generation,
            epochs: self.epochs.clone(),
            durable_end: self.batches.iter().map(|batch| batch.durable_end).max().unwrap_or(0),
            append_time: self.batches.last().map_or(0, |last| last.append_time),
        }
    }

    /// Writes batches into the page cache.
    pub(super) fn append(&mut self, batches: &[Batch]) {
        for batch in batches {
            assert_eq!(batch.offsets.start, self.log_end(), "{batch:?} does not go on where the log ends");
            note_epoch(&mut self.epochs, LeaderEpoch(batch.epoch), Offset(batch.offsets.start));
            self.batches.push(batch.clone());
        }
    }

    /// Up to `count` batches from `from` on.
    pub(super) fn read(&self, from: u64, count: usize) -> Vec<Batch> {
        let first = self.batches.partition_point(|batch| batch.offsets.end <= from);
        self.batches[first..].iter().take(count).cloned().collect()
    }

    /// Begins to flush what is written.
    pub(super) fn request_flush(&mut self) {
        let flight = (self.generation, self.log_end());
        if flight.1 > self.flushed_end && !self.flights.contains(&flight) {
            self.flights.push(flight);
        }
    }

    /// Completes one flush, perhaps not the oldest.
    pub(super) fn complete_flush(&mut self, random: &mut Random) -> Option<Flush> {
        if self.flights.is_empty() {
            return None;
        }
        let (generation, upto) = self.flights.remove(random.index(self.flights.len()));
        if std::mem::take(&mut self.fails) && generation == self.generation {
            self.boot.flush_failed = true;
            return Some(Flush::Failed { generation });
        }
        if generation == self.generation {
            self.flushed_end = self.flushed_end.max(upto);
        }
        Some(Flush::Done { generation, upto })
    }

    /// The next flush that is completed fails.
    pub(super) fn fail_a_flush(&mut self) {
        self.fails = true;
    }

    /// Takes back what was planned for the next flush; whether there was something.
    pub(super) fn forgive(&mut self) -> bool {
        std::mem::take(&mut self.fails)
    }

    /// Finds out what is on the disk after a failed flush.
    pub(super) fn verify(&mut self, seed: u64) {
        self.lose_some(seed);
        self.flushed_end = self.log_end();
        self.generation += 1;
        self.boot.flush_failed = false;
    }

    /// Cuts the log at the end of a batch.
    pub(super) fn truncate(&mut self, to: u64) {
        self.cut(to);
        self.generation += 1;
    }

    /// Replaces the log by an empty one.
    pub(super) fn reset(&mut self, log_start: u64, epochs: &[EpochStart]) {
        self.batches.clear();
        (self.log_start, self.flushed_end) = (log_start, log_start);
        self.epochs = epochs.to_vec();
        self.generation += 1;
    }

    /// Lets go of what is below `upto`, or less.
    pub(super) fn retain(&mut self, upto: u64) {
        self.batches.retain(|batch| batch.offsets.end > upto);
        let start = self.batches.first().map_or(upto, |first| first.offsets.start);
        self.log_start = self.log_start.max(start);
        self.flushed_end = self.flushed_end.max(self.log_start);
        start_epochs_at(&mut self.epochs, Offset(self.log_start));
    }

    /// The process is killed.
    pub(super) fn kill(&mut self) {
        self.flights.clear();
        self.boot.unclean = true;
    }

    /// The power is cut.
    pub(super) fn power_cut(&mut self, seed: u64) {
        self.kill();
        self.boot.other_kernel = true;
        self.lose_some(seed);
    }

    /// The process ends in order.
    pub(super) fn stop(&mut self) {
        self.flights.clear();
        self.flushed_end = self.log_end();
        self.boot.unclean = false;
    }
}
