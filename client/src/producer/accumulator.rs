//! Where records wait in batches until they are sent. Pure: clock and randomness are the caller's, nothing waits here.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use highwater_protocol::batch::{BATCH_LENGTH_MIN, BatchBuilder};
use highwater_protocol::compression::Compression;
use highwater_protocol::ids::{PartitionId, TopicPartition};
use highwater_protocol::limits::{BATCH_BYTES_MAX, RECORD_HEADERS_MAX};

use super::delivery::BatchAck;
use super::partitioner::{Sticky, choose};
use crate::admin::TopicMetadata;
use crate::error::{Error, ErrorKind};
use crate::record::ProducerRecord;

/// What a new partition's first batch makes room for.
const FIRST_BATCH_BYTES: usize = 4 << 10;

/// Bounds of the accumulator.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes after which a batch is closed.
    pub(super) batch_bytes: usize,
    /// Bytes of all batches that are not acknowledged.
    pub(super) memory_bytes: usize,
    /// How long a batch stays open.
    pub(super) linger: Duration,
    pub(super) compression: Compression,
}

/// A partition that records went to: its place among all of them.
pub(super) type LaneIndex = usize;

/// Batches of every partition, open and closed.
#[derive(Debug)]
pub(super) struct Accumulator {
    bounds: Bounds,
    topics: Vec<Topic>,
    by_name: HashMap<Arc<str>, usize>,
    /// The topic of the last record: most records have the same.
    last_topic: usize,
    lanes: Vec<Lane>,
    memory_used: usize,
    /// Partitions with something to send, in the order in which they got it. Drained by the sender.
    eligible: VecDeque<LaneIndex>,
    /// When open batches have lingered enough, in that order. Entries of batches that are closed by now are passed over.
    lingering: VecDeque<(Instant, LaneIndex, BatchId)>,
    next_batch: u64,
    /// Batches that are not completed.
    unfinished: BTreeSet<BatchId>,
    unfinished_records: u64,
    closed: bool,
}

/// Batches are numbered as they are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BatchId(pub(super) u64);

#[derive(Debug)]
struct Topic {
    name: Arc<str>,
    metadata: Arc<TopicMetadata>,
    lanes: Vec<LaneIndex>,
    sticky: Sticky,
    batch_bytes_max: usize,
}

#[derive(Debug)]
struct Lane {
    topic: usize,
    place: TopicPartition,
    open: Option<Open>,
    closed: VecDeque<Collected>,
    /// Bytes of the last batch: what the next one makes room for.
    last_bytes: usize,
    /// Whether it is in `eligible`.
    listed: bool,
}

#[derive(Debug)]
struct Open {
    id: BatchId,
    builder: BatchBuilder,
    ack: Arc<BatchAck>,
    opened_at: Instant,
    /// Bytes counted in `memory_used`.
    charged: usize,
    /// It may be sent although it is not full.
    due: bool,
}

/// A batch that takes no more records.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) id: BatchId,
    pub(super) builder: BatchBuilder,
    pub(super) ack: Arc<BatchAck>,
    pub(super) opened_at: Instant,
    /// Bytes to give back with [`Accumulator::finish`].
    pub(super) charged: usize,
}

/// What became of a record that asked for admission.
#[derive(Debug)]
pub(super) enum Admission<'a> {
    /// It is in a batch, at `index`. `wake`: the sender has something to do.
    Admitted { ack: &'a Arc<BatchAck>, index: u32, wake: bool, filled: bool },
    /// There is no room until a batch is finished.
    NoRoom,
    /// The topic is not known here yet.
    UnknownTopic,
    /// It will never be admitted.
    Refused(Error),
}

