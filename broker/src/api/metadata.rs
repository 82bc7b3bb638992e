//! `Metadata`: where things are.

use std::sync::Arc;

use highwater_broker_core::controller::image::{Broker, ClusterImage, Partition, Topic};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{NodeId, TopicId};
use highwater_protocol::messages::{BrokerInfo, MetadataReply, MetadataRequest, PartitionInfo, TopicInfo};

use super::{ApiError, check_partition_count};
use crate::server::Node;
use crate::server::principal::{Operation, Principal};

/// Partitions that one reply tells about: what a frame has room for, and more than the largest topic has.
const PARTITIONS_MAX: usize = 30_000;

/// The reply, and the image that it was made from.
pub(crate) fn handle(
    node: &Node,
    principal: &Principal,
    request: &MetadataRequest,
) -> Result<(MetadataReply, Arc<ClusterImage>), ApiError> {
    principal.authorise(Operation::Describe)?;
    let image = node.controller.current_image()?;
    let count: usize = if request.all_topics {
        image.topics().map(|topic| topic.partitions.len()).sum()
    } else {
        let by_name = request.names.iter().filter_map(|name| image.topic_named(name));
        let by_id = request.topic_ids.iter().filter_map(|id| image.topic(TopicId::from(*id)));
        by_name.chain(by_id).map(|topic| topic.partitions.len()).sum()
    };
    check_partition_count(count, PARTITIONS_MAX)?;
    let topics = if request.all_topics {
        image.topics().map(|topic| topic_info(topic)).collect()
    } else {
        let by_name = request.names.iter().map(|name| match image.topic_named(name) {
            Some(topic) => topic_info(topic),
            None => TopicInfo { name: name.clone(), ..unknown() },
        });
        let by_id = request.topic_ids.iter().map(|id| match image.topic(TopicId::from(*id)) {
            Some(topic) => topic_info(topic),
            None => TopicInfo { topic_id: Some(*id), ..unknown() },
        });
        by_name.chain(by_id).collect()
    };
    let reply = MetadataReply {
        cluster_id: Some(image.cluster_id.into()),
        version: image.version,
        controller: node.controller.controller().map_or(0, NodeId::get),
        brokers: brokers(&image),
        topics,
    };
    Ok((reply, image))
}

/// Whether all that was asked for is there.
pub(crate) fn is_complete(reply: &MetadataReply) -> bool {
    reply.topics.iter().all(|topic| ErrorCode::from_code(topic.error).is_none())
}

/// The reply once this broker has heard of all that was decided before: another broker may have created what is not known
/// here yet. What then is still unknown does not exist, or, if the controller could not be asked, is not told about.
pub(crate) async fn handle_caught_up(
    node: &Node,
    principal: &Principal,
    request: &MetadataRequest,
) -> Result<MetadataReply, ApiError> {
    let caught_up = node.controller.catch_up().await;
    let (mut reply, _image) = handle(node, principal, request)?;
    let unknown = ErrorCode::UnknownTopic.code();
    if let Err(error) = caught_up {
        for topic in reply.topics.iter_mut().filter(|topic| topic.error == unknown) {
            topic.error = error.code.code();
        }
    }
    Ok(reply)
}

/// Every registered broker.
pub(crate) fn brokers(image: &ClusterImage) -> Vec<BrokerInfo> {
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

/// A topic as clients see it.
pub(crate) fn topic_info(topic: &Topic) -> TopicInfo {
    let partitions = (0..).zip(&topic.partitions);
    TopicInfo {
        error: ErrorCode::None.code(),
        name: topic.name.clone(),
        topic_id: Some(topic.id.into()),
        partitions: partitions.map(|(id, partition)| partition_info(id, partition)).collect(),
        batch_bytes_max: topic.config.batch_bytes_max,
    }
}

/// Who has a partition, as it is decided.
pub(crate) fn partition_info(id: u32, partition: &Partition) -> PartitionInfo {
    let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.get()).collect();
    PartitionInfo {
        partition: id,
        leader: partition.leader.map_or(0, NodeId::get),
        leader_epoch: partition.leader_epoch.get(),
        replicas: ids(&partition.replicas),
        in_sync: ids(&partition.in_sync),
        eligible: ids(&partition.eligible),
    }
}
