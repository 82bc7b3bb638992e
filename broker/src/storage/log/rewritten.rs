//! A segment that is written anew beside those that it is to stand for.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use highwater_broker_core::log::manifest::{Hole, Location, SealedSegment};
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_protocol::batch::BatchHeader;
use highwater_protocol::ids::Offset;

use super::{Active, StampedBatch};
use crate::storage::error::Error;
use crate::storage::file_system::{File, FileSystem, OpenMode};
use crate::storage::files;
use crate::storage::segment::SegmentFile;

/// Bytes written at a time.
pub(super) const PIECE: usize = 1 << 20;

/// A segment file that is being written.
#[derive(Debug)]
pub(super) struct Rewritten {
    pub(super) state: Active,
    pub(super) file: Arc<dyn File>,
    buffer: Vec<u8>,
    /// Where the bytes in `buffer` go.
    position: u64,
    /// The offset after the last batch.
    pub(super) end: Offset,
    /// Ranges that stay bad.
    pub(super) holes: Vec<Hole>,
}

impl Rewritten {
    /// Creates the file. What an attempt that was interrupted left is listed nowhere and mapped by nobody.
    pub(super) fn create(fs: &dyn FileSystem, segment: Arc<SegmentFile>) -> Result<Self, Error> {
        let file = fs
            .open(&segment.path, OpenMode::CreateTruncated)
            .map_err(Error::io("create segment", &segment.path))?;
        let end = segment.name.base_offset;
        Ok(Self {
            state: Active::new(segment),
            file,
            buffer: Vec::new(),
            position: 0,
            end,
            holes: Vec::new(),
        })
    }

    pub(super) fn name(&self) -> SegmentName {
        self.state.file.name
    }

    pub(super) fn path(&self) -> PathBuf {
        self.state.file.path.clone()
    }

    /// Bytes so far, those included that are not written yet.
    pub(super) const fn length(&self) -> u64 {
        self.position + self.buffer.len() as u64
    }

    /// Adds batches of another replica.
    pub(super) fn fill(&mut self, batches: &[StampedBatch]) -> std::io::Result<()> {
        for batch in batches {
            let header = BatchHeader { header_crc: batch.header_crc(), ..batch.header };
            self.push(&header, &[&batch.head, &batch.tail])?;
        }
        Ok(())
    }

    /// Adds a batch, which may be in pieces.
    pub(super) fn push(&mut self, header: &BatchHeader, pieces: &[&[u8]]) -> std::io::Result<()> {
        self.state.note(header, self.length(), header.header_crc);
        pieces.iter().for_each(|piece| self.buffer.extend_from_slice(piece));
        self.end = header.end_offset();
        self.state.position = self.length();
        if self.buffer.len() >= PIECE { self.write() } else { Ok(()) }
    }

    /// Batches up to `next` are missing: that stays a hole.
    pub(super) fn note_gap(&mut self, next: Offset) {
        if next > self.end {
            self.state.index.break_here();
            let at = self.length();
            let positions: Range<u64> = at..at;
            let serial = self.name().serial;
            self.holes.push(Hole { start: self.end, end: next, serial, positions });
            self.end = next;
        }
    }

    /// Writes what is left.
    pub(super) fn write(&mut self) -> std::io::Result<()> {
        files::write_all(&*self.file, &self.buffer, self.position)?;
        self.position += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// What the manifest says of it.
    pub(super) fn entry(&self, end_offset: Offset) -> SealedSegment {
        let state = &self.state;
        SealedSegment {
            name: self.name(),
            end_offset,
            length: state.position,
            checksum: state.checksum.clone().finalize(),
            max_timestamp: state.index.max_timestamp(),
            first_append_time: state.first_append_time,
            last_append_time: state.last_append_time,
            location: Location::Local,
        }
    }
}
