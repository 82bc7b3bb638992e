//! Partitions that do not move show no pause while others do: the gaps between their records, beside those of a run in which
//! nobody comes or goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use highwater_client::{Client, GroupEvent};
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::wait;
use highwater_tests::workload::{Steady, SteadyOptions, micros_histogram, setting};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::reader::group_is;

const TOPIC: &str = "gaps";
const GROUP: &str = "steady";
const PARTITIONS: u32 = 24;
const MEMBERS: usize = 4;
/// A rebalance that stops everybody takes longer than this: members hear of it by heartbeats, a second apart and more.
const GAP_MAX: Duration = Duration::from_millis(500);
/// Times without any move that are waited for.
const CALM_ATTEMPTS: u32 = 10;

/// When records came, and which partitions changed hands when, over all members.
#[derive(Debug, Default)]
struct Seen {
    records: Mutex<BTreeMap<u32, Vec<Instant>>>,
    moved: Mutex<Vec<(u32, Instant)>>,
}

/// A member in this process.
struct Member {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<()>>,
}

impl Member {
    async fn join(client: &Client, seen: &Arc<Seen>) -> Result<Self> {
        let mut consumer = client.group_consumer(GROUP).topics([TOPIC]).build().await.context("join")?;
        let (stop, mut stopped) = oneshot::channel();
        let seen = Arc::clone(seen);
        let task = tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = consumer.next_event() => event.context("the stream ended")??,
                    _ = &mut stopped => break,
                };
                let now = Instant::now();
                let moved: Vec<u32> = match &event {
                    GroupEvent::Record(record) => {
                        seen.records.lock().entry(record.partition.get()).or_default().push(now);
                        continue;
                    }
                    GroupEvent::Assigned(partitions) => {
                        partitions.iter().map(|assigned| assigned.partition.partition.get()).collect()
                    }
                    GroupEvent::Revoked(partitions) => {
                        partitions.iter().map(|partition| partition.partition.get()).collect()
                    }
                    other => anyhow::bail!("{other:?}"),
                };
                seen.moved.lock().extend(moved.into_iter().map(|partition| (partition, now)));
            }
            consumer.close().await.context("leave")
        });
        Ok(Self { stop, task })
    }

    async fn leave(self) -> Result<()> {
        let _ = self.stop.send(());
        self.task.await.context("a member panicked")?
    }
}

/// The gaps of a run.
struct Gaps {
    unmoved: Histogram<u64>,
    moved: Histogram<u64>,
}

impl Gaps {
    /// Between two moments. Partitions that changed hands in that time are counted apart.
    fn of(seen: &Seen, from: Instant, to: Instant) -> Result<Self> {
        let within = |moment: &Instant| *moment >= from && *moment <= to;
        let moved: BTreeSet<u32> =
            seen.moved.lock().iter().filter(|(_, at)| within(at)).map(|(partition, _)| *partition).collect();
        let mut gaps = Self { unmoved: micros_histogram()?, moved: micros_histogram()? };
        for (partition, times) in seen.records.lock().iter() {
            let times: Vec<_> = times.iter().filter(|time| within(time)).collect();
            let into = if moved.contains(partition) { &mut gaps.moved } else { &mut gaps.unmoved };
            for pair in times.windows(2) {
                into.saturating_record(u64::try_from(pair[1].duration_since(*pair[0]).as_micros())?);
            }
        }
        Ok(gaps)
    }

    fn print(&self, what: &str) {
        for (which, gaps) in [("that stay", &self.unmoved), ("that move", &self.moved)] {
            let at = |quantile| gaps.value_at_quantile(quantile) as f64 / 1e3;
            println!(
                "{what}: partitions {which}: {} gaps, ms: p50 {:.1} p99 {:.1} p99.9 {:.1} max {:.1}",
                gaps.len(),
                at(0.5),
                at(0.99),
                at(0.999),
                at(1.0)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_stay_do_not_pause() {
    let brokers = Brokers::start(Setup::default()).await.unwrap();
    run(&brokers, setting("HIGHWATER_ROUNDS", 3)).await.unwrap();
}

/// The gaps of so many seconds in which nobody comes or goes: members hear of the last hand-overs before that.
async fn calm(seen: &Arc<Seen>, seconds: u64) -> Result<Gaps> {
    for _attempt in 0..CALM_ATTEMPTS {
        let begun = Instant::now();
        wait::for_so_long(Duration::from_secs(seconds)).await;
        let gaps = Gaps::of(seen, begun, Instant::now())?;
        if gaps.moved.is_empty() {
            return Ok(gaps);
        }
    }
    anyhow::bail!("something moved in each of {CALM_ATTEMPTS} times {seconds} s in which nobody came or went")
}

async fn run(brokers: &Brokers, rounds: u64) -> Result<()> {
    brokers.create_topic(TOPIC, PARTITIONS).await?;
    let client = brokers.client().await?;
    let admin = client.admin();
    let seen = Arc::new(Seen::default());
    let mut members = Vec::new();
    for _ in 0..MEMBERS {
        members.push(Member::join(&client, &seen).await?);
    }
    let options = SteadyOptions {
        producers: 1,
        interval: Duration::from_millis(20),
        ..SteadyOptions::new(TOPIC, PARTITIONS)
    };
    let load = Steady::start(&brokers.bootstrap(), options).await?;
    load.served_since(&load.partitions(), Instant::now(), Duration::from_secs(30)).await?;
    let settled = |count: usize| {
        move |group: &highwater_client::GroupDetails| {
            group.members.len() == count
                && group
                    .members
                    .iter()
                    .all(|member| member.assigned == member.target && !member.assigned.is_empty())
        }
    };
    group_is(&admin, GROUP, "all have a share", settled(MEMBERS)).await?;
    let calm = calm(&seen, rounds).await?;
    calm.print("undisturbed");
    let mut worst = Duration::ZERO;
    let mut disturbed = Gaps { unmoved: micros_histogram()?, moved: micros_histogram()? };
    for _ in 0..rounds {
        for join in [true, false] {
            let from = Instant::now();
            if join {
                members.push(Member::join(&client, &seen).await?);
            } else {
                members.pop().context("a member to leave")?.leave().await?;
            }
            group_is(&admin, GROUP, "all is settled", settled(members.len())).await?;
            wait::for_so_long(Duration::from_millis(300)).await;
            let gaps = Gaps::of(&seen, from, Instant::now())?;
            ensure!(!gaps.moved.is_empty(), "something moves when somebody comes or goes");
            disturbed.unmoved.add(&gaps.unmoved)?;
            disturbed.moved.add(&gaps.moved)?;
            worst = worst.max(Duration::from_micros(gaps.unmoved.max()));
        }
    }
    disturbed.print("members joining and leaving");
    let calm_max = Duration::from_micros(calm.unmoved.max());
    ensure!(
        worst <= GAP_MAX + calm_max,
        "{worst:?} without a record, {calm_max:?} when nobody comes or goes"
    );
    for member in members {
        member.leave().await?;
    }
    load.stop().await?;
    brokers.check_no_errors(&[])
}
