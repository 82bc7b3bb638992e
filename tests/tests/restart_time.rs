//! A broker that is killed with a log of many segments comes back with all of it, and soon. The times that are promised
//! are measured by `cargo run --release -p highwater-benches --bin restart`; here nothing depends on the machine's speed.
#![cfg(test)]

use std::path::Path;
use std::time::Duration;

use highwater_broker_core::log::directory;
use highwater_broker_core::log::manifest::Manifest;
use highwater_client::{Client, NewTopic, PartitionId, ProducerRecord};
use highwater_tests::cluster::{BrokerProcess, Options};
use highwater_tests::oracle::{Pass, Record};
use highwater_tests::{residency, wait, workload};

const TOPIC: &str = "long";
const PARTITION: PartitionId = PartitionId(0);
const BATCH: u64 = 5_000;
const BATCHES: u64 = 60;
const LIMIT: Duration = Duration::from_secs(60);

/// Bytes that the process has read from files and sockets since it was started, in its own words.
fn bytes_read(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
    line.parse().unwrap()
}

/// How many sealed segments the manifest of the only partition names, while it has one.
fn sealed_segments(data: &Path) -> Option<usize> {
    let topic = std::fs::read_dir(data.join(directory::TOPICS)).ok()?.flatten().next()?.path();
    let bytes = std::fs::read(topic.join("0").join(directory::MANIFEST)).ok()?;
    Some(Manifest::decode(&bytes).ok()?.segments.len())
}

/// Appends `count` records from `first` on.
async fn produce(client: &Client, first: u64, count: u64) {
    let producer = client.producer().build();
    let values: Vec<_> =
        (first..first + count).map(|number| workload::value_of(Record { producer: 1, number })).collect();
    let records = values.iter().map(|value| ProducerRecord::new(TOPIC).value(value));
    let delivery = producer.send_batch(TOPIC, Some(PARTITION), records).await.unwrap();
    let receipt = wait::within("a batch is acknowledged", LIMIT, delivery).await.unwrap();
    assert_eq!(receipt.acknowledged_count() as u64, count);
    producer.close().await.unwrap();
}

fn expected(count: u64) -> Pass {
    (0..count).map(|number| (number, Record { producer: 1, number })).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_many_segments_is_there_after_kills_with_and_without_the_page_cache() {
    // On a disk: a temporary directory may be in memory altogether.
    let parent = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let data = tempfile::tempdir_in(parent).unwrap();
    let options = Options { data_directory: Some(data.path().join("data")), ..Options::default() };
    let mut broker = BrokerProcess::start(options).unwrap();
    let client = Client::builder([broker.bootstrap()]).connect().await.unwrap();
    let topic = NewTopic::new(TOPIC).config("segment_bytes", "1MiB").config("durability", "os");
    client.admin().create_topic(topic).await.unwrap();
    for batch in 0..BATCHES {
        produce(&client, batch * BATCH, BATCH).await;
    }
    let details = client.admin().describe_topics(&[TOPIC]).await.unwrap();
    let partition = &details[0].partitions[0];
    assert!(partition.segment_count > 20, "{partition:?}");
    let log_bytes = partition.bytes;
    // Only what is sealed durably needs no look at its bytes, and that waits for the disk.
    let sealing = "all segments but the last two are sealed";
    let count = partition.segment_count as usize;
    wait::until(sealing, LIMIT, || (sealed_segments(broker.data_directory())? + 2 >= count).then_some(()))
        .unwrap();
    drop(client);

    for is_cold in [false, true] {
        broker.kill9().unwrap();
        if is_cold {
            residency::forget(broker.data_directory()).unwrap();
            assert!(residency::measure(broker.data_directory()).unwrap().part() < 0.05);
        }
        broker.start_again().unwrap();
        let read = bytes_read(broker.pid().unwrap());
        assert!(read < log_bytes / 4, "a restart reads {read} of {log_bytes} bytes: it grows with the log");
        let client = Client::builder([broker.bootstrap()]).connect().await.unwrap();
        let pass = workload::read(&client, TOPIC, PARTITION, None).await.unwrap();
        assert!(pass == expected(BATCHES * BATCH), "{} records, or others than were sent", pass.len());
    }
    let client = Client::builder([broker.bootstrap()]).connect().await.unwrap();
    produce(&client, BATCHES * BATCH, BATCH).await;
    let pass = workload::read(&client, TOPIC, PARTITION, Some(BATCHES * BATCH)).await.unwrap();
    assert_eq!(pass, expected((BATCHES + 1) * BATCH)[(BATCHES * BATCH) as usize..]);
    broker.check_log(&["torn", "tail"]).unwrap();
}

#[test]
fn an_idle_broker_stays_idle() {
    let broker = BrokerProcess::start(Options::default()).unwrap();
    // Settled: no processor time over a hundred looks. Debug builds are larger than what is promised, so the bound here
    // only catches what is out of all proportion.
    let (mut last, mut same) = (None, 0);
    let usage = wait::until("the broker settles", LIMIT, || {
        let usage = broker.usage().ok()?;
        same = if last == Some(usage.cpu) { same + 1 } else { 0 };
        last = Some(usage.cpu);
        (same >= 100).then_some(usage)
    })
    .unwrap();
    assert!(usage.anonymous_bytes < 64 << 20, "{usage:?}");
    assert!(usage.threads < 40, "{usage:?}");
}
