//! The sparse index of a segment: where batches start, every 64 KiB or so, and the timestamps before them.

use std::ops::Range;

use bytes::BufMut;
use highwater_protocol::batch::{BatchHeader, LEADER_FLAG_APPEND_TIME};
use highwater_protocol::ids::Offset;

use super::envelope::{self, Fields, FormatError};

const MAGIC: [u8; 4] = *b"HWIX";
const VERSION: u16 = 1;

/// Bytes between two entries, at the least: what a reader walks through at the most to find a batch, but for the
/// length of one batch.
pub const INTERVAL_BYTES: u64 = 64 << 10;

/// The start of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// The first offset of the batch.
    pub offset: Offset,
    /// Where it starts in the file.
    pub position: u64,
    /// The greatest record timestamp of all batches before it in the segment, in milliseconds since the Unix epoch.
    pub max_timestamp_before: i64,
}

/// Entries by offset; the first batch of the segment and the first after each bad range always have one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseIndex {
    entries: Vec<IndexEntry>,
    max_timestamp: i64,
    /// Whether the next batch gets an entry whatever the distance.
    forced: bool,
}

impl Default for SparseIndex {
    fn default() -> Self {
        Self { entries: Vec::new(), max_timestamp: i64::MIN, forced: false }
    }
}

/// The greatest record timestamp of a batch in milliseconds since the Unix epoch, as consumers see it.
#[must_use]
pub const fn batch_max_timestamp(header: &BatchHeader) -> i64 {
    if header.leader.leader_flags & LEADER_FLAG_APPEND_TIME != 0 {
        header.leader.append_time.div_euclid(1000)
    } else {
        header.producer.max_timestamp
    }
}

impl SparseIndex {
    /// Notes the next batch.
    pub fn note(&mut self, header: &BatchHeader, position: u64) {
        let far = self.entries.last().is_none_or(|last| position - last.position >= INTERVAL_BYTES);
        if far || self.forced {
            self.forced = false;
            self.entries.push(IndexEntry {
                offset: header.leader.base_offset,
                position,
                max_timestamp_before: self.max_timestamp,
            });
        }
        self.max_timestamp = self.max_timestamp.max(batch_max_timestamp(header));
    }

    /// Gives the next batch an entry: what is before it cannot be walked through.
    pub const fn break_here(&mut self) {
        self.forced = true;
    }

    /// Forgets what starts at `position` or later. The timestamps that remain may be too large by what was cut, which
    /// makes searches by time walk further, never miss.
    pub fn truncate(&mut self, position: u64) {
        self.entries.retain(|entry| entry.position < position);
    }

