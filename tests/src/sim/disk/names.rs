//! Names: what each directory shows, what the disk has of it, and the changes between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};

use rustix::io::Errno;

use crate::sim::random::Random;

/// Names a file or directory whatever it is called.
pub(super) type Inode = u64;

/// The directory that is always there.
pub(super) const ROOT: Inode = 0;

/// One atomic change: names that got another inode, or none.
#[derive(Debug, Clone)]
struct Change {
    edits: Vec<(Inode, String, Option<Inode>)>,
}

#[derive(Debug, Clone, Default)]
struct Directory {
    cache: BTreeMap<String, Inode>,
    disk: BTreeMap<String, Inode>,
}

/// All directories.
#[derive(Debug, Clone)]
pub(super) struct Names {
    directories: BTreeMap<Inode, Directory>,
    /// Changes that the disk does not have, oldest first.
    unsynced: Vec<Change>,
}

impl Names {
    pub(super) fn new() -> Self {
        Self { directories: BTreeMap::from([(ROOT, Directory::default())]), unsynced: Vec::new() }
    }

    pub(super) fn is_directory(&self, inode: Inode) -> bool {
        self.directories.contains_key(&inode)
    }

    /// The inode of `path`.
    pub(super) fn find(&self, path: &Path) -> io::Result<Inode> {
        let mut inode = ROOT;
        for name in names(path)? {
            let directory = self.directories.get(&inode).ok_or(Errno::NOTDIR)?;
            inode = *directory.cache.get(name).ok_or(Errno::NOENT)?;
        }
        Ok(inode)
    }

