//! Members join, leave, crash and are paused while a topic is read at a high rate: every record is delivered, none is
//! skipped, and twice comes only what a member had that died, or was taken for dead, before it had committed.
//!
//! Twenty seconds by default; `HIGHWATER_SECONDS=600`, `HIGHWATER_RATE=100000` and `HIGHWATER_SEED` make it longer, faster
//! and different. The seed is printed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use highwater_client::{Client, GroupPosition, NewTopic, PartitionId, ProducerRecord, StartAt};
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::sim::random::Random;
use highwater_tests::wait;
use highwater_tests::workload::setting;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::reader::{Fate, Reader, SESSION, group_is};

const TOPIC: &str = "churn";
const GROUP: &str = "churners";
const PARTITIONS: u32 = 48;
/// Members that run at a time.
const MEMBERS: std::ops::RangeInclusive<usize> = 2..=6;
/// Records are sent in turns of this length.
const TURN: Duration = Duration::from_millis(10);

/// Producers at a rate.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    task: JoinHandle<Result<()>>,
}

impl Load {
    fn start(client: &Client, rate: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let producer = client.producer().linger(Duration::from_millis(5)).build();
        let task = tokio::spawn(async move {
            let each_turn = (rate * u64::try_from(TURN.as_millis())? / 1000).max(1);
            let mut turns = tokio::time::interval(TURN);
            let mut number: u64 = 0;
            while !stopped.load(Ordering::Relaxed) {
                turns.tick().await;
                for _ in 0..each_turn {
                    let partition = PartitionId(u32::try_from(number % u64::from(PARTITIONS))?);
                    let value = number.to_le_bytes();
                    let record = ProducerRecord::new(TOPIC).partition(partition).value(&value);
                    // What became of it is seen in the log.
                    drop(producer.send(record).await.context("send")?);
                    number += 1;
                }
                counted.store(number, Ordering::Relaxed);
            }
            producer.flush().await.context("flush")?;
            producer.close().await.context("close")
        });
        Self { stop, sent, task }
    }

    async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.context("the producer panicked")??;
        Ok(self.sent.load(Ordering::Relaxed))
    }
}

/// All readers that ever were.
struct Readers<'a> {
    brokers: &'a Brokers,
    directory: TempDir,
    all: Vec<Reader>,
    /// Until when a reader is paused.
    paused: Vec<(usize, Instant)>,
    joins: usize,
    leaves: usize,
}

