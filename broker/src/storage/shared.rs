//! What a log shares with flush rounds and jobs on I/O threads.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use highwater_broker_core::log::index::SparseIndex;
use highwater_broker_core::log::manifest::{EpochStart, Hole, SealedSegment};
use highwater_protocol::ids::{Offset, TopicPartition};
use parking_lot::Mutex;

use super::check_plan::ScrubPlace;
use super::file_system::File;
use super::segment::SegmentFile;
use super::sink::{FlushOutcome, FlushSink};
use super::structure::Structure;

/// The part of a log that is not its owner's alone.
pub(super) struct LogShared {
    pub(super) partition: TopicPartition,
    pub(super) directory: PathBuf,
    pub(super) sink: Arc<dyn FlushSink>,
    pub(super) flush: Mutex<FlushState>,
    pub(super) structure: Structure,
    /// Bad ranges that readers came across and the log has not taken in yet.
    pub(super) discovered: Mutex<Vec<Hole>>,
    pub(super) has_discovered: AtomicBool,
    pub(super) unflushed_bytes: AtomicU64,
    /// Where the scrub goes on; `None`: at the log start.
    pub(super) scrub_place: Mutex<Option<ScrubPlace>>,
}

impl std::fmt::Debug for LogShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogShared").field("partition", &self.partition).finish_non_exhaustive()
    }
}

/// What has to be flushed.
#[derive(Debug, Default)]
pub(super) struct FlushState {
    pub(super) log_generation: u64,
    pub(super) written_end: Offset,
    pub(super) flushed_end: Offset,
    /// Files with bytes that may not be on the disk, oldest first; only the last may still be appended to.
    pub(super) files: Vec<Unsynced>,
    /// Waits for a round, by lane.
    pub(super) queued: [bool; 2],
    /// A flush failed, or the log was closed: no more rounds.
    pub(super) stopped: bool,
}

/// A file with bytes that may not be on the disk. It is pinned as long as it is listed.
#[derive(Debug, Clone)]
pub(super) struct Unsynced {
    pub(super) segment: Arc<SegmentFile>,
    pub(super) file: Arc<dyn File>,
    pub(super) sealing: Option<Arc<Sealing>>,
    /// Bytes that were written since it was listed or last flushed.
    pub(super) bytes: u64,
}

/// What goes into the manifest once the file is flushed.
#[derive(Debug)]
pub(super) struct Sealing {
    pub(super) entry: SealedSegment,
    pub(super) index: Arc<SparseIndex>,
    /// The epochs up to the end of the segment.
    pub(super) epochs: Vec<EpochStart>,
    /// The snapshot file of producers at the end of the segment.
    pub(super) producers: Arc<[u8]>,
}

/// What a round is going to flush of one log.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) log: Arc<LogShared>,
    pub(super) log_generation: u64,
    pub(super) upto: Offset,
    pub(super) files: Vec<Unsynced>,
    /// Directory entries as of this version are needed by what is flushed.
    pub(super) names: u64,
}

/// Which kind of round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Everything of the log: somebody waits.
    Eager = 0,
    /// Its sealed segments only: nobody waits, and it may take long.
    Background = 1,
}

impl LogShared {
    /// Notes that bytes were appended to a file, and whether the log now has to be queued for a round.
    pub(super) fn wrote(
        &self,
        segment: &Arc<SegmentFile>,
        file: &Arc<dyn File>,
        written_end: Offset,
        bytes: u64,
        eager: bool,
    ) -> bool {
        self.unflushed_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut state = self.flush.lock();
        state.written_end = written_end;
        state.list(segment, file);
        if let Some(last) = state.files.last_mut() {
            last.bytes += bytes;
        }
        eager && state.queue(Lane::Eager)
    }

    /// Notes that nothing will be appended to a segment any more, and whether the log now has to be queued for a round.
    pub(super) fn seal(
        &self,
        segment: &Arc<SegmentFile>,
        file: &Arc<dyn File>,
        sealing: Sealing,
        lane: Lane,
    ) -> bool {
        let mut state = self.flush.lock();
        state.list(segment, file);
        if let Some(last) = state.files.last_mut() {
            last.sealing = Some(Arc::new(sealing));
        }
        state.queue(lane)
    }

