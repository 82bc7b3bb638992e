//! What is decided about one partition: who has it, who leads it, and who holds everything that is committed.
//!
//! Words. A *member* is a replica in one of the two sets. The leader commits only while the in-sync set has at least
//! `min` members; so whoever leaves it while it falls below that still holds everything committed, and becomes
//! *eligible*. As soon as the in-sync set has `min` members again, the leader commits without the eligible ones, and
//! they are forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, NodeId, Offset};
use serde::{Deserialize, Serialize};

use super::command::ReplicaEnds;
use super::image::{Broker, BrokerState, Topic};
use crate::durability::Durability;

/// A partition of a topic.
///
/// Invariants, checked by [`super::image::ClusterImage::check_invariants`]:
/// - P1: `replicas` has no broker twice and is not empty; `adding` and `removing` are in it and disjoint.
/// - P2: `in_sync`, `eligible` and `last_sets` are replicas; the first two are disjoint.
/// - P3: the leader is in `in_sync`, and its broker is active or stopping.
/// - P4: every member of `in_sync` is a broker that is active or stopping.
/// - P5: `eligible` is empty while `in_sync` has `min` members.
/// - P6: one of `in_sync`, `eligible` and `last_sets` is not empty.
/// - P7 (from one image to the next): `leader_epoch` and `version` never fall; another leader means another epoch; any
///   difference means another version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// All that hold a replica or get one, preferred leader first; `adding` is part of it.
    #[serde(rename = "r")]
    pub replicas: Vec<NodeId>,
    /// Who gets a replica in a move under way.
    #[serde(rename = "a", default, skip_serializing_if = "Vec::is_empty")]
    pub adding: Vec<NodeId>,
    /// Who gives one up in a move under way.
    #[serde(rename = "m", default, skip_serializing_if = "Vec::is_empty")]
    pub removing: Vec<NodeId>,
    /// Who leads.
    #[serde(rename = "l", default)]
    pub leader: Option<NodeId>,
    /// Which leadership this is.
    #[serde(rename = "e")]
    pub leader_epoch: LeaderEpoch,
    /// Who has everything that the leader has committed and is waited for.
    #[serde(rename = "i", default)]
    pub in_sync: Vec<NodeId>,
    /// Who else has everything committed: elected without loss if nobody in sync can lead.
    #[serde(rename = "g", default, skip_serializing_if = "Vec::is_empty")]
    pub eligible: Vec<NodeId>,
    /// `os` and `interval` only: who left the sets by an unclean restart since they last were large enough. While both
    /// sets are empty, the one of them whose log goes furthest will lead.
    #[serde(rename = "s", default, skip_serializing_if = "Vec::is_empty")]
    pub last_sets: Vec<NodeId>,
    /// What members of `last_sets` have reported.
    #[serde(rename = "p", default, skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<EndsReport>,
    /// Replicas that have told that their log is damaged: elected when no clean member is left to wait for.
    #[serde(rename = "d", default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<NodeId>,
    /// The last epoch whose leader may have lacked committed records: it was elected from outside the sets, or damaged
    /// while the durability allowed for loss. Logs without a batch of it may be cut below their high watermark.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    pub unclean_epoch: Option<LeaderEpoch>,
    /// Grows with each change of this partition.
    #[serde(rename = "v")]
    pub version: u64,
    /// Which durability holds.
    #[serde(rename = "f")]
    pub durability_effective: Durability,
}

/// How far a replica's log goes, as its broker has told at this registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndsReport {
    /// Whose.
    pub node_id: NodeId,
    /// Told at this registration.
    pub broker_epoch: BrokerEpoch,
    /// What was told.
    pub ends: ReplicaEnds,
}

/// What decisions about a partition depend on besides itself.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) brokers: &'a BTreeMap<NodeId, Arc<Broker>>,
    /// In-sync replicas without which nothing is committed.
    pub(super) min: usize,
    /// The durability that the topic wants.
    pub(super) wanted: Durability,
}

