//! An open file of the machine.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::mapping::RealMapping;
use super::{past_cache, pieces, write_back};
use crate::storage::file_system::{File, Mapping};

#[derive(Debug)]
pub(super) struct RealFile {
    file: std::fs::File,
    syncs: Syncs,
}

/// Lets no call of `fdatasync` answer for another one.
///
/// The kernel tells of a failed write once for each open file, to whichever call comes first. Of two rounds that flush the
/// same file, or a round and the close of a log, the other one would hear that all is well, about bytes that are lost. So
/// calls come one after another, and after one that failed all fail: whoever knows better opens the file anew.
#[derive(Debug, Default)]
struct Syncs {
    failed: Mutex<Option<i32>>,
}

impl Syncs {
    fn run(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut failed = self.failed.lock();
        if let Some(code) = *failed {
            return Err(io::Error::from_raw_os_error(code));
        }
        let result = sync();
        if let Err(error) = &result {
            *failed = Some(error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()));
        }
        result
    }
}

impl RealFile {
    pub(super) fn new(file: std::fs::File) -> Self {
        Self { file, syncs: Syncs::default() }
    }
}

impl File for RealFile {
    fn write_vectored_at(&self, buffers: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        pieces::write(buffers, position, |piece, at| {
            Ok(rustix::io::retry_on_intr(|| rustix::io::pwritev(&self.file, piece, at))?)
        })
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.file.read_at(buffer, position)
    }

    fn read_past_cache_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        past_cache::read_at(&self.file, buffer, position)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        let length = range.end.saturating_sub(range.start);
        if length == 0 {
            return Ok(());
        }
        let allocated = rustix::io::retry_on_intr(|| {
            rustix::fs::fallocate(&self.file, FallocateFlags::empty(), range.start, length)
        });
        match allocated {
            // A file system that cannot reserve: the write itself finds out whether there is room.
            Err(Errno::OPNOTSUPP) if self.length()? < range.end => self.set_length(range.end),
            Err(Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.syncs.run(|| self.file.sync_data())
    }

    fn begin_write_back(&self, range: Range<u64>) {
        write_back::begin(&self.file, range);
    }

    fn map(&self, length: u64) -> io::Result<Arc<dyn Mapping>> {
        Ok(Arc::new(RealMapping::new(&self.file, length)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_hears_that_all_is_well_after_a_failed_sync() {
        let syncs = Syncs::default();
        syncs.run(|| Ok(())).unwrap();
        let full = || Err(io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error()));
        assert_eq!(syncs.run(full).unwrap_err().kind(), io::ErrorKind::StorageFull);
        let again = syncs.run(|| panic!("a failed sync is not tried again"));
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
