//! The image as bytes, for the small file that holds it until the controller's log does.
//!
//! ```text
//! envelope "HWTI" around: version u64 | cluster_id 16 bytes | topic_count u32 | topics
//! topic: id 16 bytes | name | replication u32 | created_at_us i64 | override_count u32 | (name | value)… |
//!        partition_count u32 | partitions          partition: replica_count u32 | node u32 … | durability text
//! text: length u32 | bytes                         — little-endian
//! ```

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};
use highwater_protocol::ids::{ClusterId, NodeId, TopicId};

use super::image::{ClusterImage, Defaults, Partition, Topic};
use super::topic_config::{InvalidSetting, TopicConfig};
use crate::log::envelope::{self, FormatError};

const MAGIC: [u8; 4] = *b"HWTI";
const FORMAT: u16 = 1;

/// Bytes of one text in a snapshot. Names and settings are far shorter.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// Why bytes are not an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Not such a file, of a newer version, or damaged.
    #[error("the topics file is bad: {0}")]
    Format(#[from] FormatError),
    /// The bytes end early or contradict themselves.
    #[error("the topics file is damaged: {0}")]
    Damaged(&'static str),
    /// A setting that this version does not take.
    #[error("the topics file has topic '{topic}' with a setting that this broker does not take: {error}")]
    Setting {
        /// The topic's name.
        topic: String,
        /// What is wrong.
        error: InvalidSetting,
    },
}

/// Encodes an image.
#[must_use]
pub fn encode(image: &ClusterImage) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u64_le(image.version);
    out.put_slice(&image.cluster_id.to_bytes());
    out.put_u32_le(image.topics().count() as u32);
    for topic in image.topics() {
        out.put_slice(&topic.id.to_bytes());
        put_text(&mut out, &topic.name);
        out.put_u32_le(topic.replication);
        out.put_i64_le(topic.created_at_us);
        out.put_u32_le(topic.overrides.len() as u32);
        for (name, value) in &topic.overrides {
            put_text(&mut out, name);
            put_text(&mut out, value);
        }
        out.put_u32_le(topic.partitions.len() as u32);
        for partition in &topic.partitions {
            out.put_u32_le(partition.replicas.len() as u32);
            for node in &partition.replicas {
                out.put_u32_le(node.get());
            }
            put_text(&mut out, &partition.durability_effective.to_string());
        }
    }
    envelope::wrap(MAGIC, FORMAT, &out)
}

/// Decodes an image. `brokers` and `defaults` are the broker's own: they are configuration, not metadata.
///
/// # Errors
/// When the bytes are not a whole image that this version understands.
pub fn decode(
    bytes: &[u8],
    brokers: Vec<NodeId>,
    defaults: &Defaults,
) -> Result<ClusterImage, SnapshotError> {
    let (_format, mut payload) = envelope::unwrap(MAGIC, FORMAT, bytes)?;
    let input = &mut payload;
    let version = input.try_get_u64_le().map_err(|_| SHORT)?;
    let mut image = ClusterImage::empty(ClusterId::from_bytes(take_id(input)?), brokers);
    image.version = version;
    let topic_count = take_u32(input)?;
    for _ in 0..topic_count {
        let topic = take_topic(input, defaults)?;
        if image.topic(topic.id).is_some() || image.topic_named(&topic.name).is_some() {
            return Err(SnapshotError::Damaged("a topic is there twice"));
        }
        image.insert(topic);
    }
    if input.is_empty() { Ok(image) } else { Err(SnapshotError::Damaged("bytes after its end")) }
}

const SHORT: SnapshotError = SnapshotError::Damaged("it ends early");

