//! The file system of the machine (Linux 5.14 or later).

mod file;
mod mapping;
mod past_cache;
mod pieces;
mod rounds;
mod threads;
mod write_back;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::file_system::{Entry, File, FileSystem, FlushDone, IoJob, OpenMode, Space};
use file::RealFile;
use rounds::Rounds;
use threads::Threads;

/// Files of the machine. Its threads start when they are needed and end with it.
#[derive(Debug)]
pub struct RealFileSystem {
    rounds: Arc<Rounds>,
    io: Threads,
    device: Mutex<Device>,
}

/// Whether all files are on one device, so that `syncfs` covers them.
#[derive(Debug)]
enum Device {
    Unknown,
    One(u64),
    Several,
}

/// Threads for reads that wait for the disk: as many as an ordinary disk has use for, on any number of cores.
const IO_THREADS: usize = 8;

/// How often a lock is tried, and how long to wait in between: the process that had it may be just about to end.
const LOCK_ATTEMPTS: usize = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

impl Default for RealFileSystem {
    fn default() -> Self {
        Self {
            rounds: Arc::new(Rounds::default()),
            io: Threads::new("highwater-io", IO_THREADS),
            device: Mutex::new(Device::Unknown),
        }
    }
}

impl RealFileSystem {
    /// Remembers the device of the first file, before anything is written, and notices another one.
    fn note_device(&self, path: &Path, file: &fs::File) -> io::Result<()> {
        let device = file.metadata()?.dev();
        let mut known = self.device.lock();
        match *known {
            Device::Unknown => {
                // An anchor that is opened before anything is written sees every later write error of the file system.
                self.rounds.set_anchor(open_directory(path.parent().unwrap_or(Path::new(".")))?);
                *known = Device::One(device);
            }
            Device::One(one) if one != device => {
                self.rounds.forbid_syncfs();
                *known = Device::Several;
            }
            _ => {}
        }
        Ok(())
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(fs::File::open(path)?.into())
}

impl FileSystem for RealFileSystem {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            // A name that is not text is none of ours.
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(Entry { name, is_directory: entry.file_type()?.is_dir() });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => &mut options,
            OpenMode::ReadWrite => options.write(true),
            OpenMode::CreateNew => options.write(true).create_new(true),
            OpenMode::CreateTruncated => options.write(true).create(true).truncate(true),
        };
        let file = options.open(path)?;
        self.note_device(path, &file)?;
        Ok(Arc::new(RealFile::new(file)))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        fs::File::open(directory)?.sync_all()
    }

    fn sync_everything(&self, directory: &Path, syncs: usize) -> io::Result<bool> {
        if !rounds::is_syncfs_worth(syncs) {
            return Ok(false);
        }
        rustix::fs::syncfs(open_directory(directory)?)?;
        Ok(true)
    }

    fn space(&self, directory: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(directory)?;
        Ok(Space {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn boot_id(&self) -> io::Result<[u8; 16]> {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        let number = u128::from_str_radix(&digits, 16).map_err(io::Error::other)?;
        Ok(number.to_be_bytes())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut patience = LOCK_ATTEMPTS;
        loop {
            match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Box::new(file)),
                Err(Errno::AGAIN) if patience > 0 => {
                    patience -= 1;
                    std::thread::park_timeout(LOCK_PAUSE);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn flush_round(&self, files: Vec<Arc<dyn File>>, done: FlushDone) {
        Rounds::start(&self.rounds, files, done);
    }

    fn spawn_io(&self, job: IoJob) {
        self.io.spawn(job);
    }
}

/// Raises this process's limit of open files as far as it may go without privileges, and returns it. For the start of a
/// program: the limit belongs to the process, not to a broker.
#[must_use]
pub fn raise_open_files_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    now.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;

    #[test]
    fn mapping_sees_positional_writes_and_populates() {
        let directory = tempfile::tempdir().unwrap();
        let system = RealFileSystem::default();
        let file = system.open(&directory.path().join("a"), OpenMode::CreateNew).unwrap();
        file.allocate(0..65536).unwrap();
        assert_eq!(file.length().unwrap(), 65536);
        let mapping = file.map(1 << 20).unwrap();
        let parts = [IoSlice::new(b"hello "), IoSlice::new(b"world")];
        assert_eq!(file.write_vectored_at(&parts, 4090).unwrap(), 11);
        mapping.populate(4090..4101).unwrap();
        assert!(mapping.is_resident(4090..4101));
        assert_eq!(&Arc::clone(&mapping).slice(4090..4101)[..], b"hello world");
        // What lies behind the end of the file is an error, not a signal.
        assert!(mapping.populate(65536..65537).is_err());
        let mut buffer = [0; 11];
        file.sync().unwrap();
        assert_eq!(file.read_past_cache_at(&mut buffer, 4090).unwrap(), 11);
        assert_eq!(&buffer, b"hello world");
        assert_eq!(file.read_past_cache_at(&mut buffer, 65536).unwrap(), 0);
    }

    #[test]
    fn a_directory_is_locked_once() {
        let directory = tempfile::tempdir().unwrap();
        let system = RealFileSystem::default();
        let path = directory.path().join("lock");
        let guard = system.lock(&path).unwrap();
        assert_eq!(system.lock(&path).map(|_| ()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(guard);
        system.lock(&path).map(|_| ()).unwrap();
    }

    #[test]
    fn rounds_of_any_size_complete_once() {
        let directory = tempfile::tempdir().unwrap();
        let system = RealFileSystem::default();
        for count in [0, 1, 5, 40] {
            let files: Vec<_> = (0..count)
                .map(|number| {
                    let path = directory.path().join(format!("{count}-{number}"));
                    let file = system.open(&path, OpenMode::CreateNew).unwrap();
                    file.write_vectored_at(&[IoSlice::new(b"x")], 0).unwrap();
                    file
                })
                .collect();
            let (sender, receiver) = std::sync::mpsc::sync_channel(1);
            system.flush_round(files, Box::new(move |results| sender.send(results).unwrap()));
            let results = receiver.recv_timeout(std::time::Duration::from_secs(30)).unwrap();
            assert_eq!(results.len(), count);
            assert!(results.iter().all(Result::is_ok));
        }
    }
}
