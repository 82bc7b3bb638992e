//! `Read`: a plain bounded read, for tools.

use bytes::Bytes;
use highwater_protocol::ids::Offset;
use highwater_protocol::limits::PUSH_BYTES;
use highwater_protocol::messages::{ReadReply, ReadRequest};

use super::{ApiError, partition_of};
use crate::partition::reads::read_error;
use crate::server::Node;
use crate::server::principal::{Operation, Principal};

pub(crate) async fn handle(
    node: &Node,
    principal: &Principal,
    request: ReadRequest,
) -> Result<(ReadReply, Vec<Bytes>), ApiError> {
    principal.authorise(Operation::Consume)?;
    let handle = node.partitions.find(partition_of(request.topic_id, request.partition)?)?;
    let bytes_max = match request.bytes_max as usize {
        0 => PUSH_BYTES,
        bytes => bytes.min(PUSH_BYTES),
    };
    let offer = handle.plan_read(Offset(request.offset), bytes_max).await?;
    let batches = match offer.plan {
        None => Vec::new(),
        Some(mut plan) => match plan.ready() {
            Some(read) => read,
            None => {
                // The semaphore is never closed.
                let _permit = node.cold_reads.acquire().await;
                plan.run().await
            }
        }
        .map_err(|error| read_error(&error))?,
    };
    let reply = ReadReply {
        high_watermark: offer.high_watermark.get(),
        log_start: offer.log_start.get(),
        log_end: offer.log_end.get(),
        leader_epoch: offer.leader_epoch.get(),
    };
    Ok((reply, batches))
}