impl Readers<'_> {
    fn join(&mut self) -> Result<()> {
        let number = self.all.len();
        let further = ["--format", "json"];
        self.all.push(Reader::start(self.brokers, (TOPIC, GROUP), number, &self.directory, &further)?);
        self.joins += 1;
        Ok(())
    }

    fn running(&self) -> Vec<usize> {
        let is_paused = |number: usize| self.paused.iter().any(|(paused, _)| *paused == number);
        let running = self.all.iter().filter(|reader| !reader.ended && !is_paused(reader.number));
        running.map(|reader| reader.number).collect()
    }

    /// Does something to some member.
    fn happen(&mut self, random: &mut Random) -> Result<()> {
        let now = Instant::now();
        for number in self.paused.extract_if(.., |(_, until)| now >= *until).map(|(number, _)| number) {
            self.all[number].signal(Signal::CONT)?;
        }
        for reader in &mut self.all {
            reader.check()?;
        }
        let running = self.running();
        let chosen = *random.pick(&running).context("nobody runs")?;
        match random.below(4) {
            _ if running.len() < *MEMBERS.start() + 1 => self.join(),
            0 if running.len() < *MEMBERS.end() => self.join(),
            0 | 1 => {
                self.leaves += 1;
                self.all[chosen].stop()
            }
            2 => self.all[chosen].kill(),
            _ => {
                self.all[chosen].signal(Signal::STOP)?;
                self.all[chosen].fate = Fate::Paused;
                self.paused.push((chosen, now + SESSION + Duration::from_secs(2)));
                Ok(())
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_record_is_delivered_and_twice_only_what_the_dead_had() {
    let (seed, seconds) = (setting("HIGHWATER_SEED", 1), setting("HIGHWATER_SECONDS", 20));
    let rate = setting("HIGHWATER_RATE", 10_000);
    println!("seed {seed}, {seconds} s, {rate} records/s");
    let brokers = Brokers::start(Setup::default()).await.unwrap();
    let run = run(&brokers, seed, Duration::from_secs(seconds), rate).await;
    run.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
}

async fn run(brokers: &Brokers, seed: u64, time: Duration, rate: u64) -> Result<()> {
    let mut random = Random::new(seed);
    // What is tested is the group: producers need not wait for the disk.
    brokers.create(TOPIC, NewTopic::new(TOPIC).partitions(PARTITIONS).config("durability", "os")).await?;
    let client = brokers.client().await?;
    let admin = client.admin();
    let directory = tempfile::tempdir()?;
    let mut readers =
        Readers { brokers, directory, all: Vec::new(), paused: Vec::new(), joins: 0, leaves: 0 };
    for _ in 0..3 {
        readers.join()?;
    }
    let begun = Instant::now();
    let load = Load::start(&client, rate);
    while begun.elapsed() < time {
        wait::random_moment(&mut random, Duration::from_secs(3)).await;
        readers.happen(&mut random)?;
    }
    let sent = load.stop().await?;
    let taken = begun.elapsed();
    for (number, _) in std::mem::take(&mut readers.paused) {
        readers.all[number].signal(Signal::CONT)?;
    }
    readers.join()?;
    let done = |position: &GroupPosition| position.lag == Some(0);
    group_is(&admin, GROUP, "everything is consumed and committed", |group| {
        group.positions.len() == PARTITIONS as usize && group.positions.iter().all(done)
    })
    .await?;
    let caught_up = begun.elapsed() - taken;
    for reader in readers.all.iter_mut().filter(|reader| !reader.ended) {
        reader.stop()?;
    }
    for reader in readers.all.iter_mut().filter(|reader| reader.fate == Fate::Well) {
        if reader.has_lost()? {
            reader.fate = Fate::Starved;
        }
    }
    let ends = admin.list_offsets(TOPIC, &[], StartAt::Latest).await?;
    let ends: Vec<u64> = ends.iter().map(|listed| listed.offset.get()).collect();
    ensure!(
        ends.iter().sum::<u64>() >= sent,
        "{sent} records were sent, {} are there",
        ends.iter().sum::<u64>()
    );
    let counts = Counts::of(&readers.all, &ends)?;
    let per_second = sent as f64 / taken.as_secs_f64();
    println!(
        "{sent} records in {taken:.1?} ({per_second:.0}/s), consumed {caught_up:.1?} later; {} joins, {} leaves, {} \
         crashes, {} pauses; twice: {} records that a killed member had, {} that a paused one had, {} of {} members that got \
         no time",
        readers.joins,
        readers.leaves,
        readers.all.iter().filter(|reader| reader.fate == Fate::Killed).count(),
        readers.all.iter().filter(|reader| reader.fate == Fate::Paused).count(),
        counts.of_killed,
        counts.of_paused,
        counts.of_starved,
        readers.all.iter().filter(|reader| reader.fate == Fate::Starved).count(),
    );
    brokers.check_no_errors(&[])
}

/// What came more than once, by whose fault.
#[derive(Debug, Default)]
struct Counts {
    of_killed: u64,
    of_paused: u64,
    of_starved: u64,
}

impl Counts {
    /// Checks what all readers have printed: nothing is missing, everything is in order, and twice comes only what
    /// somebody had who died or was taken for dead.
    fn of(readers: &[Reader], ends: &[u64]) -> Result<Self> {
        let mut seen: Vec<Vec<u8>> = ends.iter().map(|end| vec![0; *end as usize]).collect();
        // Who has had what: killed 1, paused 2, starved 4.
        let mut faults: Vec<Vec<u8>> = seen.clone();
        for reader in readers {
            let mut last: BTreeMap<u32, u64> = BTreeMap::new();
            for_each_line(reader, |partition, offset| {
                let before = last.insert(partition, offset);
                // Whoever is taken for dead begins again where its successor was.
                if before.is_some_and(|before| offset <= before)
                    && matches!(reader.fate, Fate::Well | Fate::Killed)
                    && !reader.has_lost()?
                {
                    bail!(
                        "reader {}: offset {offset} of partition {partition} after {before:?}",
                        reader.number
                    );
                }
                let at = usize::try_from(offset)?;
                let (seen, faults) = (&mut seen[partition as usize], &mut faults[partition as usize]);
                let count = seen.get_mut(at).with_context(|| format!("{partition}/{offset} is not there"))?;
                *count = count.saturating_add(1);
                faults[at] |= match reader.fate {
                    Fate::Well => 0,
                    Fate::Killed => 1,
                    Fate::Paused => 2,
                    Fate::Starved => 4,
                };
                Ok(())
            })?;
        }
        let mut counts = Self::default();
        for (partition, (seen, faults)) in seen.iter().zip(&faults).enumerate() {
            for (offset, (count, fault)) in seen.iter().zip(faults).enumerate() {
                let more = u64::from(*count).saturating_sub(1);
                match (*count, *fault) {
                    (0, _) => bail!("partition {partition}: offset {offset} was delivered to nobody"),
                    (1, _) => {}
                    (_, 0) => {
                        bail!("partition {partition}: offset {offset} came {count} times, to living members")
                    }
                    (_, fault) if fault & 1 > 0 => counts.of_killed += more,
                    (_, fault) if fault & 2 > 0 => counts.of_paused += more,
                    _ => counts.of_starved += more,
                }
            }
        }
        Ok(counts)
    }
}

/// Goes through what a reader has printed. The last line of one that was killed may be cut.
fn for_each_line(reader: &Reader, mut see: impl FnMut(u32, u64) -> Result<()>) -> Result<()> {
    let mut lines = BufReader::with_capacity(1 << 20, File::open(&reader.output)?);
    let mut line = String::new();
    loop {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let whole = line.strip_suffix('\n');
        let Some(whole) = whole else {
            ensure!(reader.fate == Fate::Killed, "a line without an end: {line}");
            return Ok(());
        };
        let number = |name: &str| -> Option<u64> {
            let rest = whole.split_once(name)?.1;
            rest[..rest.find(',')?].parse().ok()
        };
        let place = number("\"partition\":").zip(number("\"offset\":"));
        let (partition, offset) = place.with_context(|| format!("reader {}: {whole}", reader.number))?;
        see(u32::try_from(partition)?, offset)?;
    }
}
