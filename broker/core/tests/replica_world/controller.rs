//! The controller of simulated replicas: the real cluster image, changed by one command after another, seen by brokers
//! late.

use std::collections::BTreeMap;

use highwater_broker_core::controller::command::{Command, FEATURE_LEVEL_MAX, Refusal, Reply};
use highwater_broker_core::controller::image::{BrokerState, ClusterImage, Defaults, Partition};
use highwater_broker_core::durability::Durability;
use highwater_broker_core::replica::Assignment;
use highwater_protocol::ids::{
    BrokerEpoch, ClusterId, DirectoryId, NodeId, PartitionId, TopicId, TopicPartition,
};

use super::network::Address;
use super::store::Boot;

/// The partition.
pub(super) const PARTITION: TopicPartition = TopicPartition::new(TopicId(0x51b), PartitionId(0));

/// The topic's name.
const TOPIC: &str = "orders";

/// A request on its way to the controller.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// Who asks.
    pub from: Address,
    /// What it is about.
    pub about: About,
    /// The command.
    pub command: Command,
}

/// What a request is about, and so what its answer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// An in-sync set proposed at this version.
    InSync(u64),
    /// A durability that is to be recorded.
    Durability(Durability),
    /// A report.
    Report,
}

/// The image, and every version of it.
#[derive(Debug)]
pub(super) struct Controller {
    versions: Vec<ClusterImage>,
    /// Requests on their way.
    pub requests: Vec<Request>,
    /// What is wrong.
    pub violations: Vec<String>,
}

impl Controller {
    /// A cluster of `nodes` brokers, none of them registered, and a controller that has not heard of a topic.
    #[must_use]
    pub(super) fn new() -> Self {
        let mut controller =
            Self { versions: vec![ClusterImage::default()], requests: Vec::new(), violations: Vec::new() };
        controller.must(&Command::Init {
            cluster_id: ClusterId(1),
            defaults: Defaults::default(),
            feature_level: FEATURE_LEVEL_MAX,
        });
        controller
    }

    /// Makes the topic. All brokers are active by now.
    pub(super) fn create_topic(&mut self, replication: u32, durability: Durability) {
        self.must(&Command::CreateTopic {
            topic_id: PARTITION.topic_id,
            name: TOPIC.to_owned(),
            partitions: 1,
            replication,
            config: BTreeMap::from([("durability".to_owned(), durability.to_string())]),
            created_at_us: 1,
        });
    }

    /// The newest image.
    ///
    /// # Panics
    /// Never: there is one from the start.
    #[must_use]
    pub(super) fn image(&self) -> &ClusterImage {
        match self.versions.last() {
            Some(image) => image,
            None => panic!("no image"),
        }
    }

    /// The image at a version or, between versions, the one before.
    #[must_use]
    pub(super) fn image_at(&self, version: u64) -> &ClusterImage {
        let after = self.versions.partition_point(|image| image.version <= version);
        self.versions.get(after.saturating_sub(1)).unwrap_or_else(|| self.image())
    }

    /// The partition as it is decided.
    #[must_use]
    pub(super) fn partition(&self) -> Option<&Partition> {
        self.image().partition(PARTITION)
    }

    /// Whether `fsync` is what the topic wants and what is recorded.
    #[must_use]
    pub(super) fn is_fsync(&self) -> bool {
        let image = self.image();
        let wanted = image.topic(PARTITION.topic_id).map(|topic| topic.config.durability);
        let effective = self.partition().map(|partition| partition.durability_effective);
        [wanted, effective].into_iter().flatten().all(Durability::waits_for_flush)
    }

    /// Applies a command; the image keeps its invariants.
    ///
    /// # Errors
    /// What the image answered.
    pub(super) fn apply(&mut self, command: &Command) -> Result<Reply, Refusal> {
        let mut image = self.image().clone();
        let outcome = image.apply(command);
        image.check_invariants();
        image.check_step_from(self.image());
        if image.version > self.image().version {
            self.versions.push(image);
        }
        outcome
    }

    /// A process comes.
    ///
    /// # Errors
    /// When it is not welcome.
    pub(super) fn register(
        &mut self,
        node: NodeId,
        process: u64,
        boot: Boot,
    ) -> Result<(BrokerEpoch, u64), Refusal> {
        let reply = self.apply(&Command::RegisterBroker {
            node_id: node,
            directory_id: DirectoryId(100 + u128::from(node.get())),
            incarnation: u128::from(process),
            address: format!("127.0.0.1:{}", 9000 + node.get()),
            rack: String::new(),
            feature_min: 1,
            feature_max: FEATURE_LEVEL_MAX,
            unclean: boot.unclean,
            other_kernel: boot.other_kernel,
            flush_failed: boot.flush_failed,
        })?;
        match reply {
            Reply::Registered { broker_epoch, version } => Ok((broker_epoch, version)),
            other => Err(Refusal::Invalid(format!("a registration was answered with {other:?}"))),
        }
    }

    /// Whether this registration waits to be ready.
    #[must_use]
    pub(super) fn awaits_ready(&self, node: NodeId, epoch: BrokerEpoch) -> bool {
        self.image().broker(node).is_some_and(|broker| {
            broker.broker_epoch == epoch
                && matches!(broker.state, BrokerState::Starting | BrokerState::Fenced)
        })
    }

    /// Changes the topic's settings, if that is allowed.
    pub(super) fn alter_topic(&mut self, key: &str, value: &str) {
        let set = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let command = Command::AlterTopic { name: TOPIC.to_owned(), set, unset: Vec::new(), partitions: 0 };
        let _refused = self.apply(&command);
    }

    fn must(&mut self, command: &Command) {
        if let Err(refusal) = self.apply(command) {
            self.violations.push(format!("{command:?}: {refusal}"));
        }
    }
}

impl Default for Controller {
    fn default() -> Self {
        Self::new()
    }
}

/// The partition in an image, as the shell hands it to the machine.
#[must_use]
pub(super) fn assignment(image: &ClusterImage) -> Option<Assignment> {
    let topic = image.topic(PARTITION.topic_id)?;
    let partition = image.partition(PARTITION)?;
    let registered = |node: &NodeId| image.broker(*node).map_or(BrokerEpoch(0), |broker| broker.broker_epoch);
    Some(Assignment {
        leader: partition.leader,
        epoch: partition.leader_epoch,
        version: partition.version,
        replicas: partition.replicas.clone(),
        adding: partition.adding.clone(),
        in_sync: partition.in_sync.iter().map(|node| (*node, registered(node))).collect(),
        eligible: partition.eligible.clone(),
        min_in_sync: topic.min_in_sync(),
        durability_effective: partition.durability_effective,
        durability_wanted: topic.config.durability,
        unclean_epoch: partition.unclean_epoch,
    })
}
