//! Replicas that change places: planned, copied, finished or undone; and leaderships that do.
//!
//! A move is finished in two steps. When all new replicas are in sync, leadership goes to one that stays. When it is
//! there, the old replicas are given up, and only then does anybody drop data.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_protocol::ids::{NodeId, TopicId, TopicPartition};

use super::command::{Command, MOVES_MAX, Refusal, Reply};
use super::image::{ClusterImage, Effect, Move};
use super::partition::{Around, Partition};

/// Partitions that one broker copies at a time, so that the throttle is shared by few and each is done soon.
const MOVES_AT_ONCE_MAX: usize = 8;

impl Partition {
    /// Sets out from `from` to `to`.
    fn start_move(&mut self, to: &[NodeId]) {
        self.adding = to.iter().filter(|node| !self.replicas.contains(node)).copied().collect();
        self.removing = self.replicas.iter().filter(|node| !to.contains(node)).copied().collect();
        self.replicas = to.iter().chain(&self.removing).copied().collect();
    }

    /// Whether those who stay could do without those who go.
    fn can_finish(&self, around: Around<'_>) -> bool {
        let staying = self.in_sync.iter().filter(|node| !self.removing.contains(node)).count();
        self.adding.iter().all(|node| self.in_sync.contains(node)) && staying >= around.min
    }

    /// One step towards the end of the move; whether it is over.
    fn advance_move(&mut self, around: Around<'_>) -> bool {
        if !self.can_finish(around) && !cfg!(hw_mutate = "move_drops_early") {
            return false;
        }
        if let Some(leader) = self.leader
            && self.removing.contains(&leader)
        {
            let heir = self.clean_heir(around, leader).filter(|heir| !self.removing.contains(heir));
            if heir.is_some() {
                self.set_leader(heir);
            }
            return false;
        }
        let removing = std::mem::take(&mut self.removing);
        self.adding.clear();
        self.drop_replicas(&removing);
        self.settle(around.min);
        true
    }

    /// Undoes a move under way, unless the new replicas alone hold what is committed; whether it is undone.
    fn cancel_move(&mut self, around: Around<'_>, from: &[NodeId]) -> bool {
        let adding = |node: &NodeId| self.adding.contains(node);
        let staying = self.in_sync.iter().filter(|node| !adding(node)).count();
        let none_holds = !self.in_sync.iter().chain(&self.eligible).chain(&self.last_sets).any(adding);
        if staying < around.min && !none_holds {
            return false;
        }
        let adding = std::mem::take(&mut self.adding);
        self.removing.clear();
        self.replicas = from.to_vec();
        self.drop_replicas(&adding);
        self.elect(around, false);
        true
    }

    fn drop_replicas(&mut self, gone: &[NodeId]) {
        let stays = |node: &NodeId| !gone.contains(node);
        self.replicas.retain(stays);
        self.in_sync.retain(stays);
        self.eligible.retain(stays);
        self.last_sets.retain(stays);
        self.damaged.retain(stays);
        self.reports.retain(|report| stays(&report.node_id));
    }
}

impl ClusterImage {
    /// Commands about moves.
    pub(super) fn apply_to_moves(&mut self, command: &Command) -> Result<Effect, Refusal> {
        match command {
            Command::StartMoves { moves } => self.start_moves(moves),
            Command::AdvanceMoves {} => {
                let changed = self.advance_moves();
                let reply = Reply::Moves { changed, kept: 0 };
                Ok(if changed > 0 { Effect::Changed(reply) } else { Effect::Nothing(reply) })
            }
            Command::CancelMoves {} => Ok(self.cancel_moves()),
            Command::BalanceLeaders { changes } => self.balance_leaders(changes),
            Command::RaiseReplication { topic_id, moves } => self.raise_replication(*topic_id, moves),
            Command::SetThrottle { bytes_per_second } => {
                if *bytes_per_second == 0 {
                    return Err(Refusal::Invalid(
                        "replicas that move at 0 bytes a second never arrive: cancel the moves instead"
                            .to_owned(),
                    ));
                }
                self.move_bytes_per_second = *bytes_per_second;
                Ok(Effect::Changed(Reply::Done))
            }
            _ => Err(Refusal::Invalid("not a command about moves".to_owned())),
        }
    }

    fn start_moves(&mut self, moves: &[(TopicPartition, Vec<NodeId>)]) -> Result<Effect, Refusal> {
        if moves.len() > MOVES_MAX {
            return Err(Refusal::Invalid(format!("at most {MOVES_MAX} moves at a time")));
        }
        for (id, to) in moves {
            self.check_move(*id, to)?;
        }
        self.rebalance_wanted = false;
        let (mut changed, mut kept) = (0, 0);
        for (id, to) in moves {
            // What was planned before gives way; what is under way is undone first.
            if !self.cancel_one(*id) {
                kept += 1;
                continue;
            }
            let Some(partition) = self.partition(*id) else { continue };
            if partition.replicas == *to {
                continue;
            }
            let from = partition.replicas.clone();
            self.moves.insert(*id, Move { from, to: to.clone(), started: false });
            changed += 1;
        }
        self.advance_moves();
        Ok(Effect::Changed(Reply::Moves { changed, kept }))
    }

