//! What a consumer has received and may still receive, partition by partition. Pure: the clock is the caller's.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use highwater_protocol::batch::BatchHeader;
use highwater_protocol::error_code::{Duty, ErrorCode};
use highwater_protocol::ids::{Offset, PartitionId};
use highwater_protocol::limits::FRAME_BYTES_MAX;

use super::StartAt;
use crate::error::{Error, ErrorKind};
use crate::retry::{Backoff, RetryPolicy};

/// Which connection, in the order in which they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct LinkId(pub(super) u64);

/// A partition's place in the feed.
pub(super) type PartIndex = usize;

/// Partitions, their subscriptions and what came over them.
#[derive(Debug)]
pub(super) struct Feed {
    parts: Vec<Part>,
    /// Live subscriptions. Ids are never used twice, so that what comes late for an old one is dropped.
    by_id: HashMap<u64, PartIndex>,
    next_id: u64,
    /// Partitions with something for the application, in turn.
    ready: VecDeque<PartIndex>,
    /// Bytes that a partition may hold here.
    share: u64,
    policy: RetryPolicy,
    /// For how long damage may be repaired before the application is told.
    repair_timeout: Duration,
    /// The end of everything, told once.
    fatal: Fatal,
}

#[derive(Debug)]
enum Fatal {
    No,
    ToTell(Error),
    Told,
}

#[derive(Debug)]
struct Part {
    partition: PartitionId,
    /// Raised by each seek: what was taken before belongs to the past.
    generation: u64,
    state: State,
    /// Where the next subscription starts: after everything received.
    next_offset: Offset,
    /// How the position was asked for, until something was received.
    start: StartAt,
    items: VecDeque<Item>,
    /// Bytes received and not consumed.
    held: u64,
    high_watermark: Offset,
    paused: bool,
    /// Whether it is in `ready`.
    listed: bool,
    backoff: Backoff,
    /// Since when what is read here is damaged.
    corrupt_since: Option<Instant>,
}

#[derive(Debug)]
enum State {
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
enum Item {
    Chunk(Bytes),
    Error(Error),
}

/// Something for the application.
#[derive(Debug)]
pub(super) enum Taken {
    Chunk(Chunk),
    Error(Error),
    /// Nothing now.
    Nothing,
    /// Nothing any more, unless the application seeks.
    Over,
}

/// Batches of one partition, end to end.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) part: PartIndex,
    pub(super) generation: u64,
    pub(super) bytes: Bytes,
    /// Bytes to give back with [`Feed::consumed`].
    pub(super) charged: u64,
    pub(super) high_watermark: Offset,
}

/// A subscription to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subscribing {
    pub(super) id: u64,
    pub(super) partition: PartitionId,
    pub(super) offset: Offset,
    pub(super) credit: u64,
}

/// A subscription whose credit is raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) link: LinkId,
    pub(super) id: u64,
    pub(super) limit: u64,
}

/// What a push changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// Nothing that the application waits for.
    Nothing,
    /// The application has more to do.
    News,
    /// The broker sends without end, whatever credit it has: it must not fill the memory.
    BeyondCredit,
}

/// What the broker says when it ends a subscription.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) error: Error,
    pub(super) corrupt: Option<Range<Offset>>,
    pub(super) log_range: Option<Range<Offset>>,
}

/// A partition has been damaged for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Impatient;

impl Part {
    /// Whether damage may still be repaired.
    fn is_patient(&mut self, now: Instant, patience: Duration) -> bool {
        now.saturating_duration_since(*self.corrupt_since.get_or_insert(now)) < patience
    }
}

impl Feed {
    pub(super) fn new(
        starts: impl IntoIterator<Item = (PartitionId, Offset)>,
        start: StartAt,
        share: u64,
        policy: RetryPolicy,
        repair_timeout: Duration,
    ) -> Self {
        let part = |(partition, offset)| Part {
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
        };
        Self {
            parts: starts.into_iter().map(part).collect(),
            by_id: HashMap::new(),
            next_id: 1,
            ready: VecDeque::new(),
            share,
            policy,
            repair_timeout,
            fatal: Fatal::No,
        }
    }

