//! Commands and outcomes as bytes: in the controller's log, and on their way to it.
//!
//! ```text
//! command: level u32 little-endian | MessagePack, by field name        outcome: MessagePack, by field name
//! ```
//!
//! The level comes first, so that a broker that does not know a command can tell what it lacks (hole H24).

use highwater_protocol::error_code::ErrorCode;
use serde::Deserialize;

use super::command::{Command, FEATURE_LEVEL_MAX, Refusal, Reply};

/// Why bytes are not a command or an outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// It cannot be expressed, which is a defect.
    #[error("the command cannot be encoded: {0}")]
    Encode(String),
    /// The command came with a later feature level.
    #[error("the command needs feature level {needs}, this broker knows up to {knows}: upgrade it")]
    Newer {
        /// What the command needs.
        needs: u32,
        /// What this code knows.
        knows: u32,
    },
    /// The bytes are none.
    #[error("the bytes are no command of this version: {0}")]
    Damaged(String),
}

impl CodecError {
    /// The code on the wire.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Newer { .. } => ErrorCode::UnsupportedVersion,
            Self::Damaged(_) => ErrorCode::InvalidRequest,
            Self::Encode(_) => ErrorCode::Internal,
        }
    }
}

/// A command as bytes.
///
/// # Errors
/// When it cannot be expressed, which is a defect.
pub fn encode_command(command: &Command) -> Result<Vec<u8>, CodecError> {
    let level = match command {
        Command::Batch(commands) => commands.iter().map(Command::level).max().unwrap_or(0),
        command => command.level(),
    };
    let mut bytes = level.to_le_bytes().to_vec();
    rmp_serde::encode::write_named(&mut bytes, command)
        .map_err(|error| CodecError::Encode(error.to_string()))?;
    Ok(bytes)
}

/// A command from bytes.
///
/// # Errors
/// When they are damaged, or of a feature level that this code does not know.
pub fn decode_command(bytes: &[u8]) -> Result<Command, CodecError> {
    let short = || CodecError::Damaged("it ends early".to_owned());
    let (level, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
    let needs = u32::from_le_bytes(*level);
    if needs > FEATURE_LEVEL_MAX {
        return Err(CodecError::Newer { needs, knows: FEATURE_LEVEL_MAX });
    }
    decode(rest)
}

/// What came of a command, as bytes.
///
/// # Errors
/// When it cannot be expressed, which is a defect.
pub fn encode_outcome(outcome: &Result<Reply, Refusal>) -> Result<Vec<u8>, CodecError> {
    rmp_serde::to_vec_named(outcome).map_err(|error| CodecError::Encode(error.to_string()))
}

/// What came of a command, from bytes. A refusal comes as [`Refusal::Other`].
///
/// # Errors
/// When they are damaged, or of a version that this code does not know.
pub fn decode_outcome(bytes: &[u8]) -> Result<Result<Reply, Refusal>, CodecError> {
    decode(bytes)
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    rmp_serde::from_slice(bytes).map_err(|error| CodecError::Damaged(error.to_string()))
}
