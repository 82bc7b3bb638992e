//! Whole files: small state files that are replaced at once, and reads and writes that go on until they are done.

use std::io::{self, IoSlice};
use std::path::Path;

use highwater_broker_core::log::directory::TEMPORARY_SUFFIX;
use highwater_broker_core::log::scan::SegmentBytes;

use super::error::Error;
use super::file_system::{File, FileSystem, OpenMode};

/// Bytes of a state file at the most.
const STATE_BYTES_MAX: u64 = 128 << 20;

/// Replaces `directory/name` by `bytes`: when this returns the new content survives a power cut, and until then the old
/// one does.
pub(super) fn replace(fs: &dyn FileSystem, directory: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    write_and_rename(fs, directory, name, bytes)?;
    fs.sync_directory(directory).map_err(Error::io("sync directory", directory))
}

/// Like `replace`, but the new content gets its name durably only with the next sync of the directory.
pub(super) fn write_and_rename(
    fs: &dyn FileSystem,
    directory: &Path,
    name: &str,
    bytes: &[u8],
) -> Result<(), Error> {
    let temporary = directory.join(format!("{name}{TEMPORARY_SUFFIX}"));
    let file =
        fs.open(&temporary, OpenMode::CreateTruncated).map_err(Error::io("create file", &temporary))?;
    write_all(&*file, bytes, 0).map_err(Error::io("write file", &temporary))?;
    file.sync().map_err(Error::io("sync file", &temporary))?;
    let path = directory.join(name);
    fs.rename(&temporary, &path).map_err(Error::io("rename file to", &path))
}

/// A whole small file, or `None` if there is none.
pub(super) fn read(fs: &dyn FileSystem, path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let file = match fs.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open file", path)(error)),
    };
    let length = file.length().map_err(Error::io("measure file", path))?;
    if length > STATE_BYTES_MAX {
        return Err(Error::io("read file", path)(io::ErrorKind::FileTooLarge.into()));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    let read = read_up_to(&*file, &mut bytes, 0, false).map_err(Error::io("read file", path))?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

/// Writes all of `bytes` at `position`.
pub(super) fn write_all(file: &dyn File, bytes: &[u8], position: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write_vectored_at(&[IoSlice::new(&bytes[done..])], position + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills `buffer` from `position` as far as the file goes.
pub(super) fn read_up_to(
    file: &dyn File,
    buffer: &mut [u8],
    position: u64,
    past_cache: bool,
) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        let read = if past_cache {
            file.read_past_cache_at(rest, position + done as u64)
        } else {
            file.read_at(rest, position + done as u64)
        };
        match read {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// The bytes of a file for a scan, through a buffer.
pub(super) struct FileBytes<'a> {
    file: &'a dyn File,
    length: u64,
    past_cache: bool,
    buffer: Vec<u8>,
    start: u64,
    read_ahead: usize,
}

impl<'a> FileBytes<'a> {
    /// The first `length` bytes. `read_ahead`: bytes to read at a time.
    pub(super) const fn new(file: &'a dyn File, length: u64, past_cache: bool, read_ahead: usize) -> Self {
        Self { file, length, past_cache, buffer: Vec::new(), start: 0, read_ahead }
    }
}

impl SegmentBytes for FileBytes<'_> {
    type Error = io::Error;

    fn length(&self) -> u64 {
        self.length
    }

    fn view(&mut self, position: u64, length: usize) -> io::Result<&[u8]> {
        let room = usize::try_from(self.length.saturating_sub(position)).unwrap_or(usize::MAX);
        let length = length.min(room);
        let buffered =
            position >= self.start && position + length as u64 <= self.start + self.buffer.len() as u64;
        if !buffered {
            let wanted = length.max(self.read_ahead.min(room));
            self.buffer.resize(wanted, 0);
            self.start = position;
            let read = read_up_to(self.file, &mut self.buffer, position, self.past_cache)?;
            self.buffer.truncate(read);
        }
        let start = (position - self.start) as usize;
        let end = (start + length).min(self.buffer.len());
        Ok(&self.buffer[start.min(end)..end])
    }
}
