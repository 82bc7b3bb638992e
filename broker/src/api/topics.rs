//! Making, describing, changing and removing topics.

use std::time::Duration;

use highwater_broker_core::controller::command::{Command, Reply};
use highwater_broker_core::controller::image::{ClusterImage, Topic};
use highwater_broker_core::controller::topic_config::TopicConfig;
use highwater_broker_core::replica::ReplicaProgress;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{TopicId, TopicPartition};
use highwater_protocol::limits::PARTITIONS_MAX;
use highwater_protocol::messages::{
    AlterTopicReply, AlterTopicRequest, ConfigEntry, ConfigSource, CorruptRange, CreateTopicReply,
    CreateTopicRequest, DeleteTopicReply, DeleteTopicRequest, DescribeTopicsReply, DescribeTopicsRequest,
    PartitionDescription, ReplicaDescription, TopicDescription,
};

use super::metadata::partition_info;
use super::{ApiError, check_partition_count};
use crate::server::Node;
use crate::server::principal::{Operation, Principal};

/// Partitions that one reply describes in full: every partition of the largest topic, and what a frame has room for.
const DESCRIBED_PARTITIONS_MAX: usize = 12_000;
/// How long a request waits for its own change to come back in the image.
const IMAGE_WAIT_MAX: Duration = Duration::from_secs(5);
const _: () = assert!(DESCRIBED_PARTITIONS_MAX >= PARTITIONS_MAX as usize);

/// Returns when the topic is on stable storage and its partitions accept batches.
pub(crate) async fn create(
    node: &Node,
    principal: &Principal,
    request: CreateTopicRequest,
) -> Result<CreateTopicReply, ApiError> {
    principal.authorise(Operation::Administer)?;
    let command = Command::CreateTopic {
        topic_id: TopicId(node.random.next_u128()),
        name: request.name,
        partitions: request.partitions,
        replication: request.replication,
        config: request.config,
        created_at_us: node.clock.wall().0,
    };
    let reply = node.controller.propose(command, request.validate_only).await?;
    let Reply::Created { topic_id, partitions, replication } = reply else { return Err(odd(&reply)) };
    if request.validate_only {
        return Ok(CreateTopicReply { topic_id: None, partitions, replication });
    }
    wait_image(node, |image| image.topic(topic_id).is_some()).await;
    wait_open(node, topic_id).await?;
    Ok(CreateTopicReply { topic_id: Some(topic_id.into()), partitions, replication })
}

/// Returns when the change is on stable storage and new partitions accept batches.
pub(crate) async fn alter(
    node: &Node,
    principal: &Principal,
    request: AlterTopicRequest,
) -> Result<AlterTopicReply, ApiError> {
    principal.authorise(Operation::Administer)?;
    let name = request.name.clone();
    let command = Command::AlterTopic {
        name: request.name,
        set: request.set,
        unset: request.unset,
        partitions: request.partitions,
    };
    let reply = node.controller.propose(command, request.validate_only).await?;
    let Reply::Altered { partitions } = reply else { return Err(odd(&reply)) };
    if !request.validate_only {
        let has_all = |image: &ClusterImage| {
            image.topic_named(&name).is_none_or(|topic| topic.partitions.len() >= partitions as usize)
        };
        wait_image(node, has_all).await;
        if let Some(topic) = node.controller.image().topic_named(&name) {
            wait_open(node, topic.id).await?;
        }
    }
    Ok(AlterTopicReply { partitions })
}

/// Waits until this broker's image has a change that the controller has carried out. It comes by itself; if that takes
/// long, whoever asked learns of it by the errors of what comes next.
async fn wait_image(node: &Node, has: impl Fn(&ClusterImage) -> bool) {
    let mut versions = node.controller.versions();
    let waiting = async {
        while !has(&node.controller.image()) {
            if versions.changed().await.is_err() {
                return;
            }
        }
    };
    let _later = tokio::time::timeout(IMAGE_WAIT_MAX, waiting).await;
}

/// Waits until this broker has opened those of the topic's partitions that it has. Other brokers open theirs meanwhile,
/// and tell whoever is early to try again.
async fn wait_open(node: &Node, topic: TopicId) -> Result<(), ApiError> {
    let exists = || node.controller.image().topic(topic).is_some();
    node.partitions.wait_open(partitions_here(node, topic).into_iter(), exists).await
}

fn partitions_here(node: &Node, topic: TopicId) -> Vec<TopicPartition> {
    let image = node.controller.image();
    let Some(topic) = image.topic(topic) else { return Vec::new() };
    let all = topic.partition_ids().zip(&topic.partitions);
    all.filter(|(_, partition)| partition.is_replica(node.node_id)).map(|(id, _)| id).collect()
}

