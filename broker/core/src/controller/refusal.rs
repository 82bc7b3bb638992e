//! Why a command changes nothing.

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{
    BrokerEpoch, ClusterId, DirectoryId, LeaderEpoch, NodeId, TopicId, TopicPartition,
};
use highwater_protocol::topic_name::InvalidTopicName;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::topic_config::InvalidSetting;

/// Why a command changes nothing. Travels as code and text, so that every broker can pass every refusal on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name is not allowed.
    #[error("{0}")]
    InvalidName(#[from] InvalidTopicName),
    /// The name is taken.
    #[error("topic '{0}' exists already")]
    TopicExists(String),
    /// No topic with this name, or with this name and id.
    #[error("there is no topic '{name}'{}", hint(.near.as_deref()))]
    UnknownTopic {
        /// As asked.
        name: String,
        /// The nearest name that there is.
        near: Option<String>,
    },
    /// The topic has another id: it was deleted and made again.
    #[error("topic '{name}' is another one now: its id is {found}, not {asked}")]
    OtherTopic {
        /// Its name.
        name: String,
        /// What was asked for.
        asked: TopicId,
        /// What it has.
        found: TopicId,
    },
    /// The topic belongs to the brokers.
    #[error("topic '{0}' belongs to the brokers: it can be read, and neither be changed nor deleted")]
    InternalTopic(String),
    /// A setting is not allowed.
    #[error("{0}")]
    InvalidSetting(#[from] InvalidSetting),
    /// Too many partitions.
    #[error("a topic has from 1 to {max} partitions, not {asked}")]
    Partitions {
        /// What was asked for.
        asked: u32,
        /// The limit.
        max: u32,
    },
    /// Fewer partitions than now.
    #[error("topic '{name}' has {present} partitions and cannot shrink to {asked}: records would be lost")]
    Shrinks {
        /// Its name.
        name: String,
        /// Now.
        present: u32,
        /// What was asked for.
        asked: u32,
    },
    /// The brokers cannot hold that many replicas.
    #[error("replication {asked} needs {asked} brokers, the cluster has {brokers}")]
    Replication {
        /// What was asked for.
        asked: u32,
        /// Brokers that can be given replicas now.
        brokers: u32,
    },
    /// The cluster would have too many partitions.
    #[error("the cluster has {present} partitions and takes at most {max}: {asked} more do not fit")]
    ClusterPartitions {
        /// Now.
        present: u64,
        /// What was asked for.
        asked: u64,
        /// The limit.
        max: u64,
    },
    /// The partition is not in the image.
    #[error("there is no partition {0}")]
    UnknownPartition(TopicPartition),
    /// An id is used twice: the proposer's randomness is broken.
    #[error("topic id {0} is in use")]
    IdInUse(TopicId),
    /// There is a cluster already.
    #[error("the cluster {0} exists already")]
    Initialised(ClusterId),
    /// There is no cluster yet.
    #[error("the cluster does not exist yet: its first command has to come first")]
    NotInitialised,
    /// The command is not allowed at the cluster's feature level.
    #[error(
        "this needs feature level {needs}, the cluster is at {has}: upgrade every broker, then raise the level"
    )]
    Level {
        /// What the command needs.
        needs: u32,
        /// What the cluster has.
        has: u32,
    },
    /// The feature level cannot become what was asked for.
    #[error("the feature level is {present} and cannot become {asked}: {why}")]
    LevelChange {
        /// Now.
        present: u32,
        /// What was asked for.
        asked: u32,
        /// Who or what is against it.
        why: String,
    },
    /// A broker cannot work at the cluster's feature level.
    #[error(
        "broker {node_id} works at feature levels {min} to {max}, the cluster is at {level}: start it with a version \
         that knows that level"
    )]
    BrokerLevel {
        /// Who.
        node_id: NodeId,
        /// The lowest that it knows.
        min: u32,
        /// The highest that it knows.
        max: u32,
        /// The cluster's.
        level: u32,
    },
    /// The node id belongs to another data directory.
    #[error(
        "node id {node_id} belongs to data directory {known}, not to {asked}: give that directory back, or start with a \
         node id of its own and --join, and drain and remove broker {node_id} if its directory is lost"
    )]
    OtherDirectory {
        /// The node id.
        node_id: NodeId,
        /// What it was registered with.
        known: DirectoryId,
        /// What came.
        asked: DirectoryId,
    },
    /// The data directory belongs to another node id.
    #[error(
        "data directory {directory_id} belongs to node id {owner}, not to {asked}: start it with --node-id {owner}"
    )]
    OtherNode {
        /// The directory.
        directory_id: DirectoryId,
        /// Whose it is.
        owner: NodeId,
        /// Who came with it.
        asked: NodeId,
    },
    /// A field has a value that is not allowed.
    #[error("{0}")]
    Invalid(String),
    /// No such broker.
    #[error("there is no broker {0} in the cluster")]
    UnknownBroker(NodeId),
    /// The broker has registered again since, or has not.
    #[error("broker {node_id} has broker epoch {has}, not {asked}: it was registered again")]
    StaleBroker {
        /// Who.
        node_id: NodeId,
        /// What it has.
        has: BrokerEpoch,
        /// What came.
        asked: BrokerEpoch,
    },
    /// Whoever speaks does not lead the partition at this epoch.
    #[error("broker {node_id} does not lead partition {partition} at epoch {asked}: epoch {epoch} is {}", led(.leader))]
    NotLeader {
        /// The partition.
        partition: TopicPartition,
        /// Who spoke.
        node_id: NodeId,
        /// At which epoch.
        asked: LeaderEpoch,
        /// Who leads.
        leader: Option<NodeId>,
        /// At which epoch.
        epoch: LeaderEpoch,
    },
    /// The partition has changed since.
    #[error("partition {partition} is at version {version}, not {asked}: look again")]
    StaleVersion {
        /// The partition.
        partition: TopicPartition,
        /// Now.
        version: u64,
        /// What the proposal was made from.
        asked: u64,
    },
    /// A replica may not be in the set.
    #[error("broker {node_id} may not be in the in-sync set of partition {partition}: {why}")]
    Ineligible {
        /// The partition.
        partition: TopicPartition,
        /// Whom the proposal named.
        node_id: NodeId,
        /// Why not.
        why: String,
    },
    /// The state of the cluster is against it.
    #[error("{0}")]
    Conflict(String),
    /// An operator has to accept a loss first.
    #[error("{0}")]
    LossNotAccepted(String),
    /// The topics of an older directory cannot be taken over.
    #[error("the topics of the data directory cannot be taken over: {0}")]
    Import(String),
    /// What another broker refused.
    #[error("{message}")]
    Other {
        /// The code on the wire.
        code: ErrorCode,
        /// What it said.
        message: String,
    },
}

