//! What a process sees of the simulated disk: the file system and open files.

use std::any::Any;
use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use highwater_broker::storage::file_system::{
    Entry, File, FileSystem, FlushDone, IoJob, Mapping, OpenMode, Space,
};

use super::content::PAGE;
use super::mapping::SimMapping;
use super::names::Inode;
use super::state::{SimInode, State};
use super::{FaultKind, Flushes, Shared};

/// The disk as one process sees it, until the process dies.
#[derive(Debug)]
pub(super) struct Mount {
    shared: Arc<Shared>,
    incarnation: u64,
}

impl Mount {
    pub(super) const fn new(shared: Arc<Shared>, incarnation: u64) -> Self {
        Self { shared, incarnation }
    }

    fn look<T>(&self, look: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        self.shared.look(self.incarnation, look)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        self.shared.change(self.incarnation, change)
    }

    fn handle(&self, inode: Inode, path: &Path) -> Arc<dyn File> {
        let path = path.to_string_lossy().into_owned();
        let shared = Arc::clone(&self.shared);
        let handle = SimFile { shared, incarnation: self.incarnation, inode, path };
        let mut state = self.shared.state.lock();
        if self.incarnation == state.incarnation {
            state.open += 1;
            state.stats.open_max = state.stats.open_max.max(state.open);
            if let Some(file) = state.files.get_mut(&inode) {
                file.handles += 1;
            }
        }
        drop(state);
        Arc::new(handle)
    }
}

