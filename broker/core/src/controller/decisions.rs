//! Commands about one partition: who is in sync, what its replicas tell, and what an operator decides about it.

use std::sync::Arc;

use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, NodeId, TopicPartition};

use super::command::{Command, Refusal, ReplicaEnds, ReplicaProblem, Reply};
use super::image::{BrokerState, ClusterImage, Effect};
use super::partition::{Around, EndsReport, Partition};
use crate::durability::Durability;

/// What a leader proposes.
struct Proposal<'a> {
    node_id: NodeId,
    leader_epoch: LeaderEpoch,
    version: u64,
    in_sync: &'a [(NodeId, BrokerEpoch)],
}

impl ClusterImage {
    /// Commands about one partition.
    pub(super) fn apply_to_partitions(&mut self, command: &Command) -> Result<Effect, Refusal> {
        match command {
            Command::RecordDurability { partition, leader_epoch, durability } => {
                self.record(*partition, *leader_epoch, *durability)
            }
            Command::AlterInSync { partition, node_id, broker_epoch, leader_epoch, version, in_sync } => {
                self.check_broker(*node_id, *broker_epoch)?;
                let (node_id, leader_epoch, version) = (*node_id, *leader_epoch, *version);
                self.alter_in_sync(*partition, &Proposal { node_id, leader_epoch, version, in_sync })
            }
            Command::ReportReplica { partition, node_id, broker_epoch, problem, ends } => {
                self.check_broker(*node_id, *broker_epoch)?;
                self.report(*partition, *node_id, *broker_epoch, *problem, *ends)
            }
            Command::ElectDamaged {} => Ok(self.elect_damaged()),
            Command::ElectUnclean { partition, node_id, accept_loss } => {
                self.elect_unclean(*partition, *node_id, *accept_loss)
            }
            _ => Err(Refusal::Invalid("not a command about a partition".to_owned())),
        }
    }

    fn record(
        &mut self,
        id: TopicPartition,
        leader_epoch: Option<LeaderEpoch>,
        durability: Durability,
    ) -> Result<Effect, Refusal> {
        let partition = self.partition(id).ok_or(Refusal::UnknownPartition(id))?;
        if let (Some(asked), Some(node_id)) = (leader_epoch, partition.leader)
            && asked != partition.leader_epoch
        {
            let (leader, epoch) = (partition.leader, partition.leader_epoch);
            return Err(Refusal::NotLeader { partition: id, node_id, asked, leader, epoch });
        }
        self.change_partition(id, |partition, _| partition.durability_effective = durability)?;
        Ok(Effect::Changed(Reply::Recorded))
    }

    fn alter_in_sync(&mut self, id: TopicPartition, proposal: &Proposal<'_>) -> Result<Effect, Refusal> {
        let partition = self.partition(id).ok_or(Refusal::UnknownPartition(id))?;
        self.check_in_sync(id, partition, proposal)?;
        let in_sync: Vec<NodeId> = proposal.in_sync.iter().map(|(node, _)| *node).collect();
        let asked = proposal.version;
        self.change_partition(id, |partition, around| partition.set_in_sync(around.min, in_sync))?;
        // A leader that proposes the set that is decided takes an earlier proposal back, which may still be on its way.
        self.change_partition(id, |partition, _| {
            if partition.version == asked {
                partition.touch();
            }
        })?;
        self.advance_moves();
        let state = Box::new(self.partition(id).cloned().ok_or(Refusal::UnknownPartition(id))?);
        Ok(Effect::Changed(Reply::Partition { state }))
    }

    /// A proposal counts only if it was made from what is decided, about replicas that still are what they were.
    fn check_in_sync(
        &self,
        id: TopicPartition,
        partition: &Partition,
        proposal: &Proposal<'_>,
    ) -> Result<(), Refusal> {
        let Proposal { node_id, leader_epoch: asked, version, in_sync } = *proposal;
        let (leader, epoch) = (partition.leader, partition.leader_epoch);
        if (leader != Some(node_id) || epoch != asked) && !cfg!(hw_mutate = "in_sync_of_any_leader") {
            return Err(Refusal::NotLeader { partition: id, node_id, asked, leader, epoch });
        }
        if partition.version != version && !cfg!(hw_mutate = "in_sync_of_any_version") {
            return Err(Refusal::StaleVersion { partition: id, version: partition.version, asked: version });
        }
        let ineligible =
            |node_id, why: &str| Err(Refusal::Ineligible { partition: id, node_id, why: why.to_owned() });
        if !in_sync.iter().any(|(node, _)| *node == node_id) {
            return ineligible(node_id, "the leader itself is missing");
        }
        for (place, (node, epoch)) in in_sync.iter().enumerate() {
            if in_sync[..place].iter().any(|(earlier, _)| earlier == node) {
                return ineligible(*node, "it is named twice");
            }
            if !partition.is_replica(*node) {
                return ineligible(*node, "it has no replica");
            }
            let Some(broker) = self.broker(*node) else {
                return ineligible(*node, "there is no such broker");
            };
            if broker.broker_epoch != *epoch && !cfg!(hw_mutate = "h5_any_registration") {
                return ineligible(*node, "it was registered again since");
            }
            let stays = partition.in_sync.contains(node) && broker.state == BrokerState::Stopping;
            if broker.state != BrokerState::Active && !stays {
                return ineligible(*node, "it is not active");
            }
        }
        Ok(())
    }

