//! Which replicas and leaderships should change places: plans made from the image by [`super::placement`], and when the
//! controller makes one by itself. A plan is only a proposal; what is carried out is recorded in the image.

use highwater_protocol::ids::{NodeId, TopicPartition};

use super::command::{Command, FEATURE_LEVEL_GROUPS, INTERNAL_REPLICATION, Refusal};
use super::decisions::list;
use super::image::{BrokerState, ClusterImage};
use super::placement::{self, Led, Place, Placed};

/// Replicas that change places, and what that means.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Each partition with the replicas that it is to have, as [`Command::StartMoves`] takes them.
    pub moves: Vec<(TopicPartition, Vec<NodeId>)>,
    /// How many replicas are copied.
    pub replicas: u64,
    /// How many leaderships change, those whose replica goes away.
    pub leaders: u64,
}

/// The smallest plan that restores the bounds on replicas, and empties brokers that are drained.
#[must_use]
pub fn plan_rebalance(image: &ClusterImage) -> Plan {
    plan_without(image, &[])
}

/// The smallest plan that takes every replica off `node`.
///
/// # Errors
/// When there is no such broker, or the others are too few for what it has.
pub fn plan_drain(image: &ClusterImage, node: NodeId) -> Result<Plan, Refusal> {
    if image.broker(node).is_none() {
        return Err(Refusal::UnknownBroker(node));
    }
    let left = places(image, &[node]);
    let most = image.topics().map(|topic| topic.replication).max().unwrap_or(0) as usize;
    if most > left.len() {
        let others: Vec<NodeId> = left.iter().map(|place| place.node).collect();
        return Err(Refusal::Conflict(format!(
            "broker {node} cannot be drained: a topic has {most} replicas, and only brokers [{}] would be left; add a \
             broker first",
            list(&others)
        )));
    }
    Ok(plan_without(image, &[node]))
}

/// The fewest changes of leaders that restore the bound on leaders, as [`Command::BalanceLeaders`] takes them.
#[must_use]
pub fn plan_leaders(image: &ClusterImage) -> Vec<(TopicPartition, NodeId)> {
    let usable = |node: &NodeId| image.broker(*node).is_some_and(|broker| broker.takes_replicas());
    let places: Vec<Place> = places(image, &[]).into_iter().filter(|place| usable(&place.node)).collect();
    let mut led = Vec::new();
    for id in image.partitions().filter(|id| !image.moves.contains_key(id)) {
        let Some(partition) = image.partition(id) else { continue };
        let Some(leader) = partition.leader.filter(&usable) else { continue };
        let clean = |node: &NodeId| usable(node) && !partition.damaged.contains(node);
        let candidates = partition.replicas.iter().copied();
        let candidates = candidates.filter(|node| partition.in_sync.contains(node) && clean(node)).collect();
        led.push(Led { partition: id, leader, candidates });
    }
    placement::balance_leaders(&led, &places)
}

/// What the controller should propose next by itself, if anything. To be asked about once a second: each proposal changes
/// the image so that it is not made again.
///
/// `lost` are brokers that have been fenced for so long that nobody counts on them; their replicas are made anew.
#[must_use]
pub fn next_step(image: &ClusterImage, lost: &[NodeId]) -> Option<Command> {
    if !image.moves.is_empty() {
        return image.moves_are_due().then_some(Command::AdvanceMoves {});
    }
    if image.brokers().any(|broker| broker.state == BrokerState::Starting) {
        return None;
    }
    if image.rebalance_wanted {
        return Some(Command::StartMoves { moves: plan_rebalance(image).moves });
    }
    let holds = |node: &&NodeId| {
        image.partitions().any(|id| image.partition(id).is_some_and(|partition| partition.is_replica(**node)))
    };
    if lost.iter().any(|node| holds(&node)) {
        let plan = plan_without(image, lost);
        if !plan.moves.is_empty() {
            return Some(Command::StartMoves { moves: plan.moves });
        }
    }
    if let Some(command) = raise_internal(image) {
        return Some(command);
    }
    if image.brokers().all(|broker| broker.state == BrokerState::Active) && is_whole(image) {
        let changes = plan_leaders(image);
        return (!changes.is_empty()).then_some(Command::BalanceLeaders { changes });
    }
    None
}

