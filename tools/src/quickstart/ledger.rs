//! What was sent, acknowledged and consumed, held against each other.
//!
//! Pure: it is told what happened and says whether the promise was kept.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use highwater_client::{Offset, PartitionId};

/// How the promise was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// An acknowledged record was not consumed.
    #[error(
        "partition {partition}: {count} acknowledged records did not come back, the first at offset {first}"
    )]
    Lost {
        /// Where.
        partition: PartitionId,
        /// How many.
        count: usize,
        /// The least offset.
        first: Offset,
    },
    /// A record came twice, or one was left out.
    #[error("partition {partition}: offset {found} came where {expected} was expected")]
    OutOfSequence {
        /// Where.
        partition: PartitionId,
        /// The next offset.
        expected: Offset,
        /// What came.
        found: Offset,
    },
    /// A record was acknowledged at an offset that does not lie behind that of the record sent before it.
    #[error(
        "partition {partition}: a record was acknowledged at offset {offset}, the one sent before it at {last}"
    )]
    Reordered {
        /// Where.
        partition: PartitionId,
        /// Of this record.
        offset: Offset,
        /// Of the one before.
        last: Offset,
    },
    /// What came back is not what was sent.
    #[error("partition {partition}, offset {offset}: what came back is not what was acknowledged there")]
    Differs {
        /// Where.
        partition: PartitionId,
        /// Where.
        offset: Offset,
    },
    /// A record that is not there according to its producer, or that nobody sent.
    #[error(
        "partition {partition}, offset {offset}: a record came that was not acknowledged and is not of unknown outcome"
    )]
    Unexpected {
        /// Where.
        partition: PartitionId,
        /// Where.
        offset: Offset,
    },
}

/// What is known at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verified {
    /// Records that were acknowledged, each consumed exactly once, in order, unchanged.
    pub(crate) acknowledged: u64,
    /// Records of unknown outcome that are there.
    pub(crate) unknown_there: u64,
    /// Records of unknown outcome that are not there.
    pub(crate) unknown_not_there: u64,
}

#[derive(Debug, Default)]
struct Partition {
    next_consumed: Offset,
    last_acknowledged: Option<Offset>,
    /// Acknowledged, not consumed yet.
    acknowledged: BTreeMap<Offset, (u64, Instant)>,
    /// Consumed, not acknowledged yet.
    consumed: BTreeMap<Offset, (u64, Instant)>,
}

/// Keeps count. Memory grows with what is on its way, not with what has come back.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    partitions: BTreeMap<PartitionId, Partition>,
    /// How many records of unknown outcome have each fingerprint.
    unknown: HashMap<u64, u64>,
    verified: u64,
}

impl Ledger {
    /// Expects `partition` to go on at `offset`.
    pub(crate) fn expect(&mut self, partition: PartitionId, offset: Offset) {
        self.partitions.insert(partition, Partition { next_consumed: offset, ..Partition::default() });
    }

    /// Records that came back as they were acknowledged.
    pub(crate) const fn verified(&self) -> u64 {
        self.verified
    }

    /// Records that wait for their other half.
    pub(crate) fn open(&self) -> usize {
        self.partitions
            .values()
            .map(|partition| partition.acknowledged.len() + partition.consumed.len())
            .sum()
    }

    /// Where the consumer of each partition is.
    pub(crate) fn positions(&self) -> impl Iterator<Item = (PartitionId, Offset)> {
        self.partitions.iter().map(|(&id, partition)| (id, partition.next_consumed))
    }

    /// A record was acknowledged. To be called in the order of sending. Returns how long ago it was sent if it has been
    /// consumed before.
    pub(crate) fn acknowledged(
        &mut self,
        id: PartitionId,
        offset: Offset,
        fingerprint: u64,
        sent: Instant,
    ) -> Result<Option<Duration>, Violation> {
        let partition = self.partitions.entry(id).or_default();
        if let Some(last) = partition.last_acknowledged.replace(offset)
            && last >= offset
        {
            return Err(Violation::Reordered { partition: id, offset, last });
        }
        let Some((found, at)) = partition.consumed.remove(&offset) else {
            if offset < partition.next_consumed {
                return Err(Violation::Differs { partition: id, offset });
            }
            partition.acknowledged.insert(offset, (fingerprint, sent));
            return Ok(None);
        };
        self.pair(id, offset, fingerprint == found)?;
        Ok(Some(at.saturating_duration_since(sent)))
    }

