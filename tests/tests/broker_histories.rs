//! Thousands of short lives of a whole broker on a disk that drops, tears and reorders what was not synced: a topic is
//! made and records are produced over TCP, the power is cut (or the process killed) at any moment, also during a start,
//! and the next broker must serve every record whose acknowledgement said that it is flushed, where it said that it is.
//! Each recovery is run twice and compared.
//!
//! `HIGHWATER_SEED` and `HIGHWATER_HISTORIES` choose other and more of them (`just sim`).

#![allow(clippy::unwrap_used, reason = "helpers of tests are not known as tests")]

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use highwater_broker::Broker;
use highwater_protocol::api::Request;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{PartitionId, TopicId, TopicPartition};
use highwater_protocol::messages::{Acks, ProduceBatch, ProduceRequest, Stage};
use highwater_tests::peer;
use highwater_tests::sim::batches::{self, Seen};
use highwater_tests::sim::broker_world::{Connection, Served, read_everything, start};
use highwater_tests::sim::clock::SimClock;
use highwater_tests::sim::disk::{Chaos, Fault, FaultKind, Flushes, SimDisk};
use highwater_tests::sim::log_model::Crash;
use highwater_tests::sim::random::Random;
use parking_lot::Mutex;

/// Histories of one test run.
const HISTORIES: u64 = 2000;
/// The seed of the first.
const SEED: u64 = 1;
/// Brokers of one history, one after another on the same disk.
const LIVES: u64 = 2;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

#[derive(Debug, Default)]
struct Counts {
    acknowledged: AtomicU64,
    power_cuts: AtomicU64,
    kills: AtomicU64,
    clean_stops: AtomicU64,
    cuts_in_start: AtomicU64,
    looks: AtomicU64,
    faults: AtomicU64,
    refused: AtomicU64,
    unacknowledged_lost: AtomicU64,
}

fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

/// What was acknowledged for one partition.
#[derive(Debug, Clone, Default)]
struct Partition {
    /// Which record is where, whatever happens.
    flushed: BTreeMap<u64, u64>,
    /// Which record is where unless the power is cut.
    written: BTreeMap<u64, u64>,
    /// Everything that was sent to it, acknowledged or not.
    sent: Vec<u64>,
}

/// What clients know.
#[derive(Debug, Clone, Default)]
struct Promises {
    topic: Option<TopicId>,
    /// Whether the topic's durability waits for flushes.
    fsync: bool,
    partitions: Vec<Partition>,
    acknowledged: u64,
    /// An answer that no broker may give.
    lie: Option<String>,
}

impl Promises {
    fn check(&self, served: &Served, crash: Crash) -> Result<()> {
        if let Some(lie) = &self.lie {
            bail!("{lie}");
        }
        let Some((topic, partitions)) = served else {
            ensure!(self.topic.is_none(), "the topic is gone");
            return Ok(());
        };
        ensure!(self.topic.is_none_or(|known| known == *topic), "the topic is another one");
        for (number, promised) in self.partitions.iter().enumerate() {
            let there = partitions.get(number).context("a partition is missing")?;
            let what = || format!("partition {number} after a {crash:?} crash, fsync {}", self.fsync);
            promised.check(there, crash).with_context(what)?;
        }
        Ok(())
    }
}

impl Partition {
    fn check(&self, there: &[Seen], crash: Crash) -> Result<()> {
        let mut last_of_producer: HashMap<u64, u64> = HashMap::new();
        for (expected, seen) in there.iter().enumerate() {
            ensure!(seen.offset == expected as u64, "offset {} where {expected} should be", seen.offset);
            ensure!(self.sent.binary_search(&seen.id).is_ok(), "{seen:?} was never sent");
            let (producer, number) = (seen.id >> 32, seen.id & 0xffff_ffff);
            let before = last_of_producer.insert(producer, number);
            ensure!(before.is_none_or(|before| before < number), "{seen:?} comes after number {before:?}");
        }
        ensure!(there.is_sorted_by_key(|seen| seen.epoch), "epochs decrease");
        let survivors = match crash {
            Crash::Power => vec![&self.flushed],
            Crash::Process => vec![&self.flushed, &self.written],
        };
        for (offset, id) in survivors.into_iter().flatten() {
            let found = there.get(usize::try_from(*offset)?).map(|seen| seen.id);
            ensure!(
                found == Some(*id),
                "record {id:#x} was acknowledged at {offset}, where {found:x?} is now"
            );
        }
        Ok(())
    }
}

