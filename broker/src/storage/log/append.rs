//! Appending: one vectored positional write for all batches of a call.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use highwater_broker_core::durability::Durability;
use highwater_broker_core::log::cleaning::merge::{TrimError, trim};
use highwater_broker_core::log::index::SparseIndex;
use highwater_broker_core::log::manifest::note_epoch;
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_protocol::batch::{BatchHeader, HEADER_LENGTH, RecordsError};
use highwater_protocol::ids::{Offset, TopicPartition};

use super::{Active, Log, StampedBatch};
use crate::storage::error::{AppendError, Error, is_full};
use crate::storage::file_system::File;
use crate::storage::files;
use crate::storage::segment::SegmentFile;
use crate::storage::shared::Lane;
use crate::storage::store::DiskState;
use crate::storage::structure::move_to_trash;

/// Buffers of one write: what the kernel takes at the most.
const BUFFERS_MAX: usize = 1024;

/// Bytes of the page cache that are written back at a time, and what their ends are multiples of.
const WRITE_BACK_BYTES: u64 = 8 << 20;
const WRITE_BACK_PIECE: u64 = 64 << 10;

/// Bytes that a file is extended by first; each further step is twice the one before.
const STEP_BYTES_MIN: u64 = 64 << 10;
/// Bytes that a file is extended by at the most: what is scanned in vain after a crash.
const STEP_BYTES_MAX: u64 = 16 << 20;

impl Log {
    /// Appends batches behind one another, in one vectored write to one segment, and marks the log for the flusher.
    ///
    /// When it returns, readers can have the batches and they survive the death of the process; see `Log` about power
    /// cuts. It waits for the page cache, not for the disk, unless the kernel makes writers wait
    /// (`Log::unflushed_bytes`) or a file has to be made or extended.
    ///
    /// # Errors
    /// Nothing of the call is appended then: the log end stays.
    ///
    /// # Panics
    /// When offsets do not go on at the log end or epochs decrease: the caller stamps or checks them.
    pub fn append(&mut self, batches: &[StampedBatch]) -> Result<(), AppendError> {
        let Some(last) = batches.last() else { return Ok(()) };
        if self.suspect {
            return Err(AppendError::Suspect);
        }
        if self.store.is_closed() {
            return Err(AppendError::Closed);
        }
        if self.store.disk() == DiskState::ReadOnly {
            return Err(AppendError::Full(self.shared.directory.clone()));
        }
        self.check_order(batches);
        let length: u64 = batches.iter().map(|batch| u64::from(batch.header.batch_length)).sum();
        self.make_room(length)?;
        let Some(active) = &mut self.active else { unreachable!("make_room opened a segment") };
        let segment = Arc::clone(&active.file);
        let position = active.position;
        let file = self.store.cache().file(&segment).map_err(|error| self.append_error(&segment, error))?;
        if let Err((written, error)) = write_batches(&*file, batches, position) {
            return Err(self.undo(&segment, &file, batches, position..position + written, error));
        }
        self.commit(batches, length);
        let log_end = last.header.end_offset();
        // Unflushed files stay open: when there are too many, the flush does not wait.
        let eager = self.config.durability == Durability::Fsync || self.store.cache().is_crowded();
        if self.shared.wrote(&segment, &file, log_end, length, eager) {
            self.store.flusher().enqueue(&self.shared, Lane::Eager);
        }
        if !eager {
            self.write_back(&file);
        }
        Ok(())
    }

    /// Keeps what waits for the disk small where nobody asks for flushes: the flush of a whole segment at once holds up
    /// everything else that needs the disk or a processor.
    fn write_back(&mut self, file: &Arc<dyn File>) {
        let Some(active) = &mut self.active else { return };
        // A piece that is not full is written again later.
        let end = active.position - active.position % WRITE_BACK_PIECE;
        if end < active.written_back + WRITE_BACK_BYTES
            || !self.store.begin_write_back(file, active.written_back..end)
        {
            return;
        }
        active.written_back = end;
    }

    fn check_order(&self, batches: &[StampedBatch]) {
        let mut offset = self.log_end;
        let mut epoch = self.last_epoch().unwrap_or_default();
        for batch in batches {
            let leader = &batch.header.leader;
            assert_eq!(
                leader.base_offset, offset,
                "offsets of {} go on without a gap",
                self.shared.partition
            );
            assert!(leader.leader_epoch >= epoch, "epochs of {} do not decrease", self.shared.partition);
            assert_eq!(HEADER_LENGTH + batch.tail.len(), batch.header.length(), "a batch is whole");
            offset = batch.header.end_offset();
            epoch = leader.leader_epoch;
        }
    }

