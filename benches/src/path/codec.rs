//! Batches: made, checked, taken apart.

use anyhow::{Result, ensure};
use bytes::Bytes;
use highwater_protocol::batch::{BatchBuilder, BatchHeader, Records};
use highwater_protocol::compression::Compression;
use highwater_protocol::ids::{PartitionId, TopicId, TopicPartition};

use super::{Each, Repeat};
use crate::payload::incompressible;

/// Where all of this goes.
const PARTITION: TopicPartition = TopicPartition::new(TopicId(7), PartitionId(3));

/// Room for headers and the lengths of one record.
const RECORD_EXTRA: usize = 24;

/// A batch of at most `bytes` bytes (one record at the least) with records of `size` bytes.
///
/// # Errors
/// Never: an uncompressed batch needs no codec.
pub fn batch_of(bytes: usize, size: usize, partition: TopicPartition) -> Result<Bytes> {
    let value = incompressible(size, 5);
    let mut builder = BatchBuilder::with_capacity(bytes + size + RECORD_EXTRA);
    while builder.is_empty() || builder.length() + size + RECORD_EXTRA <= bytes {
        builder.push(1, None, Some(&value), &[]);
    }
    Ok(builder.build(partition, Compression::None)?)
}

fn encoded(count: usize, value: &[u8]) -> Result<Bytes> {
    let mut builder = BatchBuilder::with_capacity((count + 1) * (value.len() + RECORD_EXTRA));
    for _ in 0..count {
        builder.push(1, None, Some(value), &[]);
    }
    Ok(builder.build(PARTITION, Compression::None)?)
}

/// 64 records of 1,000 bytes.
pub(super) fn encode() -> Result<Box<dyn Repeat>> {
    let value = incompressible(1000, 5);
    Ok(Box::new(Each(move || encoded(64, &value))))
}

/// 600 records of 100 bytes.
pub(super) fn encode_small() -> Result<Box<dyn Repeat>> {
    let value = incompressible(100, 5);
    Ok(Box::new(Each(move || encoded(600, &value))))
}

/// As the broker checks what is produced.
pub(super) fn check() -> Result<Box<dyn Repeat>> {
    let batch = batch_of(64 << 10, 1000, PARTITION)?;
    Ok(Box::new(Each(move || Ok(BatchHeader::decode_produced(&batch, PARTITION)?))))
}

/// As a consumer takes it apart.
pub(super) fn decode_small() -> Result<Box<dyn Repeat>> {
    let batch = encoded(600, &incompressible(100, 5))?;
    Ok(Box::new(Each(move || {
        let records = Records::verify(&batch, PARTITION)?;
        let mut bytes = 0;
        for record in records.iter() {
            bytes += record?.value.map_or(0, <[u8]>::len);
        }
        ensure!(bytes == 600 * 100, "{bytes} bytes came out");
        Ok(bytes)
    })))
}
