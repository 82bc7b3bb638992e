//! Plans that read whole stretches of a log from the disk and verify every batch: comparison with other replicas, and the
//! background scrub. Executed on I/O threads; they need no log.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use highwater_broker_core::log::manifest::Hole;
use highwater_broker_core::log::scan::{Depth, Found, Scanner, SegmentBytes};
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_protocol::batch::BatchHeader;
use highwater_protocol::ids::{LeaderEpoch, Offset};

use super::error::Error;
use super::file_system::File;
use super::files;
use super::segment::SegmentFile;
use super::shared::LogShared;
use super::store::Store;
use super::verify::note_hole;

/// Bytes read at a time.
const READ_AHEAD: usize = 1 << 20;

/// A part of a segment whose bytes will not change.
#[derive(Debug, Clone)]
pub(super) struct Stretch {
    pub(super) file: Arc<SegmentFile>,
    pub(super) positions: Range<u64>,
    /// A batch starts at the first position and offset, and one ends at the last.
    pub(super) offsets: Range<Offset>,
}

/// Compares one replica with others: a checksum over whole batches.
#[derive(Debug)]
pub struct ChecksumPlan {
    pub(super) store: Arc<Store>,
    pub(super) log: Arc<LogShared>,
    pub(super) start: Offset,
    pub(super) end: Offset,
    pub(super) bytes_max: u64,
    pub(super) stretches: Vec<Stretch>,
}

/// The checksum of whole batches, read from the disk and verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeChecksum {
    /// The offset of the first batch covered.
    pub start: Offset,
    /// The offset after the last batch covered, or after what is corrupt. Below the end that was asked for: go on here,
    /// unless it is where this began: then no further batch ends before that end.
    pub end: Offset,
    /// CRC-32 of the batches as they are stored, one after another.
    pub checksum: u32,
    /// How many.
    pub batches: u64,
    /// Ranges among them that are corrupt. They are not in the checksum.
    pub corrupt: Vec<Range<Offset>>,
}

/// Verifies some bytes of a log from the disk.
#[derive(Debug)]
pub struct ScrubPlan {
    pub(super) store: Arc<Store>,
    pub(super) log: Arc<LogShared>,
    pub(super) budget_bytes: u64,
    pub(super) stretches: Vec<Stretch>,
}

/// What a step of the scrub did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubOutcome {
    /// Bytes that were verified.
    pub bytes: u64,
    /// Corrupt ranges that were not known before; `Log::maintain` reports them as well.
    pub corrupt: Vec<Range<Offset>>,
    /// Everything that there was has been verified since the last time that this was true.
    pub pass_complete: bool,
}

/// Where the scrub goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScrubPlace {
    pub(super) segment: SegmentName,
    pub(super) position: u64,
    pub(super) offset: Offset,
}

/// What a stretch consists of.
pub(super) enum Piece<'a> {
    Good(u64, &'a BatchHeader, &'a [u8]),
    Bad(Hole),
}

