//! Reads as owned plans: from memory at once, from resident pages at once, else on an I/O thread.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use highwater_broker_core::log::index::{INTERVAL_BYTES, SparseIndex};
use highwater_broker_core::log::manifest::{Hole, SealedSegment};
use highwater_protocol::batch::{BatchHeader, PRODUCER_HEADER_LENGTH};
use highwater_protocol::ids::Offset;
use highwater_protocol::limits::HEADER_LENGTH_MAX;

use super::error::{Error, ReadError};
use super::file_system::Mapping;
use super::segment::SegmentFile;
use super::shared::LogShared;
use super::store::Store;
use super::verify;

/// A read that does not need its log any more.
#[derive(Debug)]
pub struct ReadPlan(Kind);

#[derive(Debug)]
enum Kind {
    Memory(Vec<Bytes>),
    Segment(SegmentRead),
}

/// A read from one segment file.
#[derive(Debug)]
pub(super) struct SegmentRead {
    pub(super) store: Arc<Store>,
    pub(super) log: Arc<LogShared>,
    pub(super) file: Arc<SegmentFile>,
    /// Bytes to map of an active segment, so that the mapping lasts while it grows.
    pub(super) map_bytes: u64,
    pub(super) from: Offset,
    pub(super) upto: Offset,
    pub(super) bytes_max: usize,
    pub(super) window: Window,
}

/// Where in the file to look.
#[derive(Debug, Clone, Copy)]
pub(super) enum Window {
    /// The segment that was appended to when the plan was made: bytes below `limit` are batches for ever.
    Active {
        /// A batch starts here, at or before the first one wanted.
        start: u64,
        /// A batch starts here, at or before where the last one wanted ends.
        end_floor: u64,
        /// Where the batches ended.
        limit: u64,
    },
    /// A sealed segment: its index says where.
    Sealed(SealedSegment),
}

/// A window with its positions resolved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Positions {
    pub(super) start: u64,
    pub(super) end_floor: u64,
    pub(super) limit: u64,
}

impl ReadPlan {
    pub(super) const fn empty() -> Self {
        Self(Kind::Memory(Vec::new()))
    }

    pub(super) const fn from_memory(batches: Vec<Bytes>) -> Self {
        Self(Kind::Memory(batches))
    }

    pub(super) const fn from_segment(read: SegmentRead) -> Self {
        Self(Kind::Segment(read))
    }

    /// Whether there is nothing to read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(&self.0, Kind::Memory(batches) if batches.is_empty())
    }

    /// The batches, if they can be had without waiting for the disk: from memory, or from pages that are resident and
    /// verified.
    pub fn ready(&mut self) -> Option<Result<Vec<Bytes>, ReadError>> {
        match &mut self.0 {
            Kind::Memory(batches) => Some(Ok(std::mem::take(batches))),
            Kind::Segment(read) => read.ready().map(Ok),
        }
    }

    /// The batches: slices of the mapping, verified if they were not since the broker started. May wait for the disk.
    ///
    /// # Errors
    /// When the first batch is corrupt, or reading fails.
    pub fn execute(&mut self) -> Result<Vec<Bytes>, ReadError> {
        match &mut self.0 {
            Kind::Memory(batches) => Ok(std::mem::take(batches)),
            Kind::Segment(read) => read.execute(),
        }
    }

    /// Like `execute`, on an I/O thread. Dropping the future leaves the read to itself: nothing depends on it.
    pub fn run(self) -> impl Future<Output = Result<Vec<Bytes>, ReadError>> + Send {
        let pending = match self.0 {
            Kind::Memory(batches) => Err(batches),
            Kind::Segment(read) => {
                let store = Arc::clone(&read.store);
                let (sender, receiver) = tokio::sync::oneshot::channel();
                store.file_system().spawn_io(Box::new(move || {
                    // The reader may be gone; its answer goes with it.
                    drop(sender.send(read.execute()));
                }));
                Ok(receiver)
            }
        };
        async move {
            match pending {
                Ok(receiver) => receiver.await.unwrap_or(Err(ReadError::Io(Error::Closed))),
                Err(batches) => Ok(batches),
            }
        }
    }
}

