use super::*;
use crate::admin::PartitionMetadata;
use highwater_protocol::ids::{LeaderEpoch, NodeId, TopicId};

const BOUNDS: Bounds = Bounds {
    batch_bytes: 230,
    memory_bytes: 100_000,
    linger: Duration::from_millis(10),
    compression: Compression::None,
};

fn topic(id: u128, partitions: u32) -> Arc<TopicMetadata> {
    let partition = |number| PartitionMetadata {
        partition: PartitionId(number),
        leader: Some(NodeId(1)),
        leader_epoch: LeaderEpoch(1),
        replicas: Vec::new(),
        in_sync: Vec::new(),
        eligible: Vec::new(),
    };
    Arc::new(TopicMetadata {
        name: String::from("orders"),
        topic_id: TopicId(id),
        partitions: (0..partitions).map(partition).collect(),
        batch_bytes_max: 1000,
    })
}

struct World {
    accumulator: Accumulator,
    start: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// Index in the batch, whether the sender is woken, whether the batch was filled.
    Admitted(u32, bool, bool),
    NoRoom,
    UnknownTopic,
    Refused(ErrorKind),
}

impl World {
    fn new(bounds: Bounds) -> Self {
        let mut accumulator = Accumulator::new(bounds);
        accumulator.set_topic(topic(7, 2));
        Self { accumulator, start: Instant::now() }
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn admit_at(&mut self, millis: u64, partition: u32, bytes: usize) -> Seen {
        let value = vec![0; bytes];
        let record = ProducerRecord::new("orders").partition(PartitionId(partition)).value(&value);
        self.admit(millis, &record)
    }

    fn admit(&mut self, millis: u64, record: &ProducerRecord<'_>) -> Seen {
        let now = self.at(millis);
        let seen = match self.accumulator.admit(record, 0, || now, || 0) {
            Admission::Admitted { index, wake, filled, .. } => Seen::Admitted(index, wake, filled),
            Admission::NoRoom => Seen::NoRoom,
            Admission::UnknownTopic => Seen::UnknownTopic,
            Admission::Refused(error) => Seen::Refused(error.kind()),
        };
        self.accumulator.check_invariants();
        seen
    }

    /// What the sender would take now: partition, records.
    fn collect_at(&mut self, millis: u64) -> Vec<(LaneIndex, u32)> {
        self.accumulator.tick(self.at(millis));
        let mut listed = VecDeque::new();
        self.accumulator.take_eligible(&mut listed);
        let mut collected = Vec::new();
        for lane in listed {
            while let Some(batch) = self.accumulator.collect(lane, true) {
                let count = batch.builder.record_count();
                collected.push((lane, count));
                self.accumulator.finish(batch.id, batch.charged, count);
            }
            assert!(!self.accumulator.keep_listed(lane));
        }
        self.accumulator.check_invariants();
        collected
    }
}

#[test]
fn batches_linger_together_and_go_when_their_time_is_up() {
    let mut world = World::new(BOUNDS);
    assert_eq!(world.admit_at(0, 0, 5), Seen::Admitted(0, true, false), "the sender learns of the deadline");
    assert_eq!(world.admit_at(3, 1, 5), Seen::Admitted(0, false, false), "a later one does not matter");
    assert_eq!(world.admit_at(4, 0, 5), Seen::Admitted(1, false, false));
    assert_eq!(world.accumulator.next_deadline(), Some(world.at(10)));
    assert_eq!(world.collect_at(9), []);
    assert_eq!(world.collect_at(10), [(0, 2)]);
    assert_eq!(world.accumulator.next_deadline(), Some(world.at(13)));
    assert_eq!(world.collect_at(13), [(1, 1)]);
    assert_eq!((world.accumulator.memory_used, world.accumulator.unfinished_records()), (0, 0));
}

#[test]
fn a_full_batch_goes_at_once_and_its_linger_time_does_not_touch_the_next() {
    let mut world = World::new(BOUNDS);
    // 87 bytes of headers and some 52 a record: two fit, a third would not.
    assert_eq!(world.admit_at(0, 0, 45), Seen::Admitted(0, true, false));
    assert_eq!(world.admit_at(0, 0, 45), Seen::Admitted(1, true, true));
    assert_eq!(world.admit_at(5, 0, 45), Seen::Admitted(0, false, false));
    assert_eq!(world.collect_at(10), [(0, 2)], "the second batch has lingered half its time");
    assert_eq!(world.collect_at(15), [(0, 1)]);
}

#[test]
fn without_linger_the_sender_is_woken_once_and_unfilled_batches_can_be_held_back() {
    let mut world = World::new(Bounds { linger: Duration::ZERO, ..BOUNDS });
    assert_eq!(world.admit_at(0, 0, 5), Seen::Admitted(0, true, false));
    assert_eq!(world.admit_at(0, 0, 5), Seen::Admitted(1, false, false));
    let mut listed = VecDeque::new();
    world.accumulator.take_eligible(&mut listed);
    assert_eq!(listed, [0]);
    assert!(world.accumulator.collect(0, false).is_none());
    assert!(world.accumulator.keep_listed(0), "it stays the sender's business");
    assert_eq!(world.accumulator.collect(0, true).unwrap().builder.record_count(), 2);
}

#[test]
fn memory_is_bounded_but_never_too_small_for_one_record() {
    let mut world = World::new(Bounds { memory_bytes: 300, ..BOUNDS });
    assert_eq!(world.admit_at(0, 0, 100), Seen::Admitted(0, true, true));
    assert_eq!(world.admit_at(0, 1, 100), Seen::NoRoom);
    assert_eq!(world.collect_at(0), [(0, 1)]);
    assert_eq!(world.admit_at(0, 1, 700), Seen::Admitted(0, true, true), "larger than all memory, but alone");
    assert_eq!(world.admit_at(0, 0, 1), Seen::NoRoom);
}

#[test]
fn what_can_never_be_sent_is_refused() {
    let mut world = World::new(BOUNDS);
    assert_eq!(world.admit_at(0, 0, 1000), Seen::Refused(ErrorKind::RecordTooLarge));
    assert_eq!(world.admit_at(0, 2, 1), Seen::Refused(ErrorKind::UnknownPartition));
    assert_eq!(world.admit(0, &ProducerRecord::new("nope")), Seen::UnknownTopic);
    let reserved = ProducerRecord::new("orders").headers(&[("hw-trace", None)]);
    assert_eq!(world.admit(0, &reserved), Seen::Refused(ErrorKind::InvalidArgument));
    world.accumulator.close();
    assert_eq!(world.admit_at(0, 0, 1), Seen::Refused(ErrorKind::Closed));
    assert_eq!(world.accumulator.memory_used, 0);
}

#[test]
fn a_topic_created_again_is_another_one() {
    let mut world = World::new(BOUNDS);
    world.admit_at(0, 0, 5);
    world.accumulator.forget_topic("orders");
    assert_eq!(world.admit_at(0, 0, 5), Seen::UnknownTopic);
    world.accumulator.set_topic(topic(8, 1));
    assert_eq!(world.admit_at(0, 0, 5), Seen::Admitted(0, false, false), "a batch of its own");
    assert_eq!(world.accumulator.lanes_of("orders"), [0, 1, 2]);
    assert_eq!(world.accumulator.place(2).1.topic_id, TopicId(8));
    assert_eq!(world.accumulator.drain(0).len(), 1);
    // More partitions of the same topic are added behind.
    world.accumulator.set_topic(topic(8, 3));
    assert_eq!(world.admit_at(0, 2, 5), Seen::Admitted(0, false, false));
}

#[test]
fn flushing_and_expiring_follow_the_age_of_batches() {
    let mut world = World::new(BOUNDS);
    world.admit_at(0, 0, 5);
    world.admit_at(7, 1, 5);
    let last = world.accumulator.flush().unwrap();
    assert_eq!(last, BatchId(1));
    assert!(!world.accumulator.is_finished_upto(last));
    assert_eq!(world.accumulator.oldest(1), Some(world.at(7)));
    assert!(world.accumulator.collect_expired(1, world.at(6)).is_none());
    let expired = world.accumulator.collect_expired(1, world.at(7)).unwrap();
    world.accumulator.finish(expired.id, expired.charged, 1);
    assert!(!world.accumulator.is_finished_upto(last), "an earlier one is not done");
    assert_eq!(world.collect_at(7), [(0, 1)], "due by the flush");
    assert!(world.accumulator.is_finished_upto(last));
    assert_eq!(world.accumulator.flush(), None);
}
