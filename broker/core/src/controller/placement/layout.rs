//! Partitions on places, while a proposal is worked out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use highwater_protocol::ids::{NodeId, TopicPartition};
use highwater_protocol::key_hash::key_hash;
use highwater_protocol::ring::Ring;

use super::{Place, Placed, bound, least};

/// A replica's place: one of ours, or a broker that takes none any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seat {
    On(usize),
    /// An orphan: keeps its rank until somebody takes it.
    Gone,
}

#[derive(Debug)]
struct Entry {
    partition: TopicPartition,
    seats: Vec<Seat>,
    /// Where its one seat may go; absent: anywhere but where it is already.
    choices: Option<Vec<usize>>,
}

/// What is where. Everything in it is ordered, so that the same input gives the same proposal everywhere.
#[derive(Debug)]
pub(super) struct Layout {
    nodes: Vec<NodeId>,
    racks: Vec<usize>,
    index_of: BTreeMap<NodeId, usize>,
    ring: Ring<usize>,
    entries: Vec<Entry>,
    /// Entry and rank of the replicas on each place.
    on: Vec<BTreeSet<(usize, usize)>>,
    bound: usize,
}

impl Layout {
    pub(super) fn new(places: &[Place]) -> Self {
        let mut places: Vec<&Place> = places.iter().collect();
        places.sort();
        let nodes: Vec<NodeId> = places.iter().map(|place| place.node).collect();
        let mut rack_numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut racks = Vec::with_capacity(places.len());
        for (index, place) in places.iter().enumerate() {
            // A broker without a rack fails on its own.
            let number = places.len() + index;
            let next = rack_numbers.len();
            racks.push(if place.rack.is_empty() {
                number
            } else {
                *rack_numbers.entry(&place.rack).or_insert(next)
            });
        }
        let index_of = nodes.iter().enumerate().map(|(index, node)| (*node, index)).collect();
        let ring = Ring::new((0..nodes.len()).collect(), |index: &usize| nodes[*index].get().to_le_bytes());
        Self {
            on: vec![BTreeSet::new(); nodes.len()],
            nodes,
            racks,
            index_of,
            ring,
            entries: Vec::new(),
            bound: 0,
        }
    }

    pub(super) fn set_bound(&mut self, bound: usize) {
        self.bound = bound;
    }

    /// How many partitions there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Replicas that are on places.
    pub(super) fn held(&self) -> usize {
        self.on.iter().map(BTreeSet::len).sum()
    }

    /// Adds a partition as it is, and returns its index.
    pub(super) fn add(&mut self, partition: TopicPartition, replicas: &[NodeId]) -> usize {
        let seats: Vec<Seat> = replicas
            .iter()
            .map(|node| self.index_of.get(node).map_or(Seat::Gone, |index| Seat::On(*index)))
            .collect();
        for (rank, seat) in seats.iter().enumerate() {
            if let Seat::On(index) = seat {
                self.on[*index].insert((self.entries.len(), rank));
            }
        }
        self.entries.push(Entry { partition, seats, choices: None });
        self.entries.len() - 1
    }

    /// Adds a partition with one seat that can go to some places only.
    pub(super) fn add_choice(&mut self, partition: TopicPartition, at: NodeId, choices: &[NodeId]) {
        let index = self.add(partition, &[at]);
        let choices = choices.iter().filter_map(|node| self.index_of.get(node).copied()).collect();
        self.entries[index].choices = Some(choices);
        // Whoever leads although it is no place any more gives up its seat to the first that could.
        if self.entries[index].seats == [Seat::Gone] {
            let first = self.walk(index).find(|place| self.may_sit(index, *place));
            if let Some(first) = first {
                self.sit(index, 0, first);
            }
        }
    }

    /// Seats orphans, and more replicas up to `wanted`; orphans beyond that go.
    pub(super) fn fill(&mut self, entry: usize, wanted: usize) {
        let held = self.entries[entry].seats.iter().filter(|seat| **seat != Seat::Gone).count();
        let mut orphans_kept = wanted.saturating_sub(held);
        let mut seats = std::mem::take(&mut self.entries[entry].seats);
        self.lift(entry, &seats);
        seats.retain(|seat| {
            *seat != Seat::Gone || {
                let keep = orphans_kept > 0;
                orphans_kept -= usize::from(keep);
                keep
            }
        });
        seats.resize(seats.len().max(wanted), Seat::Gone);
        self.put(entry, seats);
        for rank in 0..self.entries[entry].seats.len() {
            if self.entries[entry].seats[rank] == Seat::Gone
                && let Some(place) = self.choose(entry)
            {
                self.sit(entry, rank, place);
            }
        }
    }

