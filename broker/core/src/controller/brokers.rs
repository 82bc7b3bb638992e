//! Brokers come, are ready, are fenced, stop, are drained and removed; and what the cluster may do with them.

use std::sync::Arc;

use highwater_protocol::ids::{BrokerEpoch, ClusterId, NodeId};

use super::command::{Command, Refusal, Reply};
use super::image::{Broker, BrokerState, ClusterImage, Defaults, Effect};
use super::partition::{Around, Partition, Restart};
use super::topic_config::TopicConfig;

/// Bytes of a broker's address, and of the name of its failure domain, at the most.
const BROKER_TEXT_BYTES_MAX: usize = 255;

impl ClusterImage {
    pub(super) fn init(
        &mut self,
        cluster_id: ClusterId,
        defaults: &Defaults,
        feature_level: u32,
    ) -> Result<Effect, Refusal> {
        if !self.cluster_id.is_absent() {
            return Err(Refusal::Initialised(self.cluster_id));
        }
        if cluster_id.is_absent() {
            return Err(Refusal::Invalid("the id of a new cluster is absent".to_owned()));
        }
        self.cluster_id = cluster_id;
        self.defaults = defaults.clone();
        self.feature_level = feature_level;
        Ok(Effect::Changed(Reply::Done))
    }

    pub(super) fn set_defaults(&mut self, defaults: &Defaults) -> Result<Effect, Refusal> {
        if self.defaults == *defaults {
            return Ok(Effect::Nothing(Reply::Done));
        }
        let mut topics = self.topics.clone();
        for topic in topics.values_mut() {
            let config = TopicConfig::with_overrides(&defaults.config, &topic.overrides, topic.replication)?;
            if config != topic.config {
                let topic = Arc::make_mut(topic);
                topic.config = config;
                topic.settle();
            }
        }
        self.topics = topics;
        self.defaults = defaults.clone();
        Ok(Effect::Changed(Reply::Done))
    }

    pub(super) fn set_feature_level(&mut self, level: u32) -> Result<Effect, Refusal> {
        let present = self.feature_level;
        let refused = |why: String| Err(Refusal::LevelChange { present, asked: level, why });
        if level == present {
            return Ok(Effect::Nothing(Reply::Done));
        }
        if level < present {
            return refused("it never goes back".to_owned());
        }
        let unable = |broker: &&Arc<Broker>| level < broker.feature_min || level > broker.feature_max;
        if let Some(broker) = self.brokers.values().find(unable)
            && !cfg!(hw_mutate = "h24_no_feature_level")
        {
            return refused(format!(
                "broker {} works at levels {} to {}; upgrade it, or remove it if it is gone",
                broker.node_id, broker.feature_min, broker.feature_max
            ));
        }
        self.feature_level = level;
        Ok(Effect::Changed(Reply::Done))
    }

    /// Commands about brokers.
    pub(super) fn apply_to_brokers(&mut self, command: &Command) -> Result<Effect, Refusal> {
        match command {
            Command::RegisterBroker { unclean, other_kernel, flush_failed, .. } => {
                let restart =
                    Restart { unclean: *unclean, other_kernel: *other_kernel, flush_failed: *flush_failed };
                let broker = self.new_broker(command)?;
                self.register(broker, restart)
            }
            Command::BrokerReady { node_id, broker_epoch } => self.ready(*node_id, *broker_epoch),
            Command::FenceBroker { node_id, broker_epoch } => self.fence(*node_id, *broker_epoch),
            Command::StopBroker { node_id, broker_epoch } => self.stop(*node_id, *broker_epoch),
            Command::DrainBroker { node_id, draining } => self.set_draining(*node_id, *draining),
            Command::RemoveBroker { node_id } => self.remove_broker(*node_id),
            _ => Err(Refusal::Invalid("not a command about brokers".to_owned())),
        }
    }