    /// The place of a partition.
    pub(super) fn find(&self, partition: PartitionId) -> Option<PartIndex> {
        self.parts.iter().position(|part| part.partition == partition)
    }

    pub(super) fn partition(&self, index: PartIndex) -> PartitionId {
        self.parts[index].partition
    }

    /// The partition of a live subscription.
    pub(super) fn partition_of(&self, id: u64) -> Option<PartitionId> {
        self.by_id.get(&id).map(|index| self.parts[*index].partition)
    }

    pub(super) fn high_watermark(&self, index: PartIndex) -> Offset {
        self.parts[index].high_watermark
    }

    /// Where a partition's position has to be looked up again before it is subscribed.
    pub(super) fn generation(&self, index: PartIndex) -> u64 {
        self.parts[index].generation
    }

    /// Takes the partitions that are to be subscribed now. Returns when the next one is.
    pub(super) fn take_due(&mut self, now: Instant, due: &mut Vec<PartIndex>) -> Option<Instant> {
        let mut earliest: Option<Instant> = None;
        for (index, part) in self.parts.iter_mut().enumerate() {
            let State::Waiting { not_before } = part.state else { continue };
            match not_before.filter(|not_before| *not_before > now) {
                Some(later) => earliest = Some(earliest.map_or(later, |earliest| earliest.min(later))),
                None => {
                    part.state = State::Preparing;
                    due.push(index);
                }
            }
        }
        earliest
    }

    /// Opens a subscription of a partition that was due, unless the application has gone elsewhere.
    pub(super) fn subscribe(&mut self, index: PartIndex, link: LinkId) -> Option<Subscribing> {
        let part = &mut self.parts[index];
        if !matches!(part.state, State::Preparing) {
            return None;
        }
        let id = self.next_id;
        self.next_id += 1;
        let credit = self.share.saturating_sub(part.held);
        part.state = State::Subscribed { id, link, received: 0, limit: credit };
        self.by_id.insert(id, index);
        Some(Subscribing { id, partition: part.partition, offset: part.next_offset, credit })
    }

    /// A partition that was due cannot be subscribed yet.
    pub(super) fn postpone(&mut self, index: PartIndex, now: Instant, random: u64) {
        let part = &mut self.parts[index];
        if matches!(part.state, State::Preparing) {
            part.state = State::Waiting { not_before: Some(now + part.backoff.next(random)) };
        }
    }

    /// The broker told where a partition stands.
    pub(super) fn subscribed(&mut self, id: u64, high_watermark: Offset) {
        let Some(part) = self.by_id.get(&id).map(|index| &mut self.parts[*index]) else { return };
        part.backoff.reset();
        part.high_watermark = part.high_watermark.max(high_watermark);
    }

    /// Batches came, or only a watermark.
    pub(super) fn push(&mut self, id: u64, high_watermark: Offset, bytes: Bytes) -> Pushed {
        let Some(&index) = self.by_id.get(&id) else { return Pushed::Nothing };
        let part = &mut self.parts[index];
        part.high_watermark = part.high_watermark.max(high_watermark);
        if bytes.is_empty() {
            return Pushed::Nothing;
        }
        let length = bytes.len() as u64;
        if let State::Subscribed { received, limit, .. } = &mut part.state {
            if *received > limit.saturating_add(FRAME_BYTES_MAX as u64) {
                return Pushed::BeyondCredit;
            }
            *received += length;
        }
        part.held += length;
        part.corrupt_since = None;
        part.next_offset = end_of(&bytes).map_or(part.next_offset, |end| end.max(part.next_offset));
        // From here on the position is known: going back to "earliest" would be a jump.
        part.start = StartAt::Offset(part.next_offset);
        part.items.push_back(Item::Chunk(bytes));
        if self.list(index) { Pushed::News } else { Pushed::Nothing }
    }

