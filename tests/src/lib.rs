//! Highwater.
pub mod sim;

pub mod cluster;
pub mod oracle;
pub mod proxy;
pub mod resources;
pub mod wait;
pub mod workload;
