//! One log on a simulated disk, and the model that it is held against.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use highwater_broker::env::Clock;
use highwater_broker::storage::config::{LogConfig, StoreConfig};
use highwater_broker::storage::error::{AppendError, Error, ReadError};
use highwater_broker::storage::log::{Log, RecoveryReport, StampedBatch};
use highwater_broker::storage::sink::{FlushOutcome, FlushSink};
use highwater_broker::storage::store::{Store, StoreReport};
use highwater_broker_core::durability::Durability;
use highwater_broker_core::log::retention::Limits;
use highwater_protocol::batch::{BatchHeader, HEADER_LENGTH, LeaderStamp};
use highwater_protocol::ids::{
    DirectoryId, LeaderEpoch, Offset, PartitionId, ProducerId, TopicId, TopicPartition,
};
use parking_lot::Mutex;

use super::batches::{self, Seen};
use super::clock::SimClock;
use super::disk::{Flushes, SimDisk};
use super::log_model::{Contents, Crash, LogModel};
use super::random::Random;

/// Where the simulated broker keeps its data.
pub const ROOT: &str = "/data";

/// The partition of the log.
pub const PARTITION: TopicPartition = TopicPartition::new(TopicId(0x51b), PartitionId(3));

/// Completions that wait for the log's owner.
#[derive(Debug, Default)]
pub struct Outcomes(Mutex<Vec<FlushOutcome>>);

impl FlushSink for Outcomes {
    fn flush_done(&self, outcome: FlushOutcome) {
        self.0.lock().push(outcome);
    }
}

impl Outcomes {
    /// What has come since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<FlushOutcome> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// A running process: the store of its data directory and one open log.
#[derive(Debug)]
pub struct Running {
    /// The log.
    pub log: Log,
    /// What opening the log found.
    pub report: RecoveryReport,
    /// The data directory.
    pub store: Arc<Store>,
    /// What opening the directory found.
    pub store_report: StoreReport,
    /// The log's flush completions.
    pub outcomes: Arc<Outcomes>,
}

/// A log, its disk, and what is known about both.
#[derive(Debug)]
pub struct LogWorld {
    /// The machine's disk.
    pub disk: SimDisk,
    /// Its clock.
    pub clock: Arc<SimClock>,
    /// Decides everything.
    pub random: Random,
    /// What the log promised.
    pub model: LogModel,
    /// Its settings.
    pub config: LogConfig,
    /// The process, while it lives.
    pub running: Option<Running>,
    /// Epoch and next sequence of each producer.
    producers: [(u16, u32); PRODUCERS],
}

/// Idempotent producers that write.
const PRODUCERS: usize = 4;

/// Small segments, so that short histories roll.
#[must_use]
pub const fn small_log(durability: Durability) -> LogConfig {
    LogConfig {
        limits: Limits {
            segment_bytes: 16 << 10,
            segment_age: Duration::from_secs(3600),
            retention_bytes: None,
            retention_age: None,
        },
        durability,
        compaction: None,
        producer_expiry: Duration::from_secs(3600),
    }
}

impl LogWorld {
    /// A formatted, empty data directory whose flush rounds the test completes.
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
        let mut world = Self {
            disk,
            clock: Arc::new(SimClock::default()),
            random: Random::new(seed),
            model: LogModel::default(),
            config: small_log(Durability::Fsync),
            running: None,
            producers: [(0, 0); PRODUCERS],
        };
        match open(&world.disk, world.config) {
            Ok(running) => world.running = Some(running),
            Err(error) => panic!("open a new data directory: {error}"),
        }
        world
    }

    /// The open log.
    ///
    /// # Panics
    /// When the process is dead: the test has to start it.
    pub fn log(&mut self) -> &mut Log {
        match &mut self.running {
            Some(running) => &mut running.log,
            None => panic!("the process is dead"),
        }
    }