    /// Moves replicas of the entries from `movable` on, from places over the bound to places with room, along the shortest
    /// chain of moves each.
    pub(super) fn relieve(&mut self, movable: usize) {
        for place in 0..self.nodes.len() {
            while self.on[place].len() > self.bound {
                // A chain that keeps replicas in different racks, else any.
                let chain = self.chain(&[place], movable, true);
                let Some(chain) = chain.or_else(|| self.chain(&[place], movable, false)) else { break };
                self.carry_out(chain);
            }
        }
    }

    fn carry_out(&mut self, chain: Vec<(usize, usize, usize)>) {
        for (entry, rank, to) in chain {
            self.leave(entry, rank);
            self.sit(entry, rank, to);
        }
    }

    /// Moves replicas of all entries until no place has more than `most` and none fewer than `fewest`, as far as that can be.
    pub(super) fn even_out(&mut self, most: usize, fewest: usize) {
        self.set_bound(most);
        self.relieve(0);
        self.set_bound(fewest);
        loop {
            let mut givers: Vec<usize> =
                (0..self.nodes.len()).filter(|place| self.on[*place].len() > fewest).collect();
            givers.sort_by_key(|place| std::cmp::Reverse(self.on[*place].len()));
            let Some(chain) = self.chain(&givers, 0, false) else { break };
            self.carry_out(chain);
        }
    }

    /// Sees to it that the entries from `from` on come first everywhere equally often, and that with them no place comes
    /// first in more of all entries than the bound, or in fewer than the least.
    pub(super) fn share_first_places(&mut self, from: usize) {
        let (new, places) = (self.len() - from, self.nodes.len().max(1));
        self.share_first_places_of(from, from, new.div_ceil(places), new / places);
        let all = self.len();
        self.share_first_places_of(0, from, bound(all, places), least(all, places));
    }

    /// The entries from `counted` on count, those from `from` on can change.
    fn share_first_places_of(&mut self, counted: usize, from: usize, most: usize, fewest: usize) {
        let places: Vec<Place> =
            self.nodes.iter().map(|node| Place { node: *node, rack: String::new() }).collect();
        let mut firsts = Self::new(&places);
        for index in counted..self.len() {
            let placed = self.placed(index);
            let Some(first) = placed.replicas.first() else { continue };
            let choices = if index < from { std::slice::from_ref(first) } else { &placed.replicas[..] };
            firsts.add_choice(placed.partition, *first, choices);
        }
        firsts.even_out(most, fewest);
        let chosen: BTreeMap<TopicPartition, usize> = firsts
            .entries
            .iter()
            .filter_map(|entry| match entry.seats.first() {
                Some(Seat::On(index)) => Some((entry.partition, *index)),
                _ => None,
            })
            .collect();
        for index in from..self.len() {
            let mut seats = std::mem::take(&mut self.entries[index].seats);
            self.lift(index, &seats);
            let first = chosen.get(&self.entries[index].partition).map(|place| Seat::On(*place));
            if let Some(rank) = first.and_then(|first| seats.iter().position(|seat| *seat == first)) {
                seats.swap(0, rank);
            }
            self.put(index, seats);
        }
    }

    /// A partition with its replicas.
    pub(super) fn placed(&self, entry: usize) -> Placed {
        let entry = &self.entries[entry];
        let on = |seat: &Seat| match seat {
            Seat::On(index) => Some(self.nodes[*index]),
            Seat::Gone => None,
        };
        Placed { partition: entry.partition, replicas: entry.seats.iter().filter_map(on).collect() }
    }

    fn sit(&mut self, entry: usize, rank: usize, place: usize) {
        self.entries[entry].seats[rank] = Seat::On(place);
        self.on[place].insert((entry, rank));
    }

    fn leave(&mut self, entry: usize, rank: usize) {
        if let Seat::On(place) = std::mem::replace(&mut self.entries[entry].seats[rank], Seat::Gone) {
            self.on[place].remove(&(entry, rank));
        }
    }

