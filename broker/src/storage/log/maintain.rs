//! Rolling segments, retention, and taking in what readers found.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use highwater_broker_core::log::manifest::{Hole, Location, SealedSegment, start_epochs_at, truncate_epochs};
use highwater_broker_core::log::retention::Facts;
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_broker_core::time::Wall;
use highwater_protocol::ids::Offset;

use super::Log;
use crate::storage::error::Error;
use crate::storage::segment::Sealed;
use crate::storage::shared::Sealing;

/// What `Log::maintain` did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintained {
    /// The first offset now.
    pub log_start: Offset,
    /// Whether the active segment was rolled.
    pub rolled: bool,
    /// Segments that were let go.
    pub segments_removed: usize,
    /// Bytes of those.
    pub bytes_removed: u64,
    /// Corrupt ranges that were found since the last call.
    pub new_holes: Vec<Hole>,
}

impl Log {
    /// Rolls the active segment if it is too old, and lets segments go that retention does not want, never past
    /// `high_watermark`. Takes in corrupt ranges that readers have found. Files and manifest follow on an I/O thread.
    ///
    /// # Errors
    /// When the active segment cannot be rolled; call again later.
    pub fn maintain(&mut self, now: Wall, high_watermark: Offset) -> Result<Maintained, Error> {
        self.take_in_discovered();
        let mut maintained = Maintained {
            log_start: self.log_start,
            rolled: false,
            segments_removed: 0,
            bytes_removed: 0,
            new_holes: std::mem::take(&mut self.new_holes),
        };
        if self.suspect {
            return Ok(maintained);
        }
        if self.active_facts().is_some_and(|active| self.config.limits.must_roll(&active, now)) {
            self.roll()?;
            maintained.rolled = true;
        }
        let sealed: Vec<Facts> = self.sealed.iter().map(|segment| facts(&segment.entry)).collect();
        let expired = self.config.limits.expired_count(&sealed, self.active_bytes(), now, high_watermark);
        // What is not flushed and listed yet goes later.
        let expired = expired.min(self.shared.structure.listed_count());
        if expired > 0 {
            maintained.segments_removed = expired;
            maintained.bytes_removed = sealed[..expired].iter().map(|segment| segment.bytes).sum();
            self.let_go(expired, high_watermark);
            maintained.log_start = self.log_start;
        }
        // Also retries what failed for want of room.
        self.start_structure_job();
        Ok(maintained)
    }

    fn let_go(&mut self, count: usize, high_watermark: Offset) {
        let gone: Vec<Sealed> = self.sealed.drain(..count).collect();
        let Some(last) = gone.last() else { return };
        let next = match (self.sealed.front(), &self.active) {
            (Some(next), _) => next.entry.name.base_offset,
            (None, Some(active)) => active.file.name.base_offset,
            (None, None) => self.log_end,
        };
        // A hole between the last segment that goes and the next one goes too.
        self.log_start = if next <= high_watermark { next } else { last.entry.end_offset };
        let log_start = self.log_start;
        self.holes.retain(|hole| hole.end > log_start);
        start_epochs_at(&mut self.epochs, log_start);
        // What is known of producers outlives their batches.
        let before = self.before.replace(last.entry);
        let mut removals: Vec<_> =
            gone.iter().flat_map(|segment| self.removals(&segment.entry.name)).collect();
        let dead = gone[..count - 1].iter().map(|segment| segment.entry.name);
        for name in dead.chain(before.map(|before| before.name)) {
            removals.push(self.removal(name.producers_name()));
        }
        let before = self.before.filter(|_| !cfg!(hw_mutate = "h14_state_goes_with_segments"));
        let entries: Vec<SealedSegment> = gone.iter().map(|segment| segment.entry).collect();
        self.shared.structure.let_go(&entries, removals, self.config.producer_expiry, |manifest| {
            manifest.segments.drain(..count);
            manifest.log_start = log_start;
            manifest.before = before;
            manifest.holes.retain(|hole| hole.end > log_start);
            start_epochs_at(&mut manifest.epochs, log_start);
        });
        tracing::debug!(partition = %self.shared.partition, %log_start, count, "retention let segments go");
    }

    /// Where the files of a segment go that is not listed any more, but for its snapshot of producers.
    pub(super) fn removals(&self, name: &SegmentName) -> [(PathBuf, PathBuf); 2] {
        [name.to_string(), name.index_name()].map(|name| self.removal(name))
    }

    /// Where a file goes that is not needed any more.
    pub(super) fn removal(&self, name: String) -> (PathBuf, PathBuf) {
        let trash = self.store.trash_path(&format!("{}-{name}", self.shared.partition).replace('/', "-"));
        (self.shared.directory.join(name), trash)
    }

    /// Seals the active segment; the next append starts a new one. Does nothing if there is nothing in it.
    pub(super) fn roll(&mut self) -> Result<(), Error> {
        let Some(active) = self.active.take_if(|active| active.position > 0) else { return Ok(()) };
        let file = match self.store.cache().file(&active.file) {
            Ok(file) => file,
            Err(error) => {
                let error = Error::io("open file", &active.file.path)(error);
                self.active = Some(active);
                return Err(error);
            }
        };
        let entry = SealedSegment {
            name: active.file.name,
            end_offset: self.log_end,
            length: active.position,
            checksum: active.checksum.finalize(),
            max_timestamp: active.index.max_timestamp(),
            first_append_time: active.first_append_time,
            last_append_time: active.last_append_time,
            location: Location::Local,
        };
        let index = Arc::new(active.index);
        active.file.handle.lock().index = Some(Arc::clone(&index));
        let mut epochs = self.epochs.clone();
        truncate_epochs(&mut epochs, self.log_end);
        let lane = self.sealing_lane();
        let producers = self.snapshot(&entry).into();
        let sealing = Sealing { entry, index, epochs, producers };
        if self.shared.seal(&active.file, &file, sealing, lane) {
            self.store.flusher().enqueue(&self.shared, lane);
        }
        self.sealed.push_back(Sealed { entry, file: active.file });
        Ok(())
    }

    fn active_facts(&self) -> Option<Facts> {
        self.active.as_ref().map(|active| Facts {
            end_offset: self.log_end,
            bytes: active.position,
            first_append_time: active.first_append_time,
            last_append_time: active.last_append_time,
        })
    }

    /// Takes in corrupt ranges that readers have found.
    pub(super) fn take_in_discovered(&mut self) {
        if !self.shared.has_discovered.swap(false, Ordering::AcqRel) {
            return;
        }
        let found = std::mem::take(&mut *self.shared.discovered.lock());
        for hole in found {
            let known = self.holes.iter().any(|known| known.start < hole.end && hole.start < known.end);
            if known || hole.end <= self.log_start {
                continue;
            }
            let place = self.holes.partition_point(|known| known.start < hole.start);
            self.holes.insert(place, hole.clone());
            self.new_holes.push(hole);
        }
        let holes = self.holes.clone();
        self.shared.structure.change(Vec::new(), |manifest| manifest.holes = holes);
        self.start_structure_job();
    }
}

const fn facts(entry: &SealedSegment) -> Facts {
    Facts {
        end_offset: entry.end_offset,
        bytes: entry.length,
        first_append_time: entry.first_append_time,
        last_append_time: entry.last_append_time,
    }
}