/// Returns when the topic is gone and its files are in the trash.
pub(crate) async fn delete(
    node: &Node,
    principal: &Principal,
    request: DeleteTopicRequest,
) -> Result<DeleteTopicReply, ApiError> {
    principal.authorise(Operation::Administer)?;
    let command = Command::DeleteTopic { name: request.name, topic_id: request.topic_id.map(TopicId::from) };
    let reply = node.controller.propose(command, false).await?;
    let Reply::Deleted { topic_id } = reply else { return Err(odd(&reply)) };
    node.partitions.wait_gone(topic_id).await;
    Ok(DeleteTopicReply {})
}

pub(crate) async fn describe(
    node: &Node,
    principal: &Principal,
    request: &DescribeTopicsRequest,
) -> Result<DescribeTopicsReply, ApiError> {
    principal.authorise(Operation::Describe)?;
    let mut image = node.controller.current_image()?;
    let mut absent = ErrorCode::UnknownTopic;
    if request.names.iter().any(|name| image.topic_named(name).is_none()) {
        // Another broker may have created it a moment ago.
        if let Err(error) = node.controller.catch_up().await {
            absent = error.code;
        }
        image = node.controller.current_image()?;
    }
    let describe = |topic: &Topic| description(node, topic, request.summary);
    if !request.summary {
        let count: usize = if request.names.is_empty() {
            image.topics().map(|topic| topic.partitions.len()).sum()
        } else {
            let named = request.names.iter().filter_map(|name| image.topic_named(name));
            named.map(|topic| topic.partitions.len()).sum()
        };
        check_partition_count(count, DESCRIBED_PARTITIONS_MAX)?;
    }
    let topics = if request.names.is_empty() {
        image.topics().map(|topic| describe(topic)).collect()
    } else {
        let named = |name: &String| match image.topic_named(name) {
            Some(topic) => describe(topic),
            None => {
                TopicDescription { error: absent.code(), name: name.clone(), ..TopicDescription::default() }
            }
        };
        request.names.iter().map(named).collect()
    };
    Ok(DescribeTopicsReply { topics })
}

fn description(node: &Node, topic: &Topic, summary: bool) -> TopicDescription {
    let entry = |name: &&str| ConfigEntry {
        name: (*name).to_owned(),
        value: topic.config.get(name).unwrap_or_default(),
        source: if topic.overrides.contains_key(*name) { ConfigSource::Topic } else { ConfigSource::Default }
            .into(),
    };
    TopicDescription {
        error: ErrorCode::None.code(),
        name: topic.name.clone(),
        topic_id: Some(topic.id.into()),
        replication: topic.replication,
        partition_count: topic.partitions.len() as u32,
        config: TopicConfig::NAMES.iter().map(entry).collect(),
        partitions: if summary {
            Vec::new()
        } else {
            topic.partition_ids().map(|partition| partition_description(node, topic, partition)).collect()
        },
        created_at_us: topic.created_at_us,
    }
}

fn partition_description(node: &Node, topic: &Topic, partition: TopicPartition) -> PartitionDescription {
    let id = partition.partition;
    let info = topic.partition(id).map(|state| partition_info(id.get(), state));
    let status = match node.partitions.find(partition) {
        Ok(handle) => handle.status(),
        Err(error) => {
            return PartitionDescription {
                error: error.code.code(),
                info,
                state: "offline".to_owned(),
                ..PartitionDescription::default()
            };
        }
    };
    let state = if status.state == "online" && node.is_read_only() { "read_only" } else { status.state };
    PartitionDescription {
        error: ErrorCode::None.code(),
        info,
        log_start: status.log_start.get(),
        log_end: status.log_end.get(),
        flushed_end: status.flushed_end.get(),
        high_watermark: status.high_watermark.get(),
        bytes: status.bytes,
        segments: status.segments,
        durability: status.durability.to_string(),
        state: state.to_owned(),
        corrupt: status
            .corrupt
            .iter()
            .map(|(start, end)| CorruptRange { start: start.get(), end: end.get() })
            .collect(),
        replicas: status.replicas.iter().map(replica_description).collect(),
    }
}

fn replica_description(replica: &ReplicaProgress) -> ReplicaDescription {
    ReplicaDescription {
        node_id: replica.node.get(),
        log_end: replica.ends.log_end.get(),
        flushed_end: replica.ends.flushed_end.get(),
        in_sync: replica.in_sync,
        connected: replica.connected,
    }
}

/// The command machine answers every command in kind; anything else is a defect.
fn odd(reply: &Reply) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("the controller answered {reply:?}"))
}
