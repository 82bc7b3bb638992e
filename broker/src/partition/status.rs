//! What a partition tells about itself.

use highwater_broker_core::durability::Durability;
use highwater_broker_core::replica::ReplicaProgress;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{LeaderEpoch, NodeId, Offset, TopicPartition};

use crate::api::ApiError;

/// What a partition last told about itself.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    /// Whether this broker leads it.
    pub(crate) is_leader: bool,
    /// Who leads it, as far as this replica knows.
    pub(crate) leader: Option<NodeId>,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) log_start: Offset,
    pub(crate) log_end: Offset,
    pub(crate) flushed_end: Offset,
    pub(crate) high_watermark: Offset,
    pub(crate) bytes: u64,
    pub(crate) segments: u32,
    pub(crate) durability: Durability,
    /// How far each replica is; only the leader knows.
    pub(crate) replicas: Vec<ReplicaProgress>,
    /// `online`, `suspect`, `offline` or `read_only`.
    pub(crate) state: &'static str,
    /// Whether requests that need the end can be answered.
    pub(crate) is_ready: bool,
    /// Ranges that cannot be read.
    pub(crate) corrupt: Vec<(Offset, Offset)>,
}

impl Status {
    /// What is told before the log is open.
    pub(super) const fn opening(durability: Durability) -> Self {
        Self {
            is_leader: false,
            leader: None,
            leader_epoch: LeaderEpoch(0),
            log_start: Offset::ZERO,
            log_end: Offset::ZERO,
            flushed_end: Offset::ZERO,
            high_watermark: Offset::ZERO,
            bytes: 0,
            segments: 0,
            durability,
            replicas: Vec::new(),
            state: "offline",
            is_ready: false,
            corrupt: Vec::new(),
        }
    }

    /// Checks that consumers and tools can be served from here.
    pub(crate) fn check_serves(&self, partition: TopicPartition) -> Result<(), ApiError> {
        if !self.is_leader {
            return Err(not_leader(partition, self.leader));
        }
        if !self.is_ready {
            return Err(not_ready(partition));
        }
        Ok(())
    }
}

/// Whoever asks a broker that does not lead is told who does.
pub(crate) fn not_leader(partition: TopicPartition, leader: Option<NodeId>) -> ApiError {
    let text = match leader {
        Some(leader) => format!("broker {leader} leads partition {partition}, not this one"),
        None => format!("partition {partition} has no leader at the moment"),
    };
    ApiError::new(ErrorCode::NotLeader, text)
}

/// Whoever needs the end of a log whose leader does not know it yet is told to come again.
pub(crate) fn not_ready(partition: TopicPartition) -> ApiError {
    ApiError::new(
        ErrorCode::LeaderNotReady,
        format!("the leader of {partition} is not ready yet: what it has is being confirmed"),
    )
}
