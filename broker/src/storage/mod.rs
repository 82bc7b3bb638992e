//! Everything that touches data files: `Store` is a data directory, `Log` the log of one partition in it.
//!
//! Nothing in here has a thread of its own, but for `real`, the file system of the machine.

pub mod check_plan;
pub mod config;
pub mod error;
pub mod file_system;
pub mod log;
pub mod read_plan;
pub mod real;
pub mod sink;
pub mod store;
pub mod table_plan;
pub mod time_plan;

mod cache;
mod files;
mod flusher;
mod memory_tail;
mod segment;
mod shared;
mod slots;
mod structure;
mod verify;

#[cfg(test)]
mod tests;
