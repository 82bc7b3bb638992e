//! A clock that stands still until it is moved, and seeded ids.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use highwater_broker::env;
use highwater_broker_core::time::{Mono, Wall};
use parking_lot::Mutex;

use super::random::Random;

/// Both clocks of a simulated machine.
#[derive(Debug)]
pub struct SimClock {
    mono: AtomicU64,
    wall: AtomicI64,
}

impl Default for SimClock {
    /// Some day in 2026.
    fn default() -> Self {
        Self { mono: AtomicU64::new(1_000_000_000), wall: AtomicI64::new(1_790_000_000_000_000) }
    }
}

impl SimClock {
    /// Lets time pass on both clocks.
    pub fn advance(&self, duration: Duration) {
        self.mono.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(0), Ordering::Relaxed);
        self.wall.fetch_add(i64::try_from(duration.as_micros()).unwrap_or(0), Ordering::Relaxed);
    }
}

impl env::Clock for SimClock {
    fn mono(&self) -> Mono {
        Mono(self.mono.load(Ordering::Relaxed))
    }

    fn wall(&self) -> Wall {
        Wall(self.wall.load(Ordering::Relaxed))
    }
}

/// Ids that depend on a seed.
#[derive(Debug)]
pub struct SimRandom(Mutex<Random>);

impl SimRandom {
    /// The ids of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(Mutex::new(Random::new(seed)))
    }
}

impl env::Random for SimRandom {
    fn next_u128(&self) -> u128 {
        let mut random = self.0.lock();
        u128::from(random.next_u64()) << 64 | u128::from(random.next_u64())
    }
}
