//! The order of one partition's batches: what may be sent when, and what again. Pure: the clock is the caller's.

mod numbered;
mod sequenced;

use std::time::Instant;

use highwater_protocol::ids::ProducerId;

use self::numbered::NumberedLane;
use self::sequenced::SequencedLane;
use crate::error::{Error, ErrorKind};
use crate::retry::RetryPolicy;

/// Which connection, in the order in which they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LinkId(pub(super) u64);

/// Who an idempotent producer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) id: ProducerId,
    pub(super) epoch: u16,
}

/// What an idempotent producer writes into a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) identity: Identity,
    pub(super) first_sequence: u32,
}

/// What a lane has to know of a batch when it goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) deadline: Instant,
    /// Absent: the producer is not idempotent.
    pub(super) stamp: Option<Stamp>,
    record_count: u32,
    /// An earlier attempt may have been appended.
    maybe_there: bool,
}

/// What a reply says about a batch.
#[derive(Debug, Clone)]
pub(super) enum Verdict<A> {
    /// It was appended, now or before.
    Acknowledged(A),
    /// It may have been appended.
    Unknown(Error),
    /// It was not appended. `next_number`: what the broker takes next, if it told.
    Refused { error: Error, retriable: bool, next_number: Option<u64> },
    /// It was not appended, because what goes before it is not there.
    Gap(Error),
    /// It was not appended: another one writes under this identity.
    Fenced(Error),
    /// The connection ended before the reply.
    Lost { error: Error, sent: bool },
}

/// A batch that will not be heard of again.
#[derive(Debug)]
pub(super) struct Done<B, A> {
    pub(super) batch: B,
    pub(super) outcome: Result<A, Error>,
}

/// The batches of one partition that are with the sender.
#[derive(Debug)]
pub(super) enum Lane<B> {
    /// Not idempotent: an unknown outcome is reported.
    Numbered(NumberedLane<B>),
    /// Idempotent: an unknown outcome is asked about by sending again.
    Sequenced(SequencedLane<B>),
}

macro_rules! either {
    ($lane:expr, $of:ident => $does:expr) => {
        match $lane {
            Lane::Numbered($of) => $does,
            Lane::Sequenced($of) => $does,
        }
    };
}

impl<B> Lane<B> {
    pub(super) const fn new(idempotent: bool, policy: RetryPolicy) -> Self {
        if idempotent {
            Self::Sequenced(SequencedLane::new(policy))
        } else {
            Self::Numbered(NumberedLane::new(policy))
        }
    }

    /// For an idempotent lane that can send nothing before it has an identity, or another one: what it has.
    pub(super) fn wants_identity(&self) -> Option<Option<Identity>> {
        match self {
            Self::Numbered(_) => None,
            Self::Sequenced(lane) => lane.wants_identity(),
        }
    }

    /// Goes on under an identity.
    pub(super) fn adopt(&mut self, identity: Identity) {
        if let Self::Sequenced(lane) = self {
            lane.adopt(identity);
        }
    }

    /// Whether a batch may be sent on `link` now.
    pub(super) fn can_send(&self, link: LinkId, now: Instant) -> bool {
        either!(self, lane => lane.can_send(link, now))
    }

    /// The batch that must go first.
    pub(super) fn take_again(&mut self) -> Option<(B, Ticket)> {
        match self {
            Self::Numbered(lane) => {
                let (batch, deadline) = lane.take_again()?;
                Some((batch, Ticket { deadline, stamp: None, record_count: 0, maybe_there: false }))
            }
            Self::Sequenced(lane) => lane.take_again(),
        }
    }

    /// What a new batch goes out with.
    pub(super) fn ticket(&self, deadline: Instant, record_count: u32) -> Ticket {
        let stamp = match self {
            Self::Numbered(_) => None,
            Self::Sequenced(lane) => lane.next_stamp(),
        };
        Ticket { deadline, stamp, record_count, maybe_there: false }
    }

    /// Whether there are batches to be sent again.
    pub(super) fn has_again(&self) -> bool {
        either!(self, lane => lane.has_again())
    }

    /// Batches sent and not answered.
    pub(super) fn in_flight_count(&self) -> usize {
        either!(self, lane => lane.in_flight_count())
    }

    /// When the backoff ends, if there is one.
    pub(super) const fn not_before(&self) -> Option<Instant> {
        either!(self, lane => lane.not_before())
    }

    /// The earliest deadline among batches that wait to be sent again.
    pub(super) fn again_deadline(&self) -> Option<Instant> {
        either!(self, lane => lane.again_deadline())
    }

    /// Notes that a batch goes out on `link`; returns its number in this lane.
    ///
    /// # Panics
    /// When [`Lane::can_send`] was not asked.
    pub(super) fn send(&mut self, link: LinkId, batch: B, ticket: Ticket) -> u64 {
        match self {
            Self::Numbered(lane) => lane.send(link, batch, ticket.deadline),
            Self::Sequenced(lane) => lane.send(link, batch, ticket),
        }
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
        either!(self, lane => lane.resolve(number, verdict, now, random, done));
    }

    /// There is a new leader: a backoff that its predecessor was the reason for is over.
    pub(super) const fn hurry(&mut self) {
        either!(self, lane => lane.hurry());
    }

    /// The leader is another one now: what an idempotent lane has sent to the old one goes to the new one at once.
    pub(super) fn recall<A>(&mut self, error: &Error, now: Instant, done: &mut Vec<Done<B, A>>) {
        if let Self::Sequenced(lane) = self {
            lane.recall(error, now, done);
        }
    }

    /// Ends batches that waited too long to be sent again.
    pub(super) fn expire<A>(&mut self, now: Instant, done: &mut Vec<Done<B, A>>) {
        either!(self, lane => lane.expire(now, done));
    }

    /// Ends every batch that waits to be sent again.
    pub(super) fn fail_again<A>(&mut self, error: &Error, done: &mut Vec<Done<B, A>>) {
        either!(self, lane => lane.fail_again(error, done));
    }

    /// Ends every batch: the sender stops. What is in flight may be appended or not.
    pub(super) fn abandon<A>(&mut self, error: &Error, done: &mut Vec<Done<B, A>>) {
        either!(self, lane => lane.abandon(error, done));
    }
}

/// The broker may have the batch.
fn outcome_unknown(error: &Error) -> Error {
    error.clone().becoming(ErrorKind::OutcomeUnknown, "sent, but never acknowledged")
}

/// The broker does not have the batch, and there is no time to try again.
pub(super) fn timed_out(last: &Error) -> Error {
    last.clone()
        .becoming(ErrorKind::TimedOut, "not appended within the delivery timeout; at the last attempt")
}
