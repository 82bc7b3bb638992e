//! A partition's manifest: the only authority on the size of its sealed segments.

use std::ops::Range;

use bytes::BufMut;
use highwater_protocol::ids::{LeaderEpoch, Offset};

use super::cleaning::CleanState;
use super::envelope::{self, Fields, FormatError};
use super::segment_name::SegmentName;

const MAGIC: [u8; 4] = *b"HWMA";
/// Version 1 knew nothing of producers, version 2 nothing of compaction.
const VERSION: u16 = 3;

/// What a partition's directory holds, but for the unsealed tail.
///
/// Files whose serial number is `next_serial` or larger are the unsealed tail, those of repaired segments aside; other
/// ones that are not listed are leftovers of truncation or retention. A missing manifest means the default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// Raised by truncation and reset: completions of earlier flush rounds are void.
    pub log_generation: u64,
    /// The first offset that is kept.
    pub log_start: Offset,
    /// The serial number of the first file that is not sealed.
    pub next_serial: u64,
    /// A flush failed: what is in the page cache may not be on the disk.
    pub suspect: bool,
    /// Sealed segments by offset. Each was on stable storage before it was listed.
    pub segments: Vec<SealedSegment>,
    /// Corrupt ranges by offset, disjoint.
    pub holes: Vec<Hole>,
    /// Where each leader epoch starts, within the sealed segments.
    pub epochs: Vec<EpochStart>,
    /// The segment that ended at the log start, or before it where a hole was let go. Its bytes are gone; the snapshot of
    /// producers at its end is kept.
    pub before: Option<SealedSegment>,
    /// No batch below has an idempotent producer.
    pub producers_from: Offset,
    /// How far the log is compacted.
    pub cleaned: CleanState,
}

/// A segment that nothing is appended to any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedSegment {
    /// Which file.
    pub name: SegmentName,
    /// The offset after its last batch.
    pub end_offset: Offset,
    /// Bytes of batches; the file may be longer.
    pub length: u64,
    /// CRC-32 of the header checksums of all batches, one after another; each header holds the checksum of its records.
    pub checksum: u32,
    /// The greatest record timestamp, in milliseconds since the Unix epoch.
    pub max_timestamp: i64,
    /// Append time of the first batch, in microseconds since the Unix epoch.
    pub first_append_time: i64,
    /// Append time of the last batch, in microseconds since the Unix epoch.
    pub last_append_time: i64,
    /// Where the bytes are.
    pub location: Location,
}

/// Where the bytes of a segment are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Location {
    /// In the partition's directory.
    #[default]
    Local,
}

/// A range of offsets whose bytes were on stable storage and are bad or gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// The first offset that cannot be read.
    pub start: Offset,
    /// The next one that can, or where appends went on.
    pub end: Offset,
    /// The file with the bad bytes.
    pub serial: u64,
    /// The bad bytes; empty if they are gone.
    pub positions: Range<u64>,
}

/// Where a leader epoch starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: LeaderEpoch,
    /// Its first offset.
    pub start: Offset,
}

