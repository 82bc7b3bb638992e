//! Producing records.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use highwater_protocol::compression::Compression;
use highwater_protocol::ids::PartitionId;
use highwater_protocol::messages::Acks;

use crate::client::Client;
use crate::error::Error;
use crate::record::{ProducerRecord, Receipt};

/// Settings of a [`Producer`].
#[derive(Debug, Clone)]
#[must_use = "a producer is made by build()"]
pub struct ProducerBuilder {
    client: Client,
    acks: Acks,
    linger: Duration,
    batch_bytes: usize,
    memory_bytes: usize,
    max_in_flight: usize,
    delivery_timeout: Duration,
    compression: Compression,
}

impl ProducerBuilder {
    pub(crate) const fn new(client: Client) -> Self {
        Self {
            client,
            acks: Acks::All,
            linger: Duration::ZERO,
            batch_bytes: 256 << 10,
            memory_bytes: 64 << 20,
            max_in_flight: 64,
            delivery_timeout: Duration::from_secs(30),
            compression: Compression::None,
        }
    }

    /// When the broker acknowledges. Default: [`Acks::All`], when the records are committed; nothing acknowledged is
    /// lost only with it.
    pub const fn acks(mut self, acks: Acks) -> Self {
        self.acks = acks;
        self
    }

    /// How long a batch waits for more records before it is sent. Default: not at all; batches fill while earlier
    /// ones are on their way.
    pub const fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Bytes of records after which a batch is sent. Default: 256 KiB.
    pub const fn batch_bytes(mut self, bytes: usize) -> Self {
        self.batch_bytes = bytes;
        self
    }

    /// Bytes of records that may wait for their acknowledgement; beyond it [`Producer::send`] waits. Default: 64 MiB.
    pub const fn memory_bytes(mut self, bytes: usize) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// Produce requests that may be unanswered at once on a connection; the broker may allow fewer. Default: 64.
    pub const fn max_in_flight(mut self, count: usize) -> Self {
        self.max_in_flight = count;
        self
    }

    /// How long a record may wait, from its admission to its acknowledgement, with all retries. Default: 30 seconds.
    pub const fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.delivery_timeout = timeout;
        self
    }

    /// How batches are compressed. Default: not at all.
    pub const fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Starts the producer. Connections are made when records need them. Must be called in a tokio runtime.
    #[must_use]
    pub fn build(self) -> Producer {
        let _ = (&self.client, self.acks, self.linger, self.batch_bytes, self.memory_bytes);
        let _ = (self.max_in_flight, self.delivery_timeout, self.compression);
        unimplemented!()
    }
}

/// Sends records. All methods take `&self`: share it by reference or in an `Arc`.
///
/// The order in which records of one partition were admitted is the order in the log.
#[derive(Debug)]
pub struct Producer {}

impl Producer {
    /// Admits a record: waits until there is room in the producer's memory, encodes the record into a batch and
    /// returns its [`Delivery`], which resolves when the broker acknowledged it.
    ///
    /// Cancel safe: dropped before it is done, the record was not admitted.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownPartition`, `RecordTooLarge`, `Closed`, or `TimedOut` when there was no room within the
    /// delivery timeout. The record was not admitted.
    pub async fn send(&self, record: ProducerRecord<'_>) -> Result<Delivery, Error> {
        let _ = record;
        unimplemented!()
    }

    /// Admits many records of a topic at once: faster than [`Producer::send`] in a loop. All go to `partition`, if
    /// one is given; otherwise each record goes where `send` would put it. The topic in the records is not looked at.
    ///
    /// Not cancel safe: dropped before it is done, some of the records were admitted.
    ///
    /// # Errors
    /// As [`Producer::send`], when not even the first record was admitted. An error at a later record ends the call,
    /// and is in the receipt with the records from that one on.
    pub async fn send_batch<'a, I>(
        &self,
        topic: &str,
        partition: Option<PartitionId>,
        records: I,
    ) -> Result<BatchDelivery, Error>
    where
        I: IntoIterator<Item = ProducerRecord<'a>>,
    {
        let _ = (topic, partition, records.into_iter().count());
        unimplemented!()
    }

    /// Sends everything admitted so far without lingering and waits until each record is acknowledged or failed. The
    /// deliveries tell which.
    ///
    /// Cancel safe: the records are sent anyway.
    ///
    /// # Errors
    /// The first failure among them.
    pub async fn flush(&self) -> Result<(), Error> {
        unimplemented!()
    }

    /// Flushes and closes the connections. Later calls fail with `Closed`.
    ///
    /// # Errors
    /// As [`Producer::flush`].
    pub async fn close(self) -> Result<(), Error> {
        unimplemented!()
    }
}

/// The acknowledgement of one record, to be awaited: it is shared by the whole batch.
///
/// Dropping it does not take the record back.
#[derive(Debug)]
#[must_use = "a record is only known to be safe once its delivery resolved"]
pub struct Delivery {}

impl Future for Delivery {
    type Output = Result<Receipt, Error>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        unimplemented!()
    }
}

/// The acknowledgement of the records of one [`Producer::send_batch`].
#[derive(Debug)]
#[must_use = "records are only known to be safe once their delivery resolved"]
pub struct BatchDelivery {}

impl Future for BatchDelivery {
    type Output = BatchReceipt;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        unimplemented!()
    }
}

/// What became of the records of one [`Producer::send_batch`].
#[derive(Debug, Clone)]
#[must_use = "some of the records may have failed"]
pub struct BatchReceipt {
    runs: Vec<RunReceipt>,
}

/// What became of consecutive records that travelled in one batch.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunReceipt {
    /// Which records, by their place in the call, from 0.
    pub records: Range<usize>,
    /// The receipt of the first of them, the others have the offsets after it; or why they failed.
    pub result: Result<Receipt, Error>,
}

impl BatchReceipt {
    /// What became of each record, in the order of the call, without gaps.
    #[must_use]
    pub fn runs(&self) -> &[RunReceipt] {
        &self.runs
    }

    /// How many records were acknowledged.
    #[must_use]
    pub fn acknowledged_count(&self) -> usize {
        self.runs.iter().filter(|run| run.result.is_ok()).map(|run| run.records.len()).sum()
    }

    /// This, if every record was acknowledged.
    ///
    /// # Errors
    /// The first failure.
    pub fn into_result(self) -> Result<Self, Error> {
        match self.runs.iter().find_map(|run| run.result.as_ref().err()) {
            Some(error) => Err(error.clone()),
            None => Ok(self),
        }
    }
}
