//! The two headers of a batch and their checksums.

use bytes::{Buf, BufMut};

use crate::compression::{Compression, CompressionError};
use crate::error_code::ErrorCode;
use crate::ids::{LeaderEpoch, Offset, ProducerId, TopicPartition};
use crate::limits::{BATCH_BYTES_MAX, HEADER_LENGTH_MAX, RECORD_LENGTH_MIN, RECORDS_BYTES_MAX};

/// The first two bytes of every batch, read as little-endian.
pub const BATCH_MAGIC: u16 = u16::from_le_bytes([0xb7, 0x48]);

/// The format that this code writes.
pub const BATCH_FORMAT: u8 = 1;

/// Bytes of the leader's header without extensions.
pub const HEADER_LENGTH: usize = 47;

/// Bytes of the producer's header.
pub const PRODUCER_HEADER_LENGTH: usize = 40;

/// Bytes of a batch without records.
pub const BATCH_LENGTH_MIN: usize = HEADER_LENGTH + PRODUCER_HEADER_LENGTH;

/// In `leader_flags`: record timestamps are the leader's append time.
pub const LEADER_FLAG_APPEND_TIME: u16 = 1 << 3;
/// In `leader_flags`: the batch holds control records, which applications do not see.
pub const LEADER_FLAG_CONTROL: u16 = 1 << 5;
/// In `attributes`: the batch belongs to a transaction.
pub const ATTRIBUTE_TRANSACTIONAL: u16 = 1 << 4;

const COMPRESSION_MASK: u16 = 0b111;
const ATTRIBUTES_KNOWN: u16 = COMPRESSION_MASK | ATTRIBUTE_TRANSACTIONAL;
const LEADER_FLAGS_KNOWN: u16 = LEADER_FLAG_APPEND_TIME | LEADER_FLAG_CONTROL;

const CRC_AT: usize = 39;
const HEADER_CRC_AT: usize = 43;

/// Why bytes are not a good batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// Fewer bytes than the batch has.
    #[error("batch is cut short: {have} of {need} bytes")]
    CutShort {
        /// Bytes there.
        have: usize,
        /// Bytes needed to go on.
        need: usize,
    },
    /// The bytes do not start with the batch magic.
    #[error("batch starts with {0:#06x}, not with the batch magic")]
    Magic(u16),
    /// A format that this code does not know.
    #[error("batch format {0} is not known")]
    Format(u8),
    /// `header_length` is out of range.
    #[error("batch header of {0} bytes is out of range")]
    HeaderLength(usize),
    /// `batch_length` is out of range.
    #[error("batch of {0} bytes is out of range")]
    BatchLength(usize),
    /// A flag bit that this code does not know.
    #[error("batch flags {leader_flags:#06x} or attributes {attributes:#06x} have unknown bits")]
    Flags {
        /// The leader's.
        leader_flags: u16,
        /// The producer's.
        attributes: u16,
    },
    /// The compression is unknown.
    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// `record_count`, `last_offset_delta` and the length contradict each other.
    #[error(
        "batch has {record_count} records, last offset delta {last_offset_delta}, in {records_length} bytes"
    )]
    Counts {
        /// From the header.
        record_count: u32,
        /// From the header.
        last_offset_delta: u32,
        /// Bytes of the records section.
        records_length: usize,
    },
    /// The batch is good, but not as a producer may send it.
    #[error("batch is not as a producer sends it: {0}")]
    NotProduced(&'static str),
    /// The header was damaged, or belongs to another partition.
    #[error("batch header checksum {computed:#010x} differs from {stored:#010x}")]
    HeaderChecksum {
        /// In the batch.
        stored: u32,
        /// Of the bytes there.
        computed: u32,
    },
    /// The producer's part was damaged.
    #[error("batch checksum {computed:#010x} differs from {stored:#010x}")]
    Checksum {
        /// In the batch.
        stored: u32,
        /// Of the bytes there.
        computed: u32,
    },
}

impl BatchError {
    /// What a producer is told about a batch with this error.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::BatchLength(length) if *length > BATCH_BYTES_MAX => ErrorCode::BatchTooLarge,
            Self::Format(_) | Self::HeaderLength(_) | Self::Flags { .. } | Self::Compression(_) => {
                ErrorCode::UnsupportedFormat
            }
            _ => ErrorCode::CorruptBatch,
        }
    }
}

