//! When to try again: backoff with jitter, within a budget of time. Pure: clock and randomness are the caller's.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long to wait between attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RetryPolicy {
    /// After the first failure; doubled after each further one.
    pub(crate) first: Duration,
    /// At the most.
    pub(crate) max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { first: Duration::from_millis(20), max: Duration::from_secs(1) }
    }
}

/// Counts failures and says how long to wait after each.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    policy: RetryPolicy,
    failure_count: u32,
}

impl Backoff {
    pub(crate) const fn new(policy: RetryPolicy) -> Self {
        Self { policy, failure_count: 0 }
    }

    /// The pause after one more failure: between half of the step and all of it, so that clients that failed together
    /// do not come back together.
    pub(crate) fn next(&mut self, random: u64) -> Duration {
        let doublings = self.failure_count.min(20);
        self.failure_count = self.failure_count.saturating_add(1);
        let step = self.policy.first.saturating_mul(1 << doublings).min(self.policy.max);
        let half = step / 2;
        half + Duration::from_nanos(random % (half.as_nanos() as u64 + 1))
    }

    /// How many failures in a row.
    pub(crate) const fn failure_count(&self) -> u32 {
        self.failure_count
    }

    /// Something worked: the next failure is a first one.
    pub(crate) const fn reset(&mut self) {
        self.failure_count = 0;
    }
}

/// Bounds how often a client tries again in all, so that retries of many callers do not add up to a flood.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    tokens: u32,
    refilled_at: Option<Instant>,
}

impl RetryBudget {
    /// Retries that may come at once.
    const BURST: u32 = 100;
    /// How long one more takes to be granted after that.
    const EACH: Duration = Duration::from_millis(10);

    /// Takes a retry out of the budget. Returns how long to wait for it.
    pub(crate) fn take(&mut self, now: Instant) -> Duration {
        let refilled_at = self.refilled_at.get_or_insert(now);
        let elapsed = now.saturating_duration_since(*refilled_at);
        if elapsed >= Self::EACH * Self::BURST {
            (self.tokens, *refilled_at) = (Self::BURST, now);
        }
        while now.saturating_duration_since(*refilled_at) >= Self::EACH {
            *refilled_at += Self::EACH;
            self.tokens = (self.tokens + 1).min(Self::BURST);
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Duration::ZERO
            }
            None => Self::EACH,
        }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { tokens: Self::BURST, refilled_at: None }
    }
}

/// Random numbers for jitter and for spreading records; not for secrets.
#[derive(Debug)]
pub(crate) struct Random {
    state: AtomicU64,
}

impl Random {
    /// The same numbers for the same seed.
    pub(crate) const fn seeded(seed: u64) -> Self {
        Self { state: AtomicU64::new(seed) }
    }

    /// Numbers that differ from process to process.
    pub(crate) fn from_entropy() -> Self {
        // The standard library's hasher is keyed randomly in each process, and differently each time.
        Self::seeded(RandomState::new().hash_one(0x68_77_u64))
    }

    /// The next number (SplitMix64).
    pub(crate) fn next_u64(&self) -> u64 {
        let state = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_bound_and_start_over_after_a_success() {
        let policy = RetryPolicy { first: Duration::from_millis(10), max: Duration::from_millis(50) };
        let mut backoff = Backoff::new(policy);
        let least: Vec<_> = (0..4).map(|_| backoff.next(0).as_millis()).collect();
        assert_eq!(least, [5, 10, 20, 25]);
        backoff.reset();
        assert_eq!(backoff.next(0), Duration::from_millis(5));
    }

    #[test]
    fn jitter_stays_between_half_a_step_and_a_step() {
        let random = Random::seeded(7);
        let policy = RetryPolicy { first: Duration::from_millis(64), max: Duration::from_millis(64) };
        let mut backoff = Backoff::new(policy);
        let pauses: Vec<_> = (0..100).map(|_| backoff.next(random.next_u64())).collect();
        let range = Duration::from_millis(32)..=Duration::from_millis(64);
        assert!(pauses.iter().all(|pause| range.contains(pause)));
        assert!(pauses.iter().collect::<std::collections::HashSet<_>>().len() > 90, "they differ");
    }

    #[test]
    fn retries_beyond_the_budget_wait() {
        let start = Instant::now();
        let mut budget = RetryBudget::default();
        assert!((0..RetryBudget::BURST).all(|_| budget.take(start).is_zero()));
        assert_eq!(budget.take(start), RetryBudget::EACH);
        assert!(budget.take(start + RetryBudget::EACH).is_zero());
        assert!(!budget.take(start + RetryBudget::EACH).is_zero());
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..1000).filter(|_| budget.take(later).is_zero()).count(), RetryBudget::BURST as usize);
    }

    #[test]
    fn a_seed_gives_the_same_numbers_again() {
        let (a, b) = (Random::seeded(1), Random::seeded(1));
        assert_eq!([a.next_u64(), a.next_u64()], [b.next_u64(), b.next_u64()]);
        // The first output of SplitMix64 from state 0, as published.
        assert_eq!(Random::seeded(0).next_u64(), 0xe220_a839_7b1d_cdaf);
    }
}