    /// A subscription was refused or ended by the broker. Returns whether the topic's metadata has to be asked for.
    pub(super) fn ended(&mut self, id: u64, end: End, now: Instant, random: u64) -> bool {
        let Some(index) = self.by_id.remove(&id) else { return false };
        let part = &mut self.parts[index];
        let lost = if end.error.is_retriable() { ErrorCode::ShuttingDown } else { ErrorCode::Internal };
        let code = end.error.code().unwrap_or(lost);
        let position_was_found = matches!(part.start, StartAt::Earliest | StartAt::Time(_));
        match code.duty() {
            Duty::Fail if code == ErrorCode::CorruptRange && part.is_patient(now, self.repair_timeout) => {
                part.state = State::Waiting { not_before: Some(now + part.backoff.next(random)) };
                true
            }
            Duty::Fail | Duty::None => {
                if code == ErrorCode::OffsetOutOfRange && position_was_found {
                    // Retention went past the position between the look-up and the subscription: look again.
                    part.state = State::Waiting { not_before: Some(now + part.backoff.next(random)) };
                    return false;
                }
                part.state = State::Stopped;
                let mut error = end.error;
                if let Some(range) = end.corrupt {
                    error = error.with_corrupt_range(range);
                }
                if let (ErrorCode::OffsetOutOfRange, Some(range)) = (code, end.log_range) {
                    error = error.with_log_range(range);
                }
                if error.kind() == ErrorKind::NotAuthorized {
                    self.fail(error);
                } else {
                    part.items.push_back(Item::Error(error));
                    self.list(index);
                }
                false
            }
            duty => {
                part.state = State::Waiting { not_before: Some(now + part.backoff.next(random)) };
                duty == Duty::RefreshMetadata
            }
        }
    }

    /// A partition's leader is another one now. Returns the subscription to end, if it has one elsewhere than on `link`.
    pub(super) fn moved(&mut self, index: PartIndex, to: Option<LinkId>) -> Option<(LinkId, u64)> {
        let part = &mut self.parts[index];
        match &mut part.state {
            State::Waiting { not_before } => *not_before = None,
            State::Subscribed { link, .. } if Some(*link) != to => {
                let old = self.unsubscribe(index);
                self.parts[index].state = State::Waiting { not_before: None };
                return old;
            }
            State::Subscribed { .. } | State::Preparing | State::Stopped => {}
        }
        None
    }

    /// How many partitions there are.
    pub(super) const fn part_count(&self) -> usize {
        self.parts.len()
    }

    /// Every subscription of a connection is over.
    pub(super) fn link_lost(&mut self, lost: LinkId, now: Instant, random: u64) {
        for part in &mut self.parts {
            if let State::Subscribed { id, link, .. } = part.state
                && link == lost
            {
                self.by_id.remove(&id);
                part.state = State::Waiting { not_before: Some(now + part.backoff.next(random)) };
            }
        }
    }

    /// The next thing for the application.
    pub(super) fn take(&mut self) -> Taken {
        match std::mem::replace(&mut self.fatal, Fatal::Told) {
            Fatal::No => self.fatal = Fatal::No,
            Fatal::ToTell(error) => return Taken::Error(error),
            Fatal::Told => return Taken::Over,
        }
        let Some(index) = self.ready.pop_front() else {
            let over =
                self.parts.iter().all(|part| matches!(part.state, State::Stopped) && part.items.is_empty());
            return if over { Taken::Over } else { Taken::Nothing };
        };
        let part = &mut self.parts[index];
        part.listed = false;
        let item = part.items.pop_front();
        let taken = match item {
            Some(Item::Chunk(bytes)) => Taken::Chunk(Chunk {
                part: index,
                generation: part.generation,
                charged: bytes.len() as u64,
                bytes,
                high_watermark: part.high_watermark,
            }),
            Some(Item::Error(error)) => Taken::Error(error),
            None => Taken::Nothing,
        };
        self.list(index);
        taken
    }

    /// Returns what was taken and not used up, because the partition was paused.
    pub(super) fn put_back(&mut self, chunk: Chunk) {
        let part = &mut self.parts[chunk.part];
        if part.generation == chunk.generation {
            part.held -= chunk.charged - chunk.bytes.len() as u64;
            part.items.push_front(Item::Chunk(chunk.bytes));
            self.list(chunk.part);
        }
    }

