//! The holes of brokers before this one that concern producers and their retries (H13, H14, H23), and the gate that a
//! retry waits at. Each fails when its rule is taken out (`tests/mutate/run.sh`).

#![cfg(test)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use highwater_broker::Broker;
use highwater_broker::storage::config::LogConfig;
use highwater_broker::storage::log::StampedBatch;
use highwater_broker_core::durability::Durability;
use highwater_broker_core::producer::{Refusal, Verdict};
use highwater_broker_core::time::Wall;
use highwater_protocol::api::ApiKey;
use highwater_protocol::batch::{BatchBuilder, LeaderStamp};
use highwater_protocol::compression::Compression;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::Frame;
use highwater_protocol::ids::{LeaderEpoch, Offset, PartitionId, ProducerId, TopicId, TopicPartition};
use highwater_protocol::messages::{
    Acks, InitProducerRequest, ProduceBatch, ProduceRequest, ProduceResult, ReadRequest,
};
use highwater_tests::peer;
use highwater_tests::sim::broker_world::{Connection, start};
use highwater_tests::sim::clock::SimClock;
use highwater_tests::sim::disk::{Flushes, SimDisk};
use highwater_tests::sim::log_world::{PARTITION, ROOT, Running, open, small_log, stamped};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn sent(partition: TopicPartition, producer: (u64, u16, u32), records: usize, size: usize) -> Bytes {
    let (id, epoch, first_sequence) = producer;
    let mut builder = BatchBuilder::with_capacity(256);
    builder.set_producer(ProducerId(id), epoch, first_sequence);
    let value = vec![b'x'; size];
    (0..records).for_each(|_| builder.push(1, None, Some(&value), &[]));
    builder.build(partition, Compression::None).unwrap()
}

async fn broker(disk: &SimDisk) -> (Broker, Connection, TopicId) {
    let broker = start(disk, &Arc::new(SimClock::default()), 1).await.unwrap();
    let mut connection = Connection::memory(&broker).await.unwrap();
    let config = BTreeMap::from([("durability".to_owned(), "fsync".to_owned())]);
    let topic = connection.create_topic(1, config).await.unwrap();
    (broker, connection, topic)
}

fn request(topic: TopicId, batch: &Bytes) -> ProduceRequest {
    let entry =
        ProduceBatch { topic_id: Some(topic.into()), partition: 0, number: 0, length: batch.len() as u32 };
    ProduceRequest { acks: Acks::All.into(), timeout_ms: 0, batches: vec![entry] }
}

fn result(frame: &Frame) -> ProduceResult {
    peer::reply_to::<ProduceRequest>(frame).unwrap().results.remove(0)
}

async fn produce(connection: &mut Connection, topic: TopicId, batch: Bytes) -> ProduceResult {
    let request = request(topic, &batch);
    let call = connection.call(&request, std::slice::from_ref(&batch));
    let (mut reply, _) = tokio::time::timeout(PATIENCE, call).await.unwrap().unwrap();
    reply.results.remove(0)
}

/// The next reply to a produce request, while flush rounds are completed.
async fn flushed_reply(disk: &SimDisk, connection: &mut Connection) -> ProduceResult {
    let until = Instant::now() + PATIENCE;
    loop {
        disk.complete_round(0);
        assert!(Instant::now() < until, "no answer");
        let Ok(frame) = tokio::time::timeout(Duration::from_millis(5), connection.next()).await else {
            continue;
        };
        let frame = frame.unwrap();
        if frame.header.api == ApiKey::PRODUCE {
            return result(&frame);
        }
    }
}

#[tokio::test]
async fn a_duplicate_waits_until_the_first_one_is_committed() {
    let disk = SimDisk::new(1);
    let (broker, mut one, topic) = broker(&disk).await;
    let mut other = Connection::memory(&broker).await.unwrap();
    disk.set_flushes(Flushes::Manual);
    let batch = sent(TopicPartition::new(topic, PartitionId(0)), (7, 0, 0), 3, 10);
    one.send(&request(topic, &batch), std::slice::from_ref(&batch)).await.unwrap();
    let read = ReadRequest { topic_id: Some(topic.into()), partition: 0, offset: 0, bytes_max: 100 };
    let until = Instant::now() + PATIENCE;
    while one.call(&read, &[]).await.unwrap().0.log_end == 0 {
        assert!(Instant::now() < until, "the batch is not written");
    }
    // It comes again over another connection, twice in one go.
    let again = [batch.clone(), batch.clone()];
    let mut both = request(topic, &batch);
    both.batches.push(both.batches[0]);
    other.send(&both, &again).await.unwrap();
    // What is asked of the partition after it is answered after it is looked at.
    other.send(&read, &[]).await.unwrap();
    loop {
        let frame = other.next().await.unwrap();
        assert_ne!(frame.header.api, ApiKey::PRODUCE, "answered before the first one is committed");
        if frame.header.api == ApiKey::READ {
            break;
        }
    }
    let first = flushed_reply(&disk, &mut one).await;
    let again = flushed_reply(&disk, &mut other).await;
    assert_eq!((first.error, first.base_offset), (0, 0));
    assert_eq!(again, first, "it gets the result of the first one");
    // Now that it is committed it is answered at once.
    let again = produce(&mut other, topic, batch).await;
    assert_eq!(again, first);
    let (reply, _) = one.call(&read, &[]).await.unwrap();
    assert_eq!(reply.log_end, 3, "it is there once");
    disk.set_flushes(Flushes::Inline);
    while disk.complete_round(0) {}
}

