//! What can be asked of the controller. Time and new ids travel inside, so that applying is the same everywhere.

use std::collections::BTreeMap;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{TopicId, TopicPartition};
use highwater_protocol::topic_name::InvalidTopicName;

use super::topic_config::InvalidSetting;
use crate::durability::Durability;

/// A change of the cluster image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Makes a topic.
    CreateTopic {
        /// The new id.
        topic_id: TopicId,
        /// Its name.
        name: String,
        /// How many partitions; 0: the default.
        partitions: u32,
        /// How many replicas; 0: the default.
        replication: u32,
        /// Settings that differ from the defaults.
        config: BTreeMap<String, String>,
        /// Microseconds since the Unix epoch.
        created_at_us: i64,
    },
    /// Changes settings or adds partitions: everything or nothing.
    AlterTopic {
        /// Which topic.
        name: String,
        /// Settings to set.
        set: BTreeMap<String, String>,
        /// Settings to return to their defaults.
        unset: Vec<String>,
        /// The new number of partitions; 0: unchanged.
        partitions: u32,
    },
    /// Removes a topic.
    DeleteTopic {
        /// Which topic.
        name: String,
        /// If set, only the topic with this id.
        topic_id: Option<TopicId>,
    },
    /// Records which durability holds in a partition.
    RecordDurability {
        /// The partition.
        partition: TopicPartition,
        /// What holds from here on.
        durability: Durability,
    },
}

/// What came of a command that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The topic is in the image.
    Created {
        /// Its id.
        topic_id: TopicId,
        /// As made.
        partitions: u32,
        /// As made.
        replication: u32,
    },
    /// The topic is changed.
    Altered {
        /// Afterwards.
        partitions: u32,
    },
    /// The topic is gone.
    Deleted {
        /// What its id was.
        topic_id: TopicId,
    },
    /// The durability is recorded.
    Recorded,
}

/// Why a command changes nothing.
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
        /// Brokers there are.
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
}

fn hint(near: Option<&str>) -> String {
    near.map(|near| format!(", did you mean '{near}'?")).unwrap_or_default()
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
            Self::IdInUse(_) => ErrorCode::Internal,
        }
    }
}
