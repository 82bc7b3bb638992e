//! Producers at a steady rate, who note when each record was sent and when it was acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use highwater_client::wire::{Connector, TcpConnector};
use highwater_client::{Client, Delivery, PartitionId, Producer, ProducerRecord};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::{Outcomes, outcome_of, value_of};
use crate::oracle::{Outcome, Record};
use crate::wait;

/// How long a record may be on its way: beyond the client's own limit it has no outcome at all.
const DELIVERY_LIMIT: Duration = Duration::from_secs(60);
const SETTLE_LIMIT: Duration = Duration::from_secs(90);
/// Records of one producer and partition that may be on their way.
const ON_THEIR_WAY: usize = 20_000;
/// A producer has this many names, one for each partition: a record in a wrong partition is one that nobody sent.
const NAMES: u32 = 10_000;
/// Messages of failed sends that are kept.
const FAILURES_KEPT: usize = 20;
/// How long a producer may take to find the cluster.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// How much load, and where to.
#[derive(Debug, Clone)]
pub struct SteadyOptions {
    /// The topic.
    pub topic: String,
    /// How many partitions it has; every producer writes to all of them.
    pub partitions: u32,
    /// How many producers, each with connections of its own.
    pub producers: u32,
    /// The time between two records of a producer to a partition.
    pub interval: Duration,
    /// How the producers connect.
    pub connector: Arc<dyn Connector>,
    /// How long a record may take to be acknowledged.
    pub delivery_timeout: Duration,
}

impl SteadyOptions {
    /// Two producers, a record each hundredth of a second to each partition.
    #[must_use]
    pub fn new(topic: &str, partitions: u32) -> Self {
        Self {
            topic: topic.to_owned(),
            partitions,
            producers: 2,
            interval: Duration::from_millis(10),
            connector: Arc::new(TcpConnector),
            delivery_timeout: DELIVERY_LIMIT,
        }
    }
}

/// When a record was sent and acknowledged.
#[derive(Debug, Clone, Copy)]
struct Sample {
    sent: Instant,
    acknowledged: Instant,
}

impl Shared {
    fn failed(&self, record: Record, error: &highwater_client::Error) -> Outcome {
        let mut failures = self.failures.lock();
        if failures.len() < FAILURES_KEPT {
            failures.push(format!("{record:?}: {error}"));
        }
        outcome_of(error)
    }
}

/// What producers share.
#[derive(Debug)]
struct Shared {
    options: SteadyOptions,
    /// One list a partition, in the order of the acknowledgements.
    samples: Vec<Mutex<Vec<Sample>>>,
    /// What the first sends that failed were told.
    failures: Mutex<Vec<String>>,
    stop: AtomicBool,
}

/// Producers at work, until they are told to stop.
#[derive(Debug)]
pub struct Steady {
    shared: Arc<Shared>,
    producers: Vec<Arc<Producer>>,
    tasks: Vec<Pair>,
}

/// Who sends to a partition, and who waits for the outcomes.
#[derive(Debug)]
struct Pair {
    partition: u32,
    sending: JoinHandle<Result<()>>,
    settling: JoinHandle<Result<Outcomes>>,
}

/// A record whose outcome is not known yet, or was known at once.
type Sent = (Record, Instant, Result<Delivery, Outcome>);

impl Steady {
    /// Starts the producers. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When a client does not connect.
    pub async fn start(bootstrap: &[String], options: SteadyOptions) -> Result<Self> {
        ensure!(options.partitions < NAMES, "too many partitions");
        let samples = (0..options.partitions).map(|_| Mutex::default()).collect();
        let shared =
            Arc::new(Shared { options, samples, failures: Mutex::default(), stop: AtomicBool::new(false) });
        let mut steady = Self { shared, producers: Vec::new(), tasks: Vec::new() };
        for producer in 0..steady.shared.options.producers {
            steady.start_producer(bootstrap, producer).await?;
        }
        Ok(steady)
    }

    async fn start_producer(&mut self, bootstrap: &[String], number: u32) -> Result<()> {
        let options = &self.shared.options;
        let client = Client::builder(bootstrap.to_vec())
            .name(format!("steady-{number}"))
            .connector(Arc::clone(&options.connector))
            .connect_timeout(CONNECT_LIMIT)
            .connect()
            .await
            .context("connect a producer")?;
        let producer = Arc::new(client.producer().delivery_timeout(options.delivery_timeout).build());
        for partition in 0..options.partitions {
            let name = number * NAMES + partition;
            let (sender, receiver) = mpsc::channel(ON_THEIR_WAY);
            let sending = send(Arc::clone(&self.shared), Arc::clone(&producer), name, partition, sender);
            let settling = settle(Arc::clone(&self.shared), partition, receiver);
            let (sending, settling) = (tokio::spawn(sending), tokio::spawn(settling));
            self.tasks.push(Pair { partition, sending, settling });
        }
        self.producers.push(producer);
        Ok(())
    }

