//! A log of keyed records that is compacted, on a simulated disk, and what it must never lose.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use highwater_broker::storage::config::LogConfig;
use highwater_broker::storage::log::{Cleaning, Log, StampedBatch, Step};
use highwater_broker::storage::sink::FlushOutcome;
use highwater_broker_core::durability::Durability;
use highwater_broker_core::log::cleaning::Compaction;
use highwater_broker_core::log::manifest::{EpochStart, note_epoch};
use highwater_broker_core::producer::ProducerTable;
use highwater_broker_core::time::Wall;
use highwater_protocol::batch::{BatchBuilder, BatchHeader, LeaderStamp, Records};
use highwater_protocol::compression::Compression;
use highwater_protocol::ids::{LeaderEpoch, Offset, ProducerId};

use super::disk::{Flushes, SimDisk};
use super::log_model::Crash;
use super::log_world::{PARTITION, ROOT, Running, open, small_log, stamped};
use super::random::Random;

/// How long tombstones stay after their first pass.
pub const GRACE: Duration = Duration::from_secs(100);

/// Keys that are written; some often, some hardly ever.
const KEYS: u64 = 40;
/// Producers that write.
const PRODUCERS: usize = 3;
/// Memory for keys in a pass: room for some hundreds.
const MAP_BYTES: usize = 0;

/// A record: its key, and what its value says, if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keyed {
    key: u64,
    value: Option<u64>,
    epoch: u32,
}

/// What was appended and promised.
#[derive(Debug, Clone, Default)]
pub struct Promised {
    records: BTreeMap<u64, Keyed>,
    headers: BTreeMap<u64, BatchHeader>,
    /// The next offset to write.
    pub written_end: u64,
    flushed_end: u64,
    /// Below, everything is committed.
    pub high_watermark: u64,
    log_start_max: u64,
    /// Since when each tombstone has been gone over by complete passes.
    passed_at: BTreeMap<u64, i64>,
}

/// What a log has.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    log_start: u64,
    /// The next offset to write.
    pub log_end: u64,
    /// What can be read, by offset.
    pub records: BTreeMap<u64, Keyed>,
    /// The epochs that batches say, offset by offset.
    epochs: Vec<EpochStart>,
    producers: ProducerTable,
}

/// A log, its disk, and what is known about both.
#[derive(Debug)]
pub struct KeyedWorld {
    /// The machine's disk.
    pub disk: SimDisk,
    /// Decides everything.
    pub random: Random,
    /// What the log promised.
    pub promised: Promised,
    config: LogConfig,
    running: Option<Running>,
    cleaning: Option<Cleaning>,
    /// In seconds.
    now: i64,
    epoch: u32,
    sequences: [u32; PRODUCERS],
    next_value: u64,
    /// Passes that came to their end.
    pub passes: u64,
    /// New segments that were put into place.
    pub swaps: u64,
    /// Passes that were void or failed.
    pub given_up: u64,
}

