//! A pass of compaction, on I/O threads, a piece at a time.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use highwater_broker_core::log::cleaning::key_map::KeyMap;
use highwater_broker_core::log::cleaning::merge::{Counts, Merger};
use highwater_broker_core::log::cleaning::{Passed, Task};
use highwater_broker_core::log::manifest::{Hole, SealedSegment};
use highwater_broker_core::log::scan::{Depth, Found, Scanner, SegmentBytes};
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_broker_core::producer::{Binding, encode_file};
use highwater_protocol::batch::{ATTRIBUTE_TRANSACTIONAL, BatchHeader, RecordRef, Records};
use highwater_protocol::ids::{LeaderEpoch, Offset};

use super::Replacement;
use crate::storage::error::Error;
use crate::storage::files::{self, FileBytes};
use crate::storage::log::Log;
use crate::storage::log::producers::Place;
use crate::storage::log::rewritten::{PIECE, Rewritten};
use crate::storage::segment::{Sealed, SegmentFile};
use crate::storage::shared::LogShared;
use crate::storage::store::Store;
use crate::storage::verify::note_hole;

/// Bytes that are written between two syncs: the last one must not have to write a whole segment, because flushes of others
/// would wait for it.
const SYNC_BYTES: u64 = 8 << 20;

/// A pass under way. Dropped in the middle, it leaves at most a file that is listed nowhere.
#[derive(Debug)]
pub struct Cleaning {
    store: Arc<Store>,
    log: Arc<LogShared>,
    revision: u64,
    /// What is left to go over.
    segments: VecDeque<Sealed>,
    task: Task,
    keys: KeyMap,
    /// The keys of everything below are learnt.
    learnt: Offset,
    /// The first offsets of batches that producers may send again, sorted once keys are learnt.
    identities: Vec<Offset>,
    before: Option<SealedSegment>,
    producers_from: Offset,
    expiry: Duration,
    segment_bytes: u64,
    next_serial: u64,
    phase: Phase,
    totals: Counts,
    tombstones_left: bool,
}

#[derive(Debug)]
enum Phase {
    /// Learns keys, in this segment from this spot on.
    Learn(usize, Spot),
    /// Keys are learnt.
    Prepare,
    /// Between two new segments.
    Rewrite,
    /// In the middle of a new segment.
    Group(Box<Group>),
}

/// A new segment that is being written.
#[derive(Debug)]
struct Group {
    rewritten: Rewritten,
    merger: Merger,
    /// What it stands for so far.
    old: Vec<Sealed>,
    /// Where the next one is read.
    spot: Spot,
    counts: Counts,
    /// Bytes that are on stable storage.
    synced: u64,
}

/// What a step of a pass has come to.
#[derive(Debug)]
pub enum Step {
    /// There is more to do.
    Worked {
        /// Bytes that were read and written.
        bytes: u64,
    },
    /// The log is to put this in its place (`Log::swap_cleaned`) before the next step.
    Replace(Box<Replacement>),
    /// The pass is complete (`Log::cleaning_done`).
    Done(Passed),
}

impl Cleaning {
    pub(super) fn new(
        log: &Log,
        segments: Vec<Sealed>,
        task: Task,
        identities: Vec<Offset>,
        next_serial: u64,
        seed: u64,
        map_bytes_max: usize,
    ) -> Self {
        let first = segments.iter().position(|segment| segment.entry.end_offset > task.dirty.start);
        let phase = match first.and_then(|first| Some((first, segments.get(first)?))) {
            Some((first, segment)) => Phase::Learn(first, Spot::start_of(segment)),
            None => Phase::Prepare,
        };
        Self {
            store: Arc::clone(&log.store),
            log: Arc::clone(&log.shared),
            revision: log.revision,
            segments: segments.into(),
            learnt: task.dirty.end,
            task,
            keys: KeyMap::new(seed, map_bytes_max),
            identities,
            before: log.before,
            producers_from: log.shared.structure.producers_from(),
            expiry: log.config.producer_expiry,
            segment_bytes: log.config.limits.segment_bytes,
            next_serial,
            phase,
            totals: Counts::default(),
            tombstones_left: false,
        }
    }