    /// The broker that a registration makes, with the epoch that is next.
    fn new_broker(&self, command: &Command) -> Result<Broker, Refusal> {
        let Command::RegisterBroker {
            node_id,
            directory_id,
            incarnation,
            address,
            rack,
            feature_min,
            feature_max,
            ..
        } = command
        else {
            return Err(Refusal::Invalid("not a registration".to_owned()));
        };
        if node_id.get() == 0 || directory_id.is_absent() {
            return Err(Refusal::Invalid("a broker has a node id from 1 and a directory id".to_owned()));
        }
        if address.is_empty() || address.len() > BROKER_TEXT_BYTES_MAX || rack.len() > BROKER_TEXT_BYTES_MAX {
            return Err(Refusal::Invalid(format!(
                "the address of broker {node_id} has from 1 to {BROKER_TEXT_BYTES_MAX} bytes, and its rack at most as \
                 many"
            )));
        }
        Ok(Broker {
            node_id: *node_id,
            directory_id: *directory_id,
            incarnation: *incarnation,
            broker_epoch: BrokerEpoch(self.next_broker_epoch),
            address: address.clone(),
            rack: rack.clone(),
            feature_min: *feature_min,
            feature_max: *feature_max,
            state: BrokerState::Starting,
            draining: self.broker(*node_id).is_some_and(|known| known.draining),
        })
    }

    /// Hole H5: a broker is what its directory is. A wiped or foreign directory never passes as the old one.
    fn check_identity(&self, broker: &Broker) -> Result<(), Refusal> {
        let (node_id, level) = (broker.node_id, self.feature_level);
        if level < broker.feature_min || level > broker.feature_max {
            let (min, max) = (broker.feature_min, broker.feature_max);
            return Err(Refusal::BrokerLevel { node_id, min, max, level });
        }
        if cfg!(hw_mutate = "h5_any_directory") {
            return Ok(());
        }
        if let Some(known) = self.broker(node_id)
            && known.directory_id != broker.directory_id
        {
            let (known, asked) = (known.directory_id, broker.directory_id);
            return Err(Refusal::OtherDirectory { node_id, known, asked });
        }
        let same = |known: &&Arc<Broker>| known.directory_id == broker.directory_id;
        match self.brokers.values().find(same) {
            Some(known) if known.node_id != node_id => Err(Refusal::OtherNode {
                directory_id: broker.directory_id,
                owner: known.node_id,
                asked: node_id,
            }),
            _ => Ok(()),
        }
    }

    fn register(&mut self, broker: Broker, restart: Restart) -> Result<Effect, Refusal> {
        self.check_identity(&broker)?;
        let known = self.broker(broker.node_id).cloned();
        if let Some(known) = &known
            && known.incarnation == broker.incarnation
        {
            // Sent again, because the answer was lost.
            let (broker_epoch, version) = (known.broker_epoch, self.version);
            return Ok(Effect::Nothing(Reply::Registered { broker_epoch, version }));
        }
        if known.is_none() && !self.topics.is_empty() {
            self.rebalance_wanted = true;
        }
        let (node, broker_epoch) = (broker.node_id, broker.broker_epoch);
        self.next_broker_epoch += 1;
        self.brokers.insert(node, Arc::new(broker));
        self.change_partitions_of(node, |partition, around| partition.registered(around, node, restart));
        let version = self.version + 1;
        Ok(Effect::Changed(Reply::Registered { broker_epoch, version }))
    }

    fn ready(&mut self, node: NodeId, epoch: BrokerEpoch) -> Result<Effect, Refusal> {
        match self.check_broker(node, epoch)?.state {
            BrokerState::Active | BrokerState::Stopping => return Ok(Effect::Nothing(Reply::Done)),
            BrokerState::Starting | BrokerState::Fenced => {}
        }
        self.set_state(node, BrokerState::Active);
        self.change_partitions_of(node, |partition, around| partition.elect(around, false));
        Ok(Effect::Changed(Reply::Done))
    }

