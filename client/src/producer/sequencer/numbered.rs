//! Without idempotence: batches are numbered per connection. Pure: the clock is the caller's.
//!
//! A connection numbers its batches for each partition. After a refused batch the broker refuses every later number until
//! the refused one comes again, so nothing is appended out of order. The lane therefore waits until everything in flight
//! has been answered, then goes on at the refused number. A batch whose bytes went out on a connection that died is never
//! sent again: it may have been appended.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Done, LinkId, Verdict, outcome_unknown, timed_out};
use crate::error::Error;
use crate::retry::{Backoff, RetryPolicy};

/// The batches of one partition that are with the sender.
#[derive(Debug)]
pub(crate) struct NumberedLane<B> {
    /// Sent on `link`, in the order of their numbers.
    in_flight: VecDeque<Flight<B>>,
    link: Option<LinkId>,
    /// The number of the next batch on `link`.
    next_number: u64,
    /// Known not to be in the log, in order; they go before anything new.
    again: VecDeque<Again<B>>,
    /// The number that the broker takes next. Set from a refusal until everything in flight is answered.
    ///
    /// Invariant: batches with this number or a later one, sent before it was set, are not in the log.
    refused_at: Option<u64>,
    /// Nothing is sent before this.
    not_before: Option<Instant>,
    backoff: Backoff,
}

#[derive(Debug)]
struct Flight<B> {
    number: u64,
    batch: B,
    deadline: Instant,
    /// Why it was refused and whether it may go again, if it was refused.
    refused: Option<(Error, bool)>,
}

#[derive(Debug)]
struct Again<B> {
    batch: B,
    deadline: Instant,
    error: Error,
}

impl<B> NumberedLane<B> {
    pub(super) const fn new(policy: RetryPolicy) -> Self {
        Self {
            in_flight: VecDeque::new(),
            link: None,
            next_number: 0,
            again: VecDeque::new(),
            refused_at: None,
            not_before: None,
            backoff: Backoff::new(policy),
        }
    }

    /// Whether a batch may be sent on `link` now.
    pub(super) fn can_send(&self, link: LinkId, now: Instant) -> bool {
        self.refused_at.is_none()
            && self.not_before.is_none_or(|not_before| not_before <= now)
            && (self.in_flight.is_empty() || self.link == Some(link))
    }

    /// The batch that must go first, and its deadline.
    pub(super) fn take_again(&mut self) -> Option<(B, Instant)> {
        self.again.pop_front().map(|again| (again.batch, again.deadline))
    }

    /// Whether there are batches to be sent again.
    pub(super) fn has_again(&self) -> bool {
        !self.again.is_empty()
    }

