//! Consuming records: the driver subscribes, connections fill the feed, the consumer empties it.

mod driver;
mod feed;
mod shared;
mod turn;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use highwater_protocol::batch::{BatchHeader, Records};
use highwater_protocol::compression::CompressionError;
use highwater_protocol::ids::{Offset, PartitionId, TopicPartition};

use self::driver::Driver;
use self::feed::{Chunk, Feed, PartIndex, Taken};
use self::shared::Shared;
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::record::{ConsumedBatch, ConsumedRecord};
use crate::retry::RetryPolicy;

/// Bytes that a partition may hold at the least, however many there are.
const SHARE_MIN: u64 = 16 << 10;

/// Where reading starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartAt {
    /// At the first record that is there.
    Earliest,
    /// At the next record that will be committed.
    Latest,
    /// At this offset.
    Offset(Offset),
    /// At the first record whose timestamp, in milliseconds since the Unix epoch, is at least this.
    Time(i64),
}

/// Settings of a [`Consumer`].
#[derive(Debug, Clone)]
#[must_use = "a consumer is made by build()"]
pub struct ConsumerBuilder {
    client: Client,
    topic: String,
    start: StartAt,
    partitions: Vec<PartitionId>,
    memory_bytes: usize,
    repair_timeout: Duration,
}

impl ConsumerBuilder {
    pub(crate) const fn new(client: Client, topic: String) -> Self {
        Self {
            client,
            topic,
            start: StartAt::Latest,
            partitions: Vec::new(),
            memory_bytes: 16 << 20,
            repair_timeout: Duration::from_secs(15),
        }
    }

    /// How long records that are damaged where they are read are asked for again before the application is told: a
    /// cluster lets another replica lead, or repairs one from another. Zero: it is told at once. Default: 15 s.
    pub const fn repair_timeout(mut self, timeout: Duration) -> Self {
        self.repair_timeout = timeout;
        self
    }

    /// Where to start in every partition. Default: [`StartAt::Latest`]. See [`Consumer::seek`] for one partition.
    pub const fn from(mut self, start: StartAt) -> Self {
        self.start = start;
        self
    }

    /// Only these partitions. Default: all that the topic has when the consumer is built.
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = PartitionId>) -> Self {
        self.partitions = partitions.into_iter().collect();
        self
    }

    /// Bytes of batches that brokers may send ahead of the application, over all partitions, which have equal shares
    /// of at least 16 KiB. Each partition may exceed its share by one batch. Default: 16 MiB.
    pub const fn memory_bytes(mut self, bytes: usize) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// Finds the start positions and begins to subscribe. When it returns, `Latest` has been decided: records committed
    /// later will be seen. Must be called in a tokio runtime.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownPartition`, or what kept the brokers from answering within the request timeout.
    pub async fn build(self) -> Result<Consumer, Error> {
        let deadline = self.client.deadline();
        let topic = self.client.refresh_topic(&self.topic, deadline).await?;
        self.client.watch(&self.topic);
        let mut wanted = self.partitions;
        wanted.sort_unstable();
        wanted.dedup();
        let listed = self.client.admin().list_offsets(&self.topic, &wanted, self.start).await?;
        let known = topic.partitions.len();
        if let Some(unknown) = listed.iter().find(|listed| listed.partition.get() as usize >= known) {
            let text = format!("the topic has {known} partitions, from 0");
            let error = Error::new(ErrorKind::UnknownPartition, text);
            return Err(error.with_partition(&self.topic, unknown.partition));
        }
        let share = (self.memory_bytes as u64 / listed.len().max(1) as u64).max(SHARE_MIN);
        let starts: Vec<_> = listed.iter().map(|listed| (listed.partition, listed.offset)).collect();
        let positions = starts.clone();
        let feed = Feed::new(starts, self.start, share, RetryPolicy::default(), self.repair_timeout);
        let shared = Arc::new(Shared::new(self.client, topic, feed));
        tokio::spawn(Driver::new(Arc::clone(&shared)).run());
        Ok(Consumer { shared, positions, current: None, begun: None, corrupt_since: None })
    }
}