    fn fence(&mut self, node: NodeId, epoch: BrokerEpoch) -> Result<Effect, Refusal> {
        if self.check_broker(node, epoch)?.state == BrokerState::Fenced {
            return Ok(Effect::Nothing(Reply::Done));
        }
        self.set_state(node, BrokerState::Fenced);
        self.change_partitions_of(node, |partition, around| partition.fence(around, node));
        Ok(Effect::Changed(Reply::Done))
    }

    fn stop(&mut self, node: NodeId, epoch: BrokerEpoch) -> Result<Effect, Refusal> {
        match self.check_broker(node, epoch)?.state {
            BrokerState::Stopping | BrokerState::Fenced => return Ok(Effect::Nothing(Reply::Done)),
            // It leads nothing yet.
            BrokerState::Starting => return self.fence(node, epoch),
            BrokerState::Active => {}
        }
        self.set_state(node, BrokerState::Stopping);
        self.change_partitions_of(node, |partition, around| partition.stop(around, node));
        Ok(Effect::Changed(Reply::Done))
    }

    fn set_draining(&mut self, node: NodeId, draining: bool) -> Result<Effect, Refusal> {
        let broker = self.brokers.get_mut(&node).ok_or(Refusal::UnknownBroker(node))?;
        if broker.draining == draining {
            return Ok(Effect::Nothing(Reply::Done));
        }
        Arc::make_mut(broker).draining = draining;
        self.rebalance_wanted = true;
        Ok(Effect::Changed(Reply::Done))
    }

    fn remove_broker(&mut self, node: NodeId) -> Result<Effect, Refusal> {
        let broker = self.brokers.get(&node).ok_or(Refusal::UnknownBroker(node))?;
        if broker.state != BrokerState::Fenced {
            return Err(Refusal::Conflict(format!(
                "broker {node} is {}: stop it before it is removed",
                broker.state_name()
            )));
        }
        let replicas = self.topics.values().flat_map(|topic| &topic.partitions);
        let held = replicas.filter(|partition| partition.is_replica(node)).count();
        let planned = self.moves.values().filter(|planned| planned.to.contains(&node)).count();
        if held + planned > 0 {
            return Err(Refusal::Conflict(format!(
                "broker {node} has {held} replicas and gets {planned}: drain it before it is removed"
            )));
        }
        self.brokers.remove(&node);
        Ok(Effect::Changed(Reply::Done))
    }

    /// The broker, if this is its registration.
    pub(super) fn check_broker(&self, node_id: NodeId, asked: BrokerEpoch) -> Result<&Broker, Refusal> {
        let broker = self.brokers.get(&node_id).ok_or(Refusal::UnknownBroker(node_id))?;
        let has = broker.broker_epoch;
        if has != asked && !cfg!(hw_mutate = "h5_any_registration") {
            return Err(Refusal::StaleBroker { node_id, has, asked });
        }
        Ok(broker)
    }

    fn set_state(&mut self, node: NodeId, state: BrokerState) {
        if let Some(broker) = self.brokers.get_mut(&node) {
            Arc::make_mut(broker).state = state;
        }
    }

    /// Changes every partition that the broker has a replica of.
    pub(super) fn change_partitions_of(
        &mut self,
        node: NodeId,
        mut change: impl FnMut(&mut Partition, Around<'_>),
    ) {
        let brokers = &self.brokers;
        for topic in self.topics.values_mut() {
            if !topic.partitions.iter().any(|partition| partition.is_replica(node)) {
                continue;
            }
            let topic = Arc::make_mut(topic);
            let (min, wanted) = (topic.min_in_sync() as usize, topic.config.durability);
            let around = Around { brokers, min, wanted };
            for partition in topic.partitions.iter_mut().filter(|partition| partition.is_replica(node)) {
                partition.change(|partition| change(partition, around));
            }
        }
        self.advance_moves();
    }
}
