//! Making, changing, removing and taking over topics.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_protocol::ids::{LeaderEpoch, PartitionId, TopicId, TopicPartition};
use highwater_protocol::limits::PARTITIONS_MAX;
use highwater_protocol::topic_name::{InvalidTopicName, check_topic_name, is_internal_topic};

use super::command::{Command, FEATURE_LEVEL_GROUPS, INTERNAL_REPLICATION, Refusal, Reply};
use super::image::{CLUSTER_PARTITIONS_MAX, ClusterImage, Effect, REPLICATION_DEFAULT, Topic};
use super::partition::{Around, Partition};
use super::placement::{Place, assign_new};
use super::reassignment::placed;
use super::topic_config::{InvalidSetting, TopicConfig};
use super::topics_file;
use crate::durability::Durability;
use crate::nearest::nearest;

impl Topic {
    /// After a change of the settings: whoever is not in sync has lost its claim if commits go on without it.
    pub(super) fn settle(&mut self) {
        let min = self.min_in_sync() as usize;
        for partition in &mut self.partitions {
            partition.change(|partition| partition.settle(min));
        }
    }
}

impl ClusterImage {
    /// Commands about topics.
    pub(super) fn apply_to_topics(&mut self, command: &Command) -> Result<Effect, Refusal> {
        let reply = match command {
            Command::CreateTopic { topic_id, name, partitions, replication, config, created_at_us } => {
                let topic = self.plan_topic(*topic_id, name, *partitions, *replication, config)?;
                self.create(Topic { created_at_us: *created_at_us, ..topic })
            }
            Command::AlterTopic { name, set, unset, partitions } => {
                self.alter(name, set, unset, *partitions)?
            }
            Command::DeleteTopic { name, topic_id } => self.delete(name, *topic_id)?,
            Command::CreateInternalTopic { topic_id, name, partitions, config, created_at_us } => {
                return self.create_internal(*topic_id, name, *partitions, config, *created_at_us);
            }
            Command::ImportTopics { snapshot, leader_epoch } => self.import(snapshot, *leader_epoch)?,
            _ => return Err(Refusal::Invalid("not a command about topics".to_owned())),
        };
        Ok(Effect::Changed(reply))
    }