struct World {
    disk: SimDisk,
    clock: Arc<SimClock>,
    random: Random,
    promises: Arc<Mutex<Promises>>,
    next_producer: u64,
}

#[test]
fn acknowledged_records_survive() {
    let (first, count) = (setting("HIGHWATER_SEED", SEED), setting("HIGHWATER_HISTORIES", HISTORIES));
    let counts = Counts::default();
    let failures = Mutex::new(Vec::new());
    let next = AtomicU64::new(first);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || failures.lock().len() >= 20 {
                        return;
                    }
                    let result = std::panic::catch_unwind(|| history(seed, &counts));
                    let failure = match result {
                        Ok(Ok(())) => continue,
                        Ok(Err(failure)) => format!("{failure:#}"),
                        Err(_) => "panicked".to_owned(),
                    };
                    failures.lock().push(format!("seed {seed}: {failure}"));
                }
            });
        }
    });
    println!("{count} histories: {counts:?}");
    let failures = failures.into_inner();
    assert!(failures.is_empty(), "{} histories fail:\n{}", failures.len(), failures.join("\n"));
    let seen = |count: &AtomicU64| count.load(Ordering::Relaxed);
    assert!(seen(&counts.acknowledged) > count * 10, "little is acknowledged: {counts:?}");
    assert!(seen(&counts.power_cuts) > count && seen(&counts.looks) > count / 2, "{counts:?}");
    let rare = [
        &counts.kills,
        &counts.clean_stops,
        &counts.cuts_in_start,
        &counts.unacknowledged_lost,
        &counts.faults,
        &counts.refused,
    ];
    for rare in rare {
        assert!(seen(rare) > count / 50, "the histories are tame: {counts:?}");
    }
}

fn history(seed: u64, counts: &Counts) -> Result<()> {
    let mut random = Random::new(seed);
    let disk = SimDisk::new(seed);
    disk.set_chaos(Chaos {
        short_write_percent: random.below(20) as u32,
        write_back_percent: random.below(30) as u32,
        not_resident_percent: random.below(60) as u32,
    });
    let mut world = World { disk, clock: Arc::default(), random, promises: Arc::default(), next_producer: 0 };
    for life in 0..LIVES {
        let crash = live(&mut world, counts).with_context(|| format!("life {life}"))?;
        check_recovery(&mut world, crash, counts).with_context(|| format!("after life {life}"))?;
    }
    Ok(())
}

/// Runs something on a runtime of its own, which takes all tasks with it when it ends, as a crash does.
fn on_runtime<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await.context("stuck")? })
}

