//! Brokers come, stay and ask the controller for changes.

use highwater_protocol::messages::{
    BootstrapReply, HeartbeatReply, HeartbeatRequest, ProposeReply, ProposeRequest, RegisterBrokerReply,
    RegisterBrokerRequest,
};

use super::ApiError;
use crate::server::Node;
use crate::server::principal::{Operation, Principal};

/// What this broker is, for others that come up.
pub(crate) fn bootstrap(node: &Node, principal: &Principal) -> Result<BootstrapReply, ApiError> {
    principal.authorise(Operation::Replicate)?;
    node.controller.bootstrap()
}

/// A broker comes, or is introduced by the one that it was told to join.
pub(crate) async fn register(
    node: &Node,
    principal: &Principal,
    request: RegisterBrokerRequest,
) -> Result<RegisterBrokerReply, ApiError> {
    principal.authorise(Operation::Replicate)?;
    let introduced = principal.node_id.is_some_and(|sender| sender.get() != request.node_id);
    node.controller.register_broker(request, introduced).await
}

/// A broker is alive.
pub(crate) async fn heartbeat(
    node: &Node,
    principal: &Principal,
    request: HeartbeatRequest,
) -> Result<HeartbeatReply, ApiError> {
    principal.authorise(Operation::Replicate)?;
    node.controller.heartbeat(request).await
}

/// A broker asks for a change.
pub(crate) async fn propose(
    node: &Node,
    principal: &Principal,
    request: ProposeRequest,
) -> Result<ProposeReply, ApiError> {
    principal.authorise(Operation::Replicate)?;
    node.controller.propose_for(request).await
}
