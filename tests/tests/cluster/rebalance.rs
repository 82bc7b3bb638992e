//! A fourth broker joins a cluster of three under load, gets its share, and leaves again: no more moves than must, the
//! bounds hold, nothing is lost; moving can be cancelled, and goes on after kills.
//!
//! `HIGHWATER_PARTITIONS=300` makes it larger.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwater_protocol::messages::DescribeClusterReply;
use highwater_tests::brokers::{Brokers, Setup, View};
use highwater_tests::wait;
use highwater_tests::workload::{self, Load, LoadOptions, Steady, SteadyOptions, setting};

const TOPIC: &str = "moving";
const SERVED_LIMIT: Duration = Duration::from_secs(30);
const MOVED_LIMIT: Duration = Duration::from_secs(300);
/// Partitions from which on latencies are held against the goal, in a release build.
const PARTITIONS_JUDGED: u32 = 300;
/// Records to move where moving must take a while, and speeds at which it takes seconds, long, and no time.
const RECORDS_TO_MOVE: u64 = 30_000;
const STEADY: &str = "500000";
const SLOW: &str = "20000";
const FAST: &str = "100000000";
/// Records of each partition that are sent before anything moves, for a percentile that two runs agree about.
const ROUNDS_BEFORE: u64 = 10;

/// The bound on the share of one broker: ⌈1.1 × mean⌉.
fn bound(total: usize, brokers: usize) -> usize {
    (11 * total).div_ceil(10 * brokers)
}

/// How many replicas are where there was none before.
fn moved(before: &View, after: &View) -> usize {
    let new_in = |(partition, place): (&u32, &highwater_tests::brokers::Place)| {
        let old = before.partitions.get(partition).map(|place| place.replicas.as_slice()).unwrap_or_default();
        place.replicas.iter().filter(|node| !old.contains(node)).count()
    };
    after.partitions.iter().map(new_in).sum()
}

/// How many replicas and leaderships a broker has.
fn share(view: &View, node: u32) -> (usize, usize) {
    let replicas = view.partitions.values().filter(|place| place.replicas.contains(&node)).count();
    (replicas, view.led_by(node).len())
}

/// Whether nothing moves and the shares of all are within the bounds.
fn is_balanced(view: &View, status: &DescribeClusterReply, nodes: &[u32]) -> bool {
    let partitions = view.partitions.len();
    let replicas = view.partitions.values().map(|place| place.replicas.len()).sum();
    let (replicas_most, leaders_most) = (bound(replicas, nodes.len()), bound(partitions, nodes.len()));
    let within = |node: &u32| {
        let (replicas, leaders) = share(view, *node);
        replicas <= replicas_most && leaders <= leaders_most
    };
    status.moves.is_empty() && view.is_in_sync() && nodes.iter().all(within)
}

/// Waits until the cluster is balanced over these brokers; returns the newest view.
async fn balanced(brokers: &Brokers, nodes: &[u32]) -> Result<View> {
    let what = format!("nothing moves and the shares of {nodes:?} are within the bounds");
    let found = wait::until_async(&what, MOVED_LIMIT, || async {
        let (status, view) = (brokers.status().await.ok()?, brokers.newest(TOPIC).await.ok()?);
        is_balanced(&view, &status, nodes).then_some(view)
    });
    match found.await {
        Ok(view) => Ok(view),
        Err(error) => {
            let (status, view) = (brokers.status().await?, brokers.newest(TOPIC).await?);
            let shares: Vec<_> = nodes.iter().map(|node| (*node, share(&view, *node))).collect();
            let moves = status.moves.len();
            let first = status.moves.into_iter().next();
            let text = format!("{moves} moves, such as {first:?}; replicas and leaders: {shares:?}");
            Err(error.context(text))
        }
    }
}