/// The brokers' own topics were made when there were fewer brokers: more replicas, now that there is room for them.
fn raise_internal(image: &ClusterImage) -> Option<Command> {
    let takes = image.brokers().filter(|broker| broker.takes_replicas());
    let places: Vec<Place> =
        takes.map(|broker| Place { node: broker.node_id, rack: broker.rack.clone() }).collect();
    let replication = INTERNAL_REPLICATION.min(places.len() as u32);
    if image.feature_level < FEATURE_LEVEL_GROUPS {
        return None;
    }
    let topic = image.topics().find(|topic| topic.is_internal() && topic.replication < replication)?;
    let grows = |id: TopicPartition| id.topic_id == topic.id;
    let grown = placement::plan_more(&placed(image), grows, replication as usize, &places);
    let moves: Vec<_> = grown.into_iter().map(|placed| (placed.partition, placed.replicas)).collect();
    // What cannot grow now, because a broker that has it is away, grows when that is back.
    (!moves.is_empty()).then_some(Command::RaiseReplication { topic_id: topic.id, moves })
}

/// Whether every replica is in sync: leaders are balanced only when nothing else goes on.
fn is_whole(image: &ClusterImage) -> bool {
    image.topics().all(|topic| topic.partitions.iter().all(|partition| !partition.is_under_replicated()))
}

/// Every partition where it is, or where it is on its way to.
pub(super) fn placed(image: &ClusterImage) -> Vec<Placed> {
    let replicas = |id: TopicPartition| match image.moves.get(&id) {
        Some(planned) => planned.to.clone(),
        None => image.partition(id).map(|partition| partition.replicas.clone()).unwrap_or_default(),
    };
    image.partitions().map(|partition| Placed { partition, replicas: replicas(partition) }).collect()
}

/// Brokers that replicas may stay on: one that is fenced may come back.
fn places(image: &ClusterImage, without: &[NodeId]) -> Vec<Place> {
    let stays = image.brokers().filter(|broker| !broker.draining && !without.contains(&broker.node_id));
    stays.map(|broker| Place { node: broker.node_id, rack: broker.rack.clone() }).collect()
}

