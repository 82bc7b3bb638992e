//! A thousand members in one group and a thousand groups on one broker, each member on a connection of its own: what that
//! costs in memory, and in processor time while nothing happens but heartbeats.
//!
//! Fewer by default; `HIGHWATER_MEMBERS=1000 HIGHWATER_SECONDS=30` is the long form.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use highwater_client::NewTopic;
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::members::{Coordinators, Member};
use highwater_tests::resources::Usage;
use highwater_tests::wait;
use highwater_tests::workload::setting;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

const WIDE: &str = "wide";
const NARROW: &str = "narrow";
const SESSION: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(120);
/// Members that join at a time.
const AT_ONCE: usize = 64;
/// Heartbeats of all members together may take this much of one core.
const CORE_PERCENT_MAX: f64 = 2.0;
/// Members from which on this is held against the goal, in a release build.
const MEMBERS_JUDGED: u64 = 1000;

/// What all members share.
#[derive(Debug)]
struct Crowd {
    bootstrap: Vec<String>,
    joining: Semaphore,
    settled: AtomicU64,
    heartbeats: AtomicU64,
    late: AtomicU64,
    /// Nobody says anything while this is set.
    silent: AtomicBool,
    stop: AtomicBool,
}

/// Joins, and is heard of whenever the coordinator wants it.
async fn live(crowd: Arc<Crowd>, group: String, name: String, topic: &'static str) -> Result<Member> {
    let coordinators = Coordinators::new(crowd.bootstrap.clone());
    let mut member = Member::new(&coordinators, &group, &name, &[topic], SESSION);
    let mut settled = false;
    while !crowd.stop.load(Ordering::Relaxed) {
        if !crowd.silent.load(Ordering::Relaxed) {
            let permit = if settled { None } else { Some(crowd.joining.acquire().await?) };
            let asked = Instant::now();
            let beat = member.heartbeat(LIMIT).await;
            beat.map_err(|refused| anyhow!("{name} of {group} is refused: {refused:?}"))?;
            drop(permit);
            crowd.heartbeats.fetch_add(1, Ordering::Relaxed);
            if asked.elapsed() > Duration::from_secs(1) {
                crowd.late.fetch_add(1, Ordering::Relaxed);
            }
        }
        if !settled && member.owned.len() == 1 {
            settled = true;
            crowd.settled.fetch_add(1, Ordering::Relaxed);
        }
        wait::for_so_long(member.interval.max(Duration::from_millis(10))).await;
    }
    Ok(member)
}

/// Processor time of the broker over a while, in percent of a core, and heartbeats a second.
async fn measure(brokers: &mut Brokers, crowd: &Crowd, time: Duration) -> Result<(f64, f64, Usage)> {
    let (before, beats) = (brokers.node(1)?.usage()?, crowd.heartbeats.load(Ordering::Relaxed));
    let start = Instant::now();
    wait::for_so_long(time).await;
    let (after, passed) = (brokers.node(1)?.usage()?, start.elapsed().as_secs_f64());
    let percent = (after.cpu - before.cpu).as_secs_f64() / passed * 100.0;
    let rate = (crowd.heartbeats.load(Ordering::Relaxed) - beats) as f64 / passed;
    Ok((percent, rate, after))
}

async fn settled(
    crowd: &Crowd,
    members: &mut FuturesUnordered<JoinHandle<Result<Member>>>,
    count: u64,
) -> Result<Duration> {
    let start = Instant::now();
    let waiting = wait::until_async("every member owns its partition", LIMIT, || async {
        (crowd.settled.load(Ordering::Relaxed) >= count).then_some(())
    });
    tokio::select! {
        done = waiting => done?,
        Some(ended) = members.next() => {
            ended??;
        }
    }
    Ok(start.elapsed())
}

