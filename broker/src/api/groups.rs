//! Consumer groups: who coordinates them, who is in them, and what operators ask.

use std::sync::Arc;

use highwater_broker_core::group::{Reply, Request};
use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::CorrelationId;
use highwater_protocol::limits::GROUPS_PER_REQUEST_MAX;
use highwater_protocol::messages::{
    DeleteGroupsReply, DeleteGroupsRequest, DescribeGroupsReply, DescribeGroupsRequest, DescribedGroup,
    FindCoordinatorReply, FindCoordinatorRequest, GroupHeartbeatRequest, GroupResult, ListGroupsReply,
    ListGroupsRequest, UnavailableCoordinator,
};

use super::ApiError;
use crate::group::question::Question;
use crate::server::Node;
use crate::server::outbox::Outbox;
use crate::server::principal::{Operation, Principal};

/// Who coordinates groups. The first question of a cluster makes the internal topic.
pub(crate) async fn find_coordinator(
    node: &Node,
    principal: &Principal,
    request: FindCoordinatorRequest,
) -> Result<FindCoordinatorReply, ApiError> {
    principal.authorise(Operation::Consume)?;
    check_count(request.groups.len())?;
    let coordinators = node.groups.coordinators(request.groups).await?;
    Ok(FindCoordinatorReply { coordinators })
}

/// Leaves the heartbeat with the group's coordinator, which answers.
pub(crate) fn heartbeat(
    node: &Node,
    principal: &Principal,
    outbox: &Arc<Outbox>,
    correlation_id: CorrelationId,
    request: GroupHeartbeatRequest,
    (host, bytes): (&Arc<str>, usize),
) -> Result<(), ApiError> {
    principal.authorise(Operation::Consume)?;
    let group = request.group.clone();
    let request = Request::Heartbeat { request: Box::new(request), host: Arc::clone(host) };
    let question = Question::of_connection(
        request,
        bytes,
        outbox,
        correlation_id,
        ApiKey::GROUP_HEARTBEAT,
        &node.metrics,
    );
    node.groups.leave(&group, question);
    Ok(())
}

/// The groups that this broker coordinates.
pub(crate) async fn list(
    node: &Node,
    principal: &Principal,
    _request: ListGroupsRequest,
) -> Result<ListGroupsReply, ApiError> {
    principal.authorise(Operation::Describe)?;
    let mut all = ListGroupsReply::default();
    for (partition, answer) in node.groups.ask_all(|| Request::List).await {
        match answer {
            Ok(Reply::List(groups)) => all.groups.extend(groups),
            Ok(reply) => return Err(odd(&reply)),
            Err(error) => all.unavailable.push(UnavailableCoordinator {
                partition: partition.get(),
                error: error.code.code(),
                message: error.message,
            }),
        }
    }
    all.groups.sort_unstable_by(|a, b| a.group.cmp(&b.group));
    Ok(all)
}

/// Members and positions of groups that this broker coordinates, and how far behind they are.
pub(crate) async fn describe(
    node: &Node,
    principal: &Principal,
    request: DescribeGroupsRequest,
) -> Result<DescribeGroupsReply, ApiError> {
    principal.authorise(Operation::Describe)?;
    check_count(request.groups.len())?;
    let mut groups = Vec::with_capacity(request.groups.len());
    for group in request.groups {
        groups.push(
            match node.groups.ask(&group, Request::Describe(group.as_str().into()), group.len()).await {
                Ok(Reply::Describe(described)) => {
                    DescribedGroup { coordinator: node.node_id.get(), ..*described }
                }
                Ok(reply) => return Err(odd(&reply)),
                Err(error) => DescribedGroup {
                    group,
                    error: error.code.code(),
                    message: error.message,
                    ..DescribedGroup::default()
                },
            },
        );
    }
    node.groups.ends().fill_in(&mut groups).await;
    Ok(DescribeGroupsReply { groups })
}

/// Returns when the groups are gone from stable storage, or says why they are not.
pub(crate) async fn delete(
    node: &Node,
    principal: &Principal,
    request: DeleteGroupsRequest,
) -> Result<DeleteGroupsReply, ApiError> {
    principal.authorise(Operation::Administer)?;
    check_count(request.groups.len())?;
    let mut results = Vec::with_capacity(request.groups.len());
    for group in request.groups {
        let (error, message) =
            match node.groups.ask(&group, Request::Delete(group.as_str().into()), group.len()).await {
                Ok(_) => (ErrorCode::None, String::new()),
                Err(error) => (error.code, error.message),
            };
        results.push(GroupResult { group, error: error.code(), message });
    }
    Ok(DeleteGroupsReply { results })
}

fn check_count(count: usize) -> Result<(), ApiError> {
    if count > GROUPS_PER_REQUEST_MAX {
        return Err(ApiError::invalid(format!(
            "a request names at most {GROUPS_PER_REQUEST_MAX} groups, not {count}"
        )));
    }
    Ok(())
}

/// A shard answers every question in kind; anything else is a defect.
pub(super) fn odd(reply: &Reply) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("the coordinator answered {reply:?}"))
}
