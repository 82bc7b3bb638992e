//! A log: appended to, and read from its mapping.

use std::sync::Arc;

use anyhow::{Result, ensure};
use bytes::Bytes;
use highwater_broker::storage::config::{LogConfig, StoreConfig};
use highwater_broker::storage::log::{Log, StampedBatch};
use highwater_broker::storage::real::RealFileSystem;
use highwater_broker::storage::sink::{FlushOutcome, FlushSink};
use highwater_broker::storage::store::Store;
use highwater_broker_core::durability::Durability;
use highwater_protocol::batch::{BatchHeader, HEADER_LENGTH, LeaderStamp};
use highwater_protocol::ids::{DirectoryId, LeaderEpoch, Offset, PartitionId, TopicId, TopicPartition};
use tempfile::TempDir;

use super::codec::batch_of;
use super::{Each, Repeat};

const PARTITION: TopicPartition = TopicPartition::new(TopicId(1), PartitionId(0));

/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;

/// Batches in the log that is read: 32 MiB.
const BATCHES: u64 = 512;

/// Nobody waits for flushes here.
struct Deaf;

impl FlushSink for Deaf {
    fn flush_done(&self, _outcome: FlushOutcome) {}
}

/// A log in a directory of its own, and the batch that goes into it.
struct Fixture {
    log: Log,
    sent: Bytes,
    header: BatchHeader,
    append_time: i64,
    // Dropped, and so removed, after the log is closed.
    _store: Arc<Store>,
    _directory: TempDir,
}

impl Fixture {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let config = StoreConfig { disk_reserve_bytes: 0, ..StoreConfig::default() };
        let (store, _) =
            Store::open(Arc::new(RealFileSystem::default()), directory.path(), config, DirectoryId(1))?;
        let config = LogConfig { durability: Durability::Os, ..LogConfig::default() };
        let (log, _) = store.open_log(PARTITION, config, Arc::new(Deaf))?;
        let sent = batch_of(64 << 10, 1000, PARTITION)?;
        let header = BatchHeader::decode(&sent)?;
        Ok(Self { log, sent, header, append_time: 1, _store: store, _directory: directory })
    }

    fn append(&mut self) -> Result<()> {
        self.append_time += 1;
        let leader = LeaderStamp {
            base_offset: self.log.log_end(),
            leader_epoch: LeaderEpoch(1),
            append_time: self.append_time,
            ..LeaderStamp::default()
        };
        let stamped = StampedBatch {
            head: self.header.stamped(leader, PARTITION),
            tail: self.sent.slice(HEADER_LENGTH..),
            header: BatchHeader { leader, ..self.header },
        };
        Ok(self.log.append(&[stamped])?)
    }

    /// Reads from `from` and returns where that ended; at the log end it starts over.
    fn read(&mut self, from: Offset) -> Result<Offset> {
        let mut plan = self.log.plan_read(from, self.log.log_end(), READ_BYTES)?;
        let batches = match plan.ready() {
            Some(batches) => batches?,
            None => plan.execute()?,
        };
        let bytes: usize = batches.iter().map(Bytes::len).sum();
        ensure!(bytes > READ_BYTES / 2, "{bytes} bytes were read");
        let read = (bytes / self.sent.len()) as u64 * u64::from(self.header.producer.record_count);
        let next = from.get() + read;
        // The last read may be a short one.
        Ok(Offset(if next + read > self.log.log_end().get() { 0 } else { next }))
    }
}

pub(super) fn append() -> Result<Box<dyn Repeat>> {
    let mut fixture = Fixture::new()?;
    Ok(Box::new(Each(move || fixture.append())))
}

pub(super) fn read() -> Result<Box<dyn Repeat>> {
    let mut fixture = Fixture::new()?;
    for _ in 0..BATCHES {
        fixture.append()?;
    }
    let mut from = Offset::ZERO;
    Ok(Box::new(Each(move || {
        from = fixture.read(from)?;
        Ok(from)
    })))
}
