//! Three brokers in one process: they replicate, fail over and heal.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not known as tests")]

mod support;

use std::time::Duration;

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

/// Damages a sealed segment of one replica while it is running; it is found and fetched again, and nothing wrong is served.
async fn damage_heals(on_leader: bool) {
    let mut cluster = Cluster::unstarted(3);
    cluster.change = |config| config.scrub_interval = Duration::from_millis(200);
    cluster.launch_all().await;
    let client = cluster.client().await;
    cluster.create(&client, TOPIC, 1).await;
    let text = "x".repeat(40 << 10);
    let mut values: Vec<String> = (0..60).map(|number| format!("{number} {text}")).collect();
    // The first segment ends early, with as much room reserved behind its last batch: what comes third does not fit.
    values[2] = "y".repeat(1000 << 10);
    for some in [&values[..1], &values[1..2], &values[2..]] {
        support::produce_values(&client, TOPIC, some).await;
    }
    cluster.wait_equal(&client, TOPIC).await;
    let leader = cluster.leader(&client, TOPIC).await;
    let victim = if on_leader { leader } else { (1..=3).find(|id| *id != leader).unwrap() };
    cluster.damage_sealed_segment(victim);
    cluster.wait_scrubbed_and_healed(victim).await;
    assert_eq!(support::read(&client, TOPIC).await, values);
    cluster.wait_in_sync(&client, TOPIC).await;
    cluster.wait_equal(&client, TOPIC).await;
    tokio::time::timeout(LIMIT, cluster.shutdown()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_follower_is_found_and_filled_from_its_leader() {
    damage_heals(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_leader_hands_over_and_is_filled_from_the_others() {
    damage_heals(true).await;
}
