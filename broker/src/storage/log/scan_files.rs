//! Scanning the files of a log that are not sealed.

use std::ops::Range;
use std::sync::Arc;

use highwater_broker_core::log::manifest::{EpochStart, note_epoch};
use highwater_broker_core::log::recovery::{Gap, Piece, Run};
use highwater_broker_core::log::scan::{Depth, Found, Scanner};
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_broker_core::producer::ProducerTable;
use highwater_protocol::batch::BatchHeader;
use highwater_protocol::ids::{LeaderEpoch, Offset};

use super::Active;
use crate::storage::error::Error;
use crate::storage::file_system::File;
use crate::storage::files::{self, FileBytes};
use crate::storage::segment::SegmentFile;
use crate::storage::store::Store;

/// Bytes read at a time.
const READ_AHEAD: usize = 2 << 20;

/// What the unsealed files hold.
#[derive(Debug, Default)]
pub(super) struct FilesScan {
    pub(super) files: Vec<ScannedFile>,
    pub(super) pieces: Vec<Piece>,
    pub(super) epochs: Vec<EpochStart>,
    /// What is known of producers after everything that was found, if that was asked for.
    pub(super) producers: Option<ProducerTable>,
    pub(super) bytes: u64,
}

impl FilesScan {
    /// Where good batches end that go on from `start` without a gap.
    pub(super) fn good_end(&self, start: Offset) -> Offset {
        let runs = self.pieces.iter().map_while(|piece| match piece {
            Piece::Run(run) => Some(run.offsets.end),
            Piece::Gap(_) => None,
        });
        runs.last().unwrap_or(start)
    }
}

/// One of the files.
#[derive(Debug)]
pub(super) struct ScannedFile {
    pub(super) segment: Arc<SegmentFile>,
    pub(super) file: Arc<dyn File>,
    /// Where bytes end that are not zero.
    pub(super) nonzero_end: u64,
    /// The file as a segment after each of its runs.
    pub(super) states: Vec<Active>,
}

/// Scans `segments` in order. `past_cache`: what counts is on the disk, not in the page cache.
pub(super) fn scan_files(
    store: &Store,
    segments: &[Arc<SegmentFile>],
    start: Offset,
    epochs: &[EpochStart],
    producers: Option<ProducerTable>,
    past_cache: bool,
) -> Result<FilesScan, Error> {
    let mut scan = FilesScan { epochs: epochs.to_vec(), producers, ..FilesScan::default() };
    let mut expected = start;
    let mut pending: Option<Gap> = None;
    for (number, segment) in segments.iter().enumerate() {
        let file = store.cache().file(segment).map_err(Error::io("open segment", &segment.path))?;
        let length = file.length().map_err(Error::io("measure segment", &segment.path))?;
        // What a later file starts with was truncated away here.
        let limit = segments[number + 1..].iter().map(|later| later.name.base_offset).min();
        let mut one = FileScan { scan: &mut scan, number, expected, pending: pending.take() };
        let (state, nonzero_end) = one
            .run(&*file, length, segment, limit, past_cache)
            .map_err(Error::io("read segment", &segment.path))?;
        expected = one.expected;
        pending = one.pending;
        scan.bytes += length;
        let mut states = state;
        for state in &mut states {
            state.allocated = length;
        }
        scan.files.push(ScannedFile { segment: Arc::clone(segment), file, nonzero_end, states });
    }
    scan.pieces.extend(pending.map(Piece::Gap));
    Ok(scan)
}

/// The scan of one file.
struct FileScan<'a> {
    scan: &'a mut FilesScan,
    number: usize,
    expected: Offset,
    pending: Option<Gap>,
}

