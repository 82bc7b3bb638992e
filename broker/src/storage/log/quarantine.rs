//! Keeping what recovery cuts off.

use std::ops::Range;
use std::path::{Path, PathBuf};

use highwater_broker_core::log::directory;

use crate::storage::error::Error;
use crate::storage::file_system::{File, FileSystem, OpenMode};
use crate::storage::files;
use crate::storage::segment::SegmentFile;

/// Bytes of a cut that are kept: more would fill the disk for little.
const KEPT_BYTES_MAX: u64 = 64 << 20;

/// Copies bytes of a segment to the quarantine of its log, durably. Done twice, it yields the same file.
pub(super) fn copy(
    fs: &dyn FileSystem,
    log_directory: &Path,
    segment: &SegmentFile,
    file: &dyn File,
    range: Range<u64>,
    report: &str,
) -> Result<PathBuf, Error> {
    let quarantine = make(fs, log_directory)?;
    let stem = format!("{}-{}", segment.name.stem(), range.start);
    let path = quarantine.join(format!("{stem}.bytes"));
    let copy = fs.open(&path, OpenMode::CreateTruncated).map_err(Error::io("create file", &path))?;
    let mut buffer = vec![0; 1 << 20];
    let end = range.end.min(range.start + KEPT_BYTES_MAX);
    let mut position = range.start;
    while position < end {
        let length = buffer.len().min(usize::try_from(end - position).unwrap_or(usize::MAX));
        let read = files::read_up_to(file, &mut buffer[..length], position, false)
            .map_err(Error::io("read segment", &segment.path))?;
        if read == 0 {
            break;
        }
        files::write_all(&*copy, &buffer[..read], position - range.start)
            .map_err(Error::io("write file", &path))?;
        position += read as u64;
    }
    copy.sync().map_err(Error::io("sync file", &path))?;
    files::replace(fs, &quarantine, &format!("{stem}.txt"), report.as_bytes())?;
    Ok(path)
}

/// Moves a whole file to the quarantine of its log.
pub(super) fn keep(
    fs: &dyn FileSystem,
    log_directory: &Path,
    from: &Path,
    name: &str,
) -> Result<PathBuf, Error> {
    let quarantine = make(fs, log_directory)?;
    let to = quarantine.join(name);
    fs.rename(from, &to).map_err(Error::io("move to the quarantine", from))?;
    fs.sync_directory(&quarantine).map_err(Error::io("sync directory", &quarantine))?;
    Ok(to)
}

fn make(fs: &dyn FileSystem, log_directory: &Path) -> Result<PathBuf, Error> {
    let quarantine = log_directory.join(directory::QUARANTINE);
    fs.create_directory(&quarantine).map_err(Error::io("create directory", &quarantine))?;
    fs.sync_directory(log_directory).map_err(Error::io("sync directory", log_directory))?;
    Ok(quarantine)
}
