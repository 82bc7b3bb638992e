//! Names and manifest of a log: made durable in the background, in the order that a crash at any point needs.
//!
//! 1. A flushed end is reported only when the names of all files up to it are durable.
//! 2. A segment is listed only when all its bytes are on stable storage.
//! 3. A file goes to the trash only when the manifest that does not list it is durable.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::log::directory;
use highwater_broker_core::log::index::SparseIndex;
use highwater_broker_core::log::manifest::{Manifest, SealedSegment};
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_broker_core::producer::PRODUCER_EXPIRY_DEFAULT;
use highwater_protocol::ids::{Offset, TopicPartition};
use parking_lot::Mutex;

use super::error::Error;
use super::file_system::FileSystem;
use super::files;
use super::log::producers::Place;
use super::shared::{LogShared, Sealing, Snapshot};

/// The durable shape of a log.
#[derive(Debug)]
pub(super) struct Structure {
    state: Mutex<State>,
    /// Held while a manifest is written, so that an older one never replaces a newer one.
    writing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    /// Lists durable segments only.
    manifest: Manifest,
    manifest_wanted: u64,
    manifest_durable: u64,
    /// A manifest is on stable storage that lists segments.
    has_manifest: bool,
    names_wanted: u64,
    names_durable: u64,
    /// The directory itself has a durable name.
    directory_durable: bool,
    running: bool,
    /// Held back until the names of that version are durable: version, log generation, flushed end.
    report: Option<(u64, u64, Offset)>,
    removals: Vec<(PathBuf, PathBuf)>,
    indexes: Vec<(SealedSegment, Arc<SparseIndex>)>,
    /// Snapshot files of producers, written before the manifest that lists their segments.
    snapshots: Vec<(SealedSegment, Arc<[u8]>)>,
    /// What retention let go since the last durable manifest, and that manifest's `before`.
    gone: Vec<SealedSegment>,
    before_durable: Option<SealedSegment>,
    /// When producers are forgotten.
    expiry: Duration,
    /// The log was dropped: nothing changes any more.
    stopped: bool,
}

/// What a step of the job does.
struct Step {
    names: Option<u64>,
    directory: bool,
    manifest: Option<(u64, Manifest)>,
    removals: Vec<(PathBuf, PathBuf)>,
    indexes: Vec<(SealedSegment, Arc<SparseIndex>)>,
    snapshots: Vec<(SealedSegment, Arc<[u8]>)>,
    gone: Vec<SealedSegment>,
    before: Option<SealedSegment>,
    expiry: Duration,
}

impl Structure {
    /// The structure as it is on the disk. `directory_durable`: the directory's own name survives a power cut.
    pub(super) fn new(manifest: Manifest, directory_durable: bool) -> Self {
        let (before_durable, has_manifest) = (manifest.before, !manifest.segments.is_empty());
        Self {
            state: Mutex::new(State {
                manifest,
                manifest_wanted: 0,
                manifest_durable: 0,
                has_manifest,
                names_wanted: 0,
                names_durable: 0,
                directory_durable,
                running: false,
                report: None,
                removals: Vec::new(),
                indexes: Vec::new(),
                snapshots: Vec::new(),
                gone: Vec::new(),
                before_durable,
                expiry: PRODUCER_EXPIRY_DEFAULT,
                stopped: false,
            }),
            writing: Mutex::new(()),
        }
    }

    pub(super) fn names_wanted(&self) -> u64 {
        self.state.lock().names_wanted
    }

    /// A file was created.
    pub(super) fn name_created(&self) {
        self.state.lock().names_wanted += 1;
    }

    /// Changes the manifest that is written next. `removals` go to the trash after that.
    pub(super) fn change<R>(
        &self,
        removals: Vec<(PathBuf, PathBuf)>,
        change: impl FnOnce(&mut Manifest) -> R,
    ) -> R {
        let mut state = self.state.lock();
        state.manifest_wanted += 1;
        state.removals.extend(removals);
        change(&mut state.manifest)
    }

    /// No batch below has an idempotent producer.
    pub(super) fn producers_from(&self) -> Offset {
        self.state.lock().manifest.producers_from
    }

    /// Writes a snapshot of producers with the next manifest.
    pub(super) fn add_snapshot(&self, entry: SealedSegment, bytes: Arc<[u8]>) {
        self.state.lock().snapshots.push((entry, bytes));
    }

    /// Retention lets segments go: `change` takes them off the list. `removals` go to the trash when that is durable, and
    /// so is a snapshot of producers at the end of the last one.
    pub(super) fn let_go(
        &self,
        gone: &[SealedSegment],
        removals: Vec<(PathBuf, PathBuf)>,
        expiry: Duration,
        change: impl FnOnce(&mut Manifest),
    ) {
        let mut state = self.state.lock();
        state.manifest_wanted += 1;
        state.removals.extend(removals);
        state.gone.extend_from_slice(gone);
        state.expiry = expiry;
        change(&mut state.manifest);
    }

