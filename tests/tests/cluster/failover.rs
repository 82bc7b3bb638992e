//! `kill -9` of leaders in a cluster of three at random moments, under a steady load: nothing acknowledged is lost,
//! nothing is there twice or out of order, and the partitions are served again soon.
//!
//! Few kills by default; `HIGHWATER_KILLS=100` and `HIGHWATER_SEED` make it longer and different. The seed is printed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use highwater_client::PartitionId;
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::sim::random::Random;
use highwater_tests::wait;
use highwater_tests::workload::{self, Steady, SteadyOptions, Watcher, micros_histogram, setting};

const TOPIC: &str = "failover";
const PARTITIONS: u32 = 6;
/// How long partitions may be without service before the test is given up.
const SERVED_LIMIT: Duration = Duration::from_secs(30);
/// Kills from which on the percentiles are held against the goals, in a release build.
const KILLS_JUDGED: u64 = 50;

/// Times from a kill to the next acknowledgement of each partition that the victim led.
struct Times {
    leader: Histogram<u64>,
    leader_and_controller: Histogram<u64>,
}

impl Times {
    fn report(&self) {
        for (who, times) in [("leader", &self.leader), ("leader and controller", &self.leader_and_controller)]
        {
            let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e6;
            let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
            let count = times.len();
            println!("{who}: {count} partitions, s to service: p50 {p50:.3} p99 {p99:.3} max {max:.3}");
        }
    }

    fn judge(&self) -> Result<()> {
        let within = |times: &Histogram<u64>, quantile, most: Duration| {
            let found = Duration::from_micros(times.value_at_quantile(quantile));
            ensure!(found <= most, "at {quantile} it took {found:?}, more than {most:?}");
            Ok(())
        };
        within(&self.leader, 0.5, Duration::from_millis(600))?;
        within(&self.leader, 0.99, Duration::from_millis(1500))?;
        within(&self.leader_and_controller, 0.99, Duration::from_millis(2500))
    }
}

/// Kills the leader of a random partition, waits until what it led is served again, and brings it back.
async fn kill_once(
    brokers: &mut Brokers,
    load: &Steady,
    times: &mut Times,
    random: &mut Random,
) -> Result<()> {
    let view = brokers.in_sync(TOPIC).await?;
    wait::random_moment(random, Duration::from_millis(300)).await;
    let controller = view.controller.context("in sync without a controller")?;
    // Every other time the controller, if it leads anything.
    let wanted = random.percent(50).then_some(controller);
    let victim = match wanted.filter(|node| !view.led_by(*node).is_empty()) {
        Some(node) => node,
        None => view.leader(u32::try_from(random.below(u64::from(PARTITIONS)))?)?,
    };
    let led = view.led_by(victim);
    let killed = Instant::now();
    brokers.node(victim)?.kill9()?;
    let took = load.served_since(&led, killed, SERVED_LIMIT).await;
    let took =
        took.with_context(|| format!("broker {victim} was killed, the controller was {controller}"))?;
    let kind = if victim == controller { &mut times.leader_and_controller } else { &mut times.leader };
    for time in took {
        kind.saturating_record(u64::try_from(time.as_micros())?);
    }
    // The others too: nothing that the victim did not lead stops for long.
    load.served_since(&load.partitions(), killed, SERVED_LIMIT).await?;
    brokers.node(victim)?.start_again()?;
    Ok(())
}

async fn run(brokers: &mut Brokers, kills: u64, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let mut times = Times { leader: micros_histogram()?, leader_and_controller: micros_histogram()? };
    brokers.create_topic(TOPIC, PARTITIONS).await?;
    let client = brokers.client().await?;
    let load = Steady::start(&brokers.bootstrap(), SteadyOptions::new(TOPIC, PARTITIONS)).await?;
    let watcher = Watcher::start(&client, TOPIC, PartitionId(0)).await?;
    load.served_since(&load.partitions(), Instant::now(), SERVED_LIMIT).await?;
    for kill in 1..=kills {
        let killed = kill_once(brokers, &load, &mut times, &mut random).await;
        killed.with_context(|| format!("kill {kill}; failed sends: {:?}", load.failures()))?;
        if kill % 10 == 0 {
            println!("{kill} kills, {} acknowledged", load.acknowledged());
            times.report();
        }
    }
    brokers.in_sync(TOPIC).await?;
    let failures = load.failures();
    let sent = load.stop().await?;
    let passes = BTreeMap::from([(0, vec![watcher.stop().await?.pass])]);
    let summary = workload::judge(&client, TOPIC, sent, passes).await?;
    println!("{kills} kills: {summary:?}");
    times.report();
    ensure!(summary.acknowledged > 0, "{summary:?}");
    ensure!(summary.refused == 0 && failures.is_empty(), "sends failed: {failures:?}");
    brokers.check_no_errors(&[])?;
    if kills >= KILLS_JUDGED && !cfg!(debug_assertions) {
        times.judge()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_leaders_are_killed_and_service_goes_on_soon() {
    let (kills, seed) = (setting("HIGHWATER_KILLS", 3), setting("HIGHWATER_SEED", 1));
    println!("seed {seed}, {kills} kills");
    let mut brokers = Brokers::start(Setup::default()).await.unwrap();
    run(&mut brokers, kills, seed).await.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
}