/// The 99th percentile of the time to an acknowledgement, of what was sent between two moments, and after the second one
/// until there are at least so many: a few replicas may move between two records of a producer.
async fn p99(load: &Steady, from: Instant, to: Instant, least: u64) -> Result<Duration> {
    // Whoever still waits is the one to be counted.
    load.served_since(&load.partitions(), to, SERVED_LIMIT).await?;
    let mut latencies = load.latencies(from, to)?;
    if latencies.len() < least {
        let what = "enough records for a percentile are acknowledged";
        let enough = wait::until_async(what, SERVED_LIMIT, || async {
            let latencies = load.latencies(from, Instant::now()).ok()?;
            (latencies.len() >= least).then_some(latencies)
        });
        latencies = enough.await?;
    }
    Ok(Duration::from_micros(latencies.value_at_quantile(0.99)))
}

async fn join_and_leave(brokers: &mut Brokers, partitions: u32) -> Result<()> {
    brokers.create_topic(TOPIC, partitions).await?;
    let client = brokers.client().await?;
    let mut options = SteadyOptions::new(TOPIC, partitions);
    (options.producers, options.interval) = (1, Duration::from_millis(300));
    let load = Steady::start(&brokers.bootstrap(), options).await?;
    load.served_since(&load.partitions(), Instant::now(), SERVED_LIMIT).await?;
    let round = u64::from(partitions);
    let p99_before = p99(&load, Instant::now(), Instant::now(), ROUNDS_BEFORE * round).await?;
    let before = brokers.in_sync(TOPIC).await?;

    let joining = Instant::now();
    brokers.join(4).await?;
    let after = balanced(brokers, &[1, 2, 3, 4]).await?;
    let p99_during = p99(&load, joining, Instant::now(), round).await?;
    let (count, ideal) = (moved(&before, &after), 3 * partitions as usize / 4);
    println!("{count} of {} replicas moved in {:.1?}, ideal {ideal}", 3 * partitions, joining.elapsed());
    println!("p99 of producers: {p99_before:.1?} before, {p99_during:.1?} during");
    ensure!(5 * count <= 6 * ideal, "{count} replicas moved, the ideal share is {ideal}");
    if partitions >= PARTITIONS_JUDGED && !cfg!(debug_assertions) {
        ensure!(p99_during <= 3 * p99_before, "{p99_during:?} during, {p99_before:?} before");
    }

    let (held, _) = share(&after, 4);
    let draining = Instant::now();
    let plan = brokers.highwater_ok(&["cluster", "drain", "4", "--no-wait"])?;
    let drained = balanced(brokers, &[1, 2, 3]).await.with_context(|| format!("the plan: {plan}"))?;
    let taken = draining.elapsed();
    let p99_drained = p99(&load, draining, Instant::now(), round).await?;
    let count = moved(&after, &drained);
    println!("drained of {held} replicas in {taken:.1?}, {count} moved, p99 of producers {p99_drained:.1?}");
    if partitions >= PARTITIONS_JUDGED && !cfg!(debug_assertions) {
        ensure!(p99_drained <= 3 * p99_before, "{p99_drained:?} while drained, {p99_before:?} before");
    }
    ensure!(share(&drained, 4) == (0, 0), "broker 4 still holds {:?}", share(&drained, 4));
    ensure!(5 * count <= 6 * held, "{count} replicas moved to drain {held}");
    brokers.leave(4)?;
    brokers.highwater_ok(&["cluster", "remove", "4"])?;
    brokers.formed().await?;

    load.served_since(&load.partitions(), Instant::now(), SERVED_LIMIT).await?;
    let failures = load.failures();
    let summary = workload::judge(&client, TOPIC, load.stop().await?, BTreeMap::new()).await?;
    println!("{summary:?}");
    let failed = summary.refused + summary.unknown_there + summary.unknown_gone;
    ensure!(failed == 0 && summary.acknowledged > 0, "{summary:?}: {failures:?}");
    brokers.check_no_errors(&[])
}

/// Waits until some replicas have moved while others are being copied.
async fn half_way(brokers: &Brokers, before: &View) -> Result<()> {
    let found = wait::until_async("some replicas have moved and others have not", SERVED_LIMIT, || async {
        let (view, status) = (brokers.newest(TOPIC).await.ok()?, brokers.status().await.ok()?);
        // A replica that is being copied is listed already; what has moved has no change under way any more.
        let under_way: Vec<_> = status.moves.iter().map(|change| change.partition).collect();
        let done = view
            .partitions
            .iter()
            .any(|(partition, place)| place.replicas.contains(&4) && !under_way.contains(partition));
        (moved(before, &view) > 0 && done && !under_way.is_empty()).then_some(())
    });
    found.await
}

