//! Samples of what members of groups, and those who look after groups, say.

use highwater_protocol::messages::*;

use super::{ApiSamples, ID, OTHER_ID, exchange, text};

pub(super) fn all() -> Vec<ApiSamples> {
    let mut all = members();
    all.extend(offsets());
    all.extend(operators());
    all
}

const MEMBER: &str = "5f0c0d0e0f101112131415161718191a";

fn partitions() -> GroupPartitions {
    GroupPartitions { topic_id: Some(ID), partitions: vec![0, 3, 300] }
}

fn assignment() -> GroupAssignment {
    GroupAssignment { topics: vec![partitions()] }
}

fn members() -> Vec<ApiSamples> {
    vec![
        exchange(
            FindCoordinatorRequest { groups: vec![text("billing")] },
            FindCoordinatorReply {
                coordinators: vec![Coordinator {
                    group: text("billing"),
                    error: 70,
                    message: text("hw-groups/3 has no leader: try again"),
                    node_id: 2,
                    address: text("[::1]:9470"),
                }],
            },
        ),
        exchange(
            GroupHeartbeatRequest {
                group: text("billing"),
                member_id: text(MEMBER),
                generation: 7,
                action: GroupAction::LeaveForRestart.into(),
                instance_id: Some(text("billing-1")),
                rack: Some(text("a")),
                client: text("billing 1.2"),
                session_timeout_ms: 45_000,
                rebalance_timeout_ms: 60_000,
                subscription: Some(GroupSubscription {
                    topics: vec![text("orders"), text("")],
                    pattern: Some(text("orders-*,refunds-?")),
                }),
                owned: Some(assignment()),
                assignor: Some(text("consistent")),
                take_over: true,
            },
            GroupHeartbeatReply {
                generation: 8,
                heartbeat_interval_ms: 3000,
                assignment: Some(assignment()),
                unmatched_topics: vec![text("refunds")],
            },
        ),
    ]
}

fn offsets() -> Vec<ApiSamples> {
    vec![
        exchange(
            CommitOffsetsRequest {
                group: text("billing"),
                member_id: text(MEMBER),
                generation: 8,
                offsets: vec![CommitOffset {
                    topic_id: Some(ID),
                    partition: 3,
                    offset: 1 << 40,
                    leader_epoch: Some(0),
                    metadata: text("invoice 77"),
                }],
            },
            CommitOffsetsReply {
                results: vec![PartitionResult {
                    topic_id: Some(ID),
                    partition: 3,
                    error: 80,
                    message: text("orders/3 is not assigned to the member"),
                }],
            },
        ),
        exchange(
            FetchOffsetsRequest {
                group: text("billing"),
                member_id: text(MEMBER),
                generation: 8,
                partitions: vec![partitions()],
            },
            FetchOffsetsReply {
                offsets: vec![CommittedOffset {
                    topic_id: Some(ID),
                    partition: 3,
                    error: 16,
                    message: text("orders has 3 partitions, from 0"),
                    offset: Some(0),
                    leader_epoch: Some(0),
                    metadata: text("invoice 77"),
                    commit_time_ms: 1_790_000_000_000,
                }],
            },
        ),
        exchange(
            AlterGroupOffsetsRequest {
                group: text("billing"),
                dry_run: true,
                targets: vec![OffsetTarget { topic_id: Some(OTHER_ID), partition: 3, offset: Some(0) }],
            },
            AlterGroupOffsetsReply {
                results: vec![AlteredOffset {
                    topic_id: Some(OTHER_ID),
                    partition: 3,
                    error: 77,
                    message: text("orders/3 is owned"),
                    before: Some(0),
                    after: Some(0),
                }],
            },
        ),
    ]
}

fn described() -> DescribedGroup {
    let member = GroupMember {
        member_id: text(MEMBER),
        instance_id: Some(text("billing-1")),
        rack: Some(text("a")),
        client: text("billing 1.2"),
        host: text("[::1]:50000"),
        generation: 8,
        state: text("revoking"),
        assigned: Some(assignment()),
        target: Some(assignment()),
        topics: vec![text("orders")],
        pattern: Some(text("orders-*")),
        heard_ms_ago: 1200,
        session_timeout_ms: 45_000,
    };
    let lag = GroupLag {
        topic_id: Some(ID),
        topic: text("orders"),
        partition: 3,
        committed: Some(0),
        log_start: Some(0),
        high_watermark: Some(80),
        lag: Some(80),
        member_id: Some(text(MEMBER)),
        metadata: text("invoice 77"),
        commit_time_ms: 1_790_000_000_000,
        leader_epoch: Some(0),
        offsets_per_minute: Some(0),
    };
    DescribedGroup {
        group: text("billing"),
        error: 76,
        message: text("there is no group billing"),
        state: text("moving"),
        generation: 9,
        assignor: text("consistent"),
        coordinator: 2,
        members: vec![member],
        offsets: vec![lag],
    }
}

fn operators() -> Vec<ApiSamples> {
    vec![
        exchange(
            ListGroupsRequest {},
            ListGroupsReply {
                groups: vec![ListedGroup {
                    group: text("billing"),
                    state: text("stable"),
                    members: 12,
                    assignor: text("consistent"),
                }],
                unavailable: vec![UnavailableCoordinator {
                    partition: 3,
                    error: 72,
                    message: text("hw-groups/3 is being read"),
                }],
            },
        ),
        exchange(
            DescribeGroupsRequest { groups: vec![text("billing")] },
            DescribeGroupsReply { groups: vec![described()] },
        ),
        exchange(
            DeleteGroupsRequest { groups: vec![text("billing")] },
            DeleteGroupsReply {
                results: vec![GroupResult {
                    group: text("billing"),
                    error: 77,
                    message: text("billing has 12 members: stop them first"),
                }],
            },
        ),
    ]
}
