//! Assignors against what is required of them, computed in another way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use highwater_protocol::ids::{PartitionId, TopicId, TopicPartition};

use super::{Assignor, Candidate, assign};
use crate::group::topics::{Topic, Topics};

/// Members by name, each with its rack, its wish and what it has.
#[derive(Debug, Clone, Default)]
struct Group {
    members: BTreeMap<String, Member>,
    wishes: Vec<BTreeSet<TopicId>>,
    topics: Topics,
}

#[derive(Debug, Clone, Default)]
struct Member {
    rack: Option<String>,
    wish: usize,
    has: Vec<TopicPartition>,
}

fn topic(number: u128, partitions: u32, racks: Vec<Vec<Arc<str>>>) -> Topic {
    let name = Arc::from(format!("t{number}"));
    Topic { id: TopicId(number), name, partitions, racks, internal: false }
}

impl Group {
    fn of(partitions: &[u32], members: usize) -> Self {
        let mut topics = Topics::default();
        for (number, partitions) in partitions.iter().enumerate() {
            topics.insert(topic(number as u128, *partitions, Vec::new()));
        }
        let wishes = vec![(0..partitions.len() as u128).map(TopicId).collect()];
        let members = (0..members).map(|number| (format!("m{number:03}"), Member::default())).collect();
        Self { members, wishes, topics }
    }

    /// Assigns, checks what every answer has to be, and says how many partitions moved.
    fn assign(&mut self, assignor: Assignor) -> usize {
        let given = self.given(assignor);
        let mut owners = BTreeSet::new();
        for (member, list) in self.members.values().zip(&given) {
            assert!(list.is_sorted());
            for partition in list {
                assert!(self.wishes[member.wish].contains(&partition.topic_id), "unwanted");
                assert!(owners.insert(*partition), "twice");
            }
        }
        let wanted = self.members.values().flat_map(|member| &self.wishes[member.wish]);
        let all: BTreeSet<TopicPartition> =
            wanted.filter_map(|id| self.topics.get(*id)).flat_map(Topic::partition_ids).collect();
        assert_eq!(owners, all, "incomplete");
        let mut moved = 0;
        for (member, list) in self.members.values_mut().zip(given) {
            moved += list.iter().filter(|partition| !member.has.contains(partition)).count();
            member.has = list;
        }
        assert_eq!(self.given(assignor), self.has(), "its own answer is no rest");
        moved
    }

    fn given(&self, assignor: Assignor) -> Vec<Vec<TopicPartition>> {
        let candidates: Vec<Candidate<'_>> = self
            .members
            .iter()
            .map(|(name, member)| Candidate {
                name,
                rack: member.rack.as_deref(),
                wish: member.wish,
                has: &member.has,
            })
            .collect();
        assign(assignor, &candidates, &self.wishes, &self.topics)
    }

    fn has(&self) -> Vec<Vec<TopicPartition>> {
        self.members.values().map(|member| member.has.clone()).collect()
    }

    fn loads(&self) -> Vec<usize> {
        self.members.values().map(|member| member.has.len()).collect()
    }
}

/// The fewest moves that give everybody at most `bounds[i]`, by trying every assignment.
fn fewest_moves(partitions: usize, has: &[BTreeSet<usize>], bounds: &[usize]) -> usize {
    fn go(
        partition: usize,
        all: usize,
        has: &[BTreeSet<usize>],
        room: &mut [usize],
        moved: usize,
        best: &mut usize,
    ) {
        if moved >= *best {
            return;
        }
        if partition == all {
            *best = moved;
            return;
        }
        for member in 0..room.len() {
            if room[member] > 0 {
                room[member] -= 1;
                let moves = usize::from(!has[member].contains(&partition));
                go(partition + 1, all, has, room, moved + moves, best);
                room[member] += 1;
            }
        }
    }
    let mut best = usize::MAX;
    go(0, partitions, has, &mut bounds.to_vec(), 0, &mut best);
    best
}

/// Every way in which exactly `extra` of the members may have one more.
fn bounds_of(members: usize, floor: usize, extra: usize) -> Vec<Vec<usize>> {
    (0u32..1 << members)
        .filter(|set| set.count_ones() as usize == extra)
        .map(|set| (0..members).map(|member| floor + (set >> member & 1) as usize).collect())
        .collect()
}

