//! Consumer groups as operators see and change them.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{NodeId, Offset, PartitionId, TopicId};
use highwater_protocol::limits::COMMIT_OFFSETS_MAX;
use highwater_protocol::messages::{
    AlterGroupOffsetsReply, AlterGroupOffsetsRequest, DeleteGroupsReply, DeleteGroupsRequest,
    DescribeGroupsReply, DescribeGroupsRequest, DescribedGroup, GroupAssignment, GroupLag, GroupMember,
    ListGroupsReply, ListGroupsRequest, OffsetTarget,
};
use tokio::time::Instant;

use super::Admin;
use super::group_types::{
    GroupDetails, GroupList, GroupMemberDetails, GroupPosition, ListedGroup, ResetGroup, ResetOffset, ResetTo,
};
use crate::client::Repeat;
use crate::consumer::StartAt;
use crate::error::{Error, ErrorKind};
use crate::group::GroupPartition;
use crate::group::coordinator::{Coordinator, check};
use crate::metadata::request_for;

impl Admin {
    /// All groups, each as the broker tells it that coordinates it. What a broker cannot tell at the moment is said in
    /// [`GroupList::unavailable`].
    ///
    /// # Errors
    /// What kept the cluster from saying which brokers it has.
    pub async fn list_groups(&self) -> Result<GroupList, Error> {
        let deadline = self.client.deadline();
        let roster = self.client.ask_any(&request_for::<&str>(&[], false), Repeat::Freely, deadline).await?;
        let roster = self.client.metadata().update(roster);
        let asking = roster.brokers.iter().map(|broker| self.groups_of(&broker.address, deadline));
        let mut list = GroupList::default();
        for answer in join_all(asking).await {
            match answer {
                Ok(reply) => {
                    list.groups.extend(reply.groups.into_iter().map(|group| ListedGroup {
                        group: group.group,
                        state: group.state,
                        member_count: group.members,
                        assignor: group.assignor,
                    }));
                    list.unavailable.extend(reply.unavailable.into_iter().map(|coordinator| {
                        let error =
                            Error::from_code(ErrorCode::from_code(coordinator.error), coordinator.message);
                        error.with_partition("hw-groups", PartitionId(coordinator.partition))
                    }));
                }
                Err(error) => list.unavailable.push(error),
            }
        }
        list.groups.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(list)
    }

    async fn groups_of(&self, address: &str, deadline: Instant) -> Result<ListGroupsReply, Error> {
        let connection = self.client.pool().get(address).await?;
        Ok(self.client.ask(&connection, &ListGroupsRequest {}, Repeat::Freely, deadline).await?.0)
    }

    /// Members and positions of a group, with how far it is behind.
    ///
    /// # Errors
    /// `UnknownGroup`, or what kept its coordinator from answering.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDetails, Error> {
        let request = DescribeGroupsRequest { groups: vec![group.to_owned()] };
        let inside = |reply: &DescribeGroupsReply| match reply.groups.first() {
            Some(described) => check(described.error, &described.message),
            None => Err(left_out()),
        };
        let coordinator = Coordinator::new(self.client.clone(), group);
        let reply = coordinator.ask(&request, self.client.deadline(), inside).await?;
        let described = reply.groups.into_iter().next().ok_or_else(left_out)?;
        Ok(details(described))
    }

    /// Removes a group without members, with its positions.
    ///
    /// # Errors
    /// `UnknownGroup`, `GroupNotEmpty`, or what kept its coordinator from answering.
    pub async fn delete_group(&self, group: &str) -> Result<(), Error> {
        let request = DeleteGroupsRequest { groups: vec![group.to_owned()] };
        let inside = |reply: &DeleteGroupsReply| match reply.results.first() {
            Some(result) => check(result.error, &result.message),
            None => Err(left_out()),
        };
        let coordinator = Coordinator::new(self.client.clone(), group);
        coordinator.ask(&request, self.client.deadline(), inside).await.map(drop)
    }

    /// Moves the positions of a group. A position that is asked for outside of a log is moved into it, and the result says
    /// so. With [`ResetGroup::dry_run`] nothing is changed, and the results say what would be.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownPartition`, or what kept brokers from answering. What concerns one partition, such as that a
    /// member owns it (`GroupNotEmpty`), is in its result.
    pub async fn reset_group(&self, reset: ResetGroup) -> Result<Vec<ResetOffset>, Error> {
        let topics = if reset.topics.is_empty() {
            let described = self.describe_group(&reset.group).await?;
            let names = described.positions.iter().map(|position| position.partition.topic.to_string());
            names.collect::<BTreeSet<_>>().into_iter().collect()
        } else {
            reset.topics.clone()
        };
        let mut results = Vec::new();
        let mut targets = Vec::new();
        for topic in topics {
            self.targets_of(&reset, &topic, &mut targets, &mut results).await?;
        }
        let coordinator = Coordinator::new(self.client.clone(), &reset.group);
        for (targets, results) in
            targets.chunks(COMMIT_OFFSETS_MAX).zip(results.chunks_mut(COMMIT_OFFSETS_MAX))
        {
            let request = AlterGroupOffsetsRequest {
                group: reset.group.clone(),
                dry_run: reset.dry_run,
                targets: targets.to_vec(),
            };
            let inside = |reply: &AlterGroupOffsetsReply| {
                if reply.results.len() == targets.len() { Ok(()) } else { Err(left_out()) }
            };
            let reply = coordinator.ask(&request, self.client.deadline(), inside).await?;
            for (result, altered) in results.iter_mut().zip(reply.results) {
                (result.before, result.after) = (altered.before.map(Offset), altered.after.map(Offset));
                let place = &result.partition;
                let named = |error: Error| {
                    error.with_group(&reset.group).with_partition(&place.topic, place.partition)
                };
                result.error = check(altered.error, &altered.message).err().map(named);
            }
        }
        Ok(results)
    }

    /// Finds where a topic's partitions are to go on.
    async fn targets_of(
        &self,
        reset: &ResetGroup,
        topic: &str,
        targets: &mut Vec<OffsetTarget>,
        results: &mut Vec<ResetOffset>,
    ) -> Result<(), Error> {
        let metadata = self.client.topic(topic, self.client.deadline()).await?;
        let starts = self.list_offsets(topic, &reset.partitions, StartAt::Earliest).await?;
        let ends = self.list_offsets(topic, &reset.partitions, StartAt::Latest).await?;
        let wanted = match reset.to {
            ResetTo::Earliest | ResetTo::Forget => starts.clone(),
            ResetTo::Latest => ends.clone(),
            ResetTo::Offset(offset) => {
                self.list_offsets(topic, &reset.partitions, StartAt::Offset(offset)).await?
            }
            ResetTo::Time(milliseconds) => {
                self.list_offsets(topic, &reset.partitions, StartAt::Time(milliseconds)).await?
            }
        };
        // With an offset nobody was asked which partitions there are.
        let wanted: BTreeMap<_, _> = wanted.iter().map(|listed| (listed.partition, listed.offset)).collect();
        for (start, end) in starts.iter().zip(&ends) {
            let asked = wanted.get(&start.partition).copied().unwrap_or(start.offset);
            let offset = asked.clamp(start.offset, end.offset.max(start.offset));
            let partition = GroupPartition { topic: topic.into(), partition: start.partition };
            targets.push(OffsetTarget {
                topic_id: Some(metadata.topic_id.into()),
                partition: start.partition.get(),
                offset: (reset.to != ResetTo::Forget).then_some(offset.get()),
            });
            results.push(ResetOffset {
                partition,
                before: None,
                after: None,
                clamped_from: (asked != offset).then_some(asked),
                error: None,
            });
        }
        Ok(())
    }
}

