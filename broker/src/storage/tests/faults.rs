//! Disks that fail: nothing is reported that is not so, and everything goes on when the disk does.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use highwater_broker_core::durability::Durability;
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_broker_core::time::Wall;
use highwater_protocol::ids::{DirectoryId, Offset};
use parking_lot::Mutex;

use super::support::{Directory, Opened, PARTITION, batch, open_in, small_segments};
use crate::storage::config::{LogConfig, StoreConfig};
use crate::storage::error::AppendError;
use crate::storage::file_system::{Entry, File, FileSystem, FlushDone, IoJob, Mapping, OpenMode, Space};
use crate::storage::real::RealFileSystem;
use crate::storage::sink::FlushOutcome;
use crate::storage::store::{DiskState, Store};

/// What goes wrong, and what was done.
#[derive(Debug, Default)]
struct Plan {
    /// Syncs of segment files that fail.
    segment_syncs_to_fail: AtomicUsize,
    segment_syncs: AtomicUsize,
    /// Bytes that may still be written to segments; then writes fail with `error`.
    write_budget: Mutex<Option<(u64, io::ErrorKind)>>,
    /// Only one of them fails.
    write_fails_once: AtomicBool,
    /// No room: allocations and small files fail.
    full: AtomicU64,
    directories_synced: Mutex<Vec<PathBuf>>,
    /// What of segments was to be written back early.
    written_back: Mutex<Vec<Range<u64>>>,
}

#[derive(Debug)]
struct FaultyFileSystem {
    inner: RealFileSystem,
    plan: Arc<Plan>,
}

#[derive(Debug)]
struct FaultyFile {
    inner: Arc<dyn File>,
    is_segment: bool,
    plan: Arc<Plan>,
}

impl Plan {
    fn check_room(&self) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) > 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl FileSystem for FaultyFileSystem {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.inner.create_directory(path)
    }
    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        self.inner.list(directory)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        if matches!(mode, OpenMode::CreateNew | OpenMode::CreateTruncated) {
            self.plan.check_room()?;
        }
        let is_segment = path.extension().is_some_and(|extension| extension == "segment");
        let inner = self.inner.open(path, mode)?;
        Ok(Arc::new(FaultyFile { inner, is_segment, plan: Arc::clone(&self.plan) }))
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.inner.exists(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_file(path)
    }
    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_directory(path)
    }
    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.inner.sync_directory(directory)?;
        self.plan.directories_synced.lock().push(directory.to_owned());
        Ok(())
    }
    fn space(&self, directory: &Path) -> io::Result<Space> {
        let space = self.inner.space(directory)?;
        let available = if self.plan.full.load(Ordering::Relaxed) > 0 { 0 } else { space.available };
        Ok(Space { available, ..space })
    }
    fn boot_id(&self) -> io::Result<[u8; 16]> {
        self.inner.boot_id()
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.inner.lock(path)
    }
    fn flush_round(&self, files: Vec<Arc<dyn File>>, done: FlushDone) {
        self.inner.flush_round(files, done);
    }
    fn spawn_io(&self, job: IoJob) {
        self.inner.spawn_io(job);
    }
}

