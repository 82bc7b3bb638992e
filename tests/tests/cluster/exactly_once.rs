//! Producers whose connections are cut, whose acknowledgements are lost, and whose leaders are killed, all at random:
//! every record is in the log exactly once, in order.
//!
//! `HIGHWATER_CUTS=1000`, `HIGHWATER_KILLS` and `HIGHWATER_SEED` make it longer and different.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwater_client::wire::Connector;
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::lossy::Lossy;
use highwater_tests::sim::random::Random;
use highwater_tests::wait;
use highwater_tests::workload::{self, Steady, SteadyOptions, setting};

const TOPIC: &str = "exactly-once";
const PARTITIONS: u32 = 2;
const LIMIT: Duration = Duration::from_secs(60);

async fn run(brokers: &mut Brokers, cuts: u64, kills: u64, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let lossy = Arc::new(Lossy::new(seed, cuts));
    brokers.create_topic(TOPIC, PARTITIONS).await?;
    let client = brokers.client().await?;
    let mut options = SteadyOptions::new(TOPIC, PARTITIONS);
    options.connector = Arc::clone(&lossy) as Arc<dyn Connector>;
    options.interval = Duration::from_millis(2);
    let load = Steady::start(&brokers.bootstrap(), options).await?;
    for kill in 1..=kills {
        let view = brokers.in_sync(TOPIC).await?;
        wait::random_moment(&mut random, Duration::from_millis(300)).await;
        let victim = view.leader(u32::try_from(random.below(u64::from(PARTITIONS)))?)?;
        let killed = Instant::now();
        brokers.node(victim)?.kill9()?;
        load.served_since(&load.partitions(), killed, LIMIT)
            .await
            .with_context(|| format!("kill {kill}; failed sends: {:?}", load.failures()))?;
        brokers.node(victim)?.start_again()?;
    }
    let mut broken = 0;
    while broken < cuts {
        let seen = broken;
        broken = wait::until_async("another connection breaks", LIMIT, || async {
            Some(lossy.broken()).filter(|broken| *broken > seen)
        })
        .await
        .with_context(|| format!("{seen} connections were broken; failed: {:?}", load.failures()))?;
    }
    // Whatever was cut last is sent again.
    load.served_since(&load.partitions(), Instant::now(), LIMIT).await?;
    let failures = load.failures();
    let sent = load.stop().await?;
    let summary = workload::judge(&client, TOPIC, sent, BTreeMap::new()).await?;
    println!("{broken} connections broken, {kills} leaders killed: {summary:?}");
    let others = summary.unknown_there + summary.unknown_gone + summary.refused;
    ensure!(others == 0 && summary.acknowledged > 0, "{summary:?}; failed sends: {failures:?}");
    brokers.check_no_errors(&[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_record_is_there_once_whatever_is_cut_lost_and_killed() {
    let (cuts, kills) = (setting("HIGHWATER_CUTS", 60), setting("HIGHWATER_KILLS", 2));
    let seed = setting("HIGHWATER_SEED", 1);
    println!("seed {seed}, {cuts} cuts, {kills} kills");
    let mut brokers = Brokers::start(Setup::default()).await.unwrap();
    run(&mut brokers, cuts, kills, seed).await.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
}
