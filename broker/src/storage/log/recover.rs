//! Opening a log: what is sealed is trusted, what is not is scanned, cut, synced and only then served.

mod kept;
mod producers;

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use highwater_broker_core::log::cleaning::CleanState;
use highwater_broker_core::log::directory::{self, TEMPORARY_SUFFIX};
use highwater_broker_core::log::envelope::FormatError;
use highwater_broker_core::log::manifest::{
    EpochStart, Hole, Location, Manifest, SealedSegment, start_epochs_at, truncate_epochs,
};
use highwater_broker_core::log::recovery::{Decision, Known, Piece, Verdict, decide};
use highwater_broker_core::log::segment_name::{REPAIRED_SERIAL, SegmentName};
use highwater_broker_core::producer::ProducerTable;
use highwater_protocol::ids::{Offset, TopicPartition};
use parking_lot::Mutex;

use self::kept::{end_offset, kept_durable_end, kept_states};

use super::producers::Place;
use super::scan_files::{FilesScan, scan_files};
use super::{Active, Log, quarantine, rewrite};
use crate::storage::config::LogConfig;
use crate::storage::error::Error;
use crate::storage::file_system::FileSystem;
use crate::storage::files;
use crate::storage::memory_tail::MemoryTail;
use crate::storage::segment::{Sealed, SegmentFile};
use crate::storage::shared::{FlushState, LogShared};
use crate::storage::sink::FlushSink;
use crate::storage::store::Store;
use crate::storage::structure::{Structure, move_to_trash, sync_names};

/// What opening a log came across.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecoveryReport {
    /// The first offset.
    pub log_start: Offset,
    /// The next offset to write.
    pub log_end: Offset,
    /// Sealed segments that were taken from the manifest, without a look at their bytes.
    pub segments_trusted: usize,
    /// Bytes of files that were not sealed.
    pub bytes_scanned: u64,
    /// Corrupt ranges that were not known before.
    pub new_holes: Vec<Hole>,
    /// What was cut off the end.
    pub cut: Option<CutReport>,
    /// Files that belonged to nothing and went to the trash.
    pub leftovers: usize,
    /// The manifest was damaged: everything was scanned.
    pub manifest_rebuilt: bool,
    /// A flush had failed: everything that was not sealed was read from the disk itself.
    pub was_suspect: bool,
}

/// Bytes that recovery cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutReport {
    /// The segment file.
    pub file: String,
    /// Where it was cut.
    pub position: u64,
    /// Bytes that were cut off, later files included.
    pub bytes: u64,
    /// The offset that was expected there.
    pub offset: Offset,
    /// Why.
    pub verdict: Verdict,
    /// Where the bytes are kept.
    pub quarantined: Vec<PathBuf>,
}

/// What a recovery kept of the unsealed tail.
struct Kept {
    active: Option<Active>,
    epochs: Vec<EpochStart>,
    log_end: Offset,
    durable_end: Offset,
    producers: ProducerTable,
}

/// The work of one recovery.
struct Recovery<'a> {
    store: &'a Arc<Store>,
    fs: &'a dyn FileSystem,
    partition: TopicPartition,
    directory: PathBuf,
    manifest: Manifest,
    manifest_changed: bool,
    /// When producers are forgotten.
    expiry: Duration,
    /// The names of the snapshots of producers.
    snapshots: Vec<String>,
    report: RecoveryReport,
}

impl Log {
    /// Opens and recovers a log. Run twice in a row, or interrupted and run again, it comes to the same end.
    pub(in crate::storage) fn recover(
        store: &Arc<Store>,
        partition: TopicPartition,
        config: LogConfig,
        sink: Arc<dyn FlushSink>,
    ) -> Result<(Self, RecoveryReport), Error> {
        let directory = store.partition_path(partition);
        let fs = &**store.file_system();
        fs.create_directory(&directory).map_err(Error::io("create directory", &directory))?;
        let mut recovery = Recovery {
            store,
            fs,
            partition,
            directory,
            manifest: Manifest::default(),
            manifest_changed: false,
            expiry: config.producer_expiry,
            snapshots: Vec::new(),
            report: RecoveryReport::default(),
        };
        let manifest_present = recovery.read_manifest()?;
        let names = recovery.list_segments(manifest_present)?;
        recovery.check_sealed(&names);
        let unsealed = recovery.unsealed(&names);
        let past_cache = recovery.manifest.suspect;
        let start = recovery.manifest.end_offset();
        let producers = Some(recovery.sealed_producers(true)?);
        let mut scan = scan_files(store, &unsealed, start, &recovery.manifest.epochs, producers, past_cache)?;
        let decision = decide(&scan.pieces, start, recovery.known());
        let directory_durable =
            store.has_durable_directory(partition) || (manifest_present && !recovery.report.manifest_rebuilt);
        let producers = recovery.kept_producers(&mut scan, &decision)?;
        let (active, epochs) = recovery.apply(&scan, &decision, directory_durable)?;
        let durable_end = kept_durable_end(&scan, &decision);
        let kept = Kept { active, epochs, log_end: decision.log_end, durable_end, producers };
        recovery.finish(config, sink, kept)
    }
}

