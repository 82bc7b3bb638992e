//! A data directory: its lock, its identity, its small files, and the logs in it.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use highwater_broker_core::log::boot_record::{self, BootRecord};
use highwater_broker_core::log::clean_marker::{CleanEnd, CleanMarker};
use highwater_broker_core::log::directory;
use highwater_broker_core::log::slot::Slot;
use highwater_protocol::ids::{DirectoryId, TopicPartition};
use parking_lot::Mutex;

use super::cache::FileCache;
use super::config::{LogConfig, StoreConfig};
use super::error::Error;
use super::file_system::{File, FileSystem};
use super::files;
use super::flusher::Flusher;
use super::log::{Closed, Log, RecoveryReport};
use super::memory_tail::TailBudget;
use super::shared::Lane;
use super::sink::FlushSink;
use super::slots::Slots;
use super::structure::sync_names;

/// A data directory that this process has locked.
pub struct Store {
    fs: Arc<dyn FileSystem>,
    root: PathBuf,
    config: StoreConfig,
    directory_id: DirectoryId,
    boot: BootState,
    record: Mutex<BootRecord>,
    marker: CleanMarker,
    /// Everything that was there at an unclean start was brought to stable storage.
    settled: bool,
    /// Partitions whose directories got durable names at an unclean start.
    durable_directories: Mutex<HashSet<TopicPartition>>,
    cache: FileCache,
    flusher: Arc<Flusher>,
    tail_budget: Arc<TailBudget>,
    open_logs: Mutex<HashSet<TopicPartition>>,
    read_only: AtomicBool,
    /// Bytes above the reserve when last looked, less what logs have reserved since: a fast log must not get through
    /// the reserve between two looks.
    room: AtomicU64,
    closed: AtomicBool,
    /// A job of [`Store::begin_write_back`] is under way.
    writing_back: Arc<AtomicBool>,
    trash_count: AtomicU64,
    /// Last, so that it is released last.
    _lock: Box<dyn Send + Sync>,
}

/// How the last broker on this directory ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootState {
    /// By a clean shutdown.
    pub clean: bool,
    /// Under the kernel that still runs, and so did all others since the last report: no power was cut.
    pub same_kernel: bool,
    /// Under the kernel that still runs: what is in the page cache may not be on the disk.
    pub page_cache_is_old: bool,
    /// What has to be reported of this and earlier starts (`Store::boot_reported`).
    pub report: BootRecord,
}

/// What opening a data directory came across.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreReport {
    /// The directory was empty and is ours now.
    pub formatted: bool,
    /// How the last broker ended.
    pub boot: BootState,
    /// Names in the directory of topics that are none of ours; they are left alone.
    pub strangers: Vec<String>,
}

