//! The replicas that the high watermark waits for.

use std::collections::BTreeMap;

use highwater_protocol::ids::{NodeId, Offset};

use crate::durability::Durability;

/// How far one replica is. Invariant: `flushed_end <= log_end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Its next offset to write.
    pub log_end: Offset,
    /// Its next offset that is not on stable storage.
    pub flushed_end: Offset,
}

impl Ends {
    /// The end that counts towards the high watermark under `durability`.
    #[must_use]
    pub fn counted(self, durability: Durability) -> Offset {
        // The rule of H26 and of every acknowledgement: under `fsync` only what is flushed counts.
        if durability.waits_for_flush() && !cfg!(hw_mutate = "ack_before_flush") {
            self.flushed_end
        } else {
            self.log_end
        }
    }
}

/// The in-sync set with how far each member is. Invariant: never empty, the leader is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InSyncSet {
    members: BTreeMap<NodeId, Ends>,
}

impl InSyncSet {
    /// The set of a leader on its own.
    #[must_use]
    pub fn alone(leader: NodeId, ends: Ends) -> Self {
        Self { members: BTreeMap::from([(leader, ends)]) }
    }

    /// How many members there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        // A partition has far fewer replicas than there are brokers, whose ids are u32.
        self.members.len() as u32
    }

    /// The members, by id.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members.keys().copied()
    }

    /// Notes how far a member is. Not a member: nothing happens.
    pub fn update(&mut self, node: NodeId, ends: Ends) {
        if let Some(member) = self.members.get_mut(&node) {
            *member = ends;
        }
    }

    /// The least end that counts under `durability`.
    #[must_use]
    pub fn least_counted(&self, durability: Durability) -> Offset {
        self.least(|ends| ends.counted(durability))
    }

    /// The least flushed end.
    #[must_use]
    pub fn least_flushed(&self) -> Offset {
        self.least(|ends| ends.flushed_end)
    }

    /// How many members have written everything below `end`.
    #[must_use]
    pub fn written_count(&self, end: Offset) -> u32 {
        self.members.values().filter(|ends| ends.log_end >= end).count() as u32
    }

    fn least(&self, of: impl Fn(&Ends) -> Offset) -> Offset {
        self.members.values().map(of).min().unwrap_or_default()
    }
}
