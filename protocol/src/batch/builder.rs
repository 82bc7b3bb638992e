//! Building a batch on the producer's side.

use bytes::Bytes;

use super::header::{
    ATTRIBUTE_TRANSACTIONAL, HEADER_LENGTH, LeaderStamp, PRODUCER_HEADER_LENGTH, ProducerHeader,
    encode_header,
};
use crate::compression::{Compression, CompressionError};
use crate::ids::{ProducerId, TopicPartition};
use crate::limits::{BATCH_BYTES_MAX, RECORD_HEADERS_MAX, RECORDS_BYTES_MAX};
use crate::varint::{put_varint, varint_length};

/// Encodes records one after another and closes them into a batch.
///
/// The room for both headers is kept in front, so that an uncompressed batch is built in place.
#[derive(Debug)]
pub struct BatchBuilder {
    /// Both headers' room, then the records.
    buffer: Vec<u8>,
    record_count: u32,
    first_timestamp: i64,
    max_timestamp: i64,
    producer: (ProducerId, u16, u32),
    transactional: bool,
}

/// Bytes before the first record.
pub(super) const HEAD: usize = HEADER_LENGTH + PRODUCER_HEADER_LENGTH;

/// Where id, epoch and first sequence of the producer are.
const PRODUCER_AT: usize = HEADER_LENGTH + 22;

impl BatchBuilder {
    /// An empty batch with room for `capacity` bytes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        let mut buffer = Vec::with_capacity(capacity.max(HEAD));
        buffer.resize(HEAD, 0);
        Self {
            buffer,
            record_count: 0,
            first_timestamp: 0,
            max_timestamp: i64::MIN,
            producer: (ProducerId::NONE, u16::MAX, u32::MAX),
            transactional: false,
        }
    }

    /// Names the idempotent producer, its epoch and the sequence of the first record.
    pub fn set_producer(&mut self, id: ProducerId, epoch: u16, first_sequence: u32) {
        self.producer = (id, epoch, first_sequence);
    }

    /// Marks the batch as part of a transaction.
    pub fn set_transactional(&mut self, transactional: bool) {
        self.transactional = transactional;
    }

    /// Records so far.
    #[must_use]
    pub const fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Bytes of the batch so far, uncompressed, headers included.
    #[must_use]
    pub fn length(&self) -> usize {
        self.buffer.len()
    }

    /// Whether there is no record yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// The bytes that a record takes at the most, its place in the batch unknown. `headers`: bytes of names and values.
    #[must_use]
    pub const fn record_length_max(key: usize, value: usize, header_count: usize, headers: usize) -> usize {
        // length, timestamp delta, offset delta, two field lengths, a count: at most 10 + 10 + 5 + 5 + 5 + 3 bytes.
        1 + 38 + key + value + headers + header_count * 10
    }

    /// Appends a record. `timestamp` is in milliseconds since the Unix epoch.
    ///
    /// The caller bounds the batch: check [`BatchBuilder::length`] and [`BatchBuilder::record_length_max`] against its
    /// limit first.
    ///
    /// # Panics
    /// When there are more than `RECORD_HEADERS_MAX` headers, which no reader would accept: the caller checks.
    pub fn push(
        &mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) {
        assert!(headers.len() <= RECORD_HEADERS_MAX, "record with {} headers", headers.len());
        if self.record_count == 0 {
            self.first_timestamp = timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        let timestamp_delta = timestamp.wrapping_sub(self.first_timestamp);
        let offset_delta = i64::from(self.record_count);
        let mut body_length = 1
            + varint_length(timestamp_delta)
            + varint_length(offset_delta)
            + field_length(key)
            + field_length(value)
            + varint_length(headers.len() as i64);
        for (name, value) in headers {
            body_length += field_length(Some(name.as_bytes())) + field_length(*value);
        }
        self.buffer.reserve(body_length + 10);
        put_varint(&mut self.buffer, body_length as i64);
        self.buffer.push(0);
        put_varint(&mut self.buffer, timestamp_delta);
        put_varint(&mut self.buffer, offset_delta);
        put_field(&mut self.buffer, key);
        put_field(&mut self.buffer, value);
        put_varint(&mut self.buffer, headers.len() as i64);
        for (name, value) in headers {
            put_field(&mut self.buffer, Some(name.as_bytes()));
            put_field(&mut self.buffer, *value);
        }
        self.record_count += 1;
    }

    /// Closes the batch: compresses the records and writes headers and checksums, the leader's fields 0.
    ///
    /// Records that compression does not make smaller stay uncompressed.
    ///
    /// # Errors
    /// When this build lacks the codec.
    ///
    /// # Panics
    /// When the batch is empty, or larger than `BATCH_BYTES_MAX`, or its records than `RECORDS_BYTES_MAX` before
    /// compression: the caller bounds what it pushes.
    #[expect(clippy::cast_possible_truncation, reason = "a batch is not larger than BATCH_BYTES_MAX")]
    #[expect(clippy::indexing_slicing, reason = "every buffer here starts with HEAD bytes")]
    pub fn build(
        self,
        partition: TopicPartition,
        compression: Compression,
    ) -> Result<Bytes, CompressionError> {
        assert!(self.record_count > 0, "a batch has at least one record");
        let raw_length = self.buffer.len() - HEAD;
        assert!(raw_length <= RECORDS_BYTES_MAX, "records of {raw_length} bytes");
        let (mut batch, compression) = compressed(self.buffer, compression)?;
        assert!(batch.len() <= BATCH_BYTES_MAX, "batch of {} bytes", batch.len());
        let (producer_id, producer_epoch, first_sequence) = self.producer;
        let transactional = if self.transactional { ATTRIBUTE_TRANSACTIONAL } else { 0 };
        let producer = ProducerHeader {
            attributes: compression.code() | transactional,
            last_offset_delta: self.record_count - 1,
            first_timestamp: self.first_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id,
            producer_epoch,
            first_sequence,
            record_count: self.record_count,
        };
        let mut encoded = Vec::with_capacity(PRODUCER_HEADER_LENGTH);
        producer.encode(&mut encoded);
        batch[HEADER_LENGTH..HEAD].copy_from_slice(&encoded);
        let crc = crc32fast::hash(&batch[HEADER_LENGTH..]);
        let header = encode_header(LeaderStamp::default(), batch.len() as u32, crc, partition);
        batch[..HEADER_LENGTH].copy_from_slice(&header);
        Ok(Bytes::from(batch))
    }
}

