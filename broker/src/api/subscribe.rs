//! `Subscribe`: checks what a subscription needs before it is opened.

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::Offset;
use highwater_protocol::messages::{Isolation, SubscribeReply, SubscribeRequest};

use super::{ApiError, partition_of};
use crate::partition::handle::{PartitionHandle, Status};
use crate::server::Node;
use crate::server::principal::{Operation, Principal};

/// A subscription that may be opened.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) handle: PartitionHandle,
    pub(crate) isolation: Isolation,
    pub(crate) offset: Offset,
    pub(crate) reply: SubscribeReply,
}

pub(crate) fn handle(
    node: &Node,
    principal: &Principal,
    request: &SubscribeRequest,
) -> Result<Granted, ApiError> {
    let isolation = Isolation::try_from(request.isolation)
        .map_err(|_| ApiError::invalid(format!("{} is not a value of isolation", request.isolation)))?;
    let operation = match isolation {
        Isolation::LogEnd => Operation::Replicate,
        Isolation::Committed | Isolation::Stable if request.replica.is_some() => Operation::Replicate,
        Isolation::Committed | Isolation::Stable => Operation::Consume,
    };
    principal.authorise(operation)?;
    let handle = node.partitions.find(partition_of(request.topic_id, request.partition)?)?;
    if let Some(why) = handle.closed() {
        return Err(why.error(handle.partition()));
    }
    let status = handle.status();
    check(&handle, &status, request)?;
    let reply = SubscribeReply {
        leader_epoch: status.leader_epoch.get(),
        high_watermark: status.high_watermark.get(),
        log_start: status.log_start.get(),
        log_end: status.log_end.get(),
        divergence: None,
        reset: false,
    };
    Ok(Granted { handle, isolation, offset: Offset(request.offset), reply })
}

/// Range is judged against the log, never against the watermark.
fn check(handle: &PartitionHandle, status: &Status, request: &SubscribeRequest) -> Result<(), ApiError> {
    if !status.is_ready {
        return Err(ApiError::new(
            ErrorCode::LeaderNotReady,
            format!("the leader of {} is not ready yet", handle.partition()),
        ));
    }
    if let Some(known) = request.current_epoch {
        let epoch = status.leader_epoch.get();
        if known != epoch {
            let code = if known < epoch { ErrorCode::FencedEpoch } else { ErrorCode::UnknownEpoch };
            return Err(ApiError::new(
                code,
                format!("the leader epoch is {epoch}, the request names {known}"),
            ));
        }
    }
    if request.offset < status.log_start.get() || request.offset > status.log_end.get() {
        return Err(ApiError::new(
            ErrorCode::OffsetOutOfRange,
            format!(
                "offset {} is not in the log of topic '{}' partition {}, which goes from {} to {}",
                request.offset,
                handle.topic(),
                handle.partition().partition,
                status.log_start,
                status.log_end
            ),
        ));
    }
    Ok(())
}
