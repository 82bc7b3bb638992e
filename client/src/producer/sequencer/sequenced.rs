//! With idempotence: every batch carries a sequence, and the broker appends each sequence once. Pure: the clock is the
//! caller's.
//!
//! Whatever was not acknowledged goes again, in order and with the same sequences, to whoever leads. Three rules:
//!
//! - After any failure nothing new goes out until everything in flight has been answered, and then one batch at a time until
//!   one is acknowledged: a leader that cannot take batches is not flooded with them.
//! - At most [`PRODUCER_BATCHES_IN_FLIGHT_MAX`] batches are unanswered: the partition remembers as many, so whatever goes
//!   again is recognised.
//! - When the oldest unanswered batch leaves a gap, what was before it has been given up and is not there, and so is neither
//!   the batch nor anything behind it. The lane then needs the next epoch, under which sequences start again from 0. A batch
//!   of which any attempt may still be on its way does not go under another epoch, because it could then be there twice: its
//!   outcome is reported as unknown.

use std::collections::VecDeque;
use std::time::Instant;

use highwater_protocol::limits::PRODUCER_BATCHES_IN_FLIGHT_MAX;

use super::{Done, Identity, LinkId, Stamp, Ticket, Verdict, outcome_unknown, timed_out};
use crate::error::{Error, ErrorKind};
use crate::retry::{Backoff, RetryPolicy};

/// Sequences are counted modulo this.
const SEQUENCES: u32 = 1 << 31;

/// The batches of one partition that are with the sender.
#[derive(Debug)]
pub(crate) struct SequencedLane<B> {
    identity: Option<Identity>,
    /// The sequence of the next new record.
    next_sequence: u32,
    /// The sequence after a gap that cannot be closed: nothing is sent under this identity any more.
    broken: bool,
    /// Sent on `link`, in the order of their sequences.
    in_flight: VecDeque<Flight<B>>,
    link: Option<LinkId>,
    /// Counts attempts, so that an answer to an attempt that was given up is recognised.
    next_number: u64,
    /// To be sent, in the order of their sequences; they go before anything new.
    again: VecDeque<Again<B>>,
    /// Something in flight has failed.
    failed: bool,
    /// Nothing was acknowledged since the last failure.
    probing: bool,
    /// Nothing is sent before this.
    not_before: Option<Instant>,
    backoff: Backoff,
}

#[derive(Debug)]
struct Flight<B> {
    number: u64,
    batch: B,
    ticket: Ticket,
    /// Why this attempt failed, once it is answered.
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    error: Error,
    gap: bool,
}

#[derive(Debug)]
struct Again<B> {
    batch: B,
    ticket: Ticket,
    error: Error,
}

impl<B> SequencedLane<B> {
    pub(crate) const fn new(policy: RetryPolicy) -> Self {
        Self {
            identity: None,
            next_sequence: 0,
            broken: false,
            in_flight: VecDeque::new(),
            link: None,
            next_number: 0,
            again: VecDeque::new(),
            failed: false,
            probing: false,
            not_before: None,
            backoff: Backoff::new(policy),
        }
    }

    pub(crate) fn wants_identity(&self) -> Option<Option<Identity>> {
        (self.broken || self.identity.is_none()).then_some(self.identity)
    }

    /// Goes on under an identity that is not the one so far: sequences start again from 0.
    pub(crate) fn adopt(&mut self, identity: Identity) {
        assert!(self.in_flight.is_empty(), "nothing is in flight under the old identity");
        assert!(self.identity != Some(identity), "an identity is not used again");
        self.identity = Some(identity);
        self.broken = false;
        self.next_sequence = 0;
        for again in &mut self.again {
            assert!(!again.ticket.maybe_there, "nothing goes twice under two identities");
            again.ticket.stamp = Some(Stamp { identity, first_sequence: self.next_sequence });
            self.next_sequence = after(self.next_sequence, again.ticket.record_count);
        }
    }

    pub(crate) fn can_send(&self, link: LinkId, now: Instant) -> bool {
        let in_turn = match self.in_flight.len() {
            0 => true,
            count => self.link == Some(link) && !self.probing && count < PRODUCER_BATCHES_IN_FLIGHT_MAX,
        };
        in_turn
            && !self.failed
            && self.wants_identity().is_none()
            && self.not_before.is_none_or(|not_before| not_before <= now)
    }

