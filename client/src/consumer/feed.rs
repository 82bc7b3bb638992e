//! What a consumer has received and may still receive, partition by partition. Pure: the clock is the caller's.

mod part;
mod supply;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use highwater_protocol::batch::BatchHeader;
use highwater_protocol::ids::{Offset, PartitionId};
use highwater_protocol::limits::FRAME_BYTES_MAX;

pub(crate) use self::part::{Clamp, Topic};
use self::part::{Item, Part, State, Verdict};
pub(super) use self::supply::Lookup;
use super::StartAt;
use crate::error::Error;
use crate::retry::RetryPolicy;

/// Which connection, in the order in which they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LinkId(pub(super) u64);

/// A partition's place in the feed. Never used for another one.
pub(crate) type PartIndex = usize;

/// Partitions, their subscriptions and what came over them. Partitions come and go while the others flow.
#[derive(Debug)]
pub(super) struct Feed {
    parts: BTreeMap<PartIndex, Part>,
    next_index: PartIndex,
    /// Live subscriptions. Ids are never used twice, so that what comes late for an old one is dropped.
    by_id: HashMap<u64, PartIndex>,
    next_id: u64,
    /// Partitions with something for the application, in turn.
    ready: VecDeque<PartIndex>,
    memory: Memory,
    /// Bytes that are here or that brokers may send.
    ///
    /// Invariant: the sum of the charges of all parts.
    charged: u64,
    policy: RetryPolicy,
    /// For how long damage may be repaired before the application is told.
    repair_timeout: Duration,
    scope: Scope,
    /// Errors that concern no partition alone, to be told once each.
    notices: VecDeque<Error>,
    /// The end of everything, told once.
    fatal: Fatal,
}

/// How many bytes may be here or on their way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// Over all partitions, each of which has an equal share.
    pub(super) bytes: u64,
    /// Bytes that every partition may have, however many there are and whatever the others still have.
    pub(super) share_min: u64,
}

/// What the partitions have to do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// They are those of one topic: without it the stream ends, and so it does when none of them can give anything.
    Topic,
    /// They are a member's, as assigned at the moment: there may be none, and topics come and go. Positions outside the
    /// log are moved into it.
    Group,
}

#[derive(Debug)]
enum Fatal {
    No,
    ToTell(Error),
    Told,
}