    /// Sees to a segment with reserved room for `length` more bytes.
    fn make_room(&mut self, length: u64) -> Result<(), AppendError> {
        let segment_bytes = self.config.limits.segment_bytes;
        let full = |active: &Active| active.position > 0 && active.position + length > segment_bytes;
        if self.active.as_ref().is_some_and(full) {
            self.roll().map_err(|error| self.typed(error))?;
        }
        if self.active.is_none() {
            self.start_segment()?;
        }
        let Some(active) = &mut self.active else { unreachable!("a segment was opened") };
        let needed = active.position + length;
        if needed <= active.allocated {
            return Ok(());
        }
        let step = (active.allocated + active.step).min(segment_bytes).max(needed.next_multiple_of(4096));
        let segment = Arc::clone(&active.file);
        let allocated = active.allocated;
        let step = if self.store.take_room(step - allocated) {
            step
        } else {
            // What was known may be old: somebody else may have made room since.
            let least = needed.next_multiple_of(4096);
            let is_known = self.store.refresh_space().is_ok();
            if !is_known || !self.store.take_room(least - allocated) {
                self.store.note_full();
                return Err(AppendError::Full(self.shared.directory.clone()));
            }
            least
        };
        let result =
            self.store.cache().file(&segment).and_then(|file| allocate(&*file, allocated, step, needed));
        let allocated = result.map_err(|error| self.append_error(&segment, error))?;
        if let Some(active) = &mut self.active {
            active.allocated = allocated;
            active.step = (active.step * 2).min(STEP_BYTES_MAX);
        }
        Ok(())
    }

    fn start_segment(&mut self) -> Result<(), AppendError> {
        let name = SegmentName { serial: self.next_serial, base_offset: self.log_end };
        let segment = SegmentFile::new(self.shared.partition, &self.shared.directory, name, true);
        self.store.cache().create(&segment).map_err(|error| self.append_error(&segment, error))?;
        self.next_serial += 1;
        self.active = Some(Active::new(segment));
        self.shared.structure.name_created();
        self.start_structure_job();
        Ok(())
    }

    fn commit(&mut self, batches: &[StampedBatch], length: u64) {
        let Some(active) = &mut self.active else { unreachable!("batches were written to it") };
        let mut position = active.position;
        for batch in batches {
            let header = &batch.header;
            active.note(header, position, batch.header_crc());
            self.producers.apply(header);
            note_epoch(&mut self.epochs, header.leader.leader_epoch, header.leader.base_offset);
            self.durable_end = self.durable_end.max(header.leader.durable_end);
            self.last_append_time = self.last_append_time.max(header.leader.append_time);
            self.log_end = header.end_offset();
            position += u64::from(header.batch_length);
        }
        active.position += length;
        debug_assert_eq!(active.position, position);
        self.tail.push(batches);
    }

    /// Takes back what a failed write has left behind the log end: no recovery may take it for batches, not even one after
    /// a power cut. This waits for the disk, on the thread that appends, which a disk that fails has to bear.
    fn undo(
        &mut self,
        segment: &Arc<SegmentFile>,
        file: &Arc<dyn File>,
        batches: &[StampedBatch],
        range: Range<u64>,
        error: io::Error,
    ) -> AppendError {
        if range.is_empty() {
            return self.append_error(segment, error);
        }
        let path = segment.path.clone();
        let stuck = AppendError::Stuck { path: path.clone(), error: Arc::new(io::Error::from(error.kind())) };
        if let Err(undo_error) = zero(&**file, batches, range) {
            tracing::warn!(path = %path.display(), %error, %undo_error, "a failed append cannot be undone");
            self.leave_segment();
            return stuck;
        }
        if let Err(sync_error) = file.sync() {
            tracing::warn!(path = %path.display(), %error, %sync_error, "a failed append cannot be undone");
            self.shared.fail(Arc::new(sync_error));
            return stuck;
        }
        self.append_error(segment, error)
    }

    /// Appends to the active segment no more. Once there is a file behind it, recovery takes nothing from it that is not
    /// below the offset at which that one starts.
    fn leave_segment(&mut self) {
        if self.active_bytes() > 0 {
            if let Err(error) = self.roll() {
                self.shared.fail(Arc::new(io::Error::other(error)));
            }
        } else if let Some(active) = self.active.take() {
            let name = format!("{}-{}", self.shared.partition, active.file.name).replace('/', "-");
            move_to_trash(&**self.store.file_system(), &active.file.path, &self.store.trash_path(&name));
        }
    }

    fn append_error(&self, segment: &SegmentFile, error: io::Error) -> AppendError {
        self.typed(Error::io("append to", &segment.path)(error))
    }