impl Recovery<'_> {
    fn read_manifest(&mut self) -> Result<bool, Error> {
        let path = self.directory.join(directory::MANIFEST);
        let Some(bytes) = files::read(self.fs, &path)? else { return Ok(false) };
        match Manifest::decode(&bytes) {
            Ok(manifest) => self.manifest = manifest,
            Err(error @ FormatError::Version(_)) => return Err(Error::BadFile { path, error }),
            Err(error) => {
                // Data is never given up because what describes it is damaged: every file is scanned instead.
                tracing::error!(path = %path.display(), %error, "the manifest is damaged: all segments are scanned");
                quarantine::keep(self.fs, &self.directory, &path, "manifest.damaged")?;
                self.report.manifest_rebuilt = true;
                self.manifest_changed = true;
            }
        }
        self.report.was_suspect = self.manifest.suspect;
        Ok(true)
    }

    fn list_segments(&mut self, manifest_present: bool) -> Result<BTreeSet<SegmentName>, Error> {
        let entries = self.fs.list(&self.directory).map_err(Error::io("list directory", &self.directory))?;
        for entry in entries.iter().filter(|entry| entry.name.ends_with(TEMPORARY_SUFFIX)) {
            let path = self.directory.join(&entry.name);
            self.fs.remove_file(&path).map_err(Error::io("remove file", &path))?;
        }
        let mut names: BTreeSet<_> =
            entries.iter().filter_map(|entry| SegmentName::parse(&entry.name)).collect();
        self.snapshots = entries.into_iter().map(|entry| entry.name).collect();
        self.snapshots.retain(|name| SegmentName::parse_producers(name).is_some());
        if !manifest_present && names.iter().any(SegmentName::is_repaired) {
            // There was one when they were written: what they hold is not given up with it.
            tracing::error!(path = %self.directory.display(), "the manifest is missing: all segments are scanned");
            self.report.manifest_rebuilt = true;
            self.manifest_changed = true;
        }
        if self.report.manifest_rebuilt {
            let first = names.iter().map(|name| name.base_offset).min();
            self.manifest.log_start = first.unwrap_or_default();
            let slot = self.store.slot(self.partition);
            self.manifest.log_generation = slot.map_or(0, |slot| slot.log_generation) + 1;
            self.manifest.before = self.find_before();
            names = self.adopt_repaired(&names)?;
        }
        Ok(names)
    }

    /// Compares the manifest with the files that are there.
    fn check_sealed(&mut self, names: &BTreeSet<SegmentName>) {
        let (there, missing): (Vec<SealedSegment>, Vec<SealedSegment>) =
            self.manifest.segments.iter().copied().partition(|segment| names.contains(&segment.name));
        for segment in &missing {
            tracing::error!(
                partition = %self.partition,
                file = %segment.name,
                start = %segment.name.base_offset,
                end = %segment.end_offset,
                "a segment is missing: its offsets are lost on this replica"
            );
            let hole = Hole {
                start: segment.name.base_offset,
                end: segment.end_offset,
                serial: segment.name.serial,
                positions: 0..0,
            };
            add_hole(&mut self.manifest.holes, hole.clone());
            self.report.new_holes.push(hole);
        }
        self.manifest_changed |= !missing.is_empty();
        self.report.segments_trusted = there.len();
        let leftovers: Vec<SegmentName> = names
            .iter()
            .filter(|name| !self.manifest.is_tail(**name))
            .filter(|name| !there.iter().any(|segment| segment.name == **name))
            .copied()
            .collect();
        self.manifest.segments = there;
        self.report.leftovers = leftovers.len();
        let mut dead: Vec<String> = leftovers
            .iter()
            .flat_map(|name| [name.to_string(), name.index_name()])
            .chain(self.dead_snapshots())
            .collect();
        dead.sort_unstable();
        // Nothing goes before the manifest that does not list it is durable, and of this one only the page cache may know.
        if !dead.is_empty()
            && let Err(error) = self.fs.sync_directory(&self.directory)
        {
            tracing::warn!(partition = %self.partition, %error, "dead files stay until the directory can be synced");
            return;
        }
        dead.iter().for_each(|file| self.move_to_trash(file));
    }

    fn move_to_trash(&self, file: &str) {
        let to = self.store.trash_path(&format!("{}-{file}", self.partition).replace('/', "-"));
        move_to_trash(self.fs, &self.directory.join(file), &to);
    }

    fn place(&self) -> Place<'_> {
        Place { fs: self.fs, directory: &self.directory, partition: self.partition, expiry: self.expiry }
    }

    fn unsealed(&self, names: &BTreeSet<SegmentName>) -> Vec<Arc<SegmentFile>> {
        // By serial number: the order in which they were made.
        let names = names.iter().filter(|name| self.manifest.is_tail(**name));
        names.map(|name| SegmentFile::new(self.partition, &self.directory, *name, true)).collect()
    }

    fn known(&self) -> Known {
        let generation = self.manifest.log_generation;
        let rebuilt = self.report.manifest_rebuilt;
        let slot = self.store.slot(self.partition);
        let slot = slot.filter(|slot| rebuilt || slot.log_generation == generation);
        let clean = self.store.clean_end(self.partition);
        let clean = clean.filter(|clean| rebuilt || clean.log_generation == generation);
        let trusted_kernel = self.store.boot().same_kernel && !self.manifest.suspect;
        Known {
            same_kernel: trusted_kernel,
            flushed_end: slot.map(|slot| slot.flushed_end),
            clean_end: clean.map(|clean| clean.log_end),
        }
    }

    /// Does what was decided, in an order in which a crash at any point leads to the same decision again.
    fn apply(
        &mut self,
        scan: &FilesScan,
        decision: &Decision,
        directory_durable: bool,
    ) -> Result<(Option<Active>, Vec<EpochStart>), Error> {
        self.report.bytes_scanned = scan.bytes;
        // What the manifest says is durable. An epoch that starts at the end of what it lists may have older batches that
        // retention let go.
        let (known, found) = scan.epochs.split_at(self.manifest.epochs.len());
        let found = found.iter().filter(|start| start.start < decision.log_end);
        let epochs: Vec<EpochStart> = known.iter().chain(found).copied().collect();
        let kept = kept_states(scan, decision);
        let cut = self.quarantine_cut(scan, decision, &kept)?;
        let known = self.known();
        let page_cache_only = known.clean_end.is_none() && self.store.boot().page_cache_is_old;
        let settled = known.clean_end.is_some() || self.store.is_settled();
        for (number, (state, file)) in kept.iter().zip(&scan.files).enumerate() {
            let Some(state) = state else { continue };
            let mut written = false;
            if page_cache_only {
                let end = end_offset(scan, decision, number);
                written = rewrite::unflushed(state, &*file.file, end, known.flushed_end)
                    .map_err(Error::io("write segment again", &file.segment.path))?;
            }
            if settled && !written {
                continue;
            }
            file.file.sync().map_err(Error::io("sync segment", &file.segment.path))?;
        }
        let active = self.seal_what_is_complete(scan, decision, &kept, &epochs);
        // If the kernel runs on, names may be there that the disk does not have yet, the manifest's among them.
        if !settled && (!scan.files.is_empty() || self.manifest_changed || page_cache_only) {
            sync_names(self.fs, &self.directory, !directory_durable)?;
        }
        if self.manifest_changed || self.manifest.suspect {
            files::replace(self.fs, &self.directory, directory::MANIFEST, &self.manifest.encode())?;
        }
        self.cut_physically(scan, &kept)?;
        if self.manifest.suspect {
            // Only now: until it is cut, the page cache shows behind the end what the disk does not have.
            self.manifest.suspect = false;
            files::replace(self.fs, &self.directory, directory::MANIFEST, &self.manifest.encode())?;
        }
        self.report.cut = cut;
        Ok((active, epochs))
    }

    fn quarantine_cut(
        &self,
        scan: &FilesScan,
        decision: &Decision,
        kept: &[Option<&Active>],
    ) -> Result<Option<CutReport>, Error> {
        let Some(cut) = decision.cut else { return Ok(None) };
        let offset = match scan.pieces.get(decision.kept) {
            Some(Piece::Gap(gap)) => gap.start,
            _ => decision.log_end,
        };
        let mut report = CutReport {
            file: scan.files.get(cut.file).map_or_else(String::new, |file| file.segment.name.to_string()),
            position: cut.position,
            bytes: 0,
            offset,
            verdict: cut.verdict,
            quarantined: Vec::new(),
        };
        let text = format!(
            "partition {}\nfile {}\nposition {}\nexpected offset {offset}\nverdict {}\n",
            self.partition,
            report.file,
            cut.position,
            cut.verdict.name()
        );
        for (file, state) in scan.files.iter().zip(kept) {
            let range = state.map_or(0, |state| state.position)..file.nonzero_end;
            if range.is_empty() {
                continue;
            }
            report.bytes += range.end - range.start;
            let path = quarantine::copy(self.fs, &self.directory, &file.segment, &*file.file, range, &text)?;
            report.quarantined.push(path);
        }
        self.log_cut(&report);
        Ok(Some(report))
    }

    fn log_cut(&self, report: &CutReport) {
        let (partition, file, position) = (self.partition, &report.file, report.position);
        let (bytes, offset, verdict) = (report.bytes, report.offset, report.verdict.name());
        if report.verdict == Verdict::Torn {
            tracing::info!(%partition, %file, position, bytes, %offset, verdict, "a torn tail was cut off");
        } else {
            tracing::warn!(
                %partition, %file, position, bytes, %offset, verdict,
                "the end of the log was cut off and is kept in quarantine"
            );
        }
    }

    /// Lists what nothing will be appended to; returns what will.
    fn seal_what_is_complete(
        &mut self,
        scan: &FilesScan,
        decision: &Decision,
        kept: &[Option<&Active>],
        epochs: &[EpochStart],
    ) -> Option<Active> {
        for range in &decision.holes {
            let hole = Hole {
                start: range.offsets.start,
                end: range.offsets.end,
                serial: scan.files.get(range.file).map_or(0, |file| file.segment.name.serial),
                positions: range.positions.clone(),
            };
            tracing::error!(
                partition = %self.partition,
                start = %hole.start,
                end = %hole.end,
                position = hole.positions.start,
                bytes = hole.positions.end - hole.positions.start,
                "batches that were on stable storage are corrupt: reads of these offsets are refused, everything else \
                 goes on"
            );
            for file in &scan.files {
                if file.segment.name.serial == hole.serial {
                    file.segment.add_hole(hole.clone());
                }
            }
            add_hole(&mut self.manifest.holes, hole.clone());
            self.report.new_holes.push(hole);
        }
        let last = kept.iter().rposition(Option::is_some);
        let mut active = None;
        for (number, state) in kept.iter().enumerate() {
            let Some(state) = state else { continue };
            let end = end_offset(scan, decision, number);
            let holed = decision.holes.iter().any(|hole| hole.file == number);
            if Some(number) == last && !holed && end == decision.log_end {
                active = Some((*state).clone());
            } else {
                self.seal(state, end, epochs);
            }
        }
        active
    }

    fn seal(&mut self, state: &Active, end_offset: Offset, epochs: &[EpochStart]) {
        self.manifest.segments.push(SealedSegment {
            name: state.file.name,
            end_offset,
            length: state.position,
            checksum: state.checksum.clone().finalize(),
            max_timestamp: state.index.max_timestamp(),
            first_append_time: state.first_append_time,
            last_append_time: state.last_append_time,
            location: Location::Local,
        });
        self.manifest.next_serial = state.file.name.serial + 1;
        self.manifest.epochs = epochs.to_vec();
        truncate_epochs(&mut self.manifest.epochs, end_offset);
        self.manifest_changed = true;
        state.file.handle.lock().index = Some(Arc::new(state.index.clone()));
    }

    /// Cuts bad bytes off, durably, before anything is mapped or appended; files of which nothing is kept go.
    fn cut_physically(&self, scan: &FilesScan, kept: &[Option<&Active>]) -> Result<(), Error> {
        for (file, state) in scan.files.iter().zip(kept) {
            let path = &file.segment.path;
            match state {
                Some(state) if file.nonzero_end > state.position || self.report.was_suspect => {
                    if cfg!(hw_mutate = "h22_no_physical_cut") {
                        continue;
                    }
                    file.file.set_length(state.position).map_err(Error::io("cut segment", path))?;
                    file.file.sync().map_err(Error::io("sync segment", path))?;
                }
                Some(_) => {}
                None => {
                    let name = file.segment.name.to_string();
                    let to = self.store.trash_path(&format!("{}-{name}", self.partition).replace('/', "-"));
                    self.fs.rename(path, &to).map_err(Error::io("move to the trash", path))?;
                    self.fs
                        .sync_directory(&self.directory)
                        .map_err(Error::io("sync directory", &self.directory))?;
                }
            }
        }
        Ok(())
    }

    fn finish(
        self,
        config: LogConfig,
        sink: Arc<dyn FlushSink>,
        kept: Kept,
    ) -> Result<(Log, RecoveryReport), Error> {
        let Kept { active, mut epochs, log_end, durable_end, mut producers } = kept;
        let Self { store, partition, directory, manifest, mut report, .. } = self;
        let log_start = manifest.log_start;
        let log_end = log_end.max(log_start);
        start_epochs_at(&mut epochs, log_start);
        (report.log_start, report.log_end) = (log_start, log_end);
        let sealed: VecDeque<Sealed> = manifest
            .segments
            .iter()
            .map(|entry| Sealed {
                entry: *entry,
                file: sealed_file(partition, &directory, entry, &manifest.holes),
            })
            .collect();
        let mut next_serial = manifest.next_serial;
        if let Some(active) = &active {
            next_serial = next_serial.max(active.file.name.serial + 1);
        }
        let last_append_time = sealed
            .iter()
            .map(|segment| segment.entry.last_append_time)
            .chain(active.iter().map(|active| active.last_append_time))
            .max();
        producers.note_time(last_append_time.unwrap_or(i64::MIN));
        let before = manifest.before;
        let active = active.map(|active| measured(store, active)).transpose()?;
        let (log_generation, holes) = (manifest.log_generation, manifest.holes.clone());
        let (cleaned, looked_upto, next_rewritten) = compaction_of(&manifest, log_end);
        let structure = Structure::new(manifest, !sealed.is_empty() || active.is_some());
        let flush = FlushState {
            log_generation,
            written_end: log_end,
            flushed_end: log_end,
            ..FlushState::default()
        };
        let shared = shared(partition, directory, sink, flush, structure);
        let tail = MemoryTail::new(store.config().log_tail_bytes_max, Arc::clone(store.tail_budget()));
        let log = Log {
            store: Arc::clone(store),
            shared,
            config,
            log_start,
            log_end,
            flushed_end: log_end,
            log_generation,
            durable_end,
            last_append_time: last_append_time.unwrap_or(i64::MIN),
            epochs,
            holes,
            new_holes: Vec::new(),
            sealed,
            before,
            producers,
            active,
            next_serial,
            next_rewritten,
            cleaned,
            looked_upto,
            revision: 0,
            tail,
            suspect: false,
        };
        Ok((log, report))
    }
}

