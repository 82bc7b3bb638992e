//! Compaction, the owner's side: starts a pass, and puts what it has written into the place of what was there.
//!
//! The pass itself runs on I/O threads and needs no log ([`Cleaning`]). It writes new segments, syncs them with their
//! names, and hands them over one by one. The manifest that lists a new segment is written in the background; the old ones
//! go to the trash after that, and slices of them stay readable.

mod pass;

use std::path::PathBuf;

use highwater_broker_core::log::cleaning::{CleanState, Passed, Segment, Task};
use highwater_broker_core::log::manifest::{Hole, SealedSegment};
use highwater_broker_core::time::Wall;
use highwater_protocol::ids::Offset;

use super::Log;
use crate::storage::segment::Sealed;

pub use pass::{Cleaning, Step};

/// A cleaned segment that is on stable storage, and what it stands for.
#[derive(Debug)]
pub struct Replacement {
    /// The log as it was when the pass began.
    revision: u64,
    /// What it replaces: neighbours.
    old: Vec<Sealed>,
    /// Bad ranges of those, as they were when they were read.
    old_holes: Vec<Hole>,
    new: Sealed,
    /// The same ranges in the new segment.
    holes: Vec<Hole>,
}

impl Log {
    /// How far the log is compacted.
    #[must_use]
    pub const fn cleaned(&self) -> &CleanState {
        &self.cleaned
    }

    /// Up to where compaction has looked for later records of a key, if the log is compacted at all: whoever compares
    /// replicas has to look as far.
    #[must_use]
    pub fn compacted_end(&self) -> Option<Offset> {
        let is_compacted = self.config.compaction.is_some() || self.looked_upto > Offset::ZERO;
        is_compacted.then_some(self.looked_upto)
    }

    /// Whether a pass has something to do. Touches no file.
    pub fn wants_cleaning(&mut self, now: Wall, high_watermark: Offset) -> bool {
        self.cleaning_task(now, high_watermark).is_some()
    }

    /// A pass over everything that is sealed, flushed and below `high_watermark`, if there is something to do.
    /// `seed` is one that nobody can foretell; `map_bytes_max`: bytes of memory for keys: where there are more, a pass gets
    /// less far and the next one goes on from there. Touches no file.
    pub fn plan_cleaning(
        &mut self,
        now: Wall,
        high_watermark: Offset,
        seed: u64,
        map_bytes_max: usize,
    ) -> Option<Cleaning> {
        let task = self.cleaning_task(now, high_watermark)?;
        let segments: Vec<Sealed> = self.sealed.range(..task.segments).cloned().collect();
        self.looked_upto = self.looked_upto.max(task.dirty.end);
        let next_serial = self.reserve_rewritten(segments.len() as u64);
        // What a producer may send again stays recognisable, also if the log is cut at any place that is not committed.
        let identities = self.producers.remembered_offsets().collect();
        Some(Cleaning::new(self, segments, task, identities, next_serial, seed, map_bytes_max))
    }

    fn cleaning_task(&mut self, now: Wall, high_watermark: Offset) -> Option<Task> {
        let settings = self.config.compaction?;
        if self.suspect || self.store.is_closed() || !self.shared.structure.has_manifest() {
            return None;
        }
        self.take_in_discovered();
        let listed = self.shared.structure.listed_count().min(self.sealed.len());
        let segments: Vec<Segment> = self
            .sealed
            .range(..listed)
            .map(|segment| Segment {
                start: segment.entry.name.base_offset,
                end: segment.entry.end_offset,
                bytes: segment.entry.length,
            })
            .collect();
        let first_hole = self.holes.first().map(|hole| hole.start);
        let bound = high_watermark.min(self.flushed_end);
        self.cleaned.task(&segments, bound, first_hole, settings, now)
    }

    /// Puts a cleaned segment into the place of those that it stands for. False if they are not what they were: retention
    /// let go of them, the log was cut or repaired, or bad ranges were found; the pass is over then.
    pub fn swap_cleaned(&mut self, replacement: Replacement) -> bool {
        self.take_in_discovered();
        let Some(at) = self.place_of(&replacement) else {
            replacement.old.iter().for_each(|old| old.file.unpin());
            let entry = &replacement.new.entry;
            let removals = self.removals(&entry.name).into_iter();
            let removals = removals.chain([self.removal(entry.name.producers_name())]).collect();
            self.shared.structure.change(removals, |_| {});
            self.start_structure_job();
            return false;
        };
        let Replacement { old, new, holes, .. } = replacement;
        let (count, entry) = (old.len(), new.entry);
        let is_old = |serial: u64| old.iter().any(|old| old.entry.name.serial == serial);
        self.holes.retain(|hole| !is_old(hole.serial));
        self.holes.extend(holes);
        self.holes.sort_by_key(|hole| hole.start);
        self.sealed.drain(at..at + count);
        self.sealed.insert(at, new);
        let removals: Vec<(PathBuf, PathBuf)> = old
            .iter()
            .map(|old| old.entry.name)
            .flat_map(|name| {
                let snapshot = self.removal(name.producers_name());
                self.removals(&name).into_iter().chain([snapshot])
            })
            .collect();
        let (first, holes) = (old.first().map(|old| old.entry.name), self.holes.clone());
        self.shared.structure.change(removals, |manifest| {
            let listed = manifest.segments.iter().position(|segment| Some(segment.name) == first);
            // What is sealed and listed in memory is listed there, in the same order.
            let at = listed.unwrap_or(manifest.segments.len());
            manifest.segments.splice(at..(at + count).min(manifest.segments.len()), [entry]);
            manifest.holes = holes;
        });
        self.start_structure_job();
        true
    }

    /// Where the segments are that are to be replaced, if they are what they were.
    fn place_of(&self, replacement: &Replacement) -> Option<usize> {
        let old = &replacement.old;
        if self.suspect || replacement.revision != self.revision {
            return None;
        }
        let first = old.first()?.entry.name;
        let at = self.sealed.iter().position(|segment| segment.entry.name == first)?;
        let there: Vec<SealedSegment> =
            self.sealed.range(at..).take(old.len()).map(|segment| segment.entry).collect();
        let is_old = |hole: &&Hole| old.iter().any(|old| old.entry.name.serial == hole.serial);
        let same_holes = self.holes.iter().filter(is_old).eq(&replacement.old_holes);
        (same_holes && old.iter().map(|old| old.entry).eq(there)).then_some(at)
    }

    /// Takes note that a pass is complete. `revision` is that of the pass.
    pub fn cleaning_done(&mut self, revision: u64, passed: Passed, now: Wall) {
        let Some(settings) = self.config.compaction else { return };
        if revision != self.revision || self.suspect {
            return;
        }
        self.cleaned.passed(passed, settings.tombstone_grace, now);
        let cleaned = self.cleaned.clone();
        self.shared.structure.change(Vec::new(), |manifest| manifest.cleaned = cleaned);
        self.start_structure_job();
    }

    /// The log was cut at `from`, or something there has changed: it is dirty again, and passes under way are void.
    pub(super) fn changed_below_end(&mut self, from: Offset) {
        self.cleaned.cut(from);
        self.revision += 1;
    }
}
