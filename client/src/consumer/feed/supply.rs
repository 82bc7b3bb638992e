//! The application's side of the feed: taking what came, giving back what is used up, going elsewhere.

use std::collections::VecDeque;
use std::time::Instant;

use highwater_protocol::ids::Offset;

use super::part::{Item, State};
use super::{Chunk, Fatal, Feed, Grant, Impatient, LinkId, PartIndex, Scope, Taken};
use crate::consumer::StartAt;
use crate::retry::Backoff;

/// What has to be looked up before a partition is subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::consumer) enum Lookup {
    /// Where this is by now.
    Start(StartAt),
    /// Which offsets the log has.
    Range,
}

impl Feed {
    /// The next thing for the application.
    pub(in crate::consumer) fn take(&mut self) -> Taken {
        match std::mem::replace(&mut self.fatal, Fatal::Told) {
            Fatal::No => self.fatal = Fatal::No,
            Fatal::ToTell(error) => return Taken::Error(error),
            Fatal::Told => return Taken::Over,
        }
        if let Some(notice) = self.notices.pop_front() {
            return Taken::Error(notice);
        }
        while let Some(index) = self.ready.pop_front() {
            let Some(part) = self.parts.get_mut(&index) else { continue };
            part.listed = false;
            let taken = match part.items.pop_front() {
                Some(Item::Chunk(bytes)) => Taken::Chunk(Chunk {
                    part: index,
                    generation: part.generation,
                    charged: bytes.len() as u64,
                    bytes,
                    high_watermark: part.high_watermark,
                }),
                Some(Item::Error(error)) => Taken::Error(error),
                Some(Item::Clamped(clamp)) => Taken::Clamped(index, clamp),
                // The application has gone elsewhere since it was listed.
                None => continue,
            };
            self.list(index);
            return taken;
        }
        let is_over = |part: &super::Part| matches!(part.state, State::Stopped) && part.items.is_empty();
        let over = self.scope == Scope::Topic && self.parts.values().all(is_over);
        if over { Taken::Over } else { Taken::Nothing }
    }

    /// Returns what was taken and not used up, because the partition was paused.
    pub(in crate::consumer) fn put_back(&mut self, chunk: Chunk) {
        let index = chunk.part;
        self.change(index, |part| {
            if part.generation == chunk.generation {
                part.held -= chunk.charged - chunk.bytes.len() as u64;
                part.items.push_front(Item::Chunk(chunk.bytes));
            }
        });
        self.list(index);
    }

    /// The application is done with bytes of a partition. Returns the credit to give for it.
    pub(in crate::consumer) fn consumed(
        &mut self,
        index: PartIndex,
        generation: u64,
        bytes: u64,
    ) -> Option<Grant> {
        let current = self.change(index, |part| {
            let current = part.generation == generation;
            if current {
                part.held -= bytes;
            }
            current
        })?;
        if !current {
            return None;
        }
        let (room, share) = (self.room(index)?, self.share());
        self.change(index, |part| {
            let is_empty = part.held == 0;
            let State::Subscribed { id, link, received, limit } = &mut part.state else { return None };
            let wanted = *received + room;
            // Not for every batch: a quarter of the share at a time keeps the broker sending.
            let worth_it = wanted > *limit && (wanted - *limit >= share / 4 || is_empty);
            if !worth_it {
                return None;
            }
            *limit = wanted;
            Some(Grant { link: *link, id: *id, limit: wanted })
        })?
    }

    /// Goes on elsewhere. Returns the subscription to end, if there is one.
    pub(in crate::consumer) fn seek(
        &mut self,
        index: PartIndex,
        start: StartAt,
        offset: Offset,
    ) -> Option<(LinkId, u64)> {
        let old = self.stop(index);
        let policy = self.policy;
        self.change(index, |part| {
            part.next_offset = offset;
            part.start = start;
            part.state = State::Waiting { not_before: None };
            part.backoff = Backoff::new(policy);
        });
        old
    }

    /// What was received of a partition is damaged from `offset` on: it is read again from there after a pause. `Err`: it
    /// has been for too long, and the partition is as it was.
    pub(in crate::consumer) fn read_again(
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
        self.change(index, |part| {
            part.next_offset = offset;
            part.start = StartAt::Offset(offset);
            part.wait(now, random);
        });
        Ok(old)
    }

    /// Holds a partition where it is, because of an error that the application has been told.
    pub(in crate::consumer) fn stop(&mut self, index: PartIndex) -> Option<(LinkId, u64)> {
        let old = self.unsubscribe(index);
        self.change(index, |part| {
            part.generation += 1;
            part.items = VecDeque::new();
            part.held = 0;
            part.range_wanted = false;
            part.state = State::Stopped;
        });
        old
    }

    pub(in crate::consumer) fn set_paused(&mut self, index: PartIndex, paused: bool) {
        let Some(part) = self.parts.get_mut(&index) else { return };
        part.paused = paused;
        if paused {
            part.listed = false;
            self.ready.retain(|ready| *ready != index);
        } else {
            self.list(index);
        }
    }

    /// Whether something has to be looked up before a partition is subscribed, and for which of its generations.
    pub(in crate::consumer) fn lookup(&self, index: PartIndex) -> Option<(Lookup, u64)> {
        let part = self.parts.get(&index)?;
        if part.range_wanted {
            return Some((Lookup::Range, part.generation));
        }
        // The first attempt uses the offset that was found when the position was set.
        let again = part.backoff.failure_count() > 0 && part.position_was_found();
        again.then_some((Lookup::Start(part.start), part.generation))
    }

    /// A position was looked up again.
    pub(in crate::consumer) fn found(&mut self, index: PartIndex, generation: u64, offset: Offset) {
        if let Some(part) = self.parts.get_mut(&index).filter(|part| part.generation == generation) {
            part.next_offset = offset;
        }
    }

    /// What the log has was looked up for a position outside of it.
    pub(in crate::consumer) fn found_range(
        &mut self,
        index: PartIndex,
        generation: u64,
        log_range: std::ops::Range<Offset>,
        (now, random): (Instant, u64),
    ) {
        if let Some(part) = self.parts.get_mut(&index).filter(|part| part.generation == generation) {
            part.clamp(log_range, (now, random));
            self.list(index);
        }
    }
}