/// Waits until a replica is being copied.
async fn copying(brokers: &Brokers) -> Result<()> {
    wait::until_async("a replica is being copied", SERVED_LIMIT, || async {
        let status = brokers.status().await.ok()?;
        status.moves.iter().any(|change| change.state == "copying").then_some(())
    })
    .await
}

async fn cancel_and_kill(brokers: &mut Brokers) -> Result<()> {
    let partitions = 12;
    brokers.create_topic(TOPIC, partitions).await?;
    let client = brokers.client().await?;
    let topic = TOPIC.to_owned();
    let first = brokers.bootstrap().into_iter().next().context("no broker")?;
    let options = LoadOptions { topic, partitions, producers: 0..1, in_flight: 256 };
    let load = Load::start(&first, options).await?;
    wait::until_async("there is something to move", MOVED_LIMIT, || async {
        (load.acknowledged() >= RECORDS_TO_MOVE).then_some(())
    })
    .await?;
    let sent = load.stop().await?;
    let before = brokers.in_sync(TOPIC).await?;

    brokers.highwater_ok(&["cluster", "throttle", STEADY])?;
    brokers.join(4).await?;
    half_way(brokers, &before).await.context("after a broker has joined")?;
    brokers.highwater_ok(&["cluster", "throttle", SLOW])?;
    brokers.highwater_ok(&["cluster", "rebalance", "--cancel"])?;
    let cancelled =
        wait::until_async("nothing moves after the moves were cancelled", SERVED_LIMIT, || async {
            let (status, view) = (brokers.status().await.ok()?, brokers.newest(TOPIC).await.ok()?);
            (status.moves.is_empty() && view.is_in_sync()).then_some(view)
        })
        .await?;
    let (count, ideal) = (moved(&before, &cancelled), 3 * partitions as usize / 4);
    println!("{count} of {ideal} replicas had moved when the moves were cancelled");
    ensure!(count > 0, "what had moved when the rest was cancelled stays where it is");
    ensure!(count < ideal, "nothing was left to cancel: {count} replicas had moved");

    let plan = brokers.highwater_ok(&["cluster", "rebalance", "--dry-run"])?;
    ensure!(brokers.status().await?.moves.is_empty(), "a dry run moves nothing: {plan}");
    brokers.highwater_ok(&["cluster", "rebalance", "--no-wait"])?;
    copying(brokers).await.context("after a rebalance was asked for")?;
    brokers.node(4)?.kill9()?;
    let controller = brokers.controller_besides(Some(4)).await?;
    brokers.node(controller)?.kill9()?;
    brokers.start_all()?;
    brokers.formed().await?;
    copying(brokers).await.context("after the new broker and the controller were killed")?;
    brokers.highwater_ok(&["cluster", "throttle", FAST])?;
    balanced(brokers, &[1, 2, 3, 4]).await.context("moves go on after kills")?;
    brokers.in_sync(TOPIC).await?;
    brokers.highwater_ok(&["verify", TOPIC])?;
    let summary = workload::judge(&client, TOPIC, sent, BTreeMap::new()).await?;
    println!("{summary:?}");
    brokers.check_no_errors(&[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_joins_gets_its_share_and_leaves_without_loss() {
    let partitions = u32::try_from(setting("HIGHWATER_PARTITIONS", 40)).unwrap();
    let mut brokers = Brokers::start(Setup::default()).await.unwrap();
    join_and_leave(&mut brokers, partitions).await.unwrap_or_else(|error| panic!("{error:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_are_cancelled_and_go_on_after_kills() {
    let mut brokers = Brokers::start(Setup::default()).await.unwrap();
    cancel_and_kill(&mut brokers).await.unwrap_or_else(|error| panic!("{error:?}"));
}
