//! The clean marker: where each log ended at a clean shutdown.

use std::collections::BTreeMap;

use bytes::BufMut;
use highwater_protocol::ids::{Offset, PartitionId, TopicId, TopicPartition};

use super::envelope::{self, Fields, FormatError};

const MAGIC: [u8; 4] = *b"HWCL";
const VERSION: u16 = 1;

/// Written last at a clean shutdown, removed durably before anything changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CleanMarker {
    /// The logs that were closed. One that is not here was not.
    pub logs: BTreeMap<TopicPartition, CleanEnd>,
}

/// Where a log ended, all of it on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CleanEnd {
    /// The log's generation.
    pub log_generation: u64,
    /// The next offset to write.
    pub log_end: Offset,
}

impl CleanMarker {
    /// The bytes of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.logs.len() * 36);
        out.put_u32_le(self.logs.len() as u32);
        for (partition, end) in &self.logs {
            out.put_slice(&partition.topic_id.to_bytes());
            out.put_u32_le(partition.partition.0);
            out.put_u64_le(end.log_generation);
            out.put_u64_le(end.log_end.0);
        }
        envelope::wrap(MAGIC, VERSION, &out)
    }

    /// The marker in a file.
    ///
    /// # Errors
    /// When it is damaged: the shutdown was not clean then.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (_version, payload) = envelope::unwrap(MAGIC, VERSION, bytes)?;
        let mut fields = Fields(payload);
        let mut marker = Self::default();
        for _ in 0..fields.count(36)? {
            let topic_id = TopicId::from_bytes(fields.bytes16()?);
            let partition = TopicPartition::new(topic_id, PartitionId(fields.u32()?));
            let end = CleanEnd { log_generation: fields.u64()?, log_end: Offset(fields.u64()?) };
            marker.logs.insert(partition, end);
        }
        fields.end()?;
        Ok(marker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let mut marker = CleanMarker::default();
        assert_eq!(CleanMarker::decode(&marker.encode()).unwrap(), marker);
        let end = CleanEnd { log_generation: 1, log_end: Offset(99) };
        marker.logs.insert(TopicPartition::new(TopicId(1), PartitionId(2)), end);
        assert_eq!(CleanMarker::decode(&marker.encode()).unwrap(), marker);
    }
}
