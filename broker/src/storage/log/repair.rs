//! Repair of a corrupt range with batches from another replica.

use std::sync::Arc;

use highwater_broker_core::log::manifest::{EpochStart, Hole};
use highwater_broker_core::log::scan::{Depth, Found, Scanner, SegmentBytes};
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_protocol::ids::{LeaderEpoch, Offset};

use super::rewritten::{PIECE, Rewritten};
use super::{Active, Log, StampedBatch};
use crate::storage::error::{Error, RepairError};
use crate::storage::files::FileBytes;
use crate::storage::segment::{Sealed, SegmentFile};

impl Log {
    /// Fills the corrupt range that starts at `start`, or a part of it from its start on, with `batches` as another
    /// replica has them: verified, one after another, the first at `start`. Returns how far the range is filled; what is
    /// left is still corrupt.
    ///
    /// The segment is written anew beside the damaged one, synced and then listed in its place, so that a power cut leaves
    /// the range as it was or filled. Slices of the old file that are in use keep their bytes. Blocks on the disk, for as
    /// long as it takes to copy a segment: give as much at a time as there is.
    ///
    /// # Errors
    /// When there is no such range or the batches do not fit it, or the disk cannot be read or written: nothing has changed
    /// then. `RepairError::Later`: the segment is not on stable storage yet, try again.
    pub fn fill_hole(&mut self, start: Offset, batches: &[StampedBatch]) -> Result<Offset, RepairError> {
        self.store.check_open()?;
        self.take_in_discovered();
        if self.suspect {
            return Err(RepairError::Io(Error::Suspect(self.shared.partition)));
        }
        let place = self.holes.iter().position(|hole| hole.start == start);
        let hole =
            place.and_then(|place| self.holes.get(place)).cloned().ok_or(RepairError::NoHole(start))?;
        let within = |active: &Active| active.file.name.base_offset < hole.end;
        if self.active.as_ref().is_some_and(within) {
            self.roll()?;
            return Err(RepairError::Later);
        }
        let damaged = self.segment_with(start);
        let batches = &self.fitting(&hole, batches)?[..];
        let filled = batches.last().map_or(start, |batch| batch.header.end_offset());
        if let Some(segment) = &damaged
            && !self.shared.structure.is_listed(segment.entry.name)
        {
            return Err(RepairError::Later);
        }
        let name =
            self.repaired_name(damaged.as_ref().map_or(start, |segment| segment.entry.name.base_offset));
        let rewritten = self.rewrite(name, damaged.as_ref(), &hole, batches)?;
        self.replace_segment(damaged.as_ref(), rewritten, &hole, filled)?;
        // Later snapshots may have been taken without these batches: what is known now is right.
        batches.iter().for_each(|batch| self.producers.apply(&batch.header));
        self.note_epochs(batches);
        tracing::info!(
            partition = %self.shared.partition, %start, end = %filled, left = hole.end.count_since(filled),
            "a corrupt range was filled from another replica"
        );
        Ok(filled)
    }

    /// The sealed segment whose offsets these are.
    fn segment_with(&self, offset: Offset) -> Option<Sealed> {
        let place = self.sealed.partition_point(|segment| segment.entry.end_offset <= offset);
        self.sealed.get(place).filter(|segment| segment.entry.name.base_offset <= offset).cloned()
    }

    /// Those of `batches` that go into one segment, checked. One that reaches beyond it is cut off there: where the other
    /// replica is compacted, it may have other segments and batches.
    fn fitting(&self, hole: &Hole, batches: &[StampedBatch]) -> Result<Vec<StampedBatch>, RepairError> {
        // A range between two segments may reach into the second.
        let next =
            self.sealed.iter().map(|segment| segment.entry.name.base_offset).find(|base| *base > hole.start);
        let limit = next.map_or(hole.end, |next| next.min(hole.end));
        let epoch_at = |offset: Offset| {
            let before = self.epochs.iter().take_while(|start| start.start <= offset).last();
            before.map_or(LeaderEpoch(0), |start| start.epoch)
        };
        let epochs = epoch_at(hole.start)..=epoch_at(hole.end);
        let mut expected = hole.start;
        let mut fitting = Vec::new();
        for batch in batches {
            if expected >= limit {
                break;
            }
            let leader = &batch.header.leader;
            if leader.base_offset != expected || !epochs.contains(&leader.leader_epoch) {
                return Err(RepairError::Unfit {
                    expected,
                    found: leader.base_offset,
                    epoch: leader.leader_epoch,
                });
            }
            let trimmed = batch.clone().trimmed(hole.start..limit, self.shared.partition);
            let Ok(Some(batch)) = trimmed else { break };
            expected = batch.header.end_offset();
            fitting.push(batch);
        }
        if fitting.is_empty() {
            return Err(RepairError::TooLittle { start: hole.start, end: limit });
        }
        Ok(fitting)
    }

    /// A name for a rewritten segment that no file has.
    fn repaired_name(&mut self, base_offset: Offset) -> SegmentName {
        SegmentName { serial: self.reserve_rewritten(1), base_offset }
    }

    /// The first of so many serial numbers for rewritten segments.
    pub(super) const fn reserve_rewritten(&mut self, count: u64) -> u64 {
        self.next_rewritten += count;
        self.next_rewritten - count
    }