    /// The application is done with bytes of a partition. Returns the credit to give for it.
    pub(super) fn consumed(&mut self, index: PartIndex, generation: u64, bytes: u64) -> Option<Grant> {
        let share = self.share;
        let part = &mut self.parts[index];
        if part.generation != generation {
            return None;
        }
        part.held -= bytes;
        let State::Subscribed { id, link, received, limit } = &mut part.state else { return None };
        let wanted = *received + share.saturating_sub(part.held);
        // Not for every batch: a quarter of the share at a time keeps the broker sending.
        let worth_it = wanted > *limit && (wanted - *limit >= share / 4 || part.held == 0);
        if !worth_it {
            return None;
        }
        *limit = wanted;
        Some(Grant { link: *link, id: *id, limit: wanted })
    }

    /// Goes on elsewhere. Returns the subscription to end, if there is one.
    pub(super) fn seek(&mut self, index: PartIndex, start: StartAt, offset: Offset) -> Option<(LinkId, u64)> {
        let old = self.unsubscribe(index);
        let part = &mut self.parts[index];
        part.generation += 1;
        part.items.clear();
        part.held = 0;
        part.next_offset = offset;
        part.start = start;
        part.state = State::Waiting { not_before: None };
        part.backoff = Backoff::new(self.policy);
        old
    }

    /// What was received of a partition is damaged from `offset` on: it is read again from there after a pause. `Err`: it
    /// has been for too long, and the partition is as it was.
    pub(super) fn read_again(
        &mut self,
        index: PartIndex,
        (offset, since): (Offset, Instant),
        now: Instant,
        random: u64,
    ) -> Result<Option<(LinkId, u64)>, Impatient> {
        if now.saturating_duration_since(since) >= self.repair_timeout {
            return Err(Impatient);
        }
        let old = self.stop(index);
        let part = &mut self.parts[index];
        part.next_offset = offset;
        part.start = StartAt::Offset(offset);
        part.state = State::Waiting { not_before: Some(now + part.backoff.next(random)) };
        Ok(old)
    }

    /// Holds a partition where it is, because of an error that the application has been told.
    pub(super) fn stop(&mut self, index: PartIndex) -> Option<(LinkId, u64)> {
        let old = self.unsubscribe(index);
        let part = &mut self.parts[index];
        part.generation += 1;
        part.items.clear();
        part.held = 0;
        part.state = State::Stopped;
        old
    }

    fn unsubscribe(&mut self, index: PartIndex) -> Option<(LinkId, u64)> {
        let State::Subscribed { id, link, .. } = self.parts[index].state else { return None };
        self.by_id.remove(&id);
        Some((link, id))
    }

    pub(super) fn set_paused(&mut self, index: PartIndex, paused: bool) {
        self.parts[index].paused = paused;
        if paused {
            self.ready.retain(|ready| *ready != index);
            self.parts[index].listed = false;
        } else {
            self.list(index);
        }
    }

    /// Whether a position has to be looked up again before subscribing: how it was asked for, if so.
    pub(super) fn lookup(&self, index: PartIndex) -> Option<StartAt> {
        let part = &self.parts[index];
        // The first attempt uses the offset that was found when the position was set.
        let again = part.backoff.failure_count() > 0;
        (again && matches!(part.start, StartAt::Earliest | StartAt::Time(_))).then_some(part.start)
    }

    /// A position was looked up again.
    pub(super) fn found(&mut self, index: PartIndex, generation: u64, offset: Offset) {
        let part = &mut self.parts[index];
        if part.generation == generation {
            part.next_offset = offset;
        }
    }

    /// Ends the stream with an error, told once.
    pub(super) fn fail(&mut self, error: Error) {
        if matches!(self.fatal, Fatal::No) {
            self.fatal = Fatal::ToTell(error);
        }
    }

    fn list(&mut self, index: PartIndex) -> bool {
        let part = &mut self.parts[index];
        if part.paused || part.items.is_empty() || part.listed {
            return false;
        }
        part.listed = true;
        self.ready.push_back(index);
        true
    }
}

/// The offset after the last whole batch. Nothing is verified here: the application's side does that before it uses
/// any of it, and a position that is too small only means that batches come twice and are passed over.
fn end_of(mut bytes: &[u8]) -> Option<Offset> {
    let mut end = None;
    while let Ok(header) = BatchHeader::decode(bytes) {
        end = Some(header.end_offset());
        match bytes.get(header.length()..) {
            Some(rest) => bytes = rest,
            None => break,
        }
    }
    end
}

#[cfg(test)]
mod tests;
