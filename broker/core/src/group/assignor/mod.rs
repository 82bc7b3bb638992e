//! Who is to have which partition.
//!
//! An assignor is a function of who is there, what they want, what they have, and the topics. Whatever it answers is
//! complete (every partition that somebody wants has an owner), disjoint (one owner), and only given to who wants it.
//! Given its own answer as what members have, it gives the same answer again.

mod consistent;
mod range;
#[cfg(test)]
mod tests;
mod uniform;

use std::collections::{BTreeMap, BTreeSet};

use highwater_protocol::ids::{PartitionId, TopicId, TopicPartition};

use super::topics::{Topic, Topics};

/// How the partitions of a group are assigned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Assignor {
    /// Consistent hashing with bounded loads: nobody has more than `⌈P/M⌉`, and nothing moves that need not for that.
    #[default]
    Consistent,
    /// Neighbouring partitions of a topic to each member; the same numbers of equally large topics to the same one.
    Range,
    /// Loads differ by one at most where subscriptions allow, with the fewest moves that reach it.
    Uniform,
}

impl Assignor {
    /// Every assignor.
    pub const ALL: [Self; 3] = [Self::Consistent, Self::Range, Self::Uniform];

    /// The name that users write.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Consistent => "consistent",
            Self::Range => "range",
            Self::Uniform => "uniform",
        }
    }

    /// The assignor of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|assignor| assignor.name() == name)
    }

    /// Its number in records.
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Consistent => 1,
            Self::Range => 2,
            Self::Uniform => 3,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|assignor| assignor.code() == code)
    }
}

/// A member that is to be given partitions.
#[derive(Debug, Clone)]
pub(super) struct Candidate<'a> {
    /// What it is hashed by: a static member's instance id, any other's member id.
    pub(super) name: &'a str,
    /// Its failure domain.
    pub(super) rack: Option<&'a str>,
    /// What it wants, as an index into the wishes.
    pub(super) wish: usize,
    /// What it is to have so far.
    pub(super) has: &'a [TopicPartition],
}

/// Who gets what, in the order of the candidates, each sorted.
///
/// `wishes` are the distinct sets of topics that members want.
pub(super) fn assign(
    assignor: Assignor,
    candidates: &[Candidate<'_>],
    wishes: &[BTreeSet<TopicId>],
    topics: &Topics,
) -> Vec<Vec<TopicPartition>> {
    let mut field = Field::new(candidates, wishes, topics);
    match assignor {
        Assignor::Consistent => consistent::assign(&mut field),
        Assignor::Range => range::assign(&mut field),
        Assignor::Uniform => uniform::assign(&mut field),
    }
    let mut given = vec![Vec::new(); candidates.len()];
    for (partition, owner) in field.partitions.iter().zip(&field.owners) {
        if let Some(list) = owner.and_then(|owner| given.get_mut(owner)) {
            list.push(*partition);
        }
    }
    given
}

/// The partitions that somebody wants, and who has them.
struct Field<'a> {
    candidates: &'a [Candidate<'a>],
    topics: &'a Topics,
    classes: Vec<Class>,
    /// By topic id and number.
    partitions: Vec<TopicPartition>,
    /// By partition: its class.
    class_of: Vec<usize>,
    /// By partition: the candidate that has it.
    owners: Vec<Option<usize>>,
}

/// Topics that the same members want.
struct Class {
    /// Candidates, ascending.
    members: Vec<usize>,
    /// Indices of its partitions, ascending.
    partitions: Vec<usize>,
}

impl<'a> Field<'a> {
    fn new(candidates: &'a [Candidate<'a>], wishes: &'a [BTreeSet<TopicId>], topics: &'a Topics) -> Self {
        let mut wanted: BTreeMap<TopicId, Vec<usize>> = BTreeMap::new();
        for (index, wish) in wishes.iter().enumerate() {
            for topic in wish {
                wanted.entry(*topic).or_default().push(index);
            }
        }
        let mut field = Self {
            candidates,
            topics,
            classes: Vec::new(),
            partitions: Vec::new(),
            class_of: Vec::new(),
            owners: Vec::new(),
        };
        let mut classes: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
        let mut places: BTreeMap<TopicId, (usize, u32)> = BTreeMap::new();
        for (id, wishes) in wanted {
            let Some(topic) = topics.get(id) else { continue };
            let class = *classes.entry(wishes).or_insert_with_key(|wishes| {
                let wants = |(_, candidate): &(usize, &Candidate<'_>)| wishes.contains(&candidate.wish);
                let members = candidates.iter().enumerate().filter(wants).map(|(index, _)| index).collect();
                field.classes.push(Class { members, partitions: Vec::new() });
                field.classes.len() - 1
            });
            let first = field.partitions.len();
            places.insert(id, (first, topic.partitions));
            field.partitions.extend(topic.partition_ids());
            field.class_of.resize(field.partitions.len(), class);
            if let Some(class) = field.classes.get_mut(class) {
                class.partitions.extend(first..field.partitions.len());
            }
        }
        field.owners = vec![None; field.partitions.len()];
        field.keep(wishes, &places);
        field
    }

    /// What candidates have and still want stays with them for now.
    fn keep(&mut self, wishes: &[BTreeSet<TopicId>], places: &BTreeMap<TopicId, (usize, u32)>) {
        for (index, candidate) in self.candidates.iter().enumerate() {
            let Some(wish) = wishes.get(candidate.wish) else { continue };
            for partition in candidate.has {
                let Some((first, count)) = places.get(&partition.topic_id) else { continue };
                let number = partition.partition.get();
                if number >= *count || !wish.contains(&partition.topic_id) {
                    continue;
                }
                if let Some(owner @ None) = self.owners.get_mut(first + number as usize) {
                    *owner = Some(index);
                }
            }
        }
    }

    fn topic(&self, id: TopicId) -> Option<&'a Topic> {
        self.topics.get(id)
    }

    /// Whether a replica of the partition is in the candidate's rack.
    fn is_near(&self, partition: usize, candidate: usize) -> bool {
        let Some(rack) = self.candidates.get(candidate).and_then(|candidate| candidate.rack) else {
            return false;
        };
        let Some(TopicPartition { topic_id, partition }) = self.partitions.get(partition) else {
            return false;
        };
        self.topic(*topic_id).is_some_and(|topic| topic.is_in_rack(*partition, rack))
    }

    /// The racks of the candidates, so that it can be told whether anybody is near a partition.
    fn racks_of(&self, members: &[usize]) -> BTreeSet<&'a str> {
        members.iter().filter_map(|member| self.candidates.get(*member)?.rack).collect()
    }

    /// Whether any of the racks has a replica of the partition.
    fn is_near_any(&self, partition: usize, racks: &BTreeSet<&str>) -> bool {
        let Some(TopicPartition { topic_id, partition }) = self.partitions.get(partition) else {
            return false;
        };
        self.topic(*topic_id).is_some_and(|topic| racks.iter().any(|rack| topic.is_in_rack(*partition, rack)))
    }

    /// What a partition is hashed by.
    fn key_of(&self, partition: usize) -> [u8; 20] {
        let mut key = [0; 20];
        if let Some(TopicPartition { topic_id, partition: PartitionId(number) }) =
            self.partitions.get(partition)
        {
            key[..16].copy_from_slice(&topic_id.to_bytes());
            key[16..].copy_from_slice(&number.to_be_bytes());
        }
        key
    }
}
