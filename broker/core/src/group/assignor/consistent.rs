//! Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016), with what members have as an input.
//!
//! Within each class of topics that the same members want, nobody has more than `⌈P/M⌉`. What a member has within the
//! bound stays. The rest, and what nobody has, goes along the ring to the first member that has less than `⌊P/M⌋`, and
//! once there is none, to the first that has less than `⌈P/M⌉`; among equals to one in a rack with a replica. So exactly
//! as many partitions move as must.

use std::cmp::Reverse;

use highwater_protocol::ring::Ring;

use super::{Class, Field};

pub(super) fn assign(field: &mut Field<'_>) {
    let classes = std::mem::take(&mut field.classes);
    for class in &classes {
        assign_class(field, class);
    }
    field.classes = classes;
}

fn assign_class(field: &mut Field<'_>, class: &Class) {
    let (partitions, members) = (class.partitions.len(), class.members.len());
    if members == 0 {
        return;
    }
    let mut room = Room::new(partitions, members);
    release_overflow(field, class, room.bound);
    let mut orphans = Vec::new();
    for &partition in &class.partitions {
        let owner = field.owners.get(partition).copied().flatten();
        match owner.and_then(|owner| class.members.binary_search(&owner).ok()) {
            Some(place) => room.take(place),
            None => orphans.push(partition),
        }
    }
    if orphans.is_empty() {
        return;
    }
    let name = |member: &usize| field.candidates.get(*member).map_or("", |candidate| candidate.name);
    let ring = Ring::new(class.members.clone(), name);
    let racks = field.racks_of(&class.members);
    for partition in orphans {
        let near = field.is_near_any(partition, &racks);
        let best = best_place(field, class, &ring, &room, partition, near);
        let Some(place) = best else { continue };
        room.take(place);
        if let (Some(owner), Some(member)) = (field.owners.get_mut(partition), class.members.get(place)) {
            *owner = Some(*member);
        }
    }
}

/// Whoever has more than the bound gives up what is beyond it, first what has no replica in its rack.
fn release_overflow(field: &mut Field<'_>, class: &Class, bound: usize) {
    let mut has = vec![Vec::new(); class.members.len()];
    for &partition in &class.partitions {
        let owner = field.owners.get(partition).copied().flatten();
        let place = owner.and_then(|owner| class.members.binary_search(&owner).ok());
        if let Some(list) = place.and_then(|place| has.get_mut(place)) {
            list.push(partition);
        }
    }
    for (list, &member) in has.iter_mut().zip(&class.members).filter(|(list, _)| list.len() > bound) {
        list.sort_by_key(|&partition| (Reverse(field.is_near(partition, member)), partition));
        for &partition in list.iter().skip(bound) {
            if let Some(owner) = field.owners.get_mut(partition) {
                *owner = None;
            }
        }
    }
}

fn best_place(
    field: &Field<'_>,
    class: &Class,
    ring: &Ring<usize>,
    room: &Room,
    partition: usize,
    near: bool,
) -> Option<usize> {
    let best_there_is = (u8::from(room.below_floor == 0), u8::from(!near));
    let mut best = None;
    for place in ring.walk_indices(&field.key_of(partition)) {
        let Some(level) = room.level(place) else { continue };
        let member = class.members.get(place).copied()?;
        let rank = (level, u8::from(!(near && field.is_near(partition, member))));
        if best.is_none_or(|(least, _)| rank < least) {
            best = Some((rank, place));
        }
        if rank == best_there_is {
            break;
        }
    }
    best.map(|(_, place)| place)
}

/// How many partitions of a class each member has, and may have.
struct Room {
    loads: Vec<usize>,
    floor: usize,
    bound: usize,
    /// How many have less than the floor.
    below_floor: usize,
}

impl Room {
    fn new(partitions: usize, members: usize) -> Self {
        let floor = partitions / members;
        Self {
            loads: vec![0; members],
            floor,
            bound: partitions.div_ceil(members),
            below_floor: if floor == 0 { 0 } else { members },
        }
    }

    fn take(&mut self, place: usize) {
        if let Some(load) = self.loads.get_mut(place) {
            *load += 1;
            if *load == self.floor {
                self.below_floor -= 1;
            }
        }
    }

    /// 0: it has too little; 1: it may have one more.
    fn level(&self, place: usize) -> Option<u8> {
        match self.loads.get(place) {
            Some(&load) if load < self.floor => Some(0),
            Some(&load) if load < self.bound => Some(1),
            _ => None,
        }
    }
}