    /// Appends `batch_count` batches in one call and tells the model.
    ///
    /// # Errors
    /// What the log answered.
    pub fn append(&mut self, batch_count: u64, value_bytes: usize) -> Result<(), AppendError> {
        let mut batches = Vec::new();
        let mut offset = self.model.written_end;
        let mut ids = 0..0;
        for number in 0..batch_count {
            let count = 1 + self.random.below(6);
            let new = self.model.new_ids(count);
            let start = if number == 0 { new.start } else { ids.start };
            ids = start..new.end;
            let timestamp = self.clock.wall().as_millis();
            let producer = self.next_producer(count);
            let sent =
                batches::produced_by(producer, PARTITION, new, value_bytes, timestamp, &mut self.random);
            batches.push(stamped(
                &sent,
                LeaderStamp {
                    leader_flags: 0,
                    base_offset: Offset(offset),
                    leader_epoch: LeaderEpoch(self.model.epoch),
                    append_time: self.clock.wall().0,
                    durable_end: Offset(self.model.high_watermark),
                },
            ));
            offset += count;
            self.model.batch_ends_at(offset);
        }
        let count = ids.end - ids.start;
        self.model.append_begins(ids);
        let result = self.log().append(&batches);
        match &result {
            Ok(()) => self.model.append_succeeded(count, batches.iter().map(|batch| batch.header)),
            // The crash that is under way decides about it.
            Err(_) if !self.disk.has_power() => {}
            Err(AppendError::Stuck { .. }) => self.model.append_stuck(),
            Err(_) => self.model.append_refused(),
        }
        result
    }

    /// Who sends the next batch of `count` records: mostly a producer that goes on where it was, now and then one that
    /// starts over, or is not at all where it should be, or nobody who is idempotent.
    fn next_producer(&mut self, count: u64) -> Option<(ProducerId, u16, u32)> {
        if self.random.percent(30) {
            return None;
        }
        let id = self.random.index(PRODUCERS);
        let (mut epoch, mut first) = self.producers[id];
        match self.random.below(20) {
            0 => (epoch, first) = (epoch + 1, 0),
            1 => first = self.random.below(1 << 31) as u32,
            _ => {}
        }
        self.producers[id] = (epoch, (first + count as u32) % (1 << 31));
        Some((ProducerId(id as u64), epoch, first))
    }

    /// Passes completions on to the log, as its owner does, and tells the model.
    ///
    /// # Errors
    /// When the log claims more than was written, or a flush failed and the log is not what it should be after that.
    pub fn take_outcomes(&mut self) -> Result<(), String> {
        let outcomes = self.running.as_ref().map(|running| running.outcomes.take()).unwrap_or_default();
        for outcome in outcomes {
            match outcome {
                FlushOutcome::Flushed { log_generation, upto } => {
                    self.log().flushed(log_generation, upto);
                    let end = self.log().flushed_end().get();
                    if end > self.model.written_end {
                        return Err(format!("flushed end {end} past the log end {}", self.model.written_end));
                    }
                    self.model.flushed(end);
                }
                FlushOutcome::Failed { .. } if self.disk.has_power() => self.verify()?,
                FlushOutcome::Failed { .. } => {}
            }
        }
        Ok(())
    }

    /// What an owner does after a failed flush.
    ///
    /// # Errors
    /// When the log is not what it should be after that.
    pub fn verify(&mut self) -> Result<(), String> {
        self.model.flush_failed = true;
        let mut verified = Ok(());
        // Whatever fails now, trying again later has to come to an end.
        for _ in 0..10 {
            verified = self.log().mark_suspect().and_then(|()| self.log().verify_suspect().map(drop));
            if verified.is_ok() || !self.disk.has_power() {
                break;
            }
        }
        if let Err(error) = verified {
            return if self.disk.has_power() {
                Err(format!("verify after a failed flush: {error}"))
            } else {
                Ok(())
            };
        }
        let there = match self.contents() {
            Err(_) if !self.disk.has_power() => return Ok(()),
            there => there?,
        };
        self.check_recovered(&there, Crash::Process)?;
        self.model.adopt(&there);
        Ok(())
    }

