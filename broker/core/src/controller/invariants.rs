//! What holds of every image, and from each image to the next. Violations are defects of the command machine.

use std::collections::BTreeSet;

use highwater_protocol::ids::NodeId;

use super::image::{BrokerState, ClusterImage, Partition, Topic};

impl ClusterImage {
    /// Checks the invariants P1 to P6 of every partition, and of the image:
    /// - C1: names and topics belong to each other.
    /// - C2: every replica is on a broker that is registered.
    /// - C3: no two brokers have the same directory or the same broker epoch, and all epochs are below the next one.
    /// - C4: every move is one of a partition that there is, and a partition changes places only by a move.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check_invariants(&self) {
        assert_eq!(self.names.len(), self.topics.len(), "C1");
        for (name, id) in &self.names {
            assert!(self.topics.get(id).is_some_and(|topic| topic.name == *name), "C1: {name}");
        }
        let directories: BTreeSet<_> = self.brokers.values().map(|broker| broker.directory_id).collect();
        let epochs: BTreeSet<_> = self.brokers.values().map(|broker| broker.broker_epoch).collect();
        assert_eq!((directories.len(), epochs.len()), (self.brokers.len(), self.brokers.len()), "C3");
        assert!(epochs.iter().all(|epoch| epoch.get() < self.next_broker_epoch), "C3");
        for topic in self.topics.values() {
            for (id, partition) in topic.partition_ids().zip(&topic.partitions) {
                self.check_partition(topic, partition);
                let started = self.moves.get(&id).is_some_and(|planned| planned.started);
                let moving = !partition.adding.is_empty() || !partition.removing.is_empty();
                assert!(started || !moving, "C4: {id} {partition:?}");
            }
        }
        assert!(self.moves.keys().all(|id| self.partition(*id).is_some()), "C4");
    }

    fn check_partition(&self, topic: &Topic, partition: &Partition) {
        let set = |nodes: &[NodeId]| {
            let set: BTreeSet<NodeId> = nodes.iter().copied().collect();
            assert_eq!(set.len(), nodes.len(), "P1, P2: {partition:?}");
            set
        };
        let (replicas, in_sync, eligible) =
            (set(&partition.replicas), set(&partition.in_sync), set(&partition.eligible));
        let (adding, removing) = (set(&partition.adding), set(&partition.removing));
        assert!(!replicas.is_empty(), "P1: {partition:?}");
        assert!(adding.is_subset(&replicas) && removing.is_subset(&replicas), "P1: {partition:?}");
        assert!(adding.is_disjoint(&removing), "P1: {partition:?}");
        assert!(replicas.iter().all(|node| self.brokers.contains_key(node)), "C2: {partition:?}");
        assert!(in_sync.is_subset(&replicas) && eligible.is_subset(&replicas), "P2: {partition:?}");
        assert!(set(&partition.last_sets).is_subset(&replicas), "P2: {partition:?}");
        assert!(in_sync.is_disjoint(&eligible), "P2: {partition:?}");
        let serving = |node: &NodeId| {
            let state = self.broker(*node).map(|broker| broker.state);
            matches!(state, Some(BrokerState::Active | BrokerState::Stopping))
        };
        assert!(partition.leader.iter().all(|leader| in_sync.contains(leader)), "P3: {partition:?}");
        assert!(in_sync.iter().all(serving), "P3, P4: {partition:?}");
        let enough = in_sync.len() >= topic.min_in_sync() as usize;
        assert!(!enough || eligible.is_empty(), "P5: {partition:?}");
        let somebody = !in_sync.is_empty() || !eligible.is_empty() || !partition.last_sets.is_empty();
        assert!(somebody, "P6: {partition:?}");
    }

    /// Checks P7 of every partition, and of the image:
    /// - C5: `version`, `feature_level` and the next broker epoch never fall, and a changed image has another version.
    /// - C6: a broker's epoch never falls while it is registered.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check_step_from(&self, before: &Self) {
        let counters =
            |image: &Self| [image.version, u64::from(image.feature_level), image.next_broker_epoch];
        assert!(counters(self).iter().zip(counters(before)).all(|(now, then)| *now >= then), "C5");
        assert!(self == before || self.version > before.version, "C5: changed at version {}", self.version);
        for broker in self.brokers.values() {
            let then = before.broker(broker.node_id).map(|broker| broker.broker_epoch);
            assert!(then.is_none_or(|then| broker.broker_epoch >= then), "C6: {broker:?}");
        }
        for topic in self.topics.values() {
            let Some(then) = before.topic(topic.id) else { continue };
            for (now, then) in topic.partitions.iter().zip(&then.partitions) {
                assert!(now.leader_epoch >= then.leader_epoch, "P7: {then:?} {now:?}");
                assert!(now == then || now.version > then.version, "P7: {then:?} {now:?}");
                let same_leader = now.leader == then.leader;
                assert!(same_leader || now.leader_epoch > then.leader_epoch, "P7: {then:?} {now:?}");
            }
        }
    }
}
