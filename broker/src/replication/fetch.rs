//! Requests of one replica to another: where to start over, and what is in a range.

use std::time::Duration;

use highwater_broker_core::log::manifest::EpochStart;
use highwater_client::wire::Error;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{LeaderEpoch, NodeId, Offset, TopicPartition};
use highwater_protocol::messages::{EpochEntry, ReplicaReadRequest, ReplicaResetRequest};
use tokio::time::Instant;
use tracing::debug;

use super::fetched::read_batches;
use super::links::Links;
use crate::api::ApiError;
use crate::partition::mailbox::LogStart;
use crate::storage::log::StampedBatch;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes that are fetched for one hole at the most: what is held in memory until it is filled.
const HOLE_BYTES_MAX: usize = 64 << 20;

/// Asks `leader` where its log starts.
///
/// # Errors
/// When it cannot be reached, or does not lead in this epoch.
pub(crate) async fn log_start(
    links: &Links,
    leader: NodeId,
    partition: TopicPartition,
    epoch: LeaderEpoch,
) -> Result<LogStart, ApiError> {
    let connection = links.dial(leader).await?;
    let request = ReplicaResetRequest {
        topic_id: Some(partition.topic_id.into()),
        partition: partition.partition.get(),
        leader_epoch: epoch.get(),
        replica: None,
    };
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    let (reply, producers) = connection.request(&request, deadline).await.map_err(|error| failed(&error))?;
    let start =
        |entry: &EpochEntry| EpochStart { epoch: LeaderEpoch(entry.epoch), start: Offset(entry.start) };
    let epochs = reply.epochs.iter().map(start).collect();
    Ok(LogStart { log_start: Offset(reply.log_start), epochs, producers })
}

/// Asks the replicas on `sources`, one after another, for the batches of a range.
///
/// # Errors
/// When none has all of them.
pub(crate) async fn range(
    links: &Links,
    sources: &[NodeId],
    partition: TopicPartition,
    range: (Offset, Offset),
) -> Result<Vec<StampedBatch>, ApiError> {
    let mut last = ApiError::new(ErrorCode::NotEnoughReplicas, "there is no other replica to ask");
    for source in sources {
        match range_of(links, *source, partition, range).await {
            Ok(batches) => return Ok(batches),
            Err(error) => {
                debug!(%partition, %source, %error, "a replica could not give what is missing");
                last = error;
            }
        }
    }
    Err(last)
}

async fn range_of(
    links: &Links,
    source: NodeId,
    partition: TopicPartition,
    (start, end): (Offset, Offset),
) -> Result<Vec<StampedBatch>, ApiError> {
    let connection = links.dial(source).await?;
    let (mut batches, mut bytes, mut at) = (Vec::new(), 0, start);
    while at < end {
        let request = ReplicaReadRequest {
            topic_id: Some(partition.topic_id.into()),
            partition: partition.partition.get(),
            start: at.get(),
            // A batch of a replica that is compacted may begin before the range and end behind it.
            end: u64::MAX,
            bytes_max: 0,
        };
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let (_, attachment) = connection.request(&request, deadline).await.map_err(|error| failed(&error))?;
        bytes += attachment.len();
        let read = read_batches(attachment, partition)
            .map_err(|error| bad(source, &format!("a batch of it is bad: {error}")))?;
        for batch in read {
            if at >= end {
                // What comes behind the range was not asked for.
                break;
            }
            if batch.header.leader.base_offset > at {
                return Err(bad(source, &format!("a batch at {at} is missing")));
            }
            let trimmed = batch
                .trimmed(at..end, partition)
                .map_err(|error| bad(source, &format!("its batch at {at} cannot be cut: {error}")))?;
            if let Some(batch) = trimmed {
                at = batch.header.end_offset();
                batches.push(batch);
            }
        }
        if request.start == at.get() {
            return Err(bad(source, &format!("nothing came for offset {at}")));
        }
        if bytes >= HOLE_BYTES_MAX {
            // The rest of the hole is asked for when this is filled in.
            break;
        }
    }
    Ok(batches)
}

fn failed(error: &Error) -> ApiError {
    ApiError::new(error.code().unwrap_or(ErrorCode::StorageError), error.to_string())
}

fn bad(source: NodeId, what: &str) -> ApiError {
    ApiError::new(ErrorCode::CorruptBatch, format!("broker {source} does not have the range: {what}"))
}
