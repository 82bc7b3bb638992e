//! When each record is due, in an open loop: a slow broker does not slow the schedule down, so waiting counts.

use std::io;
use std::time::{Duration, Instant};

use super::timer::Timer;

/// Closer to the moment than a timer is worth: it is waited for by looking again.
const CLOSE: Duration = Duration::from_micros(5);

/// An even rate, or an even share of one: of all records every `shares`-th.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    start: Instant,
    rate: u64,
    shares: u64,
    share: u64,
    spins: bool,
}

impl Schedule {
    /// `rate` records a second from `start` on.
    pub(crate) const fn new(start: Instant, rate: u64) -> Self {
        Self { start, rate, shares: 1, share: 0, spins: false }
    }

    /// Whether moments are waited for by looking again and again.
    pub(crate) const fn spinning(self, spins: bool) -> Self {
        Self { spins, ..self }
    }

    /// The records of one of `shares` producers, which take turns.
    pub(crate) const fn share(self, share: u64, shares: u64) -> Self {
        Self { shares, share, ..self }
    }

    /// Which of all records of all shares record `index` of this one is.
    pub(crate) const fn number(&self, index: u64) -> u64 {
        index * self.shares + self.share
    }

    /// When record `index` is due.
    pub(crate) fn due(&self, index: u64) -> Instant {
        // In whole nanoseconds, so that the rate holds for hours.
        let nanoseconds = u128::from(self.number(index)) * 1_000_000_000 / u128::from(self.rate);
        self.start + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// How many records are due by `now`, at most `limit`.
    pub(crate) fn due_by(&self, now: Instant, limit: u64) -> u64 {
        let elapsed = now.saturating_duration_since(self.start).as_nanos();
        let due = elapsed * u128::from(self.rate) / 1_000_000_000;
        let of_all = u64::try_from(due).unwrap_or(u64::MAX).saturating_add(u64::from(now >= self.start));
        of_all.saturating_sub(self.share).div_ceil(self.shares).min(limit)
    }

    /// Waits until record `index` is due. Everything else in the runtime goes on, and no core is kept busy, which brokers
    /// on this machine would miss, unless it spins.
    ///
    /// # Errors
    /// See [`Timer::wait`].
    pub(crate) async fn wait(&self, index: u64, timer: &mut Timer) -> io::Result<()> {
        let due = self.due(index);
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if left > CLOSE && !self.spins {
                timer.wait(left).await?;
            } else {
                // Whoever else wants this core is not kept waiting for a time slice.
                std::thread::yield_now();
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

    #[test]
    fn shares_take_turns_and_are_the_whole_together() {
        let start = Instant::now();
        let whole = Schedule::new(start, 1000);
        let shares: Vec<Schedule> = (0..3).map(|share| whole.share(share, 3)).collect();
        for number in 0..100_u64 {
            let share = shares[(number % 3) as usize];
            assert_eq!(share.number(number / 3), number);
            assert_eq!(share.due(number / 3), whole.due(number));
            let now = whole.due(number) + Duration::from_nanos(1);
            let due: u64 = shares.iter().map(|share| share.due_by(now, u64::MAX)).sum();
            assert_eq!(due, whole.due_by(now, u64::MAX));
        }
        assert_eq!(shares[2].due_by(start.checked_sub(Duration::from_secs(1)).unwrap(), 9), 0);
    }
}