    /// Takes all seats of an entry off their places, before ranks change.
    fn lift(&mut self, entry: usize, seats: &[Seat]) {
        for (rank, seat) in seats.iter().enumerate() {
            if let Seat::On(place) = seat {
                self.on[*place].remove(&(entry, rank));
            }
        }
    }

    fn put(&mut self, entry: usize, seats: Vec<Seat>) {
        for (rank, seat) in seats.iter().enumerate() {
            if let Seat::On(place) = seat {
                self.on[*place].insert((entry, rank));
            }
        }
        self.entries[entry].seats = seats;
    }

    /// The first place on the ring with room, in a rack of its own if there is one.
    fn choose(&self, entry: usize) -> Option<usize> {
        let free = || self.walk(entry).filter(|place| self.may_sit(entry, *place));
        let roomy = |place: &usize| self.on[*place].len() < self.bound;
        free()
            .find(|place| roomy(place) && !self.shares_rack(entry, *place, None))
            .or_else(|| free().find(roomy))
            // No room anywhere: the least loaded; a chain of moves may make up for it.
            .or_else(|| free().min_by_key(|place| self.on[*place].len()))
    }

    fn walk(&self, entry: usize) -> impl Iterator<Item = usize> + '_ {
        self.ring.walk_indices(&self.key(entry)).collect::<Vec<_>>().into_iter()
    }

    fn key(&self, entry: usize) -> [u8; 20] {
        let TopicPartition { topic_id, partition } = self.entries[entry].partition;
        let mut key = [0; 20];
        key[..16].copy_from_slice(&topic_id.to_bytes());
        key[16..].copy_from_slice(&partition.get().to_le_bytes());
        key
    }

    /// Every place once, from a place that depends on the entry: what a walk on the ring does, at no cost.
    fn rotation(&self, entry: usize) -> impl Iterator<Item = usize> + use<> {
        let count = self.nodes.len();
        let start = usize::try_from(key_hash(&self.key(entry)) % (count as u64).max(1)).unwrap_or_default();
        (0..count).map(move |step| (start + step) % count)
    }

    fn may_sit(&self, entry: usize, place: usize) -> bool {
        let Entry { seats, choices, .. } = &self.entries[entry];
        !seats.contains(&Seat::On(place)) && choices.as_ref().is_none_or(|choices| choices.contains(&place))
    }

    /// Whether another replica than the one of rank `except` is in the same rack.
    fn shares_rack(&self, entry: usize, place: usize, except: Option<usize>) -> bool {
        self.entries[entry].seats.iter().enumerate().any(|(rank, seat)| match seat {
            Seat::On(other) => Some(rank) != except && self.racks[*other] == self.racks[place],
            Seat::Gone => false,
        })
    }

    /// The shortest chain of moves that takes one replica from one of `starts` and adds one to a place with room (breadth
    /// first over places).
    fn chain(
        &self,
        starts: &[usize],
        movable: usize,
        keep_racks: bool,
    ) -> Option<Vec<(usize, usize, usize)>> {
        let mut came_by: Vec<Option<(usize, usize, usize)>> = vec![None; self.nodes.len()];
        let mut queue: VecDeque<usize> = starts.iter().copied().collect();
        while let Some(from) = queue.pop_front() {
            for (entry, rank) in self.on[from].range((movable, 0)..) {
                for to in self.rotation(*entry) {
                    let racks_kept = !keep_racks
                        || !self.shares_rack(*entry, to, Some(*rank))
                        || self.shares_rack(*entry, from, Some(*rank));
                    if starts.contains(&to)
                        || came_by[to].is_some()
                        || !self.may_sit(*entry, to)
                        || !racks_kept
                    {
                        continue;
                    }
                    came_by[to] = Some((from, *entry, *rank));
                    if self.on[to].len() < self.bound {
                        return Some(trace(&came_by, to));
                    }
                    queue.push_back(to);
                }
            }
        }
        None
    }
}

/// The moves that lead to `to`, the last one first, so that no place is ever fuller than it has to be.
fn trace(came_by: &[Option<(usize, usize, usize)>], to: usize) -> Vec<(usize, usize, usize)> {
    let mut moves = Vec::new();
    let mut at = to;
    // Nothing comes to a start.
    while let Some((from, entry, rank)) = came_by[at] {
        moves.push((entry, rank, at));
        at = from;
    }
    moves
}