impl File for FaultyFile {
    fn write_vectored_at(&self, buffers: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        let mut budget = self.plan.write_budget.lock();
        let Some((left, kind)) = budget.as_mut().filter(|_| self.is_segment) else {
            return self.inner.write_vectored_at(buffers, position);
        };
        if *left == 0 {
            let error = (*kind).into();
            if self.plan.write_fails_once.load(Ordering::Relaxed) {
                *budget = None;
            }
            return Err(error);
        }
        // A short write: a part of the first buffer.
        let length = buffers[0].len().min(1000).min(*left as usize);
        *left -= length as u64;
        self.inner.write_vectored_at(&[IoSlice::new(&buffers[0][..length])], position)
    }
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.inner.read_at(buffer, position)
    }
    fn read_past_cache_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.inner.read_past_cache_at(buffer, position)
    }
    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        self.inner.set_length(length)
    }
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.plan.check_room()?;
        self.inner.allocate(range)
    }
    fn sync(&self) -> io::Result<()> {
        if self.is_segment {
            self.plan.segment_syncs.fetch_add(1, Ordering::Relaxed);
            let failing = &self.plan.segment_syncs_to_fail;
            if failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                return Err(io::Error::from_raw_os_error(5));
            }
        }
        self.inner.sync()
    }
    fn begin_write_back(&self, range: Range<u64>) {
        if self.is_segment {
            self.plan.written_back.lock().push(range.clone());
        }
        self.inner.begin_write_back(range);
    }
    fn map(&self, length: u64) -> io::Result<Arc<dyn Mapping>> {
        self.inner.map(length)
    }
}

fn open(directory: &Directory, config: LogConfig) -> (Opened, Arc<Plan>) {
    let plan = Arc::new(Plan::default());
    let fs = Arc::new(FaultyFileSystem { inner: RealFileSystem::default(), plan: Arc::clone(&plan) });
    let store_config = StoreConfig { disk_reserve_bytes: 1, ..StoreConfig::default() };
    let store = Store::open(fs, &directory.root(), store_config, DirectoryId(1)).unwrap().0;
    (open_in(store, PARTITION, config), plan)
}

fn next_outcome(opened: &Opened) -> FlushOutcome {
    opened.outcomes.recv_timeout(Duration::from_secs(30)).expect("an outcome in time")
}

#[test]
fn h18_a_failed_flush_is_not_repeated_and_nothing_is_reported_until_verified() {
    let directory = Directory::new();
    let (mut opened, plan) = open(&directory, LogConfig::default());
    opened.append(1, 100);
    opened.flush();
    plan.segment_syncs_to_fail.store(1, Ordering::Relaxed);
    opened.append(1, 100);
    assert!(matches!(next_outcome(&opened), FlushOutcome::Failed { .. }));
    let syncs = plan.segment_syncs.load(Ordering::Relaxed);
    opened.append(1, 100);
    opened.log.request_flush();
    opened.store.poke();
    assert!(opened.outcomes.recv_timeout(Duration::from_millis(100)).is_err(), "no further round");
    assert_eq!(plan.segment_syncs.load(Ordering::Relaxed), syncs);
    assert_eq!(opened.log.flushed_end(), Offset(10));
    opened.log.mark_suspect().unwrap();
    let verified = opened.log.verify_suspect().unwrap();
    assert_eq!(verified.log_end, opened.log.flushed_end());
    assert_eq!(opened.read_all(0).unwrap(), verified.log_end.get());
    opened.append(1, 100);
    opened.flush();
    assert_eq!(opened.read_all(0).unwrap(), verified.log_end.get() + 10);
}

#[test]
fn h19_no_flushed_end_is_reported_before_the_names_of_its_files_are_durable() {
    let directory = Directory::new();
    let (mut opened, plan) = open(&directory, small_segments());
    let partition = directory.partition();
    for _ in 0..5 {
        plan.directories_synced.lock().clear();
        // More than a segment: a new file at least.
        let files = directory.files(".segment");
        opened.append(10, 1000);
        let made = directory.files(".segment").into_iter().find(|path| !files.contains(path)).unwrap();
        let name = SegmentName::parse(&made.file_name().unwrap().to_string_lossy()).unwrap();
        while opened.log.flushed_end() < opened.log.log_end() {
            let FlushOutcome::Flushed { log_generation, upto } = next_outcome(&opened) else { panic!() };
            let synced = plan.directories_synced.lock().contains(&partition);
            assert!(synced || upto <= name.base_offset, "flushed to {upto} too early");
            opened.log.flushed(log_generation, upto);
        }
    }
}

