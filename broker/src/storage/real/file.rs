//! An open file of the machine.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::mapping::RealMapping;
use super::past_cache;
use crate::storage::file_system::{File, Mapping};

#[derive(Debug)]
pub(super) struct RealFile {
    file: std::fs::File,
}

impl RealFile {
    pub(super) const fn new(file: std::fs::File) -> Self {
        Self { file }
    }
}

impl File for RealFile {
    fn write_vectored_at(&self, buffers: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::pwritev(&self.file, buffers, position))?)
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
        self.file.sync_data()
    }

    fn map(&self, length: u64) -> io::Result<Arc<dyn Mapping>> {
        Ok(Arc::new(RealMapping::new(&self.file, length)?))
    }
}