    /// Puts a topic in.
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
    ) -> Result<Topic, Refusal> {
        check_topic_name(name)?;
        if self.reserves(name) {
            return Err(InvalidTopicName::Internal.into());
        }
        self.plan_any(id, name, partitions, replication, overrides)
    }

    /// Whether a name is one that users cannot make or change. A cluster that has not reached the level of such topics goes
    /// on as before: every broker decides alike.
    fn reserves(&self, name: &str) -> bool {
        self.feature_level >= FEATURE_LEVEL_GROUPS && is_internal_topic(name)
    }

    /// A topic of the brokers' own.
    fn create_internal(
        &mut self,
        id: TopicId,
        name: &str,
        partitions: u32,
        config: &BTreeMap<String, String>,
        created_at_us: i64,
    ) -> Result<Effect, Refusal> {
        check_topic_name(name)?;
        if !is_internal_topic(name) {
            return Err(Refusal::Invalid(format!("'{name}' is not the name of an internal topic")));
        }
        // Whoever needs it proposes it: several may at once.
        if let Some(topic) = self.topic_named(name) {
            return Ok(Effect::Nothing(created(topic)));
        }
        let brokers = self.brokers.values().filter(|broker| broker.takes_replicas()).count() as u32;
        let replication = INTERNAL_REPLICATION.min(brokers.max(1));
        let topic = self.plan_any(id, name, partitions, replication, config)?;
        Ok(Effect::Changed(self.create(Topic { created_at_us, ..topic })))
    }

    fn plan_any(
        &self,
        id: TopicId,
        name: &str,
        partitions: u32,
        replication: u32,
        overrides: &BTreeMap<String, String>,
    ) -> Result<Topic, Refusal> {
        if self.names.contains_key(name) {
            return Err(Refusal::TopicExists(name.to_owned()));
        }
        if id.is_absent() || self.topics.contains_key(&id) {
            return Err(Refusal::IdInUse(id));
        }
        let partitions = if partitions == 0 { self.defaults.partitions } else { partitions };
        let replication = self.replication(replication)?;
        self.check_partition_count(partitions, partitions)?;
        let config = TopicConfig::with_overrides(&self.defaults.config, overrides, replication)?;
        let partitions = self.place(id, 0..partitions, replication, config.durability);
        let (name, overrides) = (name.to_owned(), overrides.clone());
        Ok(Topic { id, name, replication, created_at_us: 0, overrides, config, partitions })
    }

    /// How many replicas a new partition gets.
    fn replication(&self, asked: u32) -> Result<u32, Refusal> {
        let brokers = self.brokers.values().filter(|broker| broker.takes_replicas()).count() as u32;
        let asked = match (asked, self.defaults.replication) {
            (0, 0) => REPLICATION_DEFAULT.min(brokers.max(1)),
            (0, default) => default,
            (asked, _) => asked,
        };
        if asked > brokers {
            return Err(Refusal::Replication { asked, brokers });
        }
        Ok(asked)
    }

    fn create(&mut self, topic: Topic) -> Reply {
        let reply = created(&topic);
        self.insert(topic);
        reply
    }

    fn alter(
        &mut self,
        name: &str,
        set: &BTreeMap<String, String>,
        unset: &[String],
        partitions: u32,
    ) -> Result<Reply, Refusal> {
        let mut topic = Topic::clone(self.find_of_users(name)?);
        for name in unset {
            if !TopicConfig::NAMES.contains(&name.as_str()) {
                return Err(InvalidSetting::Unknown { name: name.clone() }.into());
            }
            topic.overrides.remove(name);
        }
        topic.overrides.extend(set.iter().map(|(name, value)| (name.clone(), value.clone())));
        topic.config =
            TopicConfig::with_overrides(&self.defaults.config, &topic.overrides, topic.replication)?;
        topic.settle();
        let present = topic.partitions.len() as u32;
        if partitions != 0 && partitions < present {
            return Err(Refusal::Shrinks { name: name.to_owned(), present, asked: partitions });
        }
        if partitions > present {
            self.check_partition_count(partitions, partitions - present)?;
            let replication = self.replication(topic.replication)?;
            let added = self.place(topic.id, present..partitions, replication, topic.config.durability);
            topic.partitions.extend(added);
        }
        let reply = Reply::Altered { partitions: topic.partitions.len() as u32 };
        self.insert(topic);
        Ok(reply)
    }

    /// Hole H12: the one way in which a topic leaves the image.
    fn delete(&mut self, name: &str, topic_id: Option<TopicId>) -> Result<Reply, Refusal> {
        let found = self.find_of_users(name)?.id;
        if let Some(asked) = topic_id
            && asked != found
        {
            return Err(Refusal::OtherTopic { name: name.to_owned(), asked, found });
        }
        self.names.remove(name);
        self.topics.remove(&found);
        self.moves.retain(|partition, _| partition.topic_id != found);
        Ok(Reply::Deleted { topic_id: found })
    }

    /// Takes the topics over that a broker on its own has kept in a file. Nothing is taken over where there are topics.
    fn import(&mut self, file: &[u8], leader_epoch: LeaderEpoch) -> Result<Reply, Refusal> {
        if !self.topics.is_empty() {
            return Err(Refusal::Import("the cluster has topics of its own".to_owned()));
        }
        let file =
            topics_file::decode(file, &self.defaults).map_err(|error| Refusal::Import(error.to_string()))?;
        let replicas = || file.topics.iter().flat_map(|topic| &topic.partitions);
        if let Some(unknown) =
            replicas().flat_map(|partition| &partition.replicas).find(|node| self.broker(**node).is_none())
        {
            return Err(Refusal::UnknownBroker(*unknown));
        }
        let topics = file.topics.len() as u32;
        for mut topic in file.topics {
            let around = Around::of(&topic, &self.brokers);
            for partition in &mut topic.partitions {
                // Nobody leads until the broker is ready: it leads at an epoch above all that it has given out.
                partition.leader = None;
                partition.leader_epoch = leader_epoch;
                partition.eligible = std::mem::take(&mut partition.in_sync);
                partition.elect(around, false);
            }
            self.insert(topic);
        }
        self.producers.raise_generation();
        Ok(Reply::Imported { topics })
    }

    /// A topic that users may change.
    fn find_of_users(&self, name: &str) -> Result<&Arc<Topic>, Refusal> {
        let topic = self.find(name)?;
        if self.reserves(name) {
            return Err(Refusal::InternalTopic(name.to_owned()));
        }
        Ok(topic)
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

    /// Where new partitions go. What comes of this is recorded, and nobody computes it again (hole H20).
    fn place(
        &self,
        topic: TopicId,
        partitions: std::ops::Range<u32>,
        replication: u32,
        durability: Durability,
    ) -> Vec<Partition> {
        let new: Vec<TopicPartition> =
            partitions.map(|partition| TopicPartition::new(topic, PartitionId(partition))).collect();
        let takes = self.brokers.values().filter(|broker| broker.takes_replicas());
        let places: Vec<Place> =
            takes.map(|broker| Place { node: broker.node_id, rack: broker.rack.clone() }).collect();
        let placed = assign_new(&new, replication as usize, &placed(self), &places);
        placed.into_iter().map(|placed| Partition::new(placed.replicas, durability)).collect()
    }
}

fn created(topic: &Topic) -> Reply {
    Reply::Created {
        topic_id: topic.id,
        partitions: topic.partitions.len() as u32,
        replication: topic.replication,
    }
}
