//! Messages of consensus.

use highwater_protocol::messages::{RaftReply, RaftRequest};

use super::ApiError;
use crate::server::Node;
use crate::server::principal::{Operation, Principal};

/// Hands a message to the controller's thread.
pub(crate) async fn handle(
    node: &Node,
    principal: &Principal,
    request: RaftRequest,
) -> Result<RaftReply, ApiError> {
    principal.authorise(Operation::Replicate)?;
    node.controller.raft(request).await
}