    /// Takes the log out of its queue and describes what to flush; `None` if there is nothing.
    pub(super) fn snapshot(self: &Arc<Self>, lane: Lane) -> Option<Snapshot> {
        let mut state = self.flush.lock();
        state.queued[lane as usize] = false;
        if state.stopped || state.files.is_empty() {
            return None;
        }
        let sealed = state.files.iter().take_while(|file| file.sealing.is_some()).count();
        let (count, upto) = match lane {
            Lane::Eager => (state.files.len(), state.written_end),
            Lane::Background if sealed == state.files.len() => (sealed, state.written_end),
            Lane::Background => {
                let last = state.files[..sealed].last().and_then(|file| file.sealing.as_ref())?;
                (sealed, last.entry.end_offset)
            }
        };
        Some(Snapshot {
            log: Arc::clone(self),
            log_generation: state.log_generation,
            upto,
            files: state.files[..count].to_vec(),
            // After the files: a file is listed only after its name was made, so this covers all of them.
            names: self.structure.names_wanted(),
        })
    }

    /// Takes what a round has flushed off the list, and has the segments that were sealed by it listed. Returns the
    /// flushed end if it can be reported at once. Nothing happens if the round is void because the log was truncated or
    /// stopped meanwhile.
    ///
    /// Both in one step: a segment that is off this list and not on the other one yet would be overtaken by a later one,
    /// or by the end of the log, and the next start would take it for a leftover.
    pub(super) fn flushed(&self, round: &Snapshot) -> Option<Offset> {
        let mut state = self.flush.lock();
        if state.stopped || state.log_generation != round.log_generation {
            return None;
        }
        let written_end = state.written_end;
        let mut sealed = Vec::new();
        for done in &round.files {
            let place = state.files.iter().position(|file| Arc::ptr_eq(&file.segment, &done.segment));
            let Some(place) = place else { continue };
            // The other lane may have flushed a part of them.
            let bytes = done.bytes.min(state.files[place].bytes);
            state.files[place].bytes -= bytes;
            self.unflushed_bytes.fetch_sub(bytes, Ordering::Relaxed);
            // A file that was still appended to when the round began may have been sealed or written since.
            let complete = match (&done.sealing, &state.files[place].sealing) {
                (Some(sealing), _) => {
                    sealed.push(Arc::clone(sealing));
                    true
                }
                (None, None) => written_end == round.upto,
                (None, Some(_)) => false,
            };
            if complete {
                state.files.remove(place).segment.unpin();
            }
        }
        self.structure.flushed(&sealed, round)
    }

    /// Notes a new flushed end; false if it is void or no news.
    pub(super) fn note_flushed_end(&self, log_generation: u64, upto: Offset) -> bool {
        let mut state = self.flush.lock();
        let news = !state.stopped && state.log_generation == log_generation && upto > state.flushed_end;
        if news {
            state.flushed_end = upto;
        }
        news
    }

    /// Takes the log out of all rounds after a failed flush, and tells its owner.
    pub(super) fn fail(&self, error: Arc<std::io::Error>) {
        let log_generation = {
            let mut state = self.flush.lock();
            if state.stopped {
                return;
            }
            state.stopped = true;
            state.log_generation
        };
        self.sink.flush_done(FlushOutcome::Failed { log_generation, error });
    }

    /// Starts over: what is not flushed is of no interest any more.
    pub(super) fn reset(&self, log_generation: u64, end: Offset) {
        let mut state = self.flush.lock();
        for file in state.files.drain(..) {
            file.segment.unpin();
        }
        state.log_generation = log_generation;
        state.written_end = end;
        state.flushed_end = end;
        state.stopped = false;
        self.unflushed_bytes.store(0, Ordering::Relaxed);
    }

    pub(super) fn add_discovered(&self, hole: Hole) {
        self.discovered.lock().push(hole);
        self.has_discovered.store(true, Ordering::Release);
    }
}

impl Drop for LogShared {
    fn drop(&mut self) {
        for file in self.flush.get_mut().files.drain(..) {
            file.segment.unpin();
        }
    }
}

impl FlushState {
    fn list(&mut self, segment: &Arc<SegmentFile>, file: &Arc<dyn File>) {
        if self.files.last().is_none_or(|last| !Arc::ptr_eq(&last.segment, segment)) {
            segment.pin();
            self.files.push(Unsynced {
                segment: Arc::clone(segment),
                file: Arc::clone(file),
                sealing: None,
                bytes: 0,
            });
        }
    }

