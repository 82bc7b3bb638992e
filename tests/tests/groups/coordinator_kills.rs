//! `kill -9` of the broker that coordinates a group, at random moments while its members commit: positions never go back,
//! no two members have a partition, and nobody is lost for good.
//!
//! Few kills by default; `HIGHWATER_KILLS=50` and `HIGHWATER_SEED` make it longer and different. The seed is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures_util::future::join_all;
use hdrhistogram::Histogram;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::TopicId;
use highwater_protocol::messages::{CommitOffsetsReply, FetchOffsetsRequest};
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::members::{Coordinators, Member, Owned};
use highwater_tests::sim::random::Random;
use highwater_tests::wait;
use highwater_tests::workload::{micros_histogram, setting};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

const TOPIC: &str = "read";
const INTERNAL: &str = "hw-groups";
const GROUP: &str = "readers";
const PARTITIONS: u32 = 12;
const MEMBERS: u32 = 6;
const SESSION: Duration = Duration::from_secs(10);
/// How long anything may take before the test is given up.
const LIMIT: Duration = Duration::from_secs(30);

/// What the group has acknowledged, by partition, and when it last did.
#[derive(Debug)]
struct Ledger {
    topic: TopicId,
    acknowledged: Vec<Mutex<(u64, Instant)>>,
    commits: AtomicU64,
    stop: AtomicBool,
}

impl Ledger {
    fn new(topic: TopicId) -> Arc<Self> {
        let acknowledged = (0..PARTITIONS).map(|_| Mutex::new((0, Instant::now()))).collect();
        Arc::new(Self { topic, acknowledged, commits: AtomicU64::new(0), stop: AtomicBool::new(false) })
    }

    fn at(&self, partition: u32) -> u64 {
        self.acknowledged[partition as usize].lock().0
    }

