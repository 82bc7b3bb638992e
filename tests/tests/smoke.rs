//! The real program, once around: start, topic, produce, consume, health, stop, start again.
#![cfg(test)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use highwater_client::{Client, NewTopic, PartitionId, ProducerRecord, Stage};
use highwater_tests::cluster::{BrokerProcess, Options};
use highwater_tests::oracle::Record;
use highwater_tests::{wait, workload};

const RECORDS: u64 = 2_000;
const TOPIC: &str = "smoke";
const PARTITION: PartitionId = PartitionId(0);

/// Status line and body of a plain HTTP request.
fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// Every record from `first` on, one producer, acknowledged as flushed.
async fn produce(client: &Client, first: u64) {
    let producer = client.producer().build();
    let mut deliveries = Vec::new();
    for number in first..first + RECORDS {
        let value = workload::value_of(Record { producer: 1, number });
        deliveries.push(producer.send(ProducerRecord::new(TOPIC).value(&value)).await.unwrap());
    }
    for (number, delivery) in (first..).zip(deliveries) {
        let receipt =
            wait::within("an acknowledgement", Duration::from_secs(60), delivery).await.unwrap().unwrap();
        assert_eq!((receipt.partition, receipt.offset.0), (PARTITION, number), "order is kept");
        assert_eq!(receipt.stage, Stage::Flushed, "the default says flushed only of what is flushed");
    }
    producer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_keeps_what_it_acknowledged_over_a_graceful_stop() {
    let mut broker = BrokerProcess::start(Options::default()).unwrap();
    let client = Client::builder([broker.bootstrap()]).connect().await.unwrap();
    client.admin().create_topic(NewTopic::new(TOPIC).partitions(1)).await.unwrap();
    produce(&client, 0).await;

    let http = broker.addresses().http.unwrap();
    for path in ["/health/live", "/health/ready"] {
        let (status, _) = get(http, path);
        assert!(status.contains(" 200 "), "{path}: {status}");
    }
    let (status, metrics) = get(http, "/metrics");
    assert!(status.contains(" 200 ") && metrics.contains("highwater_"), "{status}\n{metrics}");

    let expected: Vec<_> = (0..2 * RECORDS).map(|number| (number, Record { producer: 1, number })).collect();
    let half = workload::read(&client, TOPIC, PARTITION, None).await.unwrap();
    assert_eq!(half, expected[..half.len()]);
    assert_eq!(half.len() as u64, RECORDS);
    drop(client);

    assert!(broker.terminate().unwrap().success(), "a graceful stop is no failure");
    broker.start_again().unwrap();
    let client = Client::builder([broker.bootstrap()]).connect().await.unwrap();
    produce(&client, RECORDS).await;
    assert_eq!(workload::read(&client, TOPIC, PARTITION, None).await.unwrap(), expected);
    let tail = workload::read(&client, TOPIC, PARTITION, Some(RECORDS + 7)).await.unwrap();
    assert_eq!(tail, expected[RECORDS as usize + 7..], "reading starts in the middle of a batch");

    assert!(broker.terminate().unwrap().success());
    broker.check_log(&[]).unwrap();
}

#[test]
fn two_brokers_do_not_share_a_data_directory() {
    let first = BrokerProcess::start(Options::default()).unwrap();
    let options = Options { data_directory: Some(first.data_directory().to_owned()), ..Options::default() };
    let error = BrokerProcess::start(options).unwrap_err().to_string();
    assert!(error.contains("ended with"), "{error}");
    assert!(
        error.contains(&first.data_directory().display().to_string()),
        "the error names the directory: {error}"
    );
    first.check_log(&[]).unwrap();
}

/// Shells start programs with few descriptors (a soft limit of 1,024 is common) that may take more.
#[tokio::test]
async fn a_broker_takes_the_descriptors_that_it_may() {
    const SOFT_LIMIT: &str = "ulimit -Sn 200 && exec \"$0\" \"$@\"";
    const PARTITIONS: u32 = 300;
    let launcher = ["sh", "-c", SOFT_LIMIT].map(str::to_owned).to_vec();
    let broker = BrokerProcess::start(Options { launcher, ..Options::default() }).unwrap();
    let client = Client::builder([broker.bootstrap()]).connect().await.unwrap();
    let topic = NewTopic::new(TOPIC).partitions(PARTITIONS).config("durability", "os");
    client.admin().create_topic(topic).await.unwrap();
    let producer = client.producer().build();
    // What was written with `os` stays open: no flush makes room.
    let mut deliveries = Vec::new();
    for partition in 0..PARTITIONS {
        let record = ProducerRecord::new(TOPIC).partition(PartitionId(partition)).value("value");
        deliveries.push(producer.send(record).await.unwrap());
    }
    for delivery in deliveries {
        let receipt =
            wait::within("an acknowledgement", Duration::from_secs(60), delivery).await.unwrap().unwrap();
        assert_eq!(receipt.offset.0, 0);
    }
    producer.close().await.unwrap();
    broker.check_log(&[]).unwrap();
}