/// Whether there is room to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskState {
    /// Enough.
    Ok,
    /// Less than the reserve: appends are refused until room returns.
    ReadOnly,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("root", &self.root)
            .field("directory_id", &self.directory_id)
            .field("boot", &self.boot)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Locks a data directory, formats it as `new_id` if it is empty, and reads what the last broker left. The clean
    /// marker is removed durably before this returns. Blocks on the disk.
    ///
    /// # Errors
    /// When another process has the directory, or a file in it cannot be read or written.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        root: &Path,
        config: StoreConfig,
        new_id: DirectoryId,
    ) -> Result<(Arc<Self>, StoreReport), Error> {
        make_root(&*fs, root)?;
        let lock_path = root.join(directory::LOCK);
        let lock = fs.lock(&lock_path).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => Error::Locked(root.to_owned()),
            _ => Error::io("lock file", &lock_path)(error),
        })?;
        for name in [directory::TOPICS, directory::TRASH, directory::STATE] {
            let path = root.join(name);
            fs.create_directory(&path).map_err(Error::io("create directory", &path))?;
        }
        let (directory_id, formatted) = identify(&*fs, root, new_id)?;
        let (marker, boot) = start(&*fs, root, formatted)?;
        let slots = Slots::open(&*fs, root)?;
        fs.sync_directory(root).map_err(Error::io("sync directory", root))?;
        let (found, strangers) = scan_topics(&*fs, root)?;
        let settled = !boot.clean && settle(&*fs, root, found.len())?;
        let durable_directories = if boot.clean { HashSet::new() } else { found.into_iter().collect() };
        let store = Arc::new(Self {
            cache: FileCache::new(Arc::clone(&fs), config.open_files_max),
            flusher: Arc::new(Flusher::new(Arc::clone(&fs), slots)),
            tail_budget: Arc::new(TailBudget { used: AtomicU64::new(0), bytes_max: config.tail_bytes_max }),
            fs,
            root: root.to_owned(),
            config,
            directory_id,
            boot,
            record: Mutex::new(boot.report),
            marker: marker.unwrap_or_default(),
            settled,
            durable_directories: Mutex::new(durable_directories),
            open_logs: Mutex::new(HashSet::new()),
            read_only: AtomicBool::new(false),
            room: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            writing_back: Arc::default(),
            trash_count: AtomicU64::new(0),
            _lock: lock,
        });
        store.refresh_space()?;
        Ok((store, StoreReport { formatted, boot, strangers }))
    }

    /// Which directory this is.
    #[must_use]
    pub const fn directory_id(&self) -> DirectoryId {
        self.directory_id
    }

    /// How the last broker ended.
    #[must_use]
    pub const fn boot(&self) -> BootState {
        self.boot
    }

    /// Notes that the boot state was reported to whom it may concern, and that all logs have been recovered: until then a
    /// restart does not take the kernel for the one that ran all along. Blocks on the disk.
    ///
    /// # Errors
    /// When the record cannot be written: it is reported again after the next start.
    pub fn boot_reported(&self) -> Result<(), Error> {
        self.change_record(|record| *record = BootRecord { boot_id: record.boot_id, ..BootRecord::default() })
    }

    /// The file system that it is on.
    #[must_use]
    pub const fn file_system(&self) -> &Arc<dyn FileSystem> {
        &self.fs
    }

    /// The partitions that have a directory here, whether anybody knows them or not. Blocks on the disk.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn partitions(&self) -> Result<Vec<TopicPartition>, Error> {
        Ok(scan_topics(&*self.fs, &self.root)?.0)
    }

    /// Opens the log of a partition and recovers it; makes an empty one if there is none. Blocks on the disk, for as long
    /// as it takes to scan what was not sealed.
    ///
    /// # Errors
    /// When it is open, or its files cannot be read or written.
    pub fn open_log(
        self: &Arc<Self>,
        partition: TopicPartition,
        config: LogConfig,
        sink: Arc<dyn FlushSink>,
    ) -> Result<(Log, RecoveryReport), Error> {
        self.check_open()?;
        if !self.open_logs.lock().insert(partition) {
            return Err(Error::LogOpen(partition));
        }
        let opened = Log::recover(self, partition, config, sink);
        if opened.is_err() {
            self.log_dropped(partition);
        }
        opened
    }

    /// Moves a partition's directory to the trash. Blocks on the disk.
    ///
    /// # Errors
    /// When its log is open, or the directory cannot be moved.
    pub fn trash(&self, partition: TopicPartition) -> Result<(), Error> {
        self.check_open()?;
        if self.open_logs.lock().contains(&partition) {
            return Err(Error::LogOpen(partition));
        }
        let from = self.partition_path(partition);
        if !self.fs.exists(&from).map_err(Error::io("look for directory", &from))? {
            return Ok(());
        }
        let to = self.trash_path(&partition.to_string().replace('/', "-"));
        self.durable_directories.lock().remove(&partition);
        self.fs.rename(&from, &to).map_err(Error::io("move to the trash", &from))?;
        let trash = self.root.join(directory::TRASH);
        self.fs.sync_directory(&trash).map_err(Error::io("sync directory", &trash))?;
        sync_names(&*self.fs, from.parent().unwrap_or(&self.root), false)?;
        self.flusher.slots().remove(partition);
        Ok(())
    }

    /// Deletes what is in the trash. Slices of deleted segments that are in use stay readable. Blocks on the disk.
    ///
    /// # Errors
    /// When something cannot be deleted.
    pub fn empty_trash(&self) -> Result<usize, Error> {
        let trash = self.root.join(directory::TRASH);
        let entries = self.fs.list(&trash).map_err(Error::io("list directory", &trash))?;
        let count = entries.len();
        for entry in entries {
            let path = trash.join(&entry.name);
            if entry.is_directory {
                self.fs.remove_directory(&path).map_err(Error::io("remove directory", &path))?;
            } else {
                self.fs.remove_file(&path).map_err(Error::io("remove file", &path))?;
            }
        }
        Ok(count)
    }

    /// The content of a state file, as it was given to `write_state`; whoever wrote it checks it. Blocks on the disk.
    ///
    /// # Errors
    /// When the name is bad or the file cannot be read.
    pub fn read_state(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        files::read(&*self.fs, &self.state_path(name)?)
    }

    /// Replaces a state file: when this returns, `bytes` survive a power cut; until then, what was there before does.
    /// They should come from `envelope::wrap`, which puts a checksum at the end. Blocks on the disk.
    ///
    /// # Errors
    /// When the name is bad or the file cannot be written.
    pub fn write_state(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.check_open()?;
        self.state_path(name)?;
        files::replace(&*self.fs, &self.root.join(directory::STATE), name, bytes)
    }

    /// Where the small state files are.
    #[must_use]
    pub fn state_directory(&self) -> PathBuf {
        self.root.join(directory::STATE)
    }

    /// Whether there was room to write when last looked.
    #[must_use]
    pub fn disk(&self) -> DiskState {
        if self.read_only.load(Ordering::Relaxed) { DiskState::ReadOnly } else { DiskState::Ok }
    }

    /// Looks how much room there is. Below the reserve the store is read-only, until a quarter more than the reserve is
    /// free. Blocks on the disk; to be called every second or so.
    ///
    /// # Errors
    /// When the file system does not tell.
    pub fn refresh_space(&self) -> Result<DiskState, Error> {
        let space = self.fs.space(&self.root).map_err(Error::io("ask for room on", &self.root))?;
        let reserve = self.config.disk_reserve_bytes.min(space.total / 10);
        let was = self.read_only.load(Ordering::Relaxed);
        let needed = if was { reserve + reserve / 4 } else { reserve };
        let full = space.available < needed;
        self.room.store(space.available.saturating_sub(reserve), Ordering::Relaxed);
        self.read_only.store(full, Ordering::Relaxed);
        match (was, full) {
            (false, true) => tracing::error!(
                available = space.available,
                reserve,
                path = %self.root.display(),
                "the disk is full: appends are refused until there is room"
            ),
            (true, false) => tracing::info!(available = space.available, "there is room on the disk again"),
            _ => {}
        }
        Ok(self.disk())
    }

    /// Starts flush rounds if something is dirty and none is in flight. Rounds start by themselves; this is for file
    /// systems that lose completions.
    pub fn poke(&self) {
        self.flusher.start(Lane::Eager);
        self.flusher.start(Lane::Background);
    }

    /// Segment files that are open.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.cache.open_count()
    }

    /// Writes the clean marker, which names these logs, and refuses every change from then on. Blocks on the disk.
    ///
    /// # Errors
    /// When the marker cannot be written: the next start recovers as after a crash.
    pub fn close(&self, logs: &[Closed]) -> Result<(), Error> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Err(Error::Closed);
        }
        let ends = logs.iter().map(|log| {
            (log.partition, CleanEnd { log_generation: log.log_generation, log_end: log.log_end })
        });
        let marker = CleanMarker { logs: ends.collect() };
        files::replace(&*self.fs, &self.root, directory::CLEAN, &marker.encode())
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn check_open(&self) -> Result<(), Error> {
        if self.is_closed() { Err(Error::Closed) } else { Ok(()) }
    }

    pub(super) const fn config(&self) -> &StoreConfig {
        &self.config
    }

    pub(super) const fn cache(&self) -> &FileCache {
        &self.cache
    }

    pub(super) const fn flusher(&self) -> &Arc<Flusher> {
        &self.flusher
    }

    /// Has the kernel begin to write a part of a file to the disk, on an I/O thread: one at a time, so that reads of old
    /// data find threads. False: one is under way, nothing was done.
    pub(super) fn begin_write_back(&self, file: &Arc<dyn File>, range: Range<u64>) -> bool {
        if self.writing_back.swap(true, Ordering::AcqRel) {
            return false;
        }
        let (file, writing_back) = (Arc::clone(file), Arc::clone(&self.writing_back));
        self.fs.spawn_io(Box::new(move || {
            file.begin_write_back(range);
            writing_back.store(false, Ordering::Release);
        }));
        true
    }

    pub(super) const fn tail_budget(&self) -> &Arc<TailBudget> {
        &self.tail_budget
    }

    pub(super) fn slot(&self, partition: TopicPartition) -> Option<Slot> {
        self.flusher.slots().get(partition)
    }

    pub(super) fn clean_end(&self, partition: TopicPartition) -> Option<CleanEnd> {
        self.marker.logs.get(&partition).copied()
    }

    /// Whether what a log finds at the start was on stable storage, bytes and names; a clean marker that names the log
    /// says so too.
    pub(super) const fn is_settled(&self) -> bool {
        self.settled
    }

    pub(super) fn has_durable_directory(&self, partition: TopicPartition) -> bool {
        self.durable_directories.lock().contains(&partition)
    }

    pub(super) fn partition_path(&self, partition: TopicPartition) -> PathBuf {
        self.root.join(directory::partition_directory(partition))
    }

    /// A path in the trash that is not in use.
    pub(super) fn trash_path(&self, name: &str) -> PathBuf {
        let trash = self.root.join(directory::TRASH);
        loop {
            let number = self.trash_count.fetch_add(1, Ordering::Relaxed);
            let path = trash.join(format!("{number}-{name}"));
            // A name of an earlier start may be in use; if that cannot be told, renaming will fail or replace dead bytes.
            if !self.fs.exists(&path).unwrap_or(false) {
                return path;
            }
        }
    }

    /// Takes `bytes` of the room above the reserve. False if there is less: nothing is taken then.
    pub(super) fn take_room(&self, bytes: u64) -> bool {
        self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(bytes)).is_ok()
    }

    /// An append found no room: refuse further ones until `refresh_space` finds some.
    pub(super) fn note_full(&self) {
        if !self.read_only.swap(true, Ordering::Relaxed) {
            tracing::error!(path = %self.root.display(), "the disk is full: appends are refused until there is room");
        }
    }

    pub(super) fn log_dropped(&self, partition: TopicPartition) {
        self.open_logs.lock().remove(&partition);
    }

    pub(super) fn change_record(&self, change: impl FnOnce(&mut BootRecord)) -> Result<(), Error> {
        let mut record = self.record.lock();
        change(&mut record);
        files::replace(&*self.fs, &self.root, directory::BOOT, &record.encode())
    }

    fn state_path(&self, name: &str) -> Result<PathBuf, Error> {
        let good = !name.is_empty()
            && name.len() <= 64
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if !good {
            return Err(Error::BadName(name.to_owned()));
        }
        Ok(self.root.join(directory::STATE).join(name))
    }
}