    /// Whoever commits begins at what was acknowledged before, so that every acknowledgement is a step forward.
    fn note(&self, partition: u32, offset: u64) -> Result<()> {
        let mut last = self.acknowledged[partition as usize].lock();
        ensure!(offset > last.0, "partition {partition}: {offset} was acknowledged after {}", last.0);
        *last = (offset, Instant::now());
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits until every partition was committed after `since`; how long it took for each.
    async fn committed_since(&self, since: Instant) -> Result<Vec<Duration>> {
        wait::until_async("every partition is committed again", LIMIT, || async {
            let times = self.acknowledged.iter().map(|last| last.lock().1.checked_duration_since(since));
            times.collect::<Option<Vec<_>>>()
        })
        .await
    }
}

/// What a member ends with.
struct Ended {
    member: Member,
    longest_silence: Duration,
}

/// A member: heartbeats when it is time, and commits one step further for all that it owns, again and again.
async fn consume(mut member: Member, ledger: Arc<Ledger>) -> Result<Ended> {
    let mut positions: BTreeMap<u32, u64> = BTreeMap::new();
    let mut due = Instant::now();
    let (mut heard, mut longest_silence) = (Instant::now(), Duration::ZERO);
    while !ledger.stopped() {
        if Instant::now() >= due {
            let beat = member.heartbeat(LIMIT).await;
            beat.map_err(|refused| anyhow!("{} is refused: {refused:?}", member.id))?;
            longest_silence = longest_silence.max(heard.elapsed());
            heard = Instant::now();
            due = heard + member.interval;
            catch_up(&member, &ledger, &mut positions).await?;
        }
        if positions.is_empty() {
            wait::for_so_long(Duration::from_millis(5)).await;
            continue;
        }
        let next: Vec<_> =
            positions.iter().map(|(partition, at)| ((ledger.topic, *partition), at + 1)).collect();
        match member.commit(&next, LIMIT).await {
            Ok(reply) => take_results(&reply, &ledger, &mut positions, &next, &mut due)?,
            // It has lost what it had: the next heartbeat says so.
            Err(refused) if refused.code == Some(ErrorCode::UnknownMember) => due = Instant::now(),
            Err(refused) => bail!("a commit of {} is refused: {refused:?}", member.id),
        }
    }
    Ok(Ended { member, longest_silence })
}

fn take_results(
    reply: &CommitOffsetsReply,
    ledger: &Ledger,
    positions: &mut BTreeMap<u32, u64>,
    next: &[((TopicId, u32), u64)],
    due: &mut Instant,
) -> Result<()> {
    for (result, ((_, partition), offset)) in reply.results.iter().zip(next) {
        match ErrorCode::from_code(result.error) {
            ErrorCode::None => {
                ledger.note(*partition, *offset)?;
                positions.insert(*partition, *offset);
            }
            ErrorCode::NotAssigned | ErrorCode::FencedGeneration | ErrorCode::UnknownMember => {
                *due = Instant::now();
            }
            code => bail!("partition {partition}: {code}: {}", result.message),
        }
    }
    Ok(())
}

/// Positions of what it owns now: those that are new are asked for, and are nowhere below what was acknowledged.
async fn catch_up(member: &Member, ledger: &Ledger, positions: &mut BTreeMap<u32, u64>) -> Result<()> {
    let owned: BTreeSet<u32> = member.owned.iter().map(|(_, partition)| *partition).collect();
    positions.retain(|partition, _| owned.contains(partition));
    let new: Owned = owned
        .iter()
        .filter(|partition| !positions.contains_key(partition))
        .map(|partition| (ledger.topic, *partition))
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let floors: BTreeMap<u32, u64> =
        new.iter().map(|(_, partition)| (*partition, ledger.at(*partition))).collect();
    let reply = member.fetch(&new, LIMIT).await;
    let reply = reply.map_err(|refused| anyhow!("{} cannot fetch: {refused:?}", member.id))?;
    for position in reply.offsets {
        ensure!(position.error == 0, "{}: {}", ErrorCode::from_code(position.error), position.message);
        let (at, floor) = (position.offset.unwrap_or(0), floors[&position.partition]);
        ensure!(
            at >= floor,
            "partition {} goes on at {at}, and {floor} was acknowledged",
            position.partition
        );
        positions.insert(position.partition, at);
    }
    Ok(())
}

/// Reads all positions again and again: none goes back, and none is below what was acknowledged before the question.
async fn watch(coordinators: Arc<Coordinators>, ledger: Arc<Ledger>) -> Result<u64> {
    let mut seen = vec![0; PARTITIONS as usize];
    let mut looks = 0;
    while !ledger.stopped() {
        let floors: Vec<u64> = (0..PARTITIONS).map(|partition| ledger.at(partition)).collect();
        let request = FetchOffsetsRequest { group: GROUP.to_owned(), ..FetchOffsetsRequest::default() };
        let reply = coordinators.ask(GROUP, &request, LIMIT).await;
        let reply = reply.map_err(|refused| anyhow!("positions are refused: {refused:?}"))?;
        let mut found = vec![0; PARTITIONS as usize];
        for position in reply.offsets {
            found[position.partition as usize] = position.offset.unwrap_or(0);
        }
        for (partition, at) in found.into_iter().enumerate() {
            let (floor, last) = (floors[partition], seen[partition]);
            ensure!(at >= last, "partition {partition} went back from {last} to {at}");
            ensure!(at >= floor, "partition {partition} is at {at}, and {floor} was acknowledged");
            seen[partition] = at;
        }
        looks += 1;
        wait::for_so_long(Duration::from_millis(10)).await;
    }
    Ok(looks)
}

/// How a broker ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Kill,
    /// In order: it hands over first.
    Stop,
}

/// Ends the coordinator, waits until everything is committed again, and brings it back.
async fn end_once(
    brokers: &mut Brokers,
    coordinators: &Coordinators,
    ledger: &Ledger,
    times: &mut Histogram<u64>,
    random: &mut Random,
    how: End,
) -> Result<()> {
    brokers.in_sync(INTERNAL).await?;
    brokers.in_sync(TOPIC).await?;
    let address = coordinators.find(GROUP).await.map_err(|refused| anyhow!("{refused:?}"))?;
    let mut nodes = brokers.nodes().into_iter();
    let is_it = |node: &u32| brokers.address(*node).is_ok_and(|known| known.to_string() == address);
    let victim = nodes.find(is_it).with_context(|| format!("no broker listens on {address}"))?;
    wait::random_moment(random, Duration::from_millis(300)).await;
    match how {
        End::Kill => brokers.node(victim)?.kill9()?,
        End::Stop => {
            let status = brokers.node(victim)?.terminate()?;
            ensure!(status.success(), "broker {victim} ended with {status}");
        }
    }
    let ended = Instant::now();
    for time in
        ledger.committed_since(ended).await.with_context(|| format!("broker {victim} is gone: {how:?}"))?
    {
        times.saturating_record(u64::try_from(time.as_micros())?);
    }
    brokers.node(victim)?.start_again()?;
    Ok(())
}

/// The group while it is at work.
struct Group {
    ledger: Arc<Ledger>,
    coordinators: Arc<Coordinators>,
    members: Vec<JoinHandle<Result<Ended>>>,
    watcher: JoinHandle<Result<u64>>,
}

/// What came of it.
struct Finished {
    looks: u64,
    fenced: u64,
    longest_silence: Duration,
}

