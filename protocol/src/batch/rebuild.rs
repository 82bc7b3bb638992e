//! Building a stored batch anew from records of stored batches, each at the offset that it has.

use bytes::Bytes;

use super::builder::{HEAD, compressed, field_length, put_field};
use super::header::{
    ATTRIBUTE_TRANSACTIONAL, HEADER_LENGTH, LEADER_FLAG_APPEND_TIME, LeaderStamp, PRODUCER_HEADER_LENGTH,
    ProducerHeader, encode_header,
};
use super::records::RecordRef;
use crate::compression::{Compression, CompressionError};
use crate::ids::{Offset, ProducerId, TopicPartition};
use crate::limits::{BATCH_BYTES_MAX, RECORDS_BYTES_MAX};
use crate::varint::{put_varint, varint_length};

/// The greatest timestamp of a batch without records: no search by time ends there.
pub const NO_TIMESTAMP: i64 = -1;

/// Whose batch it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The producer.
    pub producer_id: ProducerId,
    /// Its incarnation.
    pub producer_epoch: u16,
    /// The sequence of the first offset.
    pub first_sequence: u32,
}

impl Identity {
    /// Nobody's.
    pub const NONE: Self =
        Self { producer_id: ProducerId::NONE, producer_epoch: u16::MAX, first_sequence: u32::MAX };
}

/// Why a batch cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildError {
    /// This build lacks the codec.
    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// The records do not fit one batch any more.
    #[error("the batch would have {0} bytes")]
    TooLarge(usize),
}

/// Collects records that keep their offsets, and closes them into a batch that covers a range of offsets, whether there
/// are records at all of them or not.
#[derive(Debug)]
pub struct BatchRebuilder {
    /// Both headers' room, then the records.
    buffer: Vec<u8>,
    base_offset: Offset,
    record_count: u32,
    first_timestamp: i64,
    max_timestamp: i64,
}

impl BatchRebuilder {
    /// An empty batch that starts at `base_offset`.
    #[must_use]
    pub fn new(base_offset: Offset) -> Self {
        Self {
            buffer: vec![0; HEAD],
            base_offset,
            record_count: 0,
            first_timestamp: NO_TIMESTAMP,
            max_timestamp: NO_TIMESTAMP,
        }
    }

    /// Records so far.
    #[must_use]
    pub const fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Where the batch starts.
    #[must_use]
    pub const fn base_offset(&self) -> Offset {
        self.base_offset
    }