/// The partitions that have a directory, and names that are none of ours.
fn scan_topics(fs: &dyn FileSystem, root: &Path) -> Result<(Vec<TopicPartition>, Vec<String>), Error> {
    let topics = root.join(directory::TOPICS);
    let (mut found, mut strangers) = (Vec::new(), Vec::new());
    for topic in fs.list(&topics).map_err(Error::io("list directory", &topics))? {
        let Some(topic_id) = directory::parse_topic(&topic.name).filter(|_| topic.is_directory) else {
            strangers.push(topic.name);
            continue;
        };
        let path = topics.join(&topic.name);
        for entry in fs.list(&path).map_err(Error::io("list directory", &path))? {
            match directory::parse_partition(&entry.name).filter(|_| entry.is_directory) {
                Some(partition) => found.push(TopicPartition::new(topic_id, partition)),
                None => strangers.push(format!("{}/{}", topic.name, entry.name)),
            }
        }
    }
    found.sort_unstable();
    Ok((found, strangers))
}

/// Makes the data directory if it is not there, with a name that survives a power cut.
fn make_root(fs: &dyn FileSystem, root: &Path) -> Result<(), Error> {
    // The nearest directory that is there already has a durable name, as far as we can know.
    let mut made = Vec::new();
    for path in root.ancestors().filter(|path| !path.as_os_str().is_empty()) {
        if fs.exists(path).map_err(Error::io("look for directory", path))? {
            break;
        }
        made.push(path);
    }
    fs.create_directory(root).map_err(Error::io("create directory", root))?;
    for path in made {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs.sync_directory(parent).map_err(Error::io("sync directory", parent))?;
    }
    Ok(())
}

