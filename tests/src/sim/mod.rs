//! The simulated outside world: deterministic by seed.

pub mod batches;
pub mod broker_world;
pub mod clock;
pub mod disk;
pub mod keyed_world;
pub mod log_files;
pub mod log_model;
pub mod log_world;
pub mod random;
pub mod replica_world;
