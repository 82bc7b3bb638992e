//! One file: what the page cache has, what the disk has, and what a power cut makes of the difference.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::content::{Content, PAGE, Page, SECTOR, pages_of, sectors_of};

use crate::sim::random::Random;

const SECTORS_A_PAGE: usize = (PAGE / SECTOR) as usize;

/// Sectors of a page that the cache has and the disk may not have.
#[derive(Debug, Clone, Copy)]
struct Dirty {
    mask: u8,
    /// When the page was last written.
    version: u64,
}

/// The dirty pages of a file when a flush round began.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    pages: Vec<(u64, Option<Arc<Page>>, Dirty)>,
    length: u64,
    cuts: u64,
}

/// A file's bytes.
///
/// Invariant: a sector that is neither dirty nor lost by a failed sync is the same in the cache and on the disk.
#[derive(Debug, Clone, Default)]
pub(super) struct FileData {
    cache: Content,
    disk: Content,
    dirty: BTreeMap<u64, Dirty>,
    /// The version of each sector that the disk has, so that a round that ends late does not bring back an old one.
    on_disk: BTreeMap<u64, [u64; SECTORS_A_PAGE]>,
    /// The least length since the last sync: what is past it was cut at some time.
    length_min: u64,
    /// How often the file was cut shorter.
    cuts: u64,
    version: u64,
    /// Blocks reserved since the last sync.
    reserved: Vec<Range<u64>>,
    /// Whether a failed sync has left clean pages that the disk does not have.
    lossy: bool,
}

impl FileData {
    pub(super) const fn length(&self) -> u64 {
        self.cache.length()
    }

    pub(super) const fn allocated(&self) -> u64 {
        self.cache.allocated()
    }

    pub(super) fn missing(&self, range: Range<u64>) -> u64 {
        self.cache.missing(range)
    }

    pub(super) const fn cache(&self) -> &Content {
        &self.cache
    }

    pub(super) const fn disk(&self) -> &Content {
        &self.disk
    }

    pub(super) fn write(&mut self, bytes: &[u8], position: u64) {
        self.cache.write(bytes, position);
        self.touch(position..position + bytes.len() as u64);
    }

    /// Reserves blocks and extends the length over them.
    pub(super) fn allocate(&mut self, range: Range<u64>) {
        self.cache.allocate(range.clone());
        self.cache.set_length(self.cache.length().max(range.end));
        self.reserved.push(range);
    }

    pub(super) fn set_length(&mut self, length: u64) {
        let before = self.cache.length();
        if length >= before {
            self.cache.set_length(length);
            return;
        }
        self.cache.cut(length);
        self.cuts += 1;
        self.length_min = self.length_min.min(length);
        self.dirty.split_off(&length.div_ceil(PAGE));
        let page_end = length.next_multiple_of(PAGE);
        self.touch(length..page_end.min(before));
    }

    /// All of the cache onto the disk.
    pub(super) fn sync(&mut self) {
        self.cut_disk();
        for range in std::mem::take(&mut self.reserved) {
            self.disk.allocate(range.start..range.end.min(self.cache.length()));
        }
        for (number, dirty) in std::mem::take(&mut self.dirty) {
            let mask = if self.lossy { dirty.mask } else { u8::MAX };
            self.disk.take_sectors(self.cache.page(number), number, mask);
            self.now_on_disk(number, mask, dirty.version);
        }
        self.disk.set_length(self.cache.length());
        self.length_min = self.cache.length();
    }

    /// A sync that fails the way Linux fails it: some sectors reach the disk, all pages are clean afterwards, and nobody
    /// will ever write the others again.
    pub(super) fn sync_failing(&mut self, random: &mut Random) {
        let kept = random.below(60) as u32;
        for (number, dirty) in std::mem::take(&mut self.dirty) {
            let mask = dirty.mask & random_mask(random, kept);
            self.disk.take_sectors(self.cache.page(number), number, mask);
            self.now_on_disk(number, mask, dirty.version);
        }
        self.lossy = true;
    }

