//! A file in memory, for reading.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::storage::file_system::Mapping;

/// A mapping that is only ever looked at through slices of bytes that nobody writes any more.
#[derive(Debug)]
pub(super) struct RealMapping {
    map: MmapRaw,
}

/// Pages that are asked for at a time.
const PAGES: usize = 512;

impl RealMapping {
    pub(super) fn new(file: &std::fs::File, length: u64) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        Ok(Self { map: MmapOptions::new().len(length).map_raw_read_only(file)? })
    }

    fn check(&self, range: &Range<u64>) -> io::Result<Range<usize>> {
        let out_of_range = || io::Error::new(io::ErrorKind::InvalidInput, "range outside of the mapping");
        let start = usize::try_from(range.start).map_err(|_| out_of_range())?;
        let end = usize::try_from(range.end).map_err(|_| out_of_range())?;
        if start > end || end > self.map.len() {
            return Err(out_of_range());
        }
        Ok(start..end)
    }
}

/// Bytes of a mapping, which lives as long as any of them.
struct Slice {
    mapping: Arc<RealMapping>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Slice {
    #[expect(unsafe_code, reason = "bytes of a mapping are handed out without a copy")]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `slice` checked the range against the length of the mapping, and `mapping` keeps the pages mapped.
        // The bytes are initialised, as those of any file are. They do not change while this slice lives: `slice` is
        // only called for bytes of batches below the written end of a segment; storage never writes at such positions
        // again (appends go behind them, truncation and repair into other files), it never cuts a file that may be
        // mapped, and the lock on the data directory keeps other brokers away. Whoever changes data files behind the
        // broker's back can break this, as with any mapped file.
        unsafe {
            std::slice::from_raw_parts(self.mapping.map.as_ptr().add(self.range.start), self.range.len())
        }
    }
}

impl Mapping for RealMapping {
    fn slice(self: Arc<Self>, range: Range<u64>) -> Bytes {
        match self.check(&range) {
            Ok(range) if range.is_empty() => Bytes::new(),
            Ok(range) => Bytes::from_owner(Slice { mapping: self, range }),
            // A programmer's error: positions were checked against the segment, and the mapping is as long.
            Err(error) => panic!("slice {range:?} of {} mapped bytes: {error}", self.map.len()),
        }
    }

    #[expect(unsafe_code, reason = "neither the standard library nor rustix has mincore")]
    fn is_resident(&self, range: Range<u64>) -> bool {
        let Ok(range) = self.check(&range) else { return false };
        let page = rustix::param::page_size();
        let mut start = range.start - range.start % page;
        while start < range.end {
            let mut resident = [0u8; PAGES];
            let length = (range.end - start).min(PAGES * page);
            // SAFETY: start is a multiple of the page size within the mapping, `length` bytes from there are mapped, and
            // `resident` has room for a byte for each of their at most PAGES pages.
            let answer = unsafe {
                libc::mincore(self.map.as_mut_ptr().add(start).cast(), length, resident.as_mut_ptr().cast())
            };
            let pages = length.div_ceil(page);
            if answer != 0 || resident[..pages].iter().any(|page| page & 1 == 0) {
                return false;
            }
            start += length;
        }
        true
    }

    fn populate(&self, range: Range<u64>) -> io::Result<()> {
        let range = self.check(&range)?;
        if range.is_empty() {
            return Ok(());
        }
        self.map.advise_range(Advice::PopulateRead, range.start, range.len())
    }
}
