//! Flush rounds on threads: `fdatasync` for each file while they are few, `syncfs` once for all when they are many.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::threads::Threads;
use crate::storage::file_system::{File, FlushDone, RoundResult};

/// Files of a round that are flushed one by one (ADR 0002 has the measurement).
const SINGLE_FILES_MAX: usize = 32;

/// Dirty bytes of the whole machine up to which `syncfs` is worth it, because it waits for all of them: at any rate, and
/// for each file that it spares a sync (which takes as long as a disk needs for about as much).
const DIRTY_BYTES_MIN: u64 = 64 << 20;
const DIRTY_BYTES_PER_FILE: u64 = 64 << 10;

/// Threads that wait for `fdatasync`. Each waits for the disk, so they do not need cores.
const FLUSH_THREADS: usize = 16;

/// Files of a round for which another thread is worth waking.
const FILES_PER_THREAD: usize = 4;

pub(super) struct Rounds {
    threads: Threads,
    anchor: Mutex<Option<OwnedFd>>,
    syncfs_forbidden: AtomicBool,
}

impl fmt::Debug for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rounds").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Default for Rounds {
    fn default() -> Self {
        Self {
            threads: Threads::new("highwater-flush", FLUSH_THREADS),
            anchor: Mutex::new(None),
            syncfs_forbidden: AtomicBool::new(false),
        }
    }
}

/// A round whose files are flushed one by one.
struct Round {
    files: Vec<Arc<dyn File>>,
    results: Mutex<Vec<Option<io::Result<()>>>>,
    next: AtomicUsize,
    left: AtomicUsize,
    done: Mutex<Option<FlushDone>>,
}

impl Rounds {
    pub(super) fn set_anchor(&self, directory: OwnedFd) {
        *self.anchor.lock() = Some(directory);
    }

    pub(super) fn forbid_syncfs(&self) {
        self.syncfs_forbidden.store(true, Ordering::Relaxed);
    }

    pub(super) fn start(rounds: &Arc<Self>, files: Vec<Arc<dyn File>>, done: FlushDone) {
        if files.len() <= SINGLE_FILES_MAX || rounds.syncfs_forbidden.load(Ordering::Relaxed) {
            rounds.flush_each(files, done);
            return;
        }
        let this = Arc::clone(rounds);
        rounds.threads.spawn(Box::new(move || {
            if !is_syncfs_worth(files.len()) {
                this.flush_each(files, done);
            } else {
                match this.flush_all(files.len()) {
                    Some(results) => done(results),
                    None => this.flush_each(files, done),
                }
            }
        }));
    }

    fn flush_each(&self, files: Vec<Arc<dyn File>>, done: FlushDone) {
        let count = files.len();
        let round = Arc::new(Round {
            results: Mutex::new((0..count).map(|_| None).collect()),
            files,
            next: AtomicUsize::new(0),
            left: AtomicUsize::new(count),
            done: Mutex::new(Some(done)),
        });
        for _ in 0..count.div_ceil(FILES_PER_THREAD).clamp(1, FLUSH_THREADS) {
            let round = Arc::clone(&round);
            self.threads.spawn(Box::new(move || round.help()));
        }
    }

    /// `None`: the files have to be flushed one by one.
    ///
    /// The kernel tells of a failed write once, to whichever call comes first, and that call may be about other files: of
    /// a round that overlaps, or that began before some file became dirty. From the first error on every file is asked by
    /// itself, because a file does not forget.
    fn flush_all(&self, count: usize) -> Option<RoundResult> {
        let anchor = self.anchor.lock();
        if self.syncfs_forbidden.load(Ordering::Relaxed) {
            return None;
        }
        let result = match anchor.as_ref() {
            Some(directory) => rustix::fs::syncfs(directory).map_err(io::Error::from),
            None => Err(io::Error::other("no file was opened yet")),
        };
        if result.is_err() {
            self.forbid_syncfs();
        }
        drop(anchor);
        // The error names no file, so every one of them may have lost bytes.
        Some((0..count).map(|_| result.as_ref().copied().map_err(copy_of)).collect())
    }
}

impl Round {
    fn help(&self) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(file) = self.files.get(number) else { break };
            let result = file.sync();
            self.results.lock()[number] = Some(result);
            if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.finish();
            }
        }
        if self.files.is_empty() {
            self.finish();
        }
    }

    fn finish(&self) {
        let Some(done) = self.done.lock().take() else { return };
        let results = std::mem::take(&mut *self.results.lock());
        let missing = || Err(io::Error::other("not flushed"));
        done(results.into_iter().map(|result| result.unwrap_or_else(missing)).collect());
    }
}

fn copy_of(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// Whether one `syncfs` is likely to take less time than `count` syncs of files.
pub(super) fn is_syncfs_worth(count: usize) -> bool {
    let dirty_max = DIRTY_BYTES_MIN + DIRTY_BYTES_PER_FILE * count as u64;
    dirty_bytes().is_some_and(|bytes| bytes <= dirty_max)
}

/// Bytes that wait for the disk on this machine.
fn dirty_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some((field("Dirty:")? + field("Writeback:")?) << 10)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    use super::super::RealFileSystem;
    use super::*;
    use crate::storage::file_system::{FileSystem, OpenMode};

    #[test]
    fn after_a_failed_syncfs_every_file_is_asked_by_itself() {
        let directory = tempfile::tempdir().unwrap();
        let system = RealFileSystem::default();
        let files: Vec<_> = (0..=SINGLE_FILES_MAX)
            .map(|number| {
                system.open(&directory.path().join(number.to_string()), OpenMode::CreateNew).unwrap()
            })
            .collect();
        let rounds = Arc::new(Rounds::default());
        // Good for nothing but naming the directory: syncfs refuses it.
        let mut flags = rustix::fs::OFlags::PATH;
        flags |= rustix::fs::OFlags::DIRECTORY;
        rounds.set_anchor(rustix::fs::open(directory.path(), flags, rustix::fs::Mode::empty()).unwrap());
        let results = rounds.flush_all(files.len()).unwrap();
        assert!(results.len() == files.len() && results.iter().all(Result::is_err));
        assert!(rounds.flush_all(files.len()).is_none(), "it would answer that all is well");
        let (sender, receiver) = sync_channel(1);
        Rounds::start(&rounds, files, Box::new(move |results| sender.send(results).unwrap()));
        let results = receiver.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(results.len() > SINGLE_FILES_MAX && results.iter().all(Result::is_ok));
    }
}
