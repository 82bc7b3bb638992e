//! `InitProducer`: identities of idempotent producers.

use highwater_protocol::messages::{InitProducerReply, InitProducerRequest};

use super::ApiError;
use crate::server::Node;
use crate::server::principal::{Operation, Principal};

/// The last epoch of an identity: epochs fit the positive numbers of 16 bits.
const EPOCH_MAX: u32 = i16::MAX as u32;

/// A new identity, or the next epoch of the one that the producer has.
pub(crate) async fn handle(
    node: &Node,
    principal: &Principal,
    request: InitProducerRequest,
) -> Result<InitProducerReply, ApiError> {
    principal.authorise(Operation::Produce)?;
    match request.producer_id {
        Some(producer_id) if request.producer_epoch < EPOCH_MAX => {
            Ok(InitProducerReply { producer_id, producer_epoch: request.producer_epoch + 1 })
        }
        // The epochs of the old one are used up.
        _ => Ok(InitProducerReply {
            producer_id: node.producer_ids.next(&node.controller).await?,
            producer_epoch: 0,
        }),
    }
}
