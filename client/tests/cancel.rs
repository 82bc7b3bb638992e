//! What may be dropped half way, and what dropping says.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not known as tests")]

mod scripted;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use highwater_client::{ProducerRecord, StartAt};
use highwater_protocol::messages::{Push, SubscribeReply, SubscribeRequest};
use scripted::{Behaviour, Broker, TOPIC, batch};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

fn record(value: &str) -> ProducerRecord<'_> {
    ProducerRecord::new(TOPIC).value(value)
}

#[tokio::test(start_paused = true)]
async fn a_send_that_is_dropped_while_it_waits_admits_nothing() {
    let mut broker = Broker::new(Behaviour::default());
    let client = broker.client().await;
    let producer = client.producer().idempotent(false).memory_bytes(3000).batch_bytes(1000).build();
    let value = "x".repeat(2500);
    let first = producer.send(record(&value)).await.unwrap();
    for _ in 0..3 {
        let dropped = tokio::time::timeout(Duration::from_secs(1), producer.send(record(&value))).await;
        assert!(dropped.is_err());
    }
    broker.next_produce().await.acknowledge(0).await;
    first.await.unwrap();
    let last = producer.send(record("last")).await.unwrap();
    let produced = broker.next_produce().await;
    assert_eq!(produced.batch(), (1, vec![String::from("last")]));
    produced.acknowledge(1).await;
    last.await.unwrap();
    broker.nothing_for(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_is_dropped_leaves_the_records_on_their_way() {
    let mut broker = Broker::new(Behaviour::default());
    let client = broker.client().await;
    let producer = client.producer().idempotent(false).linger(Duration::from_secs(3600)).build();
    let delivery = producer.send(record("a")).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(10), producer.flush()).await.is_err());
    broker.next_produce().await.acknowledge(0).await;
    delivery.await.unwrap();
    producer.flush().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn reading_that_is_dropped_again_and_again_loses_nothing() {
    let mut broker = Broker::new(Behaviour::default());
    let client = broker.client().await;
    let mut consumer = client.consumer(TOPIC).from(StartAt::Earliest).build().await.unwrap();
    let incoming = broker.next().await;
    let request = incoming.frame.decode_body::<SubscribeRequest>().unwrap();
    incoming.wire.reply::<SubscribeRequest>(&incoming.frame, &SubscribeReply::default()).await;
    let pushing = tokio::spawn(async move {
        for offset in (0..300).step_by(3) {
            let push = Push { id: request.id, high_watermark: offset + 3, ..Push::default() };
            incoming.wire.one_way(&push, &batch(0, offset, &["a", "b", "c"])).await;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    });
    let mut seen = Vec::new();
    while seen.len() < 300 {
        match tokio::time::timeout(Duration::from_millis(1), consumer.next_record()).await {
            Ok(record) => seen.push(record.unwrap().unwrap().offset.get()),
            Err(_) => continue,
        }
    }
    assert_eq!(seen, (0..300).collect::<Vec<_>>());
    pushing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_delivery_can_be_polled_put_aside_and_awaited_later() {
    let mut broker = Broker::new(Behaviour::default());
    let client = broker.client().await;
    let producer = client.producer().idempotent(false).build();
    let mut delivery = producer.send(record("a")).await.unwrap();
    for _ in 0..10 {
        assert!(tokio::time::timeout(Duration::from_millis(1), &mut delivery).await.is_err());
    }
    assert!(delivery.outcome().is_none());
    let shared = async move { delivery.await.unwrap().offset.get() }.shared();
    let (one, other) = (tokio::spawn(shared.clone()), tokio::spawn(shared));
    broker.next_produce().await.acknowledge(4).await;
    assert_eq!((one.await.unwrap(), other.await.unwrap()), (4, 4));
}

/// Counts warnings, and how many records they speak of.
#[derive(Default)]
struct Warnings {
    count: Arc<AtomicU64>,
    records: Arc<AtomicU64>,
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.count.fetch_add(1, Ordering::SeqCst);
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            if field.name() == "records" {
                self.records.store(format!("{value:?}").parse().unwrap(), Ordering::SeqCst);
            }
        });
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[tokio::test(start_paused = true)]
async fn a_producer_dropped_with_pending_records_warns_and_a_closed_one_does_not() {
    let mut broker = Broker::new(Behaviour::default());
    let client = broker.client().await;
    let warnings = Warnings::default();
    let (count, records) = (Arc::clone(&warnings.count), Arc::clone(&warnings.records));
    let _guard = tracing::subscriber::set_default(warnings);

    let closed = client.producer().idempotent(false).build();
    let delivery = closed.send(record("a")).await.unwrap();
    let answering = async { broker.next_produce().await.acknowledge(0).await };
    let (result, ()) = tokio::join!(closed.close(), answering);
    result.unwrap();
    delivery.await.unwrap();
    drop(closed);
    assert_eq!(count.load(Ordering::SeqCst), 0);

    let pending = client.producer().idempotent(false).linger(Duration::from_secs(3600)).build();
    let _deliveries = [pending.send(record("b")).await.unwrap(), pending.send(record("c")).await.unwrap()];
    drop(pending);
    assert_eq!((count.load(Ordering::SeqCst), records.load(Ordering::SeqCst)), (1, 2));
}