/// Reads the partitions of a topic, in order within each partition: a [`Stream`] of records.
///
/// Lost connections are made again, and reading goes on at the next offset. What cannot be helped is told once: a
/// partition whose offset is out of range or corrupt stops with an error until the application seeks, the others go on.
/// The stream ends after an error that concerns the whole topic, and when no partition is left that could give records.
///
/// Checksums are verified before anything is handed out.
///
/// ```no_run
/// # async fn example(client: highwater_client::Client) -> Result<(), highwater_client::Error> {
/// use futures_util::StreamExt;
/// use highwater_client::{ErrorKind, StartAt};
///
/// let mut consumer = client.consumer("orders").from(StartAt::Earliest).build().await?;
/// while let Some(record) = consumer.next().await {
///     match record {
///         Ok(record) => println!("{}@{}: {:?}", record.partition, record.offset, record.value),
///         Err(error) if error.kind() == ErrorKind::CorruptRange => {
///             // Goes on behind what cannot be read.
///             if let (Some(partition), Some(range)) = (error.partition(), error.corrupt_range()) {
///                 consumer.seek(partition, StartAt::Offset(range.end)).await?;
///             }
///         }
///         Err(error) => return Err(error),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
    /// The next offset for the application, in the feed's order of partitions.
    positions: Vec<(PartitionId, Offset)>,
    /// Batches taken from the feed and not handed out yet.
    current: Option<Chunk>,
    /// A batch that is handed out record by record.
    begun: Option<Begun>,
    /// The partition that damaged batches come from, and since when.
    corrupt_since: Option<(PartIndex, std::time::Instant)>,
}

#[derive(Debug)]
struct Begun {
    part: PartIndex,
    batch: ConsumedBatch,
    records: VecDeque<ConsumedRecord>,
}

impl Consumer {
    /// The next record of any partition, or `None` when the stream has ended.
    ///
    /// Cancel safe: a record is taken only when it is returned.
    pub async fn next_record(&mut self) -> Option<Result<ConsumedRecord, Error>> {
        poll_fn(|context| self.poll_record(context)).await
    }

    /// The next batch of any partition: the fast path. A batch that was begun by [`Consumer::next_record`] is finished
    /// first.
    ///
    /// Cancel safe: a batch is taken only when it is returned.
    pub async fn next_batch(&mut self) -> Option<Result<ConsumedBatch, Error>> {
        poll_fn(|context| self.poll_batch(context)).await
    }

    /// Goes on from somewhere else in a partition. What had been received of it is dropped.
    ///
    /// Cancel safe: dropped before it is done, the position is unchanged.
    ///
    /// # Errors
    /// `UnknownPartition` when the consumer does not read it, or what kept the broker from answering. An offset out of
    /// range is told by the stream.
    pub async fn seek(&mut self, partition: PartitionId, to: StartAt) -> Result<(), Error> {
        let index = self.index_of(partition)?;
        let admin = self.shared.client.admin();
        let listed = admin.list_offsets(&self.shared.topic.name, &[partition], to).await?;
        let offset = listed.first().map_or(Offset::ZERO, |listed| listed.offset);
        self.drop_received(index);
        self.positions[index].1 = offset;
        let old = self.shared.with(|state| state.feed.seek(index, to, offset));
        self.shared.unsubscribe(old);
        Ok(())
    }

    /// Holds a partition back: what was received stays in memory, what else the broker may send is bounded.
    ///
    /// # Errors
    /// `UnknownPartition` when the consumer does not read it.
    pub fn pause(&mut self, partition: PartitionId) -> Result<(), Error> {
        let index = self.index_of(partition)?;
        let current = self.current.take_if(|chunk| chunk.part == index);
        self.shared.with(|state| {
            if let Some(chunk) = current {
                state.feed.put_back(chunk);
            }
            state.feed.set_paused(index, true);
        });
        Ok(())
    }

    /// Goes on with a partition that was paused.
    ///
    /// # Errors
    /// `UnknownPartition` when the consumer does not read it.
    pub fn resume(&mut self, partition: PartitionId) -> Result<(), Error> {
        let index = self.index_of(partition)?;
        self.shared.with(|state| state.feed.set_paused(index, false));
        Ok(())
    }

    /// The partitions that it reads.
    #[must_use]
    pub fn partitions(&self) -> Vec<PartitionId> {
        self.positions.iter().map(|(partition, _)| *partition).collect()
    }

    /// The offset of the next record that the application gets from a partition; `None` if it is not read.
    #[must_use]
    pub fn position(&self, partition: PartitionId) -> Option<Offset> {
        self.positions.iter().find(|(read, _)| *read == partition).map(|(_, position)| *position)
    }

