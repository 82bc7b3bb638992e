//! How fast replicas that are being added may fetch: one budget for a broker, so that moves leave room for traffic.

use std::time::Duration;

use highwater_broker_core::time::Mono;
use parking_lot::Mutex;

/// What may be fetched at once after a pause.
const BURST: Duration = Duration::from_millis(100);

/// A place in the queue of bytes that wait to be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(u64);

/// A rate of bytes that many share. Whoever wants some queues for them, and the queue moves at the rate of the moment:
/// what was queued when the rate was low does not wait as if it still were.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Bytes that were asked for in all.
    asked: u64,
    /// Bytes that may be fetched in all; more than `asked` after a pause.
    granted: u64,
    /// Up to when `granted` is worked out.
    at: Mono,
}

impl Queue {
    fn advance(&mut self, now: Mono, bytes_per_second: u64) {
        let most = self.asked.saturating_add(bytes_in(BURST.as_nanos(), bytes_per_second));
        let bytes = bytes_in(now.since(self.at).as_nanos(), bytes_per_second);
        if self.granted.saturating_add(bytes) >= most {
            (self.granted, self.at) = (self.granted.max(most), now);
        } else {
            // Only the time that made whole bytes is gone.
            self.granted += bytes;
            self.at = self.at.after(time_of(bytes, bytes_per_second));
        }
    }
}

fn bytes_in(nanos: u128, bytes_per_second: u64) -> u64 {
    u64::try_from(nanos * u128::from(bytes_per_second) / 1_000_000_000).unwrap_or(u64::MAX)
}

/// Rounded up, so that the bytes are there when it is over.
fn time_of(bytes: u64, bytes_per_second: u64) -> Duration {
    let nanos = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(bytes_per_second.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl Throttle {
    /// Queues for `bytes`.
    pub(crate) fn ask(&self, now: Mono, bytes: u64, bytes_per_second: u64) -> Place {
        let mut queue = self.queue.lock();
        queue.advance(now, bytes_per_second);
        queue.asked = queue.asked.saturating_add(bytes);
        Place(queue.asked)
    }

    /// Whether everything up to `place` may be fetched, at `bytes_per_second` (0: without a bound).
    pub(crate) fn is_granted(&self, now: Mono, place: Place, bytes_per_second: u64) -> bool {
        if bytes_per_second == 0 {
            return true;
        }
        let mut queue = self.queue.lock();
        queue.advance(now, bytes_per_second);
        place.0 <= queue.granted
    }

    /// When everything up to `place` may be fetched, if the rate stays as it is.
    pub(crate) fn granted_at(&self, place: Place, bytes_per_second: u64) -> Mono {
        let queue = self.queue.lock();
        if bytes_per_second == 0 {
            return queue.at;
        }
        queue.at.after(time_of(place.0.saturating_sub(queue.granted), bytes_per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn seconds(seconds: u64) -> Mono {
        Mono::default().after(Duration::from_secs(seconds))
    }

    #[test]
    fn what_is_granted_over_time_is_the_rate_whoever_asks() {
        let throttle = Throttle::default();
        let start = seconds(10);
        let places: Vec<_> = (0..100).map(|_| throttle.ask(start, MIB, 10 * MIB)).collect();
        let spent = throttle.granted_at(places[99], 10 * MIB).since(start);
        assert!((Duration::from_millis(9_850)..=Duration::from_secs(10)).contains(&spent), "{spent:?}");
        let halfway = start.after(Duration::from_secs(5));
        let granted = places.iter().filter(|place| throttle.is_granted(halfway, **place, 10 * MIB)).count();
        assert!((50..=51).contains(&granted), "{granted}");
        let due = throttle.granted_at(places[99], 10 * MIB);
        assert!(
            throttle.is_granted(due, places[99], 10 * MIB),
            "whoever wakes when it is told does not wait again"
        );
    }

    #[test]
    fn looking_often_loses_nothing() {
        let throttle = Throttle::default();
        let place = throttle.ask(seconds(0), 1_000, 1_000);
        // Each look is much shorter than a byte takes.
        let looks = (1..=9_999_u64).map(|look| Mono(look * 100_000));
        assert_eq!(looks.filter(|now| throttle.is_granted(*now, place, 1_000)).count(), 0);
        assert!(throttle.is_granted(seconds(1), place, 1_000));
    }

    #[test]
    fn a_pause_saves_no_more_than_a_burst_and_no_bound_grants_at_once() {
        let throttle = Throttle::default();
        throttle.ask(Mono(0), MIB, 10 * MIB);
        let later = seconds(60);
        let saved = throttle.ask(later, MIB, 10 * MIB);
        assert!(throttle.is_granted(later, saved, 10 * MIB), "a tenth of a second's worth");
        let more = throttle.ask(later, MIB, 10 * MIB);
        assert!(!throttle.is_granted(later, more, 10 * MIB));
        assert!(throttle.is_granted(later, more, 0));
    }

    #[test]
    fn a_rate_that_is_raised_holds_for_what_was_queued_before() {
        let throttle = Throttle::default();
        let start = seconds(10);
        let place = throttle.ask(start, 100 * MIB, MIB);
        assert!(throttle.granted_at(place, MIB).since(start) > Duration::from_secs(99));
        let fast = throttle.granted_at(place, 1000 * MIB);
        assert!(fast.since(start) <= Duration::from_millis(101), "{:?}", fast.since(start));
        assert!(throttle.is_granted(fast, place, 1000 * MIB));
    }
}
