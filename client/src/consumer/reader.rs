//! The application's side of reading: batches cut apart and verified, records handed out one by one, positions.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use highwater_protocol::batch::{BatchHeader, Records};
use highwater_protocol::compression::CompressionError;
use highwater_protocol::ids::{LeaderEpoch, Offset, PartitionId, TopicPartition};

use super::StartAt;
use super::driver::Driver;
use super::feed::{Chunk, Clamp, Feed, Memory, PartIndex, Scope, Taken, Topic};
use super::shared::{Shared, now};
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::record::{ConsumedBatch, ConsumedRecord};
use crate::retry::RetryPolicy;

/// Bytes that a partition may hold at the least, however many there are.
const SHARE_MIN: u64 = 16 << 10;

/// Something read, and of which partition.
#[derive(Debug)]
pub(crate) enum Read<T> {
    Got(PartIndex, T),
    /// A position that was not in the log was moved; only in the scope of a group.
    Clamped(PartIndex, Clamp),
}

/// What a poll of a reader gives. `None`: nothing any more.
type Polled<T> = Poll<Option<Result<Read<T>, Error>>>;

/// Reads partitions of one or many topics, which may come and go meanwhile.
#[derive(Debug)]
pub(crate) struct Reader {
    shared: Arc<Shared>,
    places: BTreeMap<PartIndex, Place>,
    /// Batches taken from the feed and not handed out yet.
    current: Option<Chunk>,
    /// A batch that is handed out record by record.
    begun: Option<Begun>,
    /// The partition that damaged batches come from, and since when.
    corrupt_since: Option<(PartIndex, Instant)>,
}

/// A partition that is read.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) topic: Topic,
    pub(crate) partition: PartitionId,
    /// The next offset for the application; of a batch that is handed out record by record, its own position counts.
    position: Offset,
    /// The epoch of the batch that was handed out last; 0: none was.
    epoch: LeaderEpoch,
}

#[derive(Debug)]
struct Begun {
    part: PartIndex,
    batch: ConsumedBatch,
    records: VecDeque<ConsumedRecord>,
    /// The next offset for the application.
    position: Offset,
}

/// The other side of a reader: adds partitions to what is read, takes them away, and wakes the application. Cheap to
/// clone.
#[derive(Debug, Clone)]
pub(crate) struct Supply {
    shared: Arc<Shared>,
}

impl Supply {
    /// Begins to read a partition from `offset` on. The reader has to be told of it ([`Reader::add`]) before it is
    /// polled again.
    pub(crate) fn add(
        &self,
        topic: Topic,
        partition: PartitionId,
        start: StartAt,
        offset: Offset,
    ) -> PartIndex {
        let index = self.shared.with(|state| state.feed.add(topic, partition, start, offset));
        self.shared.work.notify_one();
        index
    }

    /// Reads a partition no more. What the reader has taken of it already is still there ([`Reader::remove`]).
    pub(crate) fn remove(&self, index: PartIndex) {
        let old = self.shared.with(|state| state.feed.remove(index));
        self.shared.unsubscribe(old);
    }

    /// Has the application poll again.
    pub(crate) fn wake(&self) {
        self.shared.tell(|_| true);
    }

    /// Whether the application waits, and has not been woken.
    pub(crate) fn is_awaited(&self) -> bool {
        self.shared.with(|state| state.waker.is_some())
    }
}

impl Reader {
    /// A reader of nothing yet. Must be called in a tokio runtime.
    pub(crate) fn start(client: Client, scope: Scope, memory_bytes: usize, repair_timeout: Duration) -> Self {
        let memory = Memory { bytes: memory_bytes as u64, share_min: SHARE_MIN };
        let feed = Feed::new(scope, memory, RetryPolicy::default(), repair_timeout);
        let shared = Arc::new(Shared::new(client, feed));
        tokio::spawn(Driver::new(Arc::clone(&shared)).run());
        Self { shared, places: BTreeMap::new(), current: None, begun: None, corrupt_since: None }
    }

    pub(crate) fn supply(&self) -> Supply {
        Supply { shared: Arc::clone(&self.shared) }
    }

    /// Takes in a partition that was added to the supply.
    pub(crate) fn add(&mut self, index: PartIndex, topic: Topic, partition: PartitionId, position: Offset) {
        self.places.insert(index, Place { topic, partition, position, epoch: LeaderEpoch(0) });
    }

    /// Hands out nothing more of a partition. What had been received of it is dropped, its position stays.
    pub(crate) fn silence(&mut self, index: PartIndex) {
        self.drop_received(index);
        self.supply().remove(index);
    }