impl KeyedWorld {
    /// A formatted, empty data directory.
    ///
    /// # Panics
    /// When it cannot be opened: nothing has failed yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        if let Err(error) = disk.mount().create_directory(Path::new(ROOT)) {
            panic!("make the data directory: {error}");
        }
        disk.sync_all();
        disk.set_flushes(Flushes::Manual);
        let compaction = Some(Compaction { tombstone_grace: GRACE, dirty_percent_min: 20 });
        let mut world = Self {
            disk,
            random: Random::new(seed),
            promised: Promised::default(),
            config: LogConfig { compaction, ..small_log(Durability::Fsync) },
            running: None,
            cleaning: None,
            now: 1000,
            epoch: 1,
            sequences: [0; PRODUCERS],
            next_value: 0,
            passes: 0,
            swaps: 0,
            given_up: 0,
        };
        match open(&world.disk, world.config) {
            Ok(running) => world.running = Some(running),
            Err(error) => panic!("open an empty directory: {error}"),
        }
        world
    }

    /// The open log.
    ///
    /// # Panics
    /// When the process is dead.
    pub fn log(&mut self) -> &mut Log {
        match &mut self.running {
            Some(running) => &mut running.log,
            None => panic!("the process is dead"),
        }
    }

    /// Seconds pass.
    pub fn wait(&mut self, seconds: i64) {
        self.now += seconds;
    }

    /// Appends some batches. False: it failed, because the power went.
    pub fn append(&mut self) -> bool {
        let mut batches = Vec::new();
        let mut end = self.promised.written_end;
        for _ in 0..=self.random.below(3) {
            let batch = self.batch(end);
            end = batch.header.end_offset().get();
            batches.push(batch);
        }
        let result = self.log().append(&batches);
        if result.is_ok() {
            self.promised.written_end = end;
        }
        result.is_ok()
    }

    fn batch(&mut self, offset: u64) -> StampedBatch {
        let mut builder = BatchBuilder::with_capacity(256);
        let count = 1 + self.random.below(5);
        if self.random.percent(60) {
            let who = self.random.index(PRODUCERS);
            builder.set_producer(ProducerId(who as u64), 0, self.sequences[who]);
            self.sequences[who] += count as u32;
        }
        for number in 0..count {
            let key = self.random.below(KEYS).min(self.random.below(KEYS));
            let value = (!self.random.percent(15)).then_some(self.next_value);
            self.next_value += 1;
            let mut bytes = value.unwrap_or_default().to_le_bytes().to_vec();
            let filler = self.random.index(300);
            bytes.extend(self.random.bytes(filler));
            builder.push(self.now, Some(&key.to_le_bytes()), value.map(|_| &bytes[..]), &[]);
            let keyed = Keyed { key, value, epoch: self.epoch };
            self.promised.records.insert(offset + number, keyed);
        }
        let compression = if self.random.percent(30) { Compression::Lz4 } else { Compression::None };
        let sent = match builder.build(PARTITION, compression) {
            Ok(sent) => sent,
            Err(error) => panic!("build a batch: {error}"),
        };
        let batch = stamped(
            &sent,
            LeaderStamp {
                leader_flags: 0,
                base_offset: Offset(offset),
                leader_epoch: LeaderEpoch(self.epoch),
                append_time: self.now * 1_000_000,
                durable_end: Offset(self.promised.high_watermark),
            },
        );
        self.promised.headers.insert(offset, batch.header);
        batch
    }

    /// A new leader epoch begins.
    pub const fn next_epoch(&mut self) {
        self.epoch += 1;
    }

    /// Completes flush rounds, and commits some of what is flushed.
    pub fn flush(&mut self) {
        while self.disk.complete_round(0) {}
        let outcomes = self.running.as_ref().map(|running| running.outcomes.take()).unwrap_or_default();
        for outcome in outcomes {
            if let FlushOutcome::Flushed { log_generation, upto } = outcome {
                self.log().flushed(log_generation, upto);
            }
        }
        self.promised.flushed_end = self.promised.flushed_end.max(self.log().flushed_end().get());
        let committed = self.promised.high_watermark..self.promised.flushed_end + 1;
        let committed =
            if self.random.percent(70) { committed.end - 1 } else { self.random.within(committed) };
        // Whole batches are committed.
        self.promised.high_watermark = self.promised.high_watermark.max(self.promised.batch_end(committed));
    }

    /// Cuts off what is not committed, as a follower does. False: it failed, because the power went.
    pub fn truncate(&mut self) -> bool {
        let to = self.random.within(self.promised.high_watermark..self.promised.written_end + 1);
        let end = self.promised.batch_end(to);
        self.promised.flushed_end = self.promised.flushed_end.min(end);
        let Ok(log_end) = self.log().truncate(Offset(to)) else { return false };
        assert_eq!(log_end.get(), end, "cut at {to}");
        self.promised.cut(end);
        self.epoch += 1;
        true
    }

    /// Rolls, and lets retention work if it is asked for.
    pub fn maintain(&mut self, retention_bytes: Option<u64>) {
        self.config.limits.retention_bytes = retention_bytes;
        let (config, now) = (self.config, Wall(self.now * 1_000_000));
        let high_watermark = Offset(self.promised.high_watermark);
        self.log().configure(config);
        // Without power it fails; that is found out soon.
        let _maintained = self.log().maintain(now, high_watermark);
        self.promised.log_start_max = self.promised.log_start_max.max(self.log().log_start().get());
    }

    /// A step of a pass: the next one, or the first one of a new pass. False: there is nothing to do.
    pub fn clean(&mut self) -> bool {
        let (now, seed) = (Wall(self.now * 1_000_000), self.random.next_u64());
        if self.cleaning.is_none() {
            let high_watermark = Offset(self.promised.high_watermark);
            self.cleaning = self.log().plan_cleaning(now, high_watermark, seed, MAP_BYTES);
        }
        let Some(mut cleaning) = self.cleaning.take() else { return false };
        match cleaning.step(1 + self.random.below(8000)) {
            Err(_) => self.given_up += 1,
            Ok(Step::Worked { .. }) => self.cleaning = Some(cleaning),
            Ok(Step::Replace(replacement)) => {
                if self.log().swap_cleaned(*replacement) {
                    self.swaps += 1;
                    self.cleaning = Some(cleaning);
                } else {
                    self.given_up += 1;
                }
            }
            Ok(Step::Done(passed)) => {
                self.log().cleaning_done(cleaning.revision(), passed, now);
                self.passes += 1;
                let done_at = self.now;
                if self.log().cleaned().upto >= passed.upto {
                    self.promised.passed(passed.upto.get(), done_at);
                }
            }
        }
        true
    }

    /// Whether what the open log has is what was promised, at any time.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&mut self) -> Result<(), String> {
        let there = match held(self.log()) {
            Err(_) if !self.disk.has_power() => return Ok(()),
            there => there?,
        };
        if there.log_end != self.promised.written_end {
            return Err(format!("the log ends at {}, not at {}", there.log_end, self.promised.written_end));
        }
        self.promised.check(&there, self.now)?;
        no_violations(&self.disk)
    }

    /// Crashes, recovers, and holds what is found against what was promised; twice, and once more without the snapshots of
    /// producers: batches alone have to tell.
    ///
    /// # Errors
    /// What is wrong.
    pub fn crash(&mut self, crash: Crash) -> Result<(), String> {
        self.cleaning = None;
        let running = self.running.take();
        match crash {
            Crash::Process => self.disk.process_crash(),
            Crash::Power => self.disk.power_cut(self.random.next_u64()),
        }
        drop(running);
        let disk = self.disk.fork();
        let mut first = open(&disk, self.config).map_err(|error| format!("recovery: {error}"))?;
        let there = held(&mut first.log)?;
        drop(first);
        let least = if crash == Crash::Power { self.promised.flushed_end } else { self.promised.written_end };
        if there.log_end < least {
            return Err(format!("{crash:?}: the log ends at {}, before {least}", there.log_end));
        }
        self.promised.cut(there.log_end);
        self.promised.check(&there, self.now).map_err(|wrong| format!("{crash:?}: {wrong}"))?;
        let again = disk.fork();
        again.power_cut(self.random.next_u64());
        let mut second = open(&again, self.config).map_err(|error| format!("second recovery: {error}"))?;
        if held(&mut second.log)? != there {
            return Err("the second recovery found something else".to_owned());
        }
        drop(second);
        if there.log_start == 0 {
            let bare = disk.fork();
            bare.process_crash();
            remove_snapshots(&bare)?;
            let mut third = open(&bare, self.config).map_err(|error| format!("third recovery: {error}"))?;
            if held(&mut third.log)? != there {
                return Err("without snapshots of producers something else was found".to_owned());
            }
        }
        let running = open(&self.disk, self.config).map_err(|error| format!("recovery: {error}"))?;
        self.running = Some(running);
        (self.promised.written_end, self.promised.flushed_end) = (there.log_end, there.log_end);
        for (who, sequence) in self.sequences.iter_mut().enumerate() {
            *sequence = self.promised.next_sequence(who as u64);
        }
        self.epoch += 1;
        no_violations(&self.disk)
    }
}