    /// Whether what was found is what was promised, and what is known about producers is what the batches say, those
    /// included that retention let go.
    fn check_recovered(&self, there: &Contents, crash: Crash) -> Result<(), String> {
        self.model.check_recovered(there, crash)?;
        let expected = self.model.producers(self.config.producer_expiry, there.log_start, &there.batches);
        if there.producers != expected {
            return Err(format!(
                "after a {crash:?} crash {:?}, the batches say {expected:?}",
                there.producers
            ));
        }
        Ok(())
    }

    /// Everything that can be seen of the open log.
    ///
    /// # Errors
    /// When something is served that is not a good batch.
    pub fn contents(&mut self) -> Result<Contents, String> {
        match &mut self.running {
            Some(running) => contents(&mut running.log),
            None => Err("the process is dead".to_owned()),
        }
    }

    /// The process dies: the power is cut or it is killed.
    pub fn crash(&mut self, crash: Crash) {
        let running = self.running.take();
        match crash {
            Crash::Process => self.disk.process_crash(),
            Crash::Power => self.disk.power_cut(self.random.next_u64()),
        }
        drop(running);
    }

    /// Truncates the log as a follower does whose leader has other records from `to` on.
    ///
    /// # Errors
    /// When the log is not what it should be after that.
    pub fn truncate(&mut self, to: u64) -> Result<(), String> {
        let result = self.log().truncate(Offset(to));
        let Ok(end) = result else {
            // It may have happened or not: the log is verified, or a crash tells.
            let end = self.model.batch_end_before(to);
            self.model.truncation_unknown(end);
            return if self.disk.has_power() { self.verify() } else { Ok(()) };
        };
        let expected = self.model.batch_end_before(to);
        let (log_end, flushed_end) = (self.log().log_end().get(), self.log().flushed_end().get());
        if end.get() != expected || log_end != expected || flushed_end > expected {
            return Err(format!(
                "truncated to {to}: {end}, log end {log_end}, flushed end {flushed_end}, not {expected}"
            ));
        }
        self.model.truncated(expected);
        let known = self.log().producers().clone();
        if known != self.model.all_producers(self.config.producer_expiry) {
            return Err(format!(
                "truncated to {to}: other producers are known than the batches say: {known:?}"
            ));
        }
        Ok(())
    }

    /// Flushes everything and ends the process by itself.
    ///
    /// # Errors
    /// When it fails although there is power.
    pub fn stop_cleanly(&mut self) -> Result<(), String> {
        let Some(running) = self.running.take() else { return Err("the process is dead".to_owned()) };
        let Running { log, store, .. } = running;
        match log.close().and_then(|closed| store.close(&[closed])) {
            Err(error) if self.disk.has_power() => Err(format!("a clean stop: {error}")),
            _ => Ok(()),
        }
    }

    /// A clean stop and start.
    ///
    /// # Errors
    /// When anything is different afterwards.
    pub fn reopen_cleanly(&mut self) -> Result<(), String> {
        let before = match self.contents() {
            Err(_) if !self.disk.has_power() => return Ok(()),
            before => before?,
        };
        self.stop_cleanly()?;
        if !self.disk.has_power() {
            return Ok(());
        }
        // What was closed cleanly survives everything.
        let crash = if self.random.percent(50) { Crash::Power } else { Crash::Process };
        self.model.flushed(self.model.written_end);
        self.crash(crash);
        let running =
            open(&self.disk, self.config).map_err(|error| format!("open after a clean stop: {error}"))?;
        if !running.store_report.boot.clean {
            return Err("a clean stop was not recognised".to_owned());
        }
        self.running = Some(running);
        let there = self.contents()?;
        self.check_recovered(&there, Crash::Process)?;
        if (there.log_start, &there.records) != (before.log_start, &before.records) {
            return Err(format!("after a clean stop {there:?}, before it {before:?}"));
        }
        self.model.adopt(&there);
        Ok(())
    }

    /// Whether the power could be cut right now without loss of what was promised. The process lives on.
    ///
    /// # Errors
    /// What would be lost, or wrong.
    pub fn check_cut_now(&mut self) -> Result<(), String> {
        let disk = self.disk.fork();
        disk.power_cut(self.random.next_u64());
        self.check_recovery_of(&disk, Crash::Power).map(drop)
    }

