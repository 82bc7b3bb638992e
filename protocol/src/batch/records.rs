//! Decoding the records section of a batch.
//!
//! ```text
//! length varint | attributes u8 (0) | timestamp_delta varint | offset_delta varint |
//! key length varint (-1: none), key | value length varint (-1: none), value |
//! header count varint, then a header: name length varint, name | value length varint (-1: none), value
//! ```

use bytes::Bytes;

use super::header::{BatchError, BatchHeader, LEADER_FLAG_APPEND_TIME};
use crate::compression::{Compression, CompressionError};
use crate::ids::{Offset, TopicPartition};
use crate::limits::{RECORD_HEADERS_MAX, RECORD_LENGTH_MIN, RECORDS_BYTES_MAX};
use crate::varint::take_varint;

/// Why a records section does not decode. Its checksum was good, so its producer wrote it like that.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordsError {
    /// The batch around the records is bad.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The records do not decompress.
    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// A field ends beyond its record, or a varint does not end.
    #[error("record {index} is cut short or longer than it says")]
    Malformed {
        /// Which record of the batch, from 0.
        index: u32,
    },
    /// Offsets of records must rise within the batch's range.
    #[error("record {index} has offset delta {delta}, outside its batch or its order")]
    OffsetDelta {
        /// Which record of the batch, from 0.
        index: u32,
        /// What it says.
        delta: i64,
    },
    /// The name of a header is not UTF-8.
    #[error("record {index} has a header whose name is not UTF-8")]
    HeaderName {
        /// Which record of the batch, from 0.
        index: u32,
    },
    /// Bytes follow the last record.
    #[error("{0} bytes follow the last record")]
    Trailing(usize),
}

/// A header of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Names that start with `hw-` are reserved.
    pub name: String,
    /// Absent is not the same as empty.
    pub value: Option<Bytes>,
}

/// A borrowed header: name and value.
pub type HeaderRef<'a> = (&'a str, Option<&'a [u8]>);

/// A record with slices of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the partition.
    pub offset: Offset,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// Decides the partition and what compaction keeps.
    pub key: Option<Bytes>,
    /// Absent: the key is deleted.
    pub value: Option<Bytes>,
    /// In the producer's order.
    pub headers: Vec<Header>,
}

/// A record that borrows from its batch. Its headers are decoded on demand.
#[derive(Debug, Clone, Copy)]
pub struct RecordRef<'a> {
    /// Its place in the partition.
    pub offset: Offset,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// Decides the partition and what compaction keeps.
    pub key: Option<&'a [u8]>,
    /// Absent: the key is deleted.
    pub value: Option<&'a [u8]>,
    index: u32,
    header_count: u32,
    headers: &'a [u8],
}

impl<'a> RecordRef<'a> {
    /// How many headers the record has.
    #[must_use]
    pub const fn header_count(&self) -> u32 {
        self.header_count
    }

    /// How many headers there are, and their bytes.
    pub(super) const fn raw_headers(&self) -> (u32, &'a [u8]) {
        (self.header_count, self.headers)
    }

    /// The headers, borrowed: name and value.
    ///
    /// # Errors
    /// When they do not decode.
    pub fn headers(&self) -> Result<Vec<HeaderRef<'a>>, RecordsError> {
        let malformed = || RecordsError::Malformed { index: self.index };
        let mut rest = self.headers;
        // Bounded by RECORD_HEADERS_MAX, checked when the record was decoded.
        let mut headers = Vec::with_capacity(self.header_count as usize);
        for _ in 0..self.header_count {
            let name = take_field(&mut rest).ok_or_else(malformed)?.ok_or_else(malformed)?;
            let name =
                std::str::from_utf8(name).map_err(|_| RecordsError::HeaderName { index: self.index })?;
            let value = take_field(&mut rest).ok_or_else(malformed)?;
            headers.push((name, value));
        }
        if rest.is_empty() { Ok(headers) } else { Err(malformed()) }
    }
}

/// The decompressed records of one batch.
#[derive(Debug, Clone)]
pub struct Records {
    header: BatchHeader,
    raw: Bytes,
}

impl Records {
    /// Verifies the batch at the front of `batch` and decompresses its records. Uncompressed records stay slices.
    ///
    /// # Errors
    /// When the batch is bad or its records expand beyond `RECORDS_BYTES_MAX`.
    pub fn verify(batch: &Bytes, partition: TopicPartition) -> Result<Self, RecordsError> {
        let header = BatchHeader::decode_verified(batch, partition)?;
        Self::open(header, batch)
    }

    /// Decompresses the records of a batch whose checksums have been verified.
    ///
    /// # Errors
    /// When the batch is cut short or its records expand beyond `RECORDS_BYTES_MAX`.
    pub fn open(header: BatchHeader, batch: &Bytes) -> Result<Self, RecordsError> {
        if batch.len() < header.length() {
            return Err(BatchError::CutShort { have: batch.len(), need: header.length() }.into());
        }
        let section = batch.slice(header.records_at()..header.length());
        let raw = match header.compression()? {
            Compression::None => section,
            packed => Bytes::from(packed.decompress(&section, RECORDS_BYTES_MAX)?),
        };
        Ok(Self { header, raw })
    }