    /// The greatest record timestamp so far; the least number if there is no batch.
    #[must_use]
    pub const fn max_timestamp(&self) -> i64 {
        self.max_timestamp
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// Whether there is no batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The last entry that is not after `offset`, or the first one.
    #[must_use]
    pub fn floor_offset(&self, offset: Offset) -> Option<IndexEntry> {
        let after = self.entries.partition_point(|entry| entry.offset <= offset);
        self.entries.get(after.saturating_sub(1)).copied()
    }

    /// The last entry that is not after `position`, or the first one.
    #[must_use]
    pub fn floor_position(&self, position: u64) -> Option<IndexEntry> {
        let after = self.entries.partition_point(|entry| entry.position <= position);
        self.entries.get(after.saturating_sub(1)).copied()
    }

    /// The last entry before which every timestamp is below `timestamp`: a search starts there.
    #[must_use]
    pub fn floor_time(&self, timestamp: i64) -> Option<IndexEntry> {
        let after = self.entries.partition_point(|entry| entry.max_timestamp_before < timestamp);
        self.entries.get(after.saturating_sub(1)).copied()
    }

    /// Which entries' stretches (from an entry to the next) touch `positions`.
    #[must_use]
    pub fn stretches(&self, positions: &Range<u64>) -> Range<usize> {
        let start = self.entries.partition_point(|entry| entry.position <= positions.start).saturating_sub(1);
        let end = self.entries.partition_point(|entry| entry.position < positions.end);
        start..end
    }

    /// The bytes of a stretch in a segment of `length` bytes.
    #[must_use]
    pub fn stretch(&self, number: usize, length: u64) -> Range<u64> {
        let at = |number: usize| self.entries.get(number).map_or(length, |entry| entry.position);
        at(number)..at(number + 1)
    }

    /// The bytes of the index file of the segment of `length` bytes with this `checksum`.
    #[must_use]
    pub fn encode(&self, length: u64, checksum: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(24 + self.entries.len() * 24);
        out.put_u64_le(length);
        out.put_u32_le(checksum);
        out.put_i64_le(self.max_timestamp);
        out.put_u32_le(self.entries.len() as u32);
        for entry in &self.entries {
            out.put_u64_le(entry.offset.0);
            out.put_u64_le(entry.position);
            out.put_i64_le(entry.max_timestamp_before);
        }
        envelope::wrap(MAGIC, VERSION, &out)
    }

    /// The index in a file.
    ///
    /// # Errors
    /// When it is damaged or that of another segment: build it from the segment again.
    pub fn decode(bytes: &[u8], length: u64, checksum: u32) -> Result<Self, FormatError> {
        let (_version, payload) = envelope::unwrap(MAGIC, VERSION, bytes)?;
        let mut fields = Fields(payload);
        if fields.u64()? != length || fields.u32()? != checksum {
            return Err(FormatError::Field("segment"));
        }
        let mut index = Self { max_timestamp: fields.i64()?, ..Self::default() };
        for _ in 0..fields.count(24)? {
            index.entries.push(IndexEntry {
                offset: Offset(fields.u64()?),
                position: fields.u64()?,
                max_timestamp_before: fields.i64()?,
            });
        }
        fields.end()?;
        let sorted = index.entries.is_sorted_by(|a, b| a.position < b.position && a.offset < b.offset);
        if !sorted || index.entries.last().is_some_and(|last| last.position >= length) {
            return Err(FormatError::Field("entries"));
        }
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use highwater_protocol::batch::{LeaderStamp, ProducerHeader};
    use highwater_protocol::ids::ProducerId;

    use super::*;

    fn header(offset: u64, timestamp: i64) -> BatchHeader {
        BatchHeader {
            header_length: 47,
            leader: LeaderStamp { base_offset: Offset(offset), ..LeaderStamp::default() },
            batch_length: 100,
            crc: 0,
            header_crc: 0,
            producer: ProducerHeader {
                attributes: 0,
                last_offset_delta: 9,
                first_timestamp: timestamp,
                max_timestamp: timestamp,
                producer_id: ProducerId::NONE,
                producer_epoch: 0,
                first_sequence: 0,
                record_count: 10,
            },
        }
    }

    fn example() -> SparseIndex {
        let mut index = SparseIndex::default();
        for number in 0..100u64 {
            index.note(&header(number * 10, number as i64), number * (INTERVAL_BYTES / 4));
        }
        index
    }

    #[test]
    fn floors_are_never_after_what_is_sought() {
        let index = example();
        assert_eq!(index.entries().len(), 25);
        for offset in 0..1000 {
            let entry = index.floor_offset(Offset(offset)).unwrap();
            assert!(entry.offset <= Offset(offset) && offset - entry.offset.get() < 40);
        }
        for time in 0..100 {
            let entry = index.floor_time(time).unwrap();
            assert!(entry.max_timestamp_before < time && entry.offset.get() / 10 <= time as u64);
        }
        assert_eq!(index.floor_position(INTERVAL_BYTES + 1).unwrap().position, INTERVAL_BYTES);
        assert_eq!(SparseIndex::default().floor_offset(Offset(0)), None);
    }

    #[test]
    fn stretches_cover_what_they_are_asked_for() {
        let index = example();
        let length = 100 * (INTERVAL_BYTES / 4);
        assert_eq!(index.stretches(&(0..length)), 0..25);
        assert_eq!(index.stretches(&(INTERVAL_BYTES..INTERVAL_BYTES + 1)), 1..2);
        assert_eq!(index.stretches(&(INTERVAL_BYTES - 1..INTERVAL_BYTES + 1)), 0..2);
        assert_eq!(index.stretch(24, length), 24 * INTERVAL_BYTES..length);
    }

    #[test]
    fn file_round_trip() {
        let index = example();
        let length = 100 * (INTERVAL_BYTES / 4);
        let bytes = index.encode(length, 77);
        assert_eq!(SparseIndex::decode(&bytes, length, 77).unwrap(), index);
        assert!(SparseIndex::decode(&bytes, length, 78).is_err());
        assert!(SparseIndex::decode(&bytes, length - 1, 77).is_err());
    }
}