impl Manifest {
    /// The offset after everything that is listed: segments and holes.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        let segments = self.segments.last().map_or(self.log_start, |segment| segment.end_offset);
        let holes = self.holes.last().map_or(self.log_start, |hole| hole.end);
        self.log_start.max(segments).max(holes)
    }

    /// Whether a file of this name belongs to the unsealed tail.
    #[must_use]
    pub const fn is_tail(&self, name: SegmentName) -> bool {
        name.serial >= self.next_serial && !name.is_repaired()
    }

    /// The bytes of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u64_le(self.log_generation);
        out.put_u64_le(self.log_start.0);
        out.put_u64_le(self.next_serial);
        out.put_u8(u8::from(self.suspect));
        out.put_u32_le(self.segments.len() as u32);
        self.segments.iter().for_each(|segment| encode_segment(&mut out, segment));
        out.put_u32_le(self.holes.len() as u32);
        for hole in &self.holes {
            out.put_u64_le(hole.start.0);
            out.put_u64_le(hole.end.0);
            out.put_u64_le(hole.serial);
            out.put_u64_le(hole.positions.start);
            out.put_u64_le(hole.positions.end);
        }
        out.put_u32_le(self.epochs.len() as u32);
        for start in &self.epochs {
            out.put_u32_le(start.epoch.0);
            out.put_u64_le(start.start.0);
        }
        out.put_u8(u8::from(self.before.is_some()));
        if let Some(before) = &self.before {
            encode_segment(&mut out, before);
        }
        out.put_u64_le(self.producers_from.0);
        self.cleaned.encode(&mut out);
        envelope::wrap(MAGIC, VERSION, &out)
    }

    /// The manifest in a file.
    ///
    /// # Errors
    /// When it is damaged, newer than this code, or contradicts itself.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (version, payload) = envelope::unwrap(MAGIC, VERSION, bytes)?;
        let mut fields = Fields(payload);
        let mut manifest = Self {
            log_generation: fields.u64()?,
            log_start: Offset(fields.u64()?),
            next_serial: fields.u64()?,
            suspect: fields.u8()? != 0,
            ..Self::default()
        };
        for _ in 0..fields.count(SEGMENT_BYTES)? {
            manifest.segments.push(decode_segment(&mut fields)?);
        }
        for _ in 0..fields.count(40)? {
            let hole = Hole {
                start: Offset(fields.u64()?),
                end: Offset(fields.u64()?),
                serial: fields.u64()?,
                positions: fields.u64()?..fields.u64()?,
            };
            manifest.holes.push(hole);
        }
        for _ in 0..fields.count(12)? {
            manifest
                .epochs
                .push(EpochStart { epoch: LeaderEpoch(fields.u32()?), start: Offset(fields.u64()?) });
        }
        if version >= 2 {
            manifest.before = match fields.u8()? {
                0 => None,
                1 => Some(decode_segment(&mut fields)?),
                _ => return Err(FormatError::Field("before")),
            };
            manifest.producers_from = Offset(fields.u64()?);
        } else {
            // Batches of idempotent producers were refused then.
            manifest.producers_from = manifest.end_offset();
        }
        if version >= 3 {
            manifest.cleaned = CleanState::decode(&mut fields)?;
        }
        fields.end()?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), FormatError> {
        let segments = self
            .segments
            .iter()
            .all(|segment| segment.name.base_offset <= segment.end_offset && !self.is_tail(segment.name))
            && self.segments.is_sorted_by(|a, b| a.end_offset <= b.name.base_offset);
        let holes =
            self.holes.iter().all(|hole| hole.start < hole.end && hole.positions.start <= hole.positions.end)
                && self.holes.is_sorted_by(|a, b| a.end <= b.start);
        let epochs = self.epochs.is_sorted_by(|a, b| a.epoch < b.epoch && a.start <= b.start);
        let before = self.before.is_none_or(|before| before.end_offset <= self.log_start);
        match (segments, holes, epochs) {
            _ if !before => Err(FormatError::Field("before")),
            (false, ..) => Err(FormatError::Field("segments")),
            (_, false, _) => Err(FormatError::Field("holes")),
            (.., false) => Err(FormatError::Field("epochs")),
            _ => Ok(()),
        }
    }
}

const SEGMENT_BYTES: usize = 61;

fn encode_segment(out: &mut Vec<u8>, segment: &SealedSegment) {
    out.put_u64_le(segment.name.serial);
    out.put_u64_le(segment.name.base_offset.0);
    out.put_u64_le(segment.end_offset.0);
    out.put_u64_le(segment.length);
    out.put_u32_le(segment.checksum);
    out.put_i64_le(segment.max_timestamp);
    out.put_i64_le(segment.first_append_time);
    out.put_i64_le(segment.last_append_time);
    match segment.location {
        Location::Local => out.put_u8(0),
    }
}

fn decode_segment(fields: &mut Fields<'_>) -> Result<SealedSegment, FormatError> {
    Ok(SealedSegment {
        name: SegmentName { serial: fields.u64()?, base_offset: Offset(fields.u64()?) },
        end_offset: Offset(fields.u64()?),
        length: fields.u64()?,
        checksum: fields.u32()?,
        max_timestamp: fields.i64()?,
        first_append_time: fields.i64()?,
        last_append_time: fields.i64()?,
        location: match fields.u8()? {
            0 => Location::Local,
            _ => return Err(FormatError::Field("location")),
        },
    })
}

/// Cuts an epoch history so that it ends before `end`.
pub fn truncate_epochs(epochs: &mut Vec<EpochStart>, end: Offset) {
    epochs.retain(|start| start.start < end);
}

/// Notes that `epoch` wrote at `offset`, if it is a new one.
pub fn note_epoch(epochs: &mut Vec<EpochStart>, epoch: LeaderEpoch, offset: Offset) {
    if epochs.last().is_none_or(|last| last.epoch < epoch) {
        epochs.push(EpochStart { epoch, start: offset });
    }
}

