//! Producing records: partitioner → accumulator → sequencer → sender.

mod accumulator;
mod builder;
mod delivery;
mod links;
mod outcome;
mod partitioner;
mod sender;
mod sequencer;

pub use builder::ProducerBuilder;
pub use delivery::{BatchDelivery, BatchReceipt, Delivery, RunReceipt};

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use highwater_protocol::ids::PartitionId;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use self::accumulator::{Accumulator, Admission, BatchId, Bounds};
use self::builder::Settings;
use self::links::Inbox;
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::record::ProducerRecord;

/// Sends records. All methods take `&self`: share it by reference or in an `Arc`.
///
/// The order in which records of one partition were admitted is their order in the log, and each is there once: batches
/// carry an identity and sequences, by which a broker recognises what it has. So whatever was not acknowledged is sent
/// again, in order, to whoever leads the partition, until the delivery timeout; only then is its outcome reported as
/// unknown, if it was ever sent. A change of leader is a pause. See [`ProducerBuilder::idempotent`].
///
/// Dropping a producer gives up what is not acknowledged, and logs how much at WARN: call [`Producer::close`] first.
///
/// ```no_run
/// # async fn example(client: highwater_client::Client) -> Result<(), highwater_client::Error> {
/// use highwater_client::ProducerRecord;
///
/// let producer = client.producer().build();
/// let mut deliveries = Vec::new();
/// for number in 0..1000 {
///     let value = format!("order {number}");
///     deliveries.push(producer.send(ProducerRecord::new("orders").key("customer-7").value(&value)).await?);
/// }
/// for delivery in deliveries {
///     delivery.await?;
/// }
/// producer.close().await?;
/// # Ok(())
/// # }
/// ```
pub struct Producer {
    shared: Arc<Shared>,
}

/// What the producer and its sender share.
struct Shared {
    client: Client,
    settings: Settings,
    /// Locked for one record or a few batches at a time. Lock order: this before `flushes`.
    accumulator: Mutex<Accumulator>,
    /// Memory became free.
    room: Notify,
    inbox: Arc<Inbox>,
    flushes: Mutex<Vec<Flush>>,
    /// A batch was filled since a sending task last let others run.
    batch_filled: AtomicBool,
    /// The sender ends when everything is done.
    stopping: AtomicBool,
    /// The sender ends now.
    aborted: AtomicBool,
    /// The sender has ended.
    stopped: CancellationToken,
}

/// Someone waits until every batch up to `upto` is done.
struct Flush {
    upto: BatchId,
    error: Option<Error>,
    done: oneshot::Sender<Result<(), Error>>,
}

/// Outcome of an attempt to admit a record without waiting.
enum Attempt {
    Done(Result<Delivery, Error>),
    NoRoom,
    UnknownTopic,
}

/// Why an attempt to admit many records ended.
enum Many<'a> {
    All,
    /// A batch is full: a moment for the sender to run.
    Filled,
    /// This record has to wait for room, or for the topic's metadata.
    Wait(ProducerRecord<'a>),
    Refused(Error),
}

impl Producer {
    /// Admits a record: waits until there is room in the producer's memory, encodes the record into a batch and
    /// returns its [`Delivery`], which resolves when the broker acknowledged it.
    ///
    /// Cancel safe: dropped before it is done, the record was not admitted.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownPartition`, `RecordTooLarge`, `InvalidArgument`, `Closed`, or `TimedOut` when there was
    /// no room within the delivery timeout. The record was not admitted; being borrowed, it never left the caller.
    pub async fn send(&self, record: ProducerRecord<'_>) -> Result<Delivery, Error> {
        self.let_sender_run().await;
        match self.shared.try_admit(&record) {
            Attempt::Done(result) => result,
            // Boxed, so that the common case has a small future.
            _ => Box::pin(self.send_slowly(record)).await,
        }
    }

    async fn send_slowly(&self, record: ProducerRecord<'_>) -> Result<Delivery, Error> {
        let deadline = now() + self.shared.settings.delivery_timeout;
        loop {
            let room = self.shared.room.notified();
            tokio::pin!(room);
            // Registered before the attempt: room that comes after it is not missed.
            room.as_mut().enable();
            match self.shared.try_admit(&record) {
                Attempt::Done(result) => return result,
                Attempt::UnknownTopic => self.shared.learn_topic(record.topic, deadline).await?,
                Attempt::NoRoom => {
                    self.shared.hurry();
                    self.shared.wait_for_room(room, record.topic, deadline).await?;
                }
            }
        }
    }