async fn run(brokers: &mut Brokers, count: u64, time: Duration) -> Result<()> {
    let partitions = u32::try_from(count)?;
    let os = |name: &str| NewTopic::new(name).config("durability", "os");
    brokers.create(WIDE, os(WIDE).partitions(partitions)).await?;
    brokers.create(NARROW, os(NARROW).partitions(1)).await?;
    let crowd = Arc::new(Crowd {
        bootstrap: brokers.bootstrap(),
        joining: Semaphore::new(AT_ONCE),
        settled: AtomicU64::new(0),
        heartbeats: AtomicU64::new(0),
        late: AtomicU64::new(0),
        silent: AtomicBool::new(false),
        stop: AtomicBool::new(false),
    });
    let coordinators = Coordinators::new(brokers.bootstrap());
    coordinators.find("group").await.map_err(|refused| anyhow!("{refused:?}"))?;
    let empty = brokers.node(1)?.usage()?;
    let mut members = FuturesUnordered::new();
    let join = |members: &FuturesUnordered<_>, group: String, name: String, topic| {
        members.push(tokio::spawn(live(Arc::clone(&crowd), group, name, topic)));
    };
    for number in 0..count {
        join(&members, "group".to_owned(), format!("m{number}"), WIDE);
    }
    let joined = settled(&crowd, &mut members, count).await?;
    let one_group = brokers.node(1)?.usage()?;
    for number in 0..count {
        join(&members, format!("group-{number}"), "m".to_owned(), NARROW);
    }
    let grouped = settled(&crowd, &mut members, 2 * count).await?;
    // Intervals that were short during the hand-over are over before anything is measured.
    measure(brokers, &crowd, Duration::from_secs(4)).await?;
    let (busy, rate, all) = measure(brokers, &crowd, time).await?;
    crowd.silent.store(true, Ordering::Relaxed);
    measure(brokers, &crowd, Duration::from_secs(1)).await?;
    let (idle, silence, _) = measure(brokers, &crowd, time / 2).await?;
    let kib = |from: &Usage, to: &Usage| {
        to.anonymous_bytes.saturating_sub(from.anonymous_bytes) as f64 / 1024.0 / count as f64
    };
    println!(
        "{count} members joined one group in {joined:?}, {count} groups of one in {grouped:?}; memory (anonymous): empty \
         {:.1} MiB, {:.1} KiB a member, {:.1} KiB a group of one, all {:.1} MiB, connections included",
        empty.anonymous_bytes as f64 / 1_048_576.0,
        kib(&empty, &one_group),
        kib(&one_group, &all),
        all.anonymous_bytes as f64 / 1_048_576.0,
    );
    println!(
        "{rate:.0} heartbeats/s take {busy:.2} % of a core, {:.1} µs each; with the connections silent {idle:.2} % \
         ({silence:.0} heartbeats/s); late: {}",
        (busy - idle).max(0.0) * 1e4 / rate.max(1.0),
        crowd.late.load(Ordering::Relaxed),
    );
    crowd.stop.store(true, Ordering::Relaxed);
    let mut fenced = 0;
    while let Some(ended) = members.next().await {
        fenced += ended??.fenced_count;
    }
    ensure!(fenced == 0, "{fenced} times a member was not known any more");
    ensure!(silence < 1.0, "{silence} heartbeats a second while nobody says anything");
    if count >= MEMBERS_JUDGED && !cfg!(debug_assertions) {
        ensure!(busy - idle <= CORE_PERCENT_MAX, "heartbeats take {:.2} % of a core", busy - idle);
    }
    brokers.check_no_errors(&[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_of_very_many_members_cost_next_to_nothing() {
    let (count, seconds) = (setting("HIGHWATER_MEMBERS", 100), setting("HIGHWATER_SECONDS", 4));
    let setup = Setup { count: 1, ..Setup::default() };
    let mut brokers = Brokers::start(setup).await.unwrap();
    run(&mut brokers, count, Duration::from_secs(seconds)).await.unwrap_or_else(|error| panic!("{error:?}"));
}