impl<'a> Around<'a> {
    pub(super) fn of(topic: &Topic, brokers: &'a BTreeMap<NodeId, Arc<Broker>>) -> Self {
        Self { brokers, min: topic.min_in_sync() as usize, wanted: topic.config.durability }
    }

    fn state(&self, node: NodeId) -> Option<BrokerState> {
        self.brokers.get(&node).map(|broker| broker.state)
    }

    /// Whether the broker may be given a leadership.
    pub(super) fn is_active(&self, node: NodeId) -> bool {
        self.state(node) == Some(BrokerState::Active)
    }

    /// Whether the broker may keep what it has.
    pub(super) fn is_serving(&self, node: NodeId) -> bool {
        matches!(self.state(node), Some(BrokerState::Active | BrokerState::Stopping))
    }

    fn epoch(&self, node: NodeId) -> Option<BrokerEpoch> {
        self.brokers.get(&node).map(|broker| broker.broker_epoch)
    }
}

impl Partition {
    /// A new partition on brokers that are active: everybody is in sync with an empty log.
    #[must_use]
    pub fn new(replicas: Vec<NodeId>, durability: Durability) -> Self {
        Self {
            leader: replicas.first().copied(),
            leader_epoch: LeaderEpoch(1),
            in_sync: replicas.clone(),
            replicas,
            adding: Vec::new(),
            removing: Vec::new(),
            eligible: Vec::new(),
            last_sets: Vec::new(),
            reports: Vec::new(),
            damaged: Vec::new(),
            unclean_epoch: None,
            version: 1,
            durability_effective: durability,
        }
    }

    /// Whether the broker holds a replica or gets one.
    #[must_use]
    pub fn is_replica(&self, node: NodeId) -> bool {
        self.replicas.contains(&node)
    }

    /// Whether the broker is in one of the two sets.
    #[must_use]
    pub fn is_member(&self, node: NodeId) -> bool {
        self.in_sync.contains(&node) || self.eligible.contains(&node)
    }

    /// Whether fewer replicas are in sync than assigned.
    #[must_use]
    pub fn is_under_replicated(&self) -> bool {
        let settled = self.replicas.iter().filter(|node| !self.adding.contains(node));
        settled.filter(|node| !self.in_sync.contains(node)).count() > 0
    }

    /// Changes the partition and, if it is another one then, its version.
    pub(super) fn change<T>(&mut self, change: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.clone();
        let result = change(self);
        if *self != before {
            self.version = before.version + 1;
        }
        result
    }

    pub(super) fn set_leader(&mut self, leader: Option<NodeId>) {
        if self.leader != leader {
            self.leader = leader;
            if !cfg!(hw_mutate = "leader_keeps_epoch") {
                self.leader_epoch = self.leader_epoch.next();
            }
        }
    }

    /// Makes sure that somebody leads who may, if there is such a one.
    pub(super) fn elect(&mut self, around: Around<'_>, even_damaged: bool) {
        if self.leader.is_some_and(|leader| self.in_sync.contains(&leader) && around.is_serving(leader)) {
            return;
        }
        let leader = self.candidate(around, even_damaged);
        if let Some(leader) = leader {
            self.bring_in(leader);
        }
        self.set_leader(leader);
        if leader.is_some_and(|leader| self.damaged.contains(&leader)) && !self.all_flushed(around.wanted) {
            self.unclean_epoch = Some(self.leader_epoch);
        }
        if leader.is_none() && self.in_sync.is_empty() && self.eligible.is_empty() {
            self.elect_by_ends(around);
        }
        self.settle(around.min);
    }

    /// Whom to elect: in sync before eligible, clean before damaged, in the order of the replicas.
    fn candidate(&self, around: Around<'_>, even_damaged: bool) -> Option<NodeId> {
        let first = |set: &[NodeId], damaged: bool| {
            let fits = |node: &NodeId| {
                set.contains(node) && around.is_active(*node) && self.damaged.contains(node) == damaged
            };
            self.replicas.iter().copied().find(fits)
        };
        let clean = first(&self.in_sync, false).or_else(|| first(&self.eligible, false));
        // A damaged one leads if there is no clean one to wait for, or the wait is over.
        let all_damaged = self.in_sync.iter().chain(&self.eligible).all(|node| self.damaged.contains(node));
        if clean.is_some() || !(even_damaged || all_damaged) {
            return clean;
        }
        first(&self.in_sync, true).or_else(|| first(&self.eligible, true))
    }