    /// The directory that `path` is in, and its name there.
    pub(super) fn find_parent<'a>(&self, path: &'a Path) -> io::Result<(Inode, &'a str)> {
        let names = names(path)?;
        let (&name, parents) = names.split_last().ok_or(Errno::INVAL)?;
        let mut inode = ROOT;
        for parent in parents {
            let directory = self.directories.get(&inode).ok_or(Errno::NOTDIR)?;
            inode = *directory.cache.get(*parent).ok_or(Errno::NOENT)?;
        }
        if self.is_directory(inode) { Ok((inode, name)) } else { Err(Errno::NOTDIR.into()) }
    }

    pub(super) fn child(&self, directory: Inode, name: &str) -> Option<Inode> {
        self.directories.get(&directory)?.cache.get(name).copied()
    }

    pub(super) fn list(&self, directory: Inode) -> io::Result<Vec<(String, Inode)>> {
        let directory = self.directories.get(&directory).ok_or(Errno::NOTDIR)?;
        Ok(directory.cache.iter().map(|(name, &inode)| (name.clone(), inode)).collect())
    }

    pub(super) fn add(&mut self, directory: Inode, name: &str, inode: Inode) {
        self.change(vec![(directory, name.to_owned(), Some(inode))]);
    }

    pub(super) fn add_directory(&mut self, directory: Inode, name: &str, inode: Inode) {
        self.directories.insert(inode, Directory::default());
        self.add(directory, name, inode);
    }

    pub(super) fn remove(&mut self, directory: Inode, name: &str) {
        self.change(vec![(directory, name.to_owned(), None)]);
    }

    /// Gives another name, and replaces what had it.
    pub(super) fn rename(&mut self, from: (Inode, &str), to: (Inode, &str), inode: Inode) {
        if from != to {
            self.change(vec![(from.0, from.1.to_owned(), None), (to.0, to.1.to_owned(), Some(inode))]);
        }
    }

    /// Makes the names in one directory durable, and the changes without which they cannot be.
    pub(super) fn sync(&mut self, directory: Inode) {
        let mut wanted: BTreeSet<(Inode, String)> = BTreeSet::new();
        let mut picked = vec![false; self.unsynced.len()];
        for (index, change) in self.unsynced.iter().enumerate().rev() {
            let concerns = |(place, name, _): &(Inode, String, Option<Inode>)| {
                *place == directory || wanted.contains(&(*place, name.clone()))
            };
            if change.edits.iter().any(concerns) {
                picked[index] = true;
                wanted.extend(change.edits.iter().map(|(place, name, _)| (*place, name.clone())));
            }
        }
        self.apply(&picked);
    }

    pub(super) fn sync_all(&mut self) {
        self.apply(&vec![true; self.unsynced.len()]);
    }

    /// The power is gone: what was synced is there, and of the rest what one or another journal would have saved.
    pub(super) fn power_cut(&mut self, random: &mut Random) {
        let count = self.unsynced.len();
        let picked = match random.below(6) {
            0 => vec![false; count],
            1 => vec![true; count],
            // One journal for all: what came first is there.
            2 | 3 => {
                let end = random.index(count + 1);
                (0..count).map(|index| index < end).collect()
            }
            // A log for each file: only changes of the same name wait for each other.
            _ => self.closed_subset(random),
        };
        self.apply(&picked);
        self.unsynced.clear();
        for directory in self.directories.values_mut() {
            directory.cache = directory.disk.clone();
        }
        let kept = self.reachable();
        self.directories.retain(|inode, _| kept.contains(inode));
    }

    /// All inodes that a name leads to, in the cache or on the disk or after some changes that are under way.
    pub(super) fn reachable(&self) -> BTreeSet<Inode> {
        let mut found = BTreeSet::from([ROOT]);
        let mut open = vec![ROOT];
        while let Some(inode) = open.pop() {
            let Some(directory) = self.directories.get(&inode) else { continue };
            let shown = directory.cache.values().chain(directory.disk.values()).copied();
            let under_way = self.unsynced.iter().flat_map(|change| &change.edits);
            let under_way =
                under_way.filter(|(place, _, _)| *place == inode).filter_map(|(_, _, inode)| *inode);
            for child in shown.chain(under_way) {
                if found.insert(child) {
                    open.push(child);
                }
            }
        }
        found
    }

    /// Whether a name that a process can see leads to `inode`.
    pub(super) fn is_named(&self, inode: Inode) -> bool {
        self.directories.values().any(|directory| directory.cache.values().any(|&named| named == inode))
    }

    fn closed_subset(&self, random: &mut Random) -> Vec<bool> {
        let percent = random.within(15..90) as u32;
        let mut lost: BTreeSet<(Inode, &str)> = BTreeSet::new();
        let mut picked = Vec::with_capacity(self.unsynced.len());
        for change in &self.unsynced {
            let keys = || change.edits.iter().map(|(place, name, _)| (*place, name.as_str()));
            let kept = random.percent(percent) && keys().all(|key| !lost.contains(&key));
            if !kept {
                lost.extend(keys());
            }
            picked.push(kept);
        }
        picked
    }

    fn change(&mut self, edits: Vec<(Inode, String, Option<Inode>)>) {
        for (place, name, inode) in &edits {
            if let Some(directory) = self.directories.get_mut(place) {
                edit(&mut directory.cache, name, *inode);
            }
        }
        self.unsynced.push(Change { edits });
    }

    fn apply(&mut self, picked: &[bool]) {
        let mut rest = Vec::new();
        for (change, &picked) in std::mem::take(&mut self.unsynced).into_iter().zip(picked) {
            if !picked {
                rest.push(change);
                continue;
            }
            for (place, name, inode) in &change.edits {
                if let Some(directory) = self.directories.get_mut(place) {
                    edit(&mut directory.disk, name, *inode);
                }
            }
        }
        self.unsynced = rest;
    }
}

fn edit(names: &mut BTreeMap<String, Inode>, name: &str, inode: Option<Inode>) {
    match inode {
        Some(inode) => names.insert(name.to_owned(), inode),
        None => names.remove(name),
    };
}

/// The names in `path`, from the root on.
fn names(path: &Path) -> io::Result<Vec<&str>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => names.push(name.to_str().ok_or(Errno::INVAL)?),
            Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL.into()),
        }
    }
    Ok(names)
}