impl Accumulator {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            topics: Vec::new(),
            by_name: HashMap::new(),
            last_topic: 0,
            lanes: Vec::new(),
            memory_used: 0,
            eligible: VecDeque::new(),
            lingering: VecDeque::new(),
            next_batch: 0,
            unfinished: BTreeSet::new(),
            unfinished_records: 0,
            closed: false,
        }
    }

    /// Takes in what is known about a topic. A topic with another id is another topic: batches of the old one stay
    /// with the old id.
    pub(super) fn set_topic(&mut self, metadata: Arc<TopicMetadata>) {
        let limit = match metadata.batch_bytes_max as usize {
            0 => BATCH_BYTES_MAX,
            bytes => bytes.min(BATCH_BYTES_MAX),
        };
        let known = self.by_name.get(metadata.name.as_str()).copied();
        let index = known.filter(|index| self.topics[*index].metadata.topic_id == metadata.topic_id);
        let index = index.unwrap_or_else(|| {
            let name: Arc<str> = Arc::from(metadata.name.as_str());
            self.by_name.insert(Arc::clone(&name), self.topics.len());
            self.topics.push(Topic {
                name,
                metadata: Arc::clone(&metadata),
                lanes: Vec::new(),
                sticky: Sticky::default(),
                batch_bytes_max: limit,
            });
            self.topics.len() - 1
        });
        let topic = &mut self.topics[index];
        topic.batch_bytes_max = limit;
        for number in topic.lanes.len()..metadata.partitions.len() {
            topic.lanes.push(self.lanes.len());
            self.lanes.push(Lane {
                topic: index,
                place: TopicPartition::new(metadata.topic_id, PartitionId(number as u32)),
                open: None,
                closed: VecDeque::new(),
                last_bytes: 0,
                listed: false,
            });
        }
        topic.metadata = metadata;
    }

    /// Forgets the name of a topic that is gone: the next record asks for its metadata again.
    pub(super) fn forget_topic(&mut self, name: &str) {
        self.by_name.remove(name);
        // The topic of the last record must not answer for it either.
        self.last_topic = self.topics.len();
    }

    /// Puts a record into the open batch of its partition. `wall_ms` is its timestamp if it has none.
    #[inline]
    pub(super) fn admit(
        &mut self,
        record: &ProducerRecord<'_>,
        wall_ms: i64,
        now: impl FnOnce() -> Instant,
        random: impl FnOnce() -> u64,
    ) -> Admission<'_> {
        if self.closed {
            return Admission::Refused(Error::new(ErrorKind::Closed, "the producer is closed"));
        }
        let Some(index) = self.find_topic(record.topic) else { return Admission::UnknownTopic };
        let topic = &mut self.topics[index];
        let partition_count = topic.lanes.len() as u32;
        let chosen = choose(record.partition, record.key, partition_count, &mut topic.sticky, random);
        let Some(partition) = chosen else {
            return Admission::Refused(unknown_partition(record, partition_count));
        };
        let header_bytes = match check_headers(record) {
            Ok(bytes) => bytes,
            Err(error) => return Admission::Refused(error),
        };
        let needed = BatchBuilder::record_length_max(
            record.key.map_or(0, <[u8]>::len),
            record.value.map_or(0, <[u8]>::len),
            record.headers.len(),
            header_bytes,
        );
        let limit = batch_limit(topic.batch_bytes_max, self.bounds.compression);
        if BATCH_LENGTH_MIN + needed > limit {
            let text =
                format!("a record of {needed} bytes is larger than the {limit} bytes that a batch may have");
            let error = Error::new(ErrorKind::RecordTooLarge, text);
            return Admission::Refused(error.with_partition(record.topic, partition));
        }
        let lane = topic.lanes[partition.get() as usize];
        self.push(lane, record, wall_ms, needed, limit.min(self.bounds.batch_bytes), now)
    }

    #[inline]
    fn push(
        &mut self,
        lane: LaneIndex,
        record: &ProducerRecord<'_>,
        wall_ms: i64,
        needed: usize,
        batch_bytes: usize,
        now: impl FnOnce() -> Instant,
    ) -> Admission<'_> {
        if self.memory_used + needed > self.bounds.memory_bytes && self.memory_used > 0 {
            return Admission::NoRoom;
        }
        let mut wake = false;
        if self.lanes[lane].open.as_ref().is_some_and(|open| open.builder.length() + needed > batch_bytes) {
            self.close_open(lane);
            wake |= self.list(lane);
        }
        if self.lanes[lane].open.is_none() {
            wake |= self.open(lane, needed, now());
        }
        let Some(open) = &mut self.lanes[lane].open else { return Admission::NoRoom };
        let index = open.builder.record_count();
        let before = open.builder.length();
        open.builder.push(record.timestamp.unwrap_or(wall_ms), record.key, record.value, record.headers);
        let after = open.builder.length();
        let growth = after.saturating_sub(open.charged);
        open.charged += growth;
        self.memory_used += growth;
        self.unfinished_records += 1;
        // No room for another one like it: the batch need not wait for a record that shows it.
        let filled = after + (after - before) > batch_bytes;
        if filled {
            self.close_open(lane);
            wake |= self.list(lane);
        }
        let lane = &self.lanes[lane];
        let ack = match (&lane.open, lane.closed.back()) {
            (Some(open), _) => &open.ack,
            (None, Some(closed)) => &closed.ack,
            (None, None) => return Admission::NoRoom,
        };
        Admission::Admitted { ack, index, wake, filled }
    }

    fn find_topic(&mut self, name: &str) -> Option<usize> {
        if self.topics.get(self.last_topic).is_some_and(|topic| &*topic.name == name) {
            return Some(self.last_topic);
        }
        let index = *self.by_name.get(name)?;
        self.last_topic = index;
        Some(index)
    }

    /// Opens a batch; returns whether the sender has something to do by that.
    fn open(&mut self, index: LaneIndex, needed: usize, now: Instant) -> bool {
        let id = BatchId(self.next_batch);
        self.next_batch += 1;
        self.unfinished.insert(id);
        let lane = &mut self.lanes[index];
        // As much as the last batch took, so that an idle partition costs little; all that a batch may have once they
        // come near that, so that the buffer of a busy one never grows.
        let last = if lane.last_bytes > self.bounds.batch_bytes / 4 {
            self.bounds.batch_bytes
        } else {
            lane.last_bytes
        };
        let wanted = last.max(FIRST_BATCH_BYTES).max(BATCH_LENGTH_MIN + needed);
        let room = self.bounds.memory_bytes.saturating_sub(self.memory_used);
        let capacity =
            wanted.min(self.bounds.batch_bytes.max(BATCH_LENGTH_MIN + needed)).min(room.max(needed));
        self.memory_used += capacity;
        let immediately = self.bounds.linger.is_zero();
        lane.open = Some(Open {
            id,
            builder: BatchBuilder::with_capacity(capacity),
            ack: Arc::default(),
            opened_at: now,
            charged: capacity,
            due: immediately,
        });
        if immediately {
            return self.list(index);
        }
        // The sender must learn of the earliest deadline only.
        let earliest = self.lingering.is_empty();
        self.lingering.push_back((now + self.bounds.linger, index, id));
        earliest
    }

    fn close_open(&mut self, index: LaneIndex) {
        let lane = &mut self.lanes[index];
        let Some(open) = lane.open.take() else { return };
        lane.last_bytes = open.builder.length();
        self.topics[lane.topic].sticky.batch_closed(lane.place.partition);
        lane.closed.push_back(Collected {
            id: open.id,
            builder: open.builder,
            ack: open.ack,
            opened_at: open.opened_at,
            charged: open.charged,
        });
    }

    /// Notes that a partition has something to send; returns whether that is news.
    fn list(&mut self, index: LaneIndex) -> bool {
        let lane = &mut self.lanes[index];
        if std::mem::replace(&mut lane.listed, true) {
            return false;
        }
        self.eligible.push_back(index);
        true
    }

    /// Lets batches go that have lingered enough.
    pub(super) fn tick(&mut self, now: Instant) {
        while let Some(&(due, lane, id)) = self.lingering.front() {
            if let Some(open) = self.lanes[lane].open.as_mut().filter(|open| open.id == id) {
                if due > now {
                    return;
                }
                open.due = true;
                self.list(lane);
            }
            self.lingering.pop_front();
        }
    }

    /// When [`Accumulator::tick`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.lingering.front().map(|(due, _, _)| *due)
    }

    /// Moves the partitions that got something to send to the end of `out`.
    pub(super) fn take_eligible(&mut self, out: &mut VecDeque<LaneIndex>) {
        out.append(&mut self.eligible);
    }

    /// Takes the next batch of a listed partition: a full one, or with `open_too` the open one if it is due.
    pub(super) fn collect(&mut self, index: LaneIndex, open_too: bool) -> Option<Collected> {
        let lane = &mut self.lanes[index];
        if lane.closed.is_empty() && open_too && lane.open.as_ref().is_some_and(|open| open.due) {
            self.close_open(index);
        }
        self.lanes[index].closed.pop_front()
    }

    /// Whether a listed partition still has something to send; if not, it is not listed any more.
    pub(super) fn keep_listed(&mut self, index: LaneIndex) -> bool {
        let lane = &mut self.lanes[index];
        lane.listed = !lane.closed.is_empty() || lane.open.as_ref().is_some_and(|open| open.due);
        lane.listed
    }

    /// Takes every batch of a partition, due or not: it will not be sent.
    pub(super) fn drain(&mut self, index: LaneIndex) -> Vec<Collected> {
        self.close_open(index);
        self.lanes[index].closed.drain(..).collect()
    }

    /// Takes the oldest batch of a partition if it was opened before `limit`.
    pub(super) fn collect_expired(&mut self, index: LaneIndex, limit: Instant) -> Option<Collected> {
        let lane = &mut self.lanes[index];
        if lane.closed.is_empty() && lane.open.as_ref().is_some_and(|open| open.opened_at <= limit) {
            self.close_open(index);
        }
        let lane = &mut self.lanes[index];
        lane.closed.front().filter(|batch| batch.opened_at <= limit)?;
        lane.closed.pop_front()
    }

    /// When the oldest batch of a partition was opened.
    pub(super) fn oldest(&self, index: LaneIndex) -> Option<Instant> {
        let lane = &self.lanes[index];
        lane.closed.front().map(|batch| batch.opened_at).or(lane.open.as_ref().map(|open| open.opened_at))
    }

    /// Counts a batch as done: its memory is free.
    pub(super) fn finish(&mut self, id: BatchId, charged: usize, record_count: u32) {
        assert!(self.unfinished.remove(&id), "batch {id:?} is finished once");
        self.memory_used -= charged;
        self.unfinished_records -= u64::from(record_count);
    }

    /// Makes every open batch due. Returns the last batch that there is now.
    pub(super) fn flush(&mut self) -> Option<BatchId> {
        for index in 0..self.lanes.len() {
            if let Some(open) = &mut self.lanes[index].open {
                open.due = true;
                self.list(index);
            }
        }
        self.unfinished.last().copied()
    }

    /// Whether every batch up to this one is done.
    pub(super) fn is_finished_upto(&self, last: BatchId) -> bool {
        self.unfinished.first().is_none_or(|first| *first > last)
    }

    /// Records admitted and not done.
    pub(super) const fn unfinished_records(&self) -> u64 {
        self.unfinished_records
    }

    /// Admits no more records.
    pub(super) const fn close(&mut self) {
        self.closed = true;
    }

    /// The partition behind an index, and its topic.
    pub(super) fn place(&self, index: LaneIndex) -> (Arc<TopicMetadata>, TopicPartition) {
        let lane = &self.lanes[index];
        (Arc::clone(&self.topics[lane.topic].metadata), lane.place)
    }

    /// How many partitions there are.
    pub(super) const fn lane_count(&self) -> usize {
        self.lanes.len()
    }

    /// The partitions of the topics with this name, also of those that had it before.
    pub(super) fn lanes_of(&self, name: &str) -> Vec<LaneIndex> {
        let of_name = |index: &LaneIndex| &*self.topics[self.lanes[*index].topic].name == name;
        (0..self.lanes.len()).filter(of_name).collect()
    }

    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        let open = self.lanes.iter().filter_map(|lane| lane.open.as_ref());
        let closed = self.lanes.iter().flat_map(|lane| &lane.closed);
        let here: usize =
            open.map(|open| open.charged).sum::<usize>() + closed.map(|c| c.charged).sum::<usize>();
        assert!(here <= self.memory_used, "batches here are part of what is used");
        for (index, lane) in self.lanes.iter().enumerate() {
            let has_something = !lane.closed.is_empty() || lane.open.as_ref().is_some_and(|open| open.due);
            assert!(
                !has_something || lane.listed,
                "partition {index} is listed when it has something to send"
            );
            assert!(lane.open.as_ref().is_none_or(|open| !open.builder.is_empty()), "no open batch is empty");
        }
    }
}