impl FileScan<'_> {
    fn run(
        &mut self,
        file: &dyn File,
        length: u64,
        segment: &Arc<SegmentFile>,
        limit: Option<Offset>,
        past_cache: bool,
    ) -> std::io::Result<(Vec<Active>, u64)> {
        let SegmentName { base_offset, .. } = segment.name;
        let epoch = self.scan.epochs.last().map_or(LeaderEpoch(0), |start| start.epoch);
        let source = FileBytes::new(file, length, past_cache, READ_AHEAD);
        let expected = self.expected.max(base_offset);
        let mut scanner = Scanner::new(source, segment.partition, Depth::Full, expected, epoch).up_to(limit);
        let mut active = Active::new(Arc::clone(segment));
        let mut states = Vec::new();
        let mut run: Option<Run> = None;
        let mut nonzero_end = 0;
        while let Some(found) = scanner.next_found()? {
            match found {
                Found::Batch { position, header } => {
                    let follows = self.pending.is_none() && header.leader.base_offset == self.expected;
                    if !follows || run.is_none() {
                        self.end_run(&mut run, &active, &mut states);
                        if header.leader.base_offset > self.expected {
                            self.push_gap(position);
                            active.index.break_here();
                        }
                        self.pending = None;
                        run = Some(self.new_run(position, &header));
                    }
                    self.note(&mut active, position, &header);
                    if let Some(run) = &mut run {
                        run.offsets.end = header.end_offset();
                        run.positions.end = active.position;
                        run.durable_end = run.durable_end.max(header.leader.durable_end);
                    }
                    nonzero_end = active.position;
                }
                Found::Bad { positions, whole, .. } => {
                    nonzero_end = positions.end;
                    if self.pending.is_none() {
                        let (file, start) = (self.number, self.expected);
                        self.pending = Some(Gap { file, start, positions, whole });
                    } else if let Some(gap) = self.pending.as_mut().filter(|gap| gap.file == self.number) {
                        gap.positions.end = positions.end;
                    }
                }
                Found::Slack { .. } => {}
            }
        }
        if scanner.position() < length && limit.is_some() {
            // What lies behind the limit is dead, whatever it is, and has to be cut off: without the file behind this one
            // it would look alive again.
            nonzero_end = nonzero_end.max(last_nonzero(file, scanner.position()..length, past_cache)?);
        }
        self.end_run(&mut run, &active, &mut states);
        Ok((states, nonzero_end))
    }

    fn end_run(&mut self, run: &mut Option<Run>, active: &Active, states: &mut Vec<Active>) {
        if let Some(run) = run.take() {
            self.scan.pieces.push(Piece::Run(run));
            states.push(active.clone());
        }
    }

    fn push_gap(&mut self, position: u64) {
        let gap = self.pending.take().unwrap_or_else(|| {
            let start = self.expected;
            // Missing where the last good batch ends, which may be in an earlier file.
            let last = self.scan.pieces.iter().rev().find_map(|piece| match piece {
                Piece::Run(run) => Some((run.file, run.positions.end)),
                Piece::Gap(_) => None,
            });
            let (file, at) = last.unwrap_or((self.number, 0));
            let end = if file == self.number { position } else { at };
            Gap { file, start, positions: at..end.max(at), whole: false }
        });
        self.scan.pieces.push(Piece::Gap(gap));
    }

    const fn new_run(&self, position: u64, header: &BatchHeader) -> Run {
        Run {
            file: self.number,
            offsets: header.leader.base_offset..header.leader.base_offset,
            positions: position..position,
            durable_end: Offset::ZERO,
        }
    }

    fn note(&mut self, active: &mut Active, position: u64, header: &BatchHeader) {
        active.note(header, position, header.header_crc);
        active.position = position + u64::from(header.batch_length);
        if let Some(producers) = &mut self.scan.producers {
            producers.apply(header);
        }
        note_epoch(&mut self.scan.epochs, header.leader.leader_epoch, header.leader.base_offset);
        self.expected = header.end_offset();
    }
}

/// Where the last byte in `range` ends that is not zero; 0 if there is none.
fn last_nonzero(file: &dyn File, range: Range<u64>, past_cache: bool) -> std::io::Result<u64> {
    let mut end = 0;
    let mut position = range.start;
    let mut buffer = vec![0; READ_AHEAD];
    while position < range.end {
        let length = usize::try_from(range.end - position).unwrap_or(usize::MAX).min(READ_AHEAD);
        let read = files::read_up_to(file, &mut buffer[..length], position, past_cache)?;
        if read == 0 {
            break;
        }
        if let Some(last) = buffer[..read].iter().rposition(|byte| *byte != 0) {
            end = position + last as u64 + 1;
        }
        position += read as u64;
    }
    Ok(end)
}
