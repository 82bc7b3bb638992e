//! What becomes of batches when records go: rebuilt, each record at its offset, or merged into larger ones that cover the
//! same offsets.
//!
//! Every offset stays covered by some batch, of the leader epoch that it had, if need be by one without records. So replicas
//! copy a cleaned log as they copy any other, epochs keep their starts, and a gap is still a corrupt range.

use std::ops::Range;

use bytes::Bytes;
use highwater_protocol::batch::{
    ATTRIBUTE_TRANSACTIONAL, BatchHeader, BatchRebuilder, Identity, LeaderStamp, RebuildError, RecordRef,
    Records, RecordsError,
};
use highwater_protocol::compression::Compression;
use highwater_protocol::ids::{Offset, TopicPartition};

/// Bytes of records, uncompressed, from which on a merged batch is closed: large enough that reading many small records
/// costs little, small enough that reading one of them does not cost much.
pub const MERGED_BYTES: usize = 128 << 10;

/// A batch of this size that keeps all its records is left as it is.
const LEFT_ALONE_BYTES: usize = 16 << 10;

/// Merges what is left of batches.
#[derive(Debug)]
pub struct Merger {
    partition: TopicPartition,
    pending: Option<Pending>,
}

/// A batch that is being put together.
#[derive(Debug)]
struct Pending {
    builder: BatchRebuilder,
    end: Offset,
    stamp: LeaderStamp,
    compression: Compression,
    /// What it is made of, while that is one batch as it was.
    whole: Option<Bytes>,
}

/// How many records there were in a batch, and how many stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Before.
    pub records: u64,
    /// After.
    pub kept: u64,
}

impl Merger {
    /// Merges batches of this partition.
    #[must_use]
    pub const fn new(partition: TopicPartition) -> Self {
        Self { partition, pending: None }
    }