    /// The new replicas come as those of any move; nobody waits for them until they are there.
    fn raise_replication(
        &mut self,
        topic_id: TopicId,
        moves: &[(TopicPartition, Vec<NodeId>)],
    ) -> Result<Effect, Refusal> {
        if moves.len() > MOVES_MAX {
            return Err(Refusal::Invalid(format!("at most {MOVES_MAX} moves at a time")));
        }
        for (id, to) in moves {
            self.check_raise(topic_id, *id, to)?;
        }
        let (mut changed, mut kept) = (0, 0);
        for (id, to) in moves {
            let Some(partition) = self.partition(*id) else { continue };
            if self.moves.contains_key(id) {
                kept += 1;
                continue;
            }
            self.moves.insert(*id, Move { from: partition.replicas.clone(), to: to.clone(), started: false });
            changed += 1;
        }
        self.advance_moves();
        Ok(Effect::Changed(Reply::Moves { changed, kept }))
    }

    fn check_raise(&self, topic_id: TopicId, id: TopicPartition, to: &[NodeId]) -> Result<(), Refusal> {
        let partition = self.partition(id).ok_or(Refusal::UnknownPartition(id))?;
        let internal = self.topic(topic_id).is_some_and(|topic| topic.is_internal());
        let keeps = partition.replicas.iter().all(|node| to.contains(node));
        if !internal || id.topic_id != topic_id || !keeps || to.len() <= partition.replicas.len() {
            return Err(Refusal::Invalid(format!(
                "partition {id} can be given more replicas, on top of those that it has, if its topic is the brokers' own"
            )));
        }
        self.check_new_replicas(id, partition, to)
    }

    /// When every partition of a topic has got more replicas, its replication is what they have.
    fn settle_replication(&mut self, topic_id: TopicId) {
        let Some(topic) = self.topics.get_mut(&topic_id) else { return };
        if self.moves.keys().any(|id| id.topic_id == topic_id) {
            return;
        }
        let least =
            topic.partitions.iter().map(|partition| partition.replicas.len()).min().unwrap_or(0) as u32;
        if least > topic.replication {
            let topic = Arc::make_mut(topic);
            topic.replication = least;
            topic.settle();
        }
    }

    fn check_move(&self, id: TopicPartition, to: &[NodeId]) -> Result<(), Refusal> {
        let partition = self.partition(id).ok_or(Refusal::UnknownPartition(id))?;
        let replication = self.topic(id.topic_id).map_or(0, |topic| topic.replication) as usize;
        if to.len() != replication {
            return Err(Refusal::Invalid(format!(
                "partition {id} has {replication} replicas and cannot be moved to {} different brokers",
                to.len()
            )));
        }
        self.check_new_replicas(id, partition, to)
    }

    fn check_new_replicas(
        &self,
        id: TopicPartition,
        partition: &Partition,
        to: &[NodeId],
    ) -> Result<(), Refusal> {
        if to.iter().enumerate().any(|(place, node)| to[..place].contains(node)) {
            return Err(Refusal::Invalid(format!("partition {id} cannot have two replicas on one broker")));
        }
        for node in to {
            let broker = self.broker(*node).ok_or(Refusal::UnknownBroker(*node))?;
            if !partition.is_replica(*node) && !broker.takes_replicas() {
                return Err(Refusal::Conflict(format!(
                    "broker {node} is {} and gets no replica of partition {id}",
                    broker.state_name()
                )));
            }
        }
        Ok(())
    }

    /// Finishes moves that are done, and starts planned ones where there is room; how many partitions changed.
    pub(super) fn advance_moves(&mut self) -> u32 {
        if self.moves.is_empty() {
            return 0;
        }
        self.finish_moves() + self.start_planned()
    }

    /// Whether [`Command::AdvanceMoves`] would change something.
    #[must_use]
    pub fn moves_are_due(&self) -> bool {
        let started = self.moves.iter().any(|(id, planned)| planned.started && self.can_advance(*id));
        started || self.startable().next().is_some()
    }

