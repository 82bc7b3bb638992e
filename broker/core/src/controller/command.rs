//! What can be asked of the controller. Time and new ids travel inside, so that applying is the same everywhere.

use std::collections::BTreeMap;

use highwater_protocol::ids::{
    BrokerEpoch, ClusterId, DirectoryId, LeaderEpoch, NodeId, Offset, ProducerId, TopicId, TopicPartition,
};
use serde::{Deserialize, Serialize};

use super::image::{Defaults, Partition};
pub use super::refusal::Refusal;
use super::topic_config::COMPACTION_SETTINGS;
use crate::durability::Durability;

/// The lowest feature level that this code can work at.
pub const FEATURE_LEVEL_MIN: u32 = 1;
/// The highest feature level that this code can work at.
pub const FEATURE_LEVEL_MAX: u32 = 2;
/// The feature level of consumer groups: topics of the brokers' own, whose names are reserved from here on.
pub const FEATURE_LEVEL_GROUPS: u32 = 2;

/// Commands in one [`Command::Batch`] at the most.
pub const BATCH_COMMANDS_MAX: usize = 4096;

/// Replicas of the brokers' own topics, as soon as there are that many brokers.
pub const INTERNAL_REPLICATION: u32 = 3;

/// Moves in one [`Command::StartMoves`], and changes in one [`Command::BalanceLeaders`], at the most.
pub const MOVES_MAX: usize = 200_000;

/// A change of the cluster image. New fields get `#[serde(default)]`; a new variant gets a level of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first command of a cluster.
    Init {
        /// Proposed by the first controller.
        cluster_id: ClusterId,
        /// What topics fall back to.
        defaults: Defaults,
        /// The level to begin at.
        feature_level: u32,
    },
    /// Replaces what topics fall back to.
    SetDefaults {
        /// What topics fall back to.
        defaults: Defaults,
    },
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
        /// If set, only while this is its leader epoch.
        #[serde(default)]
        leader_epoch: Option<LeaderEpoch>,
        /// What holds from here on.
        durability: Durability,
    },
    /// A broker comes, or comes again. It is given a new broker epoch unless this very incarnation has one already.
    RegisterBroker {
        /// Who.
        node_id: NodeId,
        /// Its data directory.
        directory_id: DirectoryId,
        /// Made at the start of its process.
        incarnation: u128,
        /// `host:port` for clients and brokers.
        address: String,
        /// Its failure domain; empty: none.
        rack: String,
        /// The lowest feature level that it can work at.
        feature_min: u32,
        /// The highest feature level that it can work at.
        feature_max: u32,
        /// It was not stopped in order since it last reported.
        unclean: bool,
        /// It has run under another kernel since it last reported: power may have been cut.
        other_kernel: bool,
        /// A flush has failed since it last reported.
        flush_failed: bool,
    },
    /// A registered broker has opened its logs, or is heard of again: it can lead from here on.
    BrokerReady {
        /// Who.
        node_id: NodeId,
        /// Its registration.
        broker_epoch: BrokerEpoch,
    },
    /// A broker is gone as far as the cluster is concerned: it leads nothing and is in no in-sync set.
    FenceBroker {
        /// Who.
        node_id: NodeId,
        /// Its registration.
        broker_epoch: BrokerEpoch,
    },
    /// A broker wants to stop in order: what it leads goes to others.
    StopBroker {
        /// Who.
        node_id: NodeId,
        /// Its registration.
        broker_epoch: BrokerEpoch,
    },
    /// A leader changes the in-sync set: compare and set on leader epoch and version.
    AlterInSync {
        /// The partition.
        partition: TopicPartition,
        /// The leader.
        node_id: NodeId,
        /// The leader's registration.
        broker_epoch: BrokerEpoch,
        /// The epoch that it leads.
        leader_epoch: LeaderEpoch,
        /// The version of the partition that it has seen.
        version: u64,
        /// The new set, each member with the registration of its session.
        in_sync: Vec<(NodeId, BrokerEpoch)>,
    },
    /// A broker tells about its replica of a partition.
    ReportReplica {
        /// The partition.
        partition: TopicPartition,
        /// Whose replica.
        node_id: NodeId,
        /// Its registration.
        broker_epoch: BrokerEpoch,
        /// What there is to tell.
        problem: ReplicaProblem,
        /// How far its log goes; needed with [`ReplicaProblem::Ends`].
        #[serde(default)]
        ends: Option<ReplicaEnds>,
    },
    /// Elects damaged replicas where no clean member of the sets has answered for a lease.
    ElectDamaged {},
    /// A broker needs identities to give to producers.
    AllocateProducerIds {
        /// Who.
        node_id: NodeId,
        /// Its registration.
        broker_epoch: BrokerEpoch,
        /// How many.
        count: u32,
    },
    /// Takes a broker out of placement, or back into it.
    DrainBroker {
        /// Who.
        node_id: NodeId,
        /// Out, or back.
        draining: bool,
    },
    /// Forgets a broker that has no replica and does not run.
    RemoveBroker {
        /// Who.
        node_id: NodeId,
    },
    /// Plans moves; they start as there is room for them.
    StartMoves {
        /// Each partition with the replicas that it is to have, preferred leader first.
        moves: Vec<(TopicPartition, Vec<NodeId>)>,
    },
    /// Finishes moves that are done and starts planned ones.
    AdvanceMoves {},
    /// Drops planned moves and undoes those under way.
    CancelMoves {},
    /// Makes other replicas the preferred leaders, and hands leadership over where they are in sync.
    BalanceLeaders {
        /// Each partition with the replica that is to lead it.
        changes: Vec<(TopicPartition, NodeId)>,
    },
    /// Elects a replica that may lack committed records.
    ElectUnclean {
        /// The partition.
        partition: TopicPartition,
        /// Whom.
        node_id: NodeId,
        /// The operator has read what is lost.
        accept_loss: bool,
    },
    /// Changes how fast replicas may move.
    SetThrottle {
        /// On each broker; more than 0.
        bytes_per_second: u64,
    },
    /// Allows what the level brings. It never goes back.
    SetFeatureLevel {
        /// The new level.
        level: u32,
    },
    /// Takes the topics of a data directory over that is older than the replicated image.
    ImportTopics {
        /// The file with its topics.
        snapshot: Vec<u8>,
        /// The last leader epoch that it gave out.
        leader_epoch: LeaderEpoch,
    },
    /// Several commands; each is carried out or refused on its own.
    Batch(Vec<Command>),
    /// Makes a topic of the brokers' own, with as many replicas as [`INTERNAL_REPLICATION`] and the brokers allow. One that
    /// is there already is left as it is.
    CreateInternalTopic {
        /// The new id.
        topic_id: TopicId,
        /// Its name, which begins with the reserved prefix.
        name: String,
        /// How many partitions; more than 0, and fixed from then on.
        partitions: u32,
        /// Settings that differ from the defaults.
        config: BTreeMap<String, String>,
        /// Microseconds since the Unix epoch.
        created_at_us: i64,
    },
    /// Gives a topic of the brokers' own more replicas. Its replication is raised when every partition has them.
    RaiseReplication {
        /// Which topic.
        topic_id: TopicId,
        /// Each partition with the replicas that it is to have: those that it has, and more.
        moves: Vec<(TopicPartition, Vec<NodeId>)>,
    },
}