impl Promised {
    /// What lies at `end` or after it is gone.
    fn cut(&mut self, end: u64) {
        self.records.split_off(&end);
        self.headers.split_off(&end);
        self.passed_at.split_off(&end);
        self.written_end = self.written_end.min(end);
    }

    /// A pass over everything below `upto` has come to its end.
    fn passed(&mut self, upto: u64, now: i64) {
        for (offset, record) in self.records.range(..upto) {
            if record.value.is_none() {
                self.passed_at.entry(*offset).or_insert(now);
            }
        }
    }

    /// The last offset up to `to` at which a batch ends.
    fn batch_end(&self, to: u64) -> u64 {
        let mut ends = self.headers.range(..to).rev().map(|(_, header)| header.end_offset().get());
        ends.find(|end| *end <= to).unwrap_or(0)
    }

    fn next_sequence(&self, who: u64) -> u32 {
        let of = |header: &&BatchHeader| header.producer.producer_id == ProducerId(who);
        let last = self.headers.values().rev().find(of);
        last.map_or(0, |header| header.producer.first_sequence + header.producer.last_offset_delta + 1)
    }

    fn check(&self, there: &Held, now: i64) -> Result<(), String> {
        if there.log_start > self.log_start_max {
            return Err(format!("the log starts at {}, beyond {}", there.log_start, self.log_start_max));
        }
        let kept = || self.records.range(there.log_start..there.log_end);
        for (offset, record) in &there.records {
            if self.records.get(offset) != Some(record) {
                return Err(format!("at {offset} {record:?}, not {:?}", self.records.get(offset)));
            }
        }
        // Of each key the last one stays, of what is committed and of everything, and whatever is not committed.
        let mut last = BTreeMap::new();
        let mut last_committed = BTreeMap::new();
        for (offset, record) in kept() {
            last.insert(record.key, *offset);
            if *offset < self.high_watermark {
                last_committed.insert(record.key, *offset);
            }
        }
        let stay: BTreeSet<u64> = last.values().chain(last_committed.values()).copied().collect();
        for (offset, record) in kept().filter(|(offset, _)| !there.records.contains_key(offset)) {
            let grace = GRACE.as_secs() as i64;
            let may_go = record.value.is_none()
                && self.passed_at.get(offset).is_some_and(|passed| now - passed >= grace);
            if (stay.contains(offset) && !may_go) || *offset >= self.high_watermark {
                return Err(format!(
                    "{record:?} at {offset} is gone, committed below {}",
                    self.high_watermark
                ));
            }
        }
        if table(kept()) != table(there.records.iter()) {
            return Err("a key that was deleted is back".to_owned());
        }
        let mut epochs = Vec::new();
        for (offset, record) in kept() {
            note_epoch(&mut epochs, LeaderEpoch(record.epoch), Offset(*offset));
        }
        if there.epochs != epochs {
            return Err(format!("epochs {:?}, not {epochs:?}", there.epochs));
        }
        let mut producers = ProducerTable::new(small_log(Durability::Fsync).producer_expiry);
        self.headers.range(..there.log_end).for_each(|(_, header)| producers.apply(header));
        if there.producers != producers {
            return Err(format!("producers {:?}, not {producers:?}", there.producers));
        }
        Ok(())
    }
}

