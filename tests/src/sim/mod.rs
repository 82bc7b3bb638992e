//! The simulated outside world: deterministic by seed.

pub mod disk;
pub mod random;
