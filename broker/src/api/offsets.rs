//! Positions of consumer groups: committing, fetching, changing.

use std::sync::Arc;

use highwater_broker_core::group::{Reply, Request};
use highwater_protocol::api::ApiKey;
use highwater_protocol::ids::CorrelationId;
use highwater_protocol::messages::{
    AlterGroupOffsetsReply, AlterGroupOffsetsRequest, CommitOffsetsRequest, FetchOffsetsRequest,
};

use super::ApiError;
use super::groups::odd;
use crate::group::question::Question;
use crate::server::Node;
use crate::server::outbox::Outbox;
use crate::server::principal::{Operation, Principal};

/// Leaves the positions with the group's coordinator, which answers when they are committed.
pub(crate) fn commit(
    node: &Node,
    principal: &Principal,
    outbox: &Arc<Outbox>,
    correlation_id: CorrelationId,
    request: CommitOffsetsRequest,
    bytes: usize,
) -> Result<(), ApiError> {
    principal.authorise(Operation::Consume)?;
    let group = request.group.clone();
    let request = Request::Commit(request);
    let question = Question::of_connection(
        request,
        bytes,
        outbox,
        correlation_id,
        ApiKey::COMMIT_OFFSETS,
        &node.metrics,
    );
    node.groups.leave(&group, question);
    Ok(())
}

/// Leaves the question with the group's coordinator, which answers when what it says is committed.
pub(crate) fn fetch(
    node: &Node,
    principal: &Principal,
    outbox: &Arc<Outbox>,
    correlation_id: CorrelationId,
    request: FetchOffsetsRequest,
    bytes: usize,
) -> Result<(), ApiError> {
    principal.authorise(Operation::Consume)?;
    let group = request.group.clone();
    let request = Request::Fetch(request);
    let question =
        Question::of_connection(request, bytes, outbox, correlation_id, ApiKey::FETCH_OFFSETS, &node.metrics);
    node.groups.leave(&group, question);
    Ok(())
}

/// Returns when the changes are committed, or says what they would be.
pub(crate) async fn alter(
    node: &Node,
    principal: &Principal,
    request: AlterGroupOffsetsRequest,
) -> Result<AlterGroupOffsetsReply, ApiError> {
    principal.authorise(Operation::Consume)?;
    let group = request.group.clone();
    let bytes = request.targets.len() * size_of::<highwater_protocol::messages::OffsetTarget>();
    match node.groups.ask(&group, Request::Alter(request), bytes).await? {
        Reply::Alter(reply) => Ok(reply),
        reply => Err(odd(&reply)),
    }
}
