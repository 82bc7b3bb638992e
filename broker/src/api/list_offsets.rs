//! `ListOffsets`: finding offsets by position and by time.

use highwater_protocol::messages::{
    ListOffsetsReply, ListOffsetsRequest, OffsetQuery, OffsetResult, Position,
};

use super::{ApiError, partition_of};
use crate::partition::reads::read_error;
use crate::server::Node;
use crate::server::principal::{Operation, Principal};

pub(crate) async fn handle(
    node: &Node,
    principal: &Principal,
    request: ListOffsetsRequest,
) -> Result<ListOffsetsReply, ApiError> {
    principal.authorise(Operation::Consume)?;
    let mut results = Vec::with_capacity(request.queries.len());
    for query in &request.queries {
        results.push(find(node, query).await.unwrap_or_else(|error| OffsetResult {
            error: error.code.code(),
            message: error.message,
            timestamp_ms: -1,
            ..OffsetResult::default()
        }));
    }
    Ok(ListOffsetsReply { results })
}

async fn find(node: &Node, query: &OffsetQuery) -> Result<OffsetResult, ApiError> {
    let handle = node.partitions.find(partition_of(query.topic_id, query.partition)?)?;
    let position = Position::try_from(query.position)
        .map_err(|_| ApiError::invalid(format!("{} is not a value of position", query.position)))?;
    let status = handle.status();
    status.check_serves(handle.partition())?;
    let at = |offset: u64| OffsetResult {
        offset,
        timestamp_ms: -1,
        leader_epoch: status.leader_epoch.get(),
        ..OffsetResult::default()
    };
    match position {
        Position::Earliest => Ok(at(status.log_start.get())),
        Position::Latest => Ok(at(status.high_watermark.get())),
        Position::Time => {
            let plan = handle.plan_time(query.timestamp_ms).await?;
            // The semaphore is never closed.
            let _permit = node.cold_reads.acquire().await;
            let found = plan.run().await.map_err(|error| read_error(&error))?;
            Ok(match found {
                Some(found) => OffsetResult {
                    offset: found.offset.get(),
                    timestamp_ms: found.timestamp,
                    leader_epoch: status.leader_epoch.get(),
                    ..OffsetResult::default()
                },
                None => at(status.high_watermark.get()),
            })
        }
    }
}