    /// Kernel threads write some dirty sectors back, in no order.
    pub(super) fn write_back_some(&mut self, random: &mut Random) {
        if self.length_min < self.disk.length() && random.percent(50) {
            return;
        }
        let percent = random.below(100) as u32;
        let numbers: Vec<u64> = self.dirty.keys().copied().collect();
        for number in numbers {
            let mask = random_mask(random, percent);
            self.write_back(number, mask);
        }
    }

    /// Writes back what is dirty in `range`, as a read past the cache makes the kernel do.
    pub(super) fn write_back_range(&mut self, range: Range<u64>) {
        for number in pages_of(range) {
            self.write_back(number, u8::MAX);
        }
    }

    /// The cache forgets what it can read again from the disk.
    pub(super) fn drop_clean_pages(&mut self) {
        let mut cache = self.disk.clone();
        if self.length_min < self.disk.length() {
            cache.cut(self.length_min);
        }
        for (&number, dirty) in &self.dirty {
            cache.take_sectors(self.cache.page(number), number, dirty.mask);
        }
        cache.set_length(self.cache.length());
        self.cache = cache;
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            pages: self
                .dirty
                .iter()
                .map(|(&number, &dirty)| (number, self.cache.page(number).cloned(), dirty))
                .collect(),
            length: self.cache.length(),
            cuts: self.cuts,
        }
    }

    /// What was dirty when the round began is on the disk now; what was written later is not.
    pub(super) fn snapshot_flushed(&mut self, snapshot: &Snapshot) {
        if snapshot.cuts != self.cuts {
            self.sync();
            return;
        }
        self.cut_disk();
        for range in std::mem::take(&mut self.reserved) {
            self.disk.allocate(range.start..range.end.min(self.cache.length()));
        }
        for (number, page, then) in &snapshot.pages {
            let there = self.on_disk.get(number).copied().unwrap_or_default();
            let older = there.iter().enumerate().filter(|(_, version)| **version < then.version);
            let mask = older.fold(0, |mask, (sector, _)| mask | 1 << sector) & then.mask;
            if mask != 0 {
                self.disk.take_sectors(page.as_ref(), *number, mask);
                self.now_on_disk(*number, mask, then.version);
            }
            if self.dirty.get(number).is_some_and(|now| now.version == then.version) {
                self.dirty.remove(number);
            }
        }
        self.disk.set_length(self.disk.length().max(snapshot.length));
        self.length_min = self.length_min.max(self.disk.length()).min(self.cache.length());
    }

    /// The round has failed: what was dirty when it began is clean now and was not written, all or in part.
    pub(super) fn snapshot_failed(&mut self, snapshot: &Snapshot, random: &mut Random) {
        self.lossy = true;
        if snapshot.cuts != self.cuts {
            self.sync_failing(random);
            return;
        }
        let kept = random.below(60) as u32;
        for (number, page, then) in &snapshot.pages {
            let Some(now) = self.dirty.get(number) else { continue };
            if now.version == then.version {
                self.dirty.remove(number);
                let mask = then.mask & random_mask(random, kept);
                self.disk.take_sectors(page.as_ref(), *number, mask);
                self.now_on_disk(*number, mask, then.version);
            }
        }
    }

    /// The power is gone: the disk has what was synced and a random part of the rest, and the cache has what the disk
    /// has.
    pub(super) fn power_cut(&mut self, random: &mut Random) {
        let synced = self.disk.length();
        // A cut that did not reach the disk leaves the old bytes: what was written past it went to blocks that are free.
        let cut_kept = self.length_min >= synced || random.percent(50);
        let writable_end = if cut_kept { u64::MAX } else { self.length_min };
        if cut_kept {
            self.cut_disk();
        }
        let fate = Fate::draw(random, &self.dirty);
        let dirty = std::mem::take(&mut self.dirty);
        for (number, dirty) in dirty {
            let below_end =
                if number * PAGE >= writable_end { 0 } else { sectors_of(&(0..writable_end), number) };
            let mask = dirty.mask & below_end & fate.mask(random, number);
            if mask != 0 {
                self.disk.take_sectors(self.cache.page(number), number, mask);
            }
        }
        let base = self.disk.length();
        let end = if cut_kept { self.cache.length().max(base) } else { base };
        let length = match random.below(4) {
            0 => base,
            1 | 2 => end,
            _ => random.within(base..end + 1),
        };
        self.disk.set_length(length);
        self.disk.cut(length);
        self.cache = self.disk.clone();
        self.length_min = length;
        self.on_disk.clear();
        self.reserved.clear();
        self.lossy = false;
    }

    pub(super) fn flip(&mut self, position: u64, bit: u8, in_cache: bool) {
        self.disk.flip(position, bit);
        if in_cache {
            self.cache.flip(position, bit);
        }
    }

    fn cut_disk(&mut self) {
        if self.length_min < self.disk.length() {
            self.disk.cut(self.length_min);
        }
    }

    fn write_back(&mut self, number: u64, mask: u8) {
        // Blocks past a cut are written only after the cut is: they may be the same blocks.
        self.cut_disk();
        let Some(dirty) = self.dirty.get_mut(&number) else { return };
        let mask = mask & dirty.mask;
        let version = dirty.version;
        dirty.mask &= !mask;
        if dirty.mask == 0 {
            self.dirty.remove(&number);
        }
        if mask != 0 {
            self.disk.take_sectors(self.cache.page(number), number, mask);
            self.now_on_disk(number, mask, version);
        }
    }

    fn now_on_disk(&mut self, number: u64, mask: u8, version: u64) {
        let there = self.on_disk.entry(number).or_default();
        for (sector, there) in there.iter_mut().enumerate() {
            if mask & (1 << sector) != 0 {
                *there = version;
            }
        }
    }

    fn touch(&mut self, range: Range<u64>) {
        self.version += 1;
        for number in pages_of(range.clone()) {
            let dirty = self.dirty.entry(number).or_insert(Dirty { mask: 0, version: 0 });
            dirty.mask |= sectors_of(&range, number);
            dirty.version = self.version;
        }
    }
}