    fn report(
        &mut self,
        id: TopicPartition,
        node_id: NodeId,
        broker_epoch: BrokerEpoch,
        problem: ReplicaProblem,
        ends: Option<ReplicaEnds>,
    ) -> Result<Effect, Refusal> {
        let partition = self.partition(id).ok_or(Refusal::UnknownPartition(id))?;
        if !partition.is_replica(node_id) {
            return Err(Refusal::Ineligible { partition: id, node_id, why: "it has no replica".to_owned() });
        }
        if problem == ReplicaProblem::Ends && ends.is_none() {
            return Err(Refusal::Invalid("a report of ends without ends".to_owned()));
        }
        let before = partition.version;
        self.change_partition(id, |partition, around| match (problem, ends) {
            (ReplicaProblem::Suspect | ReplicaProblem::Corrupt, _) => {
                partition.note_damaged(around, node_id, problem == ReplicaProblem::Suspect);
            }
            (ReplicaProblem::Ends, Some(ends)) => {
                partition.note_ends(around, EndsReport { node_id, broker_epoch, ends });
            }
            (ReplicaProblem::Recovered | ReplicaProblem::Ends, _) => {
                partition.damaged.retain(|node| *node != node_id);
                partition.elect(around, false);
            }
        })?;
        let state = Box::new(self.partition(id).cloned().ok_or(Refusal::UnknownPartition(id))?);
        let changed = state.version != before;
        let reply = Reply::Partition { state };
        Ok(if changed { Effect::Changed(reply) } else { Effect::Nothing(reply) })
    }

    fn elect_damaged(&mut self) -> Effect {
        let mut changed = false;
        let brokers = &self.brokers;
        for topic in self.topics.values_mut() {
            let around = Around::of(topic, brokers);
            if !topic.partitions.iter().any(|partition| partition.waits_for_clean(around)) {
                continue;
            }
            changed = true;
            for partition in &mut Arc::make_mut(topic).partitions {
                partition.change(|partition| partition.elect(around, true));
            }
        }
        if changed { Effect::Changed(Reply::Done) } else { Effect::Nothing(Reply::Done) }
    }

    /// Whether a damaged replica could lead a partition that nobody leads: [`Command::ElectDamaged`] is due when this has
    /// been so for a lease.
    #[must_use]
    pub fn waits_for_clean_replicas(&self) -> bool {
        self.topics.values().any(|topic| {
            let around = Around::of(topic, &self.brokers);
            topic.partitions.iter().any(|partition| partition.waits_for_clean(around))
        })
    }

    /// What an unclean election of `node_id` may cost, for people.
    ///
    /// # Errors
    /// When there is nothing to elect, or the broker cannot lead.
    pub fn unclean_loss(&self, id: TopicPartition, node_id: NodeId) -> Result<String, Refusal> {
        let partition = self.partition(id).ok_or(Refusal::UnknownPartition(id))?;
        let conflict = |text: String| Err(Refusal::Conflict(text));
        if let Some(leader) = partition.leader {
            return conflict(format!("partition {id} is led by broker {leader}: nothing has to be given up"));
        }
        let Some(broker) = self.broker(node_id) else { return Err(Refusal::UnknownBroker(node_id)) };
        if !partition.is_replica(node_id) {
            return conflict(format!(
                "broker {node_id} has no replica of partition {id}: brokers {} have",
                list(&partition.replicas)
            ));
        }
        if broker.state != BrokerState::Active {
            return conflict(format!("broker {node_id} is {}: start it first", broker.state_name()));
        }
        let holders: Vec<NodeId> = partition
            .in_sync
            .iter()
            .chain(&partition.eligible)
            .chain(&partition.last_sets)
            .copied()
            .collect();
        Ok(format!(
            "broker {node_id} may lack acknowledged records of partition {id}: brokers {} are known to have all of \
             them, or were the last that had. What broker {node_id} lacks is lost for good, and what the others have \
             beyond it is cut off. Start one of them instead if that is possible",
            list(&holders)
        ))
    }

    fn elect_unclean(
        &mut self,
        id: TopicPartition,
        node_id: NodeId,
        accept_loss: bool,
    ) -> Result<Effect, Refusal> {
        let loss = self.unclean_loss(id, node_id)?;
        if !accept_loss {
            return Err(Refusal::LossNotAccepted(loss));
        }
        self.change_partition(id, |partition, around| {
            partition.in_sync = vec![node_id];
            partition.eligible.clear();
            partition.last_sets.clear();
            partition.reports.clear();
            partition.set_leader(Some(node_id));
            partition.unclean_epoch = Some(partition.leader_epoch);
            partition.settle(around.min);
        })?;
        let state = Box::new(self.partition(id).cloned().ok_or(Refusal::UnknownPartition(id))?);
        Ok(Effect::Changed(Reply::Partition { state }))
    }

    /// Changes one partition and its version.
    pub(super) fn change_partition(
        &mut self,
        id: TopicPartition,
        change: impl FnOnce(&mut Partition, Around<'_>),
    ) -> Result<(), Refusal> {
        let unknown = Refusal::UnknownPartition(id);
        let topic = self.topics.get_mut(&id.topic_id).ok_or(unknown.clone())?;
        let around = Around::of(topic, &self.brokers);
        let topic = Arc::make_mut(topic);
        let partition = topic.partitions.get_mut(id.partition.get() as usize).ok_or(unknown)?;
        partition.change(|partition| change(partition, around));
        Ok(())
    }
}

pub(super) fn list(nodes: &[NodeId]) -> String {
    let mut nodes = nodes.to_vec();
    nodes.sort_unstable();
    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    nodes.join(", ")
}
