//! What an operator sets for groups.

use std::time::Duration;

use super::assignor::Assignor;

/// Settings of a coordinator. The same on every broker, or members notice a change of coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupConfig {
    /// How partitions are assigned in groups that do not say.
    pub assignor: Assignor,
    /// How far apart heartbeats are while nothing happens; a member's own session time-out may make it less.
    pub heartbeat_interval: Duration,
    /// How far apart heartbeats of a member are that waits for partitions, or has some to give up: what a hand-over
    /// takes at most, beyond what the old owner takes. Longer in groups with very many members.
    pub hand_over_interval: Duration,
    /// The session time-out of members that do not say.
    pub session_timeout: Duration,
    /// The shortest session time-out that a member may ask for.
    pub session_timeout_min: Duration,
    /// The longest session time-out that a member may ask for.
    pub session_timeout_max: Duration,
    /// How long members that do not say may take to give partitions up.
    pub rebalance_timeout: Duration,
    /// The longest that a member may ask for.
    pub rebalance_timeout_max: Duration,
    /// How long positions are kept after the group has lost its last member, or its interest in the topic.
    pub offsets_retention: Duration,
    /// How often positions are looked through for expired ones.
    pub expiry_interval: Duration,
}

impl GroupConfig {
    /// How far apart heartbeats of a member with this session time-out are while nothing happens.
    pub(super) fn regular_interval(&self, session_timeout_ms: u32) -> Duration {
        self.heartbeat_interval.min(Duration::from_millis(session_timeout_ms.into()) / 3)
    }

    /// How long a member with this session time-out is silent before it is suspected: one heartbeat has not come, with
    /// half an interval to spare.
    pub(super) fn suspicion(&self, session_timeout_ms: u32) -> Duration {
        self.regular_interval(session_timeout_ms) * 3 / 2
    }
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            assignor: Assignor::Consistent,
            heartbeat_interval: Duration::from_secs(3),
            hand_over_interval: Duration::from_millis(100),
            session_timeout: Duration::from_secs(30),
            session_timeout_min: Duration::from_millis(500),
            session_timeout_max: Duration::from_secs(30 * 60),
            rebalance_timeout: Duration::from_secs(60),
            rebalance_timeout_max: Duration::from_secs(60 * 60),
            offsets_retention: Duration::from_secs(7 * 24 * 60 * 60),
            expiry_interval: Duration::from_secs(10 * 60),
        }
    }
}
