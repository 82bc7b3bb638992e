//! The topics of a data directory from before the image was replicated: read once, to take them over.
//!
//! ```text
//! envelope "HWTI" around: version u64 | cluster_id 16 bytes | topic_count u32 | topics
//! topic: id 16 bytes | name | replication u32 | created_at_us i64 | override_count u32 | (name | value)… |
//!        partition_count u32 | partitions          partition: replica_count u32 | node u32 … | durability text
//! text: length u32 | bytes                         — little-endian
//! ```

use std::collections::{BTreeMap, BTreeSet};

use bytes::Buf;
use highwater_protocol::ids::{ClusterId, NodeId, TopicId};

use super::image::{Defaults, Partition, Topic};
use super::topic_config::{InvalidSetting, TopicConfig};
use crate::log::envelope::{self, FormatError};

const MAGIC: [u8; 4] = *b"HWTI";
const FORMAT: u16 = 1;

/// Bytes of one text in a snapshot. Names and settings are far shorter.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// Why bytes are not the topics of a directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicsFileError {
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

/// What such a file has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicsFile {
    /// How many changes there were.
    pub version: u64,
    /// The cluster, of one broker.
    pub cluster_id: ClusterId,
    /// Every topic.
    pub topics: Vec<Topic>,
}

/// Decodes the file.
///
/// # Errors
/// When the bytes are not a whole file that this version understands.
pub fn decode(bytes: &[u8], defaults: &Defaults) -> Result<TopicsFile, TopicsFileError> {
    let (_format, mut payload) = envelope::unwrap(MAGIC, FORMAT, bytes)?;
    let input = &mut payload;
    let version = input.try_get_u64_le().map_err(|_| SHORT)?;
    let cluster_id = ClusterId::from_bytes(take_id(input)?);
    let mut topics: Vec<Topic> = Vec::new();
    let mut seen = BTreeSet::new();
    for _ in 0..take_u32(input)? {
        let topic = take_topic(input, defaults)?;
        if !seen.insert(topic.name.clone()) || topics.iter().any(|known| known.id == topic.id) {
            return Err(TopicsFileError::Damaged("a topic is there twice"));
        }
        topics.push(topic);
    }
    if !input.is_empty() {
        return Err(TopicsFileError::Damaged("bytes after its end"));
    }
    Ok(TopicsFile { version, cluster_id, topics })
}

const SHORT: TopicsFileError = TopicsFileError::Damaged("it ends early");

fn take_topic(input: &mut &[u8], defaults: &Defaults) -> Result<Topic, TopicsFileError> {
    let id = TopicId::from_bytes(take_id(input)?);
    let name = take_text(input)?;
    let replication = take_u32(input)?;
    let created_at_us = input.try_get_i64_le().map_err(|_| SHORT)?;
    let mut overrides = BTreeMap::new();
    for _ in 0..take_u32(input)? {
        overrides.insert(take_text(input)?, take_text(input)?);
    }
    let config = TopicConfig::with_overrides(&defaults.config, &overrides, replication)
        .map_err(|error| TopicsFileError::Setting { topic: name.clone(), error })?;
    // No capacity from the count: a damaged one must not become an allocation.
    let mut partitions = Vec::new();
    for _ in 0..take_u32(input)? {
        let mut replicas = Vec::new();
        for _ in 0..take_u32(input)? {
            replicas.push(NodeId(take_u32(input)?));
        }
        let durability_effective =
            take_text(input)?.parse().map_err(|_| TopicsFileError::Damaged("a durability is none"))?;
        if replicas.is_empty() {
            return Err(TopicsFileError::Damaged("a partition has no replica"));
        }
        partitions.push(Partition::new(replicas, durability_effective));
    }
    Ok(Topic { id, name, replication, created_at_us, overrides, config, partitions })
}

fn take_u32(input: &mut &[u8]) -> Result<u32, TopicsFileError> {
    input.try_get_u32_le().map_err(|_| SHORT)
}

fn take_id(input: &mut &[u8]) -> Result<[u8; 16], TopicsFileError> {
    let mut id = [0; 16];
    input.try_copy_to_slice(&mut id).map_err(|_| SHORT)?;
    Ok(id)
}

fn take_text(input: &mut &[u8]) -> Result<String, TopicsFileError> {
    let length = take_u32(input)? as usize;
    if length > TEXT_BYTES_MAX {
        return Err(TopicsFileError::Damaged("a text is too long"));
    }
    let (text, rest) = input.split_at_checked(length).ok_or(SHORT)?;
    *input = rest;
    String::from_utf8(text.to_vec()).map_err(|_| TopicsFileError::Damaged("a text is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    fn put_text(out: &mut Vec<u8>, text: &str) {
        out.put_u32_le(text.len() as u32);
        out.put_slice(text.as_bytes());
    }

    /// As a broker on its own wrote it: one topic with two partitions.
    pub(crate) fn file() -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u64_le(7);
        out.put_slice(&ClusterId(9).to_bytes());
        out.put_u32_le(1);
        out.put_slice(&TopicId(3).to_bytes());
        put_text(&mut out, "orders");
        out.put_u32_le(1);
        out.put_i64_le(-4);
        out.put_u32_le(1);
        put_text(&mut out, "durability");
        put_text(&mut out, "interval(5ms)");
        out.put_u32_le(2);
        for durability in ["fsync", "os"] {
            out.put_u32_le(1);
            out.put_u32_le(1);
            put_text(&mut out, durability);
        }
        envelope::wrap(MAGIC, FORMAT, &out)
    }

    #[test]
    fn the_topics_are_read() {
        let read = decode(&file(), &Defaults::default()).unwrap();
        assert_eq!((read.version, read.cluster_id), (7, ClusterId(9)));
        let [topic] = read.topics.as_slice() else { panic!("{read:?}") };
        assert_eq!((topic.name.as_str(), topic.created_at_us), ("orders", -4));
        assert_eq!(topic.config.durability.to_string(), "interval(5ms)");
        assert_eq!(topic.partitions[0].replicas, [NodeId(1)]);
        assert_eq!(topic.partitions[1].durability_effective.to_string(), "os");
    }

    #[test]
    fn bytes_that_are_cut_or_changed_never_panic() {
        let bytes = file();
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut], &Defaults::default()).is_err(), "cut at {cut}");
        }
        let (_, payload) = envelope::unwrap(MAGIC, FORMAT, &bytes).unwrap();
        for at in 0..payload.len() {
            let mut changed = payload.to_vec();
            changed[at] ^= 0xff;
            let _any_result_will_do = decode(&envelope::wrap(MAGIC, FORMAT, &changed), &Defaults::default());
        }
    }
}
