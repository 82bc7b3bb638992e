//! Truncation while running: the manifest durably gets the shorter length, appends go on in a new file.

use std::collections::VecDeque;
use std::sync::Arc;

use highwater_broker_core::log::manifest::{Hole, SealedSegment, truncate_epochs};
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_broker_core::producer::ProducerTable;
use highwater_protocol::ids::Offset;

use super::Log;
use crate::storage::error::Error;
use crate::storage::file_system::OpenMode;
use crate::storage::segment::Sealed;
use crate::storage::verify;

impl Log {
    /// Cuts the log so that it ends at `to`, or before the batch that `to` lies in, and returns where it ends now. Raises
    /// the log generation. When it returns, the shorter log is on stable storage, all of it flushed. Bytes that were cut
    /// off stay readable for who has slices of them. Blocks on the disk.
    ///
    /// # Errors
    /// When flushing what stays, or writing the manifest, fails. The log is suspect then.
    pub fn truncate(&mut self, to: Offset) -> Result<Offset, Error> {
        self.store.check_open()?;
        let to = to.max(self.log_start);
        if to >= self.log_end {
            return Ok(self.log_end);
        }
        self.cut_at(to, false)
    }

    /// Ends the log at `to`, and starts a new generation and a new file. `verified`: what stays is known to be on the
    /// disk, although a flush failed.
    pub(super) fn cut_at(&mut self, to: Offset, verified: bool) -> Result<Offset, Error> {
        self.take_in_discovered();
        self.tail.clear();
        let cut = self.flush_what_stays(to, verified).and_then(|()| self.cut_segments(to));
        let cut = match cut {
            Ok(cut) => cut,
            Err(error) => {
                self.suspect = true;
                return Err(error);
            }
        };
        let (log_end, sealed, dead) = cut;
        let entries: Vec<SealedSegment> = sealed.iter().map(|segment| segment.entry).collect();
        let producers = match self.producers_at(log_end, &entries) {
            Ok(producers) => producers,
            Err(error) => {
                self.suspect = true;
                return Err(error);
            }
        };
        let generation = self.log_generation + 1;
        let mut holes = self.holes.clone();
        holes.retain(|hole| hole.start < log_end);
        truncate_epochs(&mut self.epochs, log_end);
        let epochs = self.epochs.clone();
        self.changed_below_end(log_end);
        let cleaned = self.cleaned.clone();
        let (next_serial, log_start, before) = (self.next_serial, self.log_start, self.before);
        let fs = Arc::clone(self.store.file_system());
        let manifest_holes = holes.clone();
        let written = self.shared.structure.change_now(
            &*fs,
            self.shared.partition,
            &self.shared.directory,
            |manifest| {
                manifest.log_generation = generation;
                manifest.log_start = log_start;
                manifest.next_serial = next_serial;
                manifest.suspect = false;
                manifest.segments = entries;
                manifest.holes = manifest_holes;
                manifest.epochs = epochs;
                manifest.before = before;
                manifest.cleaned = cleaned;
            },
        );
        if let Err(error) = written {
            self.suspect = true;
            return Err(error);
        }
        self.holes = holes;
        self.sealed = sealed;
        self.producers = producers;
        self.active = None;
        self.log_end = log_end;
        self.flushed_end = log_end;
        self.log_generation = generation;
        self.suspect = false;
        self.shared.reset(generation, log_end);
        let dead: Vec<SegmentName> = dead.iter().map(|segment| segment.entry.name).collect();
        let snapshots = dead.iter().map(|name| self.removal(name.producers_name()));
        let removals = dead.iter().flat_map(|name| self.removals(name)).chain(snapshots).collect();
        self.shared.structure.change(removals, |_| {});
        if let Some(last) = self.sealed.back() {
            self.shared.structure.add_snapshot(last.entry, self.snapshot(&last.entry).into());
        }
        self.start_structure_job();
        Ok(log_end)
    }

