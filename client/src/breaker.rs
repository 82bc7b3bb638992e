//! A circuit breaker for one broker: while it is open, nobody waits for that broker. Pure: clock and randomness are the
//! caller's.
//!
//! | from | to | when |
//! |---|---|---|
//! | closed | open | [`FAILURES_MAX`] attempts in a row were refused, or one ended in silence |
//! | open | half-open | its time is over, and someone asks: that one may try |
//! | half-open | closed | the attempt succeeded |
//! | half-open | open | the attempt failed, for twice the time; or was given up, for no time |

use std::time::{Duration, Instant};

use crate::retry::{Backoff, RetryPolicy};

/// Refused attempts in a row after which a breaker opens.
const FAILURES_MAX: u32 = 3;
/// How long a breaker stays open: doubled each time, up to a second, so that a broker that is back is found soon.
const OPEN: RetryPolicy = RetryPolicy { first: Duration::from_millis(100), max: Duration::from_secs(1) };

/// Whether a broker is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// It answers, or nobody has tried yet.
    Closed,
    /// It did not answer: it is not tried for a while.
    Open,
    /// Someone is finding out whether it answers again.
    HalfOpen,
}

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// At once: it costs no waiting.
    Refused,
    /// After waiting in vain.
    Silence,
}

/// The breaker of one broker.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    failure_count: u32,
    open_for: Backoff,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed, failure_count: 0, open_for: Backoff::new(OPEN) }
    }
}

impl Breaker {
    /// Asks for an attempt, which has to end in [`Breaker::succeeded`], [`Breaker::failed`] or [`Breaker::given_up`].
    ///
    /// # Errors
    /// How long the next attempt has to wait; zero while another one is under way.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.state {
            State::Closed => Ok(()),
            State::Open { until } if until <= now => {
                self.state = State::HalfOpen;
                Ok(())
            }
            State::Open { until } => Err(until - now),
            State::HalfOpen => Err(Duration::ZERO),
        }
    }

    /// Whether an attempt would be admitted.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until } => until <= now,
            State::HalfOpen => false,
        }
    }

    /// The broker has answered.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// The broker has not answered.
    pub(crate) fn failed(&mut self, failure: Failure, now: Instant, random: u64) {
        self.failure_count = self.failure_count.saturating_add(1);
        let opens = match self.state {
            State::Closed => failure == Failure::Silence || self.failure_count >= FAILURES_MAX,
            // An attempt from before it opened says nothing new.
            State::Open { .. } => false,
            State::HalfOpen => true,
        };
        if opens {
            self.state = State::Open { until: now + self.open_for.next(random) };
        }
    }

    /// The attempt was given up before it showed anything.
    pub(crate) fn given_up(&mut self, now: Instant) {
        if matches!(self.state, State::HalfOpen) {
            self.state = State::Open { until: now };
        }
    }

    /// Others say that the broker is there: the next attempt need not wait.
    pub(crate) fn encourage(&mut self, now: Instant) {
        if let State::Open { until } = &mut self.state {
            *until = now;
        }
    }

    /// Its state, for people.
    pub(crate) const fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen => BreakerState::HalfOpen,
        }
    }

    /// Failures in a row.
    pub(crate) const fn failure_count(&self) -> u32 {
        self.failure_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEP: Duration = Duration::from_millis(100);

    #[test]
    fn it_opens_after_refusals_in_a_row_and_at_once_after_silence() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 1..FAILURES_MAX {
            breaker.admit(now).unwrap();
            breaker.failed(Failure::Refused, now, 0);
            assert_eq!(breaker.state(), BreakerState::Closed);
        }
        breaker.failed(Failure::Refused, now, 0);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert_eq!(breaker.admit(now), Err(STEP / 2), "with jitter, between half of its time and all of it");
        let mut breaker = Breaker::default();
        breaker.failed(Failure::Silence, now, 0);
        assert!(!breaker.admits(now));
    }

    #[test]
    fn one_attempt_finds_out_and_the_others_do_not_wait_for_it() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        breaker.failed(Failure::Silence, now, 0);
        let later = now + STEP;
        breaker.admit(later).unwrap();
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert_eq!(breaker.admit(later), Err(Duration::ZERO));
        breaker.failed(Failure::Silence, later, 0);
        assert_eq!(breaker.admit(later), Err(STEP), "twice as long");
        breaker.admit(later + STEP).unwrap();
        breaker.succeeded();
        assert_eq!((breaker.state(), breaker.failure_count()), (BreakerState::Closed, 0));
    }

    #[test]
    fn an_attempt_that_is_given_up_leaves_room_for_the_next() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        breaker.failed(Failure::Silence, now, 0);
        breaker.admit(now + STEP).unwrap();
        breaker.given_up(now + STEP);
        breaker.admit(now + STEP).unwrap();
    }

    #[test]
    fn good_news_ends_the_wait_but_not_the_caution() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        breaker.failed(Failure::Silence, now, 0);
        breaker.encourage(now);
        breaker.admit(now).unwrap();
        assert!(breaker.admit(now).is_err(), "one only");
    }

    proptest! {
        #[test]
        fn it_is_never_open_for_longer_than_its_bound_and_never_lets_two_try(
            steps in prop::collection::vec((0u8..5, any::<u64>(), 0u64..300), 1..200),
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::default();
            let mut trying = false;
            for (step, random, millis) in steps {
                now += Duration::from_millis(millis);
                let cautious = breaker.state() != BreakerState::Closed;
                match step {
                    0 => match breaker.admit(now) {
                        Ok(()) if cautious => {
                            prop_assert!(!trying, "one attempt at a time");
                            trying = true;
                        }
                        Ok(()) => {}
                        Err(wait) => prop_assert!(wait <= OPEN.max),
                    },
                    1 => { breaker.succeeded(); trying = false; }
                    2 => { breaker.failed(Failure::Refused, now, random); trying = false; }
                    3 => { breaker.failed(Failure::Silence, now, random); trying = false; }
                    _ => { breaker.given_up(now); trying = false; }
                }
            }
            let healed = now + OPEN.max;
            breaker.given_up(healed);
            prop_assert!(breaker.admits(healed), "a broker that is back is tried");
        }
    }
}
