//! The cluster's metadata as a command machine: which brokers and topics there are, who has their partitions, and who
//! leads them.

mod brokers;
pub mod codec;
pub mod command;
mod decisions;
pub mod image;
mod invariants;
pub mod liveness;
mod moves;
mod partition;
pub mod placement;
mod producer_ids;
pub mod reassignment;
pub mod refusal;
pub mod snapshot;
pub mod topic_config;
mod topics;
pub mod topics_file;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
