//! The log of one partition: segments on disk, a tail in memory, and what has been flushed.

mod append;
mod check;
pub(in crate::storage) mod clean;
mod close;
mod maintain;
pub(in crate::storage) mod producers;
mod quarantine;
mod read;
mod recover;
mod repair;
mod reset;
mod rewrite;
mod rewritten;
mod scan_files;
mod suspect;
mod truncate;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use highwater_broker_core::durability::Durability;
use highwater_broker_core::log::cleaning::CleanState;
use highwater_broker_core::log::index::SparseIndex;
use highwater_broker_core::log::manifest::{EpochStart, Hole, SealedSegment};
use highwater_broker_core::producer::ProducerTable;
use highwater_protocol::batch::{BatchHeader, HEADER_LENGTH};
use highwater_protocol::ids::{LeaderEpoch, Offset, TopicPartition};

use super::config::LogConfig;
use super::memory_tail::MemoryTail;
use super::segment::{Sealed, SegmentFile};
use super::shared::{Lane, LogShared};
use super::store::Store;

pub use clean::{Cleaning, Replacement, Step};
pub use close::Closed;
pub use maintain::Maintained;
pub use recover::{CutReport, RecoveryReport};
pub use suspect::Verified;

/// A batch with the header that its leader gave it.
#[derive(Debug, Clone)]
pub struct StampedBatch {
    /// The first bytes of the leader's header: all of it but extensions.
    pub head: [u8; HEADER_LENGTH],
    /// Everything after `head`: extensions of the header, then what the producer wrote.
    pub tail: Bytes,
    /// What `head` and `tail` say.
    pub header: BatchHeader,
}

/// The log of one partition. It has one owner; what others read goes through owned plans.
///
/// Durability: what `append` wrote survives the death of the process. It survives a power cut once the sink was told
/// `Flushed` with an end beyond it. Until then it may be lost, or survive in part, always up to some batch.
#[derive(Debug)]
pub struct Log {
    store: Arc<Store>,
    shared: Arc<LogShared>,
    config: LogConfig,
    log_start: Offset,
    log_end: Offset,
    flushed_end: Offset,
    log_generation: u64,
    /// The greatest `durable_end` of all batches that passed by.
    durable_end: Offset,
    last_append_time: i64,
    epochs: Vec<EpochStart>,
    holes: Vec<Hole>,
    /// Bad ranges that were found since `maintain` last reported them.
    new_holes: Vec<Hole>,
    sealed: VecDeque<Sealed>,
    /// The segment that ended where the log starts now, for the snapshot of producers at its end.
    before: Option<SealedSegment>,
    /// What is known at the log end.
    producers: ProducerTable,
    /// Invariant: starts where the last sealed segment or hole ends; there is none before the first append to it.
    active: Option<Active>,
    next_serial: u64,
    /// The next serial number of a rewritten segment.
    next_rewritten: u64,
    /// How far it is compacted.
    cleaned: CleanState,
    /// Where passes ended at the most, those included that were not complete.
    looked_upto: Offset,
    /// Changes when what lies below the log end has, other than by compaction: what a pass has learnt is void then.
    revision: u64,
    tail: MemoryTail,
    suspect: bool,
}

/// The segment that is appended to.
#[derive(Debug, Clone)]
struct Active {
    file: Arc<SegmentFile>,
    index: SparseIndex,
    /// Where the next batch goes. Bytes below are never written again.
    position: u64,
    /// Bytes below are on their way to the disk, if nobody waits for them to be there.
    written_back: u64,
    /// Bytes that the file has room for without asking.
    allocated: u64,
    /// Bytes to ask for next.
    step: u64,
    checksum: crc32fast::Hasher,
    first_append_time: i64,
    last_append_time: i64,
}

impl Log {
    /// Whose log this is.
    #[must_use]
    pub fn partition(&self) -> TopicPartition {
        self.shared.partition
    }

    /// The first offset.
    #[must_use]
    pub const fn log_start(&self) -> Offset {
        self.log_start
    }

    /// The next offset to write.
    #[must_use]
    pub const fn log_end(&self) -> Offset {
        self.log_end
    }

    /// Everything below is on stable storage.
    #[must_use]
    pub const fn flushed_end(&self) -> Offset {
        self.flushed_end
    }

