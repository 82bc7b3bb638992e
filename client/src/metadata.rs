//! Where things are: brokers and leaders, cached.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{ClusterId, LeaderEpoch, NodeId, PartitionId, TopicId};
use highwater_protocol::messages::{
    BrokerInfo, MetadataPush, MetadataReply, MetadataRequest, PartitionInfo, TopicInfo,
};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::admin::{Broker, ClusterMetadata, PartitionMetadata, TopicMetadata};
use crate::error::{Error, ErrorKind};

/// What was last heard about the cluster. Brokers learn of changes at different times: what is older than what is known
/// already changes nothing.
#[derive(Debug, Default)]
pub(crate) struct MetadataCache {
    state: RwLock<State>,
    /// Counts changes of leaders, brokers and partitions.
    changes: watch::Sender<u64>,
    /// Counts the topics that are to be watched, each as it is added.
    watched: watch::Sender<BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    addresses: HashMap<NodeId, String>,
    topics: HashMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    /// The version of the cluster image that it is from.
    version: u64,
    topic: Arc<TopicMetadata>,
    /// It was wrong about something: to be asked for again.
    stale: bool,
}

impl MetadataCache {
    /// A topic, if it has been asked for and nothing was wrong about it since.
    pub(crate) fn topic(&self, name: &str) -> Option<Arc<TopicMetadata>> {
        let state = self.state.read();
        state.topics.get(name).filter(|known| !known.stale).map(|known| Arc::clone(&known.topic))
    }

    /// The name of the topic with this id, if it is known.
    pub(crate) fn name_of(&self, topic_id: TopicId) -> Option<String> {
        let state = self.state.read();
        let known = state.topics.values().find(|known| known.topic.topic_id == topic_id);
        known.map(|known| known.topic.name.clone())
    }

    /// Notes that a topic is gone, or what is known was wrong.
    pub(crate) fn forget(&self, name: &str) {
        if let Some(known) = self.state.write().topics.get_mut(name) {
            known.stale = true;
        }
    }

    /// Tells of every change from here on.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// From here on changes of this topic are to be told by a broker.
    pub(crate) fn watch(&self, name: &str) {
        self.watched.send_if_modified(|watched| watched.insert(name.to_owned()));
    }

