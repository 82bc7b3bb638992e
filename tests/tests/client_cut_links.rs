//! Producer and consumer against a real broker, over links that are cut again and again after a random number of bytes:
//! what is acknowledged is there once and in its place, what failed is not there, nothing is there twice or out of order,
//! and the consumer sees every record once.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not known as tests")]

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use highwater_broker::Broker;
use highwater_broker::config::Config;
use highwater_broker::env::Env;
use highwater_client::wire::{Connecting, Connector, Link};
use highwater_client::{Client, ErrorKind, NewTopic, ProducerRecord, StartAt};
use tokio::io::AsyncReadExt;

/// Records at the least; it goes on until every link that is to be cut has been made.
const RECORDS: usize = 20_000;
const RECORDS_MAX: usize = 2_000_000;

/// Links in memory that end after some bytes, in either direction.
struct CutLinks {
    broker: Arc<Broker>,
    seed: AtomicU64,
    /// Links so far, and how many of them are to be cut.
    links: AtomicU64,
    cuts: u64,
}

impl fmt::Debug for CutLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CutLinks").finish_non_exhaustive()
    }
}

impl CutLinks {
    /// SplitMix64.
    fn random(&self) -> u64 {
        let mut z = self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Connector for CutLinks {
    fn connect<'a>(&'a self, _address: &'a str) -> Connecting<'a> {
        Box::pin(async move {
            let (ours, near) = tokio::io::duplex(16 << 10);
            let (far, theirs) = tokio::io::duplex(16 << 10);
            self.broker.serve(theirs);
            let cut = self.links.fetch_add(1, Ordering::Relaxed) < self.cuts;
            let limit = |random: u64| if cut { 200 + random % 60_000 } else { u64::MAX };
            let (up, down) = (limit(self.random()), limit(self.random()));
            tokio::spawn(async move {
                let (near_reader, mut near_writer) = tokio::io::split(near);
                let (far_reader, mut far_writer) = tokio::io::split(far);
                let (mut near_reader, mut far_reader) = (near_reader.take(up), far_reader.take(down));
                // Whichever direction has had its bytes first ends both.
                tokio::select! {
                    _ = tokio::io::copy(&mut near_reader, &mut far_writer) => {}
                    _ = tokio::io::copy(&mut far_reader, &mut near_writer) => {}
                }
            });
            Ok(Link::from_stream(ours))
        })
    }
}

async fn run(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.listen = String::from("127.0.0.1:0");
    config.http = None;
    config.data_dir = dir.path().to_owned();
    config.disk_reserve = 0;
    let broker = Arc::new(Broker::start(config, Env::real()).await.unwrap());
    let plain = Client::builder([broker.address().to_string()]).connect().await.unwrap();
    plain.admin().create_topic(NewTopic::new("cut").partitions(1).config("durability", "os")).await.unwrap();

    let links = Arc::new(CutLinks {
        broker: Arc::clone(&broker),
        seed: AtomicU64::new(seed),
        links: AtomicU64::new(0),
        cuts: 60,
    });
    let connector = Arc::clone(&links) as Arc<dyn Connector>;
    let client =
        Client::builder(["broker:1"]).connector(connector).random_seed(seed).connect().await.unwrap();
    let reading = tokio::spawn(read_all(client.clone()));

    let producer = client.producer().idempotent(false).batch_bytes(600).memory_bytes(100_000).build();
    let mut deliveries = Vec::with_capacity(RECORDS);
    while deliveries.len() < RECORDS || links.links.load(Ordering::Relaxed) <= links.cuts {
        assert!(deliveries.len() < RECORDS_MAX, "links are not cut");
        let value = format!("record {}", deliveries.len());
        deliveries.push(producer.send(ProducerRecord::new("cut").value(&value)).await.unwrap());
    }
    let count = deliveries.len();
    let (mut unknown, mut failed) = (HashSet::new(), HashSet::new());
    let mut acknowledged = Vec::new();
    for (number, delivery) in deliveries.into_iter().enumerate() {
        match delivery.await {
            Ok(receipt) => acknowledged.push((receipt.offset.get() as usize, number)),
            Err(error) if error.kind() == ErrorKind::OutcomeUnknown => assert!(unknown.insert(number)),
            Err(_) => assert!(failed.insert(number)),
        }
    }
    // Tells the reader where to stop; the last record is acknowledged, because links are not cut any more.
    let stop = producer.send(ProducerRecord::new("cut").value("stop")).await.unwrap();
    stop.await.unwrap();
    producer.close().await.unwrap();
    let log = tokio::time::timeout(Duration::from_secs(60), reading).await.unwrap().unwrap();

    assert!(log.is_sorted_by(|a, b| a < b), "in order and nothing twice");
    assert!(log.iter().all(|number| !failed.contains(number)), "what failed is not there");
    for (offset, number) in &acknowledged {
        assert_eq!(log.get(*offset), Some(number), "what is acknowledged is in its place");
    }
    let there: HashSet<usize> = log.iter().copied().collect();
    let missing = (0..count).filter(|number| !there.contains(number));
    assert!(missing.clone().all(|number| unknown.contains(&number) || failed.contains(&number)));
    assert!(!unknown.is_empty(), "the cuts did hit something");
    assert!(acknowledged.len() > count / 4, "most went through: {}", acknowledged.len());
    drop(links);
}

/// Every record up to the last, with consecutive offsets, over links that are cut.
async fn read_all(client: Client) -> Vec<usize> {
    let mut consumer =
        client.consumer("cut").from(StartAt::Earliest).memory_bytes(64 << 10).build().await.unwrap();
    let mut log = Vec::new();
    loop {
        let record = consumer.next_record().await.unwrap().unwrap();
        let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
        if value == "stop" {
            return log;
        }
        assert_eq!(record.offset.get() as usize, log.len(), "nothing is passed over and nothing comes twice");
        log.push(value["record ".len()..].parse().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_links_lose_nothing_acknowledged_and_repeat_nothing() {
    for seed in 1..=5 {
        run(seed).await;
    }
}
