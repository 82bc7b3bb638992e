//! How fast replicas that are being added may fetch: one budget for a broker, so that moves leave room for traffic.

use std::time::Duration;

use highwater_broker_core::time::Mono;
use parking_lot::Mutex;

/// What may be fetched at once after a pause.
const BURST: Duration = Duration::from_millis(100);

/// A rate of bytes that many share.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// Until when what was granted lasts.
    granted_until: Mutex<Mono>,
}

impl Throttle {
    /// Grants `bytes` at `bytes_per_second` (0: without a bound), and returns from when on they may be fetched.
    pub(crate) fn grant(&self, now: Mono, bytes: u64, bytes_per_second: u64) -> Mono {
        let mut until = self.granted_until.lock();
        if bytes_per_second == 0 {
            return now;
        }
        let oldest = Mono(now.0.saturating_sub(BURST.as_nanos() as u64));
        let from = (*until).max(oldest);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second);
        *until = from.after(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        (*until).max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_granted_over_time_is_the_rate_whoever_asks() {
        let throttle = Throttle::default();
        let start = Mono::default().after(Duration::from_secs(10));
        let mut last = start;
        for _ in 0..100 {
            last = throttle.grant(start, MIB, 10 * MIB);
        }
        let spent = last.since(start);
        assert!((Duration::from_millis(9_850)..=Duration::from_secs(10)).contains(&spent), "{spent:?}");
    }

    #[test]
    fn a_pause_saves_no_more_than_a_burst_and_no_bound_grants_at_once() {
        let throttle = Throttle::default();
        throttle.grant(Mono(0), MIB, 10 * MIB);
        let later = Mono::default().after(Duration::from_secs(60));
        assert_eq!(throttle.grant(later, MIB, 10 * MIB), later, "a tenth of a second's worth");
        assert!(throttle.grant(later, MIB, 10 * MIB) > later);
        assert_eq!(throttle.grant(later, 1000 * MIB, 0), later);
    }
}