fn plan_without(image: &ClusterImage, without: &[NodeId]) -> Plan {
    let mut plan = Plan::default();
    for Placed { partition: id, replicas: to } in
        placement::plan_moves(&placed(image), &places(image, without))
    {
        let Some(partition) = image.partition(id) else { continue };
        let replication = image.topic(id.topic_id).map_or(0, |topic| topic.replication) as usize;
        let adding: Vec<NodeId> = to.iter().filter(|node| !partition.is_replica(**node)).copied().collect();
        let takes = |node: &NodeId| image.broker(*node).is_some_and(|broker| broker.takes_replicas());
        // Too few brokers, or one that cannot take anything now: what cannot be done now is not planned.
        if to.len() != replication || !adding.iter().all(takes) {
            continue;
        }
        plan.replicas += adding.len() as u64;
        plan.leaders += u64::from(partition.leader.is_some_and(|leader| !to.contains(&leader)));
        plan.moves.push((id, to));
    }
    plan
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use highwater_protocol::ids::TopicId;

    use super::super::command::Reply;
    use super::super::image::Partition;
    use super::super::testing::{
        apply, create, epoch, fence, id, image_with_brokers, ok, partition, ready, register,
    };
    use super::*;

    /// Lets every replica on the move arrive, as followers and leaders would.
    fn copy_all(image: &mut ClusterImage) {
        for id in image.partitions().collect::<Vec<_>>() {
            let state = image.partition(id).unwrap().clone();
            let (Some(leader), false) = (state.leader, state.adding.is_empty()) else { continue };
            let active = |node: &&NodeId| image.broker(**node).unwrap().state == BrokerState::Active;
            let member = |node: &NodeId| (*node, epoch(image, node.get()));
            let command = Command::AlterInSync {
                partition: id,
                node_id: leader,
                broker_epoch: epoch(image, leader.get()),
                leader_epoch: state.leader_epoch,
                version: state.version,
                in_sync: state.replicas.iter().filter(active).map(member).collect(),
            };
            ok(image, &command);
        }
    }

    /// Does what the controller does by itself until there is nothing left to do; how many replicas were copied.
    fn settle(image: &mut ClusterImage) -> usize {
        let mut copied = 0;
        for _round in 0..10_000 {
            let adding = |image: &ClusterImage| -> usize {
                image.partitions().map(|id| image.partition(id).unwrap().adding.len()).sum()
            };
            copied += adding(image);
            copy_all(image);
            match next_step(image, &[]) {
                Some(command) => ok(image, &command),
                None if adding(image) == 0 => return copied,
                None => continue,
            };
        }
        panic!("there is always something left to do: {:?}", next_step(image, &[]));
    }

    fn loads(image: &ClusterImage) -> (BTreeMap<NodeId, usize>, BTreeMap<NodeId, usize>) {
        let (mut replicas, mut leaders) = (BTreeMap::new(), BTreeMap::new());
        for id in image.partitions() {
            let partition = image.partition(id).unwrap();
            for node in &partition.replicas {
                *replicas.entry(*node).or_default() += 1;
            }
            *leaders.entry(partition.leader.unwrap()).or_default() += 1;
        }
        (replicas, leaders)
    }

    #[test]
    fn a_fourth_broker_gets_its_share_and_little_else_moves() {
        let mut image = image_with_brokers(3);
        ok(&mut image, &create(1, "t", 300, 3));
        ok(&mut image, &register(4, 1));
        let fourth = ready(&image, 4);
        ok(&mut image, &fourth);
        let copied = settle(&mut image);
        let ideal = 300 * 3 / 4;
        assert!(copied as f64 <= 1.2 * f64::from(ideal), "{copied} copied, {ideal} is the ideal share");
        let (replicas, leaders) = loads(&image);
        let bound = |total| placement::bound(total, 4);
        assert!(replicas.values().all(|count| *count <= bound(900)), "{replicas:?}");
        assert!(leaders.values().all(|count| *count <= bound(300)), "{leaders:?}");
        assert!(image.moves().next().is_none());
        assert_eq!(next_step(&image, &[]), None, "it stays as it is");
    }

    #[test]
    fn a_drained_broker_is_emptied_and_can_be_removed_and_too_few_others_refuse() {
        let mut image = image_with_brokers(4);
        ok(&mut image, &create(1, "t", 40, 3));
        ok(&mut image, &Command::DrainBroker { node_id: NodeId(2), draining: true });
        settle(&mut image);
        let (replicas, _) = loads(&image);
        assert_eq!(replicas.get(&NodeId(2)), None);
        let refused = plan_drain(&image, NodeId(3)).unwrap_err();
        assert!(refused.to_string().contains("add a broker first"), "{refused}");
        let remove = Command::RemoveBroker { node_id: NodeId(2) };
        assert!(apply(&mut image, &remove).unwrap_err().to_string().contains("stop it"));
        let second = fence(&image, 2);
        ok(&mut image, &second);
        ok(&mut image, &remove);
        assert_eq!(image.broker(NodeId(2)), None);
    }

    #[test]
    fn a_cancelled_move_restores_what_was_and_is_not_begun_again() {
        let mut image = image_with_brokers(4);
        ok(&mut image, &create(1, "t", 40, 3));
        let before: Vec<_> =
            image.partitions().map(|id| image.partition(id).unwrap().replicas.clone()).collect();
        let plan = plan_drain(&image, NodeId(2)).unwrap();
        let reply = ok(&mut image, &Command::StartMoves { moves: plan.moves.clone() });
        assert_eq!(reply, Reply::Moves { changed: plan.moves.len() as u32, kept: 0 });
        assert!(image.moves().any(|(_, planned)| planned.started) && image.moves().any(|(_, m)| !m.started));
        ok(&mut image, &Command::CancelMoves {});
        let after: Vec<_> =
            image.partitions().map(|id| image.partition(id).unwrap().replicas.clone()).collect();
        assert_eq!(after, before);
        assert_eq!(next_step(&image, &[]), None);
    }

    #[test]
    fn a_move_waits_for_its_new_replicas_and_hands_over_before_the_old_ones_go() {
        let mut image = image_with_brokers(4);
        ok(&mut image, &create(1, "t", 1, 3));
        let state = partition(&image, 1, 0);
        let leader = state.leader.unwrap();
        let outside = (1..=4).map(NodeId).find(|node| !state.is_replica(*node)).unwrap();
        let to = state.replicas.iter().map(|node| if *node == leader { outside } else { *node }).collect();
        ok(&mut image, &Command::StartMoves { moves: vec![(id(1, 0), to)] });
        assert_eq!(next_step(&image, &[]), None, "the new replica has nothing yet");
        assert_eq!(partition(&image, 1, 0).leader, Some(leader));
        copy_all(&mut image);
        let handed_over = partition(&image, 1, 0);
        assert_ne!(handed_over.leader, Some(leader));
        assert!(handed_over.is_replica(leader), "it keeps its data until the new leader is decided");
        let step = next_step(&image, &[]).unwrap();
        ok(&mut image, &step);
        let done = partition(&image, 1, 0);
        assert!(!done.is_replica(leader) && done.adding.is_empty() && done.removing.is_empty());
        assert_eq!(done.in_sync.len(), 3);
    }

    #[test]
    fn the_brokers_own_topics_get_more_replicas_when_brokers_come() {
        let mut image = image_with_brokers(1);
        let internal = Command::CreateInternalTopic {
            topic_id: TopicId(2),
            name: "hw-groups".into(),
            partitions: 16,
            config: BTreeMap::new(),
            created_at_us: 0,
        };
        ok(&mut image, &internal);
        ok(&mut image, &create(1, "t", 1, 1));
        for brokers in 2..=4 {
            ok(&mut image, &register(brokers, 1));
            assert_eq!(next_step(&image, &[]), None, "it opens its logs");
            let ready = ready(&image, brokers);
            ok(&mut image, &ready);
            settle(&mut image);
            let topic = image.topic(TopicId(2)).unwrap();
            let replication = brokers.min(INTERNAL_REPLICATION);
            assert_eq!((topic.replication, topic.min_in_sync()), (replication, replication / 2 + 1));
            let in_sync = |partition: &Partition| partition.in_sync.len() == replication as usize;
            assert!(
                topic.partitions.iter().all(|partition| in_sync(partition) && partition.adding.is_empty())
            );
            assert_eq!(image.topic(TopicId(1)).unwrap().replication, 1, "not those of users");
        }
        let (replicas, leaders) = loads(&image);
        let (all, led) = (16 * 3 + 1, 16 + 1);
        assert!(replicas.values().all(|count| *count <= placement::bound(all, 4)), "{replicas:?}");
        assert!(leaders.values().all(|count| *count <= placement::bound(led, 4)), "{leaders:?}");
    }

    #[test]
    fn a_raise_that_is_cancelled_is_begun_again() {
        let mut image = image_with_brokers(1);
        let internal = Command::CreateInternalTopic {
            topic_id: TopicId(2),
            name: "hw-groups".into(),
            partitions: 16,
            config: BTreeMap::new(),
            created_at_us: 0,
        };
        ok(&mut image, &internal);
        ok(&mut image, &register(2, 1));
        let second = ready(&image, 2);
        ok(&mut image, &second);
        let step = loop {
            match next_step(&image, &[]).unwrap() {
                step @ Command::RaiseReplication { .. } => break step,
                step => ok(&mut image, &step),
            };
            copy_all(&mut image);
        };
        ok(&mut image, &step);
        assert!(image.moves().any(|(_, planned)| planned.started));
        ok(&mut image, &Command::CancelMoves {});
        assert_eq!(image.topic(TopicId(2)).unwrap().replication, 1);
        settle(&mut image);
        assert_eq!(image.topic(TopicId(2)).unwrap().replication, 2);
    }

    #[test]
    fn what_a_lost_broker_had_is_made_anew() {
        let mut image = image_with_brokers(4);
        ok(&mut image, &create(1, "t", 40, 3));
        let lost = fence(&image, 2);
        ok(&mut image, &lost);
        assert_eq!(next_step(&image, &[]), None, "it may come back");
        let step = next_step(&image, &[NodeId(2)]).unwrap();
        ok(&mut image, &step);
        settle(&mut image);
        assert_eq!(loads(&image).0.get(&NodeId(2)), None);
    }
}