    /// Takes the next batch, verified. `keep` says which of its records stay; `keep_identity`: its producer and sequences
    /// have to stay known. Batches that are done go to `out`.
    ///
    /// A batch whose records cannot be decoded is kept as it is: that is a matter between its producer and its consumers.
    pub fn take(
        &mut self,
        batch: &Bytes,
        header: BatchHeader,
        keep_identity: bool,
        mut keep: impl FnMut(&RecordRef<'_>) -> bool,
        out: &mut Vec<Bytes>,
    ) -> Counts {
        let as_it_is = header.is_control() || header.producer.attributes & ATTRIBUTE_TRANSACTIONAL != 0;
        let records = if as_it_is { None } else { decoded(header, batch) };
        let all = u64::from(header.producer.record_count);
        let (Some(records), Ok(compression)) = (records, header.compression()) else {
            self.flush(out);
            out.push(batch.clone());
            return Counts { records: all, kept: all };
        };
        let kept: Vec<RecordRef<'_>> =
            records.iter().map_while(Result::ok).filter(|record| keep(record)).collect();
        let counts = Counts { records: all, kept: kept.len() as u64 };
        let is_whole = counts.kept == counts.records;
        let alone = keep_identity || records.raw().len() >= MERGED_BYTES;
        if is_whole && (alone || batch.len() >= LEFT_ALONE_BYTES) {
            self.flush(out);
            out.push(batch.clone());
            return counts;
        }
        if alone {
            self.flush(out);
            let identity = if keep_identity { identity(&header) } else { Identity::NONE };
            let mut builder = BatchRebuilder::new(header.leader.base_offset);
            kept.iter().for_each(|record| builder.push(record));
            let built = self.build(builder, header.end_offset(), header.leader, identity, compression);
            // What does not fit any more stays as it was.
            out.push(built.unwrap_or_else(|_| batch.clone()));
            return counts;
        }
        self.merge(batch, &header, compression, &kept, is_whole, out);
        counts
    }

    /// The last batch goes to `out`: what comes next does not follow it, or nothing does.
    pub fn flush(&mut self, out: &mut Vec<Bytes>) {
        let Some(pending) = self.pending.take() else { return };
        if let Some(whole) = pending.whole {
            out.push(whole);
            return;
        }
        let Pending { builder, end, stamp, compression, .. } = pending;
        match self.build(builder, end, stamp, Identity::NONE, compression) {
            Ok(batch) => out.push(batch),
            // It is bounded far below what a batch may have, and its codec has just decoded.
            Err(error) => unreachable!("a merged batch: {error}"),
        }
    }

    fn merge(
        &mut self,
        batch: &Bytes,
        header: &BatchHeader,
        compression: Compression,
        kept: &[RecordRef<'_>],
        is_whole: bool,
        out: &mut Vec<Bytes>,
    ) {
        if self.pending.as_ref().is_some_and(|pending| !pending.goes_on_with(header, kept.len())) {
            self.flush(out);
        }
        let whole = (is_whole && self.pending.is_none()).then(|| batch.clone());
        let pending = self.pending.get_or_insert_with(|| Pending {
            builder: BatchRebuilder::new(header.leader.base_offset),
            end: header.leader.base_offset,
            stamp: header.leader,
            compression,
            whole: None,
        });
        kept.iter().for_each(|record| pending.builder.push(record));
        pending.whole = whole;
        pending.end = header.end_offset();
        pending.stamp.append_time = pending.stamp.append_time.max(header.leader.append_time);
        pending.stamp.durable_end = pending.stamp.durable_end.max(header.leader.durable_end);
        if pending.compression == Compression::None {
            pending.compression = compression;
        }
    }

    fn build(
        &self,
        builder: BatchRebuilder,
        end: Offset,
        stamp: LeaderStamp,
        identity: Identity,
        compression: Compression,
    ) -> Result<Bytes, RebuildError> {
        builder.build(end, stamp, identity, false, compression, self.partition)
    }
}

impl Pending {
    /// Whether the next batch may become a part of it, with so many records.
    fn goes_on_with(&self, header: &BatchHeader, records: usize) -> bool {
        let offsets = header.end_offset().count_since(self.builder.base_offset());
        header.leader.base_offset == self.end
            && header.leader.leader_epoch == self.stamp.leader_epoch
            && offsets <= i32::MAX as u64
            && (records == 0 || self.builder.length() < MERGED_BYTES)
    }
}

/// What a batch has in `range`, as a batch of that range alone; `None` if there is nothing in common. A batch that lies
/// within comes back as it is.
///
/// Replicas are cleaned at different moments, so that a batch of one may begin or end within one of another's.
///
/// # Errors
/// When its records do not decode, or cannot be put together.
pub fn trim(
    batch: &Bytes,
    header: BatchHeader,
    range: Range<Offset>,
    partition: TopicPartition,
) -> Result<Option<Bytes>, TrimError> {
    let offsets = header.leader.base_offset..header.end_offset();
    let common = offsets.start.max(range.start)..offsets.end.min(range.end);
    if common.start >= common.end {
        return Ok(None);
    }
    if common == offsets {
        return Ok(Some(batch.clone()));
    }
    let records = Records::open(header, batch)?;
    let mut builder = BatchRebuilder::new(common.start);
    for record in &records {
        let record = record?;
        if common.contains(&record.offset) {
            builder.push(&record);
        }
    }
    let transactional = header.producer.attributes & ATTRIBUTE_TRANSACTIONAL != 0;
    let compression = header.compression().map_err(RebuildError::from)?;
    let stamp = header.leader;
    Ok(Some(builder.build(common.end, stamp, Identity::NONE, transactional, compression, partition)?))
}

/// Why a batch cannot be trimmed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrimError {
    /// Its records do not decode.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// They cannot be put together.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
}

/// The records, if all of them decode.
fn decoded(header: BatchHeader, batch: &Bytes) -> Option<Records> {
    let records = Records::open(header, batch).ok()?;
    records.iter().all(|record| record.is_ok()).then_some(records)
}

const fn identity(header: &BatchHeader) -> Identity {
    Identity {
        producer_id: header.producer.producer_id,
        producer_epoch: header.producer.producer_epoch,
        first_sequence: header.producer.first_sequence,
    }
}

#[cfg(test)]
mod tests;
