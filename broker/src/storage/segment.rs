//! One segment file: what is open of it, what is known about it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use highwater_broker_core::log::index::SparseIndex;
use highwater_broker_core::log::manifest::{Hole, SealedSegment};
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_protocol::ids::TopicPartition;
use parking_lot::Mutex;

use super::file_system::{File, Mapping};

/// Shared between the log that owns the segment, plans that read it and flush rounds.
#[derive(Debug)]
pub(super) struct SegmentFile {
    pub(super) partition: TopicPartition,
    pub(super) name: SegmentName,
    pub(super) path: PathBuf,
    /// What the cache of open files may close.
    pub(super) handle: Mutex<Handle>,
    /// Used since the cache last looked.
    pub(super) used: AtomicBool,
    /// Who needs the file to stay open: a closed file could lose the error of its last write.
    pins: AtomicUsize,
    verified: Verified,
    /// Bad ranges, by position; reads go around them.
    holes: Mutex<Vec<Hole>>,
    has_holes: AtomicBool,
}

/// What is open.
#[derive(Debug, Default)]
pub(super) struct Handle {
    pub(super) file: Option<Arc<dyn File>>,
    /// And the bytes that it maps.
    pub(super) mapping: Option<(Arc<dyn Mapping>, u64)>,
    /// Of a sealed segment, when it was needed.
    pub(super) index: Option<Arc<SparseIndex>>,
}

/// Which stretches of a segment have been read from the disk and found good since the broker started.
#[derive(Debug)]
struct Verified {
    all: AtomicBool,
    stretches: Mutex<Vec<u64>>,
}

impl SegmentFile {
    /// A segment of the partition whose directory this is. `trusted`: its bytes were written or verified since the start.
    pub(super) fn new(
        partition: TopicPartition,
        directory: &Path,
        name: SegmentName,
        trusted: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            partition,
            name,
            path: directory.join(name.to_string()),
            handle: Mutex::new(Handle::default()),
            used: AtomicBool::new(false),
            pins: AtomicUsize::new(0),
            verified: Verified { all: AtomicBool::new(trusted), stretches: Mutex::new(Vec::new()) },
            holes: Mutex::new(Vec::new()),
            has_holes: AtomicBool::new(false),
        })
    }

    pub(super) fn pin(&self) {
        self.pins.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn unpin(&self) {
        let before = self.pins.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "a segment file is unpinned as often as it is pinned");
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Acquire) > 0
    }

    pub(super) fn is_trusted(&self) -> bool {
        self.verified.all.load(Ordering::Acquire)
    }

    /// Whether a stretch needs no verification.
    pub(super) fn is_verified(&self, stretch: usize) -> bool {
        self.is_trusted()
            || self
                .verified
                .stretches
                .lock()
                .get(stretch / 64)
                .is_some_and(|word| word & (1 << (stretch % 64)) != 0)
    }

    pub(super) fn mark_verified(&self, stretch: usize) {
        let mut words = self.verified.stretches.lock();
        if words.len() <= stretch / 64 {
            words.resize(stretch / 64 + 1, 0);
        }
        words[stretch / 64] |= 1 << (stretch % 64);
    }

    /// Notes a bad range; false if it was known.
    pub(super) fn add_hole(&self, hole: Hole) -> bool {
        let mut holes = self.holes.lock();
        if holes.iter().any(|known| known.start <= hole.start && hole.end <= known.end) {
            return false;
        }
        holes.push(hole);
        holes.sort_by_key(|hole| hole.start);
        self.has_holes.store(true, Ordering::Release);
        true
    }

    pub(super) fn holes(&self) -> Vec<Hole> {
        if self.has_holes.load(Ordering::Acquire) { self.holes.lock().clone() } else { Vec::new() }
    }
}

/// A segment that nothing is appended to any more.
#[derive(Debug, Clone)]
pub(super) struct Sealed {
    pub(super) entry: SealedSegment,
    pub(super) file: Arc<SegmentFile>,
}
