//! Neighbouring partitions of each topic to each member.
//!
//! Members keep their order: by the lowest number that they have, new ones last. So topics with as many partitions and
//! the same members are shared out alike, and partitions of the same number meet at one member.

use std::collections::BTreeMap;

use super::Field;

pub(super) fn assign(field: &mut Field<'_>) {
    let order: Vec<(u32, &str)> = field
        .candidates
        .iter()
        .map(|candidate| {
            let lowest = candidate.has.iter().map(|partition| partition.partition.get()).min();
            (lowest.unwrap_or(u32::MAX), candidate.name)
        })
        .collect();
    let mut by_topic: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (index, partition) in field.partitions.iter().enumerate() {
        by_topic.entry(partition.topic_id).or_default().push(index);
    }
    let mut in_order: Vec<Vec<usize>> = field.classes.iter().map(|class| class.members.clone()).collect();
    for members in &mut in_order {
        members.sort_by_key(|member| order.get(*member));
    }
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