    /// Admits many records of a topic at once: faster than [`Producer::send`] in a loop. All go to `partition`, if
    /// one is given; otherwise each record goes where `send` would put it. The topic in the records is not looked at.
    ///
    /// Not cancel safe: dropped before it is done, some of the records were admitted.
    ///
    /// # Errors
    /// As [`Producer::send`], when not even the first record was admitted. An error at a later record ends the call,
    /// and is in the receipt for all records from that one on.
    ///
    /// ```no_run
    /// # async fn example(producer: &highwater_client::Producer) -> Result<(), highwater_client::Error> {
    /// use highwater_client::ProducerRecord;
    ///
    /// let lines = ["first", "second", "third"];
    /// let records = lines.iter().map(|line| ProducerRecord::new("log").value(line));
    /// let receipt = producer.send_batch("log", None, records).await?.await;
    /// for run in receipt.runs() {
    ///     match &run.result {
    ///         Ok(first) => println!("{} records from offset {} on", run.records.len(), first.offset),
    ///         Err(error) => println!("records {:?}: {error}", run.records),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn send_batch<'a, I>(
        &self,
        topic: &str,
        partition: Option<PartitionId>,
        records: I,
    ) -> Result<BatchDelivery, Error>
    where
        I: IntoIterator<Item = ProducerRecord<'a>>,
    {
        let mut records = records.into_iter().map(|record| ProducerRecord {
            topic,
            partition: partition.or(record.partition),
            ..record
        });
        let mut delivery = BatchDelivery::new();
        loop {
            self.let_sender_run().await;
            let admitted = match self.shared.try_admit_many(&mut records, &mut delivery) {
                Many::All => return Ok(delivery),
                Many::Filled => continue,
                Many::Refused(error) => Err(error),
                // Admits the record itself, so that waiting is done in one place only.
                Many::Wait(record) => Box::pin(self.send_slowly(record)).await,
            };
            match admitted {
                Ok(admitted) => delivery.push(admitted.ack(), admitted.index()),
                Err(error) if delivery.is_empty() => return Err(error),
                Err(error) => {
                    delivery.refuse(error, 1 + records.count());
                    return Ok(delivery);
                }
            }
        }
    }

    /// Sends everything admitted so far without lingering and waits until each record is acknowledged or failed. The
    /// deliveries tell which.
    ///
    /// Cancel safe: the records are sent anyway.
    ///
    /// # Errors
    /// The first failure among them.
    pub async fn flush(&self) -> Result<(), Error> {
        let (done, wait) = oneshot::channel();
        {
            let mut accumulator = self.shared.accumulator.lock();
            let Some(upto) = accumulator.flush() else { return Ok(()) };
            self.shared.flushes.lock().push(Flush { upto, error: None, done });
        }
        self.shared.inbox.work.notify_one();
        wait.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Closed, "the producer was dropped")))
    }

    /// Admits no more records, flushes, and closes the connections. Later calls fail with `Closed`.
    ///
    /// Cancel safe: called again, it goes on.
    ///
    /// # Errors
    /// As [`Producer::flush`].
    pub async fn close(&self) -> Result<(), Error> {
        self.shared.accumulator.lock().close();
        let flushed = self.flush().await;
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.inbox.work.notify_one();
        self.shared.stopped.cancelled().await;
        flushed
    }

    /// Lets the sender run once after each batch that was filled: on a runtime of one thread it could not otherwise
    /// while records keep coming.
    async fn let_sender_run(&self) {
        if self.shared.batch_filled.load(Ordering::Relaxed) {
            self.shared.batch_filled.store(false, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    }
}

impl Shared {
    fn new(client: Client, settings: Settings, bounds: Bounds) -> Self {
        Self {
            client,
            settings,
            accumulator: Mutex::new(Accumulator::new(bounds)),
            room: Notify::new(),
            inbox: Arc::default(),
            flushes: Mutex::new(Vec::new()),
            batch_filled: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            stopped: CancellationToken::new(),
        }
    }

    fn try_admit(&self, record: &ProducerRecord<'_>) -> Attempt {
        let mut accumulator = self.accumulator.lock();
        let (attempt, wake) = match accumulator.admit(record, wall_ms(), now, || self.client.random()) {
            Admission::Admitted { ack, index, wake, filled } => {
                if filled {
                    self.batch_filled.store(true, Ordering::Relaxed);
                }
                (Attempt::Done(Ok(Delivery::new(Arc::clone(ack), index))), wake)
            }
            Admission::NoRoom => (Attempt::NoRoom, false),
            Admission::UnknownTopic => (Attempt::UnknownTopic, false),
            Admission::Refused(error) => (Attempt::Done(Err(error)), false),
        };
        drop(accumulator);
        if wake {
            self.inbox.work.notify_one();
        }
        attempt
    }

    /// Admits records until one does not fit, a batch is full, or there are no more.
    fn try_admit_many<'a>(
        &self,
        records: &mut impl Iterator<Item = ProducerRecord<'a>>,
        delivery: &mut BatchDelivery,
    ) -> Many<'a> {
        let wall = wall_ms();
        let mut wake_sender = false;
        let mut accumulator = self.accumulator.lock();
        let result = loop {
            let Some(record) = records.next() else { break Many::All };
            match accumulator.admit(&record, wall, now, || self.client.random()) {
                Admission::Admitted { ack, index, wake, filled } => {
                    wake_sender |= wake;
                    delivery.push(ack, index);
                    if filled {
                        break Many::Filled;
                    }
                }
                Admission::NoRoom | Admission::UnknownTopic => break Many::Wait(record),
                Admission::Refused(error) => break Many::Refused(error),
            }
        };
        drop(accumulator);
        if matches!(result, Many::Filled) {
            self.batch_filled.store(true, Ordering::Relaxed);
        }
        if wake_sender {
            self.inbox.work.notify_one();
        }
        result
    }

    /// Finds out where a topic is.
    async fn learn_topic(&self, topic: &str, deadline: Instant) -> Result<(), Error> {
        let deadline = self.client.deadline().min(deadline.into());
        let metadata = self.client.topic(topic, deadline).await?;
        self.accumulator.lock().set_topic(metadata);
        self.client.watch(topic);
        Ok(())
    }

    /// Memory is full: nothing lingers any longer.
    fn hurry(&self) {
        if !self.settings.linger.is_zero() {
            self.accumulator.lock().flush();
            self.inbox.work.notify_one();
        }
    }

    async fn wait_for_room(
        &self,
        room: impl Future<Output = ()>,
        topic: &str,
        deadline: Instant,
    ) -> Result<(), Error> {
        tokio::time::timeout_at(deadline.into(), room).await.map_err(|_| {
            let bytes = self.settings.memory_bytes;
            let text =
                format!("the producer's {bytes} bytes of memory stayed full of unacknowledged records");
            Error::new(ErrorKind::TimedOut, text).with_topic(topic)
        })
    }

    /// Takes batches off the books.
    fn finish(&self, finished: Vec<(BatchId, usize, u32, Option<Error>)>) {
        {
            let mut accumulator = self.accumulator.lock();
            let mut flushes = self.flushes.lock();
            for (id, charged, record_count, error) in finished {
                accumulator.finish(id, charged, record_count);
                if let Some(error) = error {
                    for flush in flushes.iter_mut().filter(|flush| flush.upto >= id) {
                        flush.error.get_or_insert_with(|| error.clone());
                    }
                }
            }
            let (over, waiting) =
                flushes.drain(..).partition(|flush| accumulator.is_finished_upto(flush.upto));
            *flushes = waiting;
            let over: Vec<Flush> = over;
            for flush in over {
                // Whoever asked may have given up.
                let _ = flush.done.send(flush.error.map_or(Ok(()), Err));
            }
        }
        self.room.notify_waiters();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let pending = {
            let mut accumulator = self.shared.accumulator.lock();
            accumulator.close();
            accumulator.unfinished_records()
        };
        if pending > 0 {
            tracing::warn!(
                records = pending,
                "a producer was dropped before all its records were acknowledged; call close() first"
            );
        }
        self.shared.aborted.store(true, Ordering::Release);
        self.shared.inbox.work.notify_one();
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

/// The clock of the accumulator and the sender: tokio's, which tests can hold.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The timestamp of records that have none.
fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