    /// The next offset of a partition that was not committed, as last heard; `None` if it is not read. 0 before the
    /// first answer.
    #[must_use]
    pub fn high_watermark(&self, partition: PartitionId) -> Option<Offset> {
        self.shared.with(|state| {
            let index = state.feed.find(partition)?;
            Some(state.feed.high_watermark(index))
        })
    }

    fn index_of(&self, partition: PartitionId) -> Result<PartIndex, Error> {
        self.shared.with(|state| state.feed.find(partition)).ok_or_else(|| {
            let error = Error::new(ErrorKind::UnknownPartition, "the consumer does not read this partition");
            error.with_partition(&self.shared.topic.name, partition)
        })
    }

    fn drop_received(&mut self, index: PartIndex) {
        self.current.take_if(|chunk| chunk.part == index);
        self.begun.take_if(|begun| begun.part == index);
    }

    fn poll_record(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<ConsumedRecord, Error>>> {
        loop {
            if let Some(begun) = &mut self.begun {
                let position = &mut self.positions[begun.part].1;
                if let Some(record) = begun.records.pop_front() {
                    *position = record.offset.next();
                    return Poll::Ready(Some(Ok(record)));
                }
                *position = begun.batch.end_offset();
                self.begun = None;
            }
            match std::task::ready!(self.poll_verified(context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok((part, batch))) => match decode_all(&batch) {
                    Ok(records) => self.begun = Some(Begun { part, batch, records }),
                    Err(error) => return Poll::Ready(Some(Err(self.stop(part, error)))),
                },
            }
        }
    }

    fn poll_batch(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<ConsumedBatch, Error>>> {
        if let Some(begun) = self.begun.take()
            && !begun.records.is_empty()
        {
            let position = &mut self.positions[begun.part].1;
            let rest = ConsumedBatch { from: *position, ..begun.batch };
            *position = rest.end_offset();
            return Poll::Ready(Some(Ok(rest)));
        }
        self.poll_verified(context).map_ok(|(part, batch)| {
            self.positions[part].1 = batch.end_offset();
            batch
        })
    }

    /// The next batch with good checksums that has something for the application.
    fn poll_verified(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<(PartIndex, ConsumedBatch), Error>>> {
        loop {
            if let Some(chunk) = &mut self.current {
                if !chunk.bytes.is_empty() {
                    let (partition, from) = self.positions[chunk.part];
                    let place = TopicPartition::new(self.shared.topic.topic_id, partition);
                    let part = chunk.part;
                    match cut_batch(chunk, place, from) {
                        Ok(Some(batch)) => {
                            self.corrupt_since.take_if(|(corrupt, _)| *corrupt == part);
                            return Poll::Ready(Some(Ok((part, batch))));
                        }
                        Ok(None) => continue,
                        Err(error) => match self.read_again(part, from, error) {
                            None => continue,
                            Some(error) => return Poll::Ready(Some(Err(error))),
                        },
                    }
                }
                let (part, generation, charged) = (chunk.part, chunk.generation, chunk.charged);
                self.current = None;
                if let Some(grant) = self.shared.with(|state| state.feed.consumed(part, generation, charged))
                {
                    self.shared.give(grant);
                }
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
                Taken::Over => return Poll::Ready(None),
                Taken::Nothing => return Poll::Pending,
            }
        }
    }

    /// A damaged batch is no reason to stop at once: what it came from can be repaired from another replica.
    fn read_again(&mut self, part: PartIndex, from: Offset, error: Error) -> Option<Error> {
        if error.kind() != ErrorKind::CorruptBatch {
            return Some(self.stop(part, error));
        }
        let now = shared::now();
        let known = self.corrupt_since.filter(|(corrupt, _)| *corrupt == part);
        let (_, since) = *self.corrupt_since.insert(known.unwrap_or((part, now)));
        tracing::warn!(%error, partition = %self.positions[part].0, "a damaged batch came; it is read again");
        self.drop_received(part);
        let random = self.shared.client.random();
        let again = self.shared.with(|state| {
            let again = state.feed.read_again(part, (from, since), now, random);
            if again.is_ok() {
                state.damaged.push((self.positions[part].0, from));
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
        error.with_partition(&self.shared.topic.name, self.positions[part].0)
    }
}

impl Stream for Consumer {
    type Item = Result<ConsumedRecord, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_record(context)
    }
}

impl Drop for Consumer {
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
