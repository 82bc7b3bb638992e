//! The metadata at one version.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_protocol::ids::{ClusterId, NodeId, PartitionId, TopicId, TopicPartition};
use highwater_protocol::limits::PARTITIONS_MAX;
use highwater_protocol::topic_name::check_topic_name;

use super::command::{Command, Refusal, Reply};
use super::topic_config::{InvalidSetting, TopicConfig};
use crate::durability::Durability;
use crate::nearest::nearest;

/// Partitions of all topics together. Bounds what one snapshot of the image can grow to.
pub const CLUSTER_PARTITIONS_MAX: u64 = 200_000;

/// What a broker falls back to where a topic says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// Settings.
    pub config: TopicConfig,
    /// Partitions of a new topic.
    pub partitions: u32,
    /// Replicas of a new topic's partitions.
    pub replication: u32,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { config: TopicConfig::default(), partitions: 1, replication: 1 }
    }
}

/// Brokers, topics and who has their partitions. Cheap to clone: topics are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterImage {
    /// Grows with every change.
    pub version: u64,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The brokers, each with the replicas it may get.
    pub brokers: Vec<NodeId>,
    topics: BTreeMap<TopicId, Arc<Topic>>,
    names: BTreeMap<String, TopicId>,
}

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its id.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// Replicas of each partition.
    pub replication: u32,
    /// Microseconds since the Unix epoch.
    pub created_at_us: i64,
    /// Settings that differ from the defaults.
    pub overrides: BTreeMap<String, String>,
    /// Every setting.
    pub config: TopicConfig,
    /// By partition, without gaps.
    pub partitions: Vec<Partition>,
}

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Who has a replica, preferred leader first.
    pub replicas: Vec<NodeId>,
    /// Which durability holds.
    pub durability_effective: Durability,
}

impl Topic {
    /// The partition `id` of this topic.
    #[must_use]
    pub fn partition(&self, id: PartitionId) -> Option<&Partition> {
        self.partitions.get(id.get() as usize)
    }

    /// The ids of its partitions.
    pub fn partition_ids(&self) -> impl Iterator<Item = TopicPartition> + use<> {
        let id = self.id;
        (0..self.partitions.len() as u32)
            .map(move |partition| TopicPartition::new(id, PartitionId(partition)))
    }
}

impl ClusterImage {
    /// An image without topics.
    #[must_use]
    pub fn empty(cluster_id: ClusterId, brokers: Vec<NodeId>) -> Self {
        Self { version: 0, cluster_id, brokers, topics: BTreeMap::new(), names: BTreeMap::new() }
    }

    /// The topic with this id.
    #[must_use]
    pub fn topic(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(&id)
    }

    /// The topic with this name.
    #[must_use]
    pub fn topic_named(&self, name: &str) -> Option<&Arc<Topic>> {
        self.names.get(name).and_then(|id| self.topics.get(id))
    }

