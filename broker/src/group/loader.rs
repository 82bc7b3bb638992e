//! Reading the state of a shard from the log: everything from its start to where this leader has begun to write.

use std::sync::Arc;

use highwater_broker_core::group::GroupShard;
use highwater_protocol::batch::{RecordRef, Records, RecordsError};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{LeaderEpoch, Offset, TopicPartition};
use tokio::sync::Semaphore;

use super::journal::{Journal, barrier, is_barrier};
use crate::api::ApiError;
use crate::io_thread;
use crate::partition::handle::PartitionHandle;
use crate::partition::reads::read_error;
use crate::storage::file_system::FileSystem;
use crate::storage::read_plan::ReadPlan;

/// Bytes that are read and taken in at a time: what a load holds in memory besides the state itself.
const READ_BYTES: usize = 1 << 20;
/// Shards that are read at once. Fewer than there are threads for cold reads: others read, too.
pub(super) const LOADS_AT_ONCE: usize = 3;

/// What a load went through.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loaded {
    /// Records that were taken in.
    pub(super) records: u64,
    /// Bytes of their batches.
    pub(super) bytes: u64,
}

/// Reads shards.
#[derive(Debug, Clone)]
pub(super) struct Loader {
    pub(super) file_system: Arc<dyn FileSystem>,
    pub(super) at_once: Arc<Semaphore>,
}

impl Loader {
    /// Reads the state that the partition has at `epoch` into `shard`.
    ///
    /// A record that says nothing is written first. When it is committed, everything before it is, and no other leader
    /// can have written since: what is read up to there is everything that was ever acknowledged.
    ///
    /// # Errors
    /// When this broker does not lead at that epoch any more, or reading fails.
    pub(super) async fn load(
        &self,
        handle: &PartitionHandle,
        journal: &mut Journal,
        epoch: LeaderEpoch,
        mut shard: Box<GroupShard>,
    ) -> Result<(Box<GroupShard>, Loaded), ApiError> {
        journal.take(vec![barrier()], None);
        journal.send();
        let end = Offset(journal.committed().await?);
        let mut loaded = Loaded::default();
        let mut from = handle.status().log_start;
        while from < end {
            // The semaphore is never closed.
            let _permit = self.at_once.acquire().await;
            let offer = handle.plan_read(from, READ_BYTES).await?;
            if offer.leader_epoch != epoch {
                let text = format!("another leader epoch of partition {} has begun", handle.partition());
                return Err(ApiError::new(ErrorCode::NotLeader, text));
            }
            let Some(plan) = offer.plan else { return Err(nothing_there(handle.partition(), from)) };
            let (partition, before) = (handle.partition(), from);
            let job = move || take_in(plan, partition, end, before, shard, loaded);
            let taken = io_thread::run(&*self.file_system, job).await;
            let ended = || ApiError::new(ErrorCode::StorageError, "the I/O thread ended");
            (shard, from, loaded) = taken.ok_or_else(ended)??;
            if from == before {
                return Err(nothing_there(handle.partition(), from));
            }
        }
        Ok((shard, loaded))
    }
}

/// Hole H24: a record that this version does not understand is not passed over, or positions would be lost with it.
fn replay(shard: &mut GroupShard, partition: TopicPartition, record: &RecordRef<'_>) -> Result<(), ApiError> {
    let Some(key) = record.key.filter(|key| !is_barrier(key)) else { return Ok(()) };
    shard.replay(key, record.value).map_err(|error| {
        let text = format!("partition {partition} has a bad record at {}: {error}", record.offset);
        ApiError::new(ErrorCode::CorruptBatch, text)
    })
}

type TakenIn = (Box<GroupShard>, Offset, Loaded);

/// One step, on an I/O thread: it may wait for the disk, and takes a while.
fn take_in(
    mut plan: ReadPlan,
    partition: TopicPartition,
    end: Offset,
    from: Offset,
    mut shard: Box<GroupShard>,
    mut loaded: Loaded,
) -> Result<TakenIn, ApiError> {
    let batches = plan.execute().map_err(|error| read_error(&error))?;
    let mut next = from;
    for mut rest in batches {
        while !rest.is_empty() {
            let records = Records::verify(&rest, partition).map_err(|error| bad(partition, next, &error))?;
            let length = records.header().length();
            rest = rest.split_off(length);
            loaded.bytes += length as u64;
            for record in &records {
                let record = record.map_err(|error| bad(partition, next, &error))?;
                // The first batch may begin before what is wanted, and the last go beyond it.
                if record.offset >= from && record.offset < end {
                    replay(&mut shard, partition, &record)?;
                    loaded.records += 1;
                }
            }
            // A cleaned batch has fewer records than offsets.
            next = next.max(records.header().end_offset());
        }
    }
    Ok((shard, next, loaded))
}

fn bad(partition: TopicPartition, at: Offset, error: &RecordsError) -> ApiError {
    ApiError::new(ErrorCode::CorruptBatch, format!("partition {partition} has a bad batch at {at}: {error}"))
}

fn nothing_there(partition: TopicPartition, at: Offset) -> ApiError {
    ApiError::new(ErrorCode::StorageError, format!("nothing could be read of partition {partition} at {at}"))
}
