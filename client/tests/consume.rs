//! The consumer against a broker that does what the test says.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not known as tests")]

mod scripted;

use std::time::Duration;

use futures_util::StreamExt;
use highwater_client::{Client, Consumer, ErrorKind, Offset, PartitionId, StartAt};
use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::{
    CorruptRange, Credit, Ended, Push, ReplicaChecksumReply, ReplicaChecksumRequest, SubscribeReply,
    SubscribeRequest, UnsubscribeReply, UnsubscribeRequest,
};
use scripted::{Behaviour, Broker, Incoming, TOPIC, Wire, batch};

const P0: PartitionId = PartitionId(0);

/// A subscription as the broker sees it.
struct Subscription {
    wire: Wire,
    request: SubscribeRequest,
}

impl Subscription {
    async fn push(&self, high_watermark: u64, bytes: &[u8]) {
        let push = Push { id: self.request.id, high_watermark, leader_epoch: 1, ..Push::default() };
        self.wire.one_way(&push, bytes).await;
    }

    async fn end(&self, code: ErrorCode, change: impl FnOnce(&mut Ended)) {
        let mut ended = Ended { id: self.request.id, code: code.code(), ..Ended::default() };
        change(&mut ended);
        self.wire.one_way(&ended, &[]).await;
    }
}

/// Accepts the next subscription; `Unsubscribe` before it is answered, credits are passed over.
async fn subscription(broker: &mut Broker) -> Subscription {
    loop {
        let Incoming { wire, frame } = broker.next().await;
        match frame.header.api {
            ApiKey::SUBSCRIBE => {
                let request = frame.decode_body::<SubscribeRequest>().unwrap();
                let reply = SubscribeReply { high_watermark: 100, log_end: 100, ..SubscribeReply::default() };
                wire.reply::<SubscribeRequest>(&frame, &reply).await;
                return Subscription { wire, request };
            }
            ApiKey::UNSUBSCRIBE => wire.reply::<UnsubscribeRequest>(&frame, &UnsubscribeReply {}).await,
            // The leader is asked to look at what it has where damage came from.
            ApiKey::REPLICA_CHECKSUM => {
                let reply = ReplicaChecksumReply::default();
                wire.reply::<ReplicaChecksumRequest>(&frame, &reply).await;
            }
            ApiKey::CREDIT => {}
            other => panic!("{} was not expected", other.name()),
        }
    }
}

async fn credit(broker: &mut Broker) -> Credit {
    let Incoming { frame, .. } = broker.next().await;
    assert_eq!(frame.header.api, ApiKey::CREDIT);
    frame.decode_body().unwrap()
}

async fn started(behaviour: Behaviour, start: StartAt) -> (Broker, Client, Consumer, Subscription) {
    let mut broker = Broker::new(behaviour);
    let client = broker.client().await;
    let builder = client.consumer(TOPIC).from(start).repair_timeout(Duration::ZERO);
    let consumer = builder.build().await.unwrap();
    let subscription = subscription(&mut broker).await;
    (broker, client, consumer, subscription)
}

async fn value(consumer: &mut Consumer) -> (u64, String) {
    let record = consumer.next().await.unwrap().unwrap();
    (record.offset.get(), String::from_utf8(record.value.unwrap().to_vec()).unwrap())
}

fn values(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
    expected.iter().map(|(offset, value)| (*offset, String::from(*value))).collect()
}

#[tokio::test(start_paused = true)]
async fn records_come_in_order_from_the_position_on() {
    let (_broker, _client, mut consumer, subscription) =
        started(Behaviour::default(), StartAt::Offset(Offset(5))).await;
    assert_eq!(subscription.request.offset, 5);
    assert_eq!(consumer.position(P0), Some(Offset(5)));
    // The first batch starts before the position.
    let mut bytes = batch(0, 4, &["d", "e", "f"]).to_vec();
    bytes.extend_from_slice(&batch(0, 7, &["g"]));
    subscription.push(8, &bytes).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(value(&mut consumer).await);
    }
    assert_eq!(seen, values(&[(5, "e"), (6, "f"), (7, "g")]));
    assert_eq!((consumer.position(P0), consumer.high_watermark(P0)), (Some(Offset(8)), Some(Offset(100))));
}