/// The directory's id: read, or made.
fn identify(fs: &dyn FileSystem, root: &Path, new_id: DirectoryId) -> Result<(DirectoryId, bool), Error> {
    let path = root.join(directory::DIRECTORY);
    match files::read(fs, &path)? {
        Some(bytes) => match boot_record::decode_directory(&bytes) {
            Ok(id) => Ok((id, false)),
            Err(error) => Err(Error::BadFile { path, error }),
        },
        None => {
            files::replace(fs, root, directory::DIRECTORY, &boot_record::encode_directory(new_id))?;
            Ok((new_id, true))
        }
    }
}

/// Reads boot record and clean marker, writes the new record, and removes the marker durably: from here on a crash is a
/// crash.
fn start(
    fs: &dyn FileSystem,
    root: &Path,
    formatted: bool,
) -> Result<(Option<CleanMarker>, BootState), Error> {
    let boot_id = fs.boot_id().map_err(Error::io("read the boot id for", root))?;
    let last = files::read(fs, &root.join(directory::BOOT))?;
    let last = last.and_then(|bytes| BootRecord::decode(&bytes).ok());
    let clean_path = root.join(directory::CLEAN);
    let clean_bytes = files::read(fs, &clean_path)?;
    let present = clean_bytes.is_some();
    let marker = clean_bytes.and_then(|bytes| CleanMarker::decode(&bytes).ok());
    let clean = marker.is_some() || formatted;
    let pending = last.unwrap_or_default();
    // A power cut that was not reported yet may not be recovered from yet, in some of the logs.
    let same_kernel =
        formatted || (last.is_some_and(|last| last.boot_id == boot_id) && !pending.other_kernel);
    let report = BootRecord {
        boot_id,
        unclean: pending.unclean || !clean,
        other_kernel: pending.other_kernel || !same_kernel,
        flush_failed: pending.flush_failed,
    };
    if last != Some(report) {
        files::replace(fs, root, directory::BOOT, &report.encode())?;
    }
    if present && !cfg!(hw_mutate = "h9_keep_clean_marker") {
        fs.remove_file(&clean_path).map_err(Error::io("remove file", &clean_path))?;
        fs.sync_directory(root).map_err(Error::io("sync directory", root))?;
    }
    let page_cache_is_old = last.is_none_or(|last| last.boot_id == boot_id) && !formatted;
    Ok((marker, BootState { clean, same_kernel, page_cache_is_old, report }))
}

