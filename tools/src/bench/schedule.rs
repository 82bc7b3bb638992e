//! When each record is due, in an open loop: a slow broker does not slow the schedule down, so waiting counts.

use std::time::{Duration, Instant};

/// Timers of the runtime are as coarse as this: closer to the moment, it is waited for by looking again and again.
const COARSE: Duration = Duration::from_millis(2);

/// An even rate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    start: Instant,
    rate: u64,
}

impl Schedule {
    /// `rate` records a second from `start` on.
    pub(crate) const fn new(start: Instant, rate: u64) -> Self {
        Self { start, rate }
    }

    /// When record `index` is due.
    pub(crate) fn due(&self, index: u64) -> Instant {
        // In whole nanoseconds, so that the rate holds for hours.
        let nanoseconds = u128::from(index) * 1_000_000_000 / u128::from(self.rate);
        self.start + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// How many records are due by `now`, at most `limit`.
    pub(crate) fn due_by(&self, now: Instant, limit: u64) -> u64 {
        let elapsed = now.saturating_duration_since(self.start).as_nanos();
        let due = elapsed * u128::from(self.rate) / 1_000_000_000;
        u64::try_from(due).unwrap_or(u64::MAX).saturating_add(u64::from(now >= self.start)).min(limit)
    }

    /// Waits until record `index` is due. Everything else in the runtime goes on.
    pub(crate) async fn wait(&self, index: u64) {
        let due = self.due(index);
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            if left > COARSE {
                tokio::time::sleep(left - COARSE).await;
            } else {
                tokio::task::yield_now().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_is_even_and_does_not_drift() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 3);
        assert_eq!(schedule.due(0), start);
        assert_eq!(schedule.due(3_000_000_000), start + Duration::from_secs(1_000_000_000));
        for index in 0..1000 {
            let due = schedule.due(index);
            assert_eq!(schedule.due_by(due + Duration::from_nanos(1), u64::MAX), index + 1, "{index}");
        }
        assert_eq!(schedule.due_by(start + Duration::from_secs(10), 7), 7);
    }
}