impl Group {
    async fn start(brokers: &Brokers) -> Result<Self> {
        let described = brokers.client().await?.admin().describe_topics(&[TOPIC]).await?;
        let ledger = Ledger::new(described[0].topic_id);
        let coordinators = Coordinators::new(brokers.bootstrap());
        let member = |number: u32| {
            let member = Member::new(&coordinators, GROUP, &format!("m{number}"), &[TOPIC], SESSION);
            tokio::spawn(consume(member, Arc::clone(&ledger)))
        };
        let members = (0..MEMBERS).map(member).collect();
        ledger.committed_since(Instant::now()).await?;
        let watcher = tokio::spawn(watch(Arc::clone(&coordinators), Arc::clone(&ledger)));
        Ok(Self { ledger, coordinators, members, watcher })
    }

    /// Whether somebody has found something wrong.
    fn has_ended(&self) -> bool {
        self.watcher.is_finished() || self.members.iter().any(JoinHandle::is_finished)
    }

    /// Everybody who has joined is there, and every partition has an owner and goes on.
    async fn is_whole(&self) -> Result<u32> {
        let group = wait::until_async("all members are back", LIMIT, || async {
            let group = self.coordinators.describe(GROUP, LIMIT).await.ok()?;
            let assigned = group.members.iter().flat_map(|member| &member.assigned);
            let owned: usize = assigned
                .map(|assigned| assigned.topics.iter().map(|topic| topic.partitions.len()).sum::<usize>())
                .sum();
            let whole = group.members.len() == MEMBERS as usize && owned == PARTITIONS as usize;
            whole.then_some(group)
        });
        let generation = group.await?.generation;
        self.ledger.committed_since(Instant::now()).await?;
        Ok(generation)
    }

    async fn finish(self) -> Result<Finished> {
        self.ledger.stop.store(true, Ordering::Relaxed);
        let (mut fenced, mut longest_silence) = (0, Duration::ZERO);
        for ended in join_all(self.members).await {
            let ended = ended??;
            fenced += ended.member.fenced_count;
            longest_silence = longest_silence.max(ended.longest_silence);
        }
        Ok(Finished { looks: self.watcher.await??, fenced, longest_silence })
    }
}

async fn end_all(
    brokers: &mut Brokers,
    group: &Group,
    times: &mut Histogram<u64>,
    kills: u64,
    seed: u64,
    how: End,
) -> Result<u32> {
    let mut random = Random::new(seed);
    for kill in 1..=kills {
        let killed = end_once(brokers, &group.coordinators, &group.ledger, times, &mut random, how).await;
        killed.with_context(|| format!("kill {kill}"))?;
        ensure!(!group.has_ended(), "a member has ended after kill {kill}");
        if kill % 10 == 0 {
            println!("{kill} kills, {} commits", group.ledger.commits.load(Ordering::Relaxed));
        }
    }
    group.is_whole().await
}

async fn run(brokers: &mut Brokers, kills: u64, seed: u64, how: End) -> Result<()> {
    brokers.create_topic(TOPIC, PARTITIONS).await?;
    let group = Group::start(brokers).await?;
    let ledger = Arc::clone(&group.ledger);
    let mut times = micros_histogram()?;
    let killed = end_all(brokers, &group, &mut times, kills, seed, how).await;
    // What a member or the watcher has found says more than what was waited for.
    let Finished { looks, fenced, longest_silence } = group.finish().await?;
    let generation = killed?;
    let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e6;
    println!(
        "{kills} times ({how:?}) the coordinator's broker: {} commits, {looks} looks at all positions, members that had to join \
         again: {fenced}, generation {generation}; from the end to the next commit of a partition, s: p50 {:.3} p99 {:.3} \
         max {:.3}; longest silence of a member {longest_silence:?}",
        ledger.commits.load(Ordering::Relaxed),
        at(0.5),
        at(0.99),
        at(1.0),
    );
    brokers.check_no_errors(&[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_never_go_back_and_nobody_is_lost_when_coordinators_are_killed() {
    let (kills, seed) = (setting("HIGHWATER_KILLS", 3), setting("HIGHWATER_SEED", 1));
    println!("seed {seed}, {kills} kills");
    let mut brokers = Brokers::start(Setup::default()).await.unwrap();
    run(&mut brokers, kills, seed, End::Kill).await.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_never_go_back_and_nobody_is_lost_when_coordinators_are_stopped() {
    let (stops, seed) = (setting("HIGHWATER_STOPS", 2), setting("HIGHWATER_SEED", 1));
    println!("seed {seed}, {stops} stops");
    let mut brokers = Brokers::start(Setup::default()).await.unwrap();
    run(&mut brokers, stops, seed, End::Stop).await.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
}
