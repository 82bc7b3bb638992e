//! A group as it will be: each change is a record, and already holds for what is decided next.

use std::collections::BTreeSet;
use std::sync::Arc;

use highwater_protocol::ids::TopicPartition;

use super::assignor::Assignor;
use super::decision::{Event, Now};
use super::membership::{Member, Membership};
use super::record::{Change, Current, Epochs, Record};

/// Changes of one group's membership, in the order in which they are recorded.
///
/// The order matters: what every beginning of the records adds up to has to be a state to go on from. So a member loses
/// what it may own before its name, the generation is raised before it is used, and is said to be assigned last.
pub(super) struct Draft {
    name: Arc<str>,
    pub(super) membership: Membership,
    pub(super) now: Now,
    pub(super) records: Vec<Record>,
    pub(super) events: Vec<Event>,
}

impl Draft {
    pub(super) fn new(name: &Arc<str>, membership: Membership, now: Now) -> Self {
        Self { name: Arc::clone(name), membership, now, records: Vec::new(), events: Vec::new() }
    }

    pub(super) fn push(&mut self, change: Change) {
        self.membership.apply(self.now.mono, &change);
        self.records.push(Record::new(&self.name, change));
    }

    pub(super) const fn group(&self) -> &Arc<str> {
        &self.name
    }

    /// Takes everything from a member, its name last.
    pub(super) fn remove(&mut self, id: &Arc<str>) {
        let Some((_, _, member)) = self.membership.member(id) else { return };
        let (has_current, has_target) = (member.current.is_some(), member.target.is_some());
        if has_current {
            self.push(Change::Current(Arc::clone(id), None));
        }
        if has_target {
            self.push(Change::Target(Arc::clone(id), None));
        }
        self.push(Change::Member(Arc::clone(id), None));
    }

    /// A new generation, for which targets are to be made; a group without members needs none.
    pub(super) fn raise_generation(&mut self, assignor: Assignor) {
        let before = self.membership.epochs;
        let generation = self.membership.generation() + 1;
        let is_empty = self.membership.member_count() == 0;
        let since = before.and_then(|epochs| epochs.empty_since_ms).unwrap_or(self.now.wall.as_millis());
        self.push(Change::Group(Some(Epochs {
            generation,
            assigned: if is_empty { generation } else { before.map_or(0, |epochs| epochs.assigned) },
            assignor,
            empty_since_ms: is_empty.then_some(since),
        })));
    }

    /// Targets are those of the present generation.
    pub(super) fn set_assigned(&mut self) {
        if let Some(epochs) = self.membership.epochs {
            self.push(Change::Group(Some(Epochs { assigned: epochs.generation, ..epochs })));
        }
    }

    /// Gives the member what it can have now. `seen` is what it said: its generation, and what it owns.
    pub(super) fn reconcile(&mut self, id: &Arc<str>, seen: Option<(u32, &BTreeSet<TopicPartition>)>) {
        let Some((_, _, member)) = self.membership.member(id) else { return };
        if let Some(next) = reconciled(&self.membership, id, member, seen) {
            self.push(Change::Current(Arc::clone(id), Some(next)));
        }
    }
}

/// What a member may own after what it said, if that is another thing than before.
///
/// What it was told to give up is only taken from it when it speaks of the very generation in which it was told: what it
/// said before that may have been said before it even had the partition.
pub(super) fn reconciled(
    membership: &Membership,
    id: &str,
    member: &Member,
    seen: Option<(u32, &BTreeSet<TopicPartition>)>,
) -> Option<Current> {
    let current = member.current.as_ref()?;
    let mut next = current.clone();
    if let Some((generation, owned)) = seen
        && (generation == current.generation || cfg!(hw_mutate = "group_release_by_an_old_heartbeat"))
    {
        next.revoking.retain(|partition, _| owned.contains(partition));
    }
    if let Some(target) = member.valid_target(membership.assigned()) {
        if target.generation > current.generation {
            next.generation = target.generation;
            let wanted = |partition: &TopicPartition| target.partitions.binary_search(partition).is_ok();
            let mut all = std::mem::take(&mut next.assigned);
            all.append(&mut next.revoking);
            (next.assigned, next.revoking) = all.into_iter().partition(|(partition, _)| wanted(partition));
        }
        for partition in target.partitions.iter() {
            let owner = membership.owner(*partition);
            let free =
                owner.is_none_or(|owner| **owner == *id) || cfg!(hw_mutate = "group_gives_what_others_own");
            if free && !next.assigned.contains_key(partition) {
                next.assigned.insert(*partition, next.generation);
            }
        }
    }
    (next != *current).then_some(next)
}