    /// Snapshots of producers at `end` or later are not to be trusted any more, if they are not written yet.
    pub(super) fn drop_snapshots(&self, end: Offset) {
        self.state.lock().snapshots.retain(|(entry, _)| entry.end_offset < end);
    }

    /// Whether a segment is listed.
    pub(super) fn is_listed(&self, name: SegmentName) -> bool {
        self.state.lock().manifest.segments.iter().any(|segment| segment.name == name)
    }

    /// Whether there is a manifest on the disk. Without one a rewritten segment would say that it was lost.
    pub(super) fn has_manifest(&self) -> bool {
        self.state.lock().has_manifest
    }

    /// How many sealed segments are listed.
    pub(super) fn listed_count(&self) -> usize {
        self.state.lock().manifest.segments.len()
    }

    /// Whether nothing is waiting to be made durable.
    #[cfg(test)]
    pub(super) fn is_durable(&self) -> bool {
        let state = self.state.lock();
        state.manifest_wanted == state.manifest_durable && state.names_wanted == state.names_durable
    }

    /// Lists segments that a round has flushed. Returns the flushed end if it can be reported at once.
    pub(super) fn flushed(&self, sealed: &[Arc<Sealing>], round: &Snapshot) -> Option<Offset> {
        let mut state = self.state.lock();
        for sealing in sealed {
            state.list(sealing);
        }
        if round.names <= state.names_durable || cfg!(hw_mutate = "h19_no_directory_sync") {
            return Some(round.upto);
        }
        let report = (round.names, round.log_generation, round.upto);
        state.report = Some(match state.report {
            // A round of the other lane may have begun earlier and end later: what it covers is less, not more.
            Some((names, generation, upto)) if generation == round.log_generation => {
                (names.max(round.names), generation, upto.max(round.upto))
            }
            _ => report,
        });
        None
    }

    /// Lists a segment that was flushed outside of a round.
    pub(super) fn list(&self, sealing: &Sealing) {
        self.state.lock().list(sealing);
    }

    /// Whether the caller has to run the job now.
    pub(super) fn start(&self) -> bool {
        let mut state = self.state.lock();
        let work = state.names_wanted > state.names_durable
            || state.manifest_wanted > state.manifest_durable
            || !state.removals.is_empty();
        work && !std::mem::replace(&mut state.running, true)
    }

    /// Waits for the step that the job is at, if it runs, and lets it take no further one: the files may belong to
    /// another log of this partition next.
    pub(super) fn stop(&self) {
        let _writing = self.writing.lock();
        self.state.lock().stopped = true;
    }

    /// Makes durable what is wanted until nothing is. Blocks on the disk.
    pub(super) fn run(
        &self,
        fs: &dyn FileSystem,
        log: &LogShared,
        report: impl Fn(u64, Offset),
    ) -> Result<(), Error> {
        loop {
            let writing = self.writing.lock();
            let step = {
                let mut state = self.state.lock();
                match state.next_step() {
                    Some(step) => step,
                    None => {
                        state.running = false;
                        return Ok(());
                    }
                }
            };
            let result = self.make_durable(fs, log, &step, &report);
            if let Err(error) = result {
                let mut state = self.state.lock();
                state.removals.extend(step.removals);
                let later = std::mem::replace(&mut state.gone, step.gone);
                state.gone.extend(later);
                state.running = false;
                return Err(error);
            }
            for (from, to) in &step.removals {
                move_to_trash(fs, from, to);
            }
            drop(writing);
        }
    }

    fn make_durable(
        &self,
        fs: &dyn FileSystem,
        log: &LogShared,
        step: &Step,
        report: &impl Fn(u64, Offset),
    ) -> Result<(), Error> {
        if let Some(names) = step.names {
            if !cfg!(hw_mutate = "h19_no_directory_sync") {
                sync_names(fs, &log.directory, step.directory)?;
            }
            let ready = {
                let mut state = self.state.lock();
                state.names_durable = names;
                state.directory_durable = true;
                state.report.take_if(|(version, ..)| *version <= names)
            };
            if let Some((_, log_generation, upto)) = ready {
                report(log_generation, upto);
            }
        }
        for (entry, index) in &step.indexes {
            let bytes = index.encode(entry.length, entry.checksum);
            if let Err(error) = files::write_and_rename(fs, &log.directory, &entry.name.index_name(), &bytes)
            {
                tracing::info!(partition = %log.partition, %error, "no index file: it is rebuilt when it is needed");
            }
        }
        write_snapshots(fs, log.partition, &log.directory, &step.snapshots);
        if let Some((version, manifest)) = &step.manifest {
            let place =
                Place { fs, directory: &log.directory, partition: log.partition, expiry: step.expiry };
            place.keep_last(&step.gone, step.before.as_ref(), manifest.producers_from)?;
            files::replace(fs, &log.directory, directory::MANIFEST, &manifest.encode())?;
            let mut state = self.state.lock();
            state.manifest_durable = *version;
            state.has_manifest = true;
            state.before_durable = manifest.before;
        }
        Ok(())
    }

