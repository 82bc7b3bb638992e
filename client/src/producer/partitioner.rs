//! Which partition a record goes to. Pure: randomness is the caller's.

use highwater_protocol::ids::PartitionId;
use highwater_protocol::key_hash::partition_of_key;

/// Where records without a key go: to one partition until its batch is closed, then to another, so that batches fill.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sticky {
    current: Option<PartitionId>,
    previous: Option<PartitionId>,
}

impl Sticky {
    /// The partition for the next record, out of `partition_count`, which is not 0.
    pub(super) fn partition(&mut self, partition_count: u32, random: impl FnOnce() -> u64) -> PartitionId {
        if let Some(current) = self.current {
            return current;
        }
        let chosen = match self.previous {
            Some(previous) if partition_count > 1 && previous.get() < partition_count => {
                // Any other than the last one.
                let step = 1 + (random() % u64::from(partition_count - 1)) as u32;
                PartitionId((previous.get() + step) % partition_count)
            }
            _ => PartitionId((random() % u64::from(partition_count)) as u32),
        };
        self.current = Some(chosen);
        chosen
    }

    /// The open batch of `partition` was closed.
    pub(super) fn batch_closed(&mut self, partition: PartitionId) {
        if self.current == Some(partition) {
            self.previous = self.current.take();
        }
    }
}

/// The partition of a record: the one it asks for, or that of its key, or the sticky one. `None` when there is none.
pub(super) fn choose(
    asked: Option<PartitionId>,
    key: Option<&[u8]>,
    partition_count: u32,
    sticky: &mut Sticky,
    random: impl FnOnce() -> u64,
) -> Option<PartitionId> {
    match (asked, key) {
        (Some(asked), _) => (asked.get() < partition_count).then_some(asked),
        _ if partition_count == 0 => None,
        (None, Some(key)) => partition_of_key(key, partition_count),
        (None, None) => Some(sticky.partition(partition_count, random)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_always_has_the_same_partition_and_one_asked_for_wins() {
        let mut sticky = Sticky::default();
        let of_key = choose(None, Some(b"customer-7"), 8, &mut sticky, || 0);
        assert_eq!(of_key, partition_of_key(b"customer-7", 8));
        assert_eq!(choose(Some(PartitionId(7)), Some(b"k"), 8, &mut sticky, || 0), Some(PartitionId(7)));
        assert_eq!(choose(Some(PartitionId(8)), None, 8, &mut sticky, || 0), None);
        assert_eq!(choose(None, Some(b"k"), 0, &mut sticky, || 0), None);
    }

    #[test]
    fn keyless_records_stick_until_the_batch_is_closed_and_then_move() {
        let mut sticky = Sticky::default();
        let first = choose(None, None, 4, &mut sticky, || 2).unwrap();
        assert_eq!(first, PartitionId(2));
        assert_eq!(choose(None, None, 4, &mut sticky, || 3), Some(first));
        sticky.batch_closed(PartitionId(1));
        assert_eq!(choose(None, None, 4, &mut sticky, || 3), Some(first), "another partition's batch");
        for random in 0..20 {
            let current = sticky.partition(4, || random);
            sticky.batch_closed(current);
            assert_ne!(sticky.partition(4, || random), current);
        }
    }
}