    pub(crate) fn take_again(&mut self) -> Option<(B, Ticket)> {
        self.again.pop_front().map(|again| (again.batch, again.ticket))
    }

    /// What the next new batch carries; absent before there is an identity.
    pub(crate) fn next_stamp(&self) -> Option<Stamp> {
        self.identity.map(|identity| Stamp { identity, first_sequence: self.next_sequence })
    }

    pub(crate) fn has_again(&self) -> bool {
        !self.again.is_empty()
    }

    pub(crate) fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    pub(crate) const fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    pub(crate) fn again_deadline(&self) -> Option<Instant> {
        self.again.front().map(|again| again.ticket.deadline)
    }

    /// Notes that a batch goes out on `link`; returns the number of the attempt.
    ///
    /// # Panics
    /// When [`SequencedLane::can_send`] was not asked, or the ticket is not from this lane.
    pub(crate) fn send(&mut self, link: LinkId, batch: B, ticket: Ticket) -> u64 {
        assert!(!self.failed && !self.broken, "nothing is sent between a failure and its last reply");
        assert!(self.in_flight.is_empty() || self.link == Some(link), "one connection at a time");
        assert!(
            ticket.stamp.is_some_and(|stamp| Some(stamp.identity) == self.identity),
            "batches carry the identity of their lane"
        );
        self.link = Some(link);
        if ticket.stamp == self.next_stamp() {
            self.next_sequence = after(self.next_sequence, ticket.record_count);
        }
        let number = self.next_number;
        self.next_number += 1;
        self.in_flight.push_back(Flight { number, batch, ticket, failure: None });
        number
    }

    pub(crate) fn resolve<A>(
        &mut self,
        number: u64,
        verdict: Verdict<A>,
        now: Instant,
        random: u64,
        done: &mut Vec<Done<B, A>>,
    ) {
        // An attempt that was given up: whatever it says, a later attempt of the batch will be told too.
        let Some(place) = self.in_flight.iter().position(|flight| flight.number == number) else { return };
        match verdict {
            Verdict::Acknowledged(acknowledged) => {
                self.backoff.reset();
                self.probing = false;
                if let Some(flight) = self.in_flight.remove(place) {
                    done.push(Done { batch: flight.batch, outcome: Ok(acknowledged) });
                }
            }
            Verdict::Unknown(error) | Verdict::Lost { error, sent: true } => {
                self.in_flight[place].ticket.maybe_there = true;
                self.fail(place, error, false);
            }
            Verdict::Lost { error, sent: false } | Verdict::Refused { error, retriable: true, .. } => {
                self.fail(place, error, false);
            }
            Verdict::Gap(error) => self.fail(place, error, true),
            Verdict::Refused { error, retriable: false, .. } => self.give_up(place, error, done),
            Verdict::Fenced(error) => {
                self.broken = true;
                self.give_up(place, error, done);
            }
        }
        self.settle(now, Some(random), done);
    }

    pub(crate) fn recall<A>(&mut self, error: &Error, now: Instant, done: &mut Vec<Done<B, A>>) {
        self.hurry();
        for place in 0..self.in_flight.len() {
            if self.in_flight[place].failure.is_none() {
                self.in_flight[place].ticket.maybe_there = true;
                self.fail(place, error.clone(), false);
            }
        }
        self.settle(now, None, done);
    }

    /// Ends the backoff.
    pub(crate) const fn hurry(&mut self) {
        self.not_before = None;
        self.backoff.reset();
    }

    pub(crate) fn expire<A>(&mut self, now: Instant, done: &mut Vec<Done<B, A>>) {
        while self.again.front().is_some_and(|again| again.ticket.deadline <= now) {
            let Some(again) = self.again.pop_front() else { return };
            done.push(again.over());
        }
    }

    pub(crate) fn fail_again<A>(&mut self, error: &Error, done: &mut Vec<Done<B, A>>) {
        for again in self.again.drain(..) {
            done.push(Done { batch: again.batch, outcome: Err(error.clone()) });
        }
        self.not_before = None;
    }

    pub(crate) fn abandon<A>(&mut self, error: &Error, done: &mut Vec<Done<B, A>>) {
        for flight in self.in_flight.drain(..) {
            let there = flight.failure.is_none() || flight.ticket.maybe_there;
            let outcome = if there { outcome_unknown(error) } else { error.clone() };
            done.push(Done { batch: flight.batch, outcome: Err(outcome) });
        }
        for again in self.again.drain(..) {
            let outcome = if again.ticket.maybe_there { outcome_unknown(error) } else { error.clone() };
            done.push(Done { batch: again.batch, outcome: Err(outcome) });
        }
        self.failed = false;
        self.not_before = None;
    }

