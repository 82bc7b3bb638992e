//! What has to be true of a group, said a second time and without the code under test.

use std::collections::{BTreeMap, BTreeSet};

use highwater_broker_core::group::record::{Change, Record};
use highwater_broker_core::group::topics::Topics;
use highwater_protocol::ids::TopicPartition;

/// What the records of a group add up to, member by member.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// What each member wants: names and pattern.
    pub(crate) wants: BTreeMap<String, (Vec<String>, Option<String>)>,
    pub(crate) targets: BTreeMap<String, BTreeSet<TopicPartition>>,
    /// What each may own, with what it gives up.
    pub(crate) owns: BTreeMap<String, BTreeSet<TopicPartition>>,
    /// The generation in which each joined.
    pub(crate) joined: BTreeMap<String, u32>,
    pub(crate) positions: BTreeMap<TopicPartition, u64>,
}

impl Seen {
    pub(crate) fn of(records: impl Iterator<Item = Record>) -> Self {
        let mut seen = Self::default();
        for record in records {
            match record.change {
                Change::Group(_) => {}
                Change::Member(id, profile) => {
                    let profile = profile.expect("a state has no tombstones");
                    let names = profile.subscription.topics.iter().map(ToString::to_string).collect();
                    let pattern = profile.subscription.pattern.as_deref().map(ToOwned::to_owned);
                    seen.wants.insert(id.to_string(), (names, pattern));
                    seen.joined.insert(id.to_string(), profile.joined);
                }
                Change::Target(id, target) => {
                    let partitions = target.unwrap().partitions.iter().copied().collect();
                    seen.targets.insert(id.to_string(), partitions);
                }
                Change::Current(id, current) => {
                    let current = current.unwrap();
                    let all = current.assigned.into_keys().chain(current.revoking.into_keys());
                    seen.owns.insert(id.to_string(), all.collect());
                }
                Change::Position(partition, position) => {
                    seen.positions.insert(partition, position.unwrap().offset.get());
                }
            }
        }
        seen
    }

    /// The partitions that a member wants.
    pub(crate) fn wanted_by(
        &self,
        member: &str,
        topics: &Topics,
        names: &[&str],
    ) -> BTreeSet<TopicPartition> {
        let (listed, pattern) = &self.wants[member];
        let prefix = pattern.as_deref().map(|pattern| pattern.trim_end_matches('*'));
        let wanted = |name: &&&str| {
            listed.iter().any(|listed| listed == **name)
                || prefix.is_some_and(|prefix| name.starts_with(prefix))
        };
        names
            .iter()
            .filter(wanted)
            .filter_map(|name| topics.named(name))
            .flat_map(|topic| (0..topic.partitions).map(|p| TopicPartition::new(topic.id, p.into())))
            .collect()
    }
}

/// Partitions by who wants them: those in one class are shared by the same members.
pub(crate) fn classes(
    wanted: &BTreeMap<String, BTreeSet<TopicPartition>>,
) -> BTreeMap<BTreeSet<String>, BTreeSet<TopicPartition>> {
    let mut wanted_by: BTreeMap<TopicPartition, BTreeSet<String>> = BTreeMap::new();
    for (member, partitions) in wanted {
        for partition in partitions {
            wanted_by.entry(*partition).or_default().insert(member.clone());
        }
    }
    let mut classes: BTreeMap<BTreeSet<String>, BTreeSet<TopicPartition>> = BTreeMap::new();
    for (partition, members) in wanted_by {
        classes.entry(members).or_default().insert(partition);
    }
    classes
}

/// Complete, disjoint, wanted.
pub(crate) fn check_complete(
    wanted: &BTreeMap<String, BTreeSet<TopicPartition>>,
    given: &BTreeMap<String, BTreeSet<TopicPartition>>,
) -> Result<(), String> {
    let mut owners: BTreeMap<TopicPartition, &str> = BTreeMap::new();
    for (member, partitions) in given {
        let unwanted =
            partitions.iter().find(|p| !wanted.get(member).is_some_and(|wanted| wanted.contains(p)));
        if let Some(partition) = unwanted {
            return Err(format!("{member} has {partition}, which it does not want"));
        }
        for partition in partitions {
            if let Some(other) = owners.insert(*partition, member) {
                return Err(format!("{partition} is with {member} and with {other}"));
            }
        }
    }
    let all = wanted.values().flatten().collect::<BTreeSet<_>>();
    match all.into_iter().find(|partition| !owners.contains_key(partition)) {
        Some(partition) => Err(format!("nobody has {partition}")),
        None => Ok(()),
    }
}

/// Nobody has more than `⌈P/M⌉` of a class.
pub(crate) fn check_bound(
    wanted: &BTreeMap<String, BTreeSet<TopicPartition>>,
    given: &BTreeMap<String, BTreeSet<TopicPartition>>,
) -> Result<(), String> {
    for (members, partitions) in classes(wanted) {
        let bound = partitions.len().div_ceil(members.len());
        for member in &members {
            let has = given.get(member).map_or(0, |has| has.intersection(&partitions).count());
            if has > bound {
                return Err(format!(
                    "{member} has {has} of a class of {}, more than {bound}",
                    partitions.len()
                ));
            }
        }
    }
    Ok(())
}

/// How many partitions have to go to another member than before, or to a first one, at the least: of each class everybody
/// can keep as many as the bound allows, and no more.
pub(crate) fn least_moves(
    wanted: &BTreeMap<String, BTreeSet<TopicPartition>>,
    before: &BTreeMap<String, BTreeSet<TopicPartition>>,
) -> usize {
    classes(wanted)
        .into_iter()
        .map(|(members, partitions)| {
            let bound = partitions.len().div_ceil(members.len());
            let kept = |member: &String| {
                before.get(member).map_or(0, |had| had.intersection(&partitions).count()).min(bound)
            };
            partitions.len() - members.iter().map(kept).sum::<usize>()
        })
        .sum()
}

/// How many partitions have another owner than before, or a first one.
pub(crate) fn moves(
    before: &BTreeMap<String, BTreeSet<TopicPartition>>,
    after: &BTreeMap<String, BTreeSet<TopicPartition>>,
) -> usize {
    let none = BTreeSet::new();
    after.iter().map(|(member, has)| has.difference(before.get(member).unwrap_or(&none)).count()).sum()
}
