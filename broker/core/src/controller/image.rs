//! The metadata at one version.
//!
//! Everything that the controller decides is a function of an image and a command, so that every broker that has applied
//! the same commands has the same image. Nothing depends on a broker's own configuration: defaults are in the image.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_protocol::ids::{
    BrokerEpoch, ClusterId, DirectoryId, NodeId, PartitionId, TopicId, TopicPartition,
};
use highwater_protocol::topic_name::is_internal_topic;
use serde::{Deserialize, Serialize};

use super::command::{BATCH_COMMANDS_MAX, Command, Refusal, Reply};
pub use super::partition::Partition;
use super::producer_ids::ProducerIds;
use super::topic_config::TopicConfig;

/// Partitions of all topics together. Bounds what one snapshot of the image can grow to.
pub const CLUSTER_PARTITIONS_MAX: u64 = 200_000;

/// Replicas of a new topic when nobody says how many, if there are that many brokers.
pub const REPLICATION_DEFAULT: u32 = 3;

/// Bytes a second that replicas on the move may fetch on each broker, until somebody says otherwise.
pub const MOVE_BYTES_PER_SECOND: u64 = 64 << 20;

/// What a topic falls back to where it says nothing. The same on every broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Defaults {
    /// Settings.
    pub config: TopicConfig,
    /// Partitions of a new topic.
    pub partitions: u32,
    /// Replicas of a new topic's partitions; 0: [`REPLICATION_DEFAULT`], or as many as there are active brokers.
    pub replication: u32,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { config: TopicConfig::default(), partitions: 1, replication: 0 }
    }
}

/// Brokers, topics and who has their partitions. Cheap to clone: brokers and topics are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterImage {
    /// Grows with every change.
    pub version: u64,
    /// The cluster; absent before its first command.
    pub cluster_id: ClusterId,
    /// What new records, messages and formats may be used.
    pub feature_level: u32,
    /// What topics fall back to.
    pub defaults: Defaults,
    pub(super) brokers: BTreeMap<NodeId, Arc<Broker>>,
    pub(super) topics: BTreeMap<TopicId, Arc<Topic>>,
    pub(super) names: BTreeMap<String, TopicId>,
    pub(super) producers: ProducerIds,
    /// The next registration.
    pub(super) next_broker_epoch: u64,
    pub(super) move_bytes_per_second: u64,
    /// Planned and under way.
    pub(super) moves: BTreeMap<TopicPartition, Move>,
    /// A broker has come, or is to be emptied, or back in service: a plan has to be made.
    pub(super) rebalance_wanted: bool,
}

/// A broker as it was registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broker {
    /// Who.
    pub node_id: NodeId,
    /// Its data directory.
    pub directory_id: DirectoryId,
    /// Made at the start of its process.
    pub incarnation: u128,
    /// Its registration.
    pub broker_epoch: BrokerEpoch,
    /// `host:port` for clients and brokers.
    pub address: String,
    /// Its failure domain; empty: none.
    pub rack: String,
    /// The lowest feature level that it can work at.
    pub feature_min: u32,
    /// The highest feature level that it can work at.
    pub feature_max: u32,
    /// What it is good for now.
    pub state: BrokerState,
    /// An operator wants it to have no replicas.
    #[serde(default)]
    pub draining: bool,
}

/// What a broker is good for.
///
/// ```text
/// (registered) → Starting → Active ⇄ Fenced      Active → Stopping → Fenced      any → Starting (registered again)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BrokerState {
    /// Registered; it opens its logs.
    Starting,
    /// It can lead and follow.
    Active,
    /// Not heard of: it leads nothing and is in no in-sync set.
    Fenced,
    /// It hands over what it leads and is about to end.
    Stopping,
}