fn sets(has: &[Vec<TopicPartition>]) -> Vec<BTreeSet<usize>> {
    has.iter().map(|list| list.iter().map(|p| p.partition.get() as usize).collect()).collect()
}

/// Must-show, in the small: against the optimum found by trying everything.
#[test]
fn moves_are_the_fewest_of_all_assignments() {
    let mut checked = 0;
    for partitions in 1..=8u32 {
        for from in 1..=4usize {
            for to in 1..=4usize {
                for assignor in [Assignor::Consistent, Assignor::Uniform] {
                    let mut group = Group::of(&[partitions], from);
                    group.assign(assignor);
                    while group.members.len() < to {
                        group.members.insert(format!("n{:03}", group.members.len()), Member::default());
                    }
                    while group.members.len() > to {
                        group.members.pop_first();
                    }
                    let before = sets(&group.has());
                    let moved = group.assign(assignor);
                    let all = partitions as usize;
                    let least = if assignor == Assignor::Consistent {
                        fewest_moves(all, &before, &vec![all.div_ceil(to); to])
                    } else {
                        let bounds = bounds_of(to, all / to, all % to);
                        bounds.iter().map(|bounds| fewest_moves(all, &before, bounds)).min().unwrap()
                    };
                    assert_eq!(moved, least, "{assignor:?}: {partitions} partitions, {from} to {to} members");
                    checked += 1;
                }
            }
        }
    }
    assert_eq!(checked, 8 * 4 * 4 * 2);
}

/// Must-show: a join or a leave among 12 members moves exactly what does not fit the bound `⌈P/M⌉` or has no owner.
#[test]
fn a_join_or_leave_among_twelve_moves_only_what_has_to() {
    let mut moves = (0, 0);
    for partitions in [1, 11, 12, 13, 47, 48, 49, 100, 480, 1000u32] {
        for gone in 0..12 {
            let mut group = Group::of(&[partitions], 12);
            group.assign(Assignor::Consistent);
            assert!(group.loads().iter().all(|load| *load <= partitions.div_ceil(12) as usize));
            let orphans = group.members.remove(&format!("m{gone:03}")).unwrap().has.len();
            let left = group.assign(Assignor::Consistent);
            assert_eq!(left, orphans, "{partitions} partitions, {gone} leaves");
            // It comes back: nobody has to give up more than what is beyond the bound.
            let bound = partitions.div_ceil(12) as usize;
            let overflow: usize = group.loads().iter().map(|load| load.saturating_sub(bound)).sum();
            group.members.insert("z".to_owned(), Member::default());
            let joined = group.assign(Assignor::Consistent);
            assert_eq!(joined, overflow, "{partitions} partitions, one joins");
            assert!(group.loads().iter().all(|load| *load <= bound));
            moves = (moves.0 + left, moves.1 + joined);
        }
    }
    println!("moved by leaving: {}, by joining: {}, both as few as possible", moves.0, moves.1);
}

#[test]
fn a_first_assignment_is_even() {
    for assignor in Assignor::ALL {
        for (partitions, members) in [(48, 13), (48, 12), (7, 3), (1, 5), (1000, 7)] {
            let mut group = Group::of(&[partitions], members);
            group.assign(assignor);
            let loads = group.loads();
            let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
            assert!(most - least <= 1, "{assignor:?}: {partitions} for {members}: {loads:?}");
        }
    }
}

/// `consistent` keeps the bound and no more: a member that comes when all are within it stays idle, because everything that
/// it could be given would have to move.
#[test]
fn consistent_moves_nothing_for_a_member_that_the_bound_does_not_need() {
    let mut group = Group::of(&[48], 12);
    group.assign(Assignor::Consistent);
    group.members.insert("z".to_owned(), Member::default());
    assert_eq!(group.assign(Assignor::Consistent), 0);
    // `uniform` does move: three are too many with four for thirteen.
    assert_eq!(group.assign(Assignor::Uniform), 3);
    assert!(group.loads().iter().all(|load| (3..=4).contains(load)));
}