/// Bytes that a batch may have before it is compressed: incompressible records grow a little.
const fn batch_limit(batch_bytes_max: usize, compression: Compression) -> usize {
    match compression {
        Compression::None => batch_bytes_max,
        _ => batch_bytes_max - batch_bytes_max / 64 - if batch_bytes_max > 2048 { 1024 } else { 0 },
    }
}

#[inline]
fn check_headers(record: &ProducerRecord<'_>) -> Result<usize, Error> {
    let mut bytes = 0;
    for (name, value) in record.headers {
        if name.starts_with("hw-") {
            let text = format!("header names that start with 'hw-' are reserved, so '{name}' cannot be set");
            return Err(Error::new(ErrorKind::InvalidArgument, text).with_topic(record.topic));
        }
        bytes += name.len() + value.map_or(0, <[u8]>::len);
    }
    if record.headers.len() > RECORD_HEADERS_MAX {
        let text = format!("a record has at most {RECORD_HEADERS_MAX} headers, not {}", record.headers.len());
        return Err(Error::new(ErrorKind::InvalidArgument, text).with_topic(record.topic));
    }
    Ok(bytes)
}

fn unknown_partition(record: &ProducerRecord<'_>, partition_count: u32) -> Error {
    let text = format!("the topic has {partition_count} partitions, from 0");
    let error = Error::new(ErrorKind::UnknownPartition, text);
    match record.partition {
        Some(partition) => error.with_partition(record.topic, partition),
        None => error.with_topic(record.topic),
    }
}

#[cfg(test)]
mod tests;
