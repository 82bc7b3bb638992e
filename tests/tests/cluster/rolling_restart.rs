//! Each of three brokers stopped in order and started again, one after the other, under load: no send fails, and the
//! pauses that producers and consumers see are printed.
//!
//! `HIGHWATER_ROUNDS` repeats it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwater_client::PartitionId;
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::workload::{self, Steady, SteadyOptions, Watcher, setting};

const TOPIC: &str = "rolling";
const PARTITIONS: u32 = 6;
const SERVED_LIMIT: Duration = Duration::from_secs(30);

async fn run(brokers: &mut Brokers, rounds: u64) -> Result<()> {
    brokers.create_topic(TOPIC, PARTITIONS).await?;
    let client = brokers.client().await?;
    let load = Steady::start(&brokers.bootstrap(), SteadyOptions::new(TOPIC, PARTITIONS)).await?;
    let watcher = Watcher::start(&client, TOPIC, PartitionId(0)).await?;
    let start = Instant::now();
    load.served_since(&load.partitions(), start, SERVED_LIMIT).await?;
    let mut restarts = Vec::new();
    let nodes: Vec<_> = (1..=rounds).flat_map(|_| brokers.nodes()).collect();
    for node in nodes {
        brokers.in_sync(TOPIC).await?;
        let from = Instant::now();
        let status = brokers.node(node)?.terminate()?;
        ensure!(status.success(), "broker {node} ended with {status}");
        brokers.node(node)?.start_again()?;
        load.served_since(&load.partitions(), Instant::now(), SERVED_LIMIT)
            .await
            .with_context(|| format!("broker {node}; failed sends: {:?}", load.failures()))?;
        restarts.push((node, from, Instant::now()));
    }
    brokers.in_sync(TOPIC).await?;
    let pauses: Vec<_> =
        restarts.iter().map(|(node, from, to)| (*node, load.longest_pause(*from, *to))).collect();
    let latencies = load.latencies(start, Instant::now())?;
    let failures = load.failures();
    let sent = load.stop().await?;
    let seen = watcher.stop().await?;
    for ((node, from, to), (_, pause)) in restarts.iter().zip(&pauses) {
        let consumer = seen.longest_pause(*from, *to);
        println!("broker {node}: the longest pause of producers was {pause:?}, of the consumer {consumer:?}");
    }
    let at = |quantile| Duration::from_micros(latencies.value_at_quantile(quantile));
    println!("send to acknowledgement: p50 {:?} p99 {:?} max {:?}", at(0.5), at(0.99), at(1.0));
    let summary = workload::judge(&client, TOPIC, sent, BTreeMap::from([(0, vec![seen.pass])])).await?;
    println!("{summary:?}");
    let failed = summary.refused + summary.unknown_there + summary.unknown_gone;
    ensure!(failed == 0 && summary.acknowledged > 0, "{summary:?}: {failures:?}");
    brokers.check_no_errors(&[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_send() {
    let mut brokers = Brokers::start(Setup::default()).await.unwrap();
    run(&mut brokers, setting("HIGHWATER_ROUNDS", 1)).await.unwrap_or_else(|error| panic!("{error:?}"));
}
