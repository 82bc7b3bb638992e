//! What the tests of Highwater stand on: brokers as real processes, bad links and disks, a checker of histories, and a
//! simulated disk.

pub mod brokers;
pub mod cluster;
pub mod failing_flush;
pub mod keyed_load;
pub mod lossy;
pub mod members;
pub mod metrics;
pub mod namespaces;
pub mod oracle;
pub mod peer;
pub mod proxy;
pub mod residency;
pub mod resources;
pub mod segments;
pub mod sim;
pub mod small_disk;
pub mod wait;
pub mod workload;

/// The README's Rust example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
