//! `Produce`: batches on their way into partitions.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use highwater_protocol::ids::CorrelationId;
use highwater_protocol::limits::PRODUCE_BATCHES_MAX;
use highwater_protocol::messages::{Acks, ProduceRequest};

use super::{ApiError, partition_of};
use crate::partition::ticket::tickets;
use crate::server::Node;
use crate::server::lanes::Lanes;
use crate::server::outbox::Outbox;
use crate::server::principal::{Operation, Principal};

/// How long a batch is waited for when the request does not say.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Leaves the batches with their partitions; the reply comes from there. An error refuses the request as a whole.
pub(crate) fn handle(
    node: &Node,
    principal: &Principal,
    outbox: &Arc<Outbox>,
    lanes: &mut Lanes,
    correlation_id: CorrelationId,
    request: &ProduceRequest,
    mut attachment: Bytes,
) -> Result<(), ApiError> {
    principal.authorise(Operation::Produce)?;
    let acks = Acks::try_from(request.acks)
        .map_err(|_| ApiError::invalid(format!("{} is not a value of acks", request.acks)))?;
    let count = request.batches.len();
    if count == 0 || count > PRODUCE_BATCHES_MAX {
        return Err(ApiError::invalid(format!(
            "a request has from 1 to {PRODUCE_BATCHES_MAX} batches, not {count}"
        )));
    }
    let lengths: u64 = request.batches.iter().map(|batch| u64::from(batch.length)).sum();
    if lengths != attachment.len() as u64 {
        return Err(ApiError::invalid(format!(
            "the batches have {lengths} bytes, the attachment {}",
            attachment.len()
        )));
    }
    let timeout = match request.timeout_ms {
        0 => TIMEOUT_DEFAULT,
        milliseconds => Duration::from_millis(u64::from(milliseconds)),
    };
    let deadline = node.clock.mono().after(timeout);
    for (entry, ticket) in request.batches.iter().zip(tickets(outbox, correlation_id, count, lengths)) {
        let batch = attachment.split_to(entry.length as usize);
        let lane = partition_of(entry.topic_id, entry.partition)
            .and_then(|partition| lanes.find(partition, &node.partitions));
        match lane {
            Ok((handle, lane)) => handle.produce(batch, entry.number, lane, acks, deadline, ticket),
            Err(error) => ticket.refuse(error.code, error.message),
        }
    }
    Ok(())
}
