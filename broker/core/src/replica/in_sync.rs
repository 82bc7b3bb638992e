//! The replicas that the high watermark waits for, and how far each is.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater_protocol::ids::{BrokerEpoch, NodeId, Offset};

use crate::durability::Durability;
use crate::time::Mono;

/// A member of the in-sync set that has not been at the leader's log end for this long is proposed to leave it.
pub const REPLICA_LAG_MAX: Duration = Duration::from_secs(3);

/// How far one replica is. Invariant: `flushed_end <= log_end`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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

/// What the leader knows of one replica.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    node: NodeId,
    /// The registration that said so.
    broker_epoch: BrokerEpoch,
    /// Its live session.
    session: Option<u64>,
    ends: Ends,
    /// When it was last known to be at the leader's log end.
    caught_up_at: Mono,
    /// A log end of the leader and when it was there: a replica that gets there was caught up then.
    mark: (Offset, Mono),
}

/// The in-sync set as decided, what was proposed to be added to it, and how far every replica is.
///
/// The *maximal* set is what was decided and every growth proposed since: a growth may be decided at any moment, so it
/// is waited for at once. A shrink counts only when it is decided.
#[derive(Debug, Clone)]
pub struct InSyncSet {
    leader: NodeId,
    version: u64,
    decided: Vec<(NodeId, BrokerEpoch)>,
    /// Proposed at `version` and neither decided nor void.
    growth: BTreeMap<NodeId, BrokerEpoch>,
    /// One for each replica that is known, by node. A few that lie together: they are gone through for every batch, of
    /// thousands of partitions.
    progress: Vec<Progress>,
}

impl InSyncSet {
    /// The set of a leader that has just been elected: how far the others are is not known.
    pub(super) fn new(
        leader: (NodeId, BrokerEpoch),
        ends: Ends,
        version: u64,
        decided: Vec<(NodeId, BrokerEpoch)>,
        now: Mono,
    ) -> Self {
        let mut set =
            Self { leader: leader.0, version, decided, growth: BTreeMap::new(), progress: Vec::new() };
        set.note_members(now);
        let own = Progress {
            node: leader.0,
            broker_epoch: leader.1,
            session: None,
            ends,
            caught_up_at: now,
            mark: (ends.log_end, now),
        };
        set.put(own);
        set
    }

    /// How many members were decided.
    #[must_use]
    pub fn count(&self) -> u32 {
        // A partition has far fewer replicas than there are brokers, whose ids are u32.
        self.decided.len() as u32
    }