/// One broker, from its start to its end. Says how it ended.
fn live(world: &mut World, counts: &Counts) -> Result<Crash> {
    let threads = world.random.percent(25);
    let delay_max = Duration::from_micros(world.random.below(600));
    world.disk.set_flushes(if threads { Flushes::Threads { delay_max } } else { Flushes::Manual });
    let in_start = world.random.percent(25);
    if in_start {
        world.disk.cut_after(world.random.below(40));
    }
    let faulty = world.random.percent(25);
    let faults_before = world.disk.stats().faults;
    let (crash, lost_power) = on_runtime(async {
        let driver = tokio::spawn(complete_rounds(world.disk.clone(), world.random.split()));
        let broker = match start(&world.disk, &world.clock, world.random.next_u64()).await {
            Ok(broker) => broker,
            Err(_) if !world.disk.has_power() => return Ok((None, true)),
            Err(error) => return Err(error.context("start")),
        };
        if !in_start && world.random.percent(40) {
            world.disk.cut_after(world.random.below(120));
        }
        if faulty {
            plan_faults(world);
        }
        let end = serve_clients(world, &broker, counts, faulty).await;
        // Space returns, and what was broken works again: the rest of the life has no excuse.
        world.disk.heal();
        world.disk.set_capacity(None);
        let lost_power = !world.disk.has_power();
        end?;
        if !lost_power && !faulty && world.random.percent(10) {
            // The stop has to flush what nobody completes any more.
            broker
                .shutdown()
                .await
                .or_else(|error| if world.disk.has_power() { Err(error) } else { Ok(()) })?;
            add(&counts.clean_stops, 1);
        }
        driver.abort();
        Ok((Some(()), lost_power))
    })?;
    if faulty {
        // What only the page cache had is lost with a flush that fails, and its acknowledgement said no more.
        world.promises.lock().partitions.iter_mut().for_each(|partition| partition.written.clear());
    }
    add(&counts.cuts_in_start, u64::from(crash.is_none()));
    add(&counts.faults, world.disk.stats().faults - faults_before);
    let crash = if lost_power || world.random.percent(70) { Crash::Power } else { Crash::Process };
    match crash {
        Crash::Power => world.disk.power_cut(world.random.next_u64()),
        Crash::Process => world.disk.process_crash(),
    }
    add(if crash == Crash::Power { &counts.power_cuts } else { &counts.kills }, 1);
    Ok(crash)
}

/// A flush that fails once, a write that fails, a disk that gets full: each in its time.
fn plan_faults(world: &mut World) {
    let skip = world.random.below(8) as u32;
    let kind = match world.random.below(8) {
        0..3 => FaultKind::SyncFails,
        3..5 => FaultKind::WriteFails,
        5 => FaultKind::WriteShort,
        6 => FaultKind::ReadFails,
        _ => {
            let room = world.random.below(80_000);
            world.disk.set_capacity(Some(world.disk.used() + room));
            return;
        }
    };
    world.disk.plan(Fault { kind, path_part: ".segment".to_owned(), skip, count: 1 });
    if kind == FaultKind::WriteShort {
        let kind = FaultKind::WriteFails;
        world.disk.plan(Fault { kind, path_part: ".segment".to_owned(), skip: skip + 1, count: 1 });
    }
}

/// Completes flush rounds in any order, some time after they began.
async fn complete_rounds(disk: SimDisk, mut random: Random) {
    let percent = random.within(3..60) as u32;
    loop {
        tokio::task::yield_now().await;
        if random.percent(percent) {
            let pending = disk.rounds_pending();
            disk.complete_round(random.index(pending.max(1)));
        }
    }
}

/// Makes the topic or finds it, checks what is served, and produces until enough is acknowledged or the power is gone.
async fn serve_clients(world: &mut World, broker: &Broker, counts: &Counts, faulty: bool) -> Result<()> {
    let topic = match find_or_create(world, broker).await {
        Ok(topic) => topic,
        Err(_) if faulty || !world.disk.has_power() => return Ok(()),
        Err(error) => return Err(error),
    };
    let before = world.promises.lock().acknowledged;
    let wanted = before + world.random.below(60);
    let look_at = before + world.random.below(40);
    let mut looked = false;
    let mut producers = Vec::new();
    for _ in 0..=world.random.below(2) {
        world.next_producer += 1;
        let connection = match Connection::tcp(broker).await {
            Ok(connection) => connection,
            Err(_) if !world.disk.has_power() => return Ok(()),
            Err(error) => return Err(error.context("connect")),
        };
        let promises = Arc::clone(&world.promises);
        let producer =
            Producer { connection, topic, id: world.next_producer, promises, random: world.random.split() };
        producers.push(tokio::spawn(producer.run()));
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        tokio::task::yield_now().await;
        let acknowledged = world.promises.lock().acknowledged;
        if acknowledged >= look_at && !looked && world.disk.has_power() {
            looked = true;
            look(world, counts)?;
        }
        if acknowledged >= wanted
            || !world.disk.has_power()
            || producers.iter().all(tokio::task::JoinHandle::is_finished)
        {
            break;
        }
        ensure!(Instant::now() < deadline, "only {acknowledged} of {wanted} are acknowledged");
    }
    for producer in producers {
        producer.abort();
        match producer.await {
            Ok(Err(_)) if faulty => add(&counts.refused, 1),
            Ok(Err(error)) if world.disk.has_power() => return Err(error.context("produce")),
            _ => {}
        }
    }
    add(&counts.acknowledged, world.promises.lock().acknowledged - before);
    Ok(())
}