impl SegmentRead {
    fn ready(&self) -> Option<Vec<Bytes>> {
        let index = match self.window {
            Window::Active { .. } => None,
            Window::Sealed(_) => Some(self.file.handle.lock().index.clone()?),
        };
        if self.file.holes().iter().any(|hole| hole.start < self.upto && self.from < hole.end) {
            // Found after the plan was made: the long way tells what is left.
            return None;
        }
        let positions = self.positions(index.as_deref());
        let needed = positions.limit.min(positions.start + self.bytes_max as u64 + INTERVAL_BYTES);
        if let Some(index) = &index
            && index.stretches(&(positions.start..needed)).any(|stretch| !self.file.is_verified(stretch))
        {
            return None;
        }
        // A bad range that was found since the plan was made: `execute` reads around it.
        if self.file.holes().iter().any(|hole| hole.end > self.from && hole.start < self.upto) {
            return None;
        }
        let mapping = self.store.cache().present_mapping(&self.file, positions.limit)?;
        if !mapping.is_resident(positions.start..needed) {
            return None;
        }
        let range = self.find_range(&mapping, positions, self.upto).ok()?;
        // One batch may be longer than what was looked at.
        let resident = range.end <= needed || mapping.is_resident(needed..range.end);
        resident.then(|| slice(mapping, range))
    }

    fn execute(&self) -> Result<Vec<Bytes>, ReadError> {
        let index = match self.window {
            Window::Active { .. } => None,
            Window::Sealed(entry) => {
                Some(verify::index_of(&self.store, &self.log, &self.file, &entry).map_err(ReadError::Io)?)
            }
        };
        let mut positions = self.positions(index.as_deref());
        if index.is_some() {
            positions.limit = positions.limit.min(self.available()?).max(positions.start);
        }
        let wanted = if index.is_some() { positions.limit } else { self.map_bytes };
        let mapping = self
            .store
            .cache()
            .mapping(&self.file, positions.limit, wanted)
            .map_err(|error| self.io(error))?;
        let needed =
            positions.start..positions.limit.min(positions.start + self.bytes_max as u64 + INTERVAL_BYTES);
        mapping.populate(needed.clone()).map_err(|error| self.io(error))?;
        let mut upto = self.upto;
        if let (Some(index), Window::Sealed(entry)) = (&index, &self.window) {
            let looked_at = positions.start..(positions.start + 1).max(needed.end);
            verify::verify(&self.log, &self.file, entry, index, &mapping, looked_at, positions.limit)
                .map_err(|error| self.io(error))?;
            let holes = self.file.holes();
            if let Some(hole) = holes.iter().find(|hole| hole.end > self.from) {
                if hole.start <= self.from {
                    return Err(ReadError::CorruptRange { start: hole.start, end: hole.end });
                }
                upto = upto.min(hole.start);
                // The end is searched from a batch that lies before the hole.
                let floor = index.floor_offset(upto).map_or(positions.start, |floor| floor.position);
                positions.end_floor = positions.end_floor.min(floor);
            }
        }
        let range = self.find_range(&mapping, positions, upto)?;
        if range.end > needed.end {
            // One batch is longer than what was asked for; its stretch has been verified as a whole.
            mapping.populate(needed.end..range.end).map_err(|error| self.io(error))?;
        }
        Ok(slice(mapping, range))
    }

    /// Bytes that the file has: fewer than the manifest says if somebody cut it.
    fn available(&self) -> Result<u64, ReadError> {
        let file = self.store.cache().file(&self.file).map_err(|error| self.io(error))?;
        file.length().map_err(|error| self.io(error))
    }

