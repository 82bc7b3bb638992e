//! One partition in the feed.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use highwater_protocol::error_code::{Duty, ErrorCode};
use highwater_protocol::ids::{Offset, PartitionId, TopicId};

use super::{End, LinkId, Scope};
use crate::consumer::StartAt;
use crate::error::{Error, ErrorKind};
use crate::retry::{Backoff, RetryPolicy};

/// Where a partition belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Topic {
    pub(crate) name: Arc<str>,
    pub(crate) id: TopicId,
}

#[derive(Debug)]
pub(super) struct Part {
    pub(super) topic: Topic,
    pub(super) partition: PartitionId,
    /// Raised by each seek: what was taken before belongs to the past.
    pub(super) generation: u64,
    pub(super) state: State,
    /// Where the next subscription starts: after everything received.
    pub(super) next_offset: Offset,
    /// How the position was asked for, until something was received.
    pub(super) start: StartAt,
    pub(super) items: VecDeque<Item>,
    /// Bytes received and not consumed.
    pub(super) held: u64,
    pub(super) high_watermark: Offset,
    pub(super) paused: bool,
    /// Whether it is in `ready`.
    pub(super) listed: bool,
    pub(super) backoff: Backoff,
    /// Since when what is read here is damaged.
    pub(super) corrupt_since: Option<Instant>,
    /// The position lies outside the log, and where the log is has to be asked.
    pub(super) range_wanted: bool,
}

#[derive(Debug)]
pub(super) enum State {
    /// To be subscribed, not before.
    Waiting { not_before: Option<Instant> },
    /// Being looked after by the driver: position, leader, connection.
    Preparing,
    /// Asked for or live. Both numbers are cumulative over the subscription.
    Subscribed { id: u64, link: LinkId, received: u64, limit: u64 },
    /// An error was told; only a seek goes on.
    Stopped,
}

#[derive(Debug)]
pub(super) enum Item {
    Chunk(Bytes),
    Error(Error),
    Clamped(Clamp),
}

/// A position that is not in the log, and the nearest one that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Clamp {
    pub(crate) wanted: Offset,
    pub(crate) log_range: Range<Offset>,
    pub(crate) position: Offset,
}

impl Part {
    pub(super) fn new(
        topic: Topic,
        partition: PartitionId,
        (start, offset): (StartAt, Offset),
        policy: RetryPolicy,
    ) -> Self {
        Self {
            topic,
            partition,
            generation: 0,
            state: State::Waiting { not_before: None },
            next_offset: offset,
            start,
            items: VecDeque::new(),
            held: 0,
            high_watermark: Offset::ZERO,
            paused: false,
            listed: false,
            backoff: Backoff::new(policy),
            corrupt_since: None,
            range_wanted: false,
        }
    }

    /// Bytes that the broker may still send.
    pub(super) const fn outstanding(&self) -> u64 {
        match self.state {
            State::Subscribed { received, limit, .. } => limit.saturating_sub(received),
            _ => 0,
        }
    }

    /// What it takes of the memory: what is here, and what may come.
    pub(super) const fn charge(&self) -> u64 {
        self.held + self.outstanding()
    }

    /// Whether damage that is met again may still be repaired by somebody.
    pub(super) fn is_patient(&mut self, now: Instant, patience: Duration) -> bool {
        now.saturating_duration_since(*self.corrupt_since.get_or_insert(now)) < patience
    }

    pub(super) fn wait(&mut self, now: Instant, random: u64) {
        self.state = State::Waiting { not_before: Some(now + self.backoff.next(random)) };
    }

    /// Whether the position came from a look-up that can be made again without passing over anything.
    pub(super) const fn position_was_found(&self) -> bool {
        matches!(self.start, StartAt::Earliest | StartAt::Time(_))
    }

    /// Goes on at the nearest offset that the log has. A position that is in the log by now stays.
    pub(super) fn clamp(&mut self, log_range: Range<Offset>, (now, random): (Instant, u64)) {
        let wanted = self.next_offset;
        let position = wanted.clamp(log_range.start, log_range.end.max(log_range.start));
        self.range_wanted = false;
        self.wait(now, random);
        if position != wanted {
            self.next_offset = position;
            self.start = StartAt::Offset(position);
            self.items.push_back(Item::Clamped(Clamp { wanted, log_range, position }));
        }
    }

    /// Its subscription was refused or ended by the broker.
    pub(super) fn ended(
        &mut self,
        end: End,
        scope: Scope,
        patience: Duration,
        (now, random): (Instant, u64),
    ) -> Verdict {
        let lost = if end.error.is_retriable() { ErrorCode::ShuttingDown } else { ErrorCode::Internal };
        let code = end.error.code().unwrap_or(lost);
        match code.duty() {
            Duty::Fail if code == ErrorCode::CorruptRange && self.is_patient(now, patience) => {
                self.wait(now, random);
                Verdict::Elsewhere
            }
            Duty::Fail if code == ErrorCode::OffsetOutOfRange && self.position_was_found() => {
                // Retention went past the position between the look-up and the subscription: look again.
                self.wait(now, random);
                Verdict::Settled
            }
            Duty::Fail if code == ErrorCode::OffsetOutOfRange && scope == Scope::Group => {
                match end.log_range {
                    Some(log_range) => self.clamp(log_range, (now, random)),
                    None => {
                        self.range_wanted = true;
                        self.wait(now, random);
                    }
                }
                Verdict::Settled
            }
            Duty::Fail | Duty::None => self.stopped_by(end, code, scope),
            duty => {
                self.wait(now, random);
                if duty == Duty::RefreshMetadata { Verdict::Elsewhere } else { Verdict::Settled }
            }
        }
    }

    fn stopped_by(&mut self, end: End, code: ErrorCode, scope: Scope) -> Verdict {
        self.state = State::Stopped;
        let mut error = end.error;
        if let Some(range) = end.corrupt {
            error = error.with_corrupt_range(range);
        }
        if let (ErrorCode::OffsetOutOfRange, Some(range)) = (code, end.log_range) {
            error = error.with_log_range(range);
        }
        if error.kind() == ErrorKind::NotAuthorized && scope == Scope::Topic {
            return Verdict::Fatal(error);
        }
        self.items.push_back(Item::Error(error));
        Verdict::Settled
    }
}

/// What the end of a subscription means beyond its partition.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nothing.
    Settled,
    /// The leader may be another one.
    Elsewhere,
    /// The end of everything.
    Fatal(Error),
}
