//! A disk that loses, tears and reorders what was not synced, and fails when told to.
//!
//! One `SimDisk` is one machine. Processes use it through [`SimDisk::mount`]; the test holds the `SimDisk` itself, cuts
//! the power, breaks things and looks. What survives a cut is as little as the interfaces promise: `File::sync` and flush
//! rounds cover bytes and length, `sync_directory` covers names, and neither covers the other.

mod content;
mod file_data;
mod handles;
mod mapping;
mod names;
mod state;
#[cfg(test)]
mod tests;
mod threads;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;

use highwater_broker::storage::file_system::{FileSystem, IoJob};

use handles::Mount;
use state::State;
use threads::Threads;

/// Who completes flush rounds, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushes {
    /// The test, by [`SimDisk::complete_round`]. I/O jobs run at once on the calling thread.
    Manual,
    /// At once on the calling thread. I/O jobs too.
    Inline,
    /// A thread, up to `delay_max` later. I/O jobs run on another one.
    Threads {
        /// The longest that a round takes.
        delay_max: Duration,
    },
}

/// What goes wrong by chance, in percent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chaos {
    /// Writes that write less than they were given.
    pub short_write_percent: u32,
    /// Writes after which the kernel writes some dirty sectors of the file back by itself.
    pub write_back_percent: u32,
    /// Looks at the residency of mapped bytes that find them gone.
    pub not_resident_percent: u32,
}

/// What can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// A write fails with an I/O error and writes nothing.
    WriteFails,
    /// A write writes less than it was given.
    WriteShort,
    /// A sync or the flush of a file in a round fails, as Linux does it: the dirty pages are clean afterwards and stay
    /// in the cache, and the disk does not have them. The next one succeeds.
    SyncFails,
    /// A sync of a directory fails and makes nothing durable.
    DirectorySyncFails,
    /// A read or populate fails with an I/O error.
    ReadFails,
    /// Reserving blocks fails although there is space.
    NoSpace,
}

/// A planned fault: of the calls that concern a path which contains `path_part`, lets `skip` pass and fails `count`.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What fails.
    pub kind: FaultKind,
    /// Part of the path under which the file was opened; empty for all.
    pub path_part: String,
    /// How many calls pass first.
    pub skip: u32,
    /// How many calls fail then.
    pub count: u32,
}

/// What has been done to the disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
    /// Calls that wrote something.
    pub writes: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Syncs of single files.
    pub syncs: u64,
    /// Syncs of directories.
    pub directory_syncs: u64,
    /// Flush rounds begun.
    pub rounds: u64,
    /// Planned faults that have hit.
    pub faults: u64,
    /// The most handles that were open at the same time.
    pub open_max: u64,
}

/// One machine's disk, for the test that breaks it.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    threads: OnceLock<Threads>,
    /// To itself, for the threads: they must not keep it alive.
    this: Weak<Self>,
}

