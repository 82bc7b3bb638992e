//! Generated commands against a model of where committed records are.
//!
//! The model is the worst world that the rules allow: as soon as a leader may commit, everything new is committed and
//! exactly the in-sync set has it. A power cut takes everything unflushed from a broker. Whoever is elected has to have
//! everything committed, unless an operator has given it up or nobody is left who could have it.

use std::collections::{BTreeMap, BTreeSet};

use highwater_protocol::ids::{NodeId, TopicPartition};
use proptest::prelude::*;

use super::super::command::{Command, ReplicaEnds, ReplicaProblem};
use super::super::image::{BrokerState, ClusterImage, Partition};
use super::super::reassignment::{next_step, plan_drain};
use super::super::snapshot;
use super::super::testing::{
    apply, create, create_os, epoch, fence, id, image_with_brokers, ok, ready, register, register_unclean,
};

const BROKERS: u32 = 5;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Event {
    Crash {
        node: u32,
    },
    PowerCut {
        node: u32,
    },
    CleanRestart {
        node: u32,
    },
    Ready {
        node: u32,
    },
    Fence {
        node: u32,
    },
    Stop {
        node: u32,
    },
    /// The leader of a partition drops a follower, or takes one in that has caught up.
    Shrink {
        partition: usize,
        nth: usize,
    },
    Grow {
        partition: usize,
    },
    Damaged {
        partition: usize,
        nth: usize,
    },
    Recovered {
        partition: usize,
        nth: usize,
    },
    ElectDamaged,
    /// Everybody tells how far its log goes where nobody is known to have everything.
    Ends {
        partition: usize,
    },
    Drain {
        node: u32,
    },
    Step,
    Cancel,
    MinInSync {
        min: u32,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let node = || 1..=BROKERS;
    let partition = || 0usize..4;
    let nth = || 0usize..5;
    prop_oneof![
        3 => node().prop_map(|node| Event::Crash { node }),
        2 => node().prop_map(|node| Event::PowerCut { node }),
        1 => node().prop_map(|node| Event::CleanRestart { node }),
        8 => node().prop_map(|node| Event::Ready { node }),
        4 => node().prop_map(|node| Event::Fence { node }),
        1 => node().prop_map(|node| Event::Stop { node }),
        3 => (partition(), nth()).prop_map(|(partition, nth)| Event::Shrink { partition, nth }),
        8 => partition().prop_map(|partition| Event::Grow { partition }),
        1 => (partition(), nth()).prop_map(|(partition, nth)| Event::Damaged { partition, nth }),
        1 => (partition(), nth()).prop_map(|(partition, nth)| Event::Recovered { partition, nth }),
        1 => Just(Event::ElectDamaged),
        2 => partition().prop_map(|partition| Event::Ends { partition }),
        1 => node().prop_map(|node| Event::Drain { node }),
        4 => Just(Event::Step),
        1 => Just(Event::Cancel),
        1 => (1u32..=3).prop_map(|min| Event::MinInSync { min }),
    ]
}

/// Who has everything that is committed.
struct World {
    image: ClusterImage,
    holders: BTreeMap<TopicPartition, BTreeSet<NodeId>>,
    incarnation: u128,
}

impl World {
    fn new() -> Self {
        let mut image = image_with_brokers(BROKERS);
        ok(&mut image, &create(1, "safe", 2, 3));
        ok(&mut image, &create_os(2, "fast", 3));
        ok(&mut image, &create(3, "pair", 1, 2));
        let mut world = Self { image, holders: BTreeMap::new(), incarnation: 1 };
        world.commit();
        world
    }

    fn ids(&self) -> Vec<TopicPartition> {
        self.image.partitions().collect()
    }

    fn state(&self, id: TopicPartition) -> Partition {
        self.image.partition(id).unwrap().clone()
    }

    /// Every leader that may commits something new.
    fn commit(&mut self) {
        for id in self.ids() {
            let (state, min) = (self.state(id), self.image.topic(id.topic_id).unwrap().min_in_sync());
            if state.leader.is_some() && state.in_sync.len() >= min as usize {
                self.holders.insert(id, state.in_sync.iter().copied().collect());
            }
        }
    }

    /// Applies a command, and checks whoever is elected by it.
    fn run(&mut self, command: &Command) {
        let before = self.image.clone();
        let _may_be_refused = apply(&mut self.image, command);
        for id in self.ids() {
            let (then, now) = (before.partition(id).unwrap(), self.state(id));
            let holders = self.holders.get_mut(&id).unwrap();
            let by_ends = then.in_sync.is_empty() && then.eligible.is_empty();
            if let Some(leader) = now.leader.filter(|_| now.leader_epoch != then.leader_epoch) {
                if by_ends {
                    // Everything that anybody has kept: what is more than that is lost, as `os` says it may be.
                    holders.insert(leader);
                }
                assert!(
                    holders.contains(&leader),
                    "{command:?}: {then:?} became {now:?}, holders {holders:?}"
                );
                // A leader's proposal may end a move, which hands over at once to whoever has just come in.
                let joined = matches!(command, Command::AlterInSync { in_sync, .. }
                    if in_sync.iter().any(|(node, _)| *node == leader));
                assert!(
                    then.is_member(leader) || by_ends || joined,
                    "elected from neither set: {then:?} became {now:?}"
                );
                let active = self.image.broker(leader).unwrap().state == BrokerState::Active;
                assert!(active || then.leader == Some(leader), "{then:?} became {now:?}");
            }
            let claims: BTreeSet<NodeId> = now.in_sync.iter().chain(&now.eligible).copied().collect();
            let lost = claims.is_empty() && !now.last_sets.is_empty();
            assert!(lost || claims.is_subset(holders), "{command:?}: {now:?}, holders {holders:?}");
            assert!(lost || !claims.is_empty(), "the last holder is gone: {then:?} became {now:?}");
        }
        self.commit();
    }

    fn restart(&mut self, node: u32, unclean: bool, power_cut: bool) {
        self.incarnation += 1;
        let incarnation = self.incarnation;
        for id in self.ids() {
            let flushed = self.state(id).durability_effective.waits_for_flush();
            if power_cut && !flushed {
                self.holders.entry(id).or_default().remove(&NodeId(node));
            }
        }
        let command = if unclean {
            register_unclean(node, incarnation, power_cut)
        } else {
            register(node, incarnation)
        };
        self.run(&command);
    }

    fn propose(&mut self, id: TopicPartition, in_sync: &[NodeId]) {
        let state = self.state(id);
        let Some(leader) = state.leader else { return };
        let member = |node: &NodeId| (*node, epoch(&self.image, node.get()));
        let command = Command::AlterInSync {
            partition: id,
            node_id: leader,
            broker_epoch: epoch(&self.image, leader.get()),
            leader_epoch: state.leader_epoch,
            version: state.version,
            in_sync: in_sync.iter().map(member).collect(),
        };
        self.run(&command);
    }

    fn report(
        &mut self,
        id: TopicPartition,
        node: NodeId,
        problem: ReplicaProblem,
        ends: Option<ReplicaEnds>,
    ) {
        let broker_epoch = epoch(&self.image, node.get());
        self.run(&Command::ReportReplica { partition: id, node_id: node, broker_epoch, problem, ends });
    }

    fn happen(&mut self, event: &Event) {
        let at = |world: &Self, partition: usize| world.ids()[partition % world.ids().len()];
        match *event {
            Event::Crash { node } => self.restart(node, true, false),
            Event::PowerCut { node } => self.restart(node, true, true),
            Event::CleanRestart { node } => self.restart(node, false, false),
            Event::Ready { node } => self.run(&ready(&self.image, node)),
            Event::Fence { node } => self.run(&fence(&self.image, node)),
            Event::Stop { node } => {
                let (node_id, broker_epoch) = (NodeId(node), epoch(&self.image, node));
                self.run(&Command::StopBroker { node_id, broker_epoch });
            }
            Event::Shrink { partition, nth } => {
                let id = at(self, partition);
                let state = self.state(id);
                let goes = state.in_sync.get(nth).filter(|node| Some(**node) != state.leader);
                let stay: Vec<NodeId> =
                    state.in_sync.iter().filter(|node| Some(*node) != goes).copied().collect();
                self.propose(id, &stay);
            }
            Event::Grow { partition } => self.grow(at(self, partition)),
            Event::Damaged { partition, nth } | Event::Recovered { partition, nth } => {
                let id = at(self, partition);
                let replicas = self.state(id).replicas;
                let problem = match event {
                    Event::Damaged { .. } => ReplicaProblem::Corrupt,
                    _ => ReplicaProblem::Recovered,
                };
                self.report(id, replicas[nth % replicas.len()], problem, None);
            }
            Event::ElectDamaged => self.run(&Command::ElectDamaged {}),
            Event::Ends { partition } => {
                let id = at(self, partition);
                for node in self.state(id).replicas {
                    let ends = ReplicaEnds { last_epoch: 1.into(), log_end: u64::from(node.get()).into() };
                    self.report(id, node, ReplicaProblem::Ends, Some(ends));
                }
            }
            Event::Drain { node } => {
                if let Ok(plan) = plan_drain(&self.image, NodeId(node)) {
                    self.run(&Command::StartMoves { moves: plan.moves });
                }
            }
            Event::Step => {
                if let Some(command) = next_step(&self.image, &[]) {
                    self.run(&command);
                }
            }
            Event::Cancel => self.run(&Command::CancelMoves {}),
            Event::MinInSync { min } => self.run(&Command::AlterTopic {
                name: "safe".into(),
                set: [("min_in_sync".to_owned(), min.to_string())].into(),
                unset: Vec::new(),
                partitions: 0,
            }),
        }
    }

    /// Every active replica catches up with the leader, so it has everything, and the leader proposes it.
    fn grow(&mut self, id: TopicPartition) {
        let state = self.state(id);
        if state.leader.is_none() {
            return;
        }
        let active = |node: &NodeId| {
            let state_of = self.image.broker(*node).unwrap().state;
            state_of == BrokerState::Active
                || (state.in_sync.contains(node) && state_of == BrokerState::Stopping)
        };
        let all: Vec<NodeId> = state.replicas.iter().filter(|node| active(node)).copied().collect();
        self.holders.entry(id).or_default().extend(&all);
        self.propose(id, &all);
    }

    /// Where a move is under way, replicas in sync that are damaged get from a clean one what they lack: a move never ends
    /// with a clean one handing over to a damaged one. Without moves damaged ones may stay as they are.
    fn repair(&mut self, id: TopicPartition) {
        let state = self.state(id);
        let (damaged, clean): (Vec<NodeId>, Vec<NodeId>) =
            state.in_sync.iter().partition(|node| state.damaged.contains(*node));
        if clean.is_empty() || state.adding.is_empty() && state.removing.is_empty() {
            return;
        }
        for node in damaged {
            self.report(id, node, ReplicaProblem::Recovered, None);
        }
    }

    /// Everybody comes back and catches up: every partition has to be led again, without an operator.
    fn heal(&mut self) {
        for node in 1..=BROKERS {
            let state = self.image.broker(NodeId(node)).unwrap().state;
            if state == BrokerState::Stopping {
                self.run(&fence(&self.image, node));
            }
            self.run(&ready(&self.image, node));
        }
        for partition in 0..self.ids().len() {
            self.happen(&Event::Ends { partition });
        }
        self.run(&Command::ElectDamaged {});
        for _round in 0..200 {
            for id in self.ids() {
                self.grow(id);
                self.repair(id);
            }
            self.happen(&Event::Step);
        }
        for id in self.ids() {
            let state = self.state(id);
            assert!(state.leader.is_some(), "{state:?}");
            assert!(state.adding.is_empty() && state.removing.is_empty() && !state.is_under_replicated());
        }
        assert_eq!(next_step(&self.image, &[]), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whoever_leads_has_everything_that_is_committed(
        events in proptest::collection::vec(event(), 1..120),
    ) {
        let mut world = World::new();
        for event in &events {
            world.happen(event);
        }
        let copy = snapshot::decode(&snapshot::encode(&world.image).unwrap()).unwrap();
        prop_assert_eq!(&copy, &world.image);
        world.heal();
    }
}

#[test]
fn h20_what_is_recorded_holds_whoever_comes_or_goes() {
    let mut image = image_with_brokers(3);
    ok(&mut image, &create(1, "t", 12, 2));
    let replicas = |image: &ClusterImage| -> Vec<Vec<NodeId>> {
        (0..12).map(|partition| image.partition(id(1, partition)).unwrap().replicas.clone()).collect()
    };
    let recorded = replicas(&image);
    // The ring is another one with a fourth broker, and with only two: what is recorded is not computed again.
    ok(&mut image, &register(4, 1));
    let fourth = ready(&image, 4);
    ok(&mut image, &fourth);
    let gone = fence(&image, 1);
    ok(&mut image, &gone);
    assert_eq!(replicas(&image), recorded);
    // Two brokers that have applied the same commands have the same image, whatever their own configuration is.
    let copy = snapshot::decode(&snapshot::encode(&image).unwrap()).unwrap();
    assert_eq!(copy, image);
}

/// Both replicas that stay are damaged, so the one that goes keeps leading until one of them is not.
#[test]
fn a_move_does_not_hand_over_to_a_damaged_replica() {
    let mut world = World::new();
    let id = world.ids()[3];
    let before = world.state(id).replicas;
    let goes = before[1];
    world.happen(&Event::Drain { node: goes.get() });
    let moved = world.state(id);
    let [arrives] = moved.adding[..] else { panic!("one replica is added: {moved:?}") };
    for node in [arrives, before[0]] {
        world.report(id, node, ReplicaProblem::Corrupt, None);
    }
    for _round in 0..3 {
        world.grow(id);
        world.happen(&Event::Step);
        let waiting = world.state(id);
        assert_eq!((waiting.leader, &waiting.removing[..]), (Some(goes), &[goes][..]));
        assert_eq!(waiting.in_sync.len(), 3, "nobody is dropped meanwhile");
    }
    world.report(id, arrives, ReplicaProblem::Recovered, None);
    for _round in 0..3 {
        world.grow(id);
        world.happen(&Event::Step);
    }
    let done = world.state(id);
    assert_eq!((done.leader, done.adding.len(), done.removing.len()), (Some(arrives), 0, 0));
    assert!(!done.is_replica(goes));
}
