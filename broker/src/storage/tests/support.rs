//! A store in a temporary directory, and batches to put into it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use highwater_protocol::batch::{BatchBuilder, BatchHeader, HEADER_LENGTH, LeaderStamp, Records};
use highwater_protocol::compression::Compression;
use highwater_protocol::ids::{DirectoryId, LeaderEpoch, Offset, PartitionId, TopicId, TopicPartition};

use crate::storage::config::{LogConfig, StoreConfig};
use crate::storage::error::ReadError;
use crate::storage::log::{Log, RecoveryReport, StampedBatch};
use crate::storage::real::RealFileSystem;
use crate::storage::sink::{FlushOutcome, FlushSink};
use crate::storage::store::Store;

pub(super) const PARTITION: TopicPartition = TopicPartition::new(TopicId(77), PartitionId(0));
const DEADLINE: Duration = Duration::from_secs(30);

pub(super) struct Directory(tempfile::TempDir);

struct ChannelSink(SyncSender<FlushOutcome>);

impl FlushSink for ChannelSink {
    fn flush_done(&self, outcome: FlushOutcome) {
        // The log may be gone by now.
        drop(self.0.send(outcome));
    }
}

/// An open log, with what it hears from the flusher.
pub(super) struct Opened {
    pub(super) store: Arc<Store>,
    pub(super) log: Log,
    pub(super) report: RecoveryReport,
    pub(super) outcomes: Receiver<FlushOutcome>,
}

impl Directory {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn root(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    pub(super) fn partition(&self) -> PathBuf {
        self.0.path().join("topics").join(PARTITION.topic_id.to_string()).join("0")
    }

    pub(super) fn files(&self, suffix: &str) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(self.partition())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().ends_with(suffix))
            .collect();
        paths.sort();
        paths
    }

    pub(super) fn store(&self) -> Arc<Store> {
        self.store_with(StoreConfig { disk_reserve_bytes: 0, ..StoreConfig::default() })
    }

    pub(super) fn store_with(&self, config: StoreConfig) -> Arc<Store> {
        let fs = Arc::new(RealFileSystem::default());
        Store::open(fs, self.0.path(), config, DirectoryId(1)).unwrap().0
    }

    pub(super) fn open(&self, config: LogConfig) -> Opened {
        open_in(self.store(), PARTITION, config)
    }
}

pub(super) fn open_in(store: Arc<Store>, partition: TopicPartition, config: LogConfig) -> Opened {
    let (sender, outcomes) = sync_channel(10_000);
    let (log, report) = store.open_log(partition, config, Arc::new(ChannelSink(sender))).unwrap();
    Opened { store, log, report, outcomes }
}

pub(super) fn small_segments() -> LogConfig {
    let mut config = LogConfig::default();
    config.limits.segment_bytes = 64 << 10;
    config
}

/// A batch of `count` records of `size` bytes each; the value of a record says its offset.
pub(super) fn batch(
    partition: TopicPartition,
    offset: u64,
    count: u64,
    size: usize,
    time: i64,
) -> StampedBatch {
    let mut builder = BatchBuilder::with_capacity(count as usize * (size + 20) + 100);
    for number in 0..count {
        builder.push(time, None, Some(&value(offset + number, size)), &[]);
    }
    let sent = builder.build(partition, Compression::None).unwrap();
    let header = BatchHeader::decode(&sent).unwrap();
    let stamp = LeaderStamp {
        base_offset: Offset(offset),
        leader_epoch: LeaderEpoch(1),
        append_time: time * 1000,
        durable_end: Offset(0),
        ..LeaderStamp::default()
    };
    stamped(header, stamp, partition, &sent)
}

pub(super) fn stamped(
    header: BatchHeader,
    stamp: LeaderStamp,
    partition: TopicPartition,
    sent: &Bytes,
) -> StampedBatch {
    let head = header.stamped(stamp, partition);
    let tail = sent.slice(HEADER_LENGTH..);
    StampedBatch { head, tail, header: BatchHeader { leader: stamp, ..header } }
}

fn value(offset: u64, size: usize) -> Vec<u8> {
    let mut value = vec![(offset % 251) as u8; size.max(8)];
    value[..8].copy_from_slice(&offset.to_le_bytes());
    value
}

impl Opened {
    /// Appends a batch of 10 records of `size` bytes, `times` times.
    pub(super) fn append(&mut self, times: usize, size: usize) {
        for _ in 0..times {
            let end = self.log.log_end().get();
            let batch = batch(self.log.partition(), end, 10, size, end as i64);
            self.log.append(&[batch]).unwrap();
        }
    }

    /// Waits until everything is flushed.
    pub(super) fn flush(&mut self) {
        self.log.request_flush();
        while self.log.flushed_end() < self.log.log_end() {
            match self.outcomes.recv_timeout(DEADLINE).expect("a flush in time") {
                FlushOutcome::Flushed { log_generation, upto } => {
                    self.log.flushed(log_generation, upto);
                }
                FlushOutcome::Failed { error, .. } => panic!("flush failed: {error}"),
            }
        }
    }

    /// Reads everything from `from` on, checks every record, and returns the end.
    pub(super) fn read_all(&mut self, from: u64) -> Result<u64, ReadError> {
        let mut next = from;
        loop {
            let mut plan = self.log.plan_read(Offset(next), self.log.log_end(), 100_000)?;
            if plan.is_empty() {
                return Ok(next);
            }
            let batches = match plan.ready() {
                Some(ready) => ready?,
                None => plan.execute()?,
            };
            next = check(self.log.partition(), &batches, next);
        }
    }

    /// The batch with `from`, as slices.
    pub(super) fn read_one(&mut self, from: u64) -> Vec<Bytes> {
        self.log.plan_read(Offset(from), self.log.log_end(), 1).unwrap().execute().unwrap()
    }

    pub(super) fn close(self) {
        let closed = self.log.close().unwrap();
        self.store.close(&[closed]).unwrap();
    }
}

/// Checks that whole batches come from `from` on, and returns where they end.
pub(super) fn check(partition: TopicPartition, pieces: &[Bytes], from: u64) -> u64 {
    let all = Bytes::from(pieces.concat());
    assert!(!all.is_empty(), "nothing at {from}");
    let mut rest = all;
    let mut next = None;
    while !rest.is_empty() {
        let records = Records::verify(&rest, partition).unwrap();
        let header = *records.header();
        let base = header.leader.base_offset.get();
        assert_eq!(next.unwrap_or(base), base, "offsets go on");
        assert!(next.is_some() || (base <= from && from < header.end_offset().get()), "{base} for {from}");
        for record in records.iter() {
            let record = record.unwrap();
            let value = record.value.unwrap();
            assert_eq!(value[..8], record.offset.get().to_le_bytes());
        }
        next = Some(header.end_offset().get());
        rest = rest.slice(header.length()..);
    }
    next.unwrap()
}

/// Waits until all sealed segments are listed.
pub(super) fn wait_for_manifest(opened: &mut Opened) {
    let sealed = opened.log.segment_count() - usize::from(opened.log.has_active());
    wait_until(|| opened.log.listed_segments() == Some(sealed));
}

/// Waits for a condition, with a deadline.
pub(super) fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "in time");
        std::thread::yield_now();
    }
}