fn take_topic(input: &mut &[u8], defaults: &Defaults) -> Result<Topic, SnapshotError> {
    let id = TopicId::from_bytes(take_id(input)?);
    let name = take_text(input)?;
    let replication = take_u32(input)?;
    let created_at_us = input.try_get_i64_le().map_err(|_| SHORT)?;
    let mut overrides = BTreeMap::new();
    for _ in 0..take_u32(input)? {
        overrides.insert(take_text(input)?, take_text(input)?);
    }
    let config = TopicConfig::with_overrides(&defaults.config, &overrides, replication)
        .map_err(|error| SnapshotError::Setting { topic: name.clone(), error })?;
    // No capacity from the count: a damaged one must not become an allocation.
    let mut partitions = Vec::new();
    for _ in 0..take_u32(input)? {
        let mut replicas = Vec::new();
        for _ in 0..take_u32(input)? {
            replicas.push(NodeId(take_u32(input)?));
        }
        let durability_effective =
            take_text(input)?.parse().map_err(|_| SnapshotError::Damaged("a durability is none"))?;
        partitions.push(Partition { replicas, durability_effective });
    }
    Ok(Topic { id, name, replication, created_at_us, overrides, config, partitions })
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u32_le(text.len() as u32);
    out.put_slice(text.as_bytes());
}

fn take_u32(input: &mut &[u8]) -> Result<u32, SnapshotError> {
    input.try_get_u32_le().map_err(|_| SHORT)
}

fn take_id(input: &mut &[u8]) -> Result<[u8; 16], SnapshotError> {
    let mut id = [0; 16];
    input.try_copy_to_slice(&mut id).map_err(|_| SHORT)?;
    Ok(id)
}

fn take_text(input: &mut &[u8]) -> Result<String, SnapshotError> {
    let length = take_u32(input)? as usize;
    if length > TEXT_BYTES_MAX {
        return Err(SnapshotError::Damaged("a text is too long"));
    }
    let (text, rest) = input.split_at_checked(length).ok_or(SHORT)?;
    *input = rest;
    String::from_utf8(text.to_vec()).map_err(|_| SnapshotError::Damaged("a text is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::super::command::Command;
    use super::*;

    fn image() -> ClusterImage {
        let mut image = ClusterImage::empty(ClusterId(9), vec![NodeId(1)]);
        for (id, name) in [(3, "b"), (2, "a")] {
            let config = BTreeMap::from([("durability".to_owned(), "interval(5ms)".to_owned())]);
            let topic_id = TopicId(id);
            let name = name.to_owned();
            let create = Command::CreateTopic {
                topic_id,
                name,
                partitions: 2,
                replication: 1,
                config,
                created_at_us: -4,
            };
            image.apply(&create, &Defaults::default()).unwrap();
        }
        image
    }

    #[test]
    fn an_image_round_trips() {
        let image = image();
        let decoded = decode(&encode(&image), vec![NodeId(1)], &Defaults::default());
        assert_eq!(decoded, Ok(image));
    }

    #[test]
    fn bytes_that_are_cut_or_changed_never_panic() {
        let bytes = encode(&image());
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut], vec![], &Defaults::default()).is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0xff;
            assert!(decode(&changed, vec![], &Defaults::default()).is_err(), "changed at {at}");
        }
    }

    #[test]
    fn a_payload_that_contradicts_itself_never_panics() {
        let (_, payload) =
            envelope::unwrap(MAGIC, FORMAT, &encode(&image())).map(|(v, p)| (v, p.to_vec())).unwrap();
        for at in 0..payload.len() {
            let mut changed = payload.clone();
            changed[at] ^= 0xff;
            let _any_result_will_do =
                decode(&envelope::wrap(MAGIC, FORMAT, &changed), vec![], &Defaults::default());
        }
        let mut longer = payload;
        longer.push(0);
        assert_eq!(
            decode(&envelope::wrap(MAGIC, FORMAT, &longer), vec![], &Defaults::default()),
            Err(SnapshotError::Damaged("bytes after its end"))
        );
    }

    #[test]
    fn another_format_is_named() {
        let newer = envelope::wrap(MAGIC, FORMAT + 1, &[]);
        assert_eq!(
            decode(&newer, vec![], &Defaults::default()),
            Err(SnapshotError::Format(FormatError::Version(FORMAT + 1)))
        );
        let other = envelope::wrap(*b"HWXX", FORMAT, &[]);
        assert!(matches!(
            decode(&other, vec![], &Defaults::default()),
            Err(SnapshotError::Format(FormatError::Magic(_)))
        ));
    }
}
