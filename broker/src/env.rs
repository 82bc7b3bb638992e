//! The world outside a broker: file system, clock and randomness, each behind a small trait, so that tests can put
//! simulated ones in their place.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use highwater_broker_core::time::{Mono, Wall};

use crate::storage::file_system::FileSystem;
use crate::storage::real::RealFileSystem;

/// What a broker gets from outside. Sockets are not in here: a broker serves any byte stream.
#[derive(Debug, Clone)]
pub struct Env {
    /// Where its data is.
    pub file_system: Arc<dyn FileSystem>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where new ids come from.
    pub random: Arc<dyn Random>,
}

impl Env {
    /// The machine itself.
    #[must_use]
    pub fn real() -> Self {
        Self {
            file_system: Arc::new(RealFileSystem::default()),
            clock: Arc::new(SystemClock::default()),
            random: Arc::new(SystemRandom),
        }
    }
}

/// Two clocks: one for durations, one for people.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Never goes back.
    fn mono(&self) -> Mono;
    /// May jump in either direction.
    fn wall(&self) -> Wall;
}

/// A source of numbers that nobody can foretell.
pub trait Random: Debug + Send + Sync + 'static {
    /// 128 random bits: enough for an id that never comes twice.
    fn next_u128(&self) -> u128;
}

/// The clocks of the machine.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn mono(&self) -> Mono {
        Mono::default().after(self.start.elapsed())
    }

    fn wall(&self) -> Wall {
        let micros = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
        };
        Wall(micros)
    }
}

/// The kernel's random numbers.
#[derive(Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn next_u128(&self) -> u128 {
        let mut bytes = [0u8; 16];
        let mut filled = 0;
        while filled < bytes.len() {
            match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                // A kernel without random numbers cannot make ids: nothing sensible can be done without them.
                Err(error) => panic!("read the kernel's random numbers: {error}"),
            }
        }
        u128::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_is_in_microseconds_and_the_other_one_never_goes_back() {
        let clock = SystemClock::default();
        // 2020-01-01 and 2200-01-01.
        assert!((1_577_836_800_000_000..7_258_118_400_000_000).contains(&clock.wall().0));
        let first = clock.mono();
        assert!(clock.mono() >= first);
    }

    #[test]
    fn random_numbers_differ() {
        assert_ne!(SystemRandom.next_u128(), SystemRandom.next_u128());
    }
}