    fn typed(&self, error: Error) -> AppendError {
        if error.is_full() {
            self.store.note_full();
            AppendError::Full(self.shared.directory.clone())
        } else {
            AppendError::Io(error)
        }
    }
}

impl StampedBatch {
    /// A batch as its leader wrote it, extensions of the header included. `header` is what its bytes say.
    ///
    /// # Panics
    /// When `batch` is not one whole batch: the caller has decoded it.
    #[must_use]
    pub fn from_replicated(mut batch: Bytes, header: BatchHeader) -> Self {
        assert_eq!(batch.len(), header.length(), "a batch is whole");
        let mut head = [0; HEADER_LENGTH];
        head.copy_from_slice(&batch.split_to(HEADER_LENGTH));
        Self { head, tail: batch, header }
    }

    /// What it has in `range`, if anything, as a batch of that range alone.
    ///
    /// # Errors
    /// When its records do not decode: such a batch is never merged with others, so that its ends are the same everywhere.
    pub fn trimmed(self, range: Range<Offset>, partition: TopicPartition) -> Result<Option<Self>, TrimError> {
        if range.start <= self.header.leader.base_offset && self.header.end_offset() <= range.end {
            return Ok(Some(self));
        }
        let whole = Bytes::from([&self.head[..], &self.tail[..]].concat());
        let Some(trimmed) = trim(&whole, self.header, range, partition)? else { return Ok(None) };
        let header = BatchHeader::decode(&trimmed).map_err(RecordsError::from)?;
        Ok(Some(Self::from_replicated(trimmed, header)))
    }

    /// The checksum at the end of the stamped header.
    pub(super) fn header_crc(&self) -> u32 {
        let [.., a, b, c, d] = self.head;
        u32::from_le_bytes([a, b, c, d])
    }
}

impl Active {
    pub(super) fn new(file: Arc<SegmentFile>) -> Self {
        Self {
            file,
            index: SparseIndex::default(),
            position: 0,
            written_back: 0,
            allocated: 0,
            step: STEP_BYTES_MIN,
            checksum: crc32fast::Hasher::new(),
            first_append_time: i64::MAX,
            last_append_time: i64::MIN,
        }
    }

    /// Takes a batch into index, checksum and times.
    pub(super) fn note(&mut self, header: &BatchHeader, position: u64, header_crc: u32) {
        self.index.note(header, position);
        self.checksum.update(&header_crc.to_le_bytes());
        self.first_append_time = self.first_append_time.min(header.leader.append_time);
        self.last_append_time = self.last_append_time.max(header.leader.append_time);
    }
}

/// Reserves a step, or only what is needed if that is too much.
fn allocate(file: &dyn File, from: u64, step: u64, needed: u64) -> io::Result<u64> {
    match file.allocate(from..step) {
        Ok(()) => Ok(step),
        Err(error) if is_full(&error) && needed < step => file.allocate(from..needed).map(|()| needed),
        Err(error) => Err(error),
    }
}

/// Writes all batches at `position`. An error comes with how much was written.
fn write_batches(file: &dyn File, batches: &[StampedBatch], position: u64) -> Result<(), (u64, io::Error)> {
    let mut written = 0;
    for group in batches.chunks(BUFFERS_MAX / 2) {
        let mut buffers: Vec<IoSlice<'_>> = Vec::with_capacity(group.len() * 2);
        for batch in group {
            buffers.push(IoSlice::new(&batch.head));
            buffers.push(IoSlice::new(&batch.tail));
        }
        let mut rest = &mut buffers[..];
        while !rest.is_empty() {
            match file.write_vectored_at(rest, position + written) {
                Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    written += count as u64;
                    IoSlice::advance_slices(&mut rest, count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((written, error)),
            }
        }
    }
    Ok(())
}

/// Zeroes what is left of `batches` in `range`, the last one first and each from its start: whenever the process is killed
/// meanwhile, what is left is the front of what was there, which recovery takes for a torn append. Nothing good ever
/// lies behind a gap.
fn zero(file: &dyn File, batches: &[StampedBatch], range: Range<u64>) -> io::Result<()> {
    const PIECE: u64 = 64 << 10;
    let zeroes = [0; PIECE as usize];
    let starts = batches.iter().scan(range.start, |next, batch| {
        let start = *next;
        *next += u64::from(batch.header.batch_length);
        Some(start)
    });
    let starts: Vec<u64> = starts.take_while(|start| *start < range.end).collect();
    let mut end = range.end;
    for start in starts.into_iter().rev() {
        let mut position = start;
        while position < end {
            let length = (end - position).min(PIECE);
            files::write_all(file, &zeroes[..length as usize], position)?;
            position += length;
        }
        end = start;
    }
    Ok(())
}