    fn finish_moves(&mut self) -> u32 {
        let under_way: Vec<TopicPartition> =
            self.moves.iter().filter(|(_, planned)| planned.started).map(|(id, _)| *id).collect();
        let mut changed = 0;
        for id in under_way {
            let before = self.partition(id).map(|partition| partition.version);
            if !self.can_advance(id) {
                continue;
            }
            let mut over = false;
            // The partition is there: topics take their moves with them.
            let _known = self.change_partition(id, |partition, around| over = partition.advance_move(around));
            changed += u32::from(before != self.partition(id).map(|partition| partition.version));
            if over {
                self.moves.remove(&id);
                self.settle_replication(id.topic_id);
            }
        }
        changed
    }

    /// Whether a step of the move under way would change something.
    fn can_advance(&self, id: TopicPartition) -> bool {
        let Some(topic) = self.topic(id.topic_id) else { return false };
        let around = Around::of(topic, &self.brokers);
        topic.partition(id.partition).is_some_and(|partition| {
            let mut next = partition.clone();
            next.advance_move(around);
            next != *partition
        })
    }

    fn start_planned(&mut self) -> u32 {
        let startable: Vec<(TopicPartition, Vec<NodeId>)> = self.startable().collect();
        for (id, to) in &startable {
            let _known = self.change_partition(*id, |partition, _| partition.start_move(to));
            if let Some(planned) = self.moves.get_mut(id) {
                planned.started = true;
            }
        }
        startable.len() as u32
    }

    /// Planned moves that there is room for now, in order.
    fn startable(&self) -> impl Iterator<Item = (TopicPartition, Vec<NodeId>)> + '_ {
        let mut busy: BTreeMap<NodeId, usize> = BTreeMap::new();
        for id in self.moves.iter().filter(|(_, planned)| planned.started).map(|(id, _)| id) {
            for node in self.partition(*id).map_or(&[][..], |partition| &partition.adding) {
                *busy.entry(*node).or_default() += 1;
            }
        }
        self.moves.iter().filter(|(_, planned)| !planned.started).filter_map(move |(id, planned)| {
            let partition = self.partition(*id)?;
            let adding = || planned.to.iter().filter(|node| !partition.is_replica(**node));
            let free = |node: &NodeId| busy.get(node).copied().unwrap_or(0) < MOVES_AT_ONCE_MAX;
            if !adding().all(free) {
                return None;
            }
            for node in adding() {
                *busy.entry(*node).or_default() += 1;
            }
            Some((*id, planned.to.clone()))
        })
    }

    fn cancel_moves(&mut self) -> Effect {
        let all: Vec<TopicPartition> = self.moves.keys().copied().collect();
        let (mut changed, mut kept) = (0, 0);
        for id in all {
            if self.cancel_one(id) { changed += 1 } else { kept += 1 }
        }
        let wanted = std::mem::take(&mut self.rebalance_wanted);
        let reply = Reply::Moves { changed, kept };
        if changed > 0 || wanted { Effect::Changed(reply) } else { Effect::Nothing(reply) }
    }

    /// Takes a move back; whether the partition has none now.
    fn cancel_one(&mut self, id: TopicPartition) -> bool {
        let Some(planned) = self.moves.get(&id).cloned() else { return true };
        let mut undone = true;
        if planned.started {
            let _known = self.change_partition(id, |partition, around| {
                undone = partition.cancel_move(around, &planned.from);
            });
        }
        if undone {
            self.moves.remove(&id);
        }
        undone
    }

    fn balance_leaders(&mut self, changes: &[(TopicPartition, NodeId)]) -> Result<Effect, Refusal> {
        if changes.len() > MOVES_MAX {
            return Err(Refusal::Invalid(format!("at most {MOVES_MAX} changes at a time")));
        }
        for (id, node_id) in changes {
            let partition = self.partition(*id).ok_or(Refusal::UnknownPartition(*id))?;
            if !partition.is_replica(*node_id) || partition.removing.contains(node_id) {
                let (partition, node_id) = (*id, *node_id);
                return Err(Refusal::Ineligible {
                    partition,
                    node_id,
                    why: "it has no replica that stays".to_owned(),
                });
            }
        }
        for (id, node) in changes {
            self.change_partition(*id, |partition, around| partition.prefer(around, *node))?;
            if let Some(planned) = self.moves.get_mut(id)
                && let Some(place) = planned.to.iter().position(|member| member == node)
            {
                planned.to[..=place].rotate_right(1);
            }
        }
        Ok(Effect::Changed(Reply::Moves { changed: changes.len() as u32, kept: 0 }))
    }
}

impl Partition {
    /// Makes the replica the preferred leader, and the leader if it can be.
    fn prefer(&mut self, around: Around<'_>, node: NodeId) {
        if let Some(place) = self.replicas.iter().position(|replica| *replica == node) {
            self.replicas[..=place].rotate_right(1);
        }
        let can_lead =
            self.in_sync.contains(&node) && around.is_active(node) && !self.damaged.contains(&node);
        if can_lead && self.leader.is_some() {
            self.set_leader(Some(node));
        }
    }
}
