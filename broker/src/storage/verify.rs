//! Verification of segments that were there before the broker started, and their indexes.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use highwater_broker_core::log::index::SparseIndex;
use highwater_broker_core::log::manifest::{Hole, SealedSegment};
use highwater_broker_core::log::scan::{Depth, Found, Scanner};
use highwater_protocol::ids::{LeaderEpoch, Offset, TopicPartition};

use super::error::Error;
use super::file_system::{File, Mapping};
use super::files::{self, FileBytes};
use super::segment::SegmentFile;
use super::shared::LogShared;
use super::store::Store;

/// Bytes that are read at a time when an index is built: batches are often smaller, and headers are all it needs.
const READ_AHEAD: usize = 128 << 10;

/// The index of a sealed segment: at hand, from its file, or built from the segment. May wait for the disk.
pub(super) fn index_of(
    store: &Store,
    log: &LogShared,
    segment: &Arc<SegmentFile>,
    entry: &SealedSegment,
) -> Result<Arc<SparseIndex>, Error> {
    if let Some(index) = &segment.handle.lock().index {
        return Ok(Arc::clone(index));
    }
    let file = store.cache().file(segment).map_err(Error::io("open segment", &segment.path))?;
    let whole = file.length().map_err(Error::io("measure segment", &segment.path))? >= entry.length;
    let path = log.directory.join(entry.name.index_name());
    let stored = files::read(&**store.file_system(), &path).ok().flatten().filter(|_| whole);
    let stored = stored.and_then(|bytes| SparseIndex::decode(&bytes, entry.length, entry.checksum).ok());
    let index = match stored {
        Some(index) => index,
        None => {
            let built =
                build(&*file, log.partition, entry).map_err(Error::io("read segment", &segment.path))?;
            for hole in built.holes {
                note_hole(log, segment, hole);
            }
            built.index
        }
    };
    let index = Arc::new(index);
    segment.handle.lock().index = Some(Arc::clone(&index));
    Ok(index)
}

/// What a walk over all headers of a sealed segment yields.
pub(super) struct Built {
    pub(super) index: SparseIndex,
    pub(super) holes: Vec<Hole>,
    /// Of the headers up to `length`.
    pub(super) checksum: u32,
    /// Where the last batch below the limit ends.
    pub(super) length: u64,
    pub(super) end_offset: Offset,
    /// The first offset of the last batch.
    pub(super) last_base_offset: Offset,
    pub(super) last_append_time: i64,
}

pub(super) fn build(file: &dyn File, partition: TopicPartition, entry: &SealedSegment) -> io::Result<Built> {
    build_up_to(file, partition, entry, None)
}

/// Walks over the headers of a segment, up to the first batch at or after `limit`.
pub(super) fn build_up_to(
    file: &dyn File,
    partition: TopicPartition,
    entry: &SealedSegment,
    limit: Option<Offset>,
) -> io::Result<Built> {
    let mut built = Built {
        index: SparseIndex::default(),
        holes: Vec::new(),
        checksum: 0,
        length: 0,
        end_offset: entry.name.base_offset,
        last_base_offset: entry.name.base_offset,
        last_append_time: i64::MIN,
    };
    let mut checksum = crc32fast::Hasher::new();
    let source = FileBytes::new(file, entry.length.min(file.length()?), false, READ_AHEAD);
    // Where a batch ends is in the producer's part of its header, which the second checksum covers.
    let mut scanner =
        Scanner::new(source, partition, Depth::Full, entry.name.base_offset, LeaderEpoch(0)).up_to(limit);
    let mut bad: Option<Range<u64>> = None;
    while let Some(found) = scanner.next_found()? {
        match found {
            Found::Batch { position, header } => {
                let start = built.end_offset;
                if bad.is_some() || header.leader.base_offset > start {
                    built.index.break_here();
                    let positions = bad.take().unwrap_or(position..position);
                    let end = header.leader.base_offset;
                    built.holes.push(Hole { start, end, serial: entry.name.serial, positions });
                }
                built.index.note(&header, position);
                checksum.update(&header.header_crc.to_le_bytes());
                built.length = position + u64::from(header.batch_length);
                built.end_offset = header.end_offset();
                built.last_base_offset = header.leader.base_offset;
                built.last_append_time = built.last_append_time.max(header.leader.append_time);
            }
            Found::Bad { positions, .. } | Found::Slack { positions } => {
                bad = Some(bad.map_or(positions.clone(), |bad| bad.start..positions.end));
            }
        }
    }
    if limit.is_none() && built.end_offset < entry.end_offset {
        let positions = bad.unwrap_or(built.length..entry.length);
        let (start, end) = (built.end_offset, entry.end_offset);
        built.holes.push(Hole { start, end, serial: entry.name.serial, positions });
    }
    built.checksum = checksum.finalize();
    Ok(built)
}

