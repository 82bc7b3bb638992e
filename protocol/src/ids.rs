//! Newtypes for every number that has a meaning.
//!
//! Arithmetic operators are left out on purpose: the few steps that make sense have names.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number itself, for encoding and arithmetic.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

number!(
    /// The position of a record in its partition, from 0, without gaps in a log that is not compacted.
    Offset(u64)
);
number!(
    /// A partition of a topic, from 0.
    PartitionId(u32)
);
number!(
    /// A broker of the cluster, chosen by its operator, from 1.
    NodeId(u32)
);
number!(
    /// Which leadership of a partition: raised at every change of leader.
    LeaderEpoch(u32)
);
number!(
    /// Which registration of a broker: given anew at each start.
    BrokerEpoch(u64)
);
number!(
    /// Matches a reply to its request on one connection.
    CorrelationId(u64)
);
number!(
    /// A subscription of one connection, chosen by the subscriber, never used twice on that connection.
    SubscriptionId(u64)
);
number!(
    /// An idempotent producer. All ones: none.
    ProducerId(u64)
);

impl Offset {
    /// The start of every log.
    pub const ZERO: Self = Self(0);

    /// The offset after `count` records, or `None` beyond the range of offsets.
    #[must_use]
    pub const fn checked_add_count(self, count: u64) -> Option<Self> {
        match self.0.checked_add(count) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// The offset of the next record.
    ///
    /// Offsets are counted up from 0 one record at a time, so the range cannot be exhausted.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// How many offsets lie in `[start, self)`; 0 when `start` is not below `self`.
    #[must_use]
    pub const fn count_since(self, start: Self) -> u64 {
        self.0.saturating_sub(start.0)
    }
}

impl LeaderEpoch {
    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl ProducerId {
    /// The mark of a batch whose producer is not idempotent.
    pub const NONE: Self = Self(u64::MAX);
}

macro_rules! wide_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u128);

        impl $name {
            /// The 16 bytes in the order in which they are stored and checksummed (big-endian, as printed).
            #[must_use]
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0.to_be_bytes()
            }

            /// The id with these 16 bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(u128::from_be_bytes(bytes))
            }

            /// Whether this is the absent id, all zeroes.
            #[must_use]
            pub const fn is_absent(self) -> bool {
                self.0 == 0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:032x})", stringify!($name), self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(InvalidId);
                }
                u128::from_str_radix(text, 16).map(Self).map_err(|_| InvalidId)
            }
        }
    };
}

/// An id that is not 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id has 32 hexadecimal digits")]
pub struct InvalidId;

wide_id!(
    /// A topic, for as long as it exists: a topic that is deleted and created again is another topic.
    TopicId
);
wide_id!(
    /// A data directory, made when it is formatted and kept on it.
    DirectoryId
);
wide_id!(
    /// A cluster, proposed by its first controller.
    ClusterId
);

/// A partition of a topic by id: the key of everything that a broker keeps for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicPartition {
    /// The topic.
    pub topic_id: TopicId,
    /// The partition of that topic.
    pub partition: PartitionId,
}

impl TopicPartition {
    /// The partition `partition` of the topic `topic_id`.
    #[must_use]
    pub const fn new(topic_id: TopicId, partition: PartitionId) -> Self {
        Self { topic_id, partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic_id, self.partition)
    }
}