    fn fail(&mut self, place: usize, error: Error, gap: bool) {
        self.failed = true;
        self.in_flight[place].failure = Some(Failure { error, gap });
    }

    /// Ends a batch that the broker will never take. If it was the last one, its sequences go to the next one.
    fn give_up<A>(&mut self, place: usize, error: Error, done: &mut Vec<Done<B, A>>) {
        let last = place + 1 == self.in_flight.len() && self.again.is_empty();
        let Some(flight) = self.in_flight.remove(place) else { return };
        if let Some(stamp) = flight.ticket.stamp.filter(|_| last && !flight.ticket.maybe_there) {
            self.next_sequence = stamp.first_sequence;
        }
        let outcome = if flight.ticket.maybe_there { outcome_unknown(&error) } else { error };
        done.push(Done { batch: flight.batch, outcome: Err(outcome) });
    }

    /// Once everything in flight is answered after a failure: what was not acknowledged goes again.
    fn settle<A>(&mut self, now: Instant, random: Option<u64>, done: &mut Vec<Done<B, A>>) {
        if !self.failed && !self.broken || self.in_flight.iter().any(|flight| flight.failure.is_none()) {
            return;
        }
        self.failed = false;
        let mut again = VecDeque::with_capacity(self.in_flight.len() + self.again.len());
        let mut first = true;
        for flight in self.in_flight.drain(..) {
            let Some(Failure { error, gap }) = flight.failure else { continue };
            // Behind another one a gap is only its consequence.
            self.broken |= first && gap && !cfg!(hw_mutate = "h13_gap_is_passed_over");
            first = false;
            again.push_back(Again { batch: flight.batch, ticket: flight.ticket, error });
        }
        again.append(&mut self.again);
        for waiting in again {
            let ambiguous = self.broken
                && waiting.ticket.maybe_there
                && !cfg!(hw_mutate = "h13_ambiguous_batch_under_new_epoch");
            if ambiguous || waiting.ticket.deadline <= now {
                done.push(waiting.over());
            } else {
                let maybe_there = waiting.ticket.maybe_there && !self.broken;
                self.again.push_back(Again { ticket: Ticket { maybe_there, ..waiting.ticket }, ..waiting });
            }
        }
        self.probing = true;
        if let Some(random) = random.filter(|_| !self.again.is_empty()) {
            self.not_before = Some(now + self.backoff.next(random));
        }
    }

    #[cfg(test)]
    fn check_invariants(&self) {
        assert!(self.in_flight.len() <= PRODUCER_BATCHES_IN_FLIGHT_MAX, "no more than a partition remembers");
        let numbers: Vec<_> = self.in_flight.iter().map(|flight| flight.number).collect();
        assert!(numbers.is_sorted(), "in flight in the order in which they were sent: {numbers:?}");
        let sequences = self.in_flight.iter().map(|flight| flight.ticket);
        let sequences: Vec<u32> = sequences
            .chain(self.again.iter().map(|again| again.ticket))
            .filter(|ticket| ticket.stamp.is_some_and(|stamp| Some(stamp.identity) == self.identity))
            .filter_map(|ticket| ticket.stamp.map(|stamp| stamp.first_sequence))
            .collect();
        assert!(sequences.is_sorted(), "in the order of their sequences: {sequences:?}");
        let failed = self.in_flight.iter().any(|flight| flight.failure.is_some());
        assert!(!failed || self.failed, "failed batches stay in flight until all are answered");
    }
}

impl<B> Again<B> {
    /// It will not be sent again.
    fn over<A>(self) -> Done<B, A> {
        let error = match (self.ticket.maybe_there, self.error.kind()) {
            (true, ErrorKind::OutcomeUnknown) => self.error,
            (true, _) => outcome_unknown(&self.error),
            (false, _) => timed_out(&self.error),
        };
        Done { batch: self.batch, outcome: Err(error) }
    }
}

/// The sequence after so many records.
const fn after(sequence: u32, record_count: u32) -> u32 {
    sequence.wrapping_add(record_count) % SEQUENCES
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod model;
