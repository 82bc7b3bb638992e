//! The application's side of a member: records and events in order, what is finished, commits.

mod polling;

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use highwater_protocol::ids::{LeaderEpoch, Offset, PartitionId, TopicPartition};
use highwater_protocol::limits::OFFSET_METADATA_BYTES_MAX;
use tokio::sync::oneshot;

use self::polling::{Item, Unsure};
use super::Finishing;
use super::records::{GroupBatch, GroupEvent, GroupPartition, GroupRecord};
use super::session::{Change, Explicit, Finished, Request, Session};
use super::tracker::Tracker;
use crate::consumer::{PartIndex, Reader, StartAt};
use crate::error::{Error, ErrorKind};

/// Records or batches of one partition that the application may have unfinished: beyond it the partition waits.
const UNFINISHED_MAX: usize = 100_000;

/// A position that an application commits itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOffset {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: PartitionId,
    /// The next offset to process.
    pub offset: Offset,
    /// Whatever the application wants to find again with the position, up to 4 KiB.
    pub metadata: String,
}

/// A commit on its way. Dropped, it goes on.
#[derive(Debug)]
#[must_use = "whether it was committed is only known when it is awaited"]
pub struct Commit {
    done: oneshot::Receiver<Result<(), Error>>,
    group: Arc<str>,
}

impl Future for Commit {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.done).poll(context).map(|done| done.unwrap_or_else(|_| Err(closed(&self.group))))
    }
}

/// A member of a consumer group: reads the partitions that the group gives it, a [`Stream`] of records, in order within each
/// partition.
///
/// Every record comes at least once: a position is committed, by itself every second unless the settings say
/// otherwise, once everything below it is finished, and a record is finished when the next one is asked for. When other
/// members join or leave, only the partitions that move are touched; all others flow on.
/// [`GroupConsumer::next_event`] tells of them, between the records.
///
/// Errors name group, topic and partition. After one that concerns a partition the others go on; the stream ends when the
/// consumer cannot be a member any more.
///
/// ```no_run
/// # async fn example(client: highwater_client::Client) -> Result<(), highwater_client::Error> {
/// let mut consumer = client.group_consumer("billing").topics(["orders"]).build().await?;
/// for _ in 0..1000 {
///     let Some(record) = consumer.next_record().await else { break };
///     let record = record?;
///     println!("{}/{}@{}: {:?}", record.topic, record.partition, record.offset, record.value);
/// }
/// consumer.close().await?;
/// # Ok(())
/// # }
/// ```
///
/// Dropped instead of closed, it commits what was finished and leaves in the background, if the runtime goes on.
#[derive(Debug)]
pub struct GroupConsumer {
    reader: Reader,
    session: Arc<Session>,
    finishing: Finishing,
    parts: BTreeMap<PartIndex, Part>,
    changes: VecDeque<Change>,
    /// What the last item was of, to be finished when the next one is asked for.
    handed_out: Option<PartIndex>,
    /// Revoked, as the application was told last.
    releasing: Vec<PartIndex>,
    /// At most once: a batch whose position is being committed.
    unsure: Option<Unsure>,
    over: bool,
    closed: bool,
}

/// A partition that the member has.
#[derive(Debug)]
struct Part {
    name: GroupPartition,
    at: TopicPartition,
    finished: Arc<Finished>,
    /// Only when records are finished explicitly.
    tracker: Option<Tracker>,
    /// By the application.
    paused: bool,
    /// Because too much is unfinished.
    held: bool,
}

impl GroupConsumer {
    pub(super) fn new(reader: Reader, session: Arc<Session>, finishing: Finishing) -> Self {
        Self {
            reader,
            session,
            finishing,
            parts: BTreeMap::new(),
            changes: VecDeque::new(),
            handed_out: None,
            releasing: Vec::new(),
            unsure: None,
            over: false,
            closed: false,
        }
    }

    /// The next record of any partition, or `None` when the stream has ended. The one before counts as finished. Events are
    /// passed over.
    ///
    /// Cancel safe: a record is taken only when it is returned.
    pub async fn next_record(&mut self) -> Option<Result<GroupRecord, Error>> {
        poll_fn(|context| self.poll_record(context)).await
    }

    /// The next batch of any partition: the fast path. What came before counts as finished. Events are passed over.
    ///
    /// Cancel safe: a batch is taken only when it is returned.
    pub async fn next_batch(&mut self) -> Option<Result<GroupBatch, Error>> {
        poll_fn(|context| self.poll_batch(context)).await
    }