/// A produced batch under another identity: the records are copied, the producer's fields and the checksums made anew.
///
/// # Panics
/// When `batch` is not one that [`BatchBuilder::build`] made.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "a batch is not larger than BATCH_BYTES_MAX")]
#[expect(clippy::indexing_slicing, reason = "every batch starts with HEAD bytes")]
pub fn restamp_producer(
    batch: &[u8],
    partition: TopicPartition,
    id: ProducerId,
    epoch: u16,
    first_sequence: u32,
) -> Bytes {
    assert!(batch.len() >= HEAD, "a batch of {} bytes", batch.len());
    let mut batch = batch.to_vec();
    batch[PRODUCER_AT..PRODUCER_AT + 8].copy_from_slice(&id.get().to_le_bytes());
    batch[PRODUCER_AT + 8..PRODUCER_AT + 10].copy_from_slice(&epoch.to_le_bytes());
    batch[PRODUCER_AT + 10..PRODUCER_AT + 14].copy_from_slice(&first_sequence.to_le_bytes());
    let crc = crc32fast::hash(&batch[HEADER_LENGTH..]);
    let header = encode_header(LeaderStamp::default(), batch.len() as u32, crc, partition);
    batch[..HEADER_LENGTH].copy_from_slice(&header);
    Bytes::from(batch)
}

/// The batch with its records compressed, unless that makes them larger, and how they are compressed.
#[expect(clippy::indexing_slicing, reason = "every buffer here starts with HEAD bytes")]
pub(super) fn compressed(
    buffer: Vec<u8>,
    compression: Compression,
) -> Result<(Vec<u8>, Compression), CompressionError> {
    if compression == Compression::None {
        return Ok((buffer, compression));
    }
    let mut out = Vec::with_capacity(HEAD + buffer.len() / 2);
    out.resize(HEAD, 0);
    compression.compress(&buffer[HEAD..], &mut out)?;
    if out.len() < buffer.len() { Ok((out, compression)) } else { Ok((buffer, Compression::None)) }
}

#[inline]
pub(super) fn field_length(field: Option<&[u8]>) -> usize {
    field.map_or(1, |bytes| varint_length(bytes.len() as i64) + bytes.len())
}

#[inline]
pub(super) fn put_field(out: &mut Vec<u8>, field: Option<&[u8]>) {
    match field {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BatchHeader, Records};
    use super::*;
    use crate::ids::{PartitionId, TopicId};

    const PARTITION: TopicPartition = TopicPartition::new(TopicId(7), PartitionId(3));

    #[test]
    fn what_goes_in_comes_out_under_every_compression() {
        for compression in [Compression::None, Compression::Lz4] {
            let mut builder = BatchBuilder::with_capacity(1024);
            builder.push(1000, Some(b"k"), Some(b"value"), &[("h", Some(b"1")), ("none", None)]);
            builder.push(990, None, None, &[]);
            let batch = builder.build(PARTITION, compression).unwrap();
            let records = Records::verify(&batch, PARTITION).unwrap();
            assert_eq!(records.header().producer.max_timestamp, 1000);
            let all: Vec<_> = records.iter().map(|r| records.to_owned_record(&r.unwrap()).unwrap()).collect();
            assert_eq!(all.len(), 2);
            assert_eq!(all[0].key.as_deref(), Some(&b"k"[..]));
            assert_eq!(all[0].headers.len(), 2);
            assert_eq!(all[0].headers[1].value, None);
            assert_eq!((all[1].timestamp, all[1].value.clone(), all[1].offset.get()), (990, None, 1));
        }
    }

    #[test]
    fn under_another_identity_only_the_identity_differs() {
        let built = |id, epoch, sequence| {
            let mut builder = BatchBuilder::with_capacity(64);
            builder.set_producer(ProducerId(id), epoch, sequence);
            builder.push(5, Some(b"key"), Some(b"value"), &[]);
            builder.build(PARTITION, Compression::Lz4).unwrap()
        };
        let batch = built(1, 2, 3);
        let other = restamp_producer(&batch, PARTITION, ProducerId(7), 8, 9);
        assert_eq!(other, built(7, 8, 9));
        assert_ne!(other, batch);
    }

    #[test]
    fn every_flipped_bit_is_detected() {
        let mut builder = BatchBuilder::with_capacity(64);
        builder.push(0, Some(b"key"), Some(b"value"), &[]);
        let batch = builder.build(PARTITION, Compression::None).unwrap();
        for bit in 0..batch.len() * 8 {
            let mut flipped = batch.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(BatchHeader::decode_verified(&flipped, PARTITION).is_err(), "bit {bit}");
        }
        let other = TopicPartition::new(TopicId(7), PartitionId(4));
        assert!(BatchHeader::decode_verified(&batch, other).is_err(), "another partition's batch");
    }
}