#[tokio::test(start_paused = true)]
async fn start_positions_are_looked_up() {
    let behaviour = Behaviour { earliest: 3, latest: 9, ..Behaviour::default() };
    let (mut broker, client, mut consumer, subscription_) = started(behaviour, StartAt::Latest).await;
    assert_eq!(subscription_.request.offset, 9);
    consumer.seek(P0, StartAt::Earliest).await.unwrap();
    assert_eq!(subscription(&mut broker).await.request.offset, 3);
    let error = client.consumer("nope").build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownTopic);
    let error = client.consumer(TOPIC).partitions([PartitionId(4)]).build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownPartition);
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_connection_it_goes_on_at_the_next_offset() {
    let (mut broker, _client, mut consumer, first) = started(Behaviour::default(), StartAt::Earliest).await;
    first.push(3, &batch(0, 0, &["a", "b", "c"])).await;
    assert_eq!(value(&mut consumer).await, (0, String::from("a")));
    first.wire.cut().await;
    let second = subscription(&mut broker).await;
    assert_eq!(second.request.offset, 3, "what was received and not yet read is not asked for again");
    assert_ne!(second.request.id, first.request.id);
    second.push(4, &batch(0, 3, &["d"])).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(value(&mut consumer).await);
    }
    assert_eq!(seen, values(&[(1, "b"), (2, "c"), (3, "d")]));
}

#[tokio::test(start_paused = true)]
async fn reconnecting_backs_off_and_goes_on_when_the_broker_is_back() {
    let (mut broker, _client, mut consumer, first) = started(Behaviour::default(), StartAt::Earliest).await;
    broker.change(|behaviour| behaviour.refuse_connections = true);
    broker.cut_all().await;
    let nothing = tokio::time::timeout(Duration::from_secs(120), consumer.next()).await;
    assert!(nothing.is_err(), "a broker that is away is no error of the stream");
    broker.change(|behaviour| behaviour.refuse_connections = false);
    let second = subscription(&mut broker).await;
    assert_eq!(second.request.offset, first.request.offset);
    second.push(1, &batch(0, 0, &["a"])).await;
    assert_eq!(value(&mut consumer).await.1, "a");
}

#[tokio::test(start_paused = true)]
async fn credit_goes_back_as_the_application_consumes_and_not_before() {
    let mut broker = Broker::new(Behaviour::default());
    let client = broker.client().await;
    let mut consumer =
        client.consumer(TOPIC).from(StartAt::Earliest).memory_bytes(100_000).build().await.unwrap();
    let subscription = subscription(&mut broker).await;
    assert_eq!(subscription.request.credit, 100_000);
    let large = "x".repeat(40_000);
    let mut sent = 0;
    for offset in 0..3 {
        let bytes = batch(0, offset, &[&large]);
        sent += bytes.len() as u64;
        subscription.push(offset + 1, &bytes).await;
    }
    // 120,000 bytes are more than the credit by less than one batch: all that may come.
    broker.nothing_for(Duration::from_secs(5)).await;
    for _ in 0..2 {
        consumer.next_batch().await.unwrap().unwrap();
    }
    // Taking the second shows that the first is used up.
    let first = credit(&mut broker).await;
    assert_eq!((first.id, first.limit), (subscription.request.id, sent + 100_000 - sent * 2 / 3));
    consumer.next_batch().await.unwrap().unwrap();
    assert!(credit(&mut broker).await.limit > first.limit);
    let waiting = tokio::time::timeout(Duration::from_secs(1), consumer.next_batch()).await;
    assert!(waiting.is_err());
    assert_eq!(credit(&mut broker).await.limit, sent + 100_000, "everything is used up");
}

#[tokio::test(start_paused = true)]
async fn partitions_share_the_memory() {
    let mut broker = Broker::new(Behaviour { partitions: 4, ..Behaviour::default() });
    let client = broker.client().await;
    let _consumer = client.consumer(TOPIC).memory_bytes(400_000).build().await.unwrap();
    for _ in 0..4 {
        assert_eq!(subscription(&mut broker).await.request.credit, 100_000);
    }
}

#[tokio::test(start_paused = true)]
async fn out_of_range_is_told_once_and_a_seek_goes_on() {
    let (mut broker, _client, mut consumer, first) =
        started(Behaviour::default(), StartAt::Offset(Offset(500))).await;
    first
        .end(ErrorCode::OffsetOutOfRange, |ended| {
            ended.log_start = 10;
            ended.log_end = 90;
        })
        .await;
    let error = consumer.next().await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.partition()), (ErrorKind::OutOfRange, Some(P0)));
    assert_eq!(error.log_range(), Some(Offset(10)..Offset(90)));
    assert!(consumer.next().await.is_none(), "nothing can come: the stream ends instead of waiting silently");
    consumer.seek(P0, StartAt::Offset(Offset(10))).await.unwrap();
    let second = subscription(&mut broker).await;
    assert_eq!(second.request.offset, 10);
    second.push(90, &batch(0, 10, &["k"])).await;
    assert_eq!(value(&mut consumer).await, (10, String::from("k")));
}