async fn find_or_create(world: &mut World, broker: &Broker) -> Result<TopicId> {
    let served = read_everything(broker).await.context("read after a start")?;
    let mut connection = Connection::memory(broker).await?;
    if let Some((topic, partitions)) = served {
        // What a started broker serves is durable: it may not go any more.
        let mut promises = world.promises.lock();
        promises.topic = Some(topic);
        promises.partitions.resize_with(partitions.len(), Partition::default);
        for (promised, there) in promises.partitions.iter_mut().zip(&partitions) {
            promised.written.clear();
            promised.flushed.extend(there.iter().map(|seen| (seen.offset, seen.id)));
        }
        return Ok(topic);
    }
    let partitions = 1 + world.random.below(3) as u32;
    let fsync = world.random.percent(80);
    let durability = if fsync { "fsync" } else { world.random.pick(&["os", "interval(1ms)"]).unwrap() };
    let config = [("durability", durability), ("segment_bytes", "64KiB")];
    let config = config.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    {
        let mut promises = world.promises.lock();
        promises.fsync = fsync;
        promises.partitions.resize_with(partitions as usize, Partition::default);
    }
    let topic = connection.create_topic(partitions, config).await.context("create the topic")?;
    world.promises.lock().topic = Some(topic);
    Ok(topic)
}

/// What would be found if the power were cut now. The broker lives on.
fn look(world: &mut World, counts: &Counts) -> Result<()> {
    let promises = world.promises.lock().clone();
    let disk = world.disk.fork();
    disk.set_capacity(None);
    disk.power_cut(world.random.next_u64());
    disk.set_flushes(Flushes::Inline);
    let (clock, seed) = (Arc::clone(&world.clock), world.random.next_u64());
    add(&counts.looks, 1);
    let look = std::thread::spawn(move || {
        let served = on_runtime(async { read_everything(&start(&disk, &clock, seed).await?).await })?;
        promises.check(&served, Crash::Power)
    });
    look.join().map_err(|_| anyhow::anyhow!("panicked"))?.context("a look at a power cut")
}

/// What the next broker serves, and once more after another crash.
fn check_recovery(world: &mut World, crash: Crash, counts: &Counts) -> Result<()> {
    let disk = world.disk.fork();
    disk.set_flushes(Flushes::Inline);
    let clock = &world.clock;
    // Each process is another one: with the same seed the second would pass for the first.
    let seeds = [world.random.next_u64(), world.random.next_u64()];
    let serve = |seed: u64| on_runtime(async { read_everything(&start(&disk, clock, seed).await?).await });
    let served = serve(seeds[0]).context("recovery")?;
    world.promises.lock().check(&served, crash)?;
    let there: usize = served.iter().flat_map(|(_, partitions)| partitions).map(Vec::len).sum();
    let sent: usize = world.promises.lock().partitions.iter().map(|partition| partition.sent.len()).sum();
    add(&counts.unacknowledged_lost, (sent - there) as u64);
    match world.random.below(2) {
        0 => disk.process_crash(),
        _ => disk.power_cut(world.random.next_u64()),
    }
    let again = serve(seeds[1]).context("second recovery")?;
    ensure!(served == again, "the second recovery serves {again:?}, the first served {served:?}");
    for disk in [&disk, &world.disk] {
        ensure!(disk.violations().is_empty(), "mapped bytes are not immutable: {:?}", disk.violations());
    }
    Ok(())
}

