//! The controller of the simulated cluster: the shipping command machine, and proposals that wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use highwater_broker::storage::store::BootState;
use highwater_broker_core::controller::command::{
    Command, FEATURE_LEVEL_MAX, FEATURE_LEVEL_MIN, ReplicaEnds, ReplicaProblem, Reply,
};
use highwater_broker_core::controller::image::{BrokerState, ClusterImage, Defaults};
use highwater_broker_core::durability::Durability;
use highwater_protocol::ids::{BrokerEpoch, ClusterId, DirectoryId, LeaderEpoch, NodeId};

use super::process::Process;
use crate::sim::log_world::PARTITION;
use crate::sim::random::Random;

/// A proposal on its way.
#[derive(Debug)]
pub(super) struct Proposal {
    pub(super) command: Command,
    /// The process that is told when it is refused, and the version that it named.
    pub(super) told: Option<(NodeId, u64, u64)>,
}

/// Metadata as it was decided, version by version.
#[derive(Debug)]
pub(super) struct Controller {
    image: ClusterImage,
    decided: Vec<Arc<ClusterImage>>,
    proposals: VecDeque<Proposal>,
}

const TOPIC: &str = "simulated";

impl Controller {
    pub(super) fn new(replicas: u32, durability: Durability) -> Result<Self, String> {
        let mut controller =
            Self { image: ClusterImage::default(), decided: Vec::new(), proposals: VecDeque::new() };
        let init = Command::Init {
            cluster_id: ClusterId(1),
            defaults: Defaults::default(),
            feature_level: FEATURE_LEVEL_MAX,
        };
        controller.apply(&init)?;
        // The topic is made while everybody is there; the processes that are simulated come after that.
        for id in 1..=replicas {
            let (broker_epoch, _) = controller.register_as(NodeId(id), 0, [false; 3])?;
            controller.apply(&Command::BrokerReady { node_id: NodeId(id), broker_epoch })?;
        }
        controller.apply(&Command::CreateTopic {
            topic_id: PARTITION.topic_id,
            name: TOPIC.to_owned(),
            partitions: PARTITION.partition.get() + 1,
            replication: replicas,
            config: BTreeMap::from([("durability".to_owned(), durability.to_string())]),
            created_at_us: 0,
        })?;
        Ok(controller)
    }

    fn apply(&mut self, command: &Command) -> Result<Reply, String> {
        let before = self.image.version;
        let reply = self.image.apply(command).map_err(|refusal| format!("{command:?}: {refusal}"))?;
        self.image.check_invariants();
        if self.image.version != before {
            self.decided.push(Arc::new(self.image.clone()));
        }
        Ok(reply)
    }

    pub(super) fn register(
        &mut self,
        node: NodeId,
        incarnation: u64,
        boot: BootState,
    ) -> Result<(BrokerEpoch, u64), String> {
        let report = boot.report;
        self.register_as(node, incarnation, [report.unclean, report.other_kernel, report.flush_failed])
    }

    fn register_as(
        &mut self,
        node: NodeId,
        incarnation: u64,
        [unclean, other_kernel, flush_failed]: [bool; 3],
    ) -> Result<(BrokerEpoch, u64), String> {
        let reply = self.apply(&Command::RegisterBroker {
            node_id: node,
            directory_id: DirectoryId(u128::from(node.get())),
            incarnation: u128::from(incarnation),
            address: format!("broker-{node}:9470"),
            rack: String::new(),
            feature_min: FEATURE_LEVEL_MIN,
            feature_max: FEATURE_LEVEL_MAX,
            unclean,
            other_kernel,
            flush_failed,
        })?;
        match reply {
            Reply::Registered { broker_epoch, version } => Ok((broker_epoch, version)),
            other => Err(format!("a registration was answered with {other:?}")),
        }
    }

    pub(super) fn propose(&mut self, command: Command, told: Option<(NodeId, u64, u64)>) {
        self.proposals.push_back(Proposal { command, told });
    }

    pub(super) fn ready(&mut self, node_id: NodeId, broker_epoch: BrokerEpoch) {
        self.propose(Command::BrokerReady { node_id, broker_epoch }, None);
    }

