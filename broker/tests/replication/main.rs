//! Three brokers in one process: they replicate, fail over and heal.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not known as tests")]

mod support;

use support::{Cluster, LIMIT, numbers};

const TOPIC: &str = "orders";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_on_three_replicas_and_outlive_their_leader() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    cluster.create(&client, TOPIC, 1).await;
    let receipts = support::produce(&client, TOPIC, 0..200).await;
    assert!(receipts.iter().all(|receipt| receipt.replicas_counted >= 2), "acknowledged by a majority");

    for round in 1..4u64 {
        let leader = cluster.leader(&client, TOPIC).await;
        cluster.kill(leader);
        support::produce(&client, TOPIC, round * 200..(round + 1) * 200).await;
        assert_eq!(support::read(&client, TOPIC).await, numbers(0..(round + 1) * 200), "round {round}");
        cluster.restart(leader).await;
        cluster.wait_in_sync(&client, TOPIC).await;
    }
    tokio::time::timeout(LIMIT, cluster.shutdown()).await.unwrap();
}
