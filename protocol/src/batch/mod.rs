//! The record batch: the unit that is written, replicated, checksummed and compressed.
//!
//! ```text
//! 0  magic u16 | 2 format u8 | 3 header_length u16 | 5 leader_flags u16 | 7 base_offset u64 | 15 leader_epoch u32 |
//! 19 append_time i64 (µs) | 27 durable_end u64 | 35 batch_length u32 | 39 crc u32 | 43 header_crc u32 | 47 extensions…
//! then at header_length, written by the producer:
//! attributes u16 | last_offset_delta u32 | first_timestamp i64 (ms) | max_timestamp i64 (ms) | producer_id u64 |
//! producer_epoch u16 | first_sequence u32 | record_count u32 | records…
//! ```
//!
//! Little-endian. `crc` covers `[header_length, batch_length)`; `header_crc` covers topic id (16 bytes), partition (u32)
//! and the header without `header_crc`. The leader stamps the header, so that the records are never copied.

mod builder;
mod header;
mod rebuild;
mod records;

pub use builder::{BatchBuilder, restamp_producer};
pub use header::{ATTRIBUTE_TRANSACTIONAL, LEADER_FLAG_APPEND_TIME, LEADER_FLAG_CONTROL};
pub use header::{BATCH_FORMAT, BATCH_LENGTH_MIN, BATCH_MAGIC, HEADER_LENGTH};
pub use header::{
    BatchError, BatchHeader, LeaderStamp, PRODUCER_HEADER_LENGTH, ProducerHeader, scan_for_magic,
};
pub use rebuild::{BatchRebuilder, Identity, NO_TIMESTAMP, RebuildError};
pub use records::{Header, HeaderRef, Record, RecordRef, Records, RecordsError, RecordsIter};