    pub(super) fn report(&mut self, node: NodeId, process: &Process, problem: ReplicaProblem) {
        let ends = ReplicaEnds {
            last_epoch: process.log.last_epoch().unwrap_or_default(),
            log_end: process.log.log_end(),
        };
        let command = Command::ReportReplica {
            partition: PARTITION,
            node_id: node,
            broker_epoch: process.broker_epoch,
            problem,
            ends: Some(ends),
        };
        self.propose(command, None);
    }

    /// Whether the broker's replica is in sync or eligible.
    pub(super) fn is_member(&self, node: NodeId) -> bool {
        self.image.partition(PARTITION).is_some_and(|partition| partition.is_member(node))
    }

    /// Fences a broker that seems to be gone.
    pub(super) fn fence(&mut self, node_id: NodeId) {
        if let Some(broker) = self.image.broker(node_id) {
            let broker_epoch = broker.broker_epoch;
            self.propose(Command::FenceBroker { node_id, broker_epoch }, None);
        }
    }

    /// Those that are heard of again.
    pub(super) fn unfence_all(&mut self) {
        let fenced: Vec<_> = self
            .image
            .brokers()
            .filter(|broker| broker.state != BrokerState::Active)
            .map(|broker| (broker.node_id, broker.broker_epoch))
            .collect();
        for (node, broker_epoch) in fenced {
            self.ready(node, broker_epoch);
        }
    }

    pub(super) fn elect_damaged(&mut self) {
        if self.image.waits_for_clean_replicas() {
            self.propose(Command::ElectDamaged {}, None);
        }
    }

    pub(super) fn want_durability(&mut self, durability: Durability) {
        let command = Command::AlterTopic {
            name: TOPIC.to_owned(),
            set: BTreeMap::from([("durability".to_owned(), durability.to_string())]),
            unset: Vec::new(),
            partitions: 0,
        };
        self.propose(command, None);
    }

    pub(super) fn waits(&self) -> bool {
        !self.proposals.is_empty()
    }

    /// Decides about one of the next proposals; those of different brokers overtake each other. `Err`: refused.
    pub(super) fn decide(&mut self, random: &mut Random) -> Option<(Proposal, Result<Reply, String>)> {
        let index = random.index(self.proposals.len().min(3));
        let proposal = self.proposals.remove(index)?;
        let outcome = self.apply(&proposal.command);
        Some((proposal, outcome))
    }

    /// The last image, or one between it and the version that is known.
    pub(super) fn image_after(
        &self,
        version: u64,
        random: &mut Random,
        last: bool,
    ) -> Option<Arc<ClusterImage>> {
        let from = self.decided.partition_point(|image| image.version <= version);
        let newer = &self.decided[from..];
        if last { newer.last().cloned() } else { random.pick(newer).cloned() }
    }

    /// Whether this broker has to say how far its log goes.
    pub(super) fn wants_ends_of(&self, node: NodeId) -> bool {
        let Some(partition) = self.image.partition(PARTITION) else { return false };
        let reported = partition.reports.iter().any(|report| report.node_id == node);
        partition.in_sync.is_empty() && partition.eligible.is_empty() && !reported
    }

    pub(super) fn epoch(&self) -> LeaderEpoch {
        self.image.partition(PARTITION).map(|partition| partition.leader_epoch).unwrap_or_default()
    }

    /// Whether everything acknowledged is on stable storage: the weaker durability counts.
    pub(super) fn all_flushed(&self) -> bool {
        self.image
            .partition(PARTITION)
            .is_some_and(|partition| partition.durability_effective == Durability::Fsync)
    }

    /// What logs are opened with.
    pub(super) fn durability_gate(&self) -> Durability {
        let effective = self.image.partition(PARTITION).map(|partition| partition.durability_effective);
        let wanted = self.image.topic(PARTITION.topic_id).map(|topic| topic.config.durability);
        wanted.unwrap_or(Durability::Fsync).stricter(effective.unwrap_or(Durability::Fsync))
    }

    pub(super) fn describe(&self) -> String {
        let brokers: Vec<_> = self
            .image
            .brokers()
            .map(|broker| (broker.node_id.get(), broker.broker_epoch.get(), broker.state))
            .collect();
        format!(
            "version {}, brokers {brokers:?}, partition {:?}, {} proposals",
            self.image.version,
            self.image.partition(PARTITION),
            self.proposals.len()
        )
    }
}