    /// Whether the caller has to put the log into the queue of a lane.
    pub(super) fn queue(&mut self, lane: Lane) -> bool {
        !self.stopped && !self.files.is_empty() && !std::mem::replace(&mut self.queued[lane as usize], true)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use highwater_broker_core::log::manifest::{Location, Manifest};
    use highwater_broker_core::log::segment_name::SegmentName;
    use highwater_protocol::ids::{PartitionId, TopicId};

    use super::super::file_system::{FileSystem, OpenMode};
    use super::super::real::RealFileSystem;
    use super::*;

    /// Races are met only now and then.
    const ATTEMPTS: usize = 3_000;

    struct Deaf;

    impl FlushSink for Deaf {
        fn flush_done(&self, _outcome: FlushOutcome) {}
    }

    struct Fixture {
        _directory: tempfile::TempDir,
        file: Arc<dyn File>,
    }

    impl Fixture {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let file =
                RealFileSystem::default().open(&directory.path().join("a"), OpenMode::CreateNew).unwrap();
            Self { _directory: directory, file }
        }

        fn log() -> Arc<LogShared> {
            Self::log_in(Path::new("unused"))
        }

        fn log_in(directory: &Path) -> Arc<LogShared> {
            Arc::new(LogShared {
                partition: TopicPartition::new(TopicId(1), PartitionId(0)),
                directory: directory.to_owned(),
                sink: Arc::new(Deaf),
                flush: Mutex::default(),
                structure: Structure::new(Manifest::default(), true),
                discovered: Mutex::default(),
                has_discovered: AtomicBool::new(false),
                unflushed_bytes: AtomicU64::new(0),
                scrub_place: Mutex::default(),
            })
        }

        fn write(&self, log: &Arc<LogShared>, serial: u64) -> Arc<SegmentFile> {
            let name = SegmentName { serial, base_offset: Offset(serial * 10) };
            let segment = SegmentFile::new(log.partition, &log.directory, name, true);
            log.structure.name_created();
            log.wrote(&segment, &self.file, Offset(serial * 10 + 10), 1, true);
            segment
        }

        fn seal(&self, log: &Arc<LogShared>, segment: &Arc<SegmentFile>) {
            let entry = SealedSegment {
                name: segment.name,
                end_offset: segment.name.base_offset.next(),
                length: 1,
                checksum: 0,
                max_timestamp: 0,
                first_append_time: 0,
                last_append_time: 0,
                location: Location::Local,
            };
            let sealing = Sealing {
                entry,
                index: Arc::new(SparseIndex::default()),
                epochs: Vec::new(),
                producers: Arc::default(),
            };
            log.seal(segment, &self.file, sealing, Lane::Background);
        }
    }

    #[test]
    fn a_round_knows_the_names_of_all_files_that_it_flushes() {
        let fixture = Fixture::new();
        for _ in 0..ATTEMPTS {
            let log = Fixture::log();
            let round = std::thread::scope(|scope| {
                let flusher = scope.spawn(|| {
                    loop {
                        if let Some(round) = log.snapshot(Lane::Eager) {
                            return round;
                        }
                    }
                });
                fixture.write(&log, 0);
                flusher.join().unwrap()
            });
            assert_eq!((round.upto, round.names), (Offset(10), 1), "the name of the file it flushes");
        }
    }

    #[test]
    fn rounds_of_both_lanes_list_segments_in_order() {
        let fixture = Fixture::new();
        for _ in 0..ATTEMPTS {
            let log = Fixture::log();
            let first = fixture.write(&log, 0);
            fixture.seal(&log, &first);
            let second = fixture.write(&log, 1);
            let background = log.snapshot(Lane::Background).unwrap();
            fixture.seal(&log, &second);
            let eager = log.snapshot(Lane::Eager).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| log.flushed(&background));
                scope.spawn(|| log.flushed(&eager));
            });
            let serials = |manifest: &mut Manifest| {
                (
                    manifest.segments.iter().map(|entry| entry.name.serial).collect::<Vec<_>>(),
                    manifest.next_serial,
                )
            };
            assert_eq!(log.structure.change(Vec::new(), serials), (vec![0, 1], 2));
        }
    }

    #[test]
    fn a_round_that_covers_less_does_not_take_back_what_is_to_be_reported() {
        let fixture = Fixture::new();
        let directory = tempfile::tempdir().unwrap();
        let log = Fixture::log_in(directory.path());
        let first = fixture.write(&log, 0);
        fixture.seal(&log, &first);
        fixture.write(&log, 1);
        let background = log.snapshot(Lane::Background).unwrap();
        let eager = log.snapshot(Lane::Eager).unwrap();
        assert_eq!(log.flushed(&eager), None, "the names are not durable yet");
        assert_eq!(log.flushed(&background), None);
        let fs = RealFileSystem::default();
        let reported = Mutex::new(Vec::new());
        assert!(log.structure.start());
        let report = |generation, upto| reported.lock().push((generation, upto));
        log.structure.run(&fs, &log, report).unwrap();
        assert_eq!(*reported.lock(), [(0, Offset(20))]);
    }
}
