//! Batches whose records say who they are, so that a record that turns up somewhere can be told from every other one.

use bytes::Bytes;
use highwater_protocol::batch::{BatchBuilder, BatchHeader, Records};
use highwater_protocol::compression::Compression;
use highwater_protocol::ids::{Offset, ProducerId, TopicPartition};

use super::random::Random;

/// A record that was read: where it was, in which epoch, and who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Its offset.
    pub offset: u64,
    /// The leader epoch of its batch.
    pub epoch: u32,
    /// Its identity.
    pub id: u64,
}

/// A batch as a producer sends it, with one record for each of `ids`, in bytes about `value_bytes` each.
///
/// # Panics
/// When the batch would be larger than a batch may be.
pub fn produced(
    partition: TopicPartition,
    ids: impl Iterator<Item = u64>,
    value_bytes: usize,
    timestamp: i64,
    random: &mut Random,
) -> Bytes {
    produced_by(None, partition, ids, value_bytes, timestamp, random)
}

/// The same from an idempotent producer: its id, its epoch and the sequence of the first record.
///
/// # Panics
/// When the batch would be larger than a batch may be.
pub fn produced_by(
    producer: Option<(ProducerId, u16, u32)>,
    partition: TopicPartition,
    ids: impl Iterator<Item = u64>,
    value_bytes: usize,
    timestamp: i64,
    random: &mut Random,
) -> Bytes {
    let mut builder = BatchBuilder::with_capacity(256);
    if let Some((id, epoch, first_sequence)) = producer {
        builder.set_producer(id, epoch, first_sequence);
    }
    for id in ids {
        let mut value = id.to_le_bytes().to_vec();
        let filler = random.index(value_bytes + 1);
        value.extend(random.bytes(filler));
        builder.push(timestamp, None, Some(&value), &[]);
    }
    let compression = if random.percent(20) { Compression::Lz4 } else { Compression::None };
    match builder.build(partition, compression) {
        Ok(batch) => batch,
        Err(error) => panic!("build a batch: {error}"),
    }
}

/// The records in whole batches, one after another, all checksums checked.
///
/// # Errors
/// What is wrong, if anything is.
pub fn records(bytes: Bytes, partition: TopicPartition) -> Result<Vec<Seen>, String> {
    records_of(bytes, partition, |_| {})
}

/// The same, with the header of each batch.
///
/// # Errors
/// What is wrong, if anything is.
pub fn records_of(
    mut bytes: Bytes,
    partition: TopicPartition,
    mut headers: impl FnMut(&BatchHeader),
) -> Result<Vec<Seen>, String> {
    let mut seen = Vec::new();
    while !bytes.is_empty() {
        let header = BatchHeader::decode(&bytes).map_err(|error| error.to_string())?;
        if bytes.len() < header.length() {
            return Err(format!("the batch at {} is cut short", header.leader.base_offset));
        }
        headers(&header);
        let batch = bytes.split_to(header.length());
        let records = Records::verify(&batch, partition).map_err(|error| error.to_string())?;
        for record in records.iter() {
            let record = record.map_err(|error| error.to_string())?;
            let value = record.value.and_then(|value| value.first_chunk::<8>());
            let id = value.map(|id| u64::from_le_bytes(*id)).ok_or("a record without identity")?;
            seen.push(Seen { offset: record.offset.get(), epoch: header.leader.leader_epoch.get(), id });
        }
    }
    Ok(seen)
}

/// The offset range of a whole batch.
///
/// # Errors
/// When it is not a batch.
pub fn offsets(batch: &[u8]) -> Result<std::ops::Range<Offset>, String> {
    let header = BatchHeader::decode(batch).map_err(|error| error.to_string())?;
    Ok(header.leader.base_offset..header.end_offset())
}