/// Logs from which on one sync of everything is considered.
const LOGS_TO_SYNC_ALL: usize = 32;

/// After the death of a process what it wrote last is there, but maybe not on the disk. True: now it is, all of it. Else
/// each log sees to its own files, and the names of its directory and of those above are durable.
fn settle(fs: &dyn FileSystem, root: &Path, logs: usize) -> Result<bool, Error> {
    // Each log would need two syncs, one for a file and one for its directory.
    if logs >= LOGS_TO_SYNC_ALL
        && fs.sync_everything(root, logs * 2).map_err(Error::io("sync the file system of", root))?
    {
        return Ok(true);
    }
    sync_uncertain_names(fs, root)?;
    Ok(false)
}

/// Makes the names of everything but the files of logs durable.
fn sync_uncertain_names(fs: &dyn FileSystem, root: &Path) -> Result<(), Error> {
    let topics = root.join(directory::TOPICS);
    for topic in fs.list(&topics).map_err(Error::io("list directory", &topics))? {
        let path = topics.join(&topic.name);
        if topic.is_directory {
            fs.sync_directory(&path).map_err(Error::io("sync directory", &path))?;
        }
    }
    for name in [directory::TOPICS, directory::STATE, directory::TRASH] {
        let path = root.join(name);
        fs.sync_directory(&path).map_err(Error::io("sync directory", &path))?;
    }
    Ok(())
}