/// The values of all keys.
fn table<'a>(records: impl Iterator<Item = (&'a u64, &'a Keyed)>) -> BTreeMap<u64, u64> {
    let mut table = BTreeMap::new();
    for (_, record) in records {
        match record.value {
            Some(value) => table.insert(record.key, value),
            None => table.remove(&record.key),
        };
    }
    table
}

/// Everything that can be seen of a log: every offset is covered by a batch.
///
/// # Errors
/// When something is served that is not right by itself.
pub fn held(log: &mut Log) -> Result<Held, String> {
    let mut held = Held {
        log_start: log.log_start().get(),
        log_end: log.log_end().get(),
        records: BTreeMap::new(),
        epochs: Vec::new(),
        producers: log.producers().clone(),
    };
    let mut next = log.log_start();
    while next < log.log_end() {
        let mut plan = log.plan_read(next, log.log_end(), 1 << 16).map_err(|error| error.to_string())?;
        let read = plan.ready().unwrap_or_else(|| plan.execute()).map_err(|error| error.to_string())?;
        let mut rest = Bytes::from(read.concat());
        if rest.is_empty() {
            return Err(format!("nothing at {next}"));
        }
        while !rest.is_empty() {
            let records = Records::verify(&rest, PARTITION).map_err(|error| error.to_string())?;
            let header = *records.header();
            if header.leader.base_offset != next {
                return Err(format!("a batch at {} where {next} is next", header.leader.base_offset));
            }
            let epoch = header.leader.leader_epoch;
            note_epoch(&mut held.epochs, epoch, next);
            for record in &records {
                let record = record.map_err(|error| error.to_string())?;
                let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
                let key = record.key.and_then(number).ok_or("a record without a key")?;
                let keyed = Keyed { key, value: record.value.and_then(number), epoch: epoch.get() };
                held.records.insert(record.offset.get(), keyed);
            }
            next = header.end_offset();
            rest = rest.slice(header.length()..);
        }
    }
    Ok(held)
}

fn remove_snapshots(disk: &SimDisk) -> Result<(), String> {
    let files = disk.mount();
    for (path, _) in disk.files() {
        if path.extension().is_some_and(|extension| extension == "producers") {
            files.remove_file(&path).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

fn no_violations(disk: &SimDisk) -> Result<(), String> {
    let violations = disk.violations();
    if violations.is_empty() {
        Ok(())
    } else {
        Err(format!("mapped bytes are not immutable: {violations:?}"))
    }
}
