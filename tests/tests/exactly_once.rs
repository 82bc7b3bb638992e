//! An idempotent producer against a real broker, over connections that are cut in the middle of requests, in the middle of
//! replies, and after requests whose acknowledgements were dropped: every record is in the log exactly once and in order,
//! no send fails, and a consumer over the same connections sees each record once.
//!
//! `HIGHWATER_FAULTS` says how many connections break (100 by default), `HIGHWATER_SEED` how.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not known as tests")]

use std::env;
use std::sync::Arc;
use std::time::Duration;

use highwater_broker::Broker;
use highwater_broker::config::Config;
use highwater_broker::env::Env;
use highwater_client::wire::Connector;
use highwater_client::{Client, NewTopic, PartitionId, ProducerRecord, StartAt};
use highwater_tests::lossy::Lossy;

const TOPIC: &str = "once";
const PARTITIONS: u32 = 2;
/// Records of each partition that are read between two looks at the faults.
const ROUND: usize = 500;
const ROUNDS_MAX: usize = 20_000;
/// How long anything may take in the end.
const PATIENCE: Duration = Duration::from_secs(120);

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().unwrap())
}

async fn start(dir: &std::path::Path) -> Broker {
    let mut config = Config::default();
    config.listen = String::from("127.0.0.1:0");
    config.http = None;
    config.data_dir = dir.to_owned();
    config.disk_reserve = 0;
    Broker::start(config, Env::real()).await.unwrap()
}

/// Reads a partition from its start until it has seen so many records: each of them once, and in order.
async fn read(client: &Client, partition: u32, count: usize) {
    let consumer = client.consumer(TOPIC).partitions([PartitionId(partition)]);
    let mut consumer = consumer.from(StartAt::Earliest).memory_bytes(64 << 10).build().await.unwrap();
    for number in 0..count {
        let record = consumer.next_record().await.unwrap().unwrap();
        let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
        assert_eq!((record.offset.get(), value), (number as u64, format!("{partition}/{number}")));
    }
    assert_eq!(consumer.high_watermark(PartitionId(partition)).unwrap().get(), count as u64, "nothing more");
}

/// Sends records of both partitions until every connection that has to break has broken. Returns how many of each.
async fn produce(client: &Client, lossy: &Lossy, faults: u64) -> usize {
    let producer = client.producer().batch_bytes(600).memory_bytes(100_000).build();
    let mut sent = 0;
    for _ in 0..ROUNDS_MAX {
        let mut deliveries = Vec::with_capacity(ROUND * PARTITIONS as usize);
        for number in sent..sent + ROUND {
            for partition in 0..PARTITIONS {
                let value = format!("{partition}/{number}");
                let record = ProducerRecord::new(TOPIC).value(&value).partition(PartitionId(partition));
                deliveries.push((number, producer.send(record).await.unwrap()));
            }
        }
        for (number, delivery) in deliveries {
            assert_eq!(delivery.await.unwrap().offset.get(), number as u64, "each record has its place");
        }
        sent += ROUND;
        if lossy.broken() >= faults {
            producer.close().await.unwrap();
            return sent;
        }
    }
    panic!("{} of {faults} connections broke in {sent} records", lossy.broken());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h13_h14_every_record_is_there_exactly_once_whatever_happens_to_connections() {
    let (faults, seed) = (setting("HIGHWATER_FAULTS", 100), setting("HIGHWATER_SEED", 1));
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    let address = broker.address().to_string();
    let plain = Client::builder([&address]).connect().await.unwrap();
    let topic = NewTopic::new(TOPIC).partitions(PARTITIONS).config("durability", "os");
    plain.admin().create_topic(topic).await.unwrap();

    let lossy = Arc::new(Lossy::new(seed, faults));
    let connector = Arc::clone(&lossy) as Arc<dyn Connector>;
    let builder = Client::builder([&address]).connector(connector).random_seed(seed);
    let client = builder.request_timeout(PATIENCE).connect().await.unwrap();
    let sent = produce(&client, &lossy, faults).await;
    for partition in 0..PARTITIONS {
        tokio::time::timeout(PATIENCE, read(&plain, partition, sent)).await.unwrap();
    }
    println!("{sent} records of each partition, {faults} broken connections, seed {seed}");
}