/// The part of the header that the appending leader stamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaderStamp {
    /// `LEADER_FLAG_*` bits.
    pub leader_flags: u16,
    /// The offset of the first record.
    pub base_offset: Offset,
    /// The epoch in which it was appended.
    pub leader_epoch: LeaderEpoch,
    /// When it was appended, in microseconds since the Unix epoch; never below that of the batch before.
    pub append_time: i64,
    /// min(high watermark, least flushed end of the in-sync set) as the leader knew them at the append.
    pub durable_end: Offset,
}

/// The part of a batch before its records that the producer writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerHeader {
    /// Compression and `ATTRIBUTE_*` bits.
    pub attributes: u16,
    /// The last record's offset less the first one's.
    pub last_offset_delta: u32,
    /// Of the first record, in milliseconds since the Unix epoch.
    pub first_timestamp: i64,
    /// The greatest of the records, in milliseconds since the Unix epoch.
    pub max_timestamp: i64,
    /// All ones: not idempotent.
    pub producer_id: ProducerId,
    /// The producer's incarnation.
    pub producer_epoch: u16,
    /// The sequence of the first record.
    pub first_sequence: u32,
    /// Records in the batch.
    pub record_count: u32,
}

/// Everything before the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Bytes before the producer's part.
    pub header_length: u16,
    /// What the leader stamped.
    pub leader: LeaderStamp,
    /// Bytes of the whole batch.
    pub batch_length: u32,
    /// CRC-32 of the producer's part and the records.
    pub crc: u32,
    /// CRC-32 of partition and header.
    pub header_crc: u32,
    /// What the producer wrote.
    pub producer: ProducerHeader,
}

impl BatchHeader {
    /// Decodes the headers at the front of `bytes` and checks that they are consistent. Checksums are not looked at,
    /// and the records need not be there.
    ///
    /// # Errors
    /// When the bytes are too few or contradict themselves.
    pub fn decode(bytes: &[u8]) -> Result<Self, BatchError> {
        let need = |need: usize| BatchError::CutShort { have: bytes.len(), need };
        let mut fields = bytes.get(..HEADER_LENGTH).ok_or(need(BATCH_LENGTH_MIN))?;
        let magic = fields.get_u16_le();
        if magic != BATCH_MAGIC {
            return Err(BatchError::Magic(magic));
        }
        let format = fields.get_u8();
        if format != BATCH_FORMAT {
            return Err(BatchError::Format(format));
        }
        let header_length = fields.get_u16_le();
        let header_bytes = usize::from(header_length);
        if !(HEADER_LENGTH..=HEADER_LENGTH_MAX).contains(&header_bytes) {
            return Err(BatchError::HeaderLength(header_bytes));
        }
        let leader = LeaderStamp {
            leader_flags: fields.get_u16_le(),
            base_offset: Offset(fields.get_u64_le()),
            leader_epoch: LeaderEpoch(fields.get_u32_le()),
            append_time: fields.get_i64_le(),
            durable_end: Offset(fields.get_u64_le()),
        };
        let batch_length = fields.get_u32_le();
        let crc = fields.get_u32_le();
        let header_crc = fields.get_u32_le();
        if !(header_bytes + PRODUCER_HEADER_LENGTH..=BATCH_BYTES_MAX).contains(&(batch_length as usize)) {
            return Err(BatchError::BatchLength(batch_length as usize));
        }
        let producer_end = header_bytes + PRODUCER_HEADER_LENGTH;
        let mut fields = bytes.get(header_bytes..producer_end).ok_or(need(producer_end))?;
        let producer = ProducerHeader {
            attributes: fields.get_u16_le(),
            last_offset_delta: fields.get_u32_le(),
            first_timestamp: fields.get_i64_le(),
            max_timestamp: fields.get_i64_le(),
            producer_id: ProducerId(fields.get_u64_le()),
            producer_epoch: fields.get_u16_le(),
            first_sequence: fields.get_u32_le(),
            record_count: fields.get_u32_le(),
        };
        let header = Self { header_length, leader, batch_length, crc, header_crc, producer };
        header.check_consistency()?;
        Ok(header)
    }