    /// Of which state of the log it is.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Records that were read to be written again, and those that were.
    #[must_use]
    pub const fn totals(&self) -> Counts {
        self.totals
    }

    /// Does so many bytes' worth of work, more only if one batch is larger. Blocks on the disk.
    ///
    /// # Errors
    /// When the disk cannot be read or written, or a corrupt range was found that was not known: the pass is over, and
    /// nothing but what was put into place before has changed.
    pub fn step(&mut self, budget_bytes: u64) -> Result<Step, Error> {
        let step = self.try_step(budget_bytes);
        if let (Err(_), Phase::Group(group)) = (&step, &self.phase) {
            self.discard(&group.rewritten);
        }
        step
    }

    fn try_step(&mut self, budget_bytes: u64) -> Result<Step, Error> {
        match std::mem::replace(&mut self.phase, Phase::Rewrite) {
            Phase::Learn(number, spot) => self.learn(number, spot, budget_bytes),
            Phase::Prepare => self.prepare(),
            Phase::Rewrite => self.begin_group(),
            Phase::Group(mut group) => {
                let result = self.go_on(&mut group, budget_bytes);
                match result {
                    Ok(false) => {
                        let bytes = budget_bytes;
                        self.phase = Phase::Group(group);
                        Ok(Step::Worked { bytes })
                    }
                    Ok(true) => self.end_group(*group),
                    Err(error) => {
                        self.phase = Phase::Group(group);
                        Err(error)
                    }
                }
            }
        }
    }

    /// Learns the keys of a part of a segment.
    fn learn(&mut self, number: usize, mut spot: Spot, budget_bytes: u64) -> Result<Step, Error> {
        let Some(segment) = self.segments.get(number) else {
            self.phase = Phase::Prepare;
            return Ok(Step::Worked { bytes: 0 });
        };
        let (keys, dirty, learnt) = (&mut self.keys, &self.task.dirty, &mut self.learnt);
        let mut full = false;
        let (bytes, is_over) = walk(&self.store, &self.log, segment, &mut spot, budget_bytes, |met| {
            let Met::Batch(header, batch) = met else { return Ok(ControlFlow::Continue(())) };
            let Err(offset) = learn_batch(keys, dirty.start, &batch, header) else {
                return Ok(ControlFlow::Continue(()));
            };
            *learnt = offset;
            full = true;
            Ok(ControlFlow::Break(()))
        })?;
        self.phase = match self.segments.get(number + 1) {
            _ if full => Phase::Prepare,
            Some(next) if is_over => Phase::Learn(number + 1, Spot::start_of(next)),
            None if is_over => Phase::Prepare,
            _ => Phase::Learn(number, spot),
        };
        Ok(Step::Worked { bytes })
    }

    /// What has to be known before anything is written.
    fn prepare(&mut self) -> Result<Step, Error> {
        let learnt = self.learnt;
        self.segments.retain(|segment| segment.entry.name.base_offset < learnt);
        let entries: Vec<SealedSegment> = self.segments.iter().map(|segment| segment.entry).collect();
        // What producers have written last below the end of what is cleaned: wherever the log is cut later on, it is not
        // below, so that whatever is known there of these batches is among this.
        let rebuilt = self.place().rebuild(&entries, self.before.as_ref(), self.producers_from)?;
        self.identities.extend(rebuilt.table.remembered_offsets());
        self.identities.sort_unstable();
        self.phase = Phase::Rewrite;
        Ok(Step::Worked { bytes: 0 })
    }

    fn begin_group(&mut self) -> Result<Step, Error> {
        let Some(first) = self.segments.front() else {
            return Ok(Step::Done(Passed {
                upto: self.learnt,
                tombstones_below: self.task.tombstones_below,
                tombstones_left: self.tombstones_left,
            }));
        };
        let name = SegmentName { serial: self.next_serial, base_offset: first.entry.name.base_offset };
        self.next_serial += 1;
        let segment = SegmentFile::new(self.log.partition, &self.log.directory, name, true);
        let group = Group {
            rewritten: Rewritten::create(&**self.store.file_system(), segment)?,
            merger: Merger::new(self.log.partition),
            old: Vec::new(),
            spot: Spot::start_of(first),
            counts: Counts::default(),
            synced: 0,
        };
        self.phase = Phase::Group(Box::new(group));
        Ok(Step::Worked { bytes: 0 })
    }