#[test]
fn ranges_are_neighbours_and_meet_across_topics() {
    let mut group = Group::of(&[10, 10, 4], 3);
    for members in [3, 2, 5] {
        while group.members.len() < members {
            group.members.insert(format!("n{:03}", group.members.len()), Member::default());
        }
        while group.members.len() > members {
            group.members.pop_last();
        }
        group.assign(Assignor::Range);
        for member in group.members.values() {
            let of = |topic: u128| -> Vec<u32> {
                let mine = member.has.iter().filter(|p| p.topic_id == TopicId(topic));
                mine.map(|p| p.partition.get()).collect()
            };
            assert_eq!(of(0), of(1), "the same numbers of topics of one size");
            assert!(of(0).windows(2).all(|pair| pair[0] + 1 == pair[1]), "neighbours");
        }
    }
}

/// Different wishes: loads that no move, nor any chain of moves, can even out further.
#[test]
fn uniform_evens_out_over_members_in_between() {
    let mut group = Group::of(&[4, 4], 0);
    group.wishes = vec![
        BTreeSet::from([TopicId(0)]),
        BTreeSet::from([TopicId(0), TopicId(1)]),
        BTreeSet::from([TopicId(1)]),
    ];
    // a has all of t0, c nothing: b has to give t1 to c and take t0 from a.
    let all = |topic: u128| -> Vec<_> {
        (0..4).map(|p| TopicPartition::new(TopicId(topic), PartitionId(p))).collect()
    };
    group.members.insert("a".to_owned(), Member { wish: 0, has: all(0), rack: None });
    group.members.insert("b".to_owned(), Member { wish: 1, has: all(1), rack: None });
    group.members.insert("c".to_owned(), Member { wish: 2, has: Vec::new(), rack: None });
    group.assign(Assignor::Uniform);
    let mut loads = group.loads();
    loads.sort_unstable();
    assert_eq!(loads, [2, 3, 3]);
    // The bound of `consistent` is by class: each topic evenly among those who want it.
    let moved = group.assign(Assignor::Consistent);
    assert!(moved <= 2, "{moved}");
}

#[test]
fn racks_are_kept_where_that_costs_no_balance_and_no_move() {
    let racks: Vec<Vec<Arc<str>>> = (0..12).map(|p| vec![Arc::from(["a", "b", "c"][p % 3])]).collect();
    for assignor in [Assignor::Consistent, Assignor::Uniform] {
        let mut group = Group::of(&[], 0);
        group.topics.insert(topic(0, 12, racks.clone()));
        group.wishes = vec![BTreeSet::from([TopicId(0)])];
        for (name, rack) in [("x", "a"), ("y", "b"), ("z", "c")] {
            group
                .members
                .insert(name.to_owned(), Member { rack: Some(rack.to_owned()), ..Member::default() });
        }
        group.assign(assignor);
        for member in group.members.values() {
            let rack = member.rack.as_deref().unwrap();
            assert_eq!(member.has.len(), 4);
            let near = |p: &&TopicPartition| *racks[p.partition.get() as usize][0] == *rack;
            assert_eq!(
                member.has.iter().filter(near).count(),
                4,
                "{assignor:?}: {rack} has {:?}",
                member.has
            );
        }
    }
}

/// Many random changes, one after another, with members that want different things.
#[test]
fn every_answer_is_complete_and_rests() {
    let mut state = 7u64;
    let mut dice = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    for assignor in Assignor::ALL {
        let mut group = Group::of(&[5, 9, 1, 16], 0);
        group.wishes = vec![
            (0..4).map(TopicId).collect(),
            BTreeSet::from([TopicId(1)]),
            BTreeSet::from([TopicId(1), TopicId(3)]),
            BTreeSet::from([TopicId(99)]),
        ];
        for round in 0..300 {
            match dice(3) {
                0 if group.members.len() > 1 => {
                    let at = dice(group.members.len() as u64) as usize;
                    let gone = group.members.keys().nth(at).unwrap().clone();
                    group.members.remove(&gone);
                }
                1 => {
                    let partitions = 1 + dice(20) as u32;
                    group.topics.insert(topic(u128::from(dice(4)), partitions, Vec::new()));
                }
                _ => {
                    let member = Member { wish: dice(4) as usize, ..Member::default() };
                    group.members.insert(format!("m{round}"), member);
                }
            }
            group.assign(assignor);
        }
    }
}
