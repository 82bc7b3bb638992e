//! The machine's file system, on which a flush can fail once.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use highwater_broker::storage::file_system::{Entry, File, FileSystem, FlushDone, IoJob, OpenMode, Space};
use highwater_broker::storage::real::RealFileSystem;

/// Passes everything on, except that flush rounds fail while they are told to.
#[derive(Debug, Default)]
pub struct FailingFlush {
    inner: RealFileSystem,
    failures_left: AtomicU64,
    failed: AtomicU64,
}

impl FailingFlush {
    /// The next `count` flush rounds fail for all of their files, as a disk would make them fail: what was written is
    /// still in the page cache and reads back, and the kernel holds it for clean.
    pub fn fail(&self, count: u64) {
        self.failures_left.store(count, Ordering::SeqCst);
    }

    /// Rounds that have failed so far.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::SeqCst)
    }
}

impl FileSystem for FailingFlush {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.inner.create_directory(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        self.inner.list(directory)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        self.inner.open(path, mode)
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
        self.inner.sync_directory(directory)
    }

    fn space(&self, directory: &Path) -> io::Result<Space> {
        self.inner.space(directory)
    }

    fn boot_id(&self) -> io::Result<[u8; 16]> {
        self.inner.boot_id()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.inner.lock(path)
    }

    fn flush_round(&self, files: Vec<Arc<dyn File>>, done: FlushDone) {
        let took =
            self.failures_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if took.is_err() {
            return self.inner.flush_round(files, done);
        }
        self.failed.fetch_add(1, Ordering::SeqCst);
        let count = files.len();
        // Like the real one, it answers on another thread, and only once.
        self.inner.spawn_io(Box::new(move || {
            done((0..count).map(|_| Err(io::Error::other("the disk did not take it"))).collect());
        }));
    }

    fn spawn_io(&self, job: IoJob) {
        self.inner.spawn_io(job);
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_as_many_rounds_fail_as_were_told_to() {
        let directory = tempfile::tempdir().unwrap();
        let files = FailingFlush::default();
        let file = files.open(&directory.path().join("file"), OpenMode::CreateNew).unwrap();
        file.write_vectored_at(&[IoSlice::new(b"x")], 0).unwrap();
        files.fail(1);
        let (sender, results) = mpsc::sync_channel(1);
        for is_ok in [false, true, true] {
            let sender = sender.clone();
            files.flush_round(vec![Arc::clone(&file)], Box::new(move |result| sender.send(result).unwrap()));
            let result = results.recv_timeout(Duration::from_secs(60)).unwrap();
            assert_eq!(result.iter().map(Result::is_ok).collect::<Vec<_>>(), [is_ok]);
        }
        assert_eq!(files.failed(), 1);
    }
}