impl SimDisk {
    /// An empty disk. Everything that it does by chance depends on `seed` and the order of the calls.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::of(State::new(seed))
    }

    /// An independent copy of the machine as it is now, page cache included, without its processes.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self::of(self.shared.state.lock().fork())
    }

    /// The file system for a process that starts now. It fails from the next crash or power cut on.
    #[must_use]
    pub fn mount(&self) -> Arc<dyn FileSystem> {
        let incarnation = self.shared.state.lock().incarnation;
        Arc::new(Mount::new(Arc::clone(&self.shared), incarnation))
    }

    /// All processes are killed. The page cache stays, and the boot id.
    pub fn process_crash(&self) {
        let rounds = self.shared.state.lock().kill_processes();
        drop(rounds);
    }

    /// The power is cut and comes back: all processes are dead, of what was not synced a part chosen by `seed` is
    /// there, and the kernel is a new one.
    pub fn power_cut(&self, seed: u64) {
        let rounds = self.shared.state.lock().power_cut(seed);
        drop(rounds);
    }

    /// Lets the power go off during the `operations`th change from now on: it happens, or in part, or not, and it and
    /// everything after it fails until [`SimDisk::power_cut`] or [`SimDisk::process_crash`] says what that was.
    pub fn cut_after(&self, operations: u64) {
        let mut state = self.shared.state.lock();
        state.cut_at = Some(state.operations + operations.max(1));
    }

    /// Takes [`SimDisk::cut_after`] back if it has not happened.
    pub fn cut_never(&self) {
        self.shared.state.lock().cut_at = None;
    }

    /// Whether operations still succeed.
    #[must_use]
    pub fn has_power(&self) -> bool {
        self.shared.state.lock().power
    }

    /// How many changes there were.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.shared.state.lock().operations
    }

    /// Limits the space, in bytes, now and until changed; `None` for no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.shared.state.lock().capacity = bytes.map(|bytes| bytes / content::PAGE);
    }

    /// Space in use, in bytes.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.shared.state.lock().used * content::PAGE
    }

    /// Plans a fault.
    pub fn plan(&self, fault: Fault) {
        self.shared.state.lock().faults.push(fault);
    }

    /// Plans that the next `count` calls of a kind fail that concern a path which contains `path_part`.
    pub fn fail(&self, kind: FaultKind, path_part: &str, count: u32) {
        self.plan(Fault { kind, path_part: path_part.to_owned(), skip: 0, count });
    }

    /// Forgets all planned faults.
    pub fn heal(&self) {
        self.shared.state.lock().faults.clear();
    }

    /// Sets what goes wrong by chance.
    pub fn set_chaos(&self, chaos: Chaos) {
        self.shared.state.lock().chaos = chaos;
    }

    /// Sets who completes flush rounds that begin from now on.
    pub fn set_flushes(&self, flushes: Flushes) {
        self.shared.state.lock().flushes = flushes;
    }

    /// How many flush rounds wait for [`SimDisk::complete_round`].
    #[must_use]
    pub fn rounds_pending(&self) -> usize {
        self.shared.state.lock().rounds.len()
    }

    /// Completes a pending round, in whatever order; 0 is the oldest. False if there is none.
    pub fn complete_round(&self, index: usize) -> bool {
        let number = self.shared.state.lock().rounds.get(index).map(|round| round.number);
        number.inspect(|&number| self.shared.finish_round(number)).is_some()
    }

    /// Makes everything durable.
    pub fn sync_all(&self) {
        let mut state = self.shared.state.lock();
        state.names.sync_all();
        for file in state.files.values_mut() {
            file.data.sync();
        }
    }

    /// The page cache forgets what is clean, as under memory pressure: what a failed sync has lost is read as the disk
    /// has it.
    pub fn drop_caches(&self) {
        for file in self.shared.state.lock().files.values_mut() {
            file.data.drop_clean_pages();
        }
    }

    /// Flips a bit on the disk and, if `in_cache`, for readers of the page cache too.
    pub fn flip_bit(&self, path: &Path, position: u64, bit: u8, in_cache: bool) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let inode = state.find_file(path)?;
        state.file_mut(inode)?.data.flip(position, bit, in_cache);
        Ok(())
    }

    /// All files and their lengths, by path.
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let state = self.shared.state.lock();
        let mut found = Vec::new();
        let mut open = vec![(PathBuf::from("/"), names::ROOT)];
        while let Some((path, inode)) = open.pop() {
            for (name, child) in state.names.list(inode).unwrap_or_default() {
                let path = path.join(name);
                match state.files.get(&child) {
                    Some(file) => found.push((path, file.data.length())),
                    None => open.push((path, child)),
                }
            }
        }
        found.sort();
        found
    }

    /// A file's bytes as processes see them.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.shared.state.lock();
        let data = &state.file(state.find_file(path)?)?.data;
        let mut bytes = vec![0; data.length() as usize];
        data.cache().read(&mut bytes, 0);
        Ok(bytes)
    }

    /// A file's bytes as the disk has them.
    pub fn read_disk(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.shared.state.lock();
        let disk = state.file(state.find_file(path)?)?.data.disk();
        let mut bytes = vec![0; disk.length() as usize];
        disk.read(&mut bytes, 0);
        Ok(bytes)
    }

    /// Breaches of the rules that a real machine would answer with wrong bytes or a signal: bytes written or cut while a
    /// slice of a mapping shows them, slices past the end of a file.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.shared.state.lock().violations.clone()
    }

    /// What has been done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.state.lock().stats
    }

    fn of(state: State) -> Self {
        let make = |this: &Weak<Shared>| Shared {
            state: Mutex::new(state),
            threads: OnceLock::new(),
            this: Weak::clone(this),
        };
        Self { shared: Arc::new_cyclic(make) }
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").finish_non_exhaustive()
    }
}

impl Shared {
    /// Runs something that changes nothing durable.
    fn look<T>(&self, incarnation: u64, look: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        state.alive(incarnation)?;
        look(&mut state)
    }

    /// Runs a change, which may be the one at which the power goes off.
    fn change<T>(&self, incarnation: u64, change: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        state.alive(incarnation)?;
        state.count_operation();
        state.alive(incarnation)?;
        let result = change(&mut state);
        if state.dying {
            state.dying = false;
            state.power = false;
            return Err(Errno::IO.into());
        }
        result
    }

    /// Calls the completion of a round, if it is still there.
    fn finish_round(&self, number: u64) {
        let mut state = self.state.lock();
        let Some(index) = state.rounds.iter().position(|round| round.number == number) else { return };
        state.count_operation();
        let round = state.rounds.remove(index);
        let (done, results) = state.finish_round(round);
        let dying = std::mem::take(&mut state.dying);
        if dying {
            state.power = false;
        }
        drop(state);
        if dying {
            done(results.iter().map(|_| Err(Errno::IO.into())).collect());
        } else {
            done(results);
        }
    }

    fn finish_round_later(&self, number: u64, delay_max: Duration, random: u64) {
        let micros = u64::try_from(delay_max.as_micros()).unwrap_or(u64::MAX);
        let delay = Duration::from_micros(if micros == 0 { 0 } else { random % micros });
        let this = Weak::clone(&self.this);
        self.threads.get_or_init(Threads::start).flush(
            delay,
            Box::new(move || {
                if let Some(shared) = this.upgrade() {
                    shared.finish_round(number);
                }
            }),
        );
    }

    fn spawn(&self, job: IoJob) {
        self.threads.get_or_init(Threads::start).io(job);
    }
}

impl State {
    /// Counts a change, and decides whether the power goes off before it or during it.
    fn count_operation(&mut self) {
        self.operations += 1;
        if self.power && self.cut_at.is_some_and(|at| at <= self.operations) {
            self.cut_at = None;
            if self.random.percent(40) {
                self.power = false;
            } else {
                self.dying = true;
            }
        }
    }
}
