//! Everything that touches data files.

pub mod file_system;