    /// The members as decided.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.decided.iter().map(|(node, _)| *node)
    }

    /// The members as decided, each with the broker epoch that it was decided for.
    #[must_use]
    pub fn decided(&self) -> &[(NodeId, BrokerEpoch)] {
        &self.decided
    }

    /// Whether `node` is in the set as decided.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.decided.iter().any(|(member, _)| *member == node)
    }

    /// Everybody that the high watermark waits for.
    pub fn maximal(&self) -> impl Iterator<Item = (NodeId, BrokerEpoch)> + '_ {
        let growth = self.growth.iter().map(|(node, epoch)| (*node, *epoch));
        let growth = growth.filter(|_| !cfg!(hw_mutate = "growth_not_waited_for"));
        self.decided.iter().copied().chain(growth)
    }

    /// The version that proposals build on.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The least end over the maximal set that counts under `durability`.
    #[must_use]
    pub fn least_counted(&self, durability: Durability) -> Offset {
        self.least(|ends| ends.counted(durability))
    }

    /// The least flushed end over the maximal set.
    #[must_use]
    pub fn least_flushed(&self) -> Offset {
        self.least(|ends| ends.flushed_end)
    }

    /// How many members of the maximal set have written everything below `end`.
    #[must_use]
    pub fn written_count(&self, end: Offset) -> u32 {
        self.maximal().filter(|(node, epoch)| self.ends_of(*node, *epoch).log_end >= end).count() as u32
    }

    /// How far `node` is; zeroes if it has not said.
    #[must_use]
    pub fn ends(&self, node: NodeId) -> Ends {
        self.progress_of(node).map_or(Ends::default(), |progress| progress.ends)
    }

    /// Whether `node` has a live session.
    #[must_use]
    pub fn is_connected(&self, node: NodeId) -> bool {
        node == self.leader || self.progress_of(node).is_some_and(|progress| progress.session.is_some())
    }

    /// The live session of `node`.
    pub(super) fn session_of(&self, node: NodeId) -> Option<u64> {
        self.progress_of(node).and_then(|progress| progress.session)
    }

    /// The registration under which `node` was last heard of.
    pub(super) fn broker_epoch_of(&self, node: NodeId) -> Option<BrokerEpoch> {
        self.progress_of(node).map(|progress| progress.broker_epoch)
    }

    /// A newer decision. What was proposed on the one before is decided in it, or void.
    pub(super) fn decide(&mut self, version: u64, decided: Vec<(NodeId, BrokerEpoch)>, now: Mono) -> bool {
        let newer = version > self.version;
        if newer {
            self.version = version;
            self.growth.clear();
        }
        // The broker epochs of members change with their registrations, which are no change of the partition.
        self.decided = decided;
        self.note_members(now);
        newer
    }

    /// The leader itself moved on, or was verified.
    pub(super) fn update_own(&mut self, ends: Ends, now: Mono, durability: Durability) {
        let before = self.ends(self.leader).log_end;
        let leader = self.leader;
        if let Some(own) = self.progress.iter_mut().find(|progress| progress.node == leader) {
            own.ends = ends;
        }
        if ends.log_end == before {
            return;
        }
        for progress in &mut self.progress {
            if progress.node != leader
                && progress.session.is_some()
                && progress.ends.counted(durability) >= before
            {
                progress.caught_up_at = now;
                progress.mark = (ends.log_end, now);
            }
        }
    }

    /// A follower's session is live. `false`: it is of an older registration than is known, and is not taken.
    pub(super) fn open_session(
        &mut self,
        session: u64,
        (node, broker_epoch): (NodeId, BrokerEpoch),
        log_end: Offset,
        now: Mono,
    ) -> bool {
        if node == self.leader || self.is_stale(node, broker_epoch) {
            return false;
        }
        let leader_end = self.ends(self.leader).log_end;
        let known = self.progress_of(node).filter(|known| known.broker_epoch == broker_epoch);
        let flushed_end = known.map_or(Offset::ZERO, |known| known.ends.flushed_end.min(log_end));
        let caught_up_at = self.progress_of(node).map_or(now, |known| known.caught_up_at);
        let progress = Progress {
            node,
            broker_epoch,
            session: Some(session),
            ends: Ends { log_end, flushed_end },
            caught_up_at,
            mark: (leader_end, now),
        };
        self.put(progress);
        true
    }

    /// Whether this registration of `node` is older than one that is known.
    pub(super) fn is_stale(&self, node: NodeId, broker_epoch: BrokerEpoch) -> bool {
        let decided = self.decided.iter().find(|(member, _)| *member == node).map(|(_, epoch)| *epoch);
        decided.max(self.broker_epoch_of(node)).is_some_and(|known| known > broker_epoch)
    }

    /// A follower says how far it is. `false`: its session is not live, and nothing changes.
    pub(super) fn ack(
        &mut self,
        session: u64,
        broker_epoch: BrokerEpoch,
        ends: Ends,
        now: Mono,
        durability: Durability,
    ) -> bool {
        let leader_end = self.ends(self.leader).log_end;
        let live = |progress: &&mut Progress| {
            let live = progress.session == Some(session) || cfg!(hw_mutate = "h7_ack_of_a_dead_session");
            live && progress.broker_epoch == broker_epoch
        };
        let Some(progress) = self.progress.iter_mut().find(live) else { return false };
        // Acknowledgements may overtake each other; within a session a log only grows.
        progress.ends.log_end = progress.ends.log_end.max(ends.log_end).min(leader_end);
        progress.ends.flushed_end =
            progress.ends.flushed_end.max(ends.flushed_end).min(progress.ends.log_end);
        let counted = progress.ends.counted(durability);
        if counted >= leader_end {
            progress.caught_up_at = now;
        } else if counted >= progress.mark.0 {
            progress.caught_up_at = progress.caught_up_at.max(progress.mark.1);
            progress.mark = (leader_end, now);
        }
        true
    }

    /// A session is gone. What its follower had acknowledged stays true of that registration.
    pub(super) fn close_session(&mut self, session: u64, now: Mono, durability: Durability) {
        let leader_end = self.ends(self.leader).log_end;
        if let Some(progress) = self.progress.iter_mut().find(|progress| progress.session == Some(session)) {
            progress.session = None;
            if progress.ends.counted(durability) >= leader_end {
                progress.caught_up_at = now;
            }
        }
    }

    /// When the first member that is behind has been so for too long.
    pub(super) fn lag_deadline(&self, durability: Durability) -> Option<Mono> {
        self.nodes().filter_map(|node| self.lags_from(node, durability)).min()
    }

    /// What the set should be: without members that lag, with `replicas` that have reached `join_at`.
    pub(super) fn desired(
        &self,
        replicas: &[NodeId],
        join_at: Offset,
        durability: Durability,
        now: Mono,
    ) -> Vec<(NodeId, BrokerEpoch)> {
        let keeps_up = |node: NodeId| self.lags_from(node, durability).is_none_or(|from| from > now);
        let kept = self.decided.iter().filter(|(node, _)| keeps_up(*node));
        let kept = kept.map(|(node, decided)| {
            let live = self.progress_of(*node).filter(|progress| progress.session.is_some());
            (*node, live.map_or(*decided, |progress| progress.broker_epoch))
        });
        // Below `min_in_sync` the watermark stands still, and who was left behind is not behind it: it would join and
        // leave for ever if it did not have to keep up as well.
        let outside = replicas.iter().filter(|node| !self.contains(**node) && keeps_up(**node));
        let joining = outside.filter_map(|node| {
            let progress = self.progress_of(*node).filter(|progress| progress.session.is_some())?;
            (progress.ends.counted(durability) >= join_at).then_some((*node, progress.broker_epoch))
        });
        kept.chain(joining).collect()
    }

    /// Whether nobody else is a replica, or was proposed to be one: then the set is as it should be.
    pub(super) fn is_alone(&self, replicas: &[NodeId]) -> bool {
        replicas == [self.leader]
            && self.growth.is_empty()
            && matches!(self.decided[..], [(member, _)] if member == self.leader)
    }

    /// Notes that `wanted` is about to be proposed; `false` if there is nothing to propose.
    pub(super) fn propose(&mut self, wanted: &[(NodeId, BrokerEpoch)]) -> bool {
        let is_wanted = |node: NodeId| wanted.iter().any(|(member, _)| *member == node);
        let same = wanted.len() == self.decided.len() && self.nodes().all(is_wanted);
        // A growth that is not wanted any more may still be decided. Proposing again makes a new version, after which it
        // cannot.
        let withdrawn = self.growth.keys().any(|node| !is_wanted(*node));
        if same && !withdrawn {
            return false;
        }
        if cfg!(hw_mutate = "shrink_counts_at_once") {
            self.decided.retain(|(node, _)| is_wanted(*node));
        }
        for (node, epoch) in wanted {
            if !self.contains(*node) {
                self.growth.insert(*node, *epoch);
            }
        }
        true
    }

    /// What nobody else has to be asked for.
    pub(super) fn check_invariants(&self) {
        for progress in &self.progress {
            assert!(progress.ends.flushed_end <= progress.ends.log_end, "flushed past the log end: {self:?}");
        }
        assert!(self.growth.keys().all(|node| !self.contains(*node)), "a member is proposed: {self:?}");
    }

    /// When a member that is behind, or away, has been so for too long.
    fn lags_from(&self, node: NodeId, durability: Durability) -> Option<Mono> {
        let leader_end = self.ends(self.leader).log_end;
        let progress = self.progress_of(node)?;
        let caught_up = progress.session.is_some() && progress.ends.counted(durability) >= leader_end;
        (node != self.leader && !caught_up).then(|| progress.caught_up_at.after(REPLICA_LAG_MAX))
    }

    /// Members that are not known yet have the time of a lag to appear.
    fn note_members(&mut self, now: Mono) {
        for (node, broker_epoch) in &self.decided {
            self.growth.remove(node);
            if let Err(place) = self.progress.binary_search_by_key(node, |progress| progress.node) {
                let unheard = Progress {
                    node: *node,
                    broker_epoch: *broker_epoch,
                    session: None,
                    ends: Ends::default(),
                    caught_up_at: now,
                    mark: (Offset::ZERO, now),
                };
                self.progress.insert(place, unheard);
            }
        }
    }

    fn progress_of(&self, node: NodeId) -> Option<&Progress> {
        self.progress.iter().find(|progress| progress.node == node)
    }

    /// Takes in what is known of a replica now.
    fn put(&mut self, new: Progress) {
        match self.progress.binary_search_by_key(&new.node, |progress| progress.node) {
            Ok(place) => self.progress[place] = new,
            Err(place) => self.progress.insert(place, new),
        }
    }

    fn least(&self, of: impl Fn(&Ends) -> Offset) -> Offset {
        self.maximal().map(|(node, epoch)| of(&self.ends_of(node, epoch))).min().unwrap_or_default()
    }

    /// What the registration `broker_epoch` of `node` has; zeroes if only another one has said anything.
    fn ends_of(&self, node: NodeId, broker_epoch: BrokerEpoch) -> Ends {
        self.progress_of(node)
            .filter(|progress| {
                progress.broker_epoch == broker_epoch || cfg!(hw_mutate = "ack_of_another_registration")
            })
            .map_or(Ends::default(), |progress| progress.ends)
    }
}