    /// Whether the log that is opened on the disk as it is now holds what was promised, and the same once more when it
    /// is opened after another crash. Leaves the disk as it is.
    fn check_recovery_of(&mut self, crashed: &SimDisk, crash: Crash) -> Result<Contents, String> {
        let disk = crashed.fork();
        let mut first = open(&disk, self.config).map_err(|error| format!("recovery: {error}"))?;
        let there = contents(&mut first.log)?;
        self.check_recovered(&there, crash)?;
        check_quarantine(crashed, &disk, &first.report)?;
        for again in [Crash::Process, Crash::Power] {
            let disk = disk.fork();
            match again {
                Crash::Process => disk.process_crash(),
                Crash::Power => disk.power_cut(self.random.next_u64()),
            }
            let mut second = open(&disk, self.config).map_err(|error| format!("second recovery: {error}"))?;
            let there_again = contents(&mut second.log)?;
            if there_again != there {
                return Err(format!("recovery after {again:?} found {there_again:?}, before that {there:?}"));
            }
            check_violations(&disk)?;
        }
        check_violations(&disk)?;
        Ok(there)
    }

    /// Starts the process again after a crash, and holds what it finds against the model.
    ///
    /// # Errors
    /// What is wrong.
    pub fn recover(&mut self, crash: Crash) -> Result<(), String> {
        let disk = self.disk.fork();
        let expected = self.check_recovery_of(&disk, crash)?;
        let mut running = open(&self.disk, self.config).map_err(|error| format!("recovery: {error}"))?;
        let there = contents(&mut running.log)?;
        if there != expected {
            return Err(format!("the same recovery found {there:?} and {expected:?}"));
        }
        self.model.adopt(&there);
        // From here on the kernel is known again, as far as the log is concerned.
        if self.random.percent(70)
            && let Err(error) = running.store.boot_reported()
        {
            return Err(format!("note that the boot was reported: {error}"));
        }
        self.running = Some(running);
        Ok(())
    }
}

/// Opens the data directory and the log, as a process does that starts.
///
/// # Errors
/// When one of them cannot be opened.
pub fn open(disk: &SimDisk, config: LogConfig) -> Result<Running, Error> {
    let files = disk.mount();
    let store_config = StoreConfig { disk_reserve_bytes: 0, ..StoreConfig::default() };
    let (store, store_report) = Store::open(files, Path::new(ROOT), store_config, DirectoryId(0xd1))?;
    let outcomes = Arc::new(Outcomes::default());
    let sink: Arc<dyn FlushSink> = Arc::<Outcomes>::clone(&outcomes);
    let (log, report) = store.open_log(PARTITION, config, sink)?;
    Ok(Running { log, report, store, store_report, outcomes })
}

/// A batch as the leader writes it.
///
/// # Panics
/// When `sent` is no batch.
#[must_use]
pub fn stamped(sent: &Bytes, stamp: LeaderStamp) -> StampedBatch {
    let header = match BatchHeader::decode(sent) {
        Ok(header) => header,
        Err(error) => panic!("decode a batch: {error}"),
    };
    let head = header.stamped(stamp, PARTITION);
    let tail = sent.slice(HEADER_LENGTH..);
    match BatchHeader::decode(&[&head[..], &tail[..]].concat()) {
        Ok(header) => StampedBatch { head, tail, header },
        Err(error) => panic!("decode a stamped batch: {error}"),
    }
}

/// Everything that can be seen of a log.
///
/// # Errors
/// When something is served that is not a good batch.
pub fn contents(log: &mut Log) -> Result<Contents, String> {
    let (log_start, log_end) = (log.log_start().get(), log.log_end().get());
    let mut found = Contents {
        log_start,
        log_end,
        flushed_end: log.flushed_end().get(),
        holes: Vec::new(),
        records: Vec::new(),
        batches: Vec::new(),
        producers: log.producers().clone(),
    };
    let mut offset = log_start;
    let mut failures = 0;
    while offset < log_end {
        match read_with(log, offset, log_end, 1 << 20, |header| found.batches.push(*header)) {
            Ok(seen) => {
                let next = seen.last().map_or(0, |last| last.offset + 1);
                if next <= offset {
                    return Err(format!("a read at {offset} of {log_start}..{log_end} ended at {next}"));
                }
                found.records.extend(seen.into_iter().filter(|seen| seen.offset >= offset));
                offset = next;
            }
            Err(Unread::Failed(_)) if failures < 10 => failures += 1,
            Err(Unread::Hole(hole)) if hole.contains(&offset) => {
                offset = hole.end;
                found.holes.push(hole);
            }
            Err(Unread::Hole(hole)) => {
                return Err(format!("a read at {offset} told of the corrupt range {hole:?}"));
            }
            Err(unread) => return Err(format!("a read at {offset} of {log_start}..{log_end}: {unread:?}")),
        }
    }
    Ok(found)
}