    /// The next record or event: what happens to the consumer, in its place among the records. What came before counts as
    /// finished, and what was revoked by the event before is given up.
    ///
    /// Cancel safe: an event is taken only when it is returned.
    ///
    /// ```no_run
    /// # async fn example(mut consumer: highwater_client::GroupConsumer) -> Result<(), highwater_client::Error> {
    /// use highwater_client::GroupEvent;
    ///
    /// while let Some(event) = consumer.next_event().await {
    ///     match event? {
    ///         GroupEvent::Record(record) => println!("{}@{}", record.partition, record.offset),
    ///         GroupEvent::Assigned(partitions) => println!("begins with {partitions:?}"),
    ///         GroupEvent::Revoked(partitions) => println!("ends with {partitions:?}"),
    ///         other => println!("{other:?}"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn next_event(&mut self) -> Option<Result<GroupEvent, Error>> {
        poll_fn(|context| {
            self.poll_item(context, false).map_ok(|item| match item {
                Item::Record(record) => GroupEvent::Record(record),
                Item::Event(event) => event,
                // Records were asked for.
                Item::Batch(batch) => unreachable!("a batch of {}", batch.topic),
            })
        })
        .await
    }

    /// Commits what is finished, and waits until it is on stable storage of the group's coordinator. Everything handed out
    /// so far counts as finished, unless the application finishes records explicitly.
    ///
    /// Cancel safe in that the consumer stays usable; the commit goes on.
    ///
    /// # Errors
    /// `NotMember` when a partition is another member's by now, or what kept the coordinator from answering.
    pub async fn commit(&mut self) -> Result<(), Error> {
        self.commit_async().await
    }

    /// As [`GroupConsumer::commit`], without waiting.
    pub fn commit_async(&mut self) -> Commit {
        self.finish_handed_out();
        self.start_commit(Vec::new())
    }

    /// Commits these positions as they are, whatever is finished, and what is finished in all other partitions.
    ///
    /// Cancel safe in that the consumer stays usable; the commit goes on.
    ///
    /// # Errors
    /// As [`GroupConsumer::commit`]; `InvalidArgument` for too long a metadata.
    pub async fn commit_offsets(
        &mut self,
        offsets: impl IntoIterator<Item = GroupOffset>,
    ) -> Result<(), Error> {
        let mut explicit = Vec::new();
        for GroupOffset { topic, partition, offset, metadata } in offsets {
            let part = &self.parts[&self.index_of(&topic, partition)?];
            if metadata.len() > OFFSET_METADATA_BYTES_MAX {
                let text =
                    format!("metadata of {} bytes, more than {OFFSET_METADATA_BYTES_MAX}", metadata.len());
                let error = Error::new(ErrorKind::InvalidArgument, text).with_group(&self.session.group);
                return Err(error.with_partition(&topic, partition));
            }
            explicit.push(Explicit { at: part.at, offset, metadata });
        }
        self.start_commit(explicit).await
    }

    /// A record is finished. In any order: its position is committed once everything before it is finished too. Nothing
    /// happens for a record of a partition that is no longer the consumer's own.
    pub fn finish(&mut self, record: &GroupRecord) {
        let at = self.reader.find(Some(&record.topic), record.partition);
        self.finish_in(at, |tracker| {
            let _known = tracker.finish(record.offset);
        });
    }

    /// Everything below `offset` that was handed out of a partition is finished. Nothing happens if it is no longer the
    /// consumer's own.
    pub fn finish_before(&mut self, topic: &str, partition: PartitionId, offset: Offset) {
        let at = self.reader.find(Some(topic), partition);
        self.finish_in(at, |tracker| tracker.finish_before(offset));
    }

    /// Goes on from somewhere else in a partition. What had been received of it is dropped, and the new position counts as
    /// finished.
    ///
    /// Cancel safe: dropped before it is done, the position is unchanged.
    ///
    /// # Errors
    /// `NotMember` when the partition is not the consumer's own, or what kept the broker from answering.
    pub async fn seek(&mut self, topic: &str, partition: PartitionId, to: StartAt) -> Result<(), Error> {
        let index = self.index_of(topic, partition)?;
        let sought = self.reader.seek(index, to).await;
        let offset = sought.map_err(|error| error.with_group(&self.session.group))?;
        self.handed_out.take_if(|handed_out| *handed_out == index);
        self.unsure.take_if(|unsure| unsure.index() == index);
        if let Some(part) = self.parts.get_mut(&index) {
            part.finished.set(offset, LeaderEpoch(0));
            part.tracker = part.tracker.as_ref().map(|_| Tracker::new(offset));
        }
        self.hold_or_release(index);
        Ok(())
    }

    /// Holds a partition back: what was received stays in memory, what else the broker may send is bounded.
    ///
    /// # Errors
    /// `NotMember` when the partition is not the consumer's own.
    pub fn pause(&mut self, topic: &str, partition: PartitionId) -> Result<(), Error> {
        self.set_paused(topic, partition, true)
    }

    /// Goes on with a partition that was paused.
    ///
    /// # Errors
    /// `NotMember` when the partition is not the consumer's own.
    pub fn resume(&mut self, topic: &str, partition: PartitionId) -> Result<(), Error> {
        self.set_paused(topic, partition, false)
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.session.group
    }

    /// The partitions that it reads, as the events so far have told.
    #[must_use]
    pub fn partitions(&self) -> Vec<GroupPartition> {
        self.parts.values().map(|part| part.name.clone()).collect()
    }

    /// The offset of the next record that the application gets from a partition; `None` if it is not read.
    #[must_use]
    pub fn position(&self, topic: &str, partition: PartitionId) -> Option<Offset> {
        self.reader.position(self.reader.find(Some(topic), partition)?)
    }

    /// The next offset of a partition that was not committed by producers, as last heard; `None` if it is not read.
    #[must_use]
    pub fn high_watermark(&self, topic: &str, partition: PartitionId) -> Option<Offset> {
        self.reader.high_watermark(self.reader.find(Some(topic), partition)?)
    }

    /// Commits what is finished (not if the application commits manually) and leaves the group. Everything handed out counts
    /// as finished, unless the application finishes records explicitly.
    ///
    /// Dropped before it is done, it goes on in the background.
    ///
    /// # Errors
    /// What kept the consumer in the group before, or the coordinator from answering: the session time-out ends it then.
    pub async fn close(self) -> Result<(), Error> {
        self.end(false).await
    }

    /// As [`GroupConsumer::close`], for a static member that is started again soon: what it has is kept for it for the session
    /// time-out.
    ///
    /// # Errors
    /// As [`GroupConsumer::close`].
    pub async fn close_for_restart(self) -> Result<(), Error> {
        self.end(true).await
    }

    async fn end(mut self, for_restart: bool) -> Result<(), Error> {
        self.finish_handed_out();
        if self.over {
            return Ok(());
        }
        let (done, ended) = oneshot::channel();
        self.closed = true;
        self.session.request(Request::Close { for_restart, done });
        ended.await.unwrap_or(Ok(()))
    }

    fn start_commit(&self, offsets: Vec<Explicit>) -> Commit {
        let (done, committed) = oneshot::channel();
        let group = Arc::clone(&self.session.group);
        if self.over {
            let _ = done.send(Err(closed(&group)));
        } else {
            self.session.request(Request::Commit(offsets, done));
        }
        Commit { done: committed, group }
    }

    fn index_of(&self, topic: &str, partition: PartitionId) -> Result<PartIndex, Error> {
        let found = self.reader.find(Some(topic), partition).filter(|index| self.parts.contains_key(index));
        found.ok_or_else(|| {
            let text = "the partition is not this consumer's";
            let error = Error::new(ErrorKind::NotMember, text).with_group(&self.session.group);
            error.with_partition(topic, partition)
        })
    }

    fn set_paused(&mut self, topic: &str, partition: PartitionId, paused: bool) -> Result<(), Error> {
        let index = self.index_of(topic, partition)?;
        if let Some(part) = self.parts.get_mut(&index) {
            part.paused = paused;
            self.reader.set_paused(index, paused || part.held);
        }
        Ok(())
    }

    fn finish_in(&mut self, index: Option<PartIndex>, finish: impl FnOnce(&mut Tracker)) {
        let Some(index) = index else { return };
        let Some(part) = self.parts.get_mut(&index) else { return };
        let Some(tracker) = &mut part.tracker else { return };
        finish(tracker);
        let (offset, epoch) = tracker.finished();
        part.finished.set(offset, epoch);
        self.hold_or_release(index);
    }

    /// A partition of which too much is unfinished waits until less is.
    fn hold_or_release(&mut self, index: PartIndex) {
        let Some(part) = self.parts.get_mut(&index) else { return };
        let open_count = part.tracker.as_ref().map_or(0, Tracker::open_count);
        let held = if part.held { open_count > UNFINISHED_MAX / 2 } else { open_count >= UNFINISHED_MAX };
        if held != part.held {
            part.held = held;
            self.reader.set_paused(index, held || part.paused);
        }
    }

    fn poll_record(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<GroupRecord, Error>>> {
        loop {
            match std::task::ready!(self.poll_item(context, false)) {
                Some(Ok(Item::Record(record))) => return Poll::Ready(Some(Ok(record))),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }

    fn poll_batch(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<GroupBatch, Error>>> {
        loop {
            match std::task::ready!(self.poll_item(context, true)) {
                Some(Ok(Item::Batch(batch))) => return Poll::Ready(Some(Ok(batch))),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl Stream for GroupConsumer {
    type Item = Result<GroupRecord, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_record(context)
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        if !self.closed && !self.over {
            tracing::debug!(group = %self.session.group, "a consumer is dropped without being closed");
            self.session.request(Request::Dropped);
        }
    }
}

fn closed(group: &str) -> Error {
    Error::new(ErrorKind::Closed, "the consumer has ended").with_group(group)
}
