//! Where a member goes on in partitions that it is given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{Offset, PartitionId, TopicId, TopicPartition};
use highwater_protocol::limits::COMMIT_OFFSETS_MAX;
use highwater_protocol::messages::{
    CommittedOffset, FetchOffsetsReply, FetchOffsetsRequest, GroupPartitions,
};
use tokio::time::Instant;

use super::coordinator::Coordinator;
use crate::client::Client;
use crate::consumer::{StartAt, Topic};
use crate::error::{Error, ErrorKind};

/// Who asks.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) group: Arc<str>,
    pub(super) member_id: Arc<str>,
    pub(super) generation: u32,
    /// Where to begin without a committed position.
    pub(super) start: StartAt,
}

/// Where to go on.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) at: TopicPartition,
    pub(super) topic: Topic,
    pub(super) position: Offset,
    /// How the position was found.
    pub(super) start: StartAt,
    /// The metadata of the committed position, if there was one.
    pub(super) committed: Option<String>,
}

/// Finds where to go on. Partitions of which it cannot be found out now are left out.
pub(super) async fn find(
    client: &Client,
    coordinator: &Coordinator,
    asking: &Asking,
    partitions: Vec<TopicPartition>,
) -> Result<Vec<Found>, Error> {
    let deadline = client.deadline();
    let mut names: BTreeMap<TopicId, Option<Topic>> = BTreeMap::new();
    for topic_id in partitions.iter().map(|at| at.topic_id).collect::<BTreeSet<_>>() {
        let name = client.topic_name(topic_id, deadline).await?;
        names.insert(topic_id, name.map(|name| Topic { name: name.into(), id: topic_id }));
    }
    let mut found = Vec::new();
    let mut without: BTreeMap<TopicId, Vec<PartitionId>> = BTreeMap::new();
    for offset in committed(coordinator, asking, &partitions, deadline).await? {
        let topic_id = offset.topic_id.map(TopicId::from).unwrap_or_default();
        let at = TopicPartition::new(topic_id, PartitionId(offset.partition));
        let Some(Some(topic)) = names.get(&topic_id) else { continue };
        let code = ErrorCode::from_code(offset.error);
        if !code.is_none() {
            let error = Error::from_code(code, offset.message).with_group(&asking.group);
            let error = error.with_partition(&topic.name, at.partition);
            tracing::warn!(%error, "a committed position cannot be had now; it is asked for again");
            continue;
        }
        match offset.offset.map(Offset) {
            Some(position) => {
                let (start, topic) = (StartAt::Offset(position), topic.clone());
                found.push(Found { at, topic, position, start, committed: Some(offset.metadata) });
            }
            None => without.entry(topic_id).or_default().push(at.partition),
        }
    }
    for (topic_id, partitions) in without {
        let Some(Some(topic)) = names.get(&topic_id) else { continue };
        begin(client, asking, topic, &partitions, &mut found).await;
    }
    Ok(found)
}

/// Where partitions of a topic begin for a group that has no position in them.
async fn begin(
    client: &Client,
    asking: &Asking,
    topic: &Topic,
    partitions: &[PartitionId],
    found: &mut Vec<Found>,
) {
    match client.admin().list_offsets(&topic.name, partitions, asking.start).await {
        Ok(listed) => found.extend(listed.into_iter().map(|listed| Found {
            at: TopicPartition::new(topic.id, listed.partition),
            topic: topic.clone(),
            position: listed.offset,
            start: asking.start,
            committed: None,
        })),
        Err(error) => {
            let error = error.with_group(&asking.group);
            tracing::warn!(%error, "where a topic begins cannot be had now; it is asked for again");
        }
    }
}

async fn committed(
    coordinator: &Coordinator,
    asking: &Asking,
    partitions: &[TopicPartition],
    deadline: Instant,
) -> Result<Vec<CommittedOffset>, Error> {
    let mut offsets = Vec::with_capacity(partitions.len());
    for some in partitions.chunks(COMMIT_OFFSETS_MAX) {
        let mut topics: Vec<GroupPartitions> = Vec::new();
        for at in some {
            let topic_id = Some(at.topic_id.into());
            match topics.last_mut().filter(|topic| topic.topic_id == topic_id) {
                Some(topic) => topic.partitions.push(at.partition.get()),
                None => topics.push(GroupPartitions { topic_id, partitions: vec![at.partition.get()] }),
            }
        }
        let request = FetchOffsetsRequest {
            group: asking.group.as_ref().to_owned(),
            member_id: asking.member_id.as_ref().to_owned(),
            generation: asking.generation,
            partitions: topics,
        };
        let check = |reply: &FetchOffsetsReply| {
            if reply.offsets.len() == some.len() {
                return Ok(());
            }
            let text = format!("{} positions were asked for, {} came", some.len(), reply.offsets.len());
            Err(Error::new(ErrorKind::Protocol, text))
        };
        offsets.extend(coordinator.ask(&request, deadline, check).await?.offsets);
    }
    Ok(offsets)
}