    /// The topics that are to be watched.
    pub(crate) fn watched(&self) -> watch::Receiver<BTreeSet<String>> {
        self.watched.subscribe()
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

    /// The leader of a partition as last heard, if there is one: its epoch and its address.
    pub(crate) fn leadership(
        &self,
        name: &str,
        topic_id: TopicId,
        partition: PartitionId,
    ) -> Option<(LeaderEpoch, String)> {
        let state = self.state.read();
        let topic = state.topics.get(name).map(|known| &known.topic)?;
        let info = topic.partitions.get(partition.get() as usize).filter(|_| topic.topic_id == topic_id)?;
        Some((info.leader_epoch, state.addresses.get(&info.leader?)?.clone()))
    }

    /// Takes in what a broker said; topics that are not there are left out.
    pub(crate) fn update(&self, reply: MetadataReply) -> ClusterMetadata {
        let brokers = brokers_of(reply.brokers);
        let topics = self.take(reply.version, &brokers, reply.topics);
        ClusterMetadata {
            cluster_id: reply.cluster_id.map(ClusterId::from),
            version: reply.version,
            controller: node(reply.controller),
            brokers,
            topics,
        }
    }

    /// Takes in what a broker told without being asked.
    pub(crate) fn take_push(&self, push: MetadataPush) {
        let brokers = brokers_of(push.brokers);
        self.take(push.version, &brokers, push.topics);
    }

    fn take(&self, version: u64, brokers: &[Broker], infos: Vec<TopicInfo>) -> Vec<TopicMetadata> {
        let mut changed = false;
        let mut topics = Vec::with_capacity(infos.len());
        let mut state = self.state.write();
        if version >= state.version && !brokers.is_empty() {
            let addresses = brokers.iter().map(|broker| (broker.node_id, broker.address.clone())).collect();
            changed |= state.addresses != addresses;
            state.addresses = addresses;
            state.version = version;
        }
        for info in infos {
            match ErrorCode::from_code(info.error) {
                ErrorCode::None => {}
                ErrorCode::UnknownTopic => {
                    let old = state.topics.get(&info.name);
                    if old.is_some_and(|known| known.stale || version >= known.version) {
                        state.topics.remove(&info.name);
                        changed = true;
                    }
                    continue;
                }
                // The broker could not find out: nothing follows of that.
                _ => continue,
            }
            let mut topic = topic_of(info);
            if let Some(known) = state.topics.get(&topic.name) {
                topic.keep_newer(&known.topic, version < known.version);
                changed |= *known.topic != topic;
            } else {
                changed = true;
            }
            topics.push(topic.clone());
            let version = state.topics.get(&topic.name).map_or(version, |known| known.version.max(version));
            let known = Known { version, topic: Arc::new(topic), stale: false };
            state.topics.insert(known.topic.name.clone(), known);
        }
        drop(state);
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
        topics
    }
}

impl TopicMetadata {
    /// Keeps of an earlier state what is newer than this one: a broker may be behind.
    fn keep_newer(&mut self, before: &Self, older: bool) {
        if self.topic_id != before.topic_id {
            if older {
                before.clone_into(self);
            }
            return;
        }
        for (new, old) in self.partitions.iter_mut().zip(&before.partitions) {
            if new.leader_epoch < old.leader_epoch {
                old.clone_into(new);
            }
        }
        let known = self.partitions.len().min(before.partitions.len());
        self.partitions.extend_from_slice(&before.partitions[known..]);
    }
}

fn brokers_of(brokers: Vec<BrokerInfo>) -> Vec<Broker> {
    let broker = |broker: BrokerInfo| Broker {
        node_id: NodeId(broker.node_id),
        address: broker.address,
        rack: broker.rack,
    };
    brokers.into_iter().map(broker).collect()
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

    fn reply(version: u64, epoch: u32, leader: u32) -> MetadataReply {
        let broker = BrokerInfo { node_id: 1, address: String::from("a:1"), rack: String::new() };
        let partition =
            PartitionInfo { partition: 0, leader, leader_epoch: epoch, ..PartitionInfo::default() };
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
        let topics = vec![topic, unknown];
        MetadataReply { version, brokers: vec![broker], topics, ..MetadataReply::default() }
    }

    #[test]
    fn leaders_are_found_and_their_absence_is_retriable() {
        let cache = MetadataCache::default();
        let metadata = cache.update(reply(1, 1, 1));
        assert_eq!(metadata.topics.len(), 1, "a topic that is not there is left out");
        let topic = cache.topic("orders").unwrap();
        assert_eq!(cache.leader_address(&topic, PartitionId(0)).unwrap(), "a:1");
        let missing = cache.leader_address(&topic, PartitionId(1)).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::UnknownPartition);
        for leader in [0, 2] {
            cache.update(reply(2, 2, leader));
            let topic = cache.topic("orders").unwrap();
            assert!(cache.leader_address(&topic, PartitionId(0)).unwrap_err().is_retriable());
        }
    }

    #[test]
    fn a_broker_that_is_behind_does_not_take_a_leader_back() {
        let cache = MetadataCache::default();
        let mut changes = cache.changes();
        cache.update(reply(5, 3, 1));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        cache.update(reply(4, 2, 2));
        assert!(!changes.has_changed().unwrap(), "nothing new");
        let leader = |cache: &MetadataCache| cache.topic("orders").unwrap().partitions[0].leader;
        assert_eq!(leader(&cache), Some(NodeId(1)));
        // Nor does it when what is known was in doubt; but then it is no longer.
        cache.forget("orders");
        assert!(cache.topic("orders").is_none());
        cache.update(reply(4, 2, 2));
        assert_eq!(leader(&cache), Some(NodeId(1)));
    }

    #[test]
    fn a_push_changes_what_it_names() {
        let cache = MetadataCache::default();
        cache.update(reply(5, 3, 1));
        let moved = reply(6, 4, 2);
        let mut brokers = moved.brokers.clone();
        brokers.push(BrokerInfo { node_id: 2, address: String::from("b:2"), rack: String::new() });
        cache.take_push(MetadataPush { version: 6, controller: 1, brokers, topics: moved.topics });
        let topic = cache.topic("orders").unwrap();
        assert_eq!(cache.leader_address(&topic, PartitionId(0)).unwrap(), "b:2");
        let gone = TopicInfo {
            error: ErrorCode::UnknownTopic.code(),
            name: String::from("orders"),
            ..TopicInfo::default()
        };
        cache.take_push(MetadataPush { version: 7, topics: vec![gone], ..MetadataPush::default() });
        assert!(cache.topic("orders").is_none());
        assert_eq!(cache.addresses().len(), 2, "a push without brokers leaves them as they were");
    }
}
