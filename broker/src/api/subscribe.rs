//! `Subscribe`: who may, and where the request goes.

use std::sync::Arc;

use highwater_protocol::ids::{BrokerEpoch, CorrelationId, NodeId};
use highwater_protocol::messages::{Isolation, SubscribeRequest};

use super::{ApiError, partition_of};
use crate::partition::handle::PartitionHandle;
use crate::partition::sessions::Subscribe;
use crate::server::Node;
use crate::server::outbox::Outbox;
use crate::server::principal::{Operation, Principal};

/// Leaves the request with its partition, which answers by an event of the outbox, also when it is refused here.
pub(crate) fn handle(
    node: &Node,
    principal: &Principal,
    outbox: &Arc<Outbox>,
    correlation_id: CorrelationId,
    request: &SubscribeRequest,
) {
    let isolation = Isolation::try_from(request.isolation).unwrap_or_default();
    let replica = request.replica.map(|replica| (NodeId(replica.node_id), BrokerEpoch(replica.broker_epoch)));
    let subscribe = Subscribe::new(Arc::clone(outbox), correlation_id, *request, isolation, replica);
    match find(node, principal, request) {
        Ok(handle) => handle.subscribe(subscribe),
        Err(error) => subscribe.refuse(error),
    }
}

fn find(node: &Node, principal: &Principal, request: &SubscribeRequest) -> Result<PartitionHandle, ApiError> {
    let isolation = Isolation::try_from(request.isolation)
        .map_err(|_| ApiError::invalid(format!("{} is not a value of isolation", request.isolation)))?;
    if isolation == Isolation::LogEnd || request.replica.is_some() {
        principal.authorise(Operation::Replicate)?;
        if isolation != Isolation::LogEnd || request.replica.is_none() {
            return Err(ApiError::invalid(
                "a follower says who it is, and sees everything up to the log end",
            ));
        }
    } else {
        principal.authorise(Operation::Consume)?;
    }
    let handle = node.partitions.find(partition_of(request.topic_id, request.partition)?)?;
    // What has to be known for consumers is not asked of a partition that is busy with its disk.
    if request.replica.is_none() {
        handle.status().check_serves(handle.partition())?;
    }
    Ok(handle)
}
