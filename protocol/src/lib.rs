//! The wire protocol and the record batch format of Highwater.
//!
//! Everything here is pure: no `async`, no clock, no randomness, no file, no socket. `docs/wire.md` describes the bytes;
//! the golden files under `tests/golden` are the specification.

#![warn(missing_docs)]
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub mod api;
pub mod batch;
pub mod body;
pub mod compression;
pub mod error_code;
pub mod frame;
pub mod group_name;
pub mod ids;
pub mod key_hash;
pub mod limits;
pub mod messages;
pub mod ring;
pub mod topic_name;
pub mod varint;