/// Checks every batch of the stretches that touch `positions` and were not checked since the start. What is bad becomes a
/// hole of the segment. `available`: bytes that the file has; a segment may have been cut behind the broker's back.
pub(super) fn verify(
    log: &LogShared,
    segment: &SegmentFile,
    entry: &SealedSegment,
    index: &SparseIndex,
    mapping: &Arc<dyn Mapping>,
    positions: Range<u64>,
    available: u64,
) -> io::Result<()> {
    if segment.is_trusted() {
        return Ok(());
    }
    for stretch in index.stretches(&positions) {
        if segment.is_verified(stretch) {
            continue;
        }
        let range = index.stretch(stretch, entry.length);
        let there = range.start..range.end.min(available).max(range.start);
        mapping.populate(there.clone())?;
        let bytes = Arc::clone(mapping).slice(there);
        let offsets = stretch_offsets(index, stretch, entry);
        for hole in check_stretch(&bytes, log.partition, entry, range, offsets) {
            note_hole(log, segment, hole);
        }
        segment.mark_verified(stretch);
    }
    Ok(())
}

fn stretch_offsets(index: &SparseIndex, stretch: usize, entry: &SealedSegment) -> Range<Offset> {
    let at = |number: usize| index.entries().get(number).map_or(entry.end_offset, |entry| entry.offset);
    at(stretch)..at(stretch + 1)
}

fn check_stretch(
    bytes: &[u8],
    partition: TopicPartition,
    entry: &SealedSegment,
    stretch: Range<u64>,
    offsets: Range<Offset>,
) -> Vec<Hole> {
    let mut holes = Vec::new();
    let mut scanner = Scanner::new(bytes, partition, Depth::Full, offsets.start, LeaderEpoch(0));
    let mut expected = offsets.start;
    let mut bad: Option<Range<u64>> = None;
    let serial = entry.name.serial;
    let mut push = |offsets: Range<Offset>, positions: Range<u64>| {
        if offsets.start < offsets.end {
            let positions = stretch.start + positions.start..stretch.start + positions.end;
            holes.push(Hole { start: offsets.start, end: offsets.end, serial, positions });
        }
    };
    // Scanning bytes in memory cannot fail.
    while let Ok(Some(found)) = scanner.next_found() {
        match found {
            Found::Batch { position, header } => {
                let positions = bad.take().unwrap_or(position..position);
                push(expected..header.leader.base_offset, positions);
                expected = header.end_offset();
            }
            Found::Bad { positions, .. } | Found::Slack { positions } => {
                bad = Some(bad.map_or(positions.clone(), |bad| bad.start..positions.end));
            }
        }
    }
    // Whatever follows the last good batch in this stretch is bad or missing up to the stretch's end.
    let start = bad.map_or(bytes.len() as u64, |bad| bad.start);
    let tail = start..stretch.end - stretch.start;
    push(expected..offsets.end, tail);
    holes
}

/// Takes note of a corrupt range that a reader came across, and says so once. False: it was known.
pub(super) fn note_hole(log: &LogShared, segment: &SegmentFile, hole: Hole) -> bool {
    if !segment.add_hole(hole.clone()) {
        return false;
    }
    tracing::error!(
        partition = %log.partition,
        file = %segment.path.display(),
        position = hole.positions.start,
        bytes = hole.positions.end - hole.positions.start,
        start = %hole.start,
        end = %hole.end,
        "batches on the disk are corrupt: reads of these offsets are refused, everything else goes on"
    );
    log.add_discovered(hole);
    true
}