    /// All topics, by name.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.names.values().filter_map(|id| self.topics.get(id))
    }

    /// Every partition of every topic.
    pub fn partitions(&self) -> impl Iterator<Item = TopicPartition> + '_ {
        self.topics.values().flat_map(|topic| topic.partition_ids())
    }

    /// How many partitions there are.
    #[must_use]
    pub fn partition_count(&self) -> u64 {
        self.topics.values().map(|topic| topic.partitions.len() as u64).sum()
    }

    /// Carries a command out, or says why it changes nothing.
    ///
    /// # Errors
    /// When the command is refused; the image is as before then.
    pub fn apply(&mut self, command: &Command, defaults: &Defaults) -> Result<Reply, Refusal> {
        let reply = match command {
            Command::CreateTopic { topic_id, name, partitions, replication, config, created_at_us } => {
                let topic = self.plan_topic(*topic_id, name, *partitions, *replication, config, defaults)?;
                self.create(Topic { created_at_us: *created_at_us, ..topic })
            }
            Command::AlterTopic { name, set, unset, partitions } => {
                self.alter(name, set, unset, *partitions, defaults)?
            }
            Command::DeleteTopic { name, topic_id } => self.delete(name, *topic_id)?,
            Command::RecordDurability { partition, durability } => self.record(*partition, *durability)?,
        };
        self.version += 1;
        Ok(reply)
    }

    /// Puts a topic in as it was read from a snapshot.
    pub(super) fn insert(&mut self, topic: Topic) {
        self.names.insert(topic.name.clone(), topic.id);
        self.topics.insert(topic.id, Arc::new(topic));
    }

    fn plan_topic(
        &self,
        id: TopicId,
        name: &str,
        partitions: u32,
        replication: u32,
        overrides: &BTreeMap<String, String>,
        defaults: &Defaults,
    ) -> Result<Topic, Refusal> {
        check_topic_name(name)?;
        if self.names.contains_key(name) {
            return Err(Refusal::TopicExists(name.to_owned()));
        }
        if id.is_absent() || self.topics.contains_key(&id) {
            return Err(Refusal::IdInUse(id));
        }
        let partitions = if partitions == 0 { defaults.partitions } else { partitions };
        let replication = if replication == 0 { defaults.replication } else { replication };
        let brokers = self.brokers.len() as u32;
        if replication == 0 || replication > brokers {
            return Err(Refusal::Replication { asked: replication, brokers });
        }
        self.check_partition_count(partitions, partitions)?;
        let config = TopicConfig::with_overrides(&defaults.config, overrides, replication)?;
        let partitions = (0..partitions).map(|_| self.place(replication, config.durability)).collect();
        let name = name.to_owned();
        Ok(Topic {
            id,
            name,
            replication,
            created_at_us: 0,
            overrides: overrides.clone(),
            config,
            partitions,
        })
    }

    fn create(&mut self, topic: Topic) -> Reply {
        let reply = Reply::Created {
            topic_id: topic.id,
            partitions: topic.partitions.len() as u32,
            replication: topic.replication,
        };
        self.insert(topic);
        reply
    }

    fn alter(
        &mut self,
        name: &str,
        set: &BTreeMap<String, String>,
        unset: &[String],
        partitions: u32,
        defaults: &Defaults,
    ) -> Result<Reply, Refusal> {
        let mut topic = Topic::clone(self.find(name)?);
        for name in unset {
            if !TopicConfig::NAMES.contains(&name.as_str()) {
                return Err(InvalidSetting::Unknown { name: name.clone() }.into());
            }
            topic.overrides.remove(name);
        }
        topic.overrides.extend(set.iter().map(|(name, value)| (name.clone(), value.clone())));
        topic.config = TopicConfig::with_overrides(&defaults.config, &topic.overrides, topic.replication)?;
        let present = topic.partitions.len() as u32;
        if partitions != 0 && partitions < present {
            return Err(Refusal::Shrinks { name: name.to_owned(), present, asked: partitions });
        }
        if partitions > present {
            self.check_partition_count(partitions, partitions - present)?;
            let added = (present..partitions).map(|_| self.place(topic.replication, topic.config.durability));
            topic.partitions.extend(added);
        }
        let reply = Reply::Altered { partitions: topic.partitions.len() as u32 };
        self.insert(topic);
        Ok(reply)
    }

    fn delete(&mut self, name: &str, topic_id: Option<TopicId>) -> Result<Reply, Refusal> {
        let found = self.find(name)?.id;
        if let Some(asked) = topic_id
            && asked != found
        {
            return Err(Refusal::OtherTopic { name: name.to_owned(), asked, found });
        }
        self.names.remove(name);
        self.topics.remove(&found);
        Ok(Reply::Deleted { topic_id: found })
    }

    fn record(&mut self, partition: TopicPartition, durability: Durability) -> Result<Reply, Refusal> {
        let unknown = Refusal::UnknownPartition(partition);
        let topic = self.topics.get_mut(&partition.topic_id).ok_or(unknown.clone())?;
        let state =
            Arc::make_mut(topic).partitions.get_mut(partition.partition.get() as usize).ok_or(unknown)?;
        state.durability_effective = durability;
        Ok(Reply::Recorded)
    }

    fn find(&self, name: &str) -> Result<&Arc<Topic>, Refusal> {
        self.topic_named(name).ok_or_else(|| {
            let known: Vec<&str> = self.names.keys().map(String::as_str).collect();
            Refusal::UnknownTopic { name: name.to_owned(), near: nearest(name, &known).map(str::to_owned) }
        })
    }

    fn check_partition_count(&self, of_topic: u32, added: u32) -> Result<(), Refusal> {
        if of_topic == 0 || of_topic > PARTITIONS_MAX {
            return Err(Refusal::Partitions { asked: of_topic, max: PARTITIONS_MAX });
        }
        let (present, asked) = (self.partition_count(), u64::from(added));
        if present + asked > CLUSTER_PARTITIONS_MAX {
            return Err(Refusal::ClusterPartitions { present, asked, max: CLUSTER_PARTITIONS_MAX });
        }
        Ok(())
    }

    /// Where a new partition goes. With one broker there is one place; placement by the ring comes with more.
    fn place(&self, replication: u32, durability: Durability) -> Partition {
        let replicas = self.brokers.iter().copied().take(replication as usize).collect();
        Partition { replicas, durability_effective: durability }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ClusterImage {
        ClusterImage::empty(ClusterId(9), vec![NodeId(1)])
    }

    fn create(id: u128, name: &str, partitions: u32) -> Command {
        Command::CreateTopic {
            topic_id: TopicId(id),
            name: name.into(),
            partitions,
            replication: 0,
            config: BTreeMap::new(),
            created_at_us: 5,
        }
    }

    fn alter(name: &str, set: &[(&str, &str)], unset: &[&str], partitions: u32) -> Command {
        Command::AlterTopic {
            name: name.into(),
            set: set.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            unset: unset.iter().map(|name| (*name).into()).collect(),
            partitions,
        }
    }

    fn delete(name: &str, id: Option<u128>) -> Command {
        Command::DeleteTopic { name: name.into(), topic_id: id.map(TopicId) }
    }

    fn apply(image: &mut ClusterImage, command: &Command) -> Result<Reply, Refusal> {
        image.apply(command, &Defaults::default())
    }

    #[test]
    fn a_topic_lives_from_create_to_delete() {
        let mut image = image();
        let created = Reply::Created { topic_id: TopicId(7), partitions: 3, replication: 1 };
        assert_eq!(apply(&mut image, &create(7, "orders", 3)), Ok(created));
        assert_eq!(apply(&mut image, &create(8, "orders", 1)), Err(Refusal::TopicExists("orders".into())));
        assert_eq!(image.topic_named("orders").unwrap().created_at_us, 5);
        assert_eq!(image.partitions().count(), 3);
        assert_eq!(image.version, 1, "a refused command is no version");
        let altered = apply(&mut image, &alter("orders", &[("retention_bytes", "1GiB")], &[], 5));
        assert_eq!(altered, Ok(Reply::Altered { partitions: 5 }));
        assert_eq!(image.topic(TopicId(7)).unwrap().config.retention_bytes, Some(1 << 30));
        assert_eq!(
            apply(&mut image, &delete("orders", Some(8))),
            Err(Refusal::OtherTopic { name: "orders".into(), asked: TopicId(8), found: TopicId(7) })
        );
        assert_eq!(
            apply(&mut image, &delete("orders", Some(7))),
            Ok(Reply::Deleted { topic_id: TopicId(7) })
        );
        assert_eq!(image.topic_named("orders"), None);
        assert_eq!(image.topics().count(), 0);
    }

    #[test]
    fn an_alteration_happens_whole_or_not_at_all() {
        let mut image = image();
        apply(&mut image, &create(7, "orders", 3)).unwrap();
        let before = image.clone();
        for refused in [
            alter("orders", &[("retention_bytes", "1GiB"), ("durability", "x")], &[], 0),
            alter("orders", &[("retention_bytes", "1GiB")], &[], 2),
            alter("orders", &[("retention_bytes", "1GiB")], &["nonsense"], 0),
            alter("orders", &[], &[], PARTITIONS_MAX + 1),
            alter("order", &[], &[], 0),
        ] {
            assert!(apply(&mut image, &refused).is_err(), "{refused:?}");
            assert_eq!(image, before, "{refused:?}");
        }
        apply(&mut image, &alter("orders", &[("durability", "os")], &[], 0)).unwrap();
        apply(&mut image, &alter("orders", &[], &["durability"], 0)).unwrap();
        assert_eq!(image.topic(TopicId(7)).unwrap().config, TopicConfig::default());
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let mut image = image();
        apply(&mut image, &create(7, "orders", 3)).unwrap();
        let text = |result: Result<Reply, Refusal>| result.unwrap_err().to_string();
        assert!(text(apply(&mut image, &delete("order", None))).contains("did you mean 'orders'?"));
        assert!(text(apply(&mut image, &create(8, "a/b", 1))).contains("'/' is reserved"));
        assert!(text(apply(&mut image, &create(8, "x", PARTITIONS_MAX + 1))).contains("from 1 to 10000"));
        let mut two = create(8, "x", 1);
        if let Command::CreateTopic { replication, .. } = &mut two {
            *replication = 2;
        }
        assert!(text(apply(&mut image, &two)).contains("needs 2 brokers, the cluster has 1"));
    }

    #[test]
    fn a_new_partition_has_the_durability_of_its_topic_and_an_old_one_what_is_recorded() {
        let mut image = image();
        apply(&mut image, &create(7, "orders", 1)).unwrap();
        apply(&mut image, &alter("orders", &[("durability", "os")], &[], 2)).unwrap();
        let partition = |id| TopicPartition::new(TopicId(7), PartitionId(id));
        let effective = |image: &ClusterImage, id: u32| {
            image.topic(TopicId(7)).unwrap().partition(PartitionId(id)).unwrap().durability_effective
        };
        assert_eq!(effective(&image, 0), Durability::Fsync);
        assert_eq!(effective(&image, 1), Durability::Os);
        let record = |id| Command::RecordDurability { partition: partition(id), durability: Durability::Os };
        assert_eq!(apply(&mut image, &record(0)), Ok(Reply::Recorded));
        assert_eq!(effective(&image, 0), Durability::Os);
        assert_eq!(apply(&mut image, &record(2)), Err(Refusal::UnknownPartition(partition(2))));
    }

    #[test]
    fn the_cluster_has_a_bound_on_partitions() {
        let mut image = image();
        for id in 1..=20u128 {
            apply(&mut image, &create(id, &format!("t{id}"), PARTITIONS_MAX)).unwrap();
        }
        assert!(matches!(
            apply(&mut image, &create(99, "one-more", 1)),
            Err(Refusal::ClusterPartitions { present: 200_000, asked: 1, .. })
        ));
    }
}
