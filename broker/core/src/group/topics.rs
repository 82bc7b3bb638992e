//! What groups know of topics: which there are, how many partitions they have, and in which racks these are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use highwater_protocol::ids::{PartitionId, TopicId, TopicPartition};

use super::pattern;
use super::record::Subscription;
use crate::controller::image::ClusterImage;

/// The topics of one version of the cluster image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topics {
    by_name: BTreeMap<Arc<str>, Topic>,
    names: BTreeMap<TopicId, Arc<str>>,
}

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its id.
    pub id: TopicId,
    /// Its name.
    pub name: Arc<str>,
    /// How many partitions it has.
    pub partitions: u32,
    /// By partition the racks of its replicas; shorter than `partitions` where none is known.
    pub racks: Vec<Vec<Arc<str>>>,
    /// Whether it belongs to the brokers: patterns pass over it.
    pub internal: bool,
}

impl Topic {
    /// The ids of its partitions.
    pub(super) fn partition_ids(&self) -> impl Iterator<Item = TopicPartition> + use<> {
        let id = self.id;
        (0..self.partitions).map(move |partition| TopicPartition::new(id, PartitionId(partition)))
    }

    /// Whether a replica of the partition is in the rack.
    pub(super) fn is_in_rack(&self, partition: PartitionId, rack: &str) -> bool {
        self.racks.get(partition.get() as usize).is_some_and(|racks| racks.iter().any(|r| **r == *rack))
    }
}

impl Topics {
    /// What an image says of topics.
    #[must_use]
    pub fn of(image: &ClusterImage) -> Self {
        let racks: BTreeMap<_, Arc<str>> = image
            .brokers()
            .filter(|broker| !broker.rack.is_empty())
            .map(|broker| (broker.node_id, Arc::from(broker.rack.as_str())))
            .collect();
        let mut topics = Self::default();
        for topic in image.topics() {
            let racks_of = |partition: &crate::controller::image::Partition| {
                let racks: BTreeSet<&Arc<str>> =
                    partition.replicas.iter().filter_map(|node| racks.get(node)).collect();
                racks.into_iter().map(Arc::clone).collect()
            };
            topics.insert(Topic {
                id: topic.id,
                name: Arc::from(topic.name.as_str()),
                partitions: topic.partitions.len() as u32,
                racks: if racks.is_empty() {
                    Vec::new()
                } else {
                    topic.partitions.iter().map(racks_of).collect()
                },
                internal: topic.is_internal(),
            });
        }
        topics
    }

    /// Adds a topic, in place of one of that name.
    pub fn insert(&mut self, topic: Topic) {
        let (id, name) = (topic.id, Arc::clone(&topic.name));
        if let Some(before) = self.by_name.insert(Arc::clone(&name), topic) {
            self.names.remove(&before.id);
        }
        self.names.insert(id, name);
    }

    /// The topic with this id.
    #[must_use]
    pub fn get(&self, id: TopicId) -> Option<&Topic> {
        self.names.get(&id).and_then(|name| self.by_name.get(name))
    }

    /// The topic with this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Topic> {
        self.by_name.get(name)
    }

    /// The topics that a subscription stands for.
    pub(super) fn matching(&self, subscription: &Subscription) -> BTreeSet<TopicId> {
        let mut ids: BTreeSet<TopicId> =
            subscription.topics.iter().filter_map(|name| self.named(name)).map(|topic| topic.id).collect();
        if let Some(pattern) = &subscription.pattern {
            let matched = self.by_name.values().filter(|topic| !topic.internal);
            ids.extend(matched.filter(|topic| pattern::matches(pattern, &topic.name)).map(|topic| topic.id));
        }
        ids
    }

    /// Names that a subscription lists and no topic has.
    pub(super) fn unmatched(&self, subscription: &Subscription) -> Vec<String> {
        let missing = subscription.topics.iter().filter(|name| self.named(name).is_none());
        missing.map(|name| name.to_string()).collect()
    }
}
