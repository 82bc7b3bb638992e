//! Comparing replicas that are compacted: they need not have the same batches, but the same last record of every key.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use highwater_broker_core::log::cleaning::key_map::KeyMap;
use highwater_protocol::batch::{ATTRIBUTE_TRANSACTIONAL, BatchHeader, RecordRef, Records};
use highwater_protocol::ids::Offset;
use highwater_protocol::key_hash::key_hash;

use bytes::Bytes;

use super::check_plan::{Piece, RangeChecksum, Stretch};
use super::error::Error;
use super::shared::LogShared;
use super::store::Store;

/// Bytes of memory for the keys of one comparison.
const KEYS_BYTES: usize = 16 << 20;

/// Which keys are compared: those whose hash is `slice` modulo `slices`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySlice {
    /// How many parts the keys are taken in, from 1.
    pub slices: u32,
    /// Which of them.
    pub slice: u32,
}

/// The last record of each key in a range: read twice, from the disk, verified.
#[derive(Debug)]
pub struct TablePlan {
    pub(super) store: Arc<Store>,
    pub(super) log: Arc<LogShared>,
    pub(super) range: Range<Offset>,
    pub(super) keys: KeySlice,
    pub(super) stretches: Vec<Stretch>,
}

/// What it comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableChecksum {
    /// Covers the last record of each key that has a value, and the records without a key (with the first slice), in
    /// order: `batches` is how many records those are.
    pub range: RangeChecksum,
    /// More keys than there is room for: ask again with so many slices. Nothing was compared.
    pub slices_needed: Option<u32>,
}

impl TablePlan {
    /// Reads and verifies. May wait for the disk.
    ///
    /// # Errors
    /// When the disk cannot be read, or retention has let go of what was to be read.
    pub fn execute(self) -> Result<TableChecksum, Error> {
        let mut found = RangeChecksum {
            start: self.range.start,
            end: self.range.end,
            checksum: 0,
            batches: 0,
            corrupt: Vec::new(),
        };
        let mut keys = KeyMap::new(0, KEYS_BYTES);
        let mut is_full = false;
        self.walk(Some(&mut found.corrupt), |record| {
            is_full |= record.key.is_some_and(|key| keys.note(key, record.offset).is_err());
        })?;
        if is_full {
            let slices_needed = Some(self.keys.slices.saturating_mul(2));
            return Ok(TableChecksum { range: found, slices_needed });
        }
        let mut hasher = crc32fast::Hasher::new();
        self.walk(None, |record| {
            let is_last = record.key.is_none_or(|key| keys.last(key) == Some(record.offset));
            if is_last && (record.key.is_none() || record.value.is_some()) {
                add(&mut hasher, record);
                found.batches += 1;
            }
        })?;
        found.checksum = hasher.finalize();
        Ok(TableChecksum { range: found, slices_needed: None })
    }

    /// Goes over the records of this slice in the range, and notes what cannot be read.
    fn walk(
        &self,
        mut corrupt: Option<&mut Vec<Range<Offset>>>,
        mut on: impl FnMut(&RecordRef<'_>),
    ) -> Result<(), Error> {
        for stretch in &self.stretches {
            let _to_the_end = stretch.walk(&self.store, false, |piece| {
                match piece {
                    Piece::Good(_, header, bytes) => self.records(header, bytes, &mut on),
                    Piece::Bad(hole) => {
                        let range = hole.start.max(self.range.start)..hole.end.min(self.range.end);
                        if let Some(corrupt) = corrupt.as_mut().filter(|_| range.start < range.end) {
                            corrupt.push(range);
                        }
                        super::verify::note_hole(&self.log, &stretch.file, hole);
                    }
                }
                ControlFlow::Continue(())
            })?;
        }
        Ok(())
    }

    fn records(&self, header: &BatchHeader, bytes: &[u8], on: &mut impl FnMut(&RecordRef<'_>)) {
        if header.is_control() || header.producer.attributes & ATTRIBUTE_TRANSACTIONAL != 0 {
            return;
        }
        // What does not decode is a matter between its producer and its consumers.
        let Ok(records) = Records::open(*header, &Bytes::copy_from_slice(bytes)) else { return };
        for record in records.iter().map_while(Result::ok) {
            let slice = record.key.map_or(0, |key| key_hash(key) % u64::from(self.keys.slices.max(1)));
            if slice == u64::from(self.keys.slice) && self.range.contains(&record.offset) {
                on(&record);
            }
        }
    }
}

/// Everything that a consumer sees of a record.
fn add(hasher: &mut crc32fast::Hasher, record: &RecordRef<'_>) {
    let mut field = |bytes: Option<&[u8]>| {
        hasher.update(&bytes.map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
        hasher.update(bytes.unwrap_or_default());
    };
    field(Some(&record.offset.get().to_le_bytes()));
    field(Some(&record.timestamp.to_le_bytes()));
    field(record.key);
    field(record.value);
    for (name, value) in record.headers().unwrap_or_default() {
        field(Some(name.as_bytes()));
        field(value);
    }
}
