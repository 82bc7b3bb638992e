//! A flush that fails once under the whole broker: the partition stops, nothing is acknowledged that is not on the disk,
//! the flush is not simply tried again, and after its log was verified past the page cache the partition goes on.
#![cfg(test)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use highwater_broker::Broker;
use highwater_broker::config::{Bytes, Config, Settings};
use highwater_broker::env::Env;
use highwater_client::{Client, NewTopic, PartitionId, Producer, ProducerRecord};
use highwater_tests::failing_flush::FailingFlush;
use highwater_tests::oracle::{self, History, Outcome, Record};
use highwater_tests::{wait, workload};

const TOPIC: &str = "ledger";
const PARTITION: PartitionId = PartitionId(0);
const LIMIT: Duration = Duration::from_secs(60);

async fn start(directory: &Path, files: &Arc<FailingFlush>) -> (Broker, Client) {
    let settings = Settings {
        listen: Some("127.0.0.1:0".to_owned()),
        http: Some("off".to_owned()),
        data_dir: Some(directory.to_owned()),
        disk_reserve: Some(Bytes(1 << 20)),
        ..Settings::default()
    };
    let config = Config::load(settings, None).unwrap();
    let env = Env { file_system: Arc::clone(files) as _, ..Env::real() };
    let broker = Broker::start(config, env).await.unwrap();
    let client = Client::builder([broker.address().to_string()]).connect().await.unwrap();
    (broker, client)
}

/// Sends one record and notes what is said about it.
async fn send(producer: &Producer, number: u64, sent: &mut BTreeMap<Record, Outcome>) -> Outcome {
    let record = Record { producer: 1, number };
    let value = workload::value_of(record);
    let outcome = match producer.send(ProducerRecord::new(TOPIC).value(&value)).await {
        Ok(delivery) => match wait::within("a record has an outcome", LIMIT, delivery).await.unwrap() {
            Ok(receipt) => Outcome::Acknowledged(receipt.offset.0),
            Err(error) => workload::outcome_of(&error),
        },
        Err(_) => Outcome::Refused,
    };
    sent.insert(record, outcome);
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_that_fails_once_stops_the_partition_and_nothing_is_acknowledged_wrongly() {
    // On a disk: a file system in memory cannot be read past the page cache.
    let parent = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let directory = tempfile::tempdir_in(parent).unwrap();
    let files = Arc::new(FailingFlush::default());
    let (broker, client) = start(directory.path(), &files).await;
    client.admin().create_topic(NewTopic::new(TOPIC).config("durability", "fsync")).await.unwrap();
    // What is sent again after the log was verified is acknowledged rightly; here the first attempt is looked at.
    let producer = client.producer().idempotent(false).delivery_timeout(Duration::from_secs(5)).build();
    let mut sent = BTreeMap::new();
    for number in 0..100 {
        let outcome = send(&producer, number, &mut sent).await;
        assert_eq!(outcome, Outcome::Acknowledged(number));
    }

    files.fail(1);
    let outcome = send(&producer, 100, &mut sent).await;
    assert_eq!(files.failed(), 1, "the flush of this record failed");
    assert!(
        !matches!(outcome, Outcome::Acknowledged(_)),
        "{outcome:?} of a record that no flush has covered"
    );

    // Once the log was verified past the page cache, the partition takes records again.
    let start_of_wait = std::time::Instant::now();
    let mut number = 101;
    while !matches!(send(&producer, number, &mut sent).await, Outcome::Acknowledged(_)) {
        assert!(start_of_wait.elapsed() < LIMIT, "the partition does not come back");
        number += 1;
    }
    for more in number + 1..number + 100 {
        let outcome = send(&producer, more, &mut sent).await;
        assert!(matches!(outcome, Outcome::Acknowledged(_)), "{outcome:?}");
    }
    let first = workload::read(&client, TOPIC, PARTITION, None).await.unwrap();
    drop((producer, client));
    broker.shutdown().await.unwrap();

    let (broker, client) = start(directory.path(), &files).await;
    let last = workload::read(&client, TOPIC, PARTITION, None).await.unwrap();
    drop(client);
    broker.shutdown().await.unwrap();
    let history = History { sent, passes: vec![first, last] };
    let summary = oracle::check(&history).unwrap_or_else(|found| panic!("{found:?}"));
    assert!(summary.acknowledged >= 200, "{summary:?}");
}