impl FileSystem for Mount {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let mut prefixes: Vec<&Path> = path.ancestors().filter(|path| path.file_name().is_some()).collect();
        prefixes.reverse();
        for prefix in prefixes {
            let found = self.look(|state| {
                Ok(state.names.find(prefix).is_ok_and(|inode| state.names.is_directory(inode)))
            })?;
            if !found {
                self.change(|state| {
                    let (parent, name) = state.names.find_parent(prefix)?;
                    if state.names.child(parent, name).is_some() {
                        return Err(Errno::EXIST.into());
                    }
                    let inode = state.new_inode();
                    state.names.add_directory(parent, name, inode);
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        self.look(|state| {
            let names = state.names.list(state.names.find(directory)?)?;
            let entry = |(name, inode)| Entry { name, is_directory: state.names.is_directory(inode) };
            Ok(names.into_iter().map(entry).collect())
        })
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let inode = match mode {
            OpenMode::Read | OpenMode::ReadWrite => self.look(|state| state.find_file(path))?,
            OpenMode::CreateNew => self.change(|state| create(state, path))?,
            OpenMode::CreateTruncated => self.change(|state| match state.find_file(path) {
                Ok(inode) => {
                    state.set_length(inode, &path.to_string_lossy(), 0)?;
                    Ok(inode)
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => create(state, path),
                Err(error) => Err(error),
            })?,
        };
        Ok(self.handle(inode, path))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.look(|state| match state.names.find(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|state| {
            let (source, target) = (state.names.find_parent(from)?, state.names.find_parent(to)?);
            let inode = state.names.child(source.0, source.1).ok_or(Errno::NOENT)?;
            let replaced = state.names.child(target.0, target.1);
            if let Some(replaced) = replaced {
                match (state.names.is_directory(inode), state.names.is_directory(replaced)) {
                    (false, false) => {}
                    (false, true) => return Err(Errno::ISDIR.into()),
                    (true, false) => return Err(Errno::NOTDIR.into()),
                    (true, true) if state.names.list(replaced)?.is_empty() => {}
                    (true, true) => return Err(Errno::NOTEMPTY.into()),
                }
            }
            state.names.rename(source, target, inode);
            if let Some(replaced) = replaced.filter(|&replaced| replaced != inode) {
                state.reclaim(replaced);
            }
            Ok(())
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.change(|state| {
            let inode = state.find_file(path)?;
            let (parent, name) = state.names.find_parent(path)?;
            state.names.remove(parent, name);
            state.reclaim(inode);
            Ok(())
        })
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        for entry in self.list(path)? {
            let child = path.join(&entry.name);
            if entry.is_directory {
                self.remove_directory(&child)?;
            } else {
                self.remove_file(&child)?;
            }
        }
        self.change(|state| {
            let (parent, name) = state.names.find_parent(path)?;
            state.names.child(parent, name).ok_or(Errno::NOENT)?;
            state.names.remove(parent, name);
            Ok(())
        })
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.change(|state| {
            let inode = state.names.find(directory)?;
            if !state.names.is_directory(inode) {
                return Err(Errno::NOTDIR.into());
            }
            if state.fault(FaultKind::DirectorySyncFails, &directory.to_string_lossy()) {
                return Err(Errno::IO.into());
            }
            state.stats.directory_syncs += 1;
            state.names.sync(inode);
            Ok(())
        })
    }

    fn space(&self, directory: &Path) -> io::Result<Space> {
        self.look(|state| {
            state.names.find(directory)?;
            let total = state.capacity.map_or(1 << 40, |pages| pages * PAGE);
            Ok(Space { total, available: total.saturating_sub(state.used * PAGE) })
        })
    }

    fn boot_id(&self) -> io::Result<[u8; 16]> {
        self.look(|state| Ok(state.boot))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let inode = match self.look(|state| state.find_file(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.change(|state| create(state, path))?
            }
            found => found?,
        };
        let number = self.look(|state| {
            if state.locks.contains_key(&inode) {
                return Err(Errno::WOULDBLOCK.into());
            }
            let number = state.new_number();
            state.locks.insert(inode, number);
            Ok(number)
        })?;
        Ok(Box::new(SimLock { shared: Arc::clone(&self.shared), inode, number }))
    }

    fn flush_round(&self, files: Vec<Arc<dyn File>>, done: FlushDone) {
        let named = |file: &Arc<dyn File>| {
            let file: &dyn Any = &**file;
            file.downcast_ref::<SimFile>().map(|file| (file.inode, file.path.clone())).unwrap_or_default()
        };
        let named = files.iter().map(named).collect();
        let mut state = self.shared.state.lock();
        state.count_operation();
        let number = state.begin_round(named, done, self.incarnation);
        let (flushes, random) = (state.flushes, state.random.next_u64());
        let dead = state.alive(self.incarnation).is_err();
        drop(state);
        // A file that is closed during a round is flushed all the same.
        drop(files);
        match flushes {
            _ if dead => self.shared.finish_round(number),
            Flushes::Manual => {}
            Flushes::Inline => self.shared.finish_round(number),
            Flushes::Threads { delay_max } => self.shared.finish_round_later(number, delay_max, random),
        }
    }

    fn spawn_io(&self, job: IoJob) {
        let threads = matches!(self.shared.state.lock().flushes, Flushes::Threads { .. });
        if threads { self.shared.spawn(job) } else { job() }
    }
}

fn create(state: &mut State, path: &Path) -> io::Result<Inode> {
    let (parent, name) = state.names.find_parent(path)?;
    if state.names.child(parent, name).is_some() {
        return Err(Errno::EXIST.into());
    }
    if state.free_pages() == 0 {
        return Err(Errno::NOSPC.into());
    }
    let inode = state.new_inode();
    state.files.insert(inode, SimInode::default());
    state.names.add(parent, name, inode);
    Ok(inode)
}

struct SimLock {
    shared: Arc<Shared>,
    inode: Inode,
    number: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if state.locks.get(&self.inode) == Some(&self.number) {
            state.locks.remove(&self.inode);
        }
    }
}

struct SimFile {
    shared: Arc<Shared>,
    incarnation: u64,
    inode: Inode,
    path: String,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile")
            .field("path", &self.path)
            .field("inode", &self.inode)
            .finish_non_exhaustive()
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if self.incarnation == state.incarnation {
            state.open -= 1;
            if let Some(file) = state.files.get_mut(&self.inode) {
                file.handles -= 1;
            }
            state.reclaim(self.inode);
        }
    }
}

impl File for SimFile {
    fn write_vectored_at(&self, buffers: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        let mut bytes = Vec::with_capacity(buffers.iter().map(|buffer| buffer.len()).sum());
        buffers.iter().for_each(|buffer| bytes.extend_from_slice(buffer));
        self.shared.change(self.incarnation, |state| state.write(self.inode, &self.path, &bytes, position))
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.shared.look(self.incarnation, |state| {
            if state.fault(FaultKind::ReadFails, &self.path) {
                return Err(Errno::IO.into());
            }
            Ok(state.file(self.inode)?.data.cache().read(buffer, position))
        })
    }

    fn read_past_cache_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.shared.look(self.incarnation, |state| {
            if state.fault(FaultKind::ReadFails, &self.path) {
                return Err(Errno::IO.into());
            }
            let data = &mut state.file_mut(self.inode)?.data;
            data.write_back_range(position..position + buffer.len() as u64);
            let count = (buffer.len() as u64).min(data.length().saturating_sub(position)) as usize;
            buffer[..count].fill(0);
            data.disk().read_blocks(&mut buffer[..count], position);
            Ok(count)
        })
    }

    fn length(&self) -> io::Result<u64> {
        self.shared.look(self.incarnation, |state| Ok(state.file(self.inode)?.data.length()))
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.shared.change(self.incarnation, |state| state.set_length(self.inode, &self.path, length))
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.shared.change(self.incarnation, |state| state.allocate(self.inode, &self.path, range))
    }

    fn sync(&self) -> io::Result<()> {
        self.shared.change(self.incarnation, |state| state.sync(self.inode, &self.path))
    }

    fn map(&self, length: u64) -> io::Result<Arc<dyn Mapping>> {
        self.shared.look(self.incarnation, |state| {
            state.file_mut(self.inode)?.mappings += 1;
            Ok(())
        })?;
        let shared = Arc::clone(&self.shared);
        Ok(Arc::new(SimMapping::new(shared, self.incarnation, self.inode, self.path.clone(), length)))
    }
}