    /// Bytes of the batch so far, uncompressed, headers included.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.buffer.len()
    }

    /// Appends a record as it is. Offsets rise.
    ///
    /// # Panics
    /// When its offset lies before the batch.
    pub fn push(&mut self, record: &RecordRef<'_>) {
        assert!(record.offset >= self.base_offset, "a record before its batch");
        if self.record_count == 0 {
            self.first_timestamp = record.timestamp;
            self.max_timestamp = record.timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(record.timestamp);
        let timestamp_delta = record.timestamp.wrapping_sub(self.first_timestamp);
        let offset_delta = record.offset.count_since(self.base_offset) as i64;
        let (header_count, headers) = record.raw_headers();
        let body_length = 1
            + varint_length(timestamp_delta)
            + varint_length(offset_delta)
            + field_length(record.key)
            + field_length(record.value)
            + varint_length(i64::from(header_count))
            + headers.len();
        self.buffer.reserve(body_length + 10);
        put_varint(&mut self.buffer, body_length as i64);
        self.buffer.push(0);
        put_varint(&mut self.buffer, timestamp_delta);
        put_varint(&mut self.buffer, offset_delta);
        put_field(&mut self.buffer, record.key);
        put_field(&mut self.buffer, record.value);
        put_varint(&mut self.buffer, i64::from(header_count));
        self.buffer.extend_from_slice(headers);
        self.record_count += 1;
    }

    /// Closes the batch: it covers the offsets up to `end_offset`. Of `stamp` everything holds but the base offset, which
    /// is that of the batch, and the flag that says that timestamps are the append time: records have theirs.
    ///
    /// # Errors
    /// When this build lacks the codec, or the batch would be larger than a batch may be.
    ///
    /// # Panics
    /// When the range is empty or longer than offsets in a batch go.
    #[expect(clippy::cast_possible_truncation, reason = "lengths and deltas are checked")]
    #[expect(clippy::indexing_slicing, reason = "every buffer here starts with HEAD bytes")]
    pub fn build(
        self,
        end_offset: Offset,
        stamp: LeaderStamp,
        identity: Identity,
        transactional: bool,
        compression: Compression,
        partition: TopicPartition,
    ) -> Result<Bytes, RebuildError> {
        let offsets = end_offset.count_since(self.base_offset);
        assert!((1..=i32::MAX as u64).contains(&offsets), "a batch of {offsets} offsets");
        let raw_length = self.buffer.len() - HEAD;
        if raw_length > RECORDS_BYTES_MAX {
            return Err(RebuildError::TooLarge(raw_length));
        }
        let compression = if self.record_count == 0 { Compression::None } else { compression };
        let (mut batch, compression) = compressed(self.buffer, compression)?;
        if batch.len() > BATCH_BYTES_MAX {
            return Err(RebuildError::TooLarge(batch.len()));
        }
        let transactional = if transactional { ATTRIBUTE_TRANSACTIONAL } else { 0 };
        let producer = ProducerHeader {
            attributes: compression.code() | transactional,
            last_offset_delta: offsets as u32 - 1,
            first_timestamp: self.first_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: identity.producer_id,
            producer_epoch: identity.producer_epoch,
            first_sequence: identity.first_sequence,
            record_count: self.record_count,
        };
        let mut encoded = Vec::with_capacity(PRODUCER_HEADER_LENGTH);
        producer.encode(&mut encoded);
        batch[HEADER_LENGTH..HEAD].copy_from_slice(&encoded);
        let crc = crc32fast::hash(&batch[HEADER_LENGTH..]);
        let stamp = LeaderStamp {
            base_offset: self.base_offset,
            leader_flags: stamp.leader_flags & !LEADER_FLAG_APPEND_TIME,
            ..stamp
        };
        let header = encode_header(stamp, batch.len() as u32, crc, partition);
        batch[..HEADER_LENGTH].copy_from_slice(&header);
        Ok(Bytes::from(batch))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BatchBuilder, BatchHeader, Records};
    use super::*;
    use crate::ids::{LeaderEpoch, PartitionId, TopicId};

    const PARTITION: TopicPartition = TopicPartition::new(TopicId(7), PartitionId(3));

    fn source() -> Records {
        let mut builder = BatchBuilder::with_capacity(1024);
        for number in 0..10_i64 {
            let key = format!("key {number}");
            let value = (number % 2 == 0).then_some(&b"value"[..]);
            builder.push(1000 - number, Some(key.as_bytes()), value, &[("h", Some(b"1")), ("none", None)]);
        }
        Records::verify(&builder.build(PARTITION, Compression::Lz4).unwrap(), PARTITION).unwrap()
    }

    #[test]
    fn records_keep_offset_timestamp_key_value_and_headers() {
        let source = source();
        for compression in [Compression::None, Compression::Lz4] {
            let mut rebuilder = BatchRebuilder::new(Offset(0));
            let kept: Vec<_> = source.iter().map(Result::unwrap).filter(|r| r.offset.0 % 3 == 1).collect();
            kept.iter().for_each(|record| rebuilder.push(record));
            assert_eq!(rebuilder.record_count(), 3);
            let stamp =
                LeaderStamp { leader_epoch: LeaderEpoch(4), append_time: 9, ..LeaderStamp::default() };
            let batch =
                rebuilder.build(Offset(25), stamp, Identity::NONE, false, compression, PARTITION).unwrap();
            let records = Records::verify(&batch, PARTITION).unwrap();
            let header = records.header();
            assert_eq!((header.leader.base_offset, header.end_offset()), (Offset(0), Offset(25)));
            assert_eq!((header.leader.leader_epoch, header.leader.append_time), (LeaderEpoch(4), 9));
            assert_eq!((header.producer.first_timestamp, header.producer.max_timestamp), (999, 999));
            let there: Vec<_> =
                records.iter().map(|record| records.to_owned_record(&record.unwrap()).unwrap()).collect();
            let wanted: Vec<_> = kept.iter().map(|record| source.to_owned_record(record).unwrap()).collect();
            assert_eq!(there, wanted);
        }
    }

    #[test]
    fn a_batch_may_cover_offsets_without_any_record() {
        let identity = Identity { producer_id: ProducerId(5), producer_epoch: 2, first_sequence: 70 };
        let stamp = LeaderStamp { leader_flags: LEADER_FLAG_APPEND_TIME, ..LeaderStamp::default() };
        let rebuilder = BatchRebuilder::new(Offset(100));
        let batch =
            rebuilder.build(Offset(90_000), stamp, identity, true, Compression::Lz4, PARTITION).unwrap();
        let records = Records::verify(&batch, PARTITION).unwrap();
        assert_eq!(records.iter().count(), 0);
        let header: &BatchHeader = records.header();
        assert_eq!((header.leader.base_offset, header.end_offset()), (Offset(100), Offset(90_000)));
        assert_eq!(header.leader.leader_flags, 0, "records have timestamps of their own");
        assert_eq!(header.producer.producer_id, ProducerId(5));
        assert_eq!((header.producer.first_sequence, header.producer.max_timestamp), (70, NO_TIMESTAMP));
        assert_eq!(header.producer.attributes, ATTRIBUTE_TRANSACTIONAL);
    }
}
