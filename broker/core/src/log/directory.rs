//! Names in a data directory.
//!
//! ```text
//! lock                                  held while a broker runs
//! directory                             which directory this is, written when it is formatted
//! boot                                  which kernel ran the last broker, and what it has to report
//! clean                                 log ends at the last clean shutdown; absent while a broker runs
//! slots                                 flushed ends of the last flush rounds
//! state/NAME                            small state files of other parts of the broker
//! topics/TOPIC_ID/PARTITION/manifest    sealed segments, holes, epochs
//! topics/TOPIC_ID/PARTITION/*.segment   batches, one after another
//! topics/TOPIC_ID/PARTITION/*.index     sparse index of a sealed segment; rebuilt when missing
//! topics/TOPIC_ID/PARTITION/*.producers what is known of idempotent producers at the end of a segment
//! topics/TOPIC_ID/PARTITION/quarantine  what recovery cut off
//! trash/                                what is deleted next
//! ```

use highwater_protocol::ids::{PartitionId, TopicId, TopicPartition};

/// The file that is locked while a broker uses the directory.
pub const LOCK: &str = "lock";
/// The state file with the directory id.
pub const DIRECTORY: &str = "directory";
/// The state file with the boot record.
pub const BOOT: &str = "boot";
/// The state file with the clean marker.
pub const CLEAN: &str = "clean";
/// The slot file.
pub const SLOTS: &str = "slots";
/// The directory of small state files.
pub const STATE: &str = "state";
/// The directory of topics.
pub const TOPICS: &str = "topics";
/// The directory of what is deleted next.
pub const TRASH: &str = "trash";
/// In a partition's directory: the manifest.
pub const MANIFEST: &str = "manifest";
/// In a partition's directory: what recovery cut off.
pub const QUARANTINE: &str = "quarantine";
/// What a file is called until it is synced and renamed.
pub const TEMPORARY_SUFFIX: &str = ".tmp";

/// A partition's directory, relative to the data directory.
#[must_use]
pub fn partition_directory(partition: TopicPartition) -> String {
    format!("{TOPICS}/{}/{}", partition.topic_id, partition.partition)
}

/// The topic of a directory below `topics`, if that is what the name says.
#[must_use]
pub fn parse_topic(name: &str) -> Option<TopicId> {
    name.parse().ok().filter(|id: &TopicId| id.to_string() == name)
}

/// The partition of a directory below a topic's, if that is what the name says.
#[must_use]
pub fn parse_partition(name: &str) -> Option<PartitionId> {
    name.parse().ok().map(PartitionId).filter(|id| id.to_string() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_names_are_partitions() {
        let id = TopicId(0xab);
        assert_eq!(parse_topic(&id.to_string()), Some(id));
        assert_eq!(parse_topic("AB"), None);
        assert_eq!(parse_partition("7"), Some(PartitionId(7)));
        assert_eq!(parse_partition("07"), None);
        assert_eq!(
            partition_directory(TopicPartition::new(id, PartitionId(7))),
            "topics/000000000000000000000000000000ab/7"
        );
    }
}
