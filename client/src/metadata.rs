//! Where things are: brokers and leaders, cached.

use std::collections::HashMap;
use std::sync::Arc;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{ClusterId, LeaderEpoch, NodeId, PartitionId, TopicId};
use highwater_protocol::messages::{MetadataReply, MetadataRequest, PartitionInfo, TopicInfo};
use parking_lot::RwLock;

use crate::admin::{Broker, ClusterMetadata, PartitionMetadata, TopicMetadata};
use crate::error::{Error, ErrorKind};

/// What was last heard about the cluster.
#[derive(Debug, Default)]
pub(crate) struct MetadataCache {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    addresses: HashMap<NodeId, String>,
    topics: HashMap<String, Arc<TopicMetadata>>,
}

impl MetadataCache {
    /// A topic, if it has been asked for.
    pub(crate) fn topic(&self, name: &str) -> Option<Arc<TopicMetadata>> {
        self.state.read().topics.get(name).cloned()
    }

    /// Forgets a topic: it is gone, or was wrong.
    pub(crate) fn forget(&self, name: &str) {
        self.state.write().topics.remove(name);
    }

    /// The addresses of all brokers known.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.state.read().addresses.values().cloned().collect()
    }

    /// Where the leader of a partition is, as last heard.
    pub(crate) fn leader_address(
        &self,
        topic: &TopicMetadata,
        partition: PartitionId,
    ) -> Result<String, Error> {
        let Some(info) = topic.partitions.get(partition.get() as usize) else {
            let text = format!("the topic has {} partitions, from 0", topic.partitions.len());
            return Err(Error::new(ErrorKind::UnknownPartition, text).with_partition(&topic.name, partition));
        };
        let not_ready =
            |text: String| Error::new(ErrorKind::NotReady, text).with_partition(&topic.name, partition);
        let leader = info.leader.ok_or_else(|| not_ready(String::from("the partition has no leader now")))?;
        let address = self.state.read().addresses.get(&leader).cloned();
        address.ok_or_else(|| not_ready(format!("the address of its leader, broker {leader}, is not known")))
    }

    /// Takes in what a broker said; topics that are not there are left out.
    pub(crate) fn update(&self, reply: MetadataReply) -> ClusterMetadata {
        let brokers: Vec<Broker> = reply
            .brokers
            .into_iter()
            .map(|broker| Broker {
                node_id: NodeId(broker.node_id),
                address: broker.address,
                rack: broker.rack,
            })
            .collect();
        let mut state = self.state.write();
        state.addresses = brokers.iter().map(|broker| (broker.node_id, broker.address.clone())).collect();
        let mut topics = Vec::with_capacity(reply.topics.len());
        for info in reply.topics {
            if ErrorCode::from_code(info.error).is_none() {
                let topic = topic_of(info);
                state.topics.insert(topic.name.clone(), Arc::new(topic.clone()));
                topics.push(topic);
            } else {
                state.topics.remove(&info.name);
            }
        }
        ClusterMetadata {
            cluster_id: reply.cluster_id.map(ClusterId::from),
            version: reply.version,
            controller: node(reply.controller),
            brokers,
            topics,
        }
    }
}

/// Asks for some topics by name, or for all.
pub(crate) fn request_for<S: AsRef<str>>(names: &[S], all_topics: bool) -> MetadataRequest {
    let names = names.iter().map(|name| name.as_ref().to_owned()).collect();
    MetadataRequest { names, topic_ids: Vec::new(), all_topics, watch: false }
}

fn topic_of(info: TopicInfo) -> TopicMetadata {
    TopicMetadata {
        name: info.name,
        topic_id: info.topic_id.map(TopicId::from).unwrap_or_default(),
        partitions: info.partitions.into_iter().map(partition_of).collect(),
        batch_bytes_max: info.batch_bytes_max,
    }
}

/// A partition's place as brokers tell it.
pub(crate) fn partition_of(info: PartitionInfo) -> PartitionMetadata {
    let nodes = |ids: Vec<u32>| ids.into_iter().map(NodeId).collect();
    PartitionMetadata {
        partition: PartitionId(info.partition),
        leader: node(info.leader),
        leader_epoch: LeaderEpoch(info.leader_epoch),
        replicas: nodes(info.replicas),
        in_sync: nodes(info.in_sync),
        eligible: nodes(info.eligible),
    }
}

/// 0 stands for nobody.
fn node(id: u32) -> Option<NodeId> {
    (id != 0).then_some(NodeId(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_protocol::messages::BrokerInfo;

    fn reply(leader: u32) -> MetadataReply {
        let broker = BrokerInfo { node_id: 1, address: String::from("a:1"), rack: String::new() };
        let partition = PartitionInfo { partition: 0, leader, ..PartitionInfo::default() };
        let topic = TopicInfo {
            name: String::from("orders"),
            topic_id: Some(TopicId(9).into()),
            partitions: vec![partition],
            ..TopicInfo::default()
        };
        let unknown = TopicInfo {
            error: ErrorCode::UnknownTopic.code(),
            name: String::from("gone"),
            ..TopicInfo::default()
        };
        MetadataReply { brokers: vec![broker], topics: vec![topic, unknown], ..MetadataReply::default() }
    }

    #[test]
    fn leaders_are_found_and_their_absence_is_retriable() {
        let cache = MetadataCache::default();
        let metadata = cache.update(reply(1));
        assert_eq!(metadata.topics.len(), 1, "a topic that is not there is left out");
        let topic = cache.topic("orders").unwrap();
        assert_eq!(cache.leader_address(&topic, PartitionId(0)).unwrap(), "a:1");
        let missing = cache.leader_address(&topic, PartitionId(1)).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::UnknownPartition);
        for leader in [0, 2] {
            cache.update(reply(leader));
            let topic = cache.topic("orders").unwrap();
            assert!(cache.leader_address(&topic, PartitionId(0)).unwrap_err().is_retriable());
        }
    }
}