impl Command {
    /// The feature level that a cluster must have reached for this command. Level 0 is that of a cluster without one:
    /// what it takes to get to a level is always allowed.
    #[must_use]
    pub fn level(&self) -> u32 {
        match self {
            Self::Init { .. }
            | Self::RegisterBroker { .. }
            | Self::BrokerReady { .. }
            | Self::FenceBroker { .. }
            | Self::StopBroker { .. }
            | Self::SetFeatureLevel { .. }
            // Each of its commands is judged on its own.
            | Self::Batch(_) => 0,
            Self::CreateTopic { config, .. } => settings_level(config.keys()),
            Self::AlterTopic { set, unset, .. } => settings_level(set.keys().chain(unset)),
            Self::CreateInternalTopic { .. } | Self::RaiseReplication { .. } => FEATURE_LEVEL_GROUPS,
            _ => 1,
        }
    }
}

/// What a change of these settings of a topic needs.
fn settings_level<'a>(names: impl IntoIterator<Item = &'a String>) -> u32 {
    let is_new = |name: &String| COMPACTION_SETTINGS.contains(&name.as_str());
    if names.into_iter().any(is_new) { FEATURE_LEVEL_GROUPS } else { FEATURE_LEVEL_MIN }
}

/// What a broker tells about one of its replicas. After each registration the replica counts as clean until told
/// otherwise, so what is wrong is told before the broker says that it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaProblem {
    /// A flush has failed, or bytes were cut that may have been acknowledged: not verified yet.
    Suspect,
    /// Ranges of the log cannot be read: holes.
    Corrupt,
    /// All is well again.
    Recovered,
    /// How far the log goes, while both sets are empty.
    Ends,
}

/// How far a replica's log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReplicaEnds {
    /// The leader epoch of its last batch; 0 if it is empty.
    pub last_epoch: LeaderEpoch,
    /// The next offset to be written.
    pub log_end: Offset,
}

/// What came of a command that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The broker is registered.
    Registered {
        /// Its registration.
        broker_epoch: BrokerEpoch,
        /// The version of the image that has it.
        version: u64,
    },
    /// Identities for producers: `count` of them from `first`.
    ProducerIds {
        /// The first one.
        first: ProducerId,
        /// How many.
        count: u32,
    },
    /// The partition as it is now.
    Partition {
        /// As it is now.
        state: Box<Partition>,
    },
    /// Moves were started or cancelled.
    Moves {
        /// Partitions that changed their course.
        changed: u32,
        /// Partitions that could not: the new replicas alone hold what is committed.
        kept: u32,
    },
    /// The topics are taken over.
    Imported {
        /// How many.
        topics: u32,
    },
    /// It is as asked for.
    Done,
    /// One outcome for each command of a batch.
    Batch(Vec<Result<Reply, Refusal>>),
}
