//! `Metadata`: where things are.

use std::sync::Arc;

use highwater_broker_core::controller::image::{Broker, ClusterImage, Topic};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::TopicId;
use highwater_protocol::messages::{BrokerInfo, MetadataReply, MetadataRequest, PartitionInfo, TopicInfo};

use super::{ApiError, check_partition_count};
use crate::server::Node;
use crate::server::principal::{Operation, Principal};

/// Partitions that one reply tells about: what a frame has room for, and more than the largest topic has.
const PARTITIONS_MAX: usize = 30_000;

pub(crate) fn handle(
    node: &Node,
    principal: &Principal,
    request: &MetadataRequest,
) -> Result<MetadataReply, ApiError> {
    principal.authorise(Operation::Describe)?;
    let image = node.controller.image();
    let count: usize = if request.all_topics {
        image.topics().map(|topic| topic.partitions.len()).sum()
    } else {
        let by_name = request.names.iter().filter_map(|name| image.topic_named(name));
        let by_id = request.topic_ids.iter().filter_map(|id| image.topic(TopicId::from(*id)));
        by_name.chain(by_id).map(|topic| topic.partitions.len()).sum()
    };
    check_partition_count(count, PARTITIONS_MAX)?;
    let topics = if request.all_topics {
        image.topics().map(|topic| topic_info(node, topic)).collect()
    } else {
        let by_name = request.names.iter().map(|name| match image.topic_named(name) {
            Some(topic) => topic_info(node, topic),
            None => TopicInfo { name: name.clone(), ..unknown() },
        });
        let by_id = request.topic_ids.iter().map(|id| match image.topic(TopicId::from(*id)) {
            Some(topic) => topic_info(node, topic),
            None => TopicInfo { topic_id: Some(*id), ..unknown() },
        });
        by_name.chain(by_id).collect()
    };
    Ok(MetadataReply {
        cluster_id: Some(image.cluster_id.into()),
        version: image.version,
        controller: node.node_id.get(),
        brokers: brokers(&image),
        topics,
    })
}

fn brokers(image: &ClusterImage) -> Vec<BrokerInfo> {
    let info = |broker: &Arc<Broker>| BrokerInfo {
        node_id: broker.node_id.get(),
        address: broker.address.clone(),
        rack: broker.rack.clone(),
    };
    image.brokers().map(info).collect()
}

fn unknown() -> TopicInfo {
    TopicInfo { error: ErrorCode::UnknownTopic.code(), ..TopicInfo::default() }
}

fn topic_info(node: &Node, topic: &Topic) -> TopicInfo {
    TopicInfo {
        error: ErrorCode::None.code(),
        name: topic.name.clone(),
        topic_id: Some(topic.id.into()),
        partitions: topic
            .partition_ids()
            .map(|partition| partition_info(node, topic, partition.partition.get()))
            .collect(),
        batch_bytes_max: topic.config.batch_bytes_max,
    }
}

/// Who has a partition: the assignment is in the image, leadership is what the partition's own task says.
pub(crate) fn partition_info(node: &Node, topic: &Topic, partition: u32) -> PartitionInfo {
    let replicas: Vec<u32> = topic
        .partitions
        .get(partition as usize)
        .map(|partition| partition.replicas.iter().map(|id| id.get()).collect())
        .unwrap_or_default();
    let id = highwater_protocol::ids::TopicPartition::new(topic.id, partition.into());
    let status = node.partitions.find(id).ok().map(|handle| handle.status());
    PartitionInfo {
        partition,
        leader: status.as_ref().map_or(0, |_| node.node_id.get()),
        leader_epoch: status.as_ref().map_or(0, |status| status.leader_epoch.get()),
        in_sync: status.map(|status| status.in_sync).unwrap_or_default(),
        eligible: Vec::new(),
        replicas,
    }
}
