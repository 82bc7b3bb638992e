//! What clients may ask for. Each handler decodes, authorises, calls a handle and encodes; decisions are made elsewhere.

pub(crate) mod cluster;
pub(crate) mod groups;
pub(crate) mod init_producer;
pub(crate) mod list_offsets;
pub(crate) mod metadata;
pub(crate) mod offsets;
pub(crate) mod produce;
pub(crate) mod raft;
pub(crate) mod read;
pub(crate) mod registration;
pub(crate) mod replica;
pub(crate) mod subscribe;
pub(crate) mod topics;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{PartitionId, TopicId, TopicPartition};
use highwater_protocol::messages::Uuid;

/// Why a request was refused: the code on the wire, and what happened, to what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub(crate) struct ApiError {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A field of the request has a value that is not allowed.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }
}

/// The partition that two fields of a request name.
pub(crate) fn partition_of(topic_id: Option<Uuid>, partition: u32) -> Result<TopicPartition, ApiError> {
    let topic_id: TopicId = topic_id.ok_or_else(|| ApiError::invalid("topic_id is missing"))?.into();
    Ok(TopicPartition::new(topic_id, PartitionId(partition)))
}

/// Refuses what would not fit a reply before anything is made for it: a request may name the same large topic many
/// thousand times.
pub(crate) fn check_partition_count(count: usize, max: usize) -> Result<(), ApiError> {
    if count > max {
        return Err(ApiError::invalid(format!(
            "the reply would tell about {count} partitions, and has room for {max}: ask for fewer topics at a time, or \
             for a summary"
        )));
    }
    Ok(())
}