/// A producer on one connection. It stops at the first error: what it has under way then has an unknown outcome.
struct Producer {
    connection: Connection,
    topic: TopicId,
    id: u64,
    promises: Arc<Mutex<Promises>>,
    random: Random,
}

/// A batch under way: its partition and the first and the number of its records.
type Sent = (u32, u64, u64);

impl Producer {
    async fn run(mut self) -> Result<()> {
        let requests = 1 + self.random.below(25);
        let window = 1 + self.random.index(5);
        let mut under_way: HashMap<u64, (Acks, Vec<Sent>)> = HashMap::new();
        let (mut sent, mut next_record, mut numbers) = (0, 0, HashMap::new());
        loop {
            while sent < requests && under_way.len() < window {
                let (id, request) = self.send(&mut next_record, &mut numbers).await?;
                under_way.insert(id, request);
                sent += 1;
            }
            if under_way.is_empty() {
                return Ok(());
            }
            let frame = self.connection.next().await?;
            if frame.header.api != ProduceRequest::API {
                continue;
            }
            let reply = peer::reply_to::<ProduceRequest>(&frame)?;
            let Some((acks, batches)) = under_way.remove(&frame.header.correlation_id.0) else {
                bail!("a reply to nothing: {frame:?}");
            };
            ensure!(reply.results.len() == batches.len(), "a result for each batch");
            for ((partition, first, count), result) in batches.into_iter().zip(reply.results) {
                ensure!(result.error == 0, "{}: {}", ErrorCode::from_code(result.error), result.message);
                self.promise(acks, partition, first..first + count, result.base_offset, result.stage());
            }
        }
    }

    async fn send(
        &mut self,
        next_record: &mut u64,
        numbers: &mut HashMap<u32, u64>,
    ) -> Result<(u64, (Acks, Vec<Sent>))> {
        let acks = if self.random.percent(75) { Acks::All } else { Acks::Leader };
        let (mut entries, mut attachment, mut batches) = (Vec::new(), Vec::<Bytes>::new(), Vec::new());
        for _ in 0..=self.random.below(3) {
            let partitions = self.promises.lock().partitions.len();
            let partition = self.random.index(partitions) as u32;
            let count = 1 + self.random.below(4);
            let first = self.id << 32 | *next_record;
            *next_record += count;
            let value_bytes = if self.random.percent(10) { 12_000 } else { 300 };
            let place = TopicPartition::new(self.topic, PartitionId(partition));
            let batch = batches::produced(place, first..first + count, value_bytes, 1, &mut self.random);
            let number = numbers.entry(partition).or_insert(0);
            entries.push(ProduceBatch {
                topic_id: Some(self.topic.into()),
                partition,
                number: *number,
                length: u32::try_from(batch.len())?,
            });
            *number += 1;
            attachment.push(batch);
            batches.push((partition, first, count));
            let mut promises = self.promises.lock();
            let sent = &mut promises.partitions[partition as usize].sent;
            sent.extend(first..first + count);
            sent.sort_unstable();
        }
        let request = ProduceRequest { acks: acks.into(), timeout_ms: 0, batches: entries };
        Ok((self.connection.send(&request, &attachment).await?, (acks, batches)))
    }

    fn promise(&self, acks: Acks, partition: u32, ids: std::ops::Range<u64>, base_offset: u64, stage: Stage) {
        let mut promises = self.promises.lock();
        promises.acknowledged += 1;
        // The topic waits for flushes, so whatever the answer says, it must not come before the flush.
        let fsync = promises.fsync;
        if fsync && stage != Stage::Flushed {
            promises.lie =
                Some(format!("acknowledged with {acks:?} as {stage:?} in a topic with durability fsync"));
        }
        let kept = &mut promises.partitions[partition as usize];
        let kept = if fsync || stage == Stage::Flushed { &mut kept.flushed } else { &mut kept.written };
        kept.extend((base_offset..).zip(ids));
    }
}