fn left_out() -> Error {
    Error::new(ErrorKind::Protocol, "the broker left something out")
}

fn details(group: DescribedGroup) -> GroupDetails {
    let names: BTreeMap<TopicId, String> = group
        .offsets
        .iter()
        .filter(|lag| !lag.topic.is_empty())
        .map(|lag| (lag.topic_id.map(TopicId::from).unwrap_or_default(), lag.topic.clone()))
        .collect();
    GroupDetails {
        group: group.group,
        state: group.state,
        generation: group.generation,
        assignor: group.assignor,
        coordinator: NodeId(group.coordinator),
        members: group.members.into_iter().map(|member| member_details(member, &names)).collect(),
        positions: group.offsets.into_iter().map(position).collect(),
    }
}

fn member_details(member: GroupMember, names: &BTreeMap<TopicId, String>) -> GroupMemberDetails {
    GroupMemberDetails {
        assigned: partitions(member.assigned, names),
        target: partitions(member.target, names),
        member_id: member.member_id,
        instance_id: member.instance_id,
        rack: member.rack,
        client: member.client,
        host: member.host,
        generation: member.generation,
        state: member.state,
        topics: member.topics,
        pattern: member.pattern,
        heard_ms_ago: member.heard_ms_ago,
        session_timeout_ms: member.session_timeout_ms,
    }
}

fn partitions(assignment: Option<GroupAssignment>, names: &BTreeMap<TopicId, String>) -> Vec<GroupPartition> {
    let mut all = BTreeSet::new();
    for topic in assignment.unwrap_or_default().topics {
        let id = topic.topic_id.map(TopicId::from).unwrap_or_default();
        let name: std::sync::Arc<str> =
            names.get(&id).map_or_else(|| id.to_string().into(), |name| name.as_str().into());
        let partition = |partition| GroupPartition {
            topic: std::sync::Arc::clone(&name),
            partition: PartitionId(partition),
        };
        all.extend(topic.partitions.into_iter().map(partition));
    }
    all.into_iter().collect()
}

fn position(lag: GroupLag) -> GroupPosition {
    let id = lag.topic_id.map(TopicId::from).unwrap_or_default();
    let topic = if lag.topic.is_empty() { id.to_string() } else { lag.topic };
    GroupPosition {
        partition: GroupPartition { topic: topic.into(), partition: PartitionId(lag.partition) },
        committed: lag.committed.map(Offset),
        log_start: lag.log_start.map(Offset),
        high_watermark: lag.high_watermark.map(Offset),
        lag: lag.lag,
        offsets_per_minute: lag.offsets_per_minute,
        member_id: lag.member_id,
        metadata: lag.metadata,
        commit_time_ms: (lag.commit_time_ms > 0).then_some(lag.commit_time_ms),
    }
}
