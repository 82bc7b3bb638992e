//! Making the targets of a group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use highwater_protocol::ids::{TopicId, TopicPartition};

use super::assignor::{self, Assignor, Candidate};
use super::decision::Event;
use super::draft::Draft;
use super::membership::Membership;
use super::record::{Change, Subscription, Target};
use super::timers::assign_after;
use super::topics::Topics;

impl Draft {
    /// Makes targets if that is due, unless the last ones are so new that others may be about to come: then a timer
    /// does it.
    pub(super) fn assign_if_due(&mut self, topics: &Topics) {
        if self.membership.is_assignment_due() && assign_after(&self.membership) <= self.now.mono {
            self.assign(topics);
        }
    }

    /// Makes targets, under a new generation if there is none for which it is due. Changes nothing if that is not due
    /// and everybody is to have what it is to have already.
    pub(super) fn assign(&mut self, topics: &Topics) {
        let Some(epochs) = self.membership.epochs else { return };
        let due = self.membership.is_assignment_due();
        let changed = changed_targets(&self.membership, epochs.assignor, topics);
        if changed.is_empty() && !due {
            return;
        }
        if !due {
            self.raise_generation(epochs.assignor);
        }
        let generation = self.membership.generation();
        let moved = moved_partitions(&self.membership, &changed);
        self.events.push(Event::Assigned {
            group: Arc::clone(self.group()),
            generation,
            members: changed.len(),
            moved,
        });
        for (id, partitions) in changed {
            let target = Target { generation, partitions: partitions.into() };
            self.push(Change::Target(id, Some(target)));
        }
        self.set_assigned();
    }
}

/// The members whose targets are to be others, with those.
fn changed_targets(
    membership: &Membership,
    assignor: Assignor,
    topics: &Topics,
) -> Vec<(Arc<str>, Vec<TopicPartition>)> {
    let mut by_subscription: BTreeMap<&Subscription, usize> = BTreeMap::new();
    let mut by_wish: BTreeMap<BTreeSet<TopicId>, usize> = BTreeMap::new();
    let mut candidates = Vec::with_capacity(membership.member_count());
    for (id, profile, member) in membership.members() {
        let wish = *by_subscription.entry(&profile.subscription).or_insert_with_key(|subscription| {
            let next = by_wish.len();
            *by_wish.entry(topics.matching(subscription)).or_insert(next)
        });
        candidates.push(Candidate {
            name: profile.instance_id.as_deref().unwrap_or(id),
            rack: profile.rack.as_deref(),
            wish,
            has: member.target.as_ref().map_or(&[], |target| &*target.partitions),
        });
    }
    let mut wishes = vec![BTreeSet::new(); by_wish.len()];
    for (wish, index) in by_wish {
        if let Some(place) = wishes.get_mut(index) {
            *place = wish;
        }
    }
    let given = assignor::assign(assignor, &candidates, &wishes, topics);
    membership
        .members()
        .zip(given)
        .filter(|((_, _, member), partitions)| {
            let same = member.target.as_ref().is_some_and(|target| *target.partitions == **partitions);
            let valid = member.current.is_none() || member.valid_target(membership.assigned()).is_some();
            !(same && valid)
        })
        .map(|((id, _, _), partitions)| (Arc::clone(id), partitions))
        .collect()
}

/// How many partitions are to go from one member to another.
fn moved_partitions(membership: &Membership, changed: &[(Arc<str>, Vec<TopicPartition>)]) -> usize {
    let from_another = |id: &Arc<str>, partition: &TopicPartition| {
        membership.owner(*partition).is_some_and(|owner| owner != id)
    };
    changed
        .iter()
        .map(|(id, partitions)| partitions.iter().filter(|partition| from_another(id, partition)).count())
        .sum()
}
