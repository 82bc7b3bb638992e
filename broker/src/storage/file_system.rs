//! The file system as storage sees it: a small trait with a real twin and, in the test workspace, a simulated one that
//! loses, tears and reorders what was not synced.

use std::any::Any;
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    ReadWrite,
    /// A new file, for reading and writing; an existing one is an error.
    CreateNew,
    /// For reading and writing; emptied if it exists. Only for temporary files: never for one that may be mapped.
    CreateTruncated,
}

/// Something in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the directory.
    pub name: String,
    /// Whether it is a directory itself.
    pub is_directory: bool,
}

/// Room on the file system of a directory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// In all.
    pub total: u64,
    /// Left for this process.
    pub available: u64,
}

/// What became of each file of a flush round, in the order in which they were given.
///
/// An `Err` means that bytes written before the round began may be gone although they can still be read: the file must
/// not be flushed again, but verified past the page cache.
pub type RoundResult = Vec<io::Result<()>>;

/// Called exactly once, on any thread, when a flush round is over.
pub type FlushDone = Box<dyn FnOnce(RoundResult) + Send>;

/// Work that may block on the disk.
pub type IoJob = Box<dyn FnOnce() + Send>;

/// Files and directories.
///
/// Durability: nothing is durable when a call returns, except what `sync_*` and a finished `flush_round` cover. A
/// created, renamed or removed name survives a power cut once `sync_directory` of its directory has returned. All calls
/// but `flush_round` and `spawn_io` may block on the disk, so they are for I/O threads and for start-up; positional
/// writes of files are the one exception that the design makes.
pub trait FileSystem: Debug + Send + Sync + 'static {
    /// Makes a directory and its missing parents; an existing one is no error.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// What a directory holds, by name.
    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>>;
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>>;
    /// Whether there is a file or directory of this name.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Gives a file or directory another name, replacing a file of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Mappings and open files keep its bytes.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and everything in it.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
    /// Makes everything durable that was written below `directory`, names included, if that costs no more than `syncs`
    /// syncs of files. False: nothing was done.
    fn sync_everything(&self, directory: &Path, syncs: usize) -> io::Result<bool> {
        let _ = (directory, syncs);
        Ok(false)
    }
    /// Room left where `directory` is.
    fn space(&self, directory: &Path) -> io::Result<Space>;
    /// Changes when the kernel was started anew: while it stays the same, no power was cut.
    fn boot_id(&self) -> io::Result<[u8; 16]>;
    /// Locks a file against other processes, for as long as the guard lives. An error when another one has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
    /// Flushes the data of all `files` that was written before this call, and their lengths, and calls `done`. Never
    /// blocks; rounds may overlap.
    fn flush_round(&self, files: Vec<Arc<dyn File>>, done: FlushDone);
    /// Runs `job` where it may block. Never blocks itself.
    fn spawn_io(&self, job: IoJob);
}

/// An open file. Positions are absolute; there is no cursor.
pub trait File: Any + Debug + Send + Sync {
    /// Writes from `buffers` at `position`, and returns how many bytes: maybe fewer than given.
    fn write_vectored_at(&self, buffers: &[IoSlice<'_>], position: u64) -> io::Result<usize>;
    /// Reads into `buffer` from `position`, and returns how many bytes: 0 at the end of the file.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;
    /// Like `read_at` but from the disk itself, past the page cache, whatever it takes.
    fn read_past_cache_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;
    /// Bytes in the file, reserved ones included.
    fn length(&self) -> io::Result<u64>;
    /// Cuts or extends the file. Never on a file that is mapped.
    fn set_length(&self, length: u64) -> io::Result<()>;
    /// Reserves disk blocks for `range` and extends the file's length over it; the new bytes read as zeroes.
    fn allocate(&self, range: Range<u64>) -> io::Result<()>;
    /// Makes all data written so far, and the length, durable.
    fn sync(&self) -> io::Result<()>;
    /// Has the kernel begin to write the bytes of `range` to the disk, so that a later `sync` has less to do. Says nothing
    /// about what is durable, and nothing of errors, which a later `sync` tells of. May wait for the disk.
    fn begin_write_back(&self, range: Range<u64>) {
        let _ = range;
    }
    /// Maps the first `length` bytes for reading. The file may be shorter now and grow later; only bytes that are in the
    /// file and will never be written again may be read through the mapping.
    fn map(&self, length: u64) -> io::Result<Arc<dyn Mapping>>;
}

/// Bytes of a file in memory. They are released with the last slice.
pub trait Mapping: Debug + Send + Sync + 'static {
    /// The bytes in `range`, which must be in the file and immutable from here on. Touches nothing.
    fn slice(self: Arc<Self>, range: Range<u64>) -> Bytes;
    /// Whether all of `range` is in memory, so that touching it does not wait for the disk.
    fn is_resident(&self, range: Range<u64>) -> bool;
    /// Brings `range` into memory. An error where a touch would raise a signal.
    fn populate(&self, range: Range<u64>) -> io::Result<()>;
}
