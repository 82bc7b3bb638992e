//! The slot file: flushed ends of the last flush rounds, one slot a partition.
//!
//! ```text
//! 0 magic [u8; 4] | 4 topic id [u8; 16] | 20 partition u32 | 24 log generation u64 | 32 flushed end u64 | zeroes | 60 crc u32
//! ```
//!
//! A slot is written after the round that it tells of and synced with the next one, so it may be missing or old, never
//! wrong. It lies within one sector: a torn write leaves the old or the new one.

use highwater_protocol::ids::{Offset, PartitionId, TopicId, TopicPartition};

/// Bytes of a slot.
pub const SLOT_BYTES: usize = 64;

const MAGIC: [u8; 4] = *b"HWS1";

/// What a slot says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Whose it is.
    pub partition: TopicPartition,
    /// The generation of its log: a slot of another generation says nothing.
    pub log_generation: u64,
    /// Everything below was on stable storage.
    pub flushed_end: Offset,
}

impl Slot {
    /// The bytes of the slot.
    #[must_use]
    pub fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut out = [0; SLOT_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4..20].copy_from_slice(&self.partition.topic_id.to_bytes());
        out[20..24].copy_from_slice(&self.partition.partition.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.log_generation.to_le_bytes());
        out[32..40].copy_from_slice(&self.flushed_end.0.to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// What the bytes of a slot say; `None` if it is unused or damaged.
    #[must_use]
    pub fn decode(bytes: &[u8; SLOT_BYTES]) -> Option<Self> {
        let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let small = |at: usize| bytes[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        if bytes[..4] != MAGIC || small(60)? != crc32fast::hash(&bytes[..60]) {
            return None;
        }
        let topic_id = TopicId::from_bytes(bytes[4..20].try_into().ok()?);
        Some(Self {
            partition: TopicPartition::new(topic_id, PartitionId(small(20)?)),
            log_generation: number(24)?,
            flushed_end: Offset(number(32)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_whole_or_says_nothing() {
        let slot = Slot {
            partition: TopicPartition::new(TopicId(9), PartitionId(4)),
            log_generation: 2,
            flushed_end: Offset(1 << 40),
        };
        let bytes = slot.encode();
        assert_eq!(Slot::decode(&bytes), Some(slot));
        assert_eq!(Slot::decode(&[0; SLOT_BYTES]), None);
        for bit in 0..SLOT_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Slot::decode(&flipped), None, "bit {bit}");
        }
    }
}