impl Broker {
    /// The word that people are told.
    #[must_use]
    pub const fn state_name(&self) -> &'static str {
        match self.state {
            BrokerState::Active if self.draining => "draining",
            BrokerState::Active => "active",
            BrokerState::Starting => "starting",
            BrokerState::Fenced => "fenced",
            BrokerState::Stopping => "stopping",
        }
    }

    /// Whether new replicas may be placed on it.
    #[must_use]
    pub const fn takes_replicas(&self) -> bool {
        matches!(self.state, BrokerState::Active) && !self.draining
    }
}

/// Replicas that change places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The replicas before, as a cancel restores them.
    pub from: Vec<NodeId>,
    /// The replicas afterwards, preferred leader first.
    pub to: Vec<NodeId>,
    /// Whether it is under way: the partition has it in `adding` and `removing`.
    pub started: bool,
}

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its id.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// Replicas of each partition.
    pub replication: u32,
    /// Microseconds since the Unix epoch.
    pub created_at_us: i64,
    /// Settings that differ from the defaults.
    pub overrides: BTreeMap<String, String>,
    /// Every setting.
    pub config: TopicConfig,
    /// By partition, without gaps.
    pub partitions: Vec<Partition>,
}

impl Topic {
    /// The partition `id` of this topic.
    #[must_use]
    pub fn partition(&self, id: PartitionId) -> Option<&Partition> {
        self.partitions.get(id.get() as usize)
    }

    /// The ids of its partitions.
    pub fn partition_ids(&self) -> impl Iterator<Item = TopicPartition> + use<> {
        let id = self.id;
        (0..self.partitions.len() as u32)
            .map(move |partition| TopicPartition::new(id, PartitionId(partition)))
    }

    /// In-sync replicas without which nothing is committed.
    #[must_use]
    pub fn min_in_sync(&self) -> u32 {
        self.config.min_in_sync_of(self.replication)
    }

    /// Whether it belongs to the brokers.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        is_internal_topic(&self.name)
    }
}

impl Default for ClusterImage {
    fn default() -> Self {
        Self {
            version: 0,
            cluster_id: ClusterId::default(),
            feature_level: 0,
            defaults: Defaults::default(),
            brokers: BTreeMap::new(),
            topics: BTreeMap::new(),
            names: BTreeMap::new(),
            producers: ProducerIds::default(),
            next_broker_epoch: 1,
            move_bytes_per_second: MOVE_BYTES_PER_SECOND,
            moves: BTreeMap::new(),
            rebalance_wanted: false,
        }
    }
}

/// What a command came to.
pub(super) enum Effect {
    /// The image is another one.
    Changed(Reply),
    /// It was so already.
    Nothing(Reply),
}

impl ClusterImage {
    /// The broker with this id.
    #[must_use]
    pub fn broker(&self, id: NodeId) -> Option<&Arc<Broker>> {
        self.brokers.get(&id)
    }

    /// Every broker that was registered and not removed, by id.
    pub fn brokers(&self) -> impl Iterator<Item = &Arc<Broker>> {
        self.brokers.values()
    }

    /// The topic with this id.
    #[must_use]
    pub fn topic(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(&id)
    }

    /// The topic with this name.
    #[must_use]
    pub fn topic_named(&self, name: &str) -> Option<&Arc<Topic>> {
        self.names.get(name).and_then(|id| self.topics.get(id))
    }

