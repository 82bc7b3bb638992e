//! The formats that a log has on disk and every verdict about it: pure, so that the broker, the tests and the offline
//! tools agree.
//!
//! `docs/storage.md` describes the bytes.

pub mod boot_record;
pub mod clean_marker;
pub mod cleaning;
pub mod directory;
pub mod envelope;
pub mod index;
pub mod manifest;
pub mod recovery;
pub mod retention;
pub mod scan;
pub mod segment_name;
pub mod slot;
