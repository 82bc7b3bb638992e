//! Plans that verify stretches of the log.

use std::sync::Arc;

use highwater_protocol::ids::Offset;

use super::Log;
use crate::storage::check_plan::{ChecksumPlan, ScrubOutcome, ScrubPlace, ScrubPlan, Stretch};
use crate::storage::error::{Error, ReadError};
use crate::storage::table_plan::{KeySlice, TablePlan};

impl Log {
    /// A plan for a checksum over the whole batches from the one with `start` on, those that end at `end` or before, until
    /// `bytes_max` bytes have been read, but at least one batch. The same on every replica that has the same batches.
    /// Touches no file; executing it blocks on the disk.
    ///
    /// # Errors
    /// When a flush has failed. A start before the log start or after the log end is moved there.
    pub fn plan_checksum(
        &mut self,
        start: Offset,
        end: Offset,
        bytes_max: u64,
    ) -> Result<ChecksumPlan, ReadError> {
        if self.suspect {
            return Err(ReadError::Suspect);
        }
        self.take_in_discovered();
        let end = end.clamp(self.log_start, self.log_end);
        let start = start.clamp(self.log_start, end);
        let mut stretches = self.stretches(start, end, self.log_end);
        // Of the first one not all has to be read, if its index is at hand.
        if let Some(first) = stretches.first_mut() {
            let handle = first.file.handle.lock();
            let sealed = handle.index.as_deref();
            let active = self.active.as_ref().filter(|active| Arc::ptr_eq(&active.file, &first.file));
            let index = sealed.or(active.map(|active| &active.index));
            if let Some(floor) = index.and_then(|index| index.floor_offset(start)) {
                first.positions.start = floor.position;
                first.offsets.start = floor.offset;
            }
        }
        let (store, log) = (Arc::clone(&self.store), Arc::clone(&self.shared));
        Ok(ChecksumPlan { store, log, start, end, bytes_max, stretches })
    }

    /// A plan for a checksum over the last record of each key from `start` up to `end`: the same on every replica that has
    /// the same records, however far each is compacted, if `end` is not below [`Log::compacted_end`] of any. Touches no
    /// file; executing it blocks on the disk.
    ///
    /// # Errors
    /// When a flush has failed. A start before the log start or after the log end is moved there.
    pub fn plan_table(&mut self, start: Offset, end: Offset, keys: KeySlice) -> Result<TablePlan, ReadError> {
        if self.suspect {
            return Err(ReadError::Suspect);
        }
        self.take_in_discovered();
        let end = end.clamp(self.log_start, self.log_end);
        let start = start.clamp(self.log_start, end);
        let stretches = self.stretches(start, end, self.log_end);
        let (store, log) = (Arc::clone(&self.store), Arc::clone(&self.shared));
        Ok(TablePlan { store, log, range: start..end, keys, stretches })
    }

    /// A plan that verifies the next `budget_bytes` of what is sealed or flushed, at least one batch, from the disk itself
    /// where the file system can do that. It goes on where the last one that was executed has ended, and starts over at
    /// the end. Touches no file; executing it blocks on the disk. What is found to be corrupt is told by `maintain`.
    ///
    /// # Errors
    /// When a flush has failed: then the log is verified anyway.
    pub fn plan_scrub(&mut self, budget_bytes: u64) -> Result<ScrubPlan, Error> {
        if self.suspect {
            return Err(Error::Suspect(self.shared.partition));
        }
        self.take_in_discovered();
        let place = *self.shared.scrub_place.lock();
        let start = place.map_or(self.log_start, |place| place.offset.max(self.log_start));
        let mut stretches = self.stretches(start, self.flushed_end, self.flushed_end);
        if let (Some(first), Some(ScrubPlace { segment, position, offset })) = (stretches.first_mut(), place)
            && first.file.name == segment
            && first.positions.contains(&position)
        {
            first.positions.start = position;
            first.offsets.start = offset;
        }
        Ok(ScrubPlan {
            store: Arc::clone(&self.store),
            log: Arc::clone(&self.shared),
            budget_bytes,
            stretches,
        })
    }

    /// Makes such a plan and executes it. Blocks on the disk.
    ///
    /// # Errors
    /// When a flush has failed, or the disk cannot be read: the scrub stays where it was.
    pub fn scrub(&mut self, budget_bytes: u64) -> Result<ScrubOutcome, Error> {
        let outcome = self.plan_scrub(budget_bytes)?.execute()?;
        self.take_in_discovered();
        Ok(outcome)
    }

    /// The segments with offsets in `start..end`; of the active one no more than ends at `active_end`.
    fn stretches(&self, start: Offset, end: Offset, active_end: Offset) -> Vec<Stretch> {
        let first = self.sealed.partition_point(|segment| segment.entry.end_offset <= start);
        let mut stretches: Vec<Stretch> = self
            .sealed
            .range(first..)
            .take_while(|segment| segment.entry.name.base_offset < end)
            .map(|segment| Stretch {
                file: Arc::clone(&segment.file),
                positions: 0..segment.entry.length,
                offsets: segment.entry.name.base_offset..segment.entry.end_offset,
            })
            .collect();
        if let Some(active) = &self.active
            && active.file.name.base_offset < end
            && active.position > 0
        {
            let base = active.file.name.base_offset;
            // Where its batch starts is known to a stretch of the index.
            let floor = active.index.floor_offset(active_end).filter(|_| active_end < self.log_end);
            let (position, offset) =
                floor.map_or((active.position, self.log_end), |floor| (floor.position, floor.offset));
            stretches.push(Stretch {
                file: Arc::clone(&active.file),
                positions: 0..position,
                offsets: base..offset,
            });
        }
        stretches.retain(|stretch| stretch.positions.start < stretch.positions.end);
        stretches
    }
}