    /// Batches sent and not answered.
    pub(super) fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether no batch is here.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.in_flight.is_empty() && self.again.is_empty()
    }

    /// When the backoff ends, if there is one.
    pub(super) const fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    /// The earliest deadline among batches that wait to be sent again.
    pub(super) fn again_deadline(&self) -> Option<Instant> {
        self.again.front().map(|again| again.deadline)
    }

    /// Notes that a batch goes out on `link`; returns its number.
    ///
    /// # Panics
    /// When [`NumberedLane::can_send`] was not asked.
    pub(super) fn send(&mut self, link: LinkId, batch: B, deadline: Instant) -> u64 {
        assert!(self.refused_at.is_none(), "nothing is sent between a refusal and its last reply");
        if self.link != Some(link) {
            assert!(self.in_flight.is_empty(), "one connection at a time");
            self.link = Some(link);
            self.next_number = 0;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.in_flight.push_back(Flight { number, batch, deadline, refused: None });
        number
    }

    /// Takes in what became of a batch. What is settled by that is appended to `done`, in order.
    pub(super) fn resolve<A>(
        &mut self,
        number: u64,
        verdict: Verdict<A>,
        now: Instant,
        random: u64,
        done: &mut Vec<Done<B, A>>,
    ) {
        let Some(place) = self.in_flight.iter().position(|flight| flight.number == number) else { return };
        match verdict {
            Verdict::Acknowledged(acknowledged) => {
                self.backoff.reset();
                self.give_up_passed_over(number);
                self.settle_flight(place, Ok(acknowledged), done);
            }
            Verdict::Unknown(error) => self.settle_flight(place, Err(error), done),
            // Of batches without a producer nothing of the kind is said.
            Verdict::Gap(error) | Verdict::Fenced(error) => self.refuse(place, number, error, false),
            Verdict::Refused { error, retriable, next_number } => {
                let at = next_number.map_or(number, |next| next.min(number));
                self.refuse(place, at, error, retriable);
            }
            Verdict::Lost { error, sent } => {
                let known_refused = self.refused_at.is_some_and(|at| number >= at);
                if sent && !known_refused {
                    self.settle_flight(place, Err(outcome_unknown(&error)), done);
                } else {
                    self.refuse(place, number, error, true);
                }
            }
        }
        self.settle(now, random, done);
    }

    /// Ends the backoff.
    pub(super) const fn hurry(&mut self) {
        self.not_before = None;
        self.backoff.reset();
    }

    /// Ends batches that waited too long to be sent again.
    pub(super) fn expire<A>(&mut self, now: Instant, done: &mut Vec<Done<B, A>>) {
        while self.again.front().is_some_and(|again| again.deadline <= now) {
            let Some(again) = self.again.pop_front() else { return };
            done.push(Done { batch: again.batch, outcome: Err(timed_out(&again.error)) });
        }
    }

    /// Ends every batch that waits to be sent again.
    pub(super) fn fail_again<A>(&mut self, error: &Error, done: &mut Vec<Done<B, A>>) {
        for again in self.again.drain(..) {
            done.push(Done { batch: again.batch, outcome: Err(error.clone()) });
        }
        self.not_before = None;
    }

    fn settle_flight<A>(&mut self, place: usize, outcome: Result<A, Error>, done: &mut Vec<Done<B, A>>) {
        if let Some(flight) = self.in_flight.remove(place) {
            done.push(Done { batch: flight.batch, outcome });
        }
    }

    fn refuse(&mut self, place: usize, at: u64, error: Error, retriable: bool) {
        self.in_flight[place].refused = Some((error, retriable));
        self.refused_at = Some(self.refused_at.map_or(at, |before| before.min(at)));
    }

    /// A broker that appends a batch after it refused an earlier one has broken the order already: the earlier one must
    /// not follow.
    fn give_up_passed_over(&mut self, number: u64) {
        for flight in self.in_flight.iter_mut().filter(|flight| flight.number < number) {
            if let Some((_, retriable)) = &mut flight.refused {
                *retriable = false;
                self.refused_at = self.refused_at.max(Some(number + 1));
            }
        }
    }

    /// Once everything in flight is answered after a refusal: what may go again waits for it, the rest is done.
    fn settle<A>(&mut self, now: Instant, random: u64, done: &mut Vec<Done<B, A>>) {
        let Some(refused_at) = self.refused_at else { return };
        if self.in_flight.iter().any(|flight| flight.refused.is_none()) {
            return;
        }
        self.refused_at = None;
        self.next_number = refused_at;
        let mut again = VecDeque::with_capacity(self.in_flight.len() + self.again.len());
        for flight in self.in_flight.drain(..) {
            let Some((error, retriable)) = flight.refused else { continue };
            if !retriable {
                done.push(Done { batch: flight.batch, outcome: Err(error) });
            } else if flight.deadline <= now {
                done.push(Done { batch: flight.batch, outcome: Err(timed_out(&error)) });
            } else {
                again.push_back(Again { batch: flight.batch, deadline: flight.deadline, error });
            }
        }
        if !again.is_empty() {
            let pause: Duration = self.backoff.next(random);
            self.not_before = Some(now + pause);
        }
        again.append(&mut self.again);
        self.again = again;
    }

    /// Ends every batch: the sender stops. What is in flight may be appended or not.
    pub(super) fn abandon<A>(&mut self, error: &Error, done: &mut Vec<Done<B, A>>) {
        for flight in self.in_flight.drain(..) {
            let outcome = match flight.refused {
                Some(_) => error.clone(),
                None => outcome_unknown(error),
            };
            done.push(Done { batch: flight.batch, outcome: Err(outcome) });
        }
        self.refused_at = None;
        self.fail_again(error, done);
    }

    #[cfg(test)]
    fn check_invariants(&self) {
        let numbers: Vec<_> = self.in_flight.iter().map(|flight| flight.number).collect();
        assert!(numbers.is_sorted(), "in flight in the order of their numbers: {numbers:?}");
        let refused = self.in_flight.iter().any(|flight| flight.refused.is_some());
        assert_eq!(
            refused,
            self.refused_at.is_some(),
            "refused batches stay in flight until all are answered"
        );
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod model;