/// Drops what ended before `log_start`, and lets the oldest epoch that is left start there.
pub fn start_epochs_at(epochs: &mut Vec<EpochStart>, log_start: Offset) {
    let ended = epochs.iter().skip(1).take_while(|next| next.start <= log_start).count();
    epochs.drain(..ended);
    if let Some(first) = epochs.first_mut() {
        first.start = first.start.max(log_start);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::log::cleaning::Passed;
    use crate::time::Wall;

    fn example() -> Manifest {
        let segment = |serial, base, end| SealedSegment {
            name: SegmentName { serial, base_offset: Offset(base) },
            end_offset: Offset(end),
            length: 1000,
            checksum: 7,
            max_timestamp: -1,
            first_append_time: 5,
            last_append_time: 6,
            location: Location::Local,
        };
        Manifest {
            log_generation: 3,
            log_start: Offset(10),
            next_serial: 9,
            suspect: true,
            segments: vec![segment(1, 10, 20), segment(4, 25, 30)],
            holes: vec![Hole { start: Offset(20), end: Offset(25), serial: 1, positions: 900..1000 }],
            epochs: vec![EpochStart { epoch: LeaderEpoch(2), start: Offset(10) }],
            before: Some(segment(0, 0, 10)),
            producers_from: Offset(12),
            cleaned: CleanState::default(),
        }
    }

    #[test]
    fn round_trip() {
        let mut manifest = example();
        let passed = Passed { upto: Offset(15), tombstones_below: Offset(0), tombstones_left: true };
        manifest.cleaned.passed(passed, Duration::ZERO, Wall(3));
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
        assert_eq!(manifest.end_offset(), Offset(30));
        assert_eq!(Manifest::decode(&Manifest::default().encode()).unwrap(), Manifest::default());
    }

    #[test]
    fn a_manifest_of_before_producers_says_that_there_are_none() {
        let manifest =
            Manifest { before: None, producers_from: Offset(0), cleaned: CleanState::default(), ..example() };
        let bytes = manifest.encode();
        let payload = &bytes[10..bytes.len() - 4 - 9 - 12];
        let old = Manifest::decode(&envelope::wrap(MAGIC, 1, payload)).unwrap();
        assert_eq!(old, Manifest { producers_from: Offset(30), ..manifest });
    }

    #[test]
    fn a_manifest_of_before_compaction_says_that_all_is_dirty() {
        let manifest = Manifest { cleaned: CleanState::default(), ..example() };
        let bytes = manifest.encode();
        let payload = &bytes[10..bytes.len() - 4 - 12];
        assert_eq!(Manifest::decode(&envelope::wrap(MAGIC, 2, payload)).unwrap(), manifest);
    }

    #[test]
    fn a_repaired_segment_is_never_taken_for_the_tail() {
        let mut manifest = example();
        let repaired =
            SegmentName { serial: crate::log::segment_name::REPAIRED_SERIAL, ..manifest.segments[0].name };
        manifest.segments[0].name = repaired;
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
        assert!(!manifest.is_tail(repaired));
        assert!(manifest.is_tail(SegmentName { serial: 9, base_offset: Offset(30) }));
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused() {
        let mut overlapping = example();
        overlapping.segments[1].name.base_offset = Offset(19);
        assert_eq!(Manifest::decode(&overlapping.encode()), Err(FormatError::Field("segments")));
        let mut unsealed = example();
        unsealed.next_serial = 4;
        assert_eq!(Manifest::decode(&unsealed.encode()), Err(FormatError::Field("segments")));
        let mut empty_hole = example();
        empty_hole.holes[0].end = Offset(20);
        assert_eq!(Manifest::decode(&empty_hole.encode()), Err(FormatError::Field("holes")));
    }

    #[test]
    fn epochs_are_cut_at_both_ends() {
        let mut epochs = Vec::new();
        for (epoch, offset) in [(1, 0), (1, 5), (3, 10), (7, 20)] {
            note_epoch(&mut epochs, LeaderEpoch(epoch), Offset(offset));
        }
        assert_eq!(epochs.len(), 3);
        truncate_epochs(&mut epochs, Offset(20));
        assert_eq!(epochs.len(), 2);
        start_epochs_at(&mut epochs, Offset(12));
        assert_eq!(epochs, [EpochStart { epoch: LeaderEpoch(3), start: Offset(12) }]);
    }
}