    /// An elected leader that was only eligible is in sync with itself.
    fn bring_in(&mut self, leader: NodeId) {
        if !self.in_sync.contains(&leader) {
            self.eligible.retain(|node| *node != leader);
            self.in_sync.push(leader);
        }
    }

    /// Whoever is not in sync has lost its claim once commits go on without it.
    pub(super) fn settle(&mut self, min: usize) {
        if self.in_sync.len() >= min {
            self.eligible.clear();
            self.last_sets.clear();
            self.reports.clear();
        }
    }

    /// Both sets are empty: when every member of the last sets has told how far its log goes, the furthest leads. Whoever
    /// else has told counts too: it may have kept more.
    fn elect_by_ends(&mut self, around: Around<'_>) {
        let told = |node: NodeId| {
            let current = |report: &&EndsReport| {
                report.node_id == node && Some(report.broker_epoch) == around.epoch(node)
            };
            self.reports.iter().find(current).map(|report| report.ends)
        };
        let waits = self.last_sets.iter().any(|node| told(*node).is_none());
        if waits && self.replicas.len() > 1 && !cfg!(hw_mutate = "ends_of_the_first") {
            return;
        }
        let may_win = |node: &NodeId| self.last_sets.contains(node) || around.is_active(*node);
        let mut furthest: Option<(ReplicaEnds, NodeId)> = None;
        for node in self.replicas.iter().filter(|node| may_win(node)) {
            let Some(ends) = told(*node).or(self.only_replica_ends()) else { continue };
            if furthest.is_none_or(|(best, _)| ends > best) {
                furthest = Some((ends, *node));
            }
        }
        if let Some((_, node)) = furthest.filter(|(_, node)| around.is_active(*node)) {
            self.in_sync = vec![node];
            self.last_sets.clear();
            self.reports.clear();
            self.set_leader(Some(node));
            self.unclean_epoch = Some(self.leader_epoch);
        }
    }

    /// With one replica there is nothing to compare, so nothing has to be told.
    fn only_replica_ends(&self) -> Option<ReplicaEnds> {
        (self.replicas.len() == 1)
            .then_some(ReplicaEnds { last_epoch: LeaderEpoch(0), log_end: Offset::ZERO })
    }

    /// The broker is out of reach: it leads nothing and is waited for by nobody.
    pub(super) fn fence(&mut self, around: Around<'_>, node: NodeId) {
        self.leave_in_sync(around.min, node);
        self.elect(around, false);
    }

    fn leave_in_sync(&mut self, min: usize, node: NodeId) {
        if !self.in_sync.contains(&node) {
            return;
        }
        self.in_sync.retain(|member| *member != node);
        if self.in_sync.len() < min && !cfg!(hw_mutate = "h4_no_eligible_set") {
            self.eligible.push(node);
        }
    }

    /// The broker has come again, with this broken off: it is no longer what it was before.
    pub(super) fn registered(&mut self, around: Around<'_>, node: NodeId, restart: Restart) {
        let was_member = self.is_member(node);
        self.leave_in_sync(around.min, node);
        self.damaged.retain(|damaged| *damaged != node);
        self.reports.retain(|report| report.node_id != node);
        if !restart.keeps_place(self.durability_effective, around.wanted) && was_member {
            self.give_up_place(node, around);
        }
        self.elect(around, false);
    }

    /// What the replica acknowledged may be gone.
    fn give_up_place(&mut self, node: NodeId, around: Around<'_>) {
        let others = self.in_sync.iter().chain(&self.eligible).any(|member| *member != node);
        if !others && self.all_flushed(around.wanted) {
            // The last one, and all that it acknowledged was flushed: nobody knows better. Clean ones would go first.
            self.damaged.push(node);
            return;
        }
        self.eligible.retain(|member| *member != node);
        if !self.last_sets.contains(&node) && self.in_sync.len() < around.min {
            self.last_sets.push(node);
        }
    }

