//! Highwater.
pub mod sim;

pub mod cluster;
pub mod oracle;
pub mod peer;
pub mod proxy;
pub mod resources;
pub mod small_disk;
pub mod wait;
pub mod workload;
