//! Old segments that are not in memory are read whole, while others go on. How little the others notice is measured by
//! `cargo run --release -p highwater-benches --bin cold_read`; here nothing depends on the machine's speed.
#![cfg(test)]

use std::time::Duration;

use highwater_client::{Client, NewTopic, PartitionId, Producer, ProducerRecord};
use highwater_tests::cluster::{BrokerProcess, Options};
use highwater_tests::oracle::Record;
use highwater_tests::{residency, wait, workload};

const PARTITION: PartitionId = PartitionId(0);
const RECORDS: u64 = 200_000;
const LIMIT: Duration = Duration::from_secs(60);

async fn produce(producer: &Producer, topic: &str, records: std::ops::Range<u64>) {
    let values: Vec<_> =
        records.clone().map(|number| workload::value_of(Record { producer: 1, number })).collect();
    let sending = values.iter().map(|value| ProducerRecord::new(topic).value(value));
    let delivery = producer.send_batch(topic, Some(PARTITION), sending).await.unwrap();
    let receipt = wait::within("a batch is acknowledged", LIMIT, delivery).await.unwrap();
    assert_eq!(receipt.acknowledged_count() as u64, records.end - records.start);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_out_of_memory_are_read_while_others_go_on() {
    // On a disk: a temporary directory may be in memory altogether.
    let parent = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let data = tempfile::tempdir_in(parent).unwrap();
    let options = Options { data_directory: Some(data.path().join("data")), ..Options::default() };
    let mut broker = BrokerProcess::start(options).unwrap();
    let client = Client::builder([broker.bootstrap()]).connect().await.unwrap();
    for topic in ["old", "live"] {
        let topic = NewTopic::new(topic).config("segment_bytes", "4MiB").config("durability", "os");
        client.admin().create_topic(topic).await.unwrap();
    }
    let producer = client.producer().build();
    for first in (0..RECORDS).step_by(10_000) {
        produce(&producer, "old", first..first + 10_000).await;
    }
    producer.close().await.unwrap();
    drop(client);
    assert!(broker.terminate().unwrap().success());
    residency::forget(broker.data_directory()).unwrap();
    broker.start_again().unwrap();
    let before = residency::measure(broker.data_directory()).unwrap();
    assert!(before.part() < 0.5, "a graceful start reads little of the log: {before:?}");

    let client = Client::builder([broker.bootstrap()]).connect().await.unwrap();
    let reader = client.clone();
    let reading = tokio::spawn(async move { workload::read(&reader, "old", PARTITION, None).await });
    let producer = client.producer().build();
    let mut round_trips = 0;
    while !reading.is_finished() || round_trips < 10 {
        produce(&producer, "live", round_trips..round_trips + 1).await;
        round_trips += 1;
    }
    let pass = reading.await.unwrap().unwrap();
    assert_eq!(pass.len() as u64, RECORDS);
    assert!(pass.iter().all(|(offset, record)| *offset == record.number), "in order");
    let after = residency::measure(broker.data_directory()).unwrap();
    assert!(after.part() > before.part(), "the log was read from the disk: {before:?}, {after:?}");
    broker.check_log(&[]).unwrap();
}
