//! The idempotent producer against brokers that do what the test says.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not known as tests")]

mod scripted;

use std::time::Duration;

use highwater_client::{BreakerState, Client, Delivery, ErrorKind, Producer, ProducerRecord, StartAt};
use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::{Push, SubscribeReply, SubscribeRequest};
use scripted::{Behaviour, Broker, Cluster, TOPIC, batch};
use tokio::time::Instant;

fn record(value: &str) -> ProducerRecord<'_> {
    ProducerRecord::new(TOPIC).value(value)
}

/// A producer whose batches have one record each.
fn one_by_one(client: &Client) -> Producer {
    client.producer().idempotent(true).batch_bytes(1).build()
}

async fn send(producer: &Producer, values: &[&str]) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for value in values {
        deliveries.push(producer.send(record(value)).await.unwrap());
    }
    deliveries
}

async fn started() -> (Broker, Client, Producer) {
    let broker = Broker::new(Behaviour::default());
    let client = broker.client().await;
    let producer = one_by_one(&client);
    (broker, client, producer)
}

fn stamped(epoch: u16, sequence: u32, value: &str) -> (u64, u16, u32, Vec<String>) {
    (5, epoch, sequence, vec![value.to_owned()])
}

#[tokio::test(start_paused = true)]
async fn h13_what_a_cut_connection_leaves_open_goes_again_with_the_same_sequences() {
    let (mut broker, _client, producer) = started().await;
    let deliveries = send(&producer, &["a", "b", "c"]).await;
    let first = broker.next_produce().await;
    assert_eq!(first.stamped(), stamped(0, 0, "a"));
    assert_eq!(broker.next_produce().await.stamped(), stamped(0, 1, "b"));
    assert_eq!(broker.next_produce().await.stamped(), stamped(0, 2, "c"));
    first.acknowledge(0).await;
    first.incoming.wire.cut().await;
    for (sequence, value) in [(1, "b"), (2, "c")] {
        let again = broker.next_produce().await;
        assert_eq!(again.stamped(), stamped(0, sequence, value));
        assert_ne!(again.incoming.wire.number, first.incoming.wire.number);
        again.acknowledge(u64::from(sequence)).await;
    }
    for (offset, delivery) in deliveries.into_iter().enumerate() {
        assert_eq!(delivery.await.unwrap().offset.get(), offset as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn h23_an_outcome_that_is_not_known_is_asked_about_until_it_is() {
    let (mut broker, _client, producer) = started().await;
    let delivery = producer.send(record("a")).await.unwrap();
    for code in
        [ErrorCode::TimedOut, ErrorCode::OutcomeUnknown, ErrorCode::NotEnoughReplicas, ErrorCode::Internal]
    {
        let produced = broker.next_produce().await;
        assert_eq!(produced.stamped(), stamped(0, 0, "a"));
        produced.refuse(code, 0).await;
    }
    broker.next_produce().await.acknowledge(7).await;
    assert_eq!(delivery.await.unwrap().offset.get(), 7);
    // Appended so long ago that its offset is forgotten: it is there all the same.
    let delivery = producer.send(record("b")).await.unwrap();
    broker.next_produce().await.refuse(ErrorCode::AlreadyApplied, 0).await;
    assert_eq!(delivery.await.unwrap().offset.get(), u64::MAX);
}

#[tokio::test(start_paused = true)]
async fn behind_a_batch_refused_for_good_the_rest_goes_under_the_next_epoch() {
    let (mut broker, _client, producer) = started().await;
    let mut deliveries = send(&producer, &["a", "b", "c"]).await.into_iter();
    let sent = [broker.next_produce().await, broker.next_produce().await, broker.next_produce().await];
    sent[0].refuse(ErrorCode::BatchTooLarge, 0).await;
    sent[1].refuse(ErrorCode::UnknownProducer, 0).await;
    sent[2].refuse(ErrorCode::SequenceGap, 0).await;
    for (sequence, value) in [(0, "b"), (1, "c")] {
        let again = broker.next_produce().await;
        assert_eq!(again.stamped(), stamped(1, sequence, value));
        again.acknowledge(u64::from(sequence)).await;
    }
    assert_eq!(deliveries.next().unwrap().await.unwrap_err().kind(), ErrorKind::RecordTooLarge);
    for delivery in deliveries {
        delivery.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn h13_a_fenced_producer_is_told() {
    let (mut broker, _client, producer) = started().await;
    let delivery = producer.send(record("a")).await.unwrap();
    broker.next_produce().await.refuse(ErrorCode::ProducerFenced, 0).await;
    let error = delivery.await.unwrap_err();
    assert_eq!((error.kind(), error.is_retriable()), (ErrorKind::Fenced, false));
    let delivery = producer.send(record("b")).await.unwrap();
    let produced = broker.next_produce().await;
    assert_eq!(produced.stamped(), stamped(1, 0, "b"));
    produced.acknowledge(0).await;
    delivery.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_broker_without_identities_fails_records_at_once_and_says_why() {
    let broker = Broker::new(Behaviour { identities: false, ..Behaviour::default() });
    let producer = one_by_one(&broker.client().await);
    let error = producer.send(record("a")).await.unwrap().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("ProducerBuilder::idempotent"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_delivery_timeout_bounds_it_all() {
    let (mut broker, client, _) = started().await;
    let producer = client.producer().idempotent(true).delivery_timeout(Duration::from_secs(30)).build();
    let begun = Instant::now();
    let delivery = producer.send(record("a")).await.unwrap();
    let answering = tokio::spawn(async move {
        let mut attempts = 0;
        while let Ok(produced) = tokio::time::timeout(Duration::from_secs(60), broker.next_produce()).await {
            assert!(produced.request.timeout_ms <= 10_000, "an attempt takes less than the whole time");
            attempts += 1;
        }
        attempts
    });
    let error = delivery.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert!(answering.await.unwrap() >= 2, "it was asked again");
}

#[tokio::test(start_paused = true)]
async fn a_pushed_leader_gets_what_a_hanging_one_has_not_answered() {
    let mut cluster = Cluster::new(3);
    let client = cluster.client_builder(&["broker:3"]).connect().await.unwrap();
    let producer = one_by_one(&client);
    let deliveries = send(&producer, &["a", "b"]).await;
    let hanging = [cluster.broker(1).next_produce().await, cluster.broker(1).next_produce().await];
    let begun = Instant::now();
    for node in [1, 2, 3] {
        // One of them tells; the others do not hear.
        if !matches!(
            tokio::time::timeout(Duration::from_millis(50), cluster.broker(node).watched()).await,
            Ok(())
        ) {
            continue;
        }
    }
    cluster.lead(2, 2).await;
    for (sequence, value) in [(0, "a"), (1, "b")] {
        let again = cluster.broker(2).next_produce().await;
        assert_eq!(again.stamped(), stamped(0, sequence, value));
        again.acknowledge(u64::from(sequence)).await;
    }
    for (offset, delivery) in deliveries.into_iter().enumerate() {
        assert_eq!(delivery.await.unwrap().offset.get(), offset as u64);
    }
    assert!(begun.elapsed() < Duration::from_millis(500), "nobody waited for it: {:?}", begun.elapsed());
    // What the old one says at last changes nothing.
    hanging[0].refuse(ErrorCode::NotLeader, 0).await;
    hanging[1].acknowledge(1000).await;
    let delivery = producer.send(record("c")).await.unwrap();
    let produced = cluster.broker(2).next_produce().await;
    assert_eq!(produced.stamped(), stamped(0, 2, "c"));
    produced.acknowledge(2).await;
    assert_eq!(delivery.await.unwrap().offset.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn without_a_push_a_hanging_leader_is_asked_about() {
    let mut cluster = Cluster::new(3);
    let client = cluster.client_builder(&["broker:3"]).connect().await.unwrap();
    let producer = one_by_one(&client);
    let delivery = producer.send(record("a")).await.unwrap();
    let _hanging = cluster.broker(1).next_produce().await;
    let begun = Instant::now();
    cluster.elect(2, 2);
    // The old leader answers no questions either.
    cluster.broker(1).change(|behaviour| behaviour.answer_metadata = false);
    cluster.broker(2).next_produce().await.acknowledge(0).await;
    delivery.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_dead_and_its_successor_are_a_pause() {
    let mut cluster = Cluster::new(3);
    let client = cluster.client_builder(&["broker:1"]).connect().await.unwrap();
    let producer = one_by_one(&client);
    let deliveries = send(&producer, &["a", "b"]).await;
    let [a, b] = [cluster.broker(1).next_produce().await, cluster.broker(1).next_produce().await];
    assert_eq!((a.stamped(), b.stamped()), (stamped(0, 0, "a"), stamped(0, 1, "b")));
    cluster.broker(1).change(|behaviour| behaviour.refuse_connections = true);
    cluster.broker(1).cut_all().await;
    // Nobody leads for a while.
    cluster.elect(0, 2);
    tokio::time::sleep(Duration::from_millis(800)).await;
    let begun = Instant::now();
    cluster.lead(3, 3).await;
    for (sequence, value) in [(0, "a"), (1, "b")] {
        let again = cluster.broker(3).next_produce().await;
        assert_eq!(again.stamped(), stamped(0, sequence, value));
        again.acknowledge(u64::from(sequence)).await;
    }
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn h25_a_client_outlives_the_address_that_it_started_with() {
    let mut cluster = Cluster::new(3);
    // The first seed never was there, the second one dies.
    let client = cluster.client_builder(&["gone:1", "broker:1"]).connect().await.unwrap();
    assert_eq!(client.admin().metadata(&[TOPIC]).await.unwrap().brokers.len(), 3);
    cluster.broker(1).change(|behaviour| behaviour.refuse_connections = true);
    cluster.broker(1).cut_all().await;
    cluster.elect(2, 2);
    let producer = one_by_one(&client);
    let delivery = producer.send(record("a")).await.unwrap();
    cluster.broker(2).next_produce().await.acknowledge(0).await;
    delivery.await.unwrap();
    // Only when no address answers is it given up, and each was tried.
    for node in [2, 3] {
        cluster.broker(node).change(|behaviour| behaviour.refuse_connections = true);
        cluster.broker(node).cut_all().await;
    }
    let error = client.admin().metadata(&[TOPIC]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection);
    let breakers = client.breakers();
    let tried: Vec<&str> = breakers.iter().map(|breaker| breaker.address.as_str()).collect();
    assert_eq!(tried, ["broker:1", "broker:2", "broker:3", "gone:1"]);
    assert!(breakers.iter().all(|breaker| breaker.failure_count > 0), "{breakers:?}");
    // A seed that comes back is enough.
    cluster.broker(1).change(|behaviour| behaviour.refuse_connections = false);
    client.admin().metadata(&[TOPIC]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_swallows_connections_costs_no_waiting() {
    let mut cluster = Cluster::new(3);
    cluster.elect(2, 2);
    cluster.broker(1).change(|behaviour| behaviour.black_hole = true);
    let begun = Instant::now();
    let client = cluster.client_builder(&["broker:1", "broker:2"]).connect().await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(500), "the next address is tried beside it");
    for _ in 0..20 {
        let begun = Instant::now();
        client.admin().metadata(&[TOPIC]).await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    }
    let producer = one_by_one(&client);
    let delivery = producer.send(record("a")).await.unwrap();
    cluster.broker(2).next_produce().await.acknowledge(0).await;
    delivery.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_breaker_opens_for_a_dead_broker_and_closes_when_it_is_back() {
    let mut cluster = Cluster::new(2);
    let client = cluster.client_builder(&["broker:2"]).connect().await.unwrap();
    cluster.broker(1).change(|behaviour| behaviour.refuse_connections = true);
    let state = |client: &Client| {
        let all = client.breakers();
        all.into_iter().find(|breaker| breaker.address == "broker:1").map(|breaker| breaker.state)
    };
    assert_eq!(state(&client), None, "nobody has tried it");
    let producer = one_by_one(&client);
    let delivery = producer.send(record("a")).await.unwrap();
    while state(&client) != Some(BreakerState::Open) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.broker(1).change(|behaviour| behaviour.refuse_connections = false);
    cluster.broker(1).next_produce().await.acknowledge(0).await;
    delivery.await.unwrap();
    assert_eq!(state(&client), Some(BreakerState::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_consumer_follows_a_pushed_leader_at_its_position() {
    let mut cluster = Cluster::new(3);
    let client = cluster.client_builder(&["broker:3"]).connect().await.unwrap();
    let mut consumer = client.consumer(TOPIC).from(StartAt::Earliest).build().await.unwrap();
    let mut position = 0;
    for (node, epoch, values) in [(1, 1, ["a", "b"]), (2, 2, ["c", "d"]), (3, 3, ["e", "f"])] {
        if epoch > 1 {
            // The old leader hangs: it ends nothing.
            cluster.lead(node, epoch).await;
        }
        let subscribed = cluster.broker(node).next().await;
        assert_eq!(subscribed.frame.header.api, ApiKey::SUBSCRIBE);
        let request: SubscribeRequest = subscribed.frame.decode_body().unwrap();
        assert_eq!(request.offset, position, "neither skipped nor repeated");
        let reply = SubscribeReply { high_watermark: position + 2, ..SubscribeReply::default() };
        subscribed.wire.reply::<SubscribeRequest>(&subscribed.frame, &reply).await;
        let push = Push { id: request.id, high_watermark: position + 2, ..Push::default() };
        subscribed.wire.one_way(&push, &batch(0, position, &values)).await;
        for value in values {
            let record = consumer.next_record().await.unwrap().unwrap();
            assert_eq!((record.offset.get(), record.value.as_deref()), (position, Some(value.as_bytes())));
            position += 1;
        }
        // Only now does anybody listen for what comes next.
        for broker in &cluster.brokers {
            let _ = tokio::time::timeout(Duration::from_millis(50), broker.watched()).await;
        }
    }
}
