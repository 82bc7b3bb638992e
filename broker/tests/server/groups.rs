//! Consumer groups over in-memory links: coordinators, members, positions, and what operators ask.

use highwater_broker::Broker;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::TopicId;
use highwater_protocol::messages::{
    Acks, AlterGroupOffsetsRequest, AlterTopicRequest, CommitOffset, CommitOffsetsRequest,
    CreateTopicRequest, DeleteGroupsRequest, DeleteTopicRequest, DescribeGroupsRequest,
    DescribeTopicsRequest, DescribedGroup, ErrorReply, FetchOffsetsRequest, FindCoordinatorRequest,
    GroupAction, GroupAssignment, GroupHeartbeatReply, GroupHeartbeatRequest, GroupPartitions,
    GroupSubscription, ListGroupsRequest, OffsetTarget, ReadRequest,
};

use crate::support::{LIMIT, Peer, batch, broker, code};

const GROUP: &str = "readers";

fn heartbeat(member: &str, generation: u32) -> GroupHeartbeatRequest {
    GroupHeartbeatRequest {
        group: GROUP.to_owned(),
        member_id: member.to_owned(),
        generation,
        client: "test".to_owned(),
        session_timeout_ms: 60_000,
        ..GroupHeartbeatRequest::default()
    }
}

fn join(member: &str, topic: &str) -> GroupHeartbeatRequest {
    GroupHeartbeatRequest {
        subscription: Some(GroupSubscription { topics: vec![topic.to_owned()], pattern: None }),
        owned: Some(GroupAssignment::default()),
        ..heartbeat(member, 0)
    }
}

fn of(topic: TopicId, partitions: &[u32]) -> GroupPartitions {
    GroupPartitions { topic_id: Some(topic.into()), partitions: partitions.to_vec() }
}

/// Sends a request until the coordinator has read its state.
async fn ask<R: highwater_protocol::api::Request + Clone>(
    peer: &mut Peer,
    request: &R,
) -> Result<R::Response, ErrorReply>
where
    R::Response: highwater_protocol::body::Body,
{
    let passes = [ErrorCode::CoordinatorLoading, ErrorCode::NotCoordinator, ErrorCode::NoCoordinator];
    let asked = async {
        loop {
            match peer.call(request, &[]).await {
                Err(error) if passes.contains(&code(error.code)) => tokio::task::yield_now().await,
                answer => return answer,
            }
        }
    };
    tokio::time::timeout(LIMIT, asked).await.expect("the coordinator answers")
}

/// Makes the internal topic.
async fn find(peer: &mut Peer) {
    let request = FindCoordinatorRequest { groups: vec![GROUP.to_owned()] };
    let found = tokio::time::timeout(LIMIT, async {
        loop {
            let reply = peer.call(&request, &[]).await.unwrap();
            if reply.coordinators[0].error == 0 {
                return reply.coordinators[0].clone();
            }
        }
    });
    let found = found.await.unwrap();
    assert_eq!((found.group.as_str(), found.node_id), (GROUP, 1));
    assert!(!found.address.is_empty());
}

