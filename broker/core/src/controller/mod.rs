//! The cluster's metadata as a command machine: which topics there are, how they are set, and who has their partitions.

pub mod command;
pub mod image;
pub mod liveness;
pub mod placement;
pub mod snapshot;
pub mod topic_config;
