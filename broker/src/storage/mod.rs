//! Everything that touches data files.

pub mod config;
pub mod error;
pub mod file_system;
pub mod real;
pub mod sink;