fn hint(near: Option<&str>) -> String {
    near.map(|near| format!(", did you mean '{near}'?")).unwrap_or_default()
}

fn led(leader: &Option<NodeId>) -> String {
    leader.map_or_else(|| "led by nobody".to_owned(), |leader| format!("led by broker {leader}"))
}

impl Refusal {
    /// The code on the wire.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::InvalidName(_) => ErrorCode::InvalidTopicName,
            Self::TopicExists(_) => ErrorCode::TopicExists,
            Self::UnknownTopic { .. } | Self::OtherTopic { .. } => ErrorCode::UnknownTopic,
            Self::InvalidSetting(_) => ErrorCode::InvalidConfig,
            Self::Partitions { .. } | Self::Shrinks { .. } | Self::ClusterPartitions { .. } => {
                ErrorCode::InvalidPartitions
            }
            Self::Replication { .. } => ErrorCode::InvalidReplication,
            Self::UnknownPartition(_) => ErrorCode::UnknownPartition,
            Self::InternalTopic(_) => ErrorCode::NotAuthorized,
            Self::IdInUse(_) => ErrorCode::Internal,
            Self::NotInitialised => ErrorCode::NoController,
            Self::Level { .. } | Self::LevelChange { .. } | Self::BrokerLevel { .. } => {
                ErrorCode::UnsupportedVersion
            }
            Self::OtherDirectory { .. } | Self::OtherNode { .. } => ErrorCode::BrokerConflict,
            Self::Invalid(_) => ErrorCode::InvalidRequest,
            Self::UnknownBroker(_) | Self::StaleBroker { .. } => ErrorCode::StaleBrokerEpoch,
            Self::NotLeader { .. } => ErrorCode::NotLeader,
            Self::StaleVersion { .. } => ErrorCode::StaleVersion,
            Self::Ineligible { .. } => ErrorCode::IneligibleReplica,
            Self::Initialised(_) | Self::Conflict(_) | Self::LossNotAccepted(_) | Self::Import(_) => {
                ErrorCode::Conflict
            }
            Self::Other { code, .. } => *code,
        }
    }
}

/// A refusal on its way to another broker.
#[derive(Serialize, Deserialize)]
struct Told {
    code: u32,
    message: String,
}

impl Serialize for Refusal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Told { code: self.code().code(), message: self.to_string() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Refusal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Told::deserialize(deserializer).map(Self::from)
    }
}

impl From<Told> for Refusal {
    fn from(told: Told) -> Self {
        Self::Other { code: ErrorCode::from_code(told.code), message: told.message }
    }
}