    /// Raised by truncation: flush completions of earlier generations are void.
    #[must_use]
    pub const fn log_generation(&self) -> u64 {
        self.log_generation
    }

    /// The greatest `durable_end` in the batches of the unsealed tail at start, and of everything appended since: the
    /// high watermark was at least here.
    #[must_use]
    pub const fn durable_end(&self) -> Offset {
        self.durable_end
    }

    /// Append time of the last batch in microseconds since the Unix epoch; the least number if there was none.
    #[must_use]
    pub const fn last_append_time(&self) -> i64 {
        self.last_append_time
    }

    /// Where each leader epoch starts, oldest first.
    #[must_use]
    pub fn epochs(&self) -> &[EpochStart] {
        &self.epochs
    }

    /// The leader epoch of the last batch.
    #[must_use]
    pub fn last_epoch(&self) -> Option<LeaderEpoch> {
        self.epochs.last().map(|start| start.epoch)
    }

    /// Corrupt ranges, by offset.
    #[must_use]
    pub fn holes(&self) -> &[Hole] {
        &self.holes
    }

    /// Bytes of batches.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.sealed.iter().map(|segment| segment.entry.length).sum::<u64>() + self.active_bytes()
    }

    /// Segment files.
    #[must_use]
    pub fn segment_count(&self) -> usize {
        self.sealed.len() + usize::from(self.active.is_some())
    }

    /// Bytes that were appended and are not known to be on stable storage. Beyond some bound an owner should append on
    /// an I/O thread, because the kernel then makes writers wait for the disk.
    #[must_use]
    pub fn unflushed_bytes(&self) -> u64 {
        self.shared.unflushed_bytes.load(Ordering::Relaxed)
    }

    /// Whether a flush failed and the log was not verified since.
    #[must_use]
    pub const fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// The store that it belongs to.
    #[must_use]
    pub const fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Takes in a completion. False if it is void: the log was truncated since the round began.
    pub fn flushed(&mut self, log_generation: u64, upto: Offset) -> bool {
        let valid = log_generation == self.log_generation && upto <= self.log_end;
        if valid {
            self.flushed_end = self.flushed_end.max(upto);
        }
        // What was flushed need not stay open.
        self.store.cache().trim();
        valid
    }

    /// Flushes what is not flushed in the next round, whatever the durability.
    pub fn request_flush(&self) {
        let queue = self.shared.flush.lock().queue(Lane::Eager);
        if queue {
            self.store.flusher().enqueue(&self.shared, Lane::Eager);
        }
    }

    /// Keeps the batches that are appended from now on in memory, or no longer.
    pub fn set_tail_wanted(&mut self, wanted: bool) {
        self.tail.set_wanted(wanted);
    }

    /// Changes settings. What a stricter durability asks for is flushed in the next round.
    pub fn configure(&mut self, config: LogConfig) {
        self.config = config;
        self.producers.set_expiry(config.producer_expiry);
        if config.durability == Durability::Fsync {
            self.request_flush();
        }
    }

    fn active_bytes(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| active.position)
    }

    /// The lane in which sealed segments of this log get to the disk.
    fn sealing_lane(&self) -> Lane {
        if self.config.durability == Durability::Os { Lane::Background } else { Lane::Eager }
    }

    /// Starts the job that makes names and manifest durable, if there is work for it.
    fn start_structure_job(&self) {
        if self.shared.structure.start() {
            self.store.flusher().spawn_structure_job(&self.shared);
        }
    }
}

#[cfg(test)]
impl Log {
    pub(super) fn has_active(&self) -> bool {
        self.active.is_some()
    }

    /// Sealed segments that are durably listed; `None` while the manifest is not up to date.
    pub(super) fn listed_segments(&self) -> Option<usize> {
        let structure = &self.shared.structure;
        structure.is_durable().then(|| structure.listed_count())
    }

    pub(super) fn sealed_end(&self) -> Offset {
        self.sealed.back().map_or(self.log_start, |segment| segment.entry.end_offset)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.shared.flush.lock().stopped = true;
        self.shared.structure.stop();
        self.store.log_dropped(self.shared.partition);
    }
}
