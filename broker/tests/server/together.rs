//! Many connections at once on several threads: every consumer sees the same log, with every producer's batches in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use highwater_broker::Broker;
use highwater_protocol::batch::{BatchBuilder, BatchHeader, Records};
use highwater_protocol::compression::Compression;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{PartitionId, TopicId, TopicPartition};
use highwater_protocol::messages::{
    Acks, AlterTopicRequest, Credit, DeleteTopicRequest, ListOffsetsRequest, OffsetQuery, Position, Push,
    UnsubscribeRequest,
};

use crate::support::{Peer, broker, code};

const PRODUCERS: u64 = 4;
const BATCHES: u64 = 100;
const RECORDS: u64 = 5;

/// A batch whose records name their producer and their place.
fn batch(topic: TopicId, producer: u64, number: u64) -> Bytes {
    let mut builder = BatchBuilder::with_capacity(1024);
    for record in 0..RECORDS {
        let value = format!("{producer} {}", number * RECORDS + record);
        builder.push(0, None, Some(value.as_bytes()), &[]);
    }
    builder.build(TopicPartition::new(topic, PartitionId(0)), Compression::None).unwrap()
}

async fn produce(broker: Arc<Broker>, topic: TopicId, producer: u64) {
    let mut peer = Peer::connect(&broker, 8 << 10).await;
    for number in 0..BATCHES {
        let result = peer.produce(topic, number, batch(topic, producer, number), Acks::All).await;
        assert_eq!(code(result.error), ErrorCode::None, "{}", result.message);
        // Whoever was acknowledged finds the record wherever it asks.
        let end = result.base_offset + RECORDS;
        let latest = OffsetQuery {
            topic_id: Some(topic.into()),
            partition: 0,
            position: Position::Latest.into(),
            timestamp_ms: 0,
        };
        let listed = peer.call(&ListOffsetsRequest { queries: vec![latest] }, &[]).await.unwrap();
        assert!(listed.results[0].offset >= end, "{} is acknowledged, {:?} is listed", end, listed.results);
        let told = peer.subscribe(number + 1, topic, end, 0).await.unwrap();
        assert!(told.high_watermark >= end);
        peer.call(&UnsubscribeRequest { id: number + 1 }, &[]).await.unwrap();
    }
}

/// Reads everything with little credit at a time, leaving and coming back in the middle.
async fn consume(broker: Arc<Broker>, topic: TopicId, leaves: bool) -> Vec<String> {
    let partition = TopicPartition::new(topic, PartitionId(0));
    let mut peer = Peer::connect(&broker, 8 << 10).await;
    let total = (PRODUCERS * BATCHES * RECORDS) as usize;
    let mut values = Vec::new();
    let mut id = 1;
    let (mut received, mut credit) = (0, 500);
    peer.subscribe(id, topic, 0, credit).await.unwrap();
    while values.len() < total {
        let (push, attachment): (Push, _) = peer.next_message().await;
        if push.id != id {
            continue;
        }
        received += attachment.len() as u64;
        let mut rest = attachment;
        while !rest.is_empty() {
            let header = BatchHeader::decode(&rest).unwrap();
            let records = Records::verify(&rest.split_to(header.length()), partition).unwrap();
            for record in records.iter() {
                let record = record.unwrap();
                if record.offset.get() < values.len() as u64 {
                    continue;
                }
                assert_eq!(record.offset.get(), values.len() as u64, "nothing is left out");
                values.push(String::from_utf8(record.value.unwrap().to_vec()).unwrap());
            }
        }
        if leaves && values.len() > total / 2 && id == 1 {
            peer.call(&UnsubscribeRequest { id }, &[]).await.unwrap();
            id = 2;
            (received, credit) = (0, 500);
            peer.subscribe(id, topic, values.len() as u64, credit).await.unwrap();
        } else if received + 250 > credit {
            credit = received + 500;
            peer.tell(&Credit { id, limit: credit }).await;
        }
    }
    values
}

/// Topics come, change and go meanwhile.
async fn administer(broker: Arc<Broker>) {
    let mut peer = Peer::connect(&broker, 8 << 10).await;
    for round in 0..20 {
        let name = format!("passing-{}", round % 3);
        peer.create(&name, 4, "os").await;
        let set = [("durability".to_owned(), "fsync".to_owned())].into();
        let alter =
            AlterTopicRequest { name: name.clone(), set, partitions: 6, ..AlterTopicRequest::default() };
        assert_eq!(peer.call(&alter, &[]).await.unwrap().partitions, 6);
        peer.call(&DeleteTopicRequest { name, topic_id: None }, &[]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn everybody_sees_the_same_log_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Arc::new(broker(directory.path(), |_| {}).await);
    for durability in ["fsync", "os"] {
        let topic = Peer::connect(&broker, 8 << 10).await.create(durability, 1, durability).await;
        let mut producers = tokio::task::JoinSet::new();
        (0..PRODUCERS).for_each(|producer| {
            producers.spawn(produce(Arc::clone(&broker), topic, producer));
        });
        producers.spawn(administer(Arc::clone(&broker)));
        let consumers: Vec<_> = (0..4)
            .map(|consumer| tokio::spawn(consume(Arc::clone(&broker), topic, consumer % 2 == 1)))
            .collect();
        while let Some(done) = producers.join_next().await {
            done.unwrap();
        }
        let mut logs = Vec::new();
        for consumer in consumers {
            logs.push(consumer.await.unwrap());
        }
        assert!(logs.windows(2).all(|pair| pair[0] == pair[1]), "two consumers saw different logs");
        let mut next: BTreeMap<&str, u64> = BTreeMap::new();
        for value in &logs[0] {
            let (producer, place) = value.split_once(' ').unwrap();
            let expected = next.entry(producer).or_default();
            assert_eq!(place.parse::<u64>().unwrap(), *expected, "producer {producer}");
            *expected += 1;
        }
        assert!(next.len() as u64 == PRODUCERS && next.values().all(|count| *count == BATCHES * RECORDS));
    }
    Arc::into_inner(broker).unwrap().shutdown().await.unwrap();
}