    /// The header of the batch.
    #[must_use]
    pub const fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The uncompressed records section.
    #[must_use]
    pub const fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The records in order, borrowed. Ends after the first error.
    #[must_use]
    pub fn iter(&self) -> RecordsIter<'_> {
        RecordsIter {
            rest: &self.raw,
            header: self.header,
            index: 0,
            delta_min: 0,
            append_time_ms: (self.header.leader.leader_flags & LEADER_FLAG_APPEND_TIME != 0)
                .then_some(self.header.leader.append_time / 1000),
        }
    }

    /// A record of this batch with slices of its own: nothing is copied but the names of headers.
    ///
    /// # Errors
    /// When its headers do not decode.
    pub fn to_owned_record(&self, record: &RecordRef<'_>) -> Result<Record, RecordsError> {
        let headers = if record.header_count == 0 {
            Vec::new()
        } else {
            let owned = |(name, value): (&str, Option<&[u8]>)| Header {
                name: name.to_owned(),
                value: value.map(|bytes| self.raw.slice_ref(bytes)),
            };
            record.headers()?.into_iter().map(owned).collect()
        };
        Ok(Record {
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.map(|bytes| self.raw.slice_ref(bytes)),
            value: record.value.map(|bytes| self.raw.slice_ref(bytes)),
            headers,
        })
    }
}

impl<'a> IntoIterator for &'a Records {
    type Item = Result<RecordRef<'a>, RecordsError>;
    type IntoIter = RecordsIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Goes through the records of a batch.
#[derive(Debug, Clone)]
pub struct RecordsIter<'a> {
    rest: &'a [u8],
    header: BatchHeader,
    index: u32,
    delta_min: i64,
    append_time_ms: Option<i64>,
}

impl<'a> RecordsIter<'a> {
    #[inline]
    fn decode(&mut self) -> Result<RecordRef<'a>, RecordsError> {
        let index = self.index;
        let malformed = || RecordsError::Malformed { index };
        let body = take_field(&mut self.rest).ok_or_else(malformed)?.ok_or_else(malformed)?;
        let (_attributes, mut body) = body.split_first().ok_or_else(malformed)?;
        let timestamp_delta = take_varint(&mut body).ok_or_else(malformed)?;
        let delta = take_varint(&mut body).ok_or_else(malformed)?;
        if delta < self.delta_min || delta > i64::from(self.header.producer.last_offset_delta) {
            return Err(RecordsError::OffsetDelta { index, delta });
        }
        let key = take_field(&mut body).ok_or_else(malformed)?;
        let value = take_field(&mut body).ok_or_else(malformed)?;
        let header_count = take_varint(&mut body).ok_or_else(malformed)?;
        let header_count = u32::try_from(header_count).map_err(|_| malformed())?;
        // A header takes two bytes at least.
        let header_count_max = RECORD_HEADERS_MAX.min(body.len() / 2);
        if header_count as usize > header_count_max || (header_count == 0 && !body.is_empty()) {
            return Err(malformed());
        }
        self.delta_min = delta + 1;
        Ok(RecordRef {
            // In range: the header was checked to leave room for last_offset_delta.
            offset: Offset(self.header.leader.base_offset.0 + delta as u64),
            timestamp: self
                .append_time_ms
                .unwrap_or_else(|| self.header.producer.first_timestamp.wrapping_add(timestamp_delta)),
            key,
            value,
            index,
            header_count,
            headers: body,
        })
    }
}

impl<'a> Iterator for RecordsIter<'a> {
    type Item = Result<RecordRef<'a>, RecordsError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.index == self.header.producer.record_count {
            let trailing = std::mem::take(&mut self.rest).len();
            return (trailing > 0).then_some(Err(RecordsError::Trailing(trailing)));
        }
        let record = self.decode();
        if record.is_ok() {
            self.index += 1;
        } else {
            self.index = self.header.producer.record_count;
            self.rest = &[];
        }
        Some(record)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // A hostile count must not become an allocation.
        let upper = (self.header.producer.record_count - self.index) as usize;
        let upper = upper.min(self.rest.len() / RECORD_LENGTH_MIN + 1);
        (0, Some(upper + 1))
    }
}

/// Takes a length and that many bytes; the inner `None` is the absent field.
#[inline]
fn take_field<'a>(input: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let length = take_varint(input)?;
    if length < 0 {
        return (length == -1).then_some(None);
    }
    let length = usize::try_from(length).ok()?;
    if length > input.len() {
        return None;
    }
    let (field, rest) = input.split_at(length);
    *input = rest;
    Some(Some(field))
}