    /// All topics, by name.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.names.values().filter_map(|id| self.topics.get(id))
    }

    /// Every partition of every topic.
    pub fn partitions(&self) -> impl Iterator<Item = TopicPartition> + '_ {
        self.topics.values().flat_map(|topic| topic.partition_ids())
    }

    /// The partition with this id.
    #[must_use]
    pub fn partition(&self, id: TopicPartition) -> Option<&Partition> {
        self.topics.get(&id.topic_id)?.partition(id.partition)
    }

    /// How many partitions there are.
    #[must_use]
    pub fn partition_count(&self) -> u64 {
        self.topics.values().map(|topic| topic.partitions.len() as u64).sum()
    }

    /// Bytes a second that replicas on the move may fetch, on each broker.
    #[must_use]
    pub const fn move_bytes_per_second(&self) -> u64 {
        self.move_bytes_per_second
    }

    /// Moves that are planned or under way, by partition.
    pub fn moves(&self) -> impl Iterator<Item = (TopicPartition, &Move)> {
        self.moves.iter().map(|(partition, planned)| (*partition, planned))
    }

    /// Whether a broker that stops may end: whatever others can lead is led by others.
    #[must_use]
    pub fn may_stop(&self, node_id: NodeId, broker_epoch: BrokerEpoch) -> bool {
        self.broker(node_id).is_some_and(|broker| {
            broker.broker_epoch == broker_epoch
                && matches!(broker.state, BrokerState::Stopping | BrokerState::Fenced)
        })
    }

    /// Carries a command out, or says why it changes nothing.
    ///
    /// # Errors
    /// When the command is refused; the image is as before then.
    pub fn apply(&mut self, command: &Command) -> Result<Reply, Refusal> {
        if let Command::Batch(commands) = command {
            return self.apply_batch(commands);
        }
        match self.apply_one(command)? {
            Effect::Changed(reply) => {
                self.version += 1;
                Ok(reply)
            }
            Effect::Nothing(reply) => Ok(reply),
        }
    }

    fn apply_batch(&mut self, commands: &[Command]) -> Result<Reply, Refusal> {
        if commands.len() > BATCH_COMMANDS_MAX {
            return Err(Refusal::Invalid(format!(
                "a batch has {} commands and may have {BATCH_COMMANDS_MAX}",
                commands.len()
            )));
        }
        let apply = |command: &Command| match command {
            Command::Batch(_) => Err(Refusal::Invalid("a batch within a batch".to_owned())),
            command => self.apply(command),
        };
        Ok(Reply::Batch(commands.iter().map(apply).collect()))
    }

    fn apply_one(&mut self, command: &Command) -> Result<Effect, Refusal> {
        self.check_level(command)?;
        match command {
            Command::Init { cluster_id, defaults, feature_level } => {
                self.init(*cluster_id, defaults, *feature_level)
            }
            Command::SetDefaults { defaults } => self.set_defaults(defaults),
            Command::CreateTopic { .. }
            | Command::AlterTopic { .. }
            | Command::DeleteTopic { .. }
            | Command::CreateInternalTopic { .. }
            | Command::ImportTopics { .. } => self.apply_to_topics(command),
            Command::RecordDurability { .. }
            | Command::AlterInSync { .. }
            | Command::ReportReplica { .. }
            | Command::ElectDamaged {}
            | Command::ElectUnclean { .. } => self.apply_to_partitions(command),
            Command::StartMoves { .. }
            | Command::AdvanceMoves {}
            | Command::CancelMoves {}
            | Command::BalanceLeaders { .. }
            | Command::RaiseReplication { .. }
            | Command::SetThrottle { .. } => self.apply_to_moves(command),
            Command::AllocateProducerIds { node_id, broker_epoch, count } => {
                self.check_broker(*node_id, *broker_epoch)?;
                Ok(Effect::Changed(self.producers.allocate(*count)))
            }
            Command::SetFeatureLevel { level } => self.set_feature_level(*level),
            Command::Batch(_) => Err(Refusal::Invalid("a batch within a batch".to_owned())),
            other => self.apply_to_brokers(other),
        }
    }

    /// Hole H24: what not every broker understands is not used, and does not even get into the log, where brokers of an older
    /// version would find it.
    ///
    /// # Errors
    /// When the cluster has not reached the level of the command.
    pub fn check_level(&self, command: &Command) -> Result<(), Refusal> {
        if self.cluster_id.is_absent() && !matches!(command, Command::Init { .. }) {
            return Err(Refusal::NotInitialised);
        }
        let (needs, has) = (command.level(), self.feature_level);
        if needs > has && !cfg!(hw_mutate = "h24_no_feature_level") {
            return Err(Refusal::Level { needs, has });
        }
        Ok(())
    }
}