    /// Writes the manifest after `change`, before anything else can. Blocks on the disk. On an error the change stays
    /// wanted, and the next job writes it.
    pub(super) fn change_now(
        &self,
        fs: &dyn FileSystem,
        partition: TopicPartition,
        log_directory: &Path,
        change: impl FnOnce(&mut Manifest),
    ) -> Result<(), Error> {
        let _writing = self.writing.lock();
        let (version, names, with_parents, manifest, snapshots, gone, before, expiry) = {
            let mut state = self.state.lock();
            state.manifest_wanted += 1;
            change(&mut state.manifest);
            let snapshots = std::mem::take(&mut state.snapshots);
            let with_parents = !state.directory_durable;
            let gone = std::mem::take(&mut state.gone);
            let manifest = state.manifest.clone();
            let (version, names) = (state.manifest_wanted, state.names_wanted);
            (version, names, with_parents, manifest, snapshots, gone, state.before_durable, state.expiry)
        };
        write_snapshots(fs, partition, log_directory, &snapshots);
        let place = Place { fs, directory: log_directory, partition, expiry };
        if let Err(error) = place.keep_last(&gone, before.as_ref(), manifest.producers_from) {
            let later = std::mem::replace(&mut self.state.lock().gone, gone);
            self.state.lock().gone.extend(later);
            return Err(error);
        }
        files::replace(fs, log_directory, directory::MANIFEST, &manifest.encode())?;
        if with_parents {
            sync_names(fs, log_directory, true)?;
        }
        let mut state = self.state.lock();
        state.manifest_durable = version;
        state.has_manifest = true;
        state.before_durable = manifest.before;
        // Replacing the manifest synced the directory, and with it the names of all files in it.
        state.names_durable = names;
        state.directory_durable = true;
        state.report = None;
        Ok(())
    }

    /// Makes everything durable that is wanted. Blocks on the disk.
    pub(super) fn finish(
        &self,
        fs: &dyn FileSystem,
        partition: TopicPartition,
        log_directory: &Path,
    ) -> Result<(), Error> {
        let dirty = {
            let state = self.state.lock();
            state.manifest_wanted > state.manifest_durable || state.names_wanted > state.names_durable
        };
        if dirty { self.change_now(fs, partition, log_directory, |_| {}) } else { Ok(()) }
    }
}

impl State {
    fn list(&mut self, sealing: &Sealing) {
        self.manifest_wanted += 1;
        self.manifest.next_serial = sealing.entry.name.serial + 1;
        self.manifest.segments.push(sealing.entry);
        self.manifest.epochs.clone_from(&sealing.epochs);
        self.indexes.push((sealing.entry, Arc::clone(&sealing.index)));
        self.snapshots.push((sealing.entry, Arc::clone(&sealing.producers)));
    }

    fn next_step(&mut self) -> Option<Step> {
        if self.stopped {
            return None;
        }
        let names = (self.names_wanted > self.names_durable).then_some(self.names_wanted);
        let manifest = (self.manifest_wanted > self.manifest_durable)
            .then(|| (self.manifest_wanted, self.manifest.clone()));
        if names.is_none() && manifest.is_none() && self.removals.is_empty() {
            return None;
        }
        // What was let go stays until the manifest without it is durable.
        let gone = if manifest.is_some() { std::mem::take(&mut self.gone) } else { Vec::new() };
        Some(Step {
            gone,
            before: self.before_durable,
            expiry: self.expiry,
            names,
            directory: !self.directory_durable,
            manifest,
            removals: std::mem::take(&mut self.removals),
            indexes: std::mem::take(&mut self.indexes),
            snapshots: std::mem::take(&mut self.snapshots),
        })
    }
}

/// Writes snapshots of producers; replacing the manifest then makes their names durable.
fn write_snapshots(
    fs: &dyn FileSystem,
    partition: TopicPartition,
    log_directory: &Path,
    snapshots: &[(SealedSegment, Arc<[u8]>)],
) {
    for (entry, bytes) in snapshots {
        if let Err(error) = files::write_and_rename(fs, log_directory, &entry.name.producers_name(), bytes) {
            tracing::info!(%partition, %error, "no snapshot of producers: more is read at the next start");
        }
    }
}

/// Makes the names in a log's directory durable, and `with_parents` also those of the directory and of its topic's.
pub(super) fn sync_names(fs: &dyn FileSystem, log_directory: &Path, with_parents: bool) -> Result<(), Error> {
    let count = if with_parents { 3 } else { 1 };
    for directory in log_directory.ancestors().take(count) {
        fs.sync_directory(directory).map_err(Error::io("sync directory", directory))?;
    }
    Ok(())
}

/// Moves a file out of the way. It is not listed anywhere, so a failure costs room only.
pub(super) fn move_to_trash(fs: &dyn FileSystem, from: &Path, to: &Path) {
    match fs.rename(from, to) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(file = %from.display(), %error, "a dead file cannot be moved to the trash");
        }
    }
}
