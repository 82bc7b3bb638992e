//! Consuming records.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use highwater_protocol::ids::{Offset, PartitionId};

use crate::client::Client;
use crate::error::Error;
use crate::record::{ConsumedBatch, ConsumedRecord};

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
}

impl ConsumerBuilder {
    pub(crate) const fn new(client: Client, topic: String) -> Self {
        Self { client, topic, start: StartAt::Latest, partitions: Vec::new(), memory_bytes: 16 << 20 }
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

    /// Bytes of batches that brokers may send ahead of the application, over all partitions. Each partition may
    /// exceed its share by one batch. Default: 16 MiB.
    pub const fn memory_bytes(mut self, bytes: usize) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// Finds the start positions and subscribes. When it returns, `Latest` has been decided: records committed later
    /// will be seen.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownPartition`, or what kept the brokers from answering within the request timeout.
    pub async fn build(self) -> Result<Consumer, Error> {
        let _ = (&self.client, &self.topic, self.start, &self.partitions, self.memory_bytes);
        unimplemented!()
    }
}

/// Reads the partitions of a topic, in order within each partition: a [`Stream`] of records.
#[derive(Debug)]
pub struct Consumer {}

impl Consumer {
    /// The next record of any partition, or `None` when the stream has ended.
    ///
    /// Cancel safe: a record is taken only when it is returned.
    pub async fn next_record(&mut self) -> Option<Result<ConsumedRecord, Error>> {
        unimplemented!()
    }

    /// The next batch of any partition: the fast path. Do not mix it with reading records one by one: a batch that
    /// was begun that way is finished by [`Consumer::next_record`] only.
    ///
    /// Cancel safe: a batch is taken only when it is returned.
    pub async fn next_batch(&mut self) -> Option<Result<ConsumedBatch, Error>> {
        unimplemented!()
    }

    /// Goes on from somewhere else in a partition. What had been received of it is dropped.
    ///
    /// Cancel safe: dropped before it is done, the position is unchanged.
    ///
    /// # Errors
    /// `UnknownPartition` when the consumer does not read it, or what kept the broker from answering. An offset out of
    /// range is told by the stream.
    pub async fn seek(&mut self, partition: PartitionId, to: StartAt) -> Result<(), Error> {
        let _ = (partition, to);
        unimplemented!()
    }

    /// Holds a partition back: what was received stays in memory, what else the broker may send is bounded.
    ///
    /// # Errors
    /// `UnknownPartition` when the consumer does not read it.
    pub fn pause(&mut self, partition: PartitionId) -> Result<(), Error> {
        let _ = partition;
        unimplemented!()
    }

    /// Goes on with a partition that was paused.
    ///
    /// # Errors
    /// `UnknownPartition` when the consumer does not read it.
    pub fn resume(&mut self, partition: PartitionId) -> Result<(), Error> {
        let _ = partition;
        unimplemented!()
    }

    /// The partitions that it reads.
    #[must_use]
    pub fn partitions(&self) -> Vec<PartitionId> {
        unimplemented!()
    }

    /// The offset of the next record that the application gets from a partition; `None` if it is not read.
    #[must_use]
    pub fn position(&self, partition: PartitionId) -> Option<Offset> {
        let _ = partition;
        unimplemented!()
    }

    /// The next offset of a partition that was not committed, as last heard; `None` if it is not read.
    #[must_use]
    pub fn high_watermark(&self, partition: PartitionId) -> Option<Offset> {
        let _ = partition;
        unimplemented!()
    }
}

impl Stream for Consumer {
    type Item = Result<ConsumedRecord, Error>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        unimplemented!()
    }
}
