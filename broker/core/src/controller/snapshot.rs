//! The image as bytes: what a new replica of the controller starts from.
//!
//! ```text
//! envelope "HWCI", format 1, around a map by field name (MessagePack): readers pass over fields that they do not know, and
//! take the default for those that are missing
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_protocol::ids::{ClusterId, NodeId, TopicId, TopicPartition};
use serde::{Deserialize, Serialize};

use super::image::{Broker, ClusterImage, Defaults, MOVE_BYTES_PER_SECOND, Move, Partition, Topic};
use super::producer_ids::ProducerIds;
use super::topic_config::{InvalidSetting, TopicConfig};
use crate::log::envelope::{self, FormatError};

const MAGIC: [u8; 4] = *b"HWCI";
const FORMAT: u16 = 1;

/// Why bytes are not an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Not such a file, of a newer version, or damaged.
    #[error("the cluster image is bad: {0}")]
    Format(#[from] FormatError),
    /// The bytes contradict themselves.
    #[error("the cluster image is damaged: {0}")]
    Damaged(String),
    /// A setting that this version does not take.
    #[error("the cluster image has topic '{topic}' with a setting that this broker does not take: {error}")]
    Setting {
        /// The topic's name.
        topic: String,
        /// What is wrong.
        error: InvalidSetting,
    },
}

#[derive(Serialize, Deserialize)]
struct ImageRecord {
    version: u64,
    cluster_id: ClusterId,
    #[serde(default)]
    feature_level: u32,
    #[serde(default)]
    defaults: Defaults,
    #[serde(default)]
    brokers: Vec<Broker>,
    #[serde(default)]
    topics: Vec<TopicRecord>,
    #[serde(default)]
    producers: ProducerIds,
    next_broker_epoch: u64,
    #[serde(default = "move_bytes_per_second")]
    move_bytes_per_second: u64,
    #[serde(default)]
    moves: Vec<(TopicPartition, Move)>,
    #[serde(default)]
    rebalance_wanted: bool,
}

#[derive(Serialize, Deserialize)]
struct TopicRecord {
    id: TopicId,
    name: String,
    replication: u32,
    #[serde(default)]
    created_at_us: i64,
    #[serde(default)]
    overrides: BTreeMap<String, String>,
    partitions: Vec<Partition>,
}

const fn move_bytes_per_second() -> u64 {
    MOVE_BYTES_PER_SECOND
}

/// Encodes an image.
///
/// # Errors
/// When it does not fit the format, which is a defect: bounds on an image are far below those of the format.
pub fn encode(image: &ClusterImage) -> Result<Vec<u8>, SnapshotError> {
    let topic = |topic: &Arc<Topic>| TopicRecord {
        id: topic.id,
        name: topic.name.clone(),
        replication: topic.replication,
        created_at_us: topic.created_at_us,
        overrides: topic.overrides.clone(),
        partitions: topic.partitions.clone(),
    };
    let record = ImageRecord {
        version: image.version,
        cluster_id: image.cluster_id,
        feature_level: image.feature_level,
        defaults: image.defaults.clone(),
        brokers: image.brokers.values().map(|broker| Broker::clone(broker)).collect(),
        topics: image.topics.values().map(topic).collect(),
        producers: image.producers.clone(),
        next_broker_epoch: image.next_broker_epoch,
        move_bytes_per_second: image.move_bytes_per_second,
        moves: image.moves.iter().map(|(id, planned)| (*id, planned.clone())).collect(),
        rebalance_wanted: image.rebalance_wanted,
    };
    let payload =
        rmp_serde::to_vec_named(&record).map_err(|error| SnapshotError::Damaged(error.to_string()))?;
    Ok(envelope::wrap(MAGIC, FORMAT, &payload))
}

