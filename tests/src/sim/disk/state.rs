//! Everything that the simulated machine knows, behind one lock.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use rustix::io::Errno;

use highwater_broker::storage::file_system::{FlushDone, RoundResult};

use super::content::PAGE;
use super::file_data::{FileData, Snapshot};
use super::names::{Inode, Names};
use super::{Chaos, Fault, FaultKind, Flushes, Stats};
use crate::sim::random::Random;

/// A file and who uses it.
#[derive(Debug, Clone, Default)]
pub(super) struct SimInode {
    pub(super) data: FileData,
    pub(super) handles: u32,
    pub(super) mappings: u32,
    /// Ranges that living slices of mappings show.
    pub(super) frozen: BTreeMap<u64, Range<u64>>,
}

/// A flush round that has begun.
pub(super) struct Round {
    pub(super) number: u64,
    pub(super) incarnation: u64,
    files: Vec<RoundFile>,
    done: FlushDone,
}

struct RoundFile {
    inode: Inode,
    path: String,
    snapshot: Snapshot,
}

pub(super) struct State {
    pub(super) names: Names,
    pub(super) files: BTreeMap<Inode, SimInode>,
    pub(super) next_inode: Inode,
    pub(super) random: Random,
    pub(super) boot: [u8; 16],
    /// Raised whenever the processes die: handles of older ones are dead.
    pub(super) incarnation: u64,
    pub(super) power: bool,
    pub(super) operations: u64,
    pub(super) cut_at: Option<u64>,
    /// Whether the power goes off during the operation that is under way.
    pub(super) dying: bool,
    /// In pages.
    pub(super) capacity: Option<u64>,
    pub(super) used: u64,
    pub(super) faults: Vec<Fault>,
    pub(super) chaos: Chaos,
    pub(super) flushes: Flushes,
    pub(super) locks: BTreeMap<Inode, u64>,
    pub(super) rounds: Vec<Round>,
    pub(super) next_number: u64,
    /// Handles that are open.
    pub(super) open: u64,
    pub(super) violations: Vec<String>,
    pub(super) stats: Stats,
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self {
            names: Names::new(),
            files: BTreeMap::new(),
            next_inode: 1,
            boot: boot_id(&mut random),
            random,
            incarnation: 1,
            power: true,
            operations: 0,
            cut_at: None,
            dying: false,
            capacity: None,
            used: 0,
            faults: Vec::new(),
            chaos: Chaos::default(),
            flushes: Flushes::Inline,
            locks: BTreeMap::new(),
            rounds: Vec::new(),
            next_number: 0,
            open: 0,
            violations: Vec::new(),
            stats: Stats::default(),
        }
    }

    /// The same machine once more, without the processes that use this one.
    pub(super) fn fork(&self) -> Self {
        let mut files = self.files.clone();
        for file in files.values_mut() {
            file.handles = 0;
            file.mappings = 0;
            file.frozen.clear();
        }
        Self {
            names: self.names.clone(),
            files,
            next_inode: self.next_inode,
            random: self.random.clone(),
            boot: self.boot,
            incarnation: self.incarnation,
            power: true,
            operations: self.operations,
            cut_at: None,
            dying: false,
            capacity: self.capacity,
            used: self.used,
            faults: Vec::new(),
            chaos: self.chaos,
            flushes: self.flushes,
            locks: BTreeMap::new(),
            rounds: Vec::new(),
            next_number: self.next_number,
            open: 0,
            violations: Vec::new(),
            stats: self.stats,
        }
    }

    pub(super) fn alive(&self, incarnation: u64) -> io::Result<()> {
        if self.power && incarnation == self.incarnation { Ok(()) } else { Err(Errno::IO.into()) }
    }

    pub(super) fn file(&self, inode: Inode) -> io::Result<&SimInode> {
        self.files.get(&inode).ok_or_else(|| Errno::STALE.into())
    }

    pub(super) fn file_mut(&mut self, inode: Inode) -> io::Result<&mut SimInode> {
        self.files.get_mut(&inode).ok_or_else(|| Errno::STALE.into())
    }

    pub(super) fn find_file(&self, path: &Path) -> io::Result<Inode> {
        let inode = self.names.find(path)?;
        if self.names.is_directory(inode) { Err(Errno::ISDIR.into()) } else { Ok(inode) }
    }

    pub(super) fn new_inode(&mut self) -> Inode {
        self.next_inode += 1;
        self.next_inode - 1
    }

    pub(super) fn new_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Whether a planned fault of this kind hits this path now.
    pub(super) fn fault(&mut self, kind: FaultKind, path: &str) -> bool {
        for fault in &mut self.faults {
            if fault.kind != kind || fault.count == 0 || !path.contains(&fault.path_part) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            fault.count -= 1;
            self.stats.faults += 1;
            return true;
        }
        false
    }

    pub(super) fn free_pages(&self) -> u64 {
        self.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used))
    }

    /// Writes what fits and what the faults leave of it.
    pub(super) fn write(
        &mut self,
        inode: Inode,
        path: &str,
        bytes: &[u8],
        position: u64,
    ) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.fault(FaultKind::WriteFails, path) {
            return Err(Errno::IO.into());
        }
        let mut count = self.fitting(inode, bytes.len(), position)?;
        let short =
            self.fault(FaultKind::WriteShort, path) || self.random.percent(self.chaos.short_write_percent);
        if short && count > 1 {
            count = 1 + self.random.index(count - 1);
        }
        if self.dying {
            // The kernel looks between two pages whether the process is killed.
            let torn = position + self.random.below(count as u64 + 1);
            let whole_pages = torn / PAGE * PAGE;
            count =
                if self.random.percent(30) { count } else { whole_pages.saturating_sub(position) as usize };
            if count == 0 {
                return Err(Errno::IO.into());
            }
        }
        let range = position..position + count as u64;
        let file = self.file_mut(inode)?;
        let overwritten =
            file.frozen.values().find(|frozen| frozen.start < range.end && range.start < frozen.end);
        if let Some(frozen) = overwritten {
            let violation = format!("{path}: bytes {range:?} are written while a slice shows {frozen:?}");
            self.violations.push(violation);
        }
        let file = self.file_mut(inode)?;
        let missing = file.data.missing(range);
        file.data.write(&bytes[..count], position);
        self.used += missing;
        self.stats.writes += 1;
        self.stats.bytes_written += count as u64;
        if self.random.percent(self.chaos.write_back_percent) {
            let mut random = self.random.split();
            self.file_mut(inode)?.data.write_back_some(&mut random);
        }
        Ok(count)
    }

    /// How many of `length` bytes at `position` have space; an error if none.
    fn fitting(&self, inode: Inode, length: usize, position: u64) -> io::Result<usize> {
        let data = &self.file(inode)?.data;
        let end = position + length as u64;
        let free = self.free_pages();
        if data.missing(position..end) <= free {
            return Ok(length);
        }
        let mut fitting = position;
        while fitting < end {
            let next = (fitting / PAGE + 1) * PAGE;
            if data.missing(position..next.min(end)) > free {
                break;
            }
            fitting = next;
        }
        if fitting == position { Err(Errno::NOSPC.into()) } else { Ok((fitting - position) as usize) }
    }

    pub(super) fn allocate(&mut self, inode: Inode, path: &str, range: Range<u64>) -> io::Result<()> {
        let missing = self.file(inode)?.data.missing(range.clone());
        if missing > self.free_pages() || self.fault(FaultKind::NoSpace, path) {
            return Err(Errno::NOSPC.into());
        }
        self.file_mut(inode)?.data.allocate(range);
        self.used += missing;
        Ok(())
    }

    pub(super) fn set_length(&mut self, inode: Inode, path: &str, length: u64) -> io::Result<()> {
        let file = self.file_mut(inode)?;
        let shorter = length < file.data.length();
        if shorter && (file.mappings > 0 || !file.frozen.is_empty()) {
            self.violations.push(format!("{path}: cut to {length} while it is mapped"));
        }
        let file = self.file_mut(inode)?;
        let before = file.data.allocated();
        file.data.set_length(length);
        let freed = before - file.data.allocated();
        self.used -= freed;
        Ok(())
    }

    pub(super) fn sync(&mut self, inode: Inode, path: &str) -> io::Result<()> {
        self.stats.syncs += 1;
        if self.fault(FaultKind::SyncFails, path) {
            let mut random = self.random.split();
            self.file_mut(inode)?.data.sync_failing(&mut random);
            return Err(Errno::IO.into());
        }
        self.file_mut(inode)?.data.sync();
        Ok(())
    }

    /// A file without name, handle and mapping gives its space back. The disk may still have its name.
    pub(super) fn reclaim(&mut self, inode: Inode) {
        let Some(file) = self.files.get(&inode) else { return };
        if file.handles == 0 && file.mappings == 0 && file.frozen.is_empty() && !self.names.is_named(inode) {
            self.used = self.used.saturating_sub(file.data.allocated());
        }
    }

    pub(super) fn begin_round(
        &mut self,
        files: Vec<(Inode, String)>,
        done: FlushDone,
        incarnation: u64,
    ) -> u64 {
        let with_snapshot = |(inode, path)| {
            let snapshot = self.files.get(&inode).map(|file: &SimInode| file.data.snapshot());
            RoundFile { inode, path, snapshot: snapshot.unwrap_or_default() }
        };
        let files = files.into_iter().map(with_snapshot).collect();
        self.stats.rounds += 1;
        let number = self.new_number();
        self.rounds.push(Round { number, incarnation, files, done });
        number
    }

    /// What became of the files of a round. The caller calls the completion, without the lock.
    pub(super) fn finish_round(&mut self, round: Round) -> (FlushDone, RoundResult) {
        let mut results = Vec::with_capacity(round.files.len());
        for file in &round.files {
            let alive = self.alive(round.incarnation);
            let failing = alive.is_ok() && self.fault(FaultKind::SyncFails, &file.path);
            let mut random = self.random.split();
            results.push(match (alive, self.files.get_mut(&file.inode)) {
                (Err(error), _) => Err(error),
                (_, None) => Err(Errno::BADF.into()),
                (Ok(()), Some(inode)) if failing => {
                    inode.data.snapshot_failed(&file.snapshot, &mut random);
                    Err(Errno::IO.into())
                }
                (Ok(()), Some(inode)) => {
                    inode.data.snapshot_flushed(&file.snapshot);
                    Ok(())
                }
            });
        }
        (round.done, results)
    }

    /// All processes die. What they had going on is returned, to be dropped without the lock.
    pub(super) fn kill_processes(&mut self) -> Vec<Round> {
        self.incarnation += 1;
        self.power = true;
        self.cut_at = None;
        self.dying = false;
        self.locks.clear();
        self.open = 0;
        for file in self.files.values_mut() {
            file.handles = 0;
            file.mappings = 0;
            file.frozen.clear();
        }
        self.recount();
        std::mem::take(&mut self.rounds)
    }

    pub(super) fn power_cut(&mut self, seed: u64) -> Vec<Round> {
        let rounds = self.kill_processes();
        let mut random = Random::new(seed);
        self.names.power_cut(&mut random);
        for file in self.files.values_mut() {
            let mut random = random.split();
            file.data.power_cut(&mut random);
        }
        self.boot = boot_id(&mut random);
        self.recount();
        rounds
    }

    /// Forgets files that no name leads to any more, and counts the space of the others.
    fn recount(&mut self) {
        let kept = self.names.reachable();
        self.files.retain(|inode, _| kept.contains(inode));
        self.used = self.files.values().map(|file| file.data.allocated()).sum();
    }
}

fn boot_id(random: &mut Random) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&random.next_u64().to_le_bytes());
    id[8..].copy_from_slice(&random.next_u64().to_le_bytes());
    id
}
