//! Plans of reads: made by the owner, executed elsewhere.

use std::sync::Arc;

use highwater_protocol::ids::Offset;

use super::{Active, Log};
use crate::storage::error::ReadError;
use crate::storage::read_plan::{ReadPlan, SegmentRead, Window};
use crate::storage::segment::Sealed;
use crate::storage::time_plan::{TimePlan, TimeSearch};

impl Log {
    /// A plan that reads whole batches: from the one with `from` on (it may start before), those that end at `upto` or
    /// before, up to `bytes_max` unless the first one is larger. Maybe fewer than there are: plan again from where they
    /// end. Touches no file.
    ///
    /// # Errors
    /// When `from` is before the log start, after the log end, or in a corrupt range.
    pub fn plan_read(&mut self, from: Offset, upto: Offset, bytes_max: usize) -> Result<ReadPlan, ReadError> {
        if self.suspect {
            return Err(ReadError::Suspect);
        }
        self.take_in_discovered();
        if from < self.log_start || from > self.log_end {
            let (log_start, log_end) = (self.log_start, self.log_end);
            return Err(ReadError::OutOfRange { offset: from, log_start, log_end });
        }
        let mut upto = upto.min(self.log_end);
        let place = self.holes.partition_point(|hole| hole.end <= from);
        if let Some(hole) = self.holes.get(place) {
            if hole.start <= from {
                return Err(ReadError::CorruptRange { start: hole.start, end: hole.end });
            }
            upto = upto.min(hole.start);
        }
        if from >= upto {
            return Ok(ReadPlan::empty());
        }
        if let Some(batches) = self.tail.read(from, upto, bytes_max) {
            return Ok(ReadPlan::from_memory(batches));
        }
        Ok(ReadPlan::from_segment(self.segment_read(from, upto, bytes_max)))
    }

    fn segment_read(&self, from: Offset, upto: Offset, bytes_max: usize) -> SegmentRead {
        let (file, window) = match &self.active {
            Some(active) if from >= active.file.name.base_offset => {
                (&active.file, active_window(active, from, upto, bytes_max))
            }
            _ => {
                let place = self.sealed.partition_point(|segment| segment.entry.end_offset <= from);
                let Some(segment) = self.sealed.get(place) else {
                    unreachable!("offset {from} is below the log end {} and in no hole", self.log_end)
                };
                (&segment.file, Window::Sealed(segment.entry))
            }
        };
        SegmentRead {
            store: Arc::clone(&self.store),
            log: Arc::clone(&self.shared),
            file: Arc::clone(file),
            map_bytes: self.config.limits.segment_bytes,
            from,
            upto,
            bytes_max,
            window,
        }
    }

    /// A plan that finds the first record below `upto` whose timestamp is `timestamp` or later, in milliseconds since the
    /// Unix epoch. Touches no file.
    pub fn plan_time(&mut self, timestamp: i64, upto: Offset) -> TimePlan {
        self.take_in_discovered();
        let upto = upto.min(self.log_end);
        let candidate = |segment: &&Sealed| {
            segment.entry.max_timestamp >= timestamp && segment.entry.name.base_offset < upto
        };
        let mut searches: Vec<TimeSearch> = self
            .sealed
            .iter()
            .filter(candidate)
            .map(|segment| TimeSearch {
                file: Arc::clone(&segment.file),
                window: Window::Sealed(segment.entry),
            })
            .collect();
        if let Some(active) = self.active.as_ref().filter(|active| active.index.max_timestamp() >= timestamp)
        {
            let start = active.index.floor_time(timestamp).map_or(0, |entry| entry.position);
            let window = Window::Active { start, end_floor: start, limit: active.position };
            searches.push(TimeSearch { file: Arc::clone(&active.file), window });
        }
        TimePlan {
            store: Arc::clone(&self.store),
            log: Arc::clone(&self.shared),
            map_bytes: self.config.limits.segment_bytes,
            suspect: self.suspect,
            timestamp,
            upto,
            searches,
        }
    }
}

fn active_window(active: &Active, from: Offset, upto: Offset, bytes_max: usize) -> Window {
    let start = active.index.floor_offset(from).map_or(0, |entry| entry.position);
    let end_floor = active
        .index
        .floor_position(start + bytes_max as u64)
        .into_iter()
        .chain(active.index.floor_offset(upto))
        .map(|entry| entry.position)
        .min()
        .unwrap_or(start);
    Window::Active { start, end_floor, limit: active.position }
}
