//! The database's file, through the broker's file system, so that a simulated disk can stand in for it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;

use crate::storage::file_system::{File, FileSystem, OpenMode};

/// One file as the database wants it.
#[derive(Debug)]
pub(super) struct Backend {
    file: Arc<dyn File>,
    /// Set by a sync that failed.
    flush_failed: Arc<AtomicBool>,
    /// While a database is being made nothing has to be durable: it is synced as a whole before it gets its name.
    making: Arc<AtomicBool>,
}

/// The pages of the database.
const PAGE_BYTES: u64 = 4096;

impl Backend {
    /// An existing file. After a power cut it may end within a page: it was being extended, nothing that was committed is
    /// there, and the database wants whole pages.
    pub(super) fn open(fs: &dyn FileSystem, path: &Path, flush_failed: Arc<AtomicBool>) -> io::Result<Self> {
        let making = Arc::default();
        let file = fs.open(path, OpenMode::ReadWrite)?;
        let length = file.length()?;
        if length % PAGE_BYTES != 0 {
            file.set_length(length.next_multiple_of(PAGE_BYTES))?;
        }
        Ok(Self { file, flush_failed, making })
    }

    /// An empty file, whether there is one or not.
    pub(super) fn create(
        fs: &dyn FileSystem,
        path: &Path,
        flush_failed: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let making = Arc::new(AtomicBool::new(true));
        Ok(Self { file: fs.open(path, OpenMode::CreateTruncated)?, flush_failed, making })
    }

    /// What ends the making.
    pub(super) fn made(&self) -> Made {
        Made { file: Arc::clone(&self.file), making: Arc::clone(&self.making) }
    }
}

/// Ends the making of a database.
pub(super) struct Made {
    file: Arc<dyn File>,
    making: Arc<AtomicBool>,
}

impl Made {
    /// Makes everything written so far durable; from here on every sync of the database is one.
    pub(super) fn sync(self) -> io::Result<()> {
        self.making.store(false, Ordering::Release);
        self.file.sync()
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < out.len() {
            match self.file.read_at(&mut out[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_length(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.making.load(Ordering::Acquire) {
            return Ok(());
        }
        self.file.sync().inspect_err(|_| self.flush_failed.store(true, Ordering::Release))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let buffers = [io::IoSlice::new(&data[done..])];
            match self.file.write_vectored_at(&buffers, offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
