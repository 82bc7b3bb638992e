//! What a leader pushed, verified.

use bytes::Bytes;
use highwater_protocol::batch::{BatchError, BatchHeader, HEADER_LENGTH};
use highwater_protocol::ids::{LeaderEpoch, Offset, TopicPartition};
use highwater_protocol::messages::Push;

use crate::storage::log::StampedBatch;

/// A push of a leader: batches whose checksums are good, or only where its watermark is.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// The leader's epoch.
    pub(crate) leader_epoch: LeaderEpoch,
    /// The leader's high watermark.
    pub(crate) high_watermark: Offset,
    /// Batches end to end, as the leader has them.
    pub(crate) batches: Vec<StampedBatch>,
    /// Bytes of the batches.
    pub(crate) bytes: u64,
}

impl Fetched {
    /// Takes a push apart and verifies it.
    ///
    /// # Errors
    /// When a batch is not a good one of `partition`.
    pub(crate) fn read(
        push: &Push,
        attachment: Bytes,
        partition: TopicPartition,
    ) -> Result<Self, BatchError> {
        Ok(Self {
            leader_epoch: LeaderEpoch(push.leader_epoch),
            high_watermark: Offset(push.high_watermark),
            bytes: attachment.len() as u64,
            batches: read_batches(attachment, partition)?,
        })
    }
}

/// Takes stored batches apart that lie end to end, and verifies both checksums of each.
///
/// # Errors
/// When one is not a whole and good batch of `partition`.
pub(crate) fn read_batches(
    mut bytes: Bytes,
    partition: TopicPartition,
) -> Result<Vec<StampedBatch>, BatchError> {
    let mut batches = Vec::new();
    while !bytes.is_empty() {
        let header = BatchHeader::decode_verified(&bytes, partition)?;
        let mut batch = bytes.split_to(header.length());
        let tail = batch.split_off(HEADER_LENGTH);
        let Some(head) = batch.first_chunk().copied() else {
            return Err(BatchError::CutShort { have: batch.len(), need: HEADER_LENGTH });
        };
        batches.push(StampedBatch { head, tail, header });
    }
    Ok(batches)
}

#[cfg(test)]
mod tests {
    use highwater_protocol::batch::{BatchBuilder, LeaderStamp};
    use highwater_protocol::compression::Compression;
    use highwater_protocol::ids::{PartitionId, TopicId};

    use super::*;

    const PARTITION: TopicPartition = TopicPartition::new(TopicId(1), PartitionId(0));

    fn stored(base_offset: u64) -> Bytes {
        let mut builder = BatchBuilder::with_capacity(64);
        builder.push(0, None, Some(b"value"), &[]);
        builder.push(0, None, Some(b"value"), &[]);
        let sent = builder.build(PARTITION, Compression::None).unwrap();
        let stamp = LeaderStamp { base_offset: Offset(base_offset), ..LeaderStamp::default() };
        let head = BatchHeader::decode(&sent).unwrap().stamped(stamp, PARTITION);
        [&head[..], &sent[HEADER_LENGTH..]].concat().into()
    }

    #[test]
    fn batches_come_out_as_they_are_stored() {
        let both = Bytes::from([stored(4), stored(6)].concat());
        let batches = read_batches(both.clone(), PARTITION).unwrap();
        let again: Vec<u8> =
            batches.iter().flat_map(|batch| [&batch.head[..], &batch.tail[..]].concat()).collect();
        assert_eq!(again, both);
        assert_eq!(batches[1].header.end_offset(), Offset(8));
    }

    #[test]
    fn one_flipped_bit_anywhere_refuses_the_push() {
        let good = stored(4);
        for place in 0..good.len() {
            let mut bad = good.to_vec();
            bad[place] ^= 0x10;
            assert!(read_batches(bad.into(), PARTITION).is_err(), "byte {place}");
        }
        let other = TopicPartition::new(TopicId(1), PartitionId(1));
        assert!(read_batches(good, other).is_err(), "a batch of another partition");
    }
}
