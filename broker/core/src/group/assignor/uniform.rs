//! Loads as even as subscriptions allow, over all topics together.
//!
//! What nobody has goes to who has least; then partitions move from members with more to members with at least two less,
//! if need be over others in between, until no such way is left. That is the most even assignment there is (Harvey,
//! Ladner, Lovász, Tamir 2003), and every move was needed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use super::Field;

pub(super) fn assign(field: &mut Field<'_>) {
    let mut even = Even::new(field);
    even.place_orphans(field);
    while even.move_one(field) {}
}

/// Loads, and what each member has by class.
struct Even {
    loads: Vec<usize>,
    /// By candidate and class: partitions, ascending.
    has: Vec<BTreeMap<usize, Vec<usize>>>,
}

impl Even {
    fn new(field: &Field<'_>) -> Self {
        let mut even = Self {
            loads: vec![0; field.candidates.len()],
            has: vec![BTreeMap::new(); field.candidates.len()],
        };
        for (partition, owner) in field.owners.iter().enumerate() {
            if let Some(owner) = *owner {
                even.give(field, partition, owner);
            }
        }
        even
    }

    fn give(&mut self, field: &Field<'_>, partition: usize, to: usize) {
        let class = field.class_of.get(partition).copied().unwrap_or(0);
        if let Some(has) = self.has.get_mut(to) {
            let list = has.entry(class).or_default();
            let at = list.partition_point(|&before| before < partition);
            list.insert(at, partition);
        }
        if let Some(load) = self.loads.get_mut(to) {
            *load += 1;
        }
    }

    fn load(&self, member: usize) -> usize {
        self.loads.get(member).copied().unwrap_or(0)
    }

    /// First what the fewest want, so that the others can even it out.
    fn place_orphans(&mut self, field: &mut Field<'_>) {
        let mut orphans: Vec<usize> =
            (0..field.partitions.len()).filter(|p| field.owners.get(*p) == Some(&None)).collect();
        let wanted_by = |p: &usize| field.class_of.get(*p).and_then(|class| field.classes.get(*class));
        orphans.sort_by_key(|p| wanted_by(p).map_or(0, |class| class.members.len()));
        for partition in orphans {
            let Some(class) = field.class_of.get(partition).and_then(|class| field.classes.get(*class))
            else {
                continue;
            };
            let rank = |member: &&usize| (self.load(**member), Reverse(field.is_near(partition, **member)));
            let Some(&to) = class.members.iter().min_by_key(rank) else { continue };
            self.give(field, partition, to);
            if let Some(owner) = field.owners.get_mut(partition) {
                *owner = Some(to);
            }
        }
    }

    /// Moves one partition from a member towards one that has at least two less, or says that there is no way.
    fn move_one(&mut self, field: &mut Field<'_>) -> bool {
        let least = self.loads.iter().copied().min().unwrap_or(0);
        let mut from: Vec<usize> = (0..self.loads.len()).filter(|m| self.load(*m) >= least + 2).collect();
        from.sort_by_key(|member| Reverse(self.load(*member)));
        for start in from {
            if let Some(way) = self.way_down(field, start) {
                for (giver, class, taker) in way {
                    self.hand_over(field, giver, class, taker);
                }
                return true;
            }
        }
        false
    }

    /// The shortest way from `start` to a member with at least two less: who gives to whom, in which class.
    fn way_down(&self, field: &Field<'_>, start: usize) -> Option<Vec<(usize, usize, usize)>> {
        let enough = self.load(start).checked_sub(2)?;
        let mut came_from: Vec<Option<(usize, usize)>> = vec![None; self.loads.len()];
        let mut class_seen = vec![false; field.classes.len()];
        let mut queue = VecDeque::from([start]);
        while let Some(giver) = queue.pop_front() {
            let mut best: Option<usize> = None;
            for (&class, list) in self.has.get(giver)? {
                let Some(seen) = class_seen.get_mut(class) else { continue };
                if list.is_empty() || std::mem::replace(seen, true) {
                    continue;
                }
                for &taker in &field.classes.get(class)?.members {
                    if taker == start || came_from.get(taker) != Some(&None) {
                        continue;
                    }
                    if let Some(step) = came_from.get_mut(taker) {
                        *step = Some((giver, class));
                    }
                    queue.push_back(taker);
                    let better = best.is_none_or(|best| self.load(taker) < self.load(best));
                    if self.load(taker) <= enough && better {
                        best = Some(taker);
                    }
                }
            }
            if let Some(mut taker) = best {
                let mut way = Vec::new();
                while let Some((giver, class)) = came_from.get(taker).copied().flatten() {
                    way.push((giver, class, taker));
                    taker = giver;
                }
                return Some(way);
            }
        }
        None
    }

    /// One partition of the class changes hands: the one that is worst placed with the giver, and best with the taker.
    fn hand_over(&mut self, field: &mut Field<'_>, giver: usize, class: usize, taker: usize) {
        let Some(list) = self.has.get_mut(giver).and_then(|has| has.get_mut(&class)) else { return };
        let rank = |p: &usize| (field.is_near(*p, giver), Reverse(field.is_near(*p, taker)), Reverse(*p));
        let Some(partition) = list.iter().copied().min_by_key(rank) else { return };
        list.retain(|kept| *kept != partition);
        if let Some(load) = self.loads.get_mut(giver) {
            *load -= 1;
        }
        self.give(field, partition, taker);
        if let Some(owner) = field.owners.get_mut(partition) {
            *owner = Some(taker);
        }
    }
}