/// Something for the application.
#[derive(Debug)]
pub(super) enum Taken {
    Chunk(Chunk),
    Error(Error),
    /// The position was not in the log: it is another one now.
    Clamped(PartIndex, Clamp),
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subscribing {
    pub(super) id: u64,
    pub(super) topic: Topic,
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

impl Feed {
    /// A feed without partitions.
    pub(super) fn new(scope: Scope, memory: Memory, policy: RetryPolicy, repair_timeout: Duration) -> Self {
        Self {
            parts: BTreeMap::new(),
            next_index: 0,
            by_id: HashMap::new(),
            next_id: 1,
            ready: VecDeque::new(),
            memory,
            charged: 0,
            policy,
            repair_timeout,
            scope,
            notices: VecDeque::new(),
            fatal: Fatal::No,
        }
    }

    /// Another partition, to be read from `offset` on, which was found for `start`.
    pub(super) fn add(
        &mut self,
        topic: Topic,
        partition: PartitionId,
        start: StartAt,
        offset: Offset,
    ) -> PartIndex {
        let index = self.next_index;
        self.next_index += 1;
        self.parts.insert(index, Part::new(topic, partition, (start, offset), self.policy));
        index
    }

    /// A partition that is not to be read any more: nothing of it is given out from here on. Returns the subscription to
    /// end, if there is one.
    pub(super) fn remove(&mut self, index: PartIndex) -> Option<(LinkId, u64)> {
        let old = self.unsubscribe(index);
        if let Some(part) = self.parts.remove(&index) {
            self.charged -= part.charge();
        }
        self.ready.retain(|ready| *ready != index);
        old
    }

    /// Where a partition belongs, and which one it is.
    pub(super) fn place(&self, index: PartIndex) -> Option<(Topic, PartitionId)> {
        self.parts.get(&index).map(|part| (part.topic.clone(), part.partition))
    }

    /// All partitions.
    pub(super) fn places(&self) -> Vec<(PartIndex, Topic, PartitionId)> {
        self.parts.iter().map(|(index, part)| (*index, part.topic.clone(), part.partition)).collect()
    }

    /// The partition of a live subscription.
    pub(super) fn place_of(&self, id: u64) -> Option<(Topic, PartitionId)> {
        self.place(*self.by_id.get(&id)?)
    }

    pub(super) fn high_watermark(&self, index: PartIndex) -> Option<Offset> {
        self.parts.get(&index).map(|part| part.high_watermark)
    }

    pub(super) const fn scope(&self) -> Scope {
        self.scope
    }

    /// Takes the partitions that are to be subscribed now. Returns when the next one is.
    pub(super) fn take_due(&mut self, now: Instant, due: &mut Vec<PartIndex>) -> Option<Instant> {
        let mut earliest: Option<Instant> = None;
        for (index, part) in &mut self.parts {
            let State::Waiting { not_before } = part.state else { continue };
            match not_before.filter(|not_before| *not_before > now) {
                Some(later) => earliest = Some(earliest.map_or(later, |earliest| earliest.min(later))),
                None => {
                    part.state = State::Preparing;
                    due.push(*index);
                }
            }
        }
        earliest
    }

    /// Opens a subscription of a partition that was due, unless the application has gone elsewhere.
    pub(super) fn subscribe(&mut self, index: PartIndex, link: LinkId) -> Option<Subscribing> {
        let credit = self.room(index)?;
        let id = self.next_id;
        let subscribing = self.change(index, |part| {
            if !matches!(part.state, State::Preparing) {
                return None;
            }
            part.state = State::Subscribed { id, link, received: 0, limit: credit };
            let (topic, partition) = (part.topic.clone(), part.partition);
            Some(Subscribing { id, topic, partition, offset: part.next_offset, credit })
        })??;
        self.next_id += 1;
        self.by_id.insert(id, index);
        Some(subscribing)
    }

    /// A partition that was due cannot be subscribed yet.
    pub(super) fn postpone(&mut self, index: PartIndex, now: Instant, random: u64) {
        self.change(index, |part| {
            if matches!(part.state, State::Preparing) {
                part.wait(now, random);
            }
        });
    }

    /// The broker told where a partition stands.
    pub(super) fn subscribed(&mut self, id: u64, high_watermark: Offset) {
        let part = self.by_id.get(&id).and_then(|index| self.parts.get_mut(index));
        let Some(part) = part else { return };
        part.backoff.reset();
        part.high_watermark = part.high_watermark.max(high_watermark);
    }

    /// Batches came, or only a watermark.
    pub(super) fn push(&mut self, id: u64, high_watermark: Offset, bytes: Bytes) -> Pushed {
        let Some(&index) = self.by_id.get(&id) else { return Pushed::Nothing };
        let length = bytes.len() as u64;
        let took = self.change(index, |part| {
            part.high_watermark = part.high_watermark.max(high_watermark);
            if bytes.is_empty() {
                return Some(false);
            }
            if let State::Subscribed { received, limit, .. } = &mut part.state {
                if *received > limit.saturating_add(FRAME_BYTES_MAX as u64) {
                    return None;
                }
                *received += length;
            }
            part.held += length;
            part.corrupt_since = None;
            part.next_offset = end_of(&bytes).map_or(part.next_offset, |end| end.max(part.next_offset));
            // From here on the position is known: going back to "earliest" would be a jump.
            part.start = StartAt::Offset(part.next_offset);
            part.items.push_back(Item::Chunk(bytes));
            Some(true)
        });
        match took.flatten() {
            None => Pushed::BeyondCredit,
            Some(true) if self.list(index) => Pushed::News,
            Some(_) => Pushed::Nothing,
        }
    }

    /// A subscription was refused or ended by the broker. Returns whether the topic's metadata has to be asked for.
    pub(super) fn ended(&mut self, id: u64, end: End, now: Instant, random: u64) -> bool {
        let Some(index) = self.by_id.remove(&id) else { return false };
        let (scope, patience) = (self.scope, self.repair_timeout);
        let verdict = self.change(index, |part| part.ended(end, scope, patience, (now, random)));
        self.list(index);
        match verdict {
            Some(Verdict::Fatal(error)) => self.end(error),
            Some(Verdict::Elsewhere) => return true,
            Some(Verdict::Settled) | None => {}
        }
        false
    }

    /// A partition's leader is another one now. Returns the subscription to end, if it has one elsewhere than on `link`.
    pub(super) fn moved(&mut self, index: PartIndex, to: Option<LinkId>) -> Option<(LinkId, u64)> {
        match &mut self.parts.get_mut(&index)?.state {
            State::Waiting { not_before } => *not_before = None,
            State::Subscribed { link, .. } if Some(*link) != to => {
                let old = self.unsubscribe(index);
                self.change(index, |part| part.state = State::Waiting { not_before: None });
                return old;
            }
            State::Subscribed { .. } | State::Preparing | State::Stopped => {}
        }
        None
    }

    /// Every subscription of a connection is over. Returns the topics concerned.
    pub(super) fn link_lost(&mut self, lost: LinkId, now: Instant, random: u64) -> BTreeSet<Arc<str>> {
        let mut topics = BTreeSet::new();
        for part in self.parts.values_mut() {
            if let State::Subscribed { id, link, .. } = part.state
                && link == lost
            {
                self.by_id.remove(&id);
                self.charged -= part.outstanding();
                part.wait(now, random);
                topics.insert(Arc::clone(&part.topic.name));
            }
        }
        topics
    }

    /// What cannot be helped about a topic, told once: without it there is nothing to read, or the other topics go on.
    pub(super) fn fail(&mut self, topic: &str, error: Error) {
        if self.scope == Scope::Topic {
            return self.end(error);
        }
        let indices: Vec<PartIndex> = self
            .parts
            .iter()
            .filter_map(|(index, part)| {
                let live = &*part.topic.name == topic && !matches!(part.state, State::Stopped);
                live.then_some(*index)
            })
            .collect();
        if indices.is_empty() {
            return;
        }
        for index in indices {
            // Nothing comes over it: that it cannot be had is what failed.
            let _over = self.unsubscribe(index);
            self.change(index, |part| part.state = State::Stopped);
        }
        self.notices.push_back(error);
    }

    /// Ends the stream with an error, told once.
    fn end(&mut self, error: Error) {
        if matches!(self.fatal, Fatal::No) {
            self.fatal = Fatal::ToTell(error);
        }
    }

    /// Changes a partition and keeps count of what it takes of the memory. `None`: it is gone.
    fn change<R>(&mut self, index: PartIndex, change: impl FnOnce(&mut Part) -> R) -> Option<R> {
        let part = self.parts.get_mut(&index)?;
        let before = part.charge();
        let result = change(part);
        self.charged = self.charged - before + part.charge();
        Some(result)
    }

    /// Bytes that a partition may have.
    fn share(&self) -> u64 {
        (self.memory.bytes / (self.parts.len() as u64).max(1)).max(self.memory.share_min)
    }

    /// Bytes that may be on their way to a partition: what its share leaves. While others still have more than their
    /// share, because they were fewer when it was given, it gets what is free, and never less than the least share.
    fn room(&self, index: PartIndex) -> Option<u64> {
        let part = self.parts.get(&index)?;
        let wanted = self.share().saturating_sub(part.held);
        let free = self.memory.bytes.saturating_sub(self.charged);
        let least = self.memory.share_min.saturating_sub(part.held);
        Some(wanted.min((part.outstanding() + free).max(least)))
    }

    fn unsubscribe(&mut self, index: PartIndex) -> Option<(LinkId, u64)> {
        let State::Subscribed { id, link, .. } = self.parts.get(&index)?.state else { return None };
        self.by_id.remove(&id);
        Some((link, id))
    }

    fn list(&mut self, index: PartIndex) -> bool {
        let Some(part) = self.parts.get_mut(&index) else { return false };
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