    /// Hands out nothing more of a partition, and forgets it.
    pub(crate) fn remove(&mut self, index: PartIndex) {
        self.silence(index);
        self.places.remove(&index);
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = (PartIndex, &Place)> {
        self.places.iter().map(|(index, place)| (*index, place))
    }

    /// The place of a partition of any topic of this name.
    pub(crate) fn find(&self, topic: Option<&str>, partition: PartitionId) -> Option<PartIndex> {
        let is_it = |place: &Place| {
            place.partition == partition && topic.is_none_or(|name| name == &*place.topic.name)
        };
        self.places().find(|(_, place)| is_it(place)).map(|(index, _)| index)
    }

    /// The next offset for the application.
    pub(crate) fn position(&self, index: PartIndex) -> Option<Offset> {
        match &self.begun {
            Some(begun) if begun.part == index => Some(begun.position),
            _ => self.places.get(&index).map(|place| place.position),
        }
    }

    /// The epoch of what was handed out last; 0: nothing was.
    pub(crate) fn epoch(&self, index: PartIndex) -> LeaderEpoch {
        self.places.get(&index).map_or(LeaderEpoch(0), |place| place.epoch)
    }

    pub(crate) fn high_watermark(&self, index: PartIndex) -> Option<Offset> {
        self.shared.with(|state| state.feed.high_watermark(index))
    }

    /// Goes on from somewhere else. Returns from where.
    pub(crate) async fn seek(&mut self, index: PartIndex, to: StartAt) -> Result<Offset, Error> {
        let Some(place) = self.places.get(&index) else { return Ok(Offset::ZERO) };
        let admin = self.shared.client.admin();
        let listed = admin.list_offsets(&place.topic.name, &[place.partition], to).await?;
        let offset = listed.first().map_or(Offset::ZERO, |listed| listed.offset);
        self.drop_received(index);
        if let Some(place) = self.places.get_mut(&index) {
            place.position = offset;
        }
        let old = self.shared.with(|state| state.feed.seek(index, to, offset));
        self.shared.unsubscribe(old);
        Ok(offset)
    }

    /// Holds a partition back, or lets it go on.
    pub(crate) fn set_paused(&mut self, index: PartIndex, paused: bool) {
        let current = if paused { self.current.take_if(|chunk| chunk.part == index) } else { None };
        self.shared.with(|state| {
            if let Some(chunk) = current {
                state.feed.put_back(chunk);
            }
            state.feed.set_paused(index, paused);
        });
    }

    /// Has `waker` woken when there is something new, without looking whether there is.
    pub(crate) fn wait(&self, waker: &Waker) {
        self.shared.with(|state| state.waker = Some(waker.clone()));
    }

    /// Whether a batch was begun record by record and is not finished.
    pub(crate) fn begun(&self) -> Option<PartIndex> {
        self.begun.as_ref().filter(|begun| !begun.records.is_empty()).map(|begun| begun.part)
    }

    /// The next record of the batch that was begun, without asking for another batch.
    pub(crate) fn next_begun(&mut self) -> Option<(PartIndex, ConsumedRecord)> {
        let begun = self.begun.as_mut()?;
        let record = begun.records.pop_front()?;
        begun.position = record.offset.next();
        Some((begun.part, record))
    }

    pub(crate) fn poll_record(&mut self, context: &mut Context<'_>) -> Polled<ConsumedRecord> {
        loop {
            if let Some((part, record)) = self.next_begun() {
                return Poll::Ready(Some(Ok(Read::Got(part, record))));
            }
            if let Some(begun) = self.begun.take()
                && let Some(place) = self.places.get_mut(&begun.part)
            {
                place.position = begun.batch.end_offset();
            }
            match std::task::ready!(self.poll_verified(context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(Read::Clamped(part, clamp))) => {
                    return Poll::Ready(Some(Ok(Read::Clamped(part, clamp))));
                }
                Some(Ok(Read::Got(part, batch))) => {
                    if let Err(error) = self.begin(part, batch) {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        }
    }

    /// Hands out a batch record by record from here on.
    pub(crate) fn begin(&mut self, part: PartIndex, batch: ConsumedBatch) -> Result<(), Error> {
        match decode_all(&batch) {
            Ok(records) => {
                let position = batch.first_offset();
                self.begun = Some(Begun { part, batch, records, position });
                Ok(())
            }
            Err(error) => Err(self.stop(part, error)),
        }
    }

    pub(crate) fn poll_batch(&mut self, context: &mut Context<'_>) -> Polled<ConsumedBatch> {
        if let Some(begun) = self.begun.take() {
            let end = begun.batch.end_offset();
            if let Some(place) = self.places.get_mut(&begun.part) {
                place.position = end;
            }
            if !begun.records.is_empty() {
                let rest = ConsumedBatch { from: begun.position, ..begun.batch };
                return Poll::Ready(Some(Ok(Read::Got(begun.part, rest))));
            }
        }
        self.poll_verified(context).map_ok(|read| {
            if let Read::Got(part, batch) = &read
                && let Some(place) = self.places.get_mut(part)
            {
                place.position = batch.end_offset();
            }
            read
        })
    }

    /// The next batch with good checksums that has something for the application. The position stays before it.
    fn poll_verified(&mut self, context: &mut Context<'_>) -> Polled<ConsumedBatch> {
        loop {
            if let Some(verdict) = self.cut_current() {
                return Poll::Ready(Some(verdict));
            }
            let taken = self.shared.with(|state| {
                let taken = state.feed.take();
                if matches!(taken, Taken::Nothing) {
                    state.waker = Some(context.waker().clone());
                }
                taken
            });
            match taken {
                Taken::Chunk(chunk) => self.current = Some(chunk),
                Taken::Error(error) => return Poll::Ready(Some(Err(error))),
                Taken::Clamped(part, clamp) => {
                    if let Some(place) = self.places.get_mut(&part) {
                        place.position = clamp.position;
                    }
                    return Poll::Ready(Some(Ok(Read::Clamped(part, clamp))));
                }
                Taken::Over => return Poll::Ready(None),
                Taken::Nothing => return Poll::Pending,
            }
        }
    }

    /// The next batch of what was taken from the feed, which is given back once it is used up.
    fn cut_current(&mut self) -> Option<Result<Read<ConsumedBatch>, Error>> {
        while let Some(chunk) = &mut self.current {
            let part = chunk.part;
            let place = self.places.get_mut(&part).filter(|_| !chunk.bytes.is_empty());
            let Some(place) = place else {
                let (generation, charged) = (chunk.generation, chunk.charged);
                self.current = None;
                let grant = self.shared.with(|state| state.feed.consumed(part, generation, charged));
                if let Some(grant) = grant {
                    self.shared.give(grant);
                }
                return None;
            };
            let (at, from) = (TopicPartition::new(place.topic.id, place.partition), place.position);
            match cut_batch(chunk, at, from) {
                Ok(Some(batch)) => {
                    place.epoch = batch.leader_epoch();
                    self.corrupt_since.take_if(|(corrupt, _)| *corrupt == part);
                    return Some(Ok(Read::Got(part, batch)));
                }
                Ok(None) => {}
                Err(error) => {
                    if let Some(error) = self.read_again(part, from, error) {
                        return Some(Err(error));
                    }
                }
            }
        }
        None
    }

    /// A damaged batch is no reason to stop at once: what it came from can be repaired from another replica.
    fn read_again(&mut self, part: PartIndex, from: Offset, error: Error) -> Option<Error> {
        if error.kind() != ErrorKind::CorruptBatch {
            return Some(self.stop(part, error));
        }
        let now = now();
        let known = self.corrupt_since.filter(|(corrupt, _)| *corrupt == part);
        let (_, since) = *self.corrupt_since.insert(known.unwrap_or((part, now)));
        let place = self.places.get(&part).map(|place| (place.topic.clone(), place.partition))?;
        let (topic, partition) = place;
        tracing::warn!(%error, topic = %topic.name, %partition, "a damaged batch came; it is read again");
        self.drop_received(part);
        let random = self.shared.client.random();
        let again = self.shared.with(|state| {
            let again = state.feed.read_again(part, (from, since), now, random);
            if again.is_ok() {
                state.damaged.push((topic, partition, from));
            }
            again
        });
        match again {
            Ok(old) => {
                self.shared.unsubscribe(old);
                None
            }
            Err(_) => Some(self.stop(part, error)),
        }
    }

    /// Stops a partition whose bytes cannot be used.
    fn stop(&mut self, part: PartIndex, error: Error) -> Error {
        self.drop_received(part);
        let old = self.shared.with(|state| state.feed.stop(part));
        self.shared.unsubscribe(old);
        match self.places.get(&part) {
            Some(place) => error.with_partition(&place.topic.name, place.partition),
            None => error,
        }
    }

    /// Drops what was taken of a partition. Its position stays.
    fn drop_received(&mut self, part: PartIndex) {
        self.current.take_if(|chunk| chunk.part == part);
        if let Some(begun) = self.begun.take_if(|begun| begun.part == part)
            && let Some(place) = self.places.get_mut(&part)
        {
            place.position = begun.position;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}

/// Cuts the next batch off a chunk and verifies it; `None` when it has nothing for the application.
fn cut_batch(chunk: &mut Chunk, place: TopicPartition, from: Offset) -> Result<Option<ConsumedBatch>, Error> {
    let corrupt =
        |text: String| Error::new(ErrorKind::CorruptBatch, format!("a batch near offset {from} {text}"));
    let header = BatchHeader::decode_verified(&chunk.bytes, place)
        .map_err(|error| corrupt(format!("is corrupt: {error}")).with_source(error))?;
    let batch = chunk.bytes.split_to(header.length());
    if header.end_offset() <= from || header.is_control() {
        return Ok(None);
    }
    let records = Records::open(header, &batch).map_err(|error| match error {
        highwater_protocol::batch::RecordsError::Compression(error @ CompressionError::NotBuilt(_)) => {
            Error::new(ErrorKind::Unsupported, error.to_string()).with_source(error)
        }
        error => corrupt(format!("does not decode: {error}")).with_source(error),
    })?;
    let partition = place.partition;
    Ok(Some(ConsumedBatch { partition, records, from, high_watermark: chunk.high_watermark }))
}

fn decode_all(batch: &ConsumedBatch) -> Result<VecDeque<ConsumedRecord>, Error> {
    let bad = |error: highwater_protocol::batch::RecordsError| {
        let text = format!("a batch at offset {} does not decode: {error}", batch.first_offset());
        Error::new(ErrorKind::CorruptBatch, text).with_source(error)
    };
    batch.iter().map(|record| record.and_then(|record| batch.to_owned_record(&record)).map_err(bad)).collect()
}