/// Why a read returned no records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unread {
    /// They are corrupt, and the log says so.
    Hole(std::ops::Range<u64>),
    /// There is no whole batch within the bound.
    Nothing,
    /// Reading failed; it may succeed later.
    Failed(String),
    /// Something else.
    Wrong(String),
}

/// The records of the batches from the one that holds `from`, up to `upto`.
///
/// # Errors
/// When the log does not have them, or serves something that is not a good batch.
pub fn read(log: &mut Log, from: u64, upto: u64, bytes_max: usize) -> Result<Vec<Seen>, Unread> {
    read_with(log, from, upto, bytes_max, |_| {})
}

fn read_with(
    log: &mut Log,
    from: u64,
    upto: u64,
    bytes_max: usize,
    mut headers: impl FnMut(&BatchHeader),
) -> Result<Vec<Seen>, Unread> {
    let other = |error: ReadError| match error {
        ReadError::CorruptRange { start, end } => Unread::Hole(start.get()..end.get()),
        ReadError::Io(error) => Unread::Failed(error.to_string()),
        error => Unread::Wrong(error.to_string()),
    };
    let mut plan = log.plan_read(Offset(from), Offset(upto), bytes_max).map_err(other)?;
    let slices = plan.ready().unwrap_or_else(|| plan.execute()).map_err(other)?;
    let mut seen = Vec::new();
    for slice in slices {
        seen.extend(batches::records_of(slice, PARTITION, &mut headers).map_err(Unread::Wrong)?);
    }
    if seen.is_empty() { Err(Unread::Nothing) } else { Ok(seen) }
}

/// The files that recovery kept of what it cut.
#[must_use]
pub fn quarantined(disk: &SimDisk) -> Vec<Vec<u8>> {
    let kept = |path: &Path| path.parent().is_some_and(|parent| parent.ends_with("quarantine"));
    let files = disk.files();
    files.iter().filter(|(path, _)| kept(path)).filter_map(|(path, _)| disk.read(path).ok()).collect()
}

/// Whether what a recovery has cut off is in quarantine. `before`: the disk before it.
fn check_quarantine(before: &SimDisk, after: &SimDisk, report: &RecoveryReport) -> Result<(), String> {
    let Some(cut) = &report.cut else { return Ok(()) };
    let files = before.files();
    let Some((path, _)) =
        files.iter().find(|(path, _)| path.file_name().is_some_and(|name| *name == *cut.file))
    else {
        return Err(format!("{cut:?} names a file that is not there"));
    };
    let bytes = before.read(path).map_err(|error| error.to_string())?;
    let bytes = bytes.get(cut.position as usize..).unwrap_or_default();
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    // After a failed flush it is the disk that counts, and what the page cache shows behind it was never there.
    let wanted = if report.was_suspect { &[][..] } else { &bytes[..end] };
    let is_kept =
        |kept: &Vec<u8>| wanted.is_empty() || kept.windows(wanted.len()).any(|window| window == wanted);
    if quarantined(after).iter().any(is_kept) {
        Ok(())
    } else {
        Err(format!("what was cut off is not in quarantine: {cut:?}"))
    }
}

fn check_violations(disk: &SimDisk) -> Result<(), String> {
    let violations = disk.violations();
    if violations.is_empty() {
        Ok(())
    } else {
        Err(format!("mapped bytes are not immutable: {violations:?}"))
    }
}