/// How one file's dirty sectors fare in a power cut.
#[derive(Debug)]
enum Fate {
    AllLost,
    AllKept,
    /// In the order of their positions, torn at a sector.
    Prefix(u64),
    /// The later ones are there, the earlier ones are not.
    Suffix(u64),
    /// Each for itself.
    Scattered(u32),
}

impl Fate {
    fn draw(random: &mut Random, dirty: &BTreeMap<u64, Dirty>) -> Self {
        let (Some((&first, _)), Some((&last, _))) = (dirty.first_key_value(), dirty.last_key_value()) else {
            return Self::AllLost;
        };
        let sectors = first * PAGE / SECTOR..(last + 1) * PAGE / SECTOR;
        match random.below(6) {
            0 => Self::AllLost,
            1 => Self::AllKept,
            2 | 3 => Self::Prefix(random.within(sectors)),
            4 => Self::Suffix(random.within(sectors)),
            _ => Self::Scattered(random.within(5..96) as u32),
        }
    }

    fn mask(&self, random: &mut Random, number: u64) -> u8 {
        match *self {
            Self::AllLost => 0,
            Self::AllKept => u8::MAX,
            Self::Prefix(sector) => sectors_before(sector, number),
            Self::Suffix(sector) => !sectors_before(sector, number),
            Self::Scattered(percent) => random_mask(random, percent),
        }
    }
}

fn sectors_before(sector: u64, number: u64) -> u8 {
    if number * PAGE >= sector * SECTOR { 0 } else { sectors_of(&(0..sector * SECTOR), number) }
}

fn random_mask(random: &mut Random, percent: u32) -> u8 {
    (0..8).fold(0, |mask, sector| if random.percent(percent) { mask | 1 << sector } else { mask })
}
