//! A disk that fills up: producers get a clear error that is worth a retry, consumers go on, a broker that dies
//! meanwhile comes back, and when space returns everything goes on; nothing acknowledged is lost.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use highwater_client::{Client, Error, ErrorKind, NewTopic, PartitionId, Producer, ProducerRecord};
use highwater_protocol::error_code::ErrorCode;
use highwater_tests::cluster::{BrokerProcess, Options};
use highwater_tests::oracle::{self, History, Outcome, Record};
use highwater_tests::small_disk::{Kind, SmallDisk};
use highwater_tests::{wait, workload};

const TOPIC: &str = "full";
const PARTITION: PartitionId = PartitionId(0);
const DISK_BYTES: u64 = 48 << 20;
const RESERVE_BYTES: u64 = 4 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// What a broker says about a full disk is expected here.
const EXPECTED: [&str; 5] = ["read-only", "disk", "space", "torn", "tail"];

/// A producer and what became of its records.
struct Writer {
    producer: Producer,
    next: u64,
    sent: BTreeMap<Record, Outcome>,
}

impl Writer {
    fn new(client: &Client) -> Self {
        // Short enough that a full disk is told soon, long enough for a slow machine.
        let producer = client.producer().delivery_timeout(Duration::from_secs(1)).build();
        Self { producer, next: 0, sent: BTreeMap::new() }
    }

    /// Sends `count` records and returns the first error, if there was one.
    async fn send(&mut self, count: u64) -> Option<Error> {
        let mut deliveries = Vec::new();
        let mut first_error = None;
        for _ in 0..count {
            let record = Record { producer: 1, number: self.next };
            self.next += 1;
            let value = workload::value_of(record);
            match self.producer.send(ProducerRecord::new(TOPIC).value(&value)).await {
                Ok(delivery) => deliveries.push((record, delivery)),
                Err(error) => {
                    self.sent.insert(record, Outcome::Refused);
                    first_error = first_error.or(Some(error));
                }
            }
        }
        for (record, delivery) in deliveries {
            let outcome = match wait::within("a record has an outcome", LIMIT, delivery).await.unwrap() {
                Ok(receipt) => Outcome::Acknowledged(receipt.offset.0),
                Err(error) => {
                    let outcome = workload::outcome_of(&error);
                    first_error = first_error.or(Some(error));
                    outcome
                }
            };
            self.sent.insert(record, outcome);
        }
        first_error
    }

    /// Sends until the disk is full, and returns what the producer is told then.
    async fn fill(&mut self) -> Error {
        for _ in 0..DISK_BYTES / 100_000 {
            if let Some(error) = self.send(2_000).await {
                return error;
            }
        }
        panic!("the disk takes more than it has");
    }

    /// Sends one record at a time until one is acknowledged.
    async fn recover(&mut self) {
        let start = std::time::Instant::now();
        while self.send(1).await.is_some() {
            assert!(start.elapsed() < LIMIT, "no record is taken although there is space");
        }
    }
}

fn acknowledged(sent: &BTreeMap<Record, Outcome>) -> u64 {
    sent.values().filter(|outcome| matches!(outcome, Outcome::Acknowledged(_))).count() as u64
}

async fn check(kind: Kind) {
    let disk = match SmallDisk::mount(kind, DISK_BYTES) {
        Ok(disk) => disk,
        Err(error) => {
            println!("SKIPPED: no {kind:?} of its own to fill: {error:#}");
            return;
        }
    };
    let rest = disk.path().join("rest");
    File::create(&rest).unwrap();
    let ballast = disk.take(DISK_BYTES / 2).unwrap();
    let options = Options {
        data_directory: Some(disk.path().join("data")),
        arguments: vec!["--disk-reserve".to_owned(), RESERVE_BYTES.to_string()],
        keeps_port: true,
        ..Options::default()
    };
    let mut broker = BrokerProcess::start(options).unwrap();
    let client = Client::builder([broker.bootstrap()]).connect().await.unwrap();
    client.admin().create_topic(NewTopic::new(TOPIC).config("segment_bytes", "4MiB")).await.unwrap();
    let mut writer = Writer::new(&client);

    let error = writer.fill().await;
    // The producer tries again by itself, within its deadline; then it says why it could not.
    assert!(matches!(error.kind(), ErrorKind::DiskFull | ErrorKind::TimedOut), "{error}");
    assert_eq!(error.code(), Some(ErrorCode::DiskFull), "{error}");
    assert!(error.is_retriable(), "{error}");
    let at_full = acknowledged(&writer.sent);
    assert!(at_full > 0);
    let left = disk.available().unwrap();
    assert!(left > RESERVE_BYTES / 2, "only {left} bytes of the reserve are left");

    // Consumers go on, also when another program takes what was held in reserve.
    let pass = workload::read(&client, TOPIC, PARTITION, None).await.unwrap();
    assert!(pass.len() as u64 >= at_full);
    take_all(&rest);
    assert!(writer.send(100).await.is_some(), "nothing is taken without space");
    let again = workload::read(&client, TOPIC, PARTITION, None).await.unwrap();
    assert_eq!(again[..pass.len()], pass);

    // A broker that dies without a byte of space left says at its start what it has no space for.
    assert!(broker.is_running().unwrap());
    broker.kill9().unwrap();
    if let Err(error) = broker.start_again() {
        let error = error.to_string();
        assert!(error.contains("No space left"), "{error}");
        assert!(error.contains(&disk.path().display().to_string()), "the error names the file: {error}");
        println!("{kind:?}: no start without a byte of space");
    }
    // With its reserve it comes back.
    File::options().write(true).open(&rest).unwrap().set_len(0).unwrap();
    broker.kill9().unwrap();
    broker.start_again().unwrap();
    let after = workload::read(&client, TOPIC, PARTITION, None).await.unwrap();
    assert_eq!(after[..pass.len()], pass);

    std::fs::remove_file(rest).unwrap();
    drop(ballast);
    writer.recover().await;
    assert!(writer.send(5_000).await.is_none(), "the broker is as it was");
    broker.kill9().unwrap();
    broker.start_again().unwrap();
    let last = workload::read(&client, TOPIC, PARTITION, None).await.unwrap();
    let history = History { sent: writer.sent, passes: vec![pass, again, after, last] };
    let summary =
        oracle::check(&history).unwrap_or_else(|found| panic!("{:?}", &found[..found.len().min(20)]));
    println!("{kind:?}: {at_full} acknowledged when full, in the end {summary:?}");
    broker.check_log(&EXPECTED).unwrap();
}

/// Takes every byte that is left, into a file that was made while there was space.
fn take_all(path: &Path) {
    let mut file = File::options().append(true).open(path).unwrap();
    for size in [64 << 10, 4 << 10, 512, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_memory_file_system_is_survived() {
    check(Kind::Tmpfs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_survived() {
    check(Kind::Ext4).await;
}
