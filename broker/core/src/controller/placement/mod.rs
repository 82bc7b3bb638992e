//! Who gets which replicas, and who leads: a proposal from the ring and from what is there now.
//!
//! Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016): a partition walks the ring and takes the
//! first places that have room. What is within the bound stays where it is; only orphans and overflow move. The result
//! is a proposal: what holds is what the controller has recorded.

mod layout;
#[cfg(test)]
mod tests;

use highwater_protocol::ids::{NodeId, TopicPartition};

use layout::Layout;

/// A broker that may get replicas.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The broker.
    pub node: NodeId,
    /// Its failure domain; empty: one of its own.
    pub rack: String,
}

/// A partition as it is placed now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Which.
    pub partition: TopicPartition,
    /// Who has a replica, preferred leader first.
    pub replicas: Vec<NodeId>,
}

/// A partition that is led, and by whom it could be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Led {
    /// Which.
    pub partition: TopicPartition,
    /// Who leads it.
    pub leader: NodeId,
    /// Who could lead it without loss at once; the leader may be among them.
    pub candidates: Vec<NodeId>,
}

/// The most that one of `members` may have of `total`: ⌈1.1 × mean⌉.
#[must_use]
pub const fn bound(total: usize, members: usize) -> usize {
    if members == 0 {
        return 0;
    }
    (total * 11).div_ceil(members * 10)
}

/// The fewest of `total` that one of `members` should lead: ⌊0.9 × mean⌋. A broker that came back leads again.
#[must_use]
pub const fn least(total: usize, members: usize) -> usize {
    if members == 0 {
        return 0;
    }
    total * 9 / (members * 10)
}

/// Places new partitions with `replication` replicas each, beside those in `present`, which stay as they are. The first
/// replica is the preferred leader; they are spread evenly. As many replicas as there are places, if there are fewer places than `replication`.
#[must_use]
pub fn assign_new(
    new: &[TopicPartition],
    replication: usize,
    present: &[Placed],
    places: &[Place],
) -> Vec<Placed> {
    let mut layout = Layout::new(places);
    for placed in present {
        layout.add(placed.partition, &placed.replicas);
    }
    let replication = replication.min(places.len());
    let from = layout.len();
    layout.set_bound(bound(layout.held() + new.len() * replication, places.len()));
    for partition in new {
        let index = layout.add(*partition, &[]);
        layout.fill(index, replication);
    }
    layout.relieve(from);
    layout.share_first_places(from);
    (from..layout.len()).map(|index| layout.placed(index)).collect()
}

/// The smallest plan after which every replica is on one of `places` and no place has more than the bound: the partitions
/// that change, with all their replicas afterwards. A replica that moves takes the rank of the one that it replaces.
#[must_use]
pub fn plan_moves(present: &[Placed], places: &[Place]) -> Vec<Placed> {
    let mut layout = Layout::new(places);
    let wanted = |placed: &Placed| placed.replicas.len().min(places.len());
    layout.set_bound(bound(present.iter().map(wanted).sum(), places.len()));
    for placed in present {
        layout.add(placed.partition, &placed.replicas);
    }
    for (index, placed) in present.iter().enumerate() {
        layout.fill(index, wanted(placed));
    }
    layout.relieve(0);
    let after = (0..layout.len()).map(|index| layout.placed(index));
    after
        .zip(present)
        .filter(|(after, before)| after.replicas != before.replicas)
        .map(|(after, _)| after)
        .collect()
}

/// More replicas for the partitions that `grows` names: `replication` each, those that they have and more. Partitions for
/// which there are too few places are left out.
#[must_use]
pub fn plan_more(
    present: &[Placed],
    grows: impl Fn(TopicPartition) -> bool,
    replication: usize,
    places: &[Place],
) -> Vec<Placed> {
    let mut layout = Layout::new(places);
    for placed in present {
        layout.add(placed.partition, &placed.replicas);
    }
    let growing = |placed: &Placed| grows(placed.partition) && placed.replicas.len() < replication;
    let more: usize = present
        .iter()
        .filter(|placed| growing(placed))
        .map(|placed| replication - placed.replicas.len())
        .sum();
    layout.set_bound(bound(layout.held() + more, places.len()));
    let grown = present.iter().enumerate().filter(|(_, placed)| growing(placed)).map(|(index, placed)| {
        layout.fill(index, replication);
        let after = layout.placed(index);
        (placed, after)
    });
    grown
        .filter(|(before, after)| {
            after.replicas.len() == replication
                && before.replicas.iter().all(|node| after.replicas.contains(node))
        })
        .map(|(_, after)| after)
        .collect()
}

/// Few changes of leaders after which nobody leads more than the bound or less than the least, as far as the candidates
/// allow it.
#[must_use]
pub fn balance_leaders(led: &[Led], places: &[Place]) -> Vec<(TopicPartition, NodeId)> {
    let mut layout = Layout::new(places);
    for led in led {
        layout.add_choice(led.partition, led.leader, &led.candidates);
    }
    layout.even_out(bound(led.len(), places.len()), least(led.len(), places.len()));
    let after = (0..layout.len()).map(|index| layout.placed(index));
    after
        .zip(led)
        .filter_map(|(after, before)| {
            let leader = *after.replicas.first()?;
            (leader != before.leader).then_some((after.partition, leader))
        })
        .collect()
}
