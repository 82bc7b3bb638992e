//! Three real brokers, once around: they find each other, replicate, answer the command line, stop in order, and come
//! back with everything.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwater_client::{ErrorKind, NewTopic, PartitionId, ProducerRecord, Stage};
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::oracle::{Outcome, Record};
use highwater_tests::wait;
use highwater_tests::workload;

const TOPIC: &str = "cluster";
const RECORDS: u64 = 500;
const PARTITION: PartitionId = PartitionId(0);
const LIMIT: Duration = Duration::from_secs(60);

/// Sends records one after another, numbered from `first`, and expects each to be flushed by a majority at least.
async fn produce(brokers: &Brokers, first: u64) -> Result<workload::Outcomes> {
    let client = brokers.client().await?;
    let producer = client.producer().build();
    let mut deliveries = Vec::new();
    for number in first..first + RECORDS {
        let record = Record { producer: 1, number };
        let value = workload::value_of(record);
        let sending = ProducerRecord::new(TOPIC).partition(PARTITION).value(&value);
        deliveries.push((record, producer.send(sending).await?));
    }
    let mut outcomes = workload::Outcomes::new();
    for (record, delivery) in deliveries {
        let receipt = wait::within("an acknowledgement", LIMIT, delivery).await??;
        ensure!(receipt.stage == Stage::Flushed, "{record:?}: {receipt:?}");
        ensure!(receipt.replicas_counted >= 2 && receipt.replicas_total == 3, "{record:?}: {receipt:?}");
        outcomes.insert(record, Outcome::Acknowledged(receipt.offset.0));
    }
    producer.close().await?;
    Ok(outcomes)
}

async fn around(brokers: &mut Brokers) -> Result<()> {
    brokers.create_topic(TOPIC, 2).await?;
    let mut sent = produce(brokers, 0).await?;
    let client = brokers.client().await?;
    let too_many = client.admin().create_topic(NewTopic::new("too-many").replication(4)).await;
    let error = too_many.err().context("four replicas on three brokers were accepted")?;
    ensure!(error.kind() == ErrorKind::InvalidArgument, "{error}");

    brokers.highwater_ok(&["verify", TOPIC])?;
    let described = brokers.highwater_ok(&["topic", "describe", TOPIC])?;
    ensure!(described.contains("in_sync"), "{described}");
    let status = brokers.highwater_ok(&["cluster", "status"])?;
    ensure!(status.contains("\"serves\": true") || status.contains("\"serves\":true"), "{status}");
    let leaders: Vec<_> =
        brokers.in_sync(TOPIC).await?.partitions.values().filter_map(|place| place.leader).collect();
    ensure!(leaders.first() != leaders.last(), "two partitions have two leaders: {leaders:?}");

    for node in brokers.nodes() {
        let asked = Instant::now();
        let status = brokers.node(node)?.terminate()?;
        ensure!(status.success(), "broker {node} ended with {status}");
        println!("broker {node} stopped in {:?}", asked.elapsed());
    }
    brokers.start_all()?;
    brokers.formed().await?;
    brokers.in_sync(TOPIC).await?;
    sent.extend(produce(brokers, RECORDS).await?);
    let client = brokers.client().await?;
    let summary = workload::judge(&client, TOPIC, BTreeMap::from([(0, sent)]), BTreeMap::new()).await?;
    ensure!(summary.acknowledged as u64 == 2 * RECORDS, "{summary:?}");
    brokers.check_no_errors(&[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_brokers_become_one_cluster_and_stay_it() {
    let mut brokers = Brokers::start(Setup::default()).await.unwrap();
    around(&mut brokers).await.unwrap_or_else(|error| panic!("{error:?}"));
}
