//! Records as the application hands them over and gets them back.

use bytes::Bytes;
use highwater_protocol::batch::{BatchHeader, Header, RecordRef, Records, RecordsError, RecordsIter};
use highwater_protocol::ids::{LeaderEpoch, Offset, PartitionId};
use highwater_protocol::messages::Stage;

/// A record to produce. It borrows everything: it is encoded into its batch when it is admitted, and a refused record
/// has never left the caller's hands.
///
/// ```
/// use highwater_client::ProducerRecord;
///
/// let order = String::from("42 apples");
/// let record = ProducerRecord::new("orders").key("customer-7").value(&order);
/// assert_eq!(record.topic(), "orders");
/// ```
#[derive(Debug, Clone, Copy)]
#[must_use = "a record is produced by Producer::send"]
pub struct ProducerRecord<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: Option<PartitionId>,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: &'a [(&'a str, Option<&'a [u8]>)],
    pub(crate) timestamp: Option<i64>,
}

impl<'a> ProducerRecord<'a> {
    /// A record of `topic` without key, value and headers.
    pub const fn new(topic: &'a str) -> Self {
        Self { topic, partition: None, key: None, value: None, headers: &[], timestamp: None }
    }

    /// Puts it into this partition, whatever its key is.
    pub const fn partition(mut self, partition: PartitionId) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Sets the key: records with the same key go to the same partition, in order.
    pub fn key<B: AsRef<[u8]> + ?Sized>(mut self, key: &'a B) -> Self {
        self.key = Some(key.as_ref());
        self
    }

    /// Sets the value. Without one the record says that its key is deleted.
    pub fn value<B: AsRef<[u8]> + ?Sized>(mut self, value: &'a B) -> Self {
        self.value = Some(value.as_ref());
        self
    }

    /// Sets the headers, names and values. Names that start with `hw-` are reserved.
    pub const fn headers(mut self, headers: &'a [(&'a str, Option<&'a [u8]>)]) -> Self {
        self.headers = headers;
        self
    }

    /// Sets the timestamp, in milliseconds since the Unix epoch. Without one it is the time of admission.
    pub const fn timestamp(mut self, timestamp_ms: i64) -> Self {
        self.timestamp = Some(timestamp_ms);
        self
    }

    /// Its topic.
    #[must_use]
    pub const fn topic(&self) -> &'a str {
        self.topic
    }
}

/// What the broker says about a record that it acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// Where the record is.
    pub partition: PartitionId,
    /// Its place there.
    pub offset: Offset,
    /// When the leader appended it, in microseconds since the Unix epoch.
    pub append_time: i64,
    /// How far the record had come, on the least of the replicas counted.
    pub stage: Stage,
    /// How many replicas had reached that stage.
    pub replicas_counted: u32,
    /// How many replicas the partition has.
    pub replicas_total: u32,
}

/// A record that was consumed. Key and value are slices of the batch that it came in: nothing is copied, and the batch
/// stays in memory while one of its records does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumedRecord {
    /// Where it is.
    pub partition: PartitionId,
    /// Its place there.
    pub offset: Offset,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value. Absent: its key was deleted.
    pub value: Option<Bytes>,
    /// Its headers, in the producer's order.
    pub headers: Vec<Header>,
}

/// A batch that was consumed, its checksums verified: the fast way to read many records.
///
/// ```no_run
/// # async fn example(consumer: &mut highwater_client::Consumer) -> Result<(), highwater_client::Error> {
/// let mut bytes = 0;
/// while let Some(batch) = consumer.next_batch().await {
///     for record in batch?.iter() {
///         bytes += record?.value.map_or(0, <[u8]>::len);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ConsumedBatch {
    pub(crate) partition: PartitionId,
    pub(crate) records: Records,
    /// Records below it are not the application's: a batch may start before the position.
    pub(crate) from: Offset,
    pub(crate) high_watermark: Offset,
}

impl ConsumedBatch {
    /// Where the batch is.
    #[must_use]
    pub const fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The offset of the first record that [`ConsumedBatch::iter`] gives.
    #[must_use]
    pub fn first_offset(&self) -> Offset {
        self.records.header().leader.base_offset.max(self.from)
    }

    /// The offset after the last record.
    #[must_use]
    pub const fn end_offset(&self) -> Offset {
        self.records.header().end_offset()
    }

    /// The epoch of the leader that appended it.
    #[must_use]
    pub const fn leader_epoch(&self) -> LeaderEpoch {
        self.records.header().leader.leader_epoch
    }

    /// When its leader appended it, in microseconds since the Unix epoch.
    #[must_use]
    pub const fn append_time(&self) -> i64 {
        self.records.header().leader.append_time
    }

    /// The next offset that was not committed when the batch was sent.
    #[must_use]
    pub const fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Its header, as the leader and the producer wrote it.
    #[must_use]
    pub const fn header(&self) -> &BatchHeader {
        self.records.header()
    }

    /// The records, borrowed, from the consumer's position on. Ends after the first error, which means that the
    /// producer wrote something that is not records.
    #[must_use]
    pub fn iter(&self) -> ConsumedIter<'_> {
        let skip = self.records.header().leader.base_offset < self.from;
        ConsumedIter { records: self.records.iter(), from: self.from, skip }
    }

    /// One of its records with slices of its own.
    ///
    /// # Errors
    /// When its headers do not decode.
    pub fn to_owned_record(&self, record: &RecordRef<'_>) -> Result<ConsumedRecord, RecordsError> {
        let owned = self.records.to_owned_record(record)?;
        Ok(ConsumedRecord {
            partition: self.partition,
            offset: owned.offset,
            timestamp: owned.timestamp,
            key: owned.key,
            value: owned.value,
            headers: owned.headers,
        })
    }
}

impl<'a> IntoIterator for &'a ConsumedBatch {
    type Item = Result<RecordRef<'a>, RecordsError>;
    type IntoIter = ConsumedIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Goes through the records of a [`ConsumedBatch`].
#[derive(Debug, Clone)]
pub struct ConsumedIter<'a> {
    records: RecordsIter<'a>,
    from: Offset,
    skip: bool,
}

impl<'a> Iterator for ConsumedIter<'a> {
    type Item = Result<RecordRef<'a>, RecordsError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let record = self.records.next()?;
            if self.skip {
                if matches!(&record, Ok(record) if record.offset < self.from) {
                    continue;
                }
                self.skip = false;
            }
            return Some(record);
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, self.records.size_hint().1)
    }
}