#[tokio::test]
async fn h13_a_zombie_and_a_gap_are_refused_and_change_nothing() {
    let disk = SimDisk::new(2);
    let (_broker, mut connection, topic) = broker(&disk).await;
    let partition = TopicPartition::new(topic, PartitionId(0));
    for (epoch, first, expected) in [
        (0, 0, ErrorCode::None),
        (0, 2, ErrorCode::None),
        (0, 5, ErrorCode::SequenceGap),
        (0, 4, ErrorCode::None),
        (1, 6, ErrorCode::SequenceGap),
        (1, 0, ErrorCode::None),
        (0, 6, ErrorCode::ProducerFenced),
        (0, 0, ErrorCode::ProducerFenced),
        (1, 2, ErrorCode::None),
    ] {
        let done = produce(&mut connection, topic, sent(partition, (7, epoch, first), 2, 10)).await;
        assert_eq!(
            ErrorCode::from_code(done.error),
            expected,
            "epoch {epoch}, sequence {first}: {}",
            done.message
        );
        assert_eq!(done.message.is_empty(), done.error == 0);
    }
    let unknown = produce(&mut connection, topic, sent(partition, (8, 0, 3), 1, 10)).await;
    assert_eq!(ErrorCode::from_code(unknown.error), ErrorCode::UnknownProducer);
    let read = ReadRequest { topic_id: Some(topic.into()), partition: 0, offset: 0, bytes_max: 100 };
    assert_eq!(connection.call(&read, &[]).await.unwrap().0.log_end, 10);
}

#[tokio::test]
async fn identities_are_given_out_once_and_epochs_go_up() {
    let disk = SimDisk::new(3);
    let (broker, mut connection, _topic) = broker(&disk).await;
    let ask = |producer_id, producer_epoch| InitProducerRequest { producer_id, producer_epoch };
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..1500 {
        let (reply, _) = connection.call(&ask(None, 0), &[]).await.unwrap();
        assert_eq!(reply.producer_epoch, 0);
        assert!(seen.insert(reply.producer_id), "{} came twice", reply.producer_id);
    }
    let id = seen.first().copied();
    let (next, _) = connection.call(&ask(id, 4), &[]).await.unwrap();
    assert_eq!((Some(next.producer_id), next.producer_epoch), (id, 5));
    let (last, _) = connection.call(&ask(id, 0x7fff), &[]).await.unwrap();
    assert!(seen.insert(last.producer_id) && last.producer_epoch == 0, "the epochs of {id:?} are used up");
    broker.shutdown().await.unwrap();
    let broker = start(&disk, &Arc::new(SimClock::default()), 2).await.unwrap();
    let mut connection = Connection::memory(&broker).await.unwrap();
    let (reply, _) = connection.call(&ask(None, 0), &[]).await.unwrap();
    assert!(seen.insert(reply.producer_id), "also after a restart");
}

/// One log without a model.
struct Bare {
    disk: SimDisk,
    running: Running,
    config: LogConfig,
    time: i64,
}

impl Bare {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        disk.mount().create_directory(std::path::Path::new(ROOT)).unwrap();
        disk.sync_all();
        let config = small_log(Durability::Fsync);
        let running = open(&disk, config).unwrap();
        Self { disk, running, config, time: 1_000_000 }
    }

    fn batch(&self, producer: (u64, u16, u32), epoch: u32) -> StampedBatch {
        let stamp = LeaderStamp {
            base_offset: self.running.log.log_end(),
            leader_epoch: LeaderEpoch(epoch),
            append_time: self.time,
            ..LeaderStamp::default()
        };
        stamped(&sent(PARTITION, producer, 1, 900), stamp)
    }

    fn append(&mut self, producer: (u64, u16, u32)) -> StampedBatch {
        let batch = self.batch(producer, 1);
        self.running.log.append(std::slice::from_ref(&batch)).unwrap();
        batch
    }

    fn verdict(&self, producer: (u64, u16, u32)) -> Verdict {
        self.running.log.producers().handle(&self.batch(producer, 1).header, self.time)
    }

    fn crash(&mut self, seed: u64) {
        self.disk.power_cut(seed);
        self.running = open(&self.disk, self.config).unwrap();
    }
}