/// Decodes an image. Hole H12: what is damaged is an error, never an image with less in it.
///
/// # Errors
/// When the bytes are not a whole image that this version understands.
pub fn decode(bytes: &[u8]) -> Result<ClusterImage, SnapshotError> {
    let (_format, payload) = envelope::unwrap(MAGIC, FORMAT, bytes)?;
    let mut rest = payload;
    let record = ImageRecord::deserialize(&mut rmp_serde::Deserializer::new(&mut rest))
        .map_err(|error| SnapshotError::Damaged(error.to_string()))?;
    if !rest.is_empty() {
        return Err(SnapshotError::Damaged("bytes after its end".to_owned()));
    }
    let mut image = ClusterImage {
        version: record.version,
        cluster_id: record.cluster_id,
        feature_level: record.feature_level,
        defaults: record.defaults,
        producers: record.producers,
        next_broker_epoch: record.next_broker_epoch,
        move_bytes_per_second: record.move_bytes_per_second,
        moves: record.moves.into_iter().collect(),
        rebalance_wanted: record.rebalance_wanted,
        ..ClusterImage::default()
    };
    image.brokers = by_node(record.brokers)?;
    for topic in record.topics {
        let config = TopicConfig::with_overrides(&image.defaults.config, &topic.overrides, topic.replication)
            .map_err(|error| SnapshotError::Setting { topic: topic.name.clone(), error })?;
        let TopicRecord { id, name, replication, created_at_us, overrides, partitions } = topic;
        if image.topic(id).is_some() || image.topic_named(&name).is_some() {
            return Err(SnapshotError::Damaged(format!("topic '{name}' is there twice")));
        }
        image.insert(Topic { id, name, replication, created_at_us, overrides, config, partitions });
    }
    Ok(image)
}

fn by_node(brokers: Vec<Broker>) -> Result<BTreeMap<NodeId, Arc<Broker>>, SnapshotError> {
    let count = brokers.len();
    let brokers: BTreeMap<NodeId, Arc<Broker>> =
        brokers.into_iter().map(|broker| (broker.node_id, Arc::new(broker))).collect();
    if brokers.len() != count {
        return Err(SnapshotError::Damaged("a broker is there twice".to_owned()));
    }
    Ok(brokers)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{create, image_with_brokers, ok};
    use super::*;

    fn image() -> ClusterImage {
        let mut image = image_with_brokers(3);
        ok(&mut image, &create(3, "b", 2, 3));
        ok(&mut image, &create(2, "a", 2, 2));
        image
    }

    #[test]
    fn an_image_round_trips() {
        let image = image();
        assert_eq!(decode(&encode(&image).unwrap()), Ok(image));
        assert_eq!(decode(&encode(&ClusterImage::default()).unwrap()), Ok(ClusterImage::default()));
    }

    #[test]
    fn h12_bytes_that_are_cut_or_changed_are_never_an_image() {
        let bytes = encode(&image()).unwrap();
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0xff;
            assert!(decode(&changed).is_err(), "changed at {at}");
        }
    }

    #[test]
    fn a_payload_that_contradicts_itself_never_panics() {
        let bytes = encode(&image()).unwrap();
        let payload = envelope::unwrap(MAGIC, FORMAT, &bytes).unwrap().1.to_vec();
        for at in 0..payload.len() {
            let mut changed = payload.clone();
            changed[at] ^= 0xff;
            let _any_result_will_do = decode(&envelope::wrap(MAGIC, FORMAT, &changed));
        }
        let mut longer = payload;
        longer.push(0);
        let error = decode(&envelope::wrap(MAGIC, FORMAT, &longer));
        assert_eq!(error, Err(SnapshotError::Damaged("bytes after its end".to_owned())));
    }

    #[test]
    fn another_format_is_named() {
        let newer = envelope::wrap(MAGIC, FORMAT + 1, &[]);
        assert_eq!(decode(&newer), Err(SnapshotError::Format(FormatError::Version(FORMAT + 1))));
        let other = envelope::wrap(*b"HWTI", FORMAT, &[]);
        assert!(matches!(decode(&other), Err(SnapshotError::Format(FormatError::Magic(_)))));
    }
}
