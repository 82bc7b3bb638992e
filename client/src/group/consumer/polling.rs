//! What the application gets next.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use highwater_protocol::ids::{LeaderEpoch, Offset};

use super::{Commit, GroupConsumer, Part};
use crate::consumer::{Clamp, PartIndex, Read, now};
use crate::error::Error;
use crate::group::Finishing;
use crate::group::coordinator::may_pass;
use crate::group::member::Reason;
use crate::group::records::{
    AssignedPartition, GroupBatch, GroupEvent, GroupPartition, GroupRecord, LossCause,
};
use crate::group::session::{Adopted, Change, Request};
use crate::group::tracker::Tracker;
use crate::record::{ConsumedBatch, ConsumedRecord};

/// Something for the application.
#[derive(Debug)]
pub(super) enum Item {
    Record(GroupRecord),
    Batch(GroupBatch),
    Event(GroupEvent),
}

/// At most once: a batch that may be handed out when its position is committed.
#[derive(Debug)]
pub(super) struct Unsure {
    index: PartIndex,
    batch: ConsumedBatch,
    commit: Commit,
}

impl Unsure {
    pub(super) const fn index(&self) -> PartIndex {
        self.index
    }
}

type Polled<T> = Poll<Option<Result<T, Error>>>;

impl GroupConsumer {
    /// The next item: batches, or records one by one, and events.
    pub(super) fn poll_item(&mut self, context: &mut Context<'_>, batches: bool) -> Polled<Item> {
        let now = now();
        self.session.asked();
        if self.finishing == Finishing::Next {
            self.finish_handed_out();
        }
        self.release();
        let polled = self.poll_next_item(context, batches, now);
        match &polled {
            Poll::Ready(_) => self.session.given(now),
            Poll::Pending => self.session.waits(),
        }
        polled
    }

    /// Everything that was handed out is done with, unless the application says so itself.
    pub(super) fn finish_handed_out(&mut self) {
        if self.finishing != Finishing::Next {
            return;
        }
        let Some(index) = self.handed_out.take() else { return };
        if let (Some(part), Some(position)) = (self.parts.get(&index), self.reader.position(index)) {
            part.finished.set(position, self.reader.epoch(index));
        }
    }

