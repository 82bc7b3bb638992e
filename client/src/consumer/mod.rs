//! Consuming records: the driver subscribes, connections fill the feed, the consumer empties it.

mod driver;
mod feed;
mod reader;
mod shared;
mod turn;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use highwater_protocol::ids::{Offset, PartitionId};

use crate::admin::ListedOffset;
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::record::{ConsumedBatch, ConsumedRecord};

pub(crate) use self::feed::{Clamp, PartIndex, Scope, Topic};
pub(crate) use self::reader::{Read, Reader, Supply};
pub(crate) use self::shared::now;

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
        let of = Topic { name: topic.name.as_str().into(), id: topic.topic_id };
        let mut reader = Reader::start(self.client, Scope::Topic, self.memory_bytes, self.repair_timeout);
        let supply = reader.supply();
        for ListedOffset { partition, offset, .. } in listed {
            let index = supply.add(of.clone(), partition, self.start, offset);
            reader.add(index, of.clone(), partition, offset);
        }
        Ok(Consumer { reader, topic: self.topic })
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
    reader: Reader,
    topic: String,
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
        poll_fn(|context| {
            loop {
                match std::task::ready!(self.reader.poll_batch(context)) {
                    Some(Ok(Read::Got(_, batch))) => return Poll::Ready(Some(Ok(batch))),
                    Some(Ok(Read::Clamped(..))) => {}
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => return Poll::Ready(None),
                }
            }
        })
        .await
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
        self.reader.seek(index, to).await.map(drop)
    }

    /// Holds a partition back: what was received stays in memory, what else the broker may send is bounded.
    ///
    /// # Errors
    /// `UnknownPartition` when the consumer does not read it.
    pub fn pause(&mut self, partition: PartitionId) -> Result<(), Error> {
        let index = self.index_of(partition)?;
        self.reader.set_paused(index, true);
        Ok(())
    }

    /// Goes on with a partition that was paused.
    ///
    /// # Errors
    /// `UnknownPartition` when the consumer does not read it.
    pub fn resume(&mut self, partition: PartitionId) -> Result<(), Error> {
        let index = self.index_of(partition)?;
        self.reader.set_paused(index, false);
        Ok(())
    }

    /// The partitions that it reads.
    #[must_use]
    pub fn partitions(&self) -> Vec<PartitionId> {
        self.reader.places().map(|(_, place)| place.partition).collect()
    }

    /// The offset of the next record that the application gets from a partition; `None` if it is not read.
    #[must_use]
    pub fn position(&self, partition: PartitionId) -> Option<Offset> {
        self.reader.position(self.reader.find(None, partition)?)
    }

    /// The next offset of a partition that was not committed, as last heard; `None` if it is not read. 0 before the
    /// first answer.
    #[must_use]
    pub fn high_watermark(&self, partition: PartitionId) -> Option<Offset> {
        self.reader.high_watermark(self.reader.find(None, partition)?)
    }

    fn index_of(&self, partition: PartitionId) -> Result<PartIndex, Error> {
        self.reader.find(None, partition).ok_or_else(|| {
            let error = Error::new(ErrorKind::UnknownPartition, "the consumer does not read this partition");
            error.with_partition(&self.topic, partition)
        })
    }

    fn poll_record(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<ConsumedRecord, Error>>> {
        loop {
            match std::task::ready!(self.reader.poll_record(context)) {
                Some(Ok(Read::Got(_, record))) => return Poll::Ready(Some(Ok(record))),
                // Positions stay where the application has set them.
                Some(Ok(Read::Clamped(..))) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl Stream for Consumer {
    type Item = Result<ConsumedRecord, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_record(context)
    }
}