    /// Whether everything that was acknowledged was flushed: of two durabilities the weaker one counts.
    fn all_flushed(&self, wanted: Durability) -> bool {
        self.durability_effective.waits_for_flush() && wanted.waits_for_flush()
    }

    /// The broker is about to stop: hands its leadership over if it can, and leaves the in-sync set if it can.
    pub(super) fn stop(&mut self, around: Around<'_>, node: NodeId) {
        if self.leader == Some(node)
            && let Some(heir) = self.clean_heir(around, node)
        {
            self.set_leader(Some(heir));
        }
        if self.leader != Some(node) && self.in_sync.len() > around.min {
            self.leave_in_sync(around.min, node);
        }
    }

    /// Another replica in sync that can lead and is not damaged; one that stays, if there is a choice.
    pub(super) fn clean_heir(&self, around: Around<'_>, than: NodeId) -> Option<NodeId> {
        let fits = |node: &&NodeId| {
            **node != than
                && self.in_sync.contains(node)
                && around.is_active(**node)
                && !self.damaged.contains(node)
        };
        let mut heirs = self.replicas.iter().filter(fits);
        let stays = heirs.clone().find(|node| !self.removing.contains(node));
        stays.or_else(|| heirs.next()).copied()
    }

    /// The in-sync set that the leader has proposed, checked by the caller.
    pub(super) fn set_in_sync(&mut self, min: usize, in_sync: Vec<NodeId>) {
        let left = self.in_sync.iter().filter(|node| !in_sync.contains(node)).copied();
        let left: Vec<NodeId> = left.collect();
        self.eligible.retain(|node| !in_sync.contains(node));
        self.in_sync = in_sync;
        if self.in_sync.len() < min && !cfg!(hw_mutate = "h4_no_eligible_set") {
            self.eligible.extend(left);
        }
        self.settle(min);
    }

    /// The replica has told how far its log goes, which counts while nobody is known to have everything.
    pub(super) fn note_ends(&mut self, around: Around<'_>, report: EndsReport) {
        if !self.in_sync.is_empty() || !self.eligible.is_empty() {
            return;
        }
        self.reports.retain(|known| known.node_id != report.node_id);
        self.reports.push(report);
        self.elect(around, false);
    }

    /// Makes another version although nothing else differs: what was proposed on the one before is void.
    pub(super) const fn touch(&mut self) {
        self.version += 1;
    }

    /// Whether nobody leads although a damaged replica could.
    pub(super) fn waits_for_clean(&self, around: Around<'_>) -> bool {
        self.leader.is_none() && self.candidate(around, true).is_some()
    }

    /// The replica's log is damaged: a leader hands over to a clean one, or leads on in another epoch. A `suspect` one does
    /// so each time: it must not lead again in the epoch in which its log may have lost something.
    pub(super) fn note_damaged(&mut self, around: Around<'_>, node: NodeId, suspect: bool) {
        let known = self.damaged.contains(&node);
        if !known {
            self.damaged.push(node);
        }
        if self.leader == Some(node) && (suspect || !known) {
            match self.clean_heir(around, node) {
                Some(heir) => self.set_leader(Some(heir)),
                None => self.leader_epoch = self.leader_epoch.next(),
            }
        }
    }
}

/// What a broker tells about its last end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Restart {
    pub(super) unclean: bool,
    pub(super) other_kernel: bool,
    pub(super) flush_failed: bool,
}

impl Restart {
    /// Whether what a replica acknowledged before is still there: of two durabilities the weaker one counts.
    fn keeps_place(self, effective: Durability, wanted: Durability) -> bool {
        if cfg!(hw_mutate = "h4_unclean_keeps_place") {
            return true;
        }
        if self.flush_failed {
            return false;
        }
        let flushed = effective.waits_for_flush() && wanted.waits_for_flush();
        !self.unclean || flushed || !self.other_kernel
    }
}