    /// Goes on with a new segment. True: it is complete.
    fn go_on(&mut self, group: &mut Group, budget_bytes: u64) -> Result<bool, Error> {
        let Some(segment) = self.segments.front() else { return Ok(true) };
        let Group { rewritten, merger, spot, counts, .. } = group;
        let (keys, below, learnt) = (&self.keys, self.task.tombstones_below, self.learnt);
        let (identities, tombstones_left) = (&self.identities, &mut self.tombstones_left);
        let path = rewritten.path();
        let mut out = Vec::new();
        let (_, is_over) = walk(&self.store, &self.log, segment, spot, budget_bytes, |met| {
            let gap = match met {
                Met::Batch(header, batch) => {
                    let known = identities.binary_search(&header.leader.base_offset).is_ok();
                    let keep = |record: &RecordRef<'_>| {
                        let stays = stays(keys, below, record);
                        *tombstones_left |= stays && is_tombstone(record) && record.offset < learnt;
                        stays
                    };
                    let taken = merger.take(&batch, header, known, keep, &mut out);
                    counts.records += taken.records;
                    counts.kept += taken.kept;
                    None
                }
                Met::Gap(next) => {
                    merger.flush(&mut out);
                    Some(next)
                }
            };
            write(&self.store, rewritten, &mut out)?;
            if let Some(next) = gap {
                rewritten.note_gap(next);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if rewritten.length() >= group.synced + SYNC_BYTES {
            group.rewritten.write().map_err(Error::io("write segment", &path))?;
            group.rewritten.file.sync().map_err(Error::io("sync segment", &path))?;
            group.synced = group.rewritten.length();
        }
        if !is_over {
            return Ok(false);
        }
        let Some(done) = self.segments.pop_front() else { return Ok(true) };
        let (end, length) = (done.entry.end_offset, group.rewritten.length());
        group.old.push(done);
        let Some(next) = self.segments.front() else { return Ok(true) };
        group.spot = Spot::start_of(next);
        let is_large = length + next.entry.length > self.segment_bytes && length >= self.segment_bytes / 4;
        Ok(is_large || next.entry.name.base_offset != end)
    }

    /// Brings a new segment to stable storage, unless it would be no better than what was there.
    fn end_group(&mut self, group: Group) -> Result<Step, Error> {
        let Group { mut rewritten, mut merger, old, counts, .. } = group;
        let mut out = Vec::new();
        merger.flush(&mut out);
        let path = rewritten.path();
        let written = write(&self.store, &mut rewritten, &mut out)
            .and_then(|()| rewritten.write().map_err(Error::io("write segment", &path)));
        let made = written.and_then(|()| self.make_durable(&rewritten, &old));
        let entry = match made {
            Ok(entry) => entry,
            Err(error) => {
                self.discard(&rewritten);
                return Err(error);
            }
        };
        self.totals.records += counts.records;
        self.totals.kept += counts.kept;
        let bytes = old.iter().map(|old| old.entry.length).sum::<u64>();
        if counts.records == counts.kept && old.len() == 1 && entry.length * 10 >= bytes * 9 {
            self.discard(&rewritten);
            return Ok(Step::Worked { bytes: entry.length });
        }
        if let Err(error) = self.hold_open(&old) {
            self.discard(&rewritten);
            return Err(error);
        }
        let old_holes = old.iter().flat_map(|old| old.file.holes()).collect();
        let Rewritten { state, holes, .. } = rewritten;
        state.file.handle.lock().index = Some(Arc::new(state.index));
        holes.iter().for_each(|hole| {
            state.file.add_hole(hole.clone());
        });
        let new = Sealed { entry, file: state.file };
        Ok(Step::Replace(Box::new(Replacement { revision: self.revision, old, old_holes, new, holes })))
    }

    /// Syncs the file and its name, and leaves an index and a snapshot of producers beside it.
    fn make_durable(&self, rewritten: &Rewritten, old: &[Sealed]) -> Result<SealedSegment, Error> {
        let (first, last) = match (old.first(), old.last()) {
            (Some(first), Some(last)) => (first.entry, last.entry),
            _ => unreachable!("a new segment stands for one or more"),
        };
        let fs = &**self.store.file_system();
        let directory = &self.log.directory;
        rewritten.file.sync().map_err(Error::io("sync segment", &rewritten.path()))?;
        // Retention goes by when records were appended, whether they are still there or not.
        let entry = SealedSegment {
            first_append_time: first.first_append_time,
            last_append_time: last.last_append_time,
            ..rewritten.entry(last.end_offset)
        };
        let index = rewritten.state.index.encode(entry.length, entry.checksum);
        files::write_and_rename(fs, directory, &entry.name.index_name(), &index)?;
        if let Some(table) = self.place().load(&last)? {
            let snapshot = encode_file(Binding::from(&entry), &table.encode());
            files::write_and_rename(fs, directory, &entry.name.producers_name(), &snapshot)?;
        }
        // Its name is durable before a manifest lists it.
        fs.sync_directory(directory).map_err(Error::io("sync directory", directory))?;
        Ok(entry)
    }

    /// Reads that were planned before the old files are gone find them open.
    fn hold_open(&self, old: &[Sealed]) -> Result<(), Error> {
        old.iter().for_each(|old| old.file.pin());
        for segment in old {
            if let Err(error) = self.store.cache().file(&segment.file) {
                old.iter().for_each(|old| old.file.unpin());
                return Err(Error::io("open segment", &segment.file.path)(error));
            }
        }
        Ok(())
    }

    /// Removes what is listed nowhere. If that fails, the next start does it.
    fn discard(&self, rewritten: &Rewritten) {
        let fs = &**self.store.file_system();
        let name = rewritten.name();
        for name in [name.to_string(), name.index_name(), name.producers_name()] {
            let _left_for_the_next_start = fs.remove_file(&self.log.directory.join(name));
        }
    }

    fn place(&self) -> Place<'_> {
        Place {
            fs: &**self.store.file_system(),
            directory: &self.log.directory,
            partition: self.log.partition,
            expiry: self.expiry,
        }
    }
}

/// Learns the keys of a batch. An error says where there was no room for another key.
fn learn_batch(keys: &mut KeyMap, start: Offset, batch: &Bytes, header: BatchHeader) -> Result<(), Offset> {
    let applications = !header.is_control() && header.producer.attributes & ATTRIBUTE_TRANSACTIONAL == 0;
    // What does not decode is kept, and what it says of keys is nobody's to know.
    let Some(records) = applications.then(|| Records::open(header, batch).ok()).flatten() else {
        return Ok(());
    };
    if records.iter().any(|record| record.is_err()) {
        return Ok(());
    }
    for record in records.iter().map_while(Result::ok) {
        if let Some(key) = record.key
            && record.offset >= start
            && keys.note(key, record.offset).is_err()
        {
            return Err(record.offset);
        }
    }
    Ok(())
}

/// Whether a record is the last of its key, and not a tombstone that may go. Records without a key stay.
fn stays(keys: &KeyMap, tombstones_below: Offset, record: &RecordRef<'_>) -> bool {
    let Some(key) = record.key else { return true };
    let comes_again = keys.last(key).is_some_and(|last| last > record.offset);
    let is_over = is_tombstone(record) && record.offset < tombstones_below;
    !comes_again && !is_over
}

const fn is_tombstone(record: &RecordRef<'_>) -> bool {
    record.key.is_some() && record.value.is_none()
}

/// Adds batches to a new segment, as long as the disk has room above its reserve.
fn write(store: &Store, rewritten: &mut Rewritten, batches: &mut Vec<Bytes>) -> Result<(), Error> {
    let failed = |rewritten: &Rewritten, error| Error::io("write segment", &rewritten.path())(error);
    for batch in batches.drain(..) {
        if !store.take_room(batch.len() as u64) {
            return Err(failed(rewritten, std::io::ErrorKind::StorageFull.into()));
        }
        let header = match BatchHeader::decode(&batch) {
            Ok(header) => header,
            Err(error) => return Err(failed(rewritten, std::io::Error::other(error))),
        };
        rewritten.push(&header, &[&batch]).map_err(|error| failed(rewritten, error))?;
    }
    Ok(())
}

/// A place in a segment: a position, and the offset that is expected there.
#[derive(Debug, Clone, Copy)]
struct Spot {
    position: u64,
    expected: Offset,
}

impl Spot {
    const fn start_of(segment: &Sealed) -> Self {
        Self { position: 0, expected: segment.entry.name.base_offset }
    }
}

/// What a walk comes across.
enum Met {
    /// A batch, verified.
    Batch(BatchHeader, Bytes),
    /// A corrupt range that is known; it ends here.
    Gap(Offset),
}

/// Goes over a segment from a spot on, for so many bytes, verifies every batch, and says how many bytes it read and whether
/// it came to the end.
fn walk(
    store: &Store,
    log: &LogShared,
    segment: &Sealed,
    spot: &mut Spot,
    budget_bytes: u64,
    mut on: impl FnMut(Met) -> Result<ControlFlow<()>, Error>,
) -> Result<(u64, bool), Error> {
    let (entry, path) = (&segment.entry, &segment.file.path);
    let file = store.cache().file(&segment.file).map_err(Error::io("open segment", path))?;
    let length = entry.length.min(file.length().map_err(Error::io("measure segment", path))?);
    let read_ahead = PIECE.min(usize::try_from(budget_bytes).unwrap_or(PIECE));
    let source = FileBytes::new(&*file, length, false, read_ahead);
    let mut scanner = Scanner::new(source, log.partition, Depth::Full, spot.expected, LeaderEpoch(0))
        .within(spot.position..length);
    let mut bytes = 0;
    let mut bad = None;
    while let Some(found) = scanner.next_found().map_err(Error::io("read segment", path))? {
        let (position, header) = match found {
            Found::Batch { position, header } => (position, header),
            Found::Bad { positions, .. } | Found::Slack { positions } => {
                bad = Some(positions);
                continue;
            }
        };
        if header.leader.base_offset > spot.expected {
            let positions = bad.take().unwrap_or(position..position);
            pass_over(log, segment, spot, header.leader.base_offset, positions)?;
            if on(Met::Gap(header.leader.base_offset))?.is_break() {
                return Ok((bytes, false));
            }
        }
        let view = scanner.source_mut().view(position, header.length());
        let batch = Bytes::copy_from_slice(view.map_err(Error::io("read segment", path))?);
        *spot = Spot { position: position + batch.len() as u64, expected: header.end_offset() };
        bytes += batch.len() as u64;
        if on(Met::Batch(header, batch))?.is_break() || bytes >= budget_bytes {
            return Ok((bytes, false));
        }
    }
    if spot.expected < entry.end_offset {
        let positions = bad.unwrap_or(length..entry.length);
        pass_over(log, segment, spot, entry.end_offset, positions)?;
        // The last step of a segment that was cut ends here as well: nothing is broken off.
        let _at_the_end = on(Met::Gap(entry.end_offset))?;
    }
    Ok((bytes, true))
}

/// Passes over a corrupt range. One that was not known is reported, and has to be looked at before anything is rewritten.
fn pass_over(
    log: &LogShared,
    segment: &Sealed,
    spot: &mut Spot,
    end: Offset,
    positions: std::ops::Range<u64>,
) -> Result<(), Error> {
    let mut known = spot.expected;
    for hole in segment.file.holes() {
        if hole.start <= known {
            known = known.max(hole.end);
        }
    }
    let start = std::mem::replace(&mut spot.expected, end);
    if known >= end {
        return Ok(());
    }
    note_hole(log, &segment.file, Hole { start, end, serial: segment.entry.name.serial, positions });
    let found = std::io::Error::new(std::io::ErrorKind::InvalidData, "a corrupt range was found");
    Err(Error::io("clean segment", &segment.file.path)(found))
}
