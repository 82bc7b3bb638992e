//! The types that consensus is about. What an entry of the log carries is opaque to consensus: an encoded command of the
//! pure controller, and the encoded outcome comes back.

use std::fmt;
use std::io::Cursor;

use highwater_protocol::ids::DirectoryId;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

openraft::declare_raft_types!(
    /// What consensus is about.
    pub(crate) Types:
        D = Change,
        R = Outcome,
        NodeId = u64,
        Node = Member,
        SnapshotData = Cursor<Vec<u8>>,
);

/// The engine.
pub(crate) type Raft = openraft::Raft<Types>;
/// A position in the log.
pub(crate) type LogId = openraft::LogId<u64>;
/// An entry of the log.
pub(crate) type Entry = openraft::Entry<Types>;
/// Whom a member has voted for.
pub(crate) type Vote = openraft::Vote<u64>;
/// Why the store failed.
pub(crate) type StoreFailure = openraft::StorageError<u64>;
/// Who takes part, as of some position in the log.
pub(crate) type Membership = openraft::StoredMembership<u64, Member>;
/// What the engine tells about itself.
pub(crate) type RaftMetrics = openraft::RaftMetrics<u64, Member>;

/// A member of consensus: where it is, and which data directory it is. Another directory under the same node id is
/// another member, and has to join as one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// `host:port` of its protocol port when it became a member.
    pub(crate) address: String,
    /// Its data directory.
    pub(crate) directory_id: DirectoryId,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.directory_id, self.address)
    }
}

/// An encoded command.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    /// As `encode_command` made it.
    #[serde(with = "raw_bytes")]
    pub(crate) command: Vec<u8>,
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of command", self.command.len())
    }
}

/// An encoded outcome; empty for entries that consensus made itself.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// As `encode_outcome` made it.
    #[serde(with = "raw_bytes")]
    pub(crate) outcome: Vec<u8>,
    /// The version of the image that has it.
    pub(crate) version: u64,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of outcome, version {}", self.outcome.len(), self.version)
    }
}

/// Bytes as bytes: the derived code would make a list of numbers of them.
mod raw_bytes {
    use super::{Deserializer, Serializer, Visitor, de, fmt};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_byte_buf(Raw)
    }

    struct Raw;

    impl Visitor<'_> for Raw {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }

        fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
            Ok(bytes)
        }
    }
}