    fn positions(&self, index: Option<&SparseIndex>) -> Positions {
        match (self.window, index) {
            (Window::Active { start, end_floor, limit }, _) => Positions { start, end_floor, limit },
            (Window::Sealed(entry), Some(index)) => {
                let start = index.floor_offset(self.from).map_or(0, |floor| floor.position);
                let by_bytes = index.floor_position(start + self.bytes_max as u64);
                let by_offset = index.floor_offset(self.upto);
                let floors = by_bytes.into_iter().chain(by_offset).map(|floor| floor.position);
                Positions { start, end_floor: floors.min().unwrap_or(start), limit: entry.length }
            }
            (Window::Sealed(entry), None) => Positions { start: 0, end_floor: 0, limit: entry.length },
        }
    }

    /// Where the wanted batches are: walks over headers, a stretch of the index at either end.
    fn find_range(
        &self,
        mapping: &Arc<dyn Mapping>,
        positions: Positions,
        upto: Offset,
    ) -> Result<Range<u64>, ReadError> {
        let mut walk = Walk::new(mapping, &self.file, positions.start, positions.limit);
        let start = loop {
            match walk.next_header().map_err(|error| self.io(error))? {
                Some((position, header)) if header.end_offset() > self.from => break position,
                Some(_) => {}
                None => return Ok(positions.limit..positions.limit),
            }
        };
        let mut walk = Walk::new(mapping, &self.file, positions.end_floor.max(start), positions.limit);
        let mut end = walk.position;
        // What starts beyond the bound is not verified, so it is not looked at.
        while walk.position == start || walk.position - start < self.bytes_max as u64 {
            let next = walk.next_header().map_err(|error| self.io(error))?;
            let Some((position, header)) = next else { break };
            let batch_end = position + u64::from(header.batch_length);
            let fits = batch_end - start <= self.bytes_max as u64 || position == start;
            if header.end_offset() > upto || !fits {
                break;
            }
            end = batch_end;
        }
        Ok(start..end)
    }

    fn io(&self, error: std::io::Error) -> ReadError {
        ReadError::Io(Error::io("read segment", &self.file.path)(error))
    }
}

fn slice(mapping: Arc<dyn Mapping>, range: Range<u64>) -> Vec<Bytes> {
    if range.is_empty() { Vec::new() } else { vec![mapping.slice(range)] }
}

/// Goes from batch header to batch header in verified bytes, around known bad ranges.
pub(super) struct Walk<'a> {
    mapping: &'a Arc<dyn Mapping>,
    holes: Vec<Hole>,
    pub(super) position: u64,
    limit: u64,
    view: Bytes,
    view_start: u64,
}

const HEADERS_MAX: u64 = (HEADER_LENGTH_MAX + PRODUCER_HEADER_LENGTH) as u64;

impl<'a> Walk<'a> {
    pub(super) fn new(mapping: &'a Arc<dyn Mapping>, file: &SegmentFile, position: u64, limit: u64) -> Self {
        Self { mapping, holes: file.holes(), position, limit, view: Bytes::new(), view_start: 0 }
    }

    /// The next batch and where it starts.
    pub(super) fn next_header(&mut self) -> std::io::Result<Option<(u64, BatchHeader)>> {
        while let Some(hole) = self.holes.iter().find(|hole| hole.positions.contains(&self.position)) {
            self.position = hole.positions.end;
        }
        if self.position >= self.limit {
            return Ok(None);
        }
        let position = self.position;
        let end = self.limit.min(position + HEADERS_MAX);
        let in_view = position >= self.view_start && end <= self.view_start + self.view.len() as u64;
        if !in_view {
            let view_end = self.limit.min(position + INTERVAL_BYTES.max(HEADERS_MAX));
            self.view = Arc::clone(self.mapping).slice(position..view_end);
            self.view_start = position;
        }
        let header = BatchHeader::decode(&self.view[(position - self.view_start) as usize..])
            .map_err(std::io::Error::other)?;
        self.position += u64::from(header.batch_length);
        Ok(Some((position, header)))
    }
}