#[tokio::test(start_paused = true)]
async fn earliest_that_retention_overtook_is_looked_up_again() {
    let (mut broker, _client, mut consumer, first) = started(Behaviour::default(), StartAt::Earliest).await;
    broker.change(|behaviour| behaviour.earliest = 50);
    first.end(ErrorCode::OffsetOutOfRange, |_| {}).await;
    let second = subscription(&mut broker).await;
    assert_eq!(second.request.offset, 50);
    second.push(51, &batch(0, 50, &["a"])).await;
    assert_eq!(value(&mut consumer).await.0, 50);
    // Once something was read, a jump is not made silently any more.
    second.end(ErrorCode::OffsetOutOfRange, |_| {}).await;
    assert_eq!(consumer.next().await.unwrap().unwrap_err().kind(), ErrorKind::OutOfRange);
}

#[tokio::test(start_paused = true)]
async fn a_corrupt_range_is_told_behind_what_was_received_and_can_be_passed() {
    let (mut broker, _client, mut consumer, first) = started(Behaviour::default(), StartAt::Earliest).await;
    first.push(100, &batch(0, 0, &["a"])).await;
    first
        .end(ErrorCode::CorruptRange, |ended| ended.corrupt = Some(CorruptRange { start: 1, end: 20 }))
        .await;
    assert_eq!(value(&mut consumer).await.0, 0);
    let error = consumer.next().await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.corrupt_range()), (ErrorKind::CorruptRange, Some(Offset(1)..Offset(20))));
    consumer.seek(P0, StartAt::Offset(Offset(20))).await.unwrap();
    assert_eq!(subscription(&mut broker).await.request.offset, 20);
}