impl ChecksumPlan {
    /// Reads and verifies. May wait for the disk.
    ///
    /// # Errors
    /// When the disk cannot be read, or retention has let go of what was to be read.
    pub fn execute(self) -> Result<RangeChecksum, Error> {
        let mut found = RangeChecksum {
            start: self.start,
            end: self.start,
            checksum: 0,
            batches: 0,
            corrupt: Vec::new(),
        };
        let mut hasher = crc32fast::Hasher::new();
        let mut bytes_read = 0;
        let mut stopped = false;
        for stretch in &self.stretches {
            // What lies between two segments is missing.
            if found.end < stretch.offsets.start {
                found.corrupt.push(found.end..stretch.offsets.start);
                found.end = stretch.offsets.start;
            }
            let flow = stretch.walk(&self.store, false, |piece| {
                match piece {
                    Piece::Good(_, header, _) if header.end_offset() <= self.start => {}
                    Piece::Good(_, header, _) if header.end_offset() > self.end => {
                        return ControlFlow::Break(());
                    }
                    Piece::Good(_, header, bytes) => {
                        if found.batches == 0 && found.corrupt.is_empty() {
                            found.start = header.leader.base_offset;
                        }
                        hasher.update(bytes);
                        bytes_read += bytes.len() as u64;
                        found.batches += 1;
                        found.end = header.end_offset();
                    }
                    Piece::Bad(hole) => {
                        let corrupt = hole.start.max(self.start)..hole.end.min(self.end);
                        if !corrupt.is_empty() {
                            found.end = corrupt.end;
                            found.corrupt.push(corrupt);
                        }
                        note_hole(&self.log, &stretch.file, hole);
                    }
                }
                if bytes_read >= self.bytes_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            stopped = flow.is_break();
            if stopped {
                break;
            }
        }
        if !stopped && found.end < self.end {
            found.corrupt.push(found.end..self.end);
            found.end = self.end;
        }
        found.checksum = hasher.finalize();
        Ok(found)
    }
}

impl ScrubPlan {
    /// Verifies up to the budget, and at least one batch if there is one. May wait for the disk.
    ///
    /// # Errors
    /// When the disk cannot be read. The scrub stays where it was.
    pub fn execute(self) -> Result<ScrubOutcome, Error> {
        let mut outcome = ScrubOutcome { bytes: 0, corrupt: Vec::new(), pass_complete: true };
        for stretch in &self.stretches {
            let mut place = None;
            let flow = stretch.walk(&self.store, true, |piece| {
                let (position, offset) = match piece {
                    Piece::Good(position, header, bytes) => {
                        outcome.bytes += bytes.len() as u64;
                        (position + bytes.len() as u64, header.end_offset())
                    }
                    Piece::Bad(hole) => {
                        outcome.bytes += hole.positions.end - hole.positions.start;
                        let next = (hole.positions.end, hole.end);
                        let offsets = hole.start..hole.end;
                        if note_hole(&self.log, &stretch.file, hole) {
                            outcome.corrupt.push(offsets);
                        }
                        next
                    }
                };
                place = Some(ScrubPlace { segment: stretch.file.name, position, offset });
                if outcome.bytes >= self.budget_bytes {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
            // The segment is read as a whole if nothing stopped it, whatever its last batch.
            let end = ScrubPlace {
                segment: stretch.file.name,
                position: stretch.positions.end,
                offset: stretch.offsets.end,
            };
            let place = if flow.is_break() { place.unwrap_or(end) } else { end };
            *self.log.scrub_place.lock() = Some(place);
            let last = self.stretches.last().is_some_and(|last| Arc::ptr_eq(&last.file, &stretch.file));
            if flow.is_break() && !(last && place.position >= stretch.positions.end) {
                outcome.pass_complete = false;
                return Ok(outcome);
            }
        }
        *self.log.scrub_place.lock() = None;
        Ok(outcome)
    }
}

impl Stretch {
    /// Goes over the batches in order, and over what is no batch. `past_cache`: from the disk itself, where that can be.
    pub(super) fn walk(
        &self,
        store: &Store,
        past_cache: bool,
        mut on: impl FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        let path = &self.file.path;
        let file = store.cache().file(&self.file).map_err(Error::io("open segment", path))?;
        let there = file.length().map_err(Error::io("measure segment", path))?;
        let source = DiskBytes::new(&*file, self.positions.end.min(there), past_cache);
        let mut scanner =
            Scanner::new(source, self.file.partition, Depth::Full, self.offsets.start, LeaderEpoch(0))
                .within(self.positions.clone());
        let mut expected = self.offsets.start;
        let mut bad: Option<Range<u64>> = None;
        let hole = |start, end, positions| Hole { start, end, serial: self.file.name.serial, positions };
        while let Some(found) = scanner.next_found().map_err(Error::io("read segment", path))? {
            match found {
                Found::Batch { position, header } => {
                    if header.leader.base_offset > expected {
                        let positions = bad.take().unwrap_or(position..position);
                        let missing = hole(expected, header.leader.base_offset, positions);
                        if on(Piece::Bad(missing)).is_break() {
                            return Ok(ControlFlow::Break(()));
                        }
                    }
                    bad = None;
                    expected = header.end_offset();
                    let bytes = scanner
                        .source_mut()
                        .view(position, header.length())
                        .map_err(Error::io("read segment", path))?;
                    if on(Piece::Good(position, &header, bytes)).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Found::Bad { positions, .. } | Found::Slack { positions } => {
                    bad = Some(bad.map_or(positions.clone(), |bad| bad.start..positions.end));
                }
            }
        }
        if expected < self.offsets.end {
            let start = bad.map_or_else(|| self.positions.end.min(there), |bad| bad.start);
            let missing = hole(expected, self.offsets.end, start..self.positions.end.max(start));
            return Ok(on(Piece::Bad(missing)));
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// The bytes of a file, from the disk itself where the file system can do that.
struct DiskBytes<'a> {
    file: &'a dyn File,
    length: u64,
    past_cache: bool,
    buffer: Vec<u8>,
    start: u64,
}

impl<'a> DiskBytes<'a> {
    const fn new(file: &'a dyn File, length: u64, past_cache: bool) -> Self {
        Self { file, length, past_cache, buffer: Vec::new(), start: 0 }
    }
}

impl SegmentBytes for DiskBytes<'_> {
    type Error = std::io::Error;

    fn length(&self) -> u64 {
        self.length
    }

    fn view(&mut self, position: u64, length: usize) -> std::io::Result<&[u8]> {
        let room = usize::try_from(self.length.saturating_sub(position)).unwrap_or(usize::MAX);
        let length = length.min(room);
        let buffered =
            position >= self.start && position + length as u64 <= self.start + self.buffer.len() as u64;
        if !buffered {
            self.buffer.resize(length.max(READ_AHEAD.min(room)), 0);
            self.start = position;
            let mut read = files::read_up_to(self.file, &mut self.buffer, position, self.past_cache);
            if self.past_cache && read.is_err() {
                // Not every file system can: then what can be read is verified, wherever it comes from.
                self.past_cache = false;
                read = files::read_up_to(self.file, &mut self.buffer, position, false);
            }
            let read = read?;
            self.buffer.truncate(read);
        }
        let start = (position - self.start) as usize;
        let end = (start + length).min(self.buffer.len());
        Ok(&self.buffer[start.min(end)..end])
    }
}