/// The active segment with the bytes that are reserved for it.
fn measured(store: &Store, mut active: Active) -> Result<Active, Error> {
    let path = active.file.path.clone();
    let file = store.cache().file(&active.file).map_err(Error::io("open segment", &path))?;
    active.allocated = file.length().map_err(Error::io("measure segment", &path))?;
    Ok(active)
}

/// How far a log is compacted, up to where passes have looked, and the next serial number of a rewritten segment.
fn compaction_of(manifest: &Manifest, log_end: Offset) -> (CleanState, Offset, u64) {
    let mut cleaned = manifest.cleaned.clone();
    cleaned.cut(log_end);
    let names = || manifest.segments.iter().map(|segment| segment.name);
    // What an interrupted pass has looked at was sealed.
    let is_rewritten = names().any(|name| name.is_repaired());
    let looked_upto = if is_rewritten { manifest.end_offset().min(log_end) } else { cleaned.upto };
    let next_rewritten = names().map(|name| name.serial + 1).max().unwrap_or(0).max(REPAIRED_SERIAL);
    (cleaned, looked_upto, next_rewritten)
}

/// What a log shares with the flusher and with readers, after a recovery.
fn shared(
    partition: TopicPartition,
    directory: PathBuf,
    sink: Arc<dyn FlushSink>,
    flush: FlushState,
    structure: Structure,
) -> Arc<LogShared> {
    Arc::new(LogShared {
        partition,
        directory,
        sink,
        flush: Mutex::new(flush),
        structure,
        discovered: Mutex::new(Vec::new()),
        has_discovered: AtomicBool::new(false),
        unflushed_bytes: AtomicU64::new(0),
        scrub_place: Mutex::default(),
    })
}

fn sealed_file(
    partition: TopicPartition,
    directory: &Path,
    entry: &SealedSegment,
    holes: &[Hole],
) -> Arc<SegmentFile> {
    let file = SegmentFile::new(partition, directory, entry.name, false);
    for hole in holes.iter().filter(|hole| hole.serial == entry.name.serial) {
        file.add_hole(hole.clone());
    }
    file
}

fn add_hole(holes: &mut Vec<Hole>, hole: Hole) {
    let place = holes.partition_point(|known| known.start < hole.start);
    holes.insert(place, hole);
}