    fn check_consistency(&self) -> Result<(), BatchError> {
        let producer = &self.producer;
        if self.leader.leader_flags & !LEADER_FLAGS_KNOWN != 0 || producer.attributes & !ATTRIBUTES_KNOWN != 0
        {
            return Err(BatchError::Flags {
                leader_flags: self.leader.leader_flags,
                attributes: producer.attributes,
            });
        }
        // A cleaned batch has fewer records than offsets, never more; offsets fit i32 as a later listener needs.
        let raw_length_max =
            if self.compression()? == Compression::None { self.records_length() } else { RECORDS_BYTES_MAX };
        let counts_fit = producer.record_count <= producer.last_offset_delta.saturating_add(1)
            && producer.record_count as usize <= raw_length_max / RECORD_LENGTH_MIN
            && producer.last_offset_delta <= i32::MAX as u32
            && self.leader.base_offset.checked_add_count(u64::from(producer.last_offset_delta) + 1).is_some();
        if !counts_fit {
            return Err(BatchError::Counts {
                record_count: producer.record_count,
                last_offset_delta: producer.last_offset_delta,
                records_length: self.records_length(),
            });
        }
        Ok(())
    }

    /// How the records are compressed.
    ///
    /// # Errors
    /// When the number is unknown; a decoded header never has such a number.
    pub fn compression(&self) -> Result<Compression, CompressionError> {
        Compression::from_code(self.producer.attributes & COMPRESSION_MASK)
    }

    /// Bytes of the whole batch.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.batch_length as usize
    }

    /// Where the records start in the batch.
    #[must_use]
    pub const fn records_at(&self) -> usize {
        self.header_length as usize + PRODUCER_HEADER_LENGTH
    }

    /// Bytes of the records section.
    #[must_use]
    pub const fn records_length(&self) -> usize {
        self.length() - self.records_at()
    }

    /// The offset after the last record.
    #[must_use]
    pub const fn end_offset(&self) -> Offset {
        Offset(self.leader.base_offset.0 + self.producer.last_offset_delta as u64 + 1)
    }

    /// How many offsets the batch takes.
    #[must_use]
    pub const fn offset_count(&self) -> u64 {
        self.producer.last_offset_delta as u64 + 1
    }

    /// Whether the batch holds control records.
    #[must_use]
    pub const fn is_control(&self) -> bool {
        self.leader.leader_flags & LEADER_FLAG_CONTROL != 0
    }

    /// Checks `header_crc` of the batch at the front of `bytes`, which this header was decoded from.
    ///
    /// # Errors
    /// When header or partition are not those of the checksum.
    pub fn verify_header(&self, bytes: &[u8], partition: TopicPartition) -> Result<(), BatchError> {
        let header = bytes
            .get(..usize::from(self.header_length))
            .ok_or(BatchError::CutShort { have: bytes.len(), need: usize::from(self.header_length) })?;
        let computed = header_checksum(header, partition);
        if computed != self.header_crc {
            return Err(BatchError::HeaderChecksum { stored: self.header_crc, computed });
        }
        Ok(())
    }

    /// Checks `crc` of the batch at the front of `bytes`, which this header was decoded from.
    ///
    /// # Errors
    /// When the bytes are not those of the checksum, or not all there.
    pub fn verify_records(&self, bytes: &[u8]) -> Result<(), BatchError> {
        let records = bytes
            .get(usize::from(self.header_length)..self.length())
            .ok_or(BatchError::CutShort { have: bytes.len(), need: self.length() })?;
        let computed = crc32fast::hash(records);
        if computed != self.crc {
            return Err(BatchError::Checksum { stored: self.crc, computed });
        }
        Ok(())
    }

    /// Decodes the batch at the front of `bytes` and checks both checksums.
    ///
    /// # Errors
    /// When the bytes are not a whole and good batch of `partition`.
    pub fn decode_verified(bytes: &[u8], partition: TopicPartition) -> Result<Self, BatchError> {
        let header = Self::decode(bytes)?;
        header.verify_header(bytes, partition)?;
        header.verify_records(bytes)?;
        Ok(header)
    }

    /// Decodes and verifies a batch that a producer sent: the whole of `bytes`, without extensions, the leader's part
    /// still 0, as many records as offsets, and a producer that is either absent or named with an epoch and a sequence.
    ///
    /// The records themselves are not decoded. Which compressions and producers are accepted is the broker's decision.
    ///
    /// # Errors
    /// Says what is wrong; [`BatchError::code`] is what the producer is told.
    pub fn decode_produced(bytes: &[u8], partition: TopicPartition) -> Result<Self, BatchError> {
        let header = Self::decode(bytes)?;
        if header.length() < bytes.len() {
            return Err(BatchError::NotProduced("bytes follow it"));
        }
        header.check_produced()?;
        header.verify_header(bytes, partition)?;
        header.verify_records(bytes)?;
        Ok(header)
    }

    fn check_produced(&self) -> Result<(), BatchError> {
        let producer = &self.producer;
        if usize::from(self.header_length) != HEADER_LENGTH {
            return Err(BatchError::HeaderLength(usize::from(self.header_length)));
        }
        if self.leader != LeaderStamp::default() {
            return Err(BatchError::NotProduced("the leader's part of its header is not 0"));
        }
        // Otherwise a few bytes could use up two thousand million offsets.
        if producer.record_count != producer.last_offset_delta.saturating_add(1) {
            return Err(BatchError::NotProduced("it has fewer records than offsets"));
        }
        if producer.max_timestamp < producer.first_timestamp {
            return Err(BatchError::NotProduced("its greatest timestamp is below its first"));
        }
        let absent = producer.producer_epoch == u16::MAX && producer.first_sequence == u32::MAX;
        let named = producer.producer_epoch <= i16::MAX as u16 && producer.first_sequence <= i32::MAX as u32;
        match producer.producer_id {
            ProducerId::NONE if !absent => {
                Err(BatchError::NotProduced("its producer is absent but has an epoch"))
            }
            ProducerId::NONE => Ok(()),
            _ if !named => Err(BatchError::NotProduced("its producer epoch or sequence is out of range")),
            _ => Ok(()),
        }
    }

    /// The leader's header for these bytes under a new stamp: what is written instead of the first `HEADER_LENGTH`
    /// bytes of a batch that a producer sent. Everything else of the batch stays as it is.
    ///
    /// # Panics
    /// When the header has extensions: [`BatchHeader::decode_produced`] refuses those.
    #[must_use]
    pub fn stamped(&self, stamp: LeaderStamp, partition: TopicPartition) -> [u8; HEADER_LENGTH] {
        assert_eq!(usize::from(self.header_length), HEADER_LENGTH, "a stamped header has no extensions");
        encode_header(stamp, self.batch_length, self.crc, partition)
    }
}