#[test]
fn a_write_that_fails_in_the_middle_leaves_nothing_behind() {
    let directory = Directory::new();
    let (mut opened, plan) = open(&directory, LogConfig::default());
    opened.append(2, 500);
    // Three batches, and the disk fails within the last one; zeroing what was written works again.
    let batches: Vec<_> = (0..3).map(|n| batch(PARTITION, 20 + n * 10, 10, 500, 1)).collect();
    let length = batches[0].header.length() as u64;
    for written in [0, 10, 999, length + 30, 2 * length + 100] {
        for once in [true, false] {
            plan.write_fails_once.store(once, Ordering::Relaxed);
            *plan.write_budget.lock() = Some((written, io::ErrorKind::Other));
            let failed = opened.log.append(&batches);
            let undone = once || written == 0;
            assert!(undone == matches!(failed, Err(AppendError::Io(_))), "{failed:?}");
            assert!(undone != matches!(failed, Err(AppendError::Stuck { .. })), "{failed:?}");
        }
        *plan.write_budget.lock() = None;
        assert_eq!(opened.log.log_end(), Offset(20));
        assert_eq!(opened.read_all(0).unwrap(), 20);
        // What could not be undone is left behind.
        opened.append(1, 100);
        opened.log.truncate(Offset(20)).unwrap();
    }
    drop(opened);
    let mut opened = directory.open(LogConfig::default());
    assert_eq!((opened.log.log_end(), opened.report.cut.clone()), (Offset(20), None));
    assert_eq!(opened.read_all(0).unwrap(), 20);
}

#[test]
fn a_full_disk_refuses_appends_and_takes_them_again_when_there_is_room() {
    let directory = Directory::new();
    let (mut opened, plan) = open(&directory, small_segments());
    opened.append(5, 1000);
    opened.flush();
    plan.full.store(1, Ordering::Relaxed);
    // The segment has reserved room; then a new one is needed.
    let refused = loop {
        let end = opened.log.log_end().get();
        match opened.log.append(&[batch(PARTITION, end, 10, 1000, 1)]) {
            Ok(()) => assert!(opened.log.log_end() < Offset(1000)),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, AppendError::Full(_)), "{refused}");
    assert_eq!(opened.store.disk(), DiskState::ReadOnly);
    assert_eq!(opened.store.refresh_space().unwrap(), DiskState::ReadOnly);
    let end = opened.log.log_end().get();
    assert_eq!(opened.read_all(0).unwrap(), end);
    plan.full.store(0, Ordering::Relaxed);
    assert_eq!(opened.store.refresh_space().unwrap(), DiskState::Ok);
    opened.append(20, 1000);
    // What waited for room is made durable when the log is maintained.
    opened.log.maintain(Wall(0), Offset(0)).unwrap();
    opened.flush();
    drop(opened);
    let mut opened = directory.open(small_segments());
    assert_eq!(opened.read_all(0).unwrap(), end + 200);
}

#[test]
fn what_nobody_flushes_is_written_back_in_parts_and_only_that() {
    const PART: u64 = 8 << 20;
    for durability in [Durability::Os, Durability::Fsync] {
        let directory = Directory::new();
        let (mut opened, plan) = open(&directory, LogConfig { durability, ..LogConfig::default() });
        opened.append(7, 100_000);
        assert!(plan.written_back.lock().is_empty(), "less than a part");
        // One part at a time: while one is on its way, the next one grows.
        for _ in 0..40 {
            opened.append(4, 100_000);
            if plan.written_back.lock().len() >= 3 {
                break;
            }
        }
        opened.flush();
        let parts = plan.written_back.lock().clone();
        assert_eq!(parts.len() >= 3, durability == Durability::Os, "{durability:?}: {parts:?}");
        let mut end = 0;
        for part in parts {
            assert_eq!(part.start, end, "one after another");
            assert!(part.end - part.start >= PART && part.end.is_multiple_of(64 << 10), "{part:?}");
            assert!(part.end <= opened.log.bytes(), "{part:?}");
            end = part.end;
        }
    }
}