#[tokio::test(start_paused = true)]
async fn damaged_batches_are_read_again_until_they_are_repaired() {
    let mut broker = Broker::new(Behaviour::default());
    let client = broker.client().await;
    let mut consumer = client.consumer(TOPIC).from(StartAt::Earliest).build().await.unwrap();
    let first = subscription(&mut broker).await;
    first.push(2, &batch(0, 0, &["a"])).await;
    assert_eq!(value(&mut consumer).await.0, 0);
    let mut damaged = batch(0, 1, &["b"]).to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    first.push(2, &damaged).await;
    let again = async {
        let again = subscription(&mut broker).await;
        assert_eq!(again.request.offset, 1, "from where the damage is");
        again.push(2, &batch(0, 1, &["b"])).await;
    };
    let (record, ()) = tokio::join!(value(&mut consumer), again);
    assert_eq!(record, (1, "b".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn damaged_batches_are_never_handed_out() {
    let good = batch(0, 0, &["a", "b"]);
    for bit in (0..good.len() * 8).step_by(5) {
        let (_broker, _client, mut consumer, subscription) =
            started(Behaviour::default(), StartAt::Earliest).await;
        let mut bytes = good.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        subscription.push(2, &bytes).await;
        let error = consumer.next_batch().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptBatch, "bit {bit}");
        assert!(consumer.next_batch().await.is_none());
    }
    // Nor are batches of another partition.
    let (_broker, _client, mut consumer, subscription) =
        started(Behaviour::default(), StartAt::Earliest).await;
    subscription.push(2, &batch(1, 0, &["a"])).await;
    assert_eq!(consumer.next().await.unwrap().unwrap_err().kind(), ErrorKind::CorruptBatch);
}

#[tokio::test(start_paused = true)]
async fn a_paused_partition_gives_nothing_and_loses_nothing() {
    let mut broker = Broker::new(Behaviour { partitions: 2, ..Behaviour::default() });
    let client = broker.client().await;
    let mut consumer = client.consumer(TOPIC).from(StartAt::Earliest).build().await.unwrap();
    let mut subscriptions = [subscription(&mut broker).await, subscription(&mut broker).await];
    subscriptions.sort_by_key(|subscription| subscription.request.partition);
    let mut bytes = batch(0, 0, &["a"]).to_vec();
    bytes.extend_from_slice(&batch(0, 1, &["b"]));
    subscriptions[0].push(2, &bytes).await;
    assert_eq!(consumer.next_batch().await.unwrap().unwrap().first_offset(), Offset(0));
    // In the middle of what was received.
    consumer.pause(P0).unwrap();
    subscriptions[1].push(1, &batch(1, 0, &["z"])).await;
    let other = consumer.next_batch().await.unwrap().unwrap();
    assert_eq!(other.partition(), PartitionId(1));
    let nothing = tokio::time::timeout(Duration::from_secs(1), consumer.next_batch()).await;
    assert!(nothing.is_err());
    consumer.resume(P0).unwrap();
    assert_eq!(consumer.next_batch().await.unwrap().unwrap().first_offset(), Offset(1));
    assert_eq!(consumer.pause(PartitionId(9)).unwrap_err().kind(), ErrorKind::UnknownPartition);
}

#[tokio::test(start_paused = true)]
async fn records_that_were_begun_one_by_one_can_be_finished_as_a_batch() {
    let (_broker, _client, mut consumer, subscription) =
        started(Behaviour::default(), StartAt::Earliest).await;
    subscription.push(3, &batch(0, 0, &["a", "b", "c"])).await;
    assert_eq!(value(&mut consumer).await.0, 0);
    let rest = consumer.next_batch().await.unwrap().unwrap();
    let offsets: Vec<u64> = rest.iter().map(|record| record.unwrap().offset.get()).collect();
    assert_eq!((rest.first_offset(), offsets), (Offset(1), vec![1, 2]));
    assert_eq!(consumer.position(P0), Some(Offset(3)));
}

#[tokio::test(start_paused = true)]
async fn what_comes_late_for_an_old_position_is_dropped() {
    let (mut broker, _client, mut consumer, first) = started(Behaviour::default(), StartAt::Earliest).await;
    consumer.seek(P0, StartAt::Offset(Offset(50))).await.unwrap();
    first.push(100, &batch(0, 0, &["late"])).await;
    let second = subscription(&mut broker).await;
    first.push(100, &batch(0, 1, &["late"])).await;
    second.push(100, &batch(0, 50, &["new"])).await;
    assert_eq!(value(&mut consumer).await, (50, String::from("new")));
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_gone_is_told_once_and_ends_the_stream() {
    let (broker, _client, mut consumer, first) = started(Behaviour::default(), StartAt::Earliest).await;
    broker.change(|behaviour| behaviour.topic_id = None);
    first.end(ErrorCode::UnknownTopic, |_| {}).await;
    let error = consumer.next().await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.topic()), (ErrorKind::UnknownTopic, Some(TOPIC)));
    assert!(consumer.next().await.is_none());
    assert!(consumer.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_not_ready_is_asked_again() {
    let mut broker = Broker::new(Behaviour::default());
    let client = broker.client().await;
    let mut consumer = client.consumer(TOPIC).from(StartAt::Earliest).build().await.unwrap();
    for code in [ErrorCode::LeaderNotReady, ErrorCode::NotLeader, ErrorCode::ReplicaSuspect] {
        let Incoming { wire, frame } = broker.next().await;
        assert_eq!(frame.header.api, ApiKey::SUBSCRIBE);
        wire.reply_error(&frame, code, "says the script").await;
    }
    let subscription = subscription(&mut broker).await;
    subscription.push(1, &batch(0, 0, &["a"])).await;
    assert_eq!(value(&mut consumer).await.0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_silent_broker_is_noticed_and_left() {
    let mut broker = Broker::new(Behaviour::default());
    let client = broker.client_builder().keep_alive(Duration::from_secs(2)).connect().await.unwrap();
    let _consumer = client.consumer(TOPIC).from(StartAt::Earliest).build().await.unwrap();
    let _first = subscription(&mut broker).await;
    // Pings keep it open for as long as they are answered.
    broker.nothing_for(Duration::from_secs(600)).await;
    let before = broker.connection_count();
    broker.change(|behaviour| behaviour.answer_pings = false);
    let begun = tokio::time::Instant::now();
    broker.change(|behaviour| behaviour.answer_pings = true);
    broker.change(|behaviour| behaviour.read = false);
    tokio::time::sleep(Duration::from_secs(6)).await;
    broker.change(|behaviour| behaviour.read = true);
    let _second = subscription(&mut broker).await;
    assert!(broker.connection_count() > before, "a new connection");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
