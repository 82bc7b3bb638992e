//! Reading from the disk itself.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::Advice;

use super::mapping::RealMapping;
use crate::storage::file_system::Mapping;

/// What direct reads are aligned to: enough for every disk.
const ALIGNMENT: usize = 4096;
/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// Reads past the page cache: directly where the file system can, else after dropping the file from the cache.
pub(super) fn read_at(file: &File, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    if buffer.is_empty() {
        return Ok(0);
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    match OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path) {
        Ok(direct) => match read_direct(&direct, buffer, position) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => read_dropped(file, buffer, position),
            result => result,
        },
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => read_dropped(file, buffer, position),
        Err(error) => Err(error),
    }
}

fn read_direct(direct: &File, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    let lead = (position % ALIGNMENT as u64) as usize;
    let wanted = buffer.len().min(PIECE);
    let length = (lead + wanted).next_multiple_of(ALIGNMENT);
    let mut room = vec![0; length + ALIGNMENT];
    let start = room.as_ptr().align_offset(ALIGNMENT);
    let aligned = &mut room[start..start + length];
    let read = direct.read_at(aligned, position - lead as u64)?;
    let count = read.saturating_sub(lead).min(wanted);
    buffer[..count].copy_from_slice(&aligned[lead..lead + count]);
    Ok(count)
}

fn read_dropped(file: &File, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    let length = file.metadata()?.len();
    if position >= length {
        return Ok(0);
    }
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?;
    let end = length.min(position + buffer.len() as u64);
    let mapping = RealMapping::new(file, length)?;
    for page in (position..end).step_by(ALIGNMENT) {
        if mapping.is_resident(page..page + 1) {
            return Err(io::Error::other("the file system can neither read past its cache nor drop it"));
        }
    }
    file.read_at(buffer, position)
}
