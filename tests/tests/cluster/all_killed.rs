//! All three brokers of a cluster killed at once under load, and started again: nothing acknowledged is lost, and the
//! cluster serves again by itself.
//!
//! `HIGHWATER_KILLS=30` and `HIGHWATER_SEED` make it longer and different.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwater_client::PartitionId;
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::sim::random::Random;
use highwater_tests::wait;
use highwater_tests::workload::{self, Steady, SteadyOptions, Watcher, setting};

const TOPIC: &str = "all-killed";
const PARTITIONS: u32 = 4;
const SERVED_LIMIT: Duration = Duration::from_secs(45);

async fn run(brokers: &mut Brokers, kills: u64, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    brokers.create_topic(TOPIC, PARTITIONS).await?;
    let client = brokers.client().await?;
    let load = Steady::start(&brokers.bootstrap(), SteadyOptions::new(TOPIC, PARTITIONS)).await?;
    let watcher = Watcher::start(&client, TOPIC, PartitionId(0)).await?;
    let mut moment = Instant::now();
    for kill in 1..=kills {
        load.served_since(&load.partitions(), moment, SERVED_LIMIT)
            .await
            .with_context(|| format!("before kill {kill}; failed sends: {:?}", load.failures()))?;
        // Sometimes with all replicas in sync, sometimes while they catch up.
        if random.percent(50) {
            brokers.in_sync(TOPIC).await?;
        }
        wait::random_moment(&mut random, Duration::from_millis(200)).await;
        brokers.kill_all()?;
        moment = Instant::now();
        brokers.start_all()?;
    }
    let times = load.served_since(&load.partitions(), moment, SERVED_LIMIT).await?;
    println!("served again {times:?} after the last kill");
    brokers.in_sync(TOPIC).await?;
    let failures = load.failures();
    let sent = load.stop().await?;
    let passes = BTreeMap::from([(0, vec![watcher.stop().await?.pass])]);
    let summary = workload::judge(&client, TOPIC, sent, passes).await?;
    println!("{kills} times all killed: {summary:?}");
    ensure!(summary.acknowledged > 0, "{summary:?}");
    ensure!(summary.refused == 0 && failures.is_empty(), "sends failed: {failures:?}");
    brokers.check_no_errors(&[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_all_brokers_are_killed_at_once() {
    let (kills, seed) = (setting("HIGHWATER_KILLS", 2), setting("HIGHWATER_SEED", 1));
    println!("seed {seed}, {kills} kills");
    let mut brokers = Brokers::start(Setup::default()).await.unwrap();
    run(&mut brokers, kills, seed).await.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
}