/// Heartbeats until the member owns `count` partitions; the last reply with an assignment.
async fn own(peer: &mut Peer, member: &str, topic: &str, count: usize) -> GroupHeartbeatReply {
    let mut reply = ask(peer, &join(member, topic)).await.unwrap();
    let mut given = reply.assignment.clone().unwrap_or_default();
    let owning = async {
        while given.topics.iter().map(|topic| topic.partitions.len()).sum::<usize>() != count {
            let request =
                GroupHeartbeatRequest { owned: Some(given.clone()), ..heartbeat(member, reply.generation) };
            reply = ask(peer, &request).await.unwrap();
            if let Some(assignment) = &reply.assignment {
                given = assignment.clone();
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, owning).await.expect("the member is given its partitions");
    reply.assignment = Some(given);
    reply
}

fn commit(member: &str, generation: u32, topic: TopicId, offsets: &[u64]) -> CommitOffsetsRequest {
    let offset = |(partition, offset): (usize, &u64)| CommitOffset {
        topic_id: Some(topic.into()),
        partition: partition as u32,
        offset: *offset,
        leader_epoch: Some(1),
        metadata: format!("at {offset}"),
    };
    CommitOffsetsRequest {
        group: GROUP.to_owned(),
        member_id: member.to_owned(),
        generation,
        offsets: offsets.iter().enumerate().map(offset).collect(),
    }
}

/// What is committed, by partition.
async fn fetched(peer: &mut Peer, topic: TopicId) -> Vec<(u32, Option<u64>, String)> {
    let request = FetchOffsetsRequest { group: GROUP.to_owned(), ..FetchOffsetsRequest::default() };
    let reply = ask(peer, &request).await.unwrap();
    let positions = reply.offsets.into_iter().map(|position| {
        assert_eq!(position.error, 0, "{}", position.message);
        assert_eq!(TopicId::from(position.topic_id.unwrap()), topic);
        (position.partition, position.offset, position.metadata)
    });
    positions.collect()
}

async fn describe(peer: &mut Peer) -> DescribedGroup {
    let request = DescribeGroupsRequest { groups: vec![GROUP.to_owned()] };
    tokio::time::timeout(LIMIT, async {
        loop {
            let group = peer.call(&request, &[]).await.unwrap().groups.remove(0);
            if code(group.error) != ErrorCode::CoordinatorLoading {
                return group;
            }
        }
    })
    .await
    .unwrap()
}

async fn started(directory: &std::path::Path) -> (Broker, Peer) {
    let broker = broker(directory, |config| config.groups_partitions = 4).await;
    let peer = Peer::connect(&broker, 1 << 20).await;
    (broker, peer)
}

#[tokio::test]
async fn the_first_question_makes_the_internal_topic_and_nobody_else_can_change_it() {
    let directory = tempfile::tempdir().unwrap();
    let (broker, mut peer) = started(directory.path()).await;
    let early = peer.call(&heartbeat("m", 0), &[]).await.unwrap_err();
    assert_eq!(code(early.code), ErrorCode::NotCoordinator, "{}", early.message);
    find(&mut peer).await;
    find(&mut peer).await;
    let bad = FindCoordinatorRequest { groups: vec!["no good".to_owned()] };
    let reply = peer.call(&bad, &[]).await.unwrap();
    assert_eq!(code(reply.coordinators[0].error), ErrorCode::InvalidGroup);

    let name = || "hw-groups".to_owned();
    let request = DescribeTopicsRequest { names: vec![name()], summary: false };
    let topic = peer.call(&request, &[]).await.unwrap().topics.remove(0);
    assert_eq!((topic.partition_count, topic.replication), (4, 1));
    let cleanup = topic.config.iter().find(|entry| entry.name == "cleanup").unwrap();
    assert_eq!(cleanup.value, "compact");
    let id = TopicId::from(topic.topic_id.unwrap());
    // The coordinator is found as soon as its partition is open; this may be another one.
    let refused = tokio::time::timeout(LIMIT, async {
        loop {
            let refused = peer.produce(id, 0, batch(id, 1, 10), Acks::All).await;
            if code(refused.error) != ErrorCode::LeaderNotReady {
                return refused;
            }
        }
    });
    let refused = refused.await.unwrap();
    assert_eq!(code(refused.error), ErrorCode::NotAuthorized, "{}", refused.message);
    let create = CreateTopicRequest { name: "hw-mine".to_owned(), ..CreateTopicRequest::default() };
    let refused = peer.call(&create, &[]).await.unwrap_err();
    assert_eq!(code(refused.code), ErrorCode::InvalidTopicName, "{}", refused.message);
    let alter = AlterTopicRequest { name: name(), partitions: 8, ..AlterTopicRequest::default() };
    assert_eq!(code(peer.call(&alter, &[]).await.unwrap_err().code), ErrorCode::NotAuthorized);
    let delete = DeleteTopicRequest { name: name(), topic_id: None };
    assert_eq!(code(peer.call(&delete, &[]).await.unwrap_err().code), ErrorCode::NotAuthorized);
    // Tools may read it.
    let read = ReadRequest { topic_id: Some(id.into()), ..ReadRequest::default() };
    peer.call(&read, &[]).await.unwrap();
    broker.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_member_joins_commits_and_goes_on_after_the_broker_was_started_again() {
    let directory = tempfile::tempdir().unwrap();
    let (broker, mut peer) = started(directory.path()).await;
    let topic = peer.create("t", 3, "fsync").await;
    find(&mut peer).await;
    let reply = own(&mut peer, "m", "t", 3).await;
    assert_eq!(reply.assignment.unwrap().topics, [of(topic, &[0, 1, 2])]);
    let committed = ask(&mut peer, &commit("m", reply.generation, topic, &[5, 6, 7])).await.unwrap().results;
    assert!(committed.iter().all(|result| result.error == 0), "{committed:?}");
    let positions = [5, 6, 7].map(|at| ((at - 5) as u32, Some(at), format!("at {at}")));
    assert_eq!(fetched(&mut peer, topic).await, positions);
    // Whoever is not the member cannot commit.
    let stranger = ask(&mut peer, &commit("other", 1, topic, &[99])).await;
    let refused = match stranger {
        Ok(reply) => code(reply.results[0].error),
        Err(error) => code(error.code),
    };
    assert_eq!(refused, ErrorCode::UnknownMember);
    drop(peer);
    broker.shutdown().await.unwrap();

    for clean in [true, false] {
        let (broker, mut peer) = started(directory.path()).await;
        assert_eq!(fetched(&mut peer, topic).await, positions, "clean: {clean}");
        let alive = ask(&mut peer, &heartbeat("m", reply.generation)).await.unwrap();
        assert_eq!(alive.generation, reply.generation, "nothing has moved");
        // The second time it stops as a crash would stop it.
        if clean {
            drop(peer);
            drop(broker);
        } else {
            broker.shutdown().await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_a_silent_member_had_goes_to_the_others_and_it_cannot_commit_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let (broker, mut peer) = started(directory.path()).await;
    let topic = peer.create("t", 2, "fsync").await;
    find(&mut peer).await;
    let silent = GroupHeartbeatRequest { session_timeout_ms: 500, ..join("silent", "t") };
    let first = ask(&mut peer, &silent).await.unwrap();
    // It is not heard of any more; the other one gets everything.
    let second = own(&mut peer, "other", "t", 2).await;
    assert_eq!(second.assignment.unwrap().topics, [of(topic, &[0, 1])]);
    let refused = ask(&mut peer, &heartbeat("silent", first.generation)).await.unwrap_err();
    assert_eq!(code(refused.code), ErrorCode::UnknownMember, "{}", refused.message);
    let refused = match ask(&mut peer, &commit("silent", first.generation, topic, &[9])).await {
        Ok(reply) => code(reply.results[0].error),
        Err(error) => code(error.code),
    };
    assert_eq!(refused, ErrorCode::UnknownMember);
    assert_eq!(fetched(&mut peer, topic).await, []);
    let leave =
        GroupHeartbeatRequest { action: GroupAction::Leave.into(), ..heartbeat("other", second.generation) };
    ask(&mut peer, &leave).await.unwrap();
    assert_eq!(describe(&mut peer).await.members, []);
    broker.shutdown().await.unwrap();
}

#[tokio::test]
async fn operators_see_how_far_behind_a_group_is_move_it_and_remove_it() {
    let directory = tempfile::tempdir().unwrap();
    let (broker, mut peer) = started(directory.path()).await;
    let topic = peer.create("t", 1, "fsync").await;
    peer.produce(topic, 0, batch(topic, 10, 10), Acks::All).await;
    find(&mut peer).await;
    // Without members: as a program commits that shares partitions out by itself.
    let committed = ask(&mut peer, &commit("", 0, topic, &[4])).await.unwrap().results;
    assert_eq!(committed[0].error, 0, "{}", committed[0].message);
    let listed = peer.call(&ListGroupsRequest {}, &[]).await.unwrap();
    assert_eq!(listed.groups.iter().map(|group| group.group.as_str()).collect::<Vec<_>>(), [GROUP]);
    let described = describe(&mut peer).await;
    assert_eq!((code(described.error), described.coordinator), (ErrorCode::None, 1));
    let lag = &described.offsets[0];
    assert_eq!((lag.topic.as_str(), lag.committed, lag.lag), ("t", Some(4), Some(6)));
    assert_eq!((lag.log_start, lag.high_watermark), (Some(0), Some(10)));

    let target = OffsetTarget { topic_id: Some(topic.into()), partition: 0, offset: Some(2) };
    let alter =
        |dry_run| AlterGroupOffsetsRequest { group: GROUP.to_owned(), dry_run, targets: vec![target] };
    for (dry_run, after) in [(true, 4), (false, 2)] {
        let result = ask(&mut peer, &alter(dry_run)).await.unwrap().results.remove(0);
        assert_eq!((result.error, result.before, result.after), (0, Some(4), Some(2)), "{}", result.message);
        assert_eq!(fetched(&mut peer, topic).await[0].1, Some(after));
    }
    let delete = DeleteGroupsRequest { groups: vec![GROUP.to_owned(), "nobody".to_owned()] };
    let results = peer.call(&delete, &[]).await.unwrap().results;
    assert_eq!(results[0].error, 0, "{}", results[0].message);
    assert_ne!(results[1].error, 0);
    assert_eq!(fetched(&mut peer, topic).await, []);
    assert_eq!(code(describe(&mut peer).await.error), ErrorCode::UnknownGroup);
    broker.shutdown().await.unwrap();
}
