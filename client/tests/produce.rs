//! The producer against a broker that does what the test says.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not known as tests")]

mod scripted;

use std::time::Duration;

use highwater_client::{Client, ErrorKind, PartitionId, Producer, ProducerRecord, Stage, TopicId};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::{Goodbye, ProduceCredit};
use scripted::{Behaviour, Broker, TOPIC};

fn record(value: &str) -> ProducerRecord<'_> {
    ProducerRecord::new(TOPIC).value(value)
}

/// A producer whose batches have one record each.
fn one_by_one(client: &Client) -> Producer {
    client.producer().idempotent(false).batch_bytes(1).build()
}

async fn started() -> (Broker, Client, Producer) {
    let broker = Broker::new(Behaviour::default());
    let client = broker.client().await;
    let producer = one_by_one(&client);
    (broker, client, producer)
}

#[tokio::test(start_paused = true)]
async fn a_receipt_says_where_the_record_is_and_how_safe() {
    let (mut broker, client, _) = started().await;
    let producer = client.producer().idempotent(false).linger(Duration::from_millis(5)).build();
    let first = producer.send(record("a")).await.unwrap();
    let second = producer.send(record("b")).await.unwrap();
    let produced = broker.next_produce().await;
    assert_eq!(produced.batch(), (0, vec![String::from("a"), String::from("b")]), "they lingered together");
    produced.acknowledge(40).await;
    let receipt = second.await.unwrap();
    assert_eq!(
        (receipt.partition, receipt.offset.get(), receipt.stage),
        (PartitionId(0), 41, Stage::Flushed)
    );
    assert_eq!(first.await.unwrap().offset.get(), 40);
    producer.close().await.unwrap();
    assert_eq!(producer.send(record("c")).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn requests_are_pipelined_up_to_max_in_flight() {
    // One of the four is kept for pings.
    let mut broker = Broker::new(Behaviour { max_in_flight: 4, ..Behaviour::default() });
    let client = broker.client().await;
    let producer = one_by_one(&client);
    let mut deliveries = Vec::new();
    for value in ["a", "b", "c", "d"] {
        deliveries.push(producer.send(record(value)).await.unwrap());
    }
    let mut produced = Vec::new();
    for number in 0..3 {
        let next = broker.next_produce().await;
        assert_eq!(next.batch().0, number);
        produced.push(next);
    }
    broker.nothing_for(Duration::from_secs(3)).await;
    // Replies may come in any order.
    produced[1].acknowledge(1).await;
    let last = broker.next_produce().await;
    assert_eq!(last.batch(), (3, vec![String::from("d")]));
    last.acknowledge(3).await;
    produced[0].acknowledge(0).await;
    produced[2].acknowledge(2).await;
    for (offset, delivery) in deliveries.into_iter().enumerate() {
        assert_eq!(delivery.await.unwrap().offset.get(), offset as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn batches_that_are_not_full_gather_while_others_are_on_their_way() {
    let broker = Broker::new(Behaviour::default());
    let client = broker.client().await;
    let mut broker = broker;
    let producer = client.producer().idempotent(false).build();
    let mut requests = Vec::new();
    for value in ["a", "b", "c", "d"] {
        let _delivery = producer.send(record(value)).await.unwrap();
        requests.push(broker.next_produce().await);
    }
    for value in ["e", "f", "g"] {
        let _delivery = producer.send(record(value)).await.unwrap();
    }
    broker.nothing_for(Duration::from_secs(1)).await;
    requests.remove(0).acknowledge(0).await;
    let gathered = broker.next_produce().await.batch();
    assert_eq!(gathered, (4, vec![String::from("e"), String::from("f"), String::from("g")]));
}

#[tokio::test(start_paused = true)]
async fn refused_batches_go_again_in_order_from_the_refused_number() {
    let (mut broker, _client, producer) = started().await;
    let mut deliveries = Vec::new();
    for value in ["a", "b", "c"] {
        deliveries.push(producer.send(record(value)).await.unwrap());
    }
    let (a, b, c) = (broker.next_produce().await, broker.next_produce().await, broker.next_produce().await);
    a.acknowledge(0).await;
    b.refuse(ErrorCode::DiskFull, 0).await;
    broker.nothing_for(Duration::from_secs(2)).await;
    c.refuse(ErrorCode::OutOfOrder, 1).await;
    for (number, value) in [(1, "b"), (2, "c")] {
        let again = broker.next_produce().await;
        assert_eq!(again.batch(), (number, vec![String::from(value)]));
        assert_eq!(again.incoming.wire.number, a.incoming.wire.number, "on the same connection");
        again.acknowledge(number).await;
    }
    for (offset, delivery) in deliveries.into_iter().enumerate() {
        assert_eq!(delivery.await.unwrap().offset.get(), offset as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_stays_full_fails_records_at_their_deadline_and_says_why() {
    let (mut broker, client, _) = started().await;
    let producer = client.producer().idempotent(false).delivery_timeout(Duration::from_secs(5)).build();
    let delivery = producer.send(record("a")).await.unwrap();
    let refusing = tokio::spawn(async move {
        let mut attempts = 0;
        while let Ok(produced) = tokio::time::timeout(Duration::from_secs(20), broker.next_produce()).await {
            produced.refuse(ErrorCode::DiskFull, 0).await;
            attempts += 1;
        }
        attempts
    });
    let error = delivery.await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::TimedOut, Some(ErrorCode::DiskFull)));
    assert!(error.is_retriable(), "it was not appended");
    assert_eq!((error.topic(), error.partition()), (Some(TOPIC), Some(PartitionId(0))));
    let attempts = refusing.await.unwrap();
    assert!((5..40).contains(&attempts), "with backoff: {attempts} attempts in five seconds");
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_on_a_connection_that_died_is_unknown_and_never_sent_again() {
    let (mut broker, _client, producer) = started().await;
    let sent = producer.send(record("sent")).await.unwrap();
    let produced = broker.next_produce().await;
    produced.incoming.wire.cut().await;
    let error = sent.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    assert!(!error.is_retriable());
    let next = producer.send(record("next")).await.unwrap();
    let produced = broker.next_produce().await;
    assert_eq!(produced.batch(), (0, vec![String::from("next")]), "numbers start again on a new connection");
    produced.acknowledge(9).await;
    assert_eq!(next.await.unwrap().offset.get(), 9);
}

#[tokio::test(start_paused = true)]
async fn what_never_left_goes_over_the_next_connection() {
    // A link that holds less than one batch: the first is out in part, the others wait behind it.
    let mut broker = Broker::new(Behaviour { link_bytes: 4096, ..Behaviour::default() });
    let client = broker.client().await;
    let producer = one_by_one(&client);
    let warm = producer.send(record("warm")).await.unwrap();
    let produced = broker.next_produce().await;
    produced.acknowledge(0).await;
    warm.await.unwrap();

    broker.change(|behaviour| behaviour.read = false);
    let large = "x".repeat(100_000);
    let partly = producer.send(record(&large)).await.unwrap();
    let behind = [producer.send(record("b")).await.unwrap(), producer.send(record("c")).await.unwrap()];
    // Everything stands still now: time passes only when nothing else can happen.
    tokio::time::sleep(Duration::from_millis(1)).await;
    broker.change(|behaviour| behaviour.link_bytes = 1 << 20);
    produced.incoming.wire.cut().await;
    assert_eq!(partly.await.unwrap_err().kind(), ErrorKind::OutcomeUnknown, "its first bytes were out");
    broker.change(|behaviour| behaviour.read = true);
    for (number, value) in ["b", "c"].iter().enumerate() {
        let again = broker.next_produce().await;
        assert_eq!(again.batch(), (number as u64, vec![String::from(*value)]));
        again.acknowledge(number as u64 + 10).await;
    }
    for (delivery, offset) in behind.into_iter().zip(10..) {
        assert_eq!(delivery.await.unwrap().offset.get(), offset);
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_out_at_the_broker_is_an_unknown_outcome_and_the_next_batch_goes_on() {
    let (mut broker, _client, producer) = started().await;
    let deliveries = [producer.send(record("a")).await.unwrap(), producer.send(record("b")).await.unwrap()];
    broker.next_produce().await.refuse(ErrorCode::TimedOut, 0).await;
    broker.next_produce().await.acknowledge(1).await;
    let [a, b] = deliveries;
    assert_eq!(a.await.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    assert_eq!(b.await.unwrap().offset.get(), 1);
    let c = producer.send(record("c")).await.unwrap();
    let produced = broker.next_produce().await;
    assert_eq!(produced.batch().0, 2, "the batch without a known outcome had its number");
    produced.acknowledge(2).await;
    c.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_never_answers_is_given_up_after_its_time() {
    let (mut broker, client, _) = started().await;
    let producer = client.producer().idempotent(false).delivery_timeout(Duration::from_secs(10)).build();
    let begun = tokio::time::Instant::now();
    let delivery = producer.send(record("a")).await.unwrap();
    let produced = broker.next_produce().await;
    assert!(produced.request.timeout_ms > 9_000, "the broker is told how long it has");
    let error = delivery.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_produce_window_is_kept_and_overdrawn_by_one_batch_at_the_most() {
    let mut broker = Broker::new(Behaviour { produce_window: 300, ..Behaviour::default() });
    let client = broker.client().await;
    let producer = one_by_one(&client);
    let mut deliveries = Vec::new();
    for _ in 0..5 {
        deliveries.push(producer.send(record("a")).await.unwrap());
    }
    // A batch of one short record has some 100 bytes: the window is used up, and overdrawn, by the fourth.
    let mut bytes = 0;
    let mut seen = Vec::new();
    while bytes < 300 {
        let produced = broker.next_produce().await;
        bytes += produced.incoming.frame.attachment.len() as u64;
        seen.push(produced);
    }
    broker.nothing_for(Duration::from_secs(3)).await;
    assert!(bytes < 300 + 120 && seen.len() < 5, "{} requests of {bytes} bytes", seen.len());
    // Replies do not open the window, credit does.
    for (offset, produced) in seen.iter().enumerate() {
        produced.acknowledge(offset as u64).await;
    }
    broker.nothing_for(Duration::from_secs(3)).await;
    seen[0].incoming.wire.one_way(&ProduceCredit { limit: 10_000 }, &[]).await;
    for offset in seen.len()..5 {
        broker.next_produce().await.acknowledge(offset as u64).await;
    }
    for delivery in deliveries {
        delivery.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_that_stays_closed_fails_records_at_their_deadline() {
    let mut broker = Broker::new(Behaviour { produce_window: 1, ..Behaviour::default() });
    let client = broker.client().await;
    let producer =
        client.producer().idempotent(false).batch_bytes(1).delivery_timeout(Duration::from_secs(4)).build();
    let first = producer.send(record("a")).await.unwrap();
    let behind = producer.send(record("b")).await.unwrap();
    broker.next_produce().await.acknowledge(0).await;
    first.await.unwrap();
    let begun = tokio::time::Instant::now();
    let error = behind.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "it never left");
    assert!(begun.elapsed() <= Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn one_request_carries_batches_of_many_partitions_in_order() {
    let mut broker = Broker::new(Behaviour { partitions: 4, ..Behaviour::default() });
    let client = broker.client().await;
    let producer = client.producer().idempotent(false).linger(Duration::from_millis(10)).build();
    let mut deliveries = Vec::new();
    for number in 0..12u32 {
        let value = number.to_string();
        let record = record(&value).partition(PartitionId(number % 4));
        deliveries.push(producer.send(record).await.unwrap());
    }
    let produced = broker.next_produce().await;
    let mut batches = produced.batches();
    batches.sort();
    let expected: Vec<_> =
        (0..4).map(|p| (p, 0, (0..3).map(|step| (p + 4 * step).to_string()).collect::<Vec<_>>())).collect();
    assert_eq!(batches, expected);
    produced.acknowledge(100).await;
    for (number, delivery) in deliveries.into_iter().enumerate() {
        let receipt = delivery.await.unwrap();
        assert_eq!(
            (receipt.partition.get() as usize, receipt.offset.get() as usize),
            (number % 4, 100 + number / 4)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn memory_is_bounded_and_room_comes_back_with_acknowledgements() {
    let (mut broker, client, _) = started().await;
    let producer = client.producer().idempotent(false).memory_bytes(50_000).batch_bytes(10_000).build();
    let value = "x".repeat(9_000);
    let mut deliveries = Vec::new();
    for _ in 0..5 {
        deliveries.push(producer.send(record(&value)).await.unwrap());
    }
    let waiting = tokio::time::timeout(Duration::from_secs(1), producer.send(record(&value))).await;
    assert!(waiting.is_err(), "the sixth waits");
    broker.next_produce().await.acknowledge(0).await;
    deliveries.push(producer.send(record(&value)).await.unwrap());
    // Without room for the whole delivery timeout it was not admitted.
    let error = producer.send(record(&value)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.is_retriable());
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_broker_fails_records_at_their_deadline_not_as_unknown() {
    let (broker, client, _) = started().await;
    let producer = client.producer().idempotent(false).delivery_timeout(Duration::from_secs(3)).build();
    broker.change(|behaviour| behaviour.refuse_connections = true);
    let delivery = producer.send(record("a")).await.unwrap();
    let error = delivery.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("cannot connect"), "{error}");
    // Back again, it goes on.
    let mut broker = broker;
    broker.change(|behaviour| behaviour.refuse_connections = false);
    let delivery = producer.send(record("b")).await.unwrap();
    broker.next_produce().await.acknowledge(0).await;
    delivery.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn records_of_a_topic_that_is_gone_fail_and_one_that_never_was_is_refused() {
    let (mut broker, _client, producer) = started().await;
    let error = producer.send(ProducerRecord::new("nope").value("a")).await.unwrap_err();
    assert_eq!((error.kind(), error.topic()), (ErrorKind::UnknownTopic, Some("nope")));
    let error = producer.send(record("a").partition(PartitionId(5))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownPartition);
    let delivery = producer.send(record("a")).await.unwrap();
    let produced = broker.next_produce().await;
    broker.change(|behaviour| behaviour.topic_id = None);
    produced.refuse(ErrorCode::UnknownTopic, 0).await;
    assert_eq!(delivery.await.unwrap_err().kind(), ErrorKind::UnknownTopic);
    // Created again, it is another topic, which takes new records.
    broker.change(|behaviour| behaviour.topic_id = Some(TopicId(78)));
    let delivery = producer.send(record("b")).await.unwrap();
    let produced = broker.next_produce().await;
    assert_eq!(produced.request.batches[0].topic_id, Some(TopicId(78).into()));
    produced.acknowledge(0).await;
    delivery.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn partitions_that_are_added_are_used_within_minutes() {
    let (mut broker, _client, producer) = started().await;
    let added = record("a").partition(PartitionId(1));
    assert_eq!(producer.send(added).await.unwrap_err().kind(), ErrorKind::UnknownPartition);
    let first = producer.send(record("a")).await.unwrap();
    broker.next_produce().await.acknowledge(0).await;
    first.await.unwrap();
    broker.change(|behaviour| behaviour.partitions = 2);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let delivery = producer.send(added).await.unwrap();
    let produced = broker.next_produce().await;
    assert_eq!(produced.batches()[0].0, 1);
    produced.acknowledge(0).await;
    delivery.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_becomes_the_reason() {
    let (mut broker, _client, producer) = started().await;
    let delivery = producer.send(record("a")).await.unwrap();
    let produced = broker.next_produce().await;
    let goodbye = Goodbye { code: ErrorCode::SlowReader.code(), message: String::from("replies pile up") };
    produced.incoming.wire.one_way(&goodbye, &[]).await;
    let error = delivery.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    assert!(error.to_string().contains("replies pile up"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn flush_waits_for_what_was_admitted_and_tells_the_first_failure() {
    let (mut broker, client, _) = started().await;
    let producer = client.producer().idempotent(false).linger(Duration::from_secs(3600)).build();
    let _a = producer.send(record("a")).await.unwrap();
    let answering = async {
        let produced = broker.next_produce().await;
        assert_eq!(produced.batch().1, ["a"], "it does not linger");
        produced.acknowledge(0).await;
        broker
    };
    let (flushed, mut broker) = tokio::join!(producer.flush(), answering);
    flushed.unwrap();
    let failing = producer.send(record("b")).await.unwrap();
    let answering = async { broker.next_produce().await.refuse(ErrorCode::BatchTooLarge, 0).await };
    let (flushed, ()) = tokio::join!(producer.flush(), answering);
    assert_eq!(flushed.unwrap_err().kind(), ErrorKind::RecordTooLarge);
    assert_eq!(failing.await.unwrap_err().kind(), ErrorKind::RecordTooLarge);
    producer.flush().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_producer_leaves_no_delivery_hanging() {
    let (mut broker, client, producer) = started().await;
    let sent = producer.send(record("a")).await.unwrap();
    let _produced = broker.next_produce().await;
    let lingering = client.producer().idempotent(false).linger(Duration::from_secs(3600)).build();
    let unsent = lingering.send(record("b")).await.unwrap();
    drop(producer);
    drop(lingering);
    assert_eq!(sent.await.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    assert_eq!(unsent.await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_batch_call_tells_what_became_of_each_record() {
    let mut broker = Broker::new(Behaviour::default());
    let client = broker.client().await;
    let producer = client.producer().idempotent(false).batch_bytes(400).build();
    let values: Vec<String> = (0..30).map(|number| format!("value {number:03}")).collect();
    let records = values.iter().map(|value| record(value));
    let delivery = producer.send_batch(TOPIC, Some(PartitionId(0)), records).await.unwrap();
    let answering = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.len() < 30 {
            let produced = broker.next_produce().await;
            let (number, values) = produced.batch();
            match number {
                1 => produced.refuse(ErrorCode::OutcomeUnknown, 0).await,
                _ => produced.acknowledge(seen.len() as u64).await,
            }
            seen.extend(values);
        }
        seen
    });
    let receipt = delivery.await;
    assert_eq!(answering.await.unwrap(), values);
    let covered: Vec<usize> = receipt.runs().iter().flat_map(|run| run.records.clone()).collect();
    assert_eq!(covered, (0..30).collect::<Vec<_>>());
    for (index, run) in receipt.runs().iter().enumerate() {
        match &run.result {
            Ok(first) => assert_eq!(first.offset.get(), run.records.start as u64),
            Err(error) => assert_eq!((index, error.kind()), (1, ErrorKind::OutcomeUnknown)),
        }
    }
    assert!(receipt.acknowledged_count() < 30 && receipt.into_result().is_err());
}
