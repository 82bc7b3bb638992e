//! Highwater.

pub mod sim;
