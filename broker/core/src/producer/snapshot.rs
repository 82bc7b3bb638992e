//! The bytes of a producer table: what a follower gets that starts over, and what is kept beside each sealed segment.

use std::collections::VecDeque;

use bytes::BufMut;
use highwater_protocol::ids::{Offset, ProducerId};
use highwater_protocol::limits::PRODUCER_BATCHES_IN_FLIGHT_MAX;

use super::{PRODUCERS_MAX, Producer, ProducerTable, Remembered, SEQUENCES, SWEEP_PRODUCERS_MIN, Standing};
use crate::log::envelope::{self, Fields, FormatError};
use crate::log::manifest::SealedSegment;

const MAGIC: [u8; 4] = *b"HWPT";
const VERSION: u16 = 1;

const FILE_MAGIC: [u8; 4] = *b"HWPS";
const FILE_VERSION: u16 = 1;

/// Bytes of a producer without batches, and of a batch.
const PRODUCER_BYTES: usize = 27;
const BATCH_BYTES: usize = 24;

// A snapshot is the attachment of one frame.
const _: () = assert!(
    PRODUCERS_MAX * (PRODUCER_BYTES + PRODUCER_BATCHES_IN_FLIGHT_MAX * BATCH_BYTES)
        <= highwater_protocol::limits::BATCH_BYTES_MAX
);

/// Which log a snapshot is of: one that ends with this segment. No two segments of a partition have the same serial
/// number, and a segment that was cut has another length, so a snapshot of what was truncated away is never taken for
/// one of what came after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The offset after the segment.
    pub end_offset: Offset,
    /// Its bytes.
    pub length: u64,
    /// Its checksum.
    pub checksum: u32,
}

impl From<&SealedSegment> for Binding {
    fn from(segment: &SealedSegment) -> Self {
        Self { end_offset: segment.end_offset, length: segment.length, checksum: segment.checksum }
    }
}

impl ProducerTable {
    /// The table as bytes. Those that have expired are left out; equal tables have equal bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let live: Vec<_> = self.live().collect();
        let mut out = Vec::with_capacity(12 + live.len() * (PRODUCER_BYTES + BATCH_BYTES));
        out.put_i64_le(self.time);
        out.put_u32_le(live.len() as u32);
        for (id, producer) in live {
            out.put_u64_le(id.0);
            out.put_u16_le(producer.standing.epoch);
            out.put_u64_le(producer.standing.sequences);
            out.put_i64_le(producer.last_append_time);
            out.put_u8(producer.batches.len() as u8);
            for batch in &producer.batches {
                out.put_u32_le(batch.first_sequence);
                out.put_u32_le(batch.count);
                out.put_u64_le(batch.base_offset.0);
                out.put_i64_le(batch.append_time);
            }
        }
        envelope::wrap(MAGIC, VERSION, &out)
    }

    /// The table in `bytes`, with the default expiry; no bytes are a table that knows nobody.
    ///
    /// # Errors
    /// When they are damaged, newer than this code, or contradict themselves.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut table = Self::default();
        if bytes.is_empty() {
            return Ok(table);
        }
        let (_version, payload) = envelope::unwrap(MAGIC, VERSION, bytes)?;
        let mut fields = Fields(payload);
        table.time = fields.i64()?;
        let mut last = None;
        for _ in 0..fields.count(PRODUCER_BYTES)? {
            let id = ProducerId(fields.u64()?);
            if last.replace(id).is_some_and(|last| last >= id) || id == ProducerId::NONE {
                return Err(FormatError::Field("producer_id"));
            }
            let producer = decode_producer(&mut fields)?;
            table.producers.insert(id, producer);
        }
        fields.end()?;
        table.sweep_at = (table.producers.len() * 2).clamp(SWEEP_PRODUCERS_MIN, PRODUCERS_MAX + 1);
        Ok(table)
    }
}

fn decode_producer(fields: &mut Fields<'_>) -> Result<Producer, FormatError> {
    let mut producer = Producer {
        standing: Standing { epoch: fields.u16()?, sequences: fields.u64()? },
        last_append_time: fields.i64()?,
        batches: VecDeque::new(),
    };
    let count = usize::from(fields.u8()?);
    if count > PRODUCER_BATCHES_IN_FLIGHT_MAX {
        return Err(FormatError::Field("batches"));
    }
    producer.batches.reserve(count);
    for _ in 0..count {
        producer.batches.push_back(Remembered {
            first_sequence: fields.u32()?,
            count: fields.u32()?,
            base_offset: Offset(fields.u64()?),
            append_time: fields.i64()?,
        });
    }
    let good = |batch: &Remembered| {
        u64::from(batch.first_sequence) < SEQUENCES
            && (1..=SEQUENCES).contains(&u64::from(batch.count))
            && batch.base_offset.checked_add_count(u64::from(batch.count)).is_some()
    };
    let in_order = producer.batches.iter().is_sorted_by(|a, b| a.base_offset < b.base_offset);
    if !in_order || !producer.batches.iter().all(good) {
        return Err(FormatError::Field("batches"));
    }
    Ok(producer)
}

/// The bytes of a snapshot file.
#[must_use]
pub fn encode_file(binding: Binding, table: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(20 + table.len());
    out.put_u64_le(binding.end_offset.0);
    out.put_u64_le(binding.length);
    out.put_u32_le(binding.checksum);
    out.put_slice(table);
    envelope::wrap(FILE_MAGIC, FILE_VERSION, &out)
}

/// What a snapshot file holds.
///
/// # Errors
/// When it is damaged, newer than this code, or contradicts itself.
pub fn decode_file(bytes: &[u8]) -> Result<(Binding, ProducerTable), FormatError> {
    let (_version, payload) = envelope::unwrap(FILE_MAGIC, FILE_VERSION, bytes)?;
    let mut fields = Fields(payload);
    let binding =
        Binding { end_offset: Offset(fields.u64()?), length: fields.u64()?, checksum: fields.u32()? };
    let table = ProducerTable::decode(fields.0)?;
    Ok((binding, table))
}