    /// What is known about producers where the log ends at `end`, of these segments.
    fn producers_at(&self, end: Offset, entries: &[SealedSegment]) -> Result<ProducerTable, Error> {
        if end == self.log_end || cfg!(hw_mutate = "producers_not_cut") {
            return Ok(self.producers.clone());
        }
        let from = self.shared.structure.producers_from();
        Ok(self.place().rebuild(entries, self.before.as_ref(), from)?.table)
    }

    /// What stays was maybe never flushed; it has to be before the manifest lists it.
    fn flush_what_stays(&self, to: Offset, verified: bool) -> Result<(), Error> {
        let unsynced = {
            let mut state = self.shared.flush.lock();
            if state.stopped && !verified {
                return Err(Error::Suspect(self.shared.partition));
            }
            // Rounds in flight are void from here on.
            state.stopped = true;
            state.files.clone()
        };
        for file in unsynced.iter().filter(|file| file.segment.name.base_offset < to) {
            let path = &file.segment.path;
            let synced = if verified {
                // The open one answers with the error that is known.
                self.store.file_system().open(path, OpenMode::ReadWrite).and_then(|anew| anew.sync())
            } else {
                file.file.sync()
            };
            synced.map_err(Error::io("sync segment", path))?;
        }
        Ok(())
    }

    /// The segments that stay, the last one cut, and those that go.
    fn cut_segments(&mut self, to: Offset) -> Result<(Offset, VecDeque<Sealed>, Vec<Sealed>), Error> {
        if let Some(active) = &self.active
            && active.position > 0
        {
            self.seal_in_place();
        }
        let mut stays: VecDeque<Sealed> = VecDeque::new();
        let mut dead = Vec::new();
        let mut log_end = self.log_start;
        for segment in &self.sealed {
            if segment.entry.end_offset <= to {
                log_end = segment.entry.end_offset;
                stays.push_back(segment.clone());
            } else if segment.entry.name.base_offset < to {
                let cut = self.cut_segment(segment, to)?;
                log_end = cut.entry.end_offset;
                stays.push_back(cut);
            } else {
                dead.push(segment.clone());
            }
        }
        let hole_end = |hole: &Hole| if hole.start < to { Some(hole.end.min(to)) } else { None };
        if let Some(end) = self.holes.iter().filter_map(hole_end).max() {
            log_end = log_end.max(end);
        }
        for hole in &mut self.holes {
            hole.end = hole.end.min(log_end.max(hole.start.next()));
        }
        Ok((log_end, stays, dead))
    }

    /// Makes the active segment a sealed one in memory only: the manifest that lists it is written by the caller.
    fn seal_in_place(&mut self) {
        let Some(active) = self.active.take() else { return };
        let entry = SealedSegment {
            name: active.file.name,
            end_offset: self.log_end,
            length: active.position,
            checksum: active.checksum.finalize(),
            max_timestamp: active.index.max_timestamp(),
            first_append_time: active.first_append_time,
            last_append_time: active.last_append_time,
            location: highwater_broker_core::log::manifest::Location::Local,
        };
        active.file.handle.lock().index = Some(Arc::new(active.index));
        self.sealed.push_back(Sealed { entry, file: active.file });
    }

    fn cut_segment(&self, segment: &Sealed, to: Offset) -> Result<Sealed, Error> {
        let path = &segment.file.path;
        let file = self.store.cache().file(&segment.file).map_err(Error::io("open segment", path))?;
        let built = verify::build_up_to(&*file, self.shared.partition, &segment.entry, Some(to))
            .map_err(Error::io("read segment", path))?;
        // The last batch may reach beyond: then the log ends before it.
        let mut built = built;
        if built.end_offset > to {
            let before = built.last_base_offset;
            built = verify::build_up_to(&*file, self.shared.partition, &segment.entry, Some(before))
                .map_err(Error::io("read segment", path))?;
        }
        segment.file.handle.lock().index = Some(Arc::new(built.index.clone()));
        Ok(Sealed {
            entry: SealedSegment {
                end_offset: built.end_offset,
                length: built.length,
                checksum: built.checksum,
                max_timestamp: built.index.max_timestamp(),
                last_append_time: built.last_append_time,
                ..segment.entry
            },
            file: Arc::clone(&segment.file),
        })
    }
}