    /// A record was consumed. Returns how long ago it was sent if it has been acknowledged before.
    pub(crate) fn consumed(
        &mut self,
        id: PartitionId,
        offset: Offset,
        fingerprint: u64,
        at: Instant,
    ) -> Result<Option<Duration>, Violation> {
        let partition = self.partitions.entry(id).or_default();
        if offset != partition.next_consumed {
            let expected = partition.next_consumed;
            return Err(Violation::OutOfSequence { partition: id, expected, found: offset });
        }
        partition.next_consumed = offset.next();
        let Some((sent, since)) = partition.acknowledged.remove(&offset) else {
            partition.consumed.insert(offset, (fingerprint, at));
            return Ok(None);
        };
        self.pair(id, offset, fingerprint == sent)?;
        Ok(Some(at.saturating_duration_since(since)))
    }

    fn pair(&mut self, partition: PartitionId, offset: Offset, same: bool) -> Result<(), Violation> {
        if !same {
            return Err(Violation::Differs { partition, offset });
        }
        self.verified += 1;
        Ok(())
    }

    /// What became of a record is not known: it may be there or not.
    pub(crate) fn unknown(&mut self, fingerprint: u64) {
        *self.unknown.entry(fingerprint).or_default() += 1;
    }

    /// Everything has been consumed and every outcome is in: was the promise kept?
    pub(crate) fn finish(&self) -> Result<Verified, Violation> {
        let mut unknown = self.unknown.clone();
        let mut there = 0;
        for (&id, partition) in &self.partitions {
            if let Some(&first) = partition.acknowledged.keys().next() {
                return Err(Violation::Lost { partition: id, count: partition.acknowledged.len(), first });
            }
            for (&offset, (fingerprint, _)) in &partition.consumed {
                match unknown.get_mut(fingerprint) {
                    Some(left) if *left > 0 => *left -= 1,
                    _ => return Err(Violation::Unexpected { partition: id, offset }),
                }
                there += 1;
            }
        }
        let not_there = unknown.values().sum();
        Ok(Verified { acknowledged: self.verified, unknown_there: there, unknown_not_there: not_there })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId(0);

    fn acknowledge(
        ledger: &mut Ledger,
        offset: u64,
        fingerprint: u64,
    ) -> Result<Option<Duration>, Violation> {
        ledger.acknowledged(P, Offset(offset), fingerprint, Instant::now())
    }

    fn consume(ledger: &mut Ledger, offset: u64, fingerprint: u64) -> Result<Option<Duration>, Violation> {
        ledger.consumed(P, Offset(offset), fingerprint, Instant::now())
    }

    #[test]
    fn acknowledged_and_consumed_in_either_order_is_kept() {
        let mut ledger = Ledger::default();
        ledger.expect(P, Offset(10));
        acknowledge(&mut ledger, 10, 1).unwrap();
        consume(&mut ledger, 10, 1).unwrap();
        consume(&mut ledger, 11, 2).unwrap();
        acknowledge(&mut ledger, 11, 2).unwrap();
        assert_eq!(ledger.open(), 0);
        let verified = Verified { acknowledged: 2, unknown_there: 0, unknown_not_there: 0 };
        assert_eq!(ledger.finish(), Ok(verified));
    }

    #[test]
    fn unknown_records_may_be_there_once_or_not() {
        let mut ledger = Ledger::default();
        ledger.unknown(7);
        ledger.unknown(8);
        consume(&mut ledger, 0, 7).unwrap();
        let verified = Verified { acknowledged: 0, unknown_there: 1, unknown_not_there: 1 };
        assert_eq!(ledger.finish(), Ok(verified));
        consume(&mut ledger, 1, 7).unwrap();
        assert_eq!(ledger.finish(), Err(Violation::Unexpected { partition: P, offset: Offset(1) }));
    }

    #[test]
    fn a_lost_record_is_seen() {
        let mut ledger = Ledger::default();
        acknowledge(&mut ledger, 0, 1).unwrap();
        assert_eq!(ledger.finish(), Err(Violation::Lost { partition: P, count: 1, first: Offset(0) }));
    }

    #[test]
    fn a_duplicate_a_gap_and_a_change_are_seen() {
        let mut ledger = Ledger::default();
        consume(&mut ledger, 0, 1).unwrap();
        assert!(matches!(consume(&mut ledger, 0, 1), Err(Violation::OutOfSequence { .. })));
        assert!(matches!(consume(&mut ledger, 2, 1), Err(Violation::OutOfSequence { .. })));
        assert_eq!(
            acknowledge(&mut ledger, 0, 9),
            Err(Violation::Differs { partition: P, offset: Offset(0) })
        );
    }

    #[test]
    fn a_reused_offset_and_a_reorder_are_seen() {
        let mut ledger = Ledger::default();
        acknowledge(&mut ledger, 5, 1).unwrap();
        assert!(matches!(acknowledge(&mut ledger, 5, 2), Err(Violation::Reordered { .. })));
        let mut ledger = Ledger::default();
        acknowledge(&mut ledger, 5, 1).unwrap();
        assert!(matches!(acknowledge(&mut ledger, 4, 2), Err(Violation::Reordered { .. })));
    }
}