/// Encodes a leader's header without extensions, checksum included.
#[expect(clippy::cast_possible_truncation, reason = "HEADER_LENGTH is below HEADER_LENGTH_MAX")]
pub(super) fn encode_header(
    stamp: LeaderStamp,
    batch_length: u32,
    crc: u32,
    partition: TopicPartition,
) -> [u8; HEADER_LENGTH] {
    let mut header = [0; HEADER_LENGTH];
    let mut fields = &mut header[..];
    fields.put_u16_le(BATCH_MAGIC);
    fields.put_u8(BATCH_FORMAT);
    fields.put_u16_le(HEADER_LENGTH as u16);
    fields.put_u16_le(stamp.leader_flags);
    fields.put_u64_le(stamp.base_offset.0);
    fields.put_u32_le(stamp.leader_epoch.0);
    fields.put_i64_le(stamp.append_time);
    fields.put_u64_le(stamp.durable_end.0);
    fields.put_u32_le(batch_length);
    fields.put_u32_le(crc);
    let header_crc = header_checksum(&header, partition);
    header[HEADER_CRC_AT..HEADER_LENGTH].copy_from_slice(&header_crc.to_le_bytes());
    header
}

impl ProducerHeader {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16_le(self.attributes);
        out.put_u32_le(self.last_offset_delta);
        out.put_i64_le(self.first_timestamp);
        out.put_i64_le(self.max_timestamp);
        out.put_u64_le(self.producer_id.0);
        out.put_u16_le(self.producer_epoch);
        out.put_u32_le(self.first_sequence);
        out.put_u32_le(self.record_count);
    }
}

#[expect(clippy::indexing_slicing, reason = "every decoded header has at least HEADER_LENGTH bytes")]
fn header_checksum(header: &[u8], partition: TopicPartition) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&partition.topic_id.to_bytes());
    hasher.update(&partition.partition.0.to_le_bytes());
    hasher.update(&header[..HEADER_CRC_AT]);
    hasher.update(&header[HEADER_CRC_AT + 4..]);
    hasher.finalize()
}

/// The next position at or after `from` where the batch magic stands, if any.
#[must_use]
pub fn scan_for_magic(bytes: &[u8], from: usize) -> Option<usize> {
    let magic = BATCH_MAGIC.to_le_bytes();
    let tail = bytes.get(from..)?;
    tail.windows(2).position(|pair| pair == magic).map(|position| from + position)
}

const _: () = assert!(CRC_AT + 4 == HEADER_CRC_AT && HEADER_CRC_AT + 4 == HEADER_LENGTH);
const _: () = assert!(HEADER_LENGTH <= HEADER_LENGTH_MAX);