    /// Records acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.shared.samples.iter().map(|samples| samples.lock().len() as u64).sum()
    }

    /// When the first record of those that were sent to the partition after `moment` was acknowledged.
    #[must_use]
    pub fn acknowledged_since(&self, partition: u32, moment: Instant) -> Option<Instant> {
        let samples = self.shared.samples.get(partition as usize)?.lock();
        let first = samples.partition_point(|sample| sample.acknowledged < moment);
        let later = samples.get(first..)?;
        later.iter().find(|sample| sample.sent >= moment).map(|sample| sample.acknowledged)
    }

    /// Waits until each of the partitions has acknowledged a record that was sent after `moment`; returns how long after
    /// it that was.
    ///
    /// # Errors
    /// When one does not in time; named.
    pub async fn served_since(
        &self,
        partitions: &[u32],
        moment: Instant,
        limit: Duration,
    ) -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        let deadline = Instant::now() + limit;
        for partition in partitions {
            let what = format!("partition {partition} of {} acknowledges again", self.shared.options.topic);
            let left = deadline.saturating_duration_since(Instant::now());
            let served =
                wait::until_async(&what, left, || async { self.acknowledged_since(*partition, moment) });
            times.push(served.await?.duration_since(moment));
        }
        Ok(times)
    }

    /// What the first sends that failed were told.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().clone()
    }

    /// All partitions that are written to.
    #[must_use]
    pub fn partitions(&self) -> Vec<u32> {
        (0..self.shared.options.partitions).collect()
    }

    /// From sending to acknowledgement, in microseconds, of the records that were sent between two moments.
    ///
    /// # Errors
    /// Never for times below an hour.
    pub fn latencies(&self, from: Instant, to: Instant) -> Result<Histogram<u64>> {
        let mut histogram = micros_histogram()?;
        for samples in &self.shared.samples {
            for sample in samples.lock().iter().filter(|sample| sample.sent >= from && sample.sent < to) {
                let taken = sample.acknowledged.duration_since(sample.sent);
                histogram.saturating_record(u64::try_from(taken.as_micros()).unwrap_or(u64::MAX));
            }
        }
        Ok(histogram)
    }

    /// The longest time in which some partition acknowledged nothing, between two moments.
    #[must_use]
    pub fn longest_pause(&self, from: Instant, to: Instant) -> Duration {
        let pause_of = |samples: &Mutex<Vec<Sample>>| {
            let samples = samples.lock();
            let times = samples.iter().map(|sample| sample.acknowledged);
            let within: Vec<_> = times.filter(|time| *time >= from && *time <= to).collect();
            let ends = within.iter().copied().chain([to]);
            let starts = [from].into_iter().chain(within.iter().copied());
            starts.zip(ends).map(|(start, end)| end.saturating_duration_since(start)).max()
        };
        self.shared.samples.iter().filter_map(pause_of).max().unwrap_or_default()
    }

    /// Stops the producers, waits for what is on its way, and returns what became of every record, by partition.
    ///
    /// # Errors
    /// When a record has no outcome in time.
    pub async fn stop(self) -> Result<BTreeMap<u32, Outcomes>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all: BTreeMap<u32, Outcomes> = BTreeMap::new();
        for Pair { partition, sending, settling } in self.tasks {
            sending.await.context("a producer panicked")??;
            all.entry(partition).or_default().extend(settling.await.context("a producer panicked")??);
        }
        for producer in self.producers {
            // Whatever it could not send has been told by its delivery.
            drop(producer.close().await);
        }
        Ok(all)
    }
}

/// A histogram of times up to an hour, in microseconds.
///
/// # Errors
/// Never.
pub fn micros_histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).context("make a histogram")
}

/// Sends a record to the partition at each tick.
async fn send(
    shared: Arc<Shared>,
    producer: Arc<Producer>,
    name: u32,
    partition: u32,
    sender: mpsc::Sender<Sent>,
) -> Result<()> {
    let mut ticks = tokio::time::interval(shared.options.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for number in 0.. {
        ticks.tick().await;
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let record = Record { producer: name, number };
        let value = value_of(record);
        let sending =
            ProducerRecord::new(&shared.options.topic).partition(PartitionId(partition)).value(&value);
        let sent = Instant::now();
        let delivery = producer.send(sending).await.map_err(|error| shared.failed(record, &error));
        sender.send((record, sent, delivery)).await.context("nobody waits for the outcomes")?;
    }
    Ok(())
}

/// Waits for the outcomes of what was sent to the partition, in that order.
async fn settle(shared: Arc<Shared>, partition: u32, mut receiver: mpsc::Receiver<Sent>) -> Result<Outcomes> {
    let mut outcomes = Outcomes::new();
    let samples = shared.samples.get(partition as usize).context("a partition that nobody has")?;
    while let Some((record, sent, delivery)) = receiver.recv().await {
        let outcome = match delivery {
            Err(outcome) => outcome,
            Ok(delivery) => {
                let what = format!("{record:?} has an outcome");
                match wait::within(&what, SETTLE_LIMIT, delivery).await? {
                    Ok(receipt) => {
                        let found = receipt.partition;
                        ensure!(found == PartitionId(partition), "{record:?} went to {found:?}");
                        samples.lock().push(Sample { sent, acknowledged: Instant::now() });
                        Outcome::Acknowledged(receipt.offset.0)
                    }
                    Err(error) => shared.failed(record, &error),
                }
            }
        };
        outcomes.insert(record, outcome);
    }
    Ok(outcomes)
}
