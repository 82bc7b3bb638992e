//! Neighbouring partitions of each topic to each member.
//!
//! Members keep their order: by the lowest number that they have, new ones last. So topics with as many partitions and
//! the same members are shared out alike, and partitions of the same number meet at one member.

use std::collections::BTreeMap;

use super::Field;

pub(super) fn assign(field: &mut Field<'_>) {
    let mut by_topic: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (index, partition) in field.partitions.iter().enumerate() {
        by_topic.entry(partition.topic_id).or_default().push(index);
    }
    let in_order: Vec<Vec<usize>> = (0..field.classes.len()).map(|class| in_order(field, class)).collect();
    for partitions in by_topic.values() {
        let class = partitions.first().and_then(|first| field.class_of.get(*first));
        let Some(members) = class.and_then(|class| in_order.get(*class)) else { continue };
        if members.is_empty() {
            continue;
        }
        let (share, more) = (partitions.len() / members.len(), partitions.len() % members.len());
        let mut rest = partitions.as_slice();
        for (place, member) in members.iter().enumerate() {
            let (taken, after) = rest.split_at(share + usize::from(place < more));
            rest = after;
            for partition in taken {
                if let Some(owner) = field.owners.get_mut(*partition) {
                    *owner = Some(*member);
                }
            }
        }
    }
}

/// The members of a class in the order in which they have its partitions.
fn in_order(field: &Field<'_>, class: usize) -> Vec<usize> {
    let Some(class) = field.classes.get(class) else { return Vec::new() };
    let mut lowest: BTreeMap<usize, u32> = BTreeMap::new();
    for &partition in &class.partitions {
        let owner = field.owners.get(partition).copied().flatten();
        if let (Some(owner), Some(partition)) = (owner, field.partitions.get(partition)) {
            let lowest = lowest.entry(owner).or_insert(u32::MAX);
            *lowest = partition.partition.get().min(*lowest);
        }
    }
    let mut members = class.members.clone();
    members.sort_by_key(|member| {
        let name = field.candidates.get(*member).map_or("", |candidate| candidate.name);
        (lowest.get(member).copied().unwrap_or(u32::MAX), name)
    });
    members
}
