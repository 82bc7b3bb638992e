//! What replicas ask of each other apart from subscriptions: starting over, repair; and comparing them.

use bytes::Bytes;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::Offset;
use highwater_protocol::limits::PUSH_BYTES;
use highwater_protocol::messages::{
    CorruptRange, EpochEntry, ReplicaChecksumReply, ReplicaChecksumRequest, ReplicaReadReply,
    ReplicaReadRequest, ReplicaResetReply, ReplicaResetRequest,
};

use super::{ApiError, partition_of};
use crate::partition::reads::read_error;
use crate::server::Node;
use crate::server::principal::{Operation, Principal};
use crate::storage::table_plan::KeySlice;

/// Bytes of one step of a comparison.
const CHECKSUM_BYTES: u64 = 8 << 20;

/// Where a follower starts over whose log ends below the log start; the attachment has the producers as they were there.
pub(crate) async fn reset(
    node: &Node,
    principal: &Principal,
    request: ReplicaResetRequest,
) -> Result<(ReplicaResetReply, Vec<Bytes>), ApiError> {
    principal.authorise(Operation::Replicate)?;
    let handle = node.partitions.find(partition_of(request.topic_id, request.partition)?)?;
    let start = handle.log_start().await?;
    let epoch = handle.status().leader_epoch.get();
    if epoch != request.leader_epoch {
        return Err(ApiError::new(
            ErrorCode::FencedEpoch,
            format!("the leader epoch is {epoch}, the request names {}", request.leader_epoch),
        ));
    }
    let entry = |start: &highwater_broker_core::log::manifest::EpochStart| EpochEntry {
        epoch: start.epoch.get(),
        start: start.start.get(),
    };
    let epochs = start.epochs.iter().map(entry).collect();
    let attachment = if start.producers.is_empty() { Vec::new() } else { vec![start.producers] };
    Ok((ReplicaResetReply { log_start: start.log_start.get(), epochs }, attachment))
}

/// Reads a range of this replica's log, whoever leads.
pub(crate) async fn read(
    node: &Node,
    principal: &Principal,
    request: ReplicaReadRequest,
) -> Result<(ReplicaReadReply, Vec<Bytes>), ApiError> {
    principal.authorise(Operation::Replicate)?;
    let handle = node.partitions.find(partition_of(request.topic_id, request.partition)?)?;
    let bytes_max = match request.bytes_max as usize {
        0 => PUSH_BYTES,
        bytes => bytes.min(PUSH_BYTES),
    };
    let read = handle.read_replica(Offset(request.start), Offset(request.end), bytes_max).await?;
    let batches = match read.plan {
        None => Vec::new(),
        Some(mut plan) => match plan.ready() {
            Some(read) => read,
            None => {
                // The semaphore is never closed.
                let _permit = node.replica_reads.acquire().await;
                plan.run().await
            }
        }
        .map_err(|error| read_error(&error))?,
    };
    let reply = ReplicaReadReply { log_start: read.log_start.get(), log_end: read.log_end.get() };
    Ok((reply, batches))
}

/// A checksum over a range of this replica, whoever leads. Whoever may read the records may compare them.
pub(crate) async fn checksum(
    node: &Node,
    principal: &Principal,
    request: ReplicaChecksumRequest,
) -> Result<ReplicaChecksumReply, ApiError> {
    principal.authorise(Operation::Consume)?;
    let handle = node.partitions.find(partition_of(request.topic_id, request.partition)?)?;
    let bytes_max = match u64::from(request.bytes_max) {
        0 => CHECKSUM_BYTES,
        bytes => bytes.min(CHECKSUM_BYTES),
    };
    let end = (request.end > 0).then_some(Offset(request.end));
    let keys =
        (request.key_slices > 0).then_some(KeySlice { slices: request.key_slices, slice: request.key_slice });
    // The semaphore is never closed.
    let _permit = node.replica_reads.acquire().await;
    let found = handle.checksum(Offset(request.start), end, bytes_max, keys).await?;
    let range = &found.range;
    if !range.corrupt.is_empty() {
        // What was found is reported and repaired now, not at the next round.
        handle.maintain(node.clock.wall());
    }
    Ok(ReplicaChecksumReply {
        start: range.start.get(),
        end: range.end.get(),
        checksum: range.checksum,
        batches: range.batches,
        corrupt: range
            .corrupt
            .iter()
            .map(|range| CorruptRange { start: range.start.get(), end: range.end.get() })
            .collect(),
        log_start: found.log_start.get(),
        log_end: found.log_end.get(),
        high_watermark: found.high_watermark.get(),
        compacted: found.compacted_end.is_some(),
        compacted_end: found.compacted_end.map_or(0, Offset::get),
        key_slices_needed: found.slices_needed.unwrap_or(0),
    })
}