    fn poll_next_item(&mut self, context: &mut Context<'_>, batches: bool, now: Instant) -> Polled<Item> {
        loop {
            if self.over {
                return Poll::Ready(None);
            }
            if self.finishing == Finishing::Before {
                match self.poll_committed(context, batches) {
                    Some(Poll::Ready(item)) => return Poll::Ready(item),
                    Some(Poll::Pending) => return Poll::Pending,
                    None => {}
                }
            }
            if self.session.wants_attention() {
                self.changes.extend(self.session.take_changes());
            }
            if let Some(change) = self.changes.pop_front() {
                match self.take_in(change) {
                    Some(item) => return Poll::Ready(item),
                    None => continue,
                }
            }
            if !self.session.has_lease(now) {
                // Somebody else may have the partitions by now: nothing is given out until the coordinator has answered.
                self.reader.wait(context.waker());
                if self.session.wants_attention() || self.session.has_lease(now) {
                    continue;
                }
                return Poll::Pending;
            }
            match self.poll_reader(context, batches) {
                Poll::Ready(Some(item)) => return Poll::Ready(Some(item)),
                Poll::Ready(None) => {}
                // What is told after the waker was registered wakes; what was told before is taken in now.
                Poll::Pending if self.session.wants_attention() => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// `Ready(None)`: look again.
    fn poll_reader(&mut self, context: &mut Context<'_>, batches: bool) -> Polled<Item> {
        if batches || self.finishing == Finishing::Before {
            match std::task::ready!(self.reader.poll_batch(context)) {
                Some(Ok(Read::Got(index, batch))) if self.finishing == Finishing::Before => {
                    self.commit_first(index, batch);
                    Poll::Ready(None)
                }
                Some(Ok(Read::Got(index, batch))) => Poll::Ready(self.give_batch(index, batch).map(Ok)),
                Some(Ok(Read::Clamped(index, clamp))) => Poll::Ready(self.clamped(index, clamp).map(Ok)),
                Some(Err(error)) => Poll::Ready(Some(Err(error.with_group(&self.session.group)))),
                None => Poll::Ready(None),
            }
        } else {
            match std::task::ready!(self.reader.poll_record(context)) {
                Some(Ok(Read::Got(index, record))) => Poll::Ready(self.give_record(index, record).map(Ok)),
                Some(Ok(Read::Clamped(index, clamp))) => Poll::Ready(self.clamped(index, clamp).map(Ok)),
                Some(Err(error)) => Poll::Ready(Some(Err(error.with_group(&self.session.group)))),
                None => Poll::Ready(None),
            }
        }
    }

    /// At most once: what is committed and was not handed out comes before anything else. `None`: there is nothing.
    fn poll_committed(&mut self, context: &mut Context<'_>, batches: bool) -> Option<Polled<Item>> {
        if let Some(Unsure { commit, .. }) = &mut self.unsure {
            let Poll::Ready(result) = Pin::new(commit).poll(context) else {
                // A loss need not wait for it, and is found by who waits.
                return Some(Poll::Pending);
            };
            let Unsure { index, batch, .. } = self.unsure.take()?;
            let is_ours = self.parts.contains_key(&index);
            match result {
                Ok(()) => {
                    if batches {
                        return Some(Poll::Ready(self.give_batch(index, batch).map(Ok)));
                    }
                    if let Err(error) = self.reader.begin(index, batch) {
                        return Some(Poll::Ready(Some(Err(error.with_group(&self.session.group)))));
                    }
                }
                // Whether it was committed is not known: it is tried again while the partition is the member's own.
                Err(error) if may_pass(&error) && is_ours => self.commit_first(index, batch),
                Err(error) => {
                    tracing::debug!(%error, "records are left to whoever has the partition now");
                }
            }
        }
        if self.unsure.is_some() {
            return self.poll_committed(context, batches);
        }
        if self.reader.begun().is_some() {
            if batches {
                if let Poll::Ready(Some(Ok(Read::Got(index, batch)))) = self.reader.poll_batch(context) {
                    return Some(Poll::Ready(self.give_batch(index, batch).map(Ok)));
                }
            } else if let Some((index, record)) = self.reader.next_begun() {
                return Some(Poll::Ready(self.give_record(index, record).map(Ok)));
            }
        }
        None
    }

    /// Commits the position after a batch before it is handed out.
    fn commit_first(&mut self, index: PartIndex, batch: ConsumedBatch) {
        let Some(part) = self.parts.get(&index) else { return };
        part.finished.set(batch.end_offset(), batch.leader_epoch());
        let commit = self.start_commit(Vec::new());
        self.unsure = Some(Unsure { index, batch, commit });
    }

    fn give_record(&mut self, index: PartIndex, record: ConsumedRecord) -> Option<Item> {
        let end = record.offset.next();
        let name = self.give(index, record.offset, end)?;
        Some(Item::Record(GroupRecord::new(name, record)))
    }

    fn give_batch(&mut self, index: PartIndex, batch: ConsumedBatch) -> Option<Item> {
        let topic = self.give(index, batch.first_offset(), batch.end_offset())?;
        Some(Item::Batch(GroupBatch { topic, batch }))
    }

    /// Notes that something is handed out. Returns its topic; `None`: the partition is not the member's any more.
    fn give(&mut self, index: PartIndex, first: Offset, end: Offset) -> Option<Arc<str>> {
        let epoch = self.reader.epoch(index);
        let part = self.parts.get_mut(&index)?;
        let topic = Arc::clone(&part.name.topic);
        match &mut part.tracker {
            Some(tracker) => {
                tracker.handed_out(first, end, epoch);
                self.hold_or_release(index);
            }
            None => self.handed_out = Some(index),
        }
        Some(topic)
    }

    fn clamped(&mut self, index: PartIndex, clamp: Clamp) -> Option<Item> {
        let part = self.parts.get_mut(&index)?;
        let Clamp { wanted, log_range, position } = clamp;
        tracing::warn!(
            group = %self.session.group, partition = %part.name, %wanted, %position,
            log_start = %log_range.start, log_end = %log_range.end,
            "the position is not in the log; reading goes on at the nearest offset"
        );
        part.finished.set(position, LeaderEpoch(0));
        part.tracker = part.tracker.as_ref().map(|_| Tracker::new(position));
        let partition = part.name.clone();
        Some(Item::Event(GroupEvent::Clamped { partition, wanted, log_range, position }))
    }

    /// Takes in a change. Returns what the application is to know of it.
    fn take_in(&mut self, change: Change) -> Option<Option<Result<Item, Error>>> {
        match change {
            Change::Assigned(adopted) => {
                let assigned = adopted.into_iter().map(|adopted| self.adopt(adopted)).collect();
                Some(Some(Ok(Item::Event(GroupEvent::Assigned(assigned)))))
            }
            Change::Revoke(indices) => {
                // Nothing of them comes any more, but until it asks again the application can finish what it has.
                for index in &indices {
                    self.reader.silence(*index);
                }
                let parts = indices.iter().filter_map(|index| self.parts.get(index));
                let partitions = parts.map(|part| part.name.clone()).collect();
                self.releasing = indices;
                Some(Some(Ok(Item::Event(GroupEvent::Revoked(partitions)))))
            }
            Change::Lost(indices, reason) => {
                let partitions = self.let_go(&indices);
                let cause = match reason {
                    Reason::Fenced => LossCause::SessionTimeout,
                    Reason::Away => LossCause::ApplicationAway,
                    Reason::Over => LossCause::Ended,
                };
                (!partitions.is_empty())
                    .then_some(Some(Ok(Item::Event(GroupEvent::Lost { partitions, cause }))))
            }
            Change::Over(error) => {
                self.over = true;
                Some(error.map(Err))
            }
        }
    }

    fn adopt(&mut self, adopted: Adopted) -> AssignedPartition {
        let Adopted { index, topic, partition, position, metadata, finished } = adopted;
        let at = highwater_protocol::ids::TopicPartition::new(topic.id, partition);
        let name = GroupPartition { topic: Arc::clone(&topic.name), partition };
        self.reader.add(index, topic, partition, position);
        let tracker = (self.finishing == Finishing::Explicit).then(|| Tracker::new(position));
        let part = Part { name: name.clone(), at, finished, tracker, paused: false, held: false };
        self.parts.insert(index, part);
        AssignedPartition { partition: name, position, metadata }
    }

    /// The application has been told of what is revoked, and asks for more.
    fn release(&mut self) {
        if !self.releasing.is_empty() {
            let indices = std::mem::take(&mut self.releasing);
            self.let_go(&indices);
            self.session.request(Request::Released(indices));
        }
    }

    /// Hands out nothing more of these, and forgets them.
    fn let_go(&mut self, indices: &[PartIndex]) -> Vec<GroupPartition> {
        let mut names = Vec::new();
        for index in indices {
            self.unsure.take_if(|unsure| unsure.index == *index);
            self.handed_out.take_if(|handed_out| *handed_out == *index);
            self.reader.remove(*index);
            names.extend(self.parts.remove(index).map(|part| part.name));
        }
        names
    }
}