#[test]
fn h14_what_is_known_of_a_producer_outlives_its_segments() {
    for seed in 0..20 {
        let mut bare = Bare::new(seed);
        bare.append((7, 0, 0));
        bare.append((7, 0, 1));
        for sequence in 0..40 {
            bare.append((8, 0, sequence));
        }
        bare.config.limits.retention_age = Some(Duration::from_secs(1));
        let config = bare.config;
        bare.running.log.configure(config);
        let end = bare.running.log.log_end();
        // Everything is rolled and let go, once with something after it and once without.
        for _ in 0..3 {
            bare.running.log.maintain(Wall(bare.time + 10_000_000), end).unwrap();
        }
        assert_eq!(bare.running.log.log_start(), end);
        if seed % 2 == 0 {
            bare.append((9, 0, 0));
        }
        bare.crash(seed);
        assert_eq!(bare.running.log.log_start(), end);
        assert!(
            matches!(bare.verdict((7, 0, 1)), Verdict::Duplicate(first) if first.base_offset == Offset(1))
        );
        assert_eq!(bare.verdict((7, 0, 2)), Verdict::Append, "the next one is still the next one");
        assert!(matches!(bare.verdict((8, 0, 3)), Verdict::Refuse(Refusal::AlreadyApplied { .. })));
        // What a replica gets that starts over here.
        let table = bare.running.log.producers_at_start().unwrap();
        let mut follower = Bare::new(seed + 100);
        follower.running.log.reset(end, Vec::new(), &table).unwrap();
        follower.crash(seed);
        assert!(matches!(follower.verdict((7, 0, 1)), Verdict::Duplicate(_)));
    }
}

#[test]
fn h14_a_follower_knows_what_its_leader_knew_and_forgets_what_is_cut() {
    for seed in 0..20 {
        let (mut leader, mut follower) = (Bare::new(seed), Bare::new(seed + 100));
        let mut copied = Vec::new();
        for sequence in 0..30 {
            copied.push(leader.append((7, 0, sequence)));
            copied.push(leader.append((8, 0, sequence)));
        }
        for batch in &copied {
            let whole = [&batch.head[..], &batch.tail[..]].concat();
            let copy = StampedBatch::from_replicated(Bytes::from(whole), batch.header);
            follower.running.log.append(&[copy]).unwrap();
        }
        assert_eq!(follower.running.log.producers(), leader.running.log.producers());
        assert!(
            matches!(follower.verdict((7, 0, 29)), Verdict::Duplicate(first) if first.base_offset == Offset(58))
        );
        // Its own tail, which no leader has, is cut: the producer sends it again, and it has to be appended.
        let to = Offset(40 + seed / 2);
        follower.running.log.truncate(to).unwrap();
        let next = (to.get().div_ceil(2)) as u32;
        assert_eq!(follower.verdict((7, 0, next)), Verdict::Append);
        assert!(matches!(follower.verdict((7, 0, next - 1)), Verdict::Duplicate(_)));
        follower.crash(seed);
        assert_eq!(follower.verdict((7, 0, next)), Verdict::Append);
    }
}

#[test]
fn h23_a_quiet_producer_is_known_after_others_came_and_forgotten_by_time_alone() {
    for seed in 0..10 {
        let mut bare = Bare::new(seed);
        bare.append((7, 0, 0));
        bare.append((7, 0, 1));
        for other in 0..300 {
            bare.time += 10_000_000;
            bare.append((100 + other, 0, 0));
            if other % 97 == 0 {
                bare.crash(seed);
            }
        }
        assert!(
            matches!(bare.verdict((7, 0, 0)), Verdict::Duplicate(first) if first.base_offset == Offset(0))
        );
        // An hour after its last batch, by the clock of the log.
        bare.time = 1_000_000 + 3_600_000_000;
        assert!(matches!(bare.verdict((7, 0, 1)), Verdict::Refuse(Refusal::Unknown { .. })));
        bare.append((9, 0, 0));
        bare.crash(seed);
        assert!(matches!(bare.verdict((7, 0, 2)), Verdict::Refuse(Refusal::Unknown { .. })));
    }
}
