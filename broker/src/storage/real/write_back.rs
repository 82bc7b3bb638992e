//! Writing back early what was written to the page cache.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Has the kernel begin to write dirty pages of `range` to the disk; waits only while the queue of the disk is full.
///
/// An error is not told, and stays with the open file for the next `fdatasync`, because only waiting takes it away
/// (`sync_file_range(2)`).
#[expect(unsafe_code, reason = "neither the standard library nor rustix has sync_file_range")]
pub(super) fn begin(file: &File, range: Range<u64>) {
    let (Ok(start), Ok(length)) =
        (i64::try_from(range.start), i64::try_from(range.end.saturating_sub(range.start)))
    else {
        return;
    };
    // SAFETY: the call takes an open descriptor, which `file` is for as long as it is borrowed, and numbers; it reads and
    // writes no memory of this process.
    let _not_told =
        unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE) };
}