    /// Writes a segment with what is good of the damaged one and the batches that it lacks.
    fn rewrite(
        &self,
        name: SegmentName,
        damaged: Option<&Sealed>,
        hole: &Hole,
        batches: &[StampedBatch],
    ) -> Result<Rewritten, RepairError> {
        let segment = SegmentFile::new(self.shared.partition, &self.shared.directory, name, false);
        let path = segment.path.clone();
        let mut rewritten = Rewritten::create(&**self.store.file_system(), segment)?;
        let written = match damaged {
            None => rewritten.fill(batches),
            Some(damaged) => merge(&mut rewritten, self, damaged, hole, batches),
        };
        written
            .and_then(|()| rewritten.write())
            .and_then(|()| rewritten.file.sync())
            .map_err(Error::io("write segment", &path))?;
        Ok(rewritten)
    }

    /// Lists the new segment instead of the damaged one, durably.
    fn replace_segment(
        &mut self,
        damaged: Option<&Sealed>,
        rewritten: Rewritten,
        hole: &Hole,
        filled: Offset,
    ) -> Result<(), RepairError> {
        let entry = rewritten.entry(damaged.map_or(rewritten.end, |damaged| damaged.entry.end_offset));
        let Rewritten { state, holes: mut left, .. } = rewritten;
        let name = entry.name;
        // Of other segments, and of this one what is left.
        let old = damaged.map(|damaged| damaged.entry.name.serial);
        let others = self.holes.iter().filter(|other| {
            other.start != hole.start && (old != Some(other.serial) || other.start >= entry.end_offset)
        });
        left.extend(others.cloned());
        if damaged.is_none() && filled < hole.end {
            left.push(Hole { start: filled, ..hole.clone() });
        }
        left.sort_by_key(|hole| hole.start);
        let mut sealed = self.sealed.clone();
        if let Some(damaged) = damaged {
            sealed.retain(|segment| segment.entry.name != damaged.entry.name);
        }
        let at = sealed.partition_point(|segment| segment.entry.name.base_offset < name.base_offset);
        sealed.insert(at, Sealed { entry, file: Arc::clone(&state.file) });
        // Snapshots from here on may not know of the batches that were bad. They go before the new segment is listed: what
        // is known is read from the segments until there are new ones.
        let fs = Arc::clone(self.store.file_system());
        self.shared.structure.drop_snapshots(hole.end);
        for segment in self.sealed.iter().filter(|segment| segment.entry.end_offset >= hole.end) {
            let (from, to) = self.removal(segment.entry.name.producers_name());
            crate::storage::structure::move_to_trash(&*fs, &from, &to);
        }
        // What is filled in may be older than what is known of its keys.
        self.changed_below_end(hole.start);
        let (holes, cleaned) = (left.clone(), self.cleaned.clone());
        let listed = |manifest: &mut highwater_broker_core::log::manifest::Manifest| {
            if let Some(damaged) = damaged {
                manifest.segments.retain(|segment| segment.name != damaged.entry.name);
            }
            let at = manifest.segments.partition_point(|segment| segment.name.base_offset < name.base_offset);
            manifest.segments.insert(at, entry);
            manifest.holes = holes;
            manifest.cleaned = cleaned;
        };
        self.shared.structure.change_now(&*fs, self.shared.partition, &self.shared.directory, listed)?;
        state.file.handle.lock().index = Some(Arc::new(state.index));
        for hole in left.iter().filter(|hole| hole.serial == name.serial) {
            state.file.add_hole(hole.clone());
        }
        self.sealed = sealed;
        self.holes = left;
        self.new_holes.retain(|new| new.start != hole.start);
        if let Some(damaged) = damaged {
            let snapshot = self.removal(damaged.entry.name.producers_name());
            let removals = self.removals(&damaged.entry.name).into_iter().chain([snapshot]).collect();
            self.shared.structure.change(removals, |_| {});
            self.start_structure_job();
        }
        Ok(())
    }

    /// Epochs whose start lay in the range.
    fn note_epochs(&mut self, batches: &[StampedBatch]) {
        for batch in batches {
            let leader = &batch.header.leader;
            let place = self.epochs.partition_point(|start| start.epoch < leader.leader_epoch);
            match self.epochs.get_mut(place) {
                Some(known) if known.epoch == leader.leader_epoch => {
                    known.start = known.start.min(leader.base_offset);
                }
                _ => self
                    .epochs
                    .insert(place, EpochStart { epoch: leader.leader_epoch, start: leader.base_offset }),
            }
        }
    }
}

/// Copies the good batches of the damaged segment around the ones that it lacks.
fn merge(
    rewritten: &mut Rewritten,
    log: &Log,
    damaged: &Sealed,
    hole: &Hole,
    batches: &[StampedBatch],
) -> std::io::Result<()> {
    let entry = &damaged.entry;
    let old = log.store.cache().file(&damaged.file)?;
    let length = entry.length.min(old.length()?);
    let source = FileBytes::new(&*old, length, false, PIECE);
    let base = entry.name.base_offset;
    let mut scanner = Scanner::new(source, log.shared.partition, Depth::Full, base, LeaderEpoch(0));
    let mut missing = Some(batches);
    while let Some(found) = scanner.next_found()? {
        let Found::Batch { position, header } = found else { continue };
        if header.leader.base_offset >= hole.end
            && let Some(batches) = missing.take()
        {
            rewritten.note_gap(hole.start);
            rewritten.fill(batches)?;
        }
        rewritten.note_gap(header.leader.base_offset);
        let bytes = scanner.source_mut().view(position, header.length())?;
        rewritten.push(&header, &[bytes])?;
    }
    if let Some(batches) = missing {
        rewritten.note_gap(hole.start);
        rewritten.fill(batches)?;
    }
    rewritten.note_gap(entry.end_offset);
    Ok(())
}
