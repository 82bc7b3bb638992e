//! Records that know who sent them, producers that keep count, and readers that check: what the process tests put
//! through a broker, for [`oracle`] to judge.

mod steady;
mod watcher;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwater_client::{
    Client, ConsumedBatch, Delivery, ErrorKind, Offset, PartitionId, ProducerRecord, StartAt,
};
use tokio::task::JoinHandle;

pub use self::steady::{Steady, SteadyOptions, micros_histogram};
pub use self::watcher::{Seen, Watcher};
use crate::oracle::{self, History, Outcome, Pass, Record, Summary};
use crate::wait;

/// Bytes of a value before its filling: who sent it and its number.
const PREFIX_BYTES: usize = 12;
/// The longest filling.
const FILLING_BYTES_MAX: u64 = 200;
/// How long a reader may take to get to the high watermark.
const READ_LIMIT: Duration = Duration::from_secs(120);

/// How long a producer waits after a refusal.
const REFUSED_PAUSE: Duration = Duration::from_millis(2);

/// A number from the environment, for tests that can be longer or different.
///
/// # Panics
/// When it is not a number.
#[must_use]
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// The value of a record: its name and a filling that depends on it, of a length that depends on it too.
#[must_use]
pub fn value_of(record: Record) -> Vec<u8> {
    let mut value = record.producer.to_le_bytes().to_vec();
    value.extend_from_slice(&record.number.to_le_bytes());
    let mixed = record.number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(record.producer);
    let filling = mixed.to_le_bytes();
    let length = usize::try_from(mixed % FILLING_BYTES_MAX).unwrap_or_default();
    value.extend(filling.iter().cycle().take(length));
    value
}

/// The record that a value belongs to.
///
/// # Errors
/// When it is not exactly the value of any record.
pub fn record_of(value: &[u8]) -> Result<Record> {
    let prefix: &[u8; PREFIX_BYTES] = value.first_chunk().context("a value without a name")?;
    let (producer, number) = prefix.split_at(4);
    let record = Record {
        producer: u32::from_le_bytes(producer.try_into()?),
        number: u64::from_le_bytes(number.try_into()?),
    };
    ensure!(value == value_of(record), "the value of {record:?} was changed");
    Ok(record)
}

/// What a delivery that failed says about its record.
#[must_use]
pub fn outcome_of(error: &highwater_client::Error) -> Outcome {
    match error.kind() {
        ErrorKind::OutcomeUnknown => Outcome::Unknown,
        _ => Outcome::Refused,
    }
}

/// Adds the records of a batch to a pass.
///
/// # Errors
/// When one of them is not as it was sent.
pub fn note(batch: &ConsumedBatch, pass: &mut Pass) -> Result<()> {
    for record in batch {
        let record = record.context("decode a record")?;
        let value = record.value.context("a record without a value")?;
        let name = record_of(value).with_context(|| format!("offset {}", record.offset.0))?;
        pass.push((record.offset.0, name));
    }
    Ok(())
}

/// Reads a partition from `from` (or from the log start) up to the high watermark of this moment.
///
/// # Errors
/// When reading fails or takes too long, or a record is not as it was sent.
pub async fn read(client: &Client, topic: &str, partition: PartitionId, from: Option<u64>) -> Result<Pass> {
    let latest =
        client.admin().list_offsets(topic, &[partition], StartAt::Latest).await.context("ask for the end")?;
    let end = latest.first().context("no answer for the partition")?.offset;
    let start = from.map_or(StartAt::Earliest, |offset| StartAt::Offset(Offset(offset.min(end.0))));
    let builder = client.consumer(topic).from(start).partitions([partition]);
    let mut consumer = builder.build().await.context("subscribe")?;
    let mut pass = Pass::new();
    let reading = async {
        while consumer.position(partition).is_some_and(|position| position < end) {
            let batch = consumer.next_batch().await.context("the stream ended")?.context("read")?;
            note(&batch, &mut pass)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let what = format!("{topic} partition {} is read up to {}", partition.0, end.0);
    wait::within(&what, READ_LIMIT, reading).await??;
    Ok(pass)
}

/// What became of the records of one partition.
pub type Outcomes = BTreeMap<Record, Outcome>;

/// Reads every partition of a topic from its start, and asks the oracle about everything that was sent and read before.
///
/// # Errors
/// When reading fails, or with the first violations.
pub async fn judge(
    client: &Client,
    topic: &str,
    sent: BTreeMap<u32, Outcomes>,
    mut passes: BTreeMap<u32, Vec<Pass>>,
) -> Result<Summary> {
    let mut summary = Summary::default();
    for (partition, sent) in sent {
        let mut passes = passes.remove(&partition).unwrap_or_default();
        passes.push(read(client, topic, PartitionId(partition), None).await?);
        match oracle::check(&History { sent, passes }) {
            Ok(counts) => summary += counts,
            Err(found) => {
                let shown: Vec<_> = found.iter().take(20).map(ToString::to_string).collect();
                let (count, shown) = (found.len(), shown.join("\n"));
                anyhow::bail!("{topic} partition {partition}: {count} violations:\n{shown}");
            }
        }
    }
    ensure!(passes.is_empty(), "partitions were read that nobody wrote to");
    Ok(summary)
}

/// Producers at work, until they are told to stop.
#[derive(Debug)]
pub struct Load {
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<BTreeMap<u32, Outcomes>>>>,
}

/// How much load, and where to.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The topic.
    pub topic: String,
    /// How many partitions it has; every producer writes to all of them in turn.
    pub partitions: u32,
    /// The names of the producers. Each has a connection of its own.
    pub producers: std::ops::Range<u32>,
    /// Records that each producer has on their way.
    pub in_flight: usize,
}

impl Load {
    /// Starts the producers. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When a client does not connect.
    pub async fn start(bootstrap: &str, options: LoadOptions) -> Result<Self> {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for producer in options.producers.clone() {
            let name = format!("load-{producer}");
            let client = Client::builder([bootstrap]).name(name).connect().await.context("connect")?;
            let worker = Worker {
                producer,
                options: options.clone(),
                acknowledged: Arc::clone(&acknowledged),
                stop: Arc::clone(&stop),
                waiting: VecDeque::new(),
                outcomes: BTreeMap::new(),
            };
            tasks.push(tokio::spawn(worker.run(client)));
        }
        Ok(Self { acknowledged, stop, tasks })
    }

    /// Records acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Stops the producers, waits for what is on its way, and returns what became of every record, by partition.
    ///
    /// # Errors
    /// When a producer failed in a way that has no outcome.
    pub async fn stop(self) -> Result<BTreeMap<u32, Outcomes>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all: BTreeMap<u32, Outcomes> = BTreeMap::new();
        for task in self.tasks {
            for (partition, outcomes) in task.await.context("a producer panicked")?? {
                all.entry(partition).or_default().extend(outcomes);
            }
        }
        Ok(all)
    }
}

/// One producer.
struct Worker {
    producer: u32,
    options: LoadOptions,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    waiting: VecDeque<(u32, Record, Delivery)>,
    outcomes: BTreeMap<u32, Outcomes>,
}

impl Worker {
    async fn run(mut self, client: Client) -> Result<BTreeMap<u32, Outcomes>> {
        let producer = client.producer().build();
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            for partition in 0..self.options.partitions {
                let record = Record { producer: self.producer, number };
                let value = value_of(record);
                let topic = self.options.topic.clone();
                let sending = ProducerRecord::new(&topic).partition(PartitionId(partition)).value(&value);
                match producer.send(sending).await {
                    Ok(delivery) => self.waiting.push_back((partition, record, delivery)),
                    Err(error) => self.note(partition, record, outcome_of(&error)).await,
                }
                if self.waiting.len() >= self.options.in_flight {
                    self.settle_one().await?;
                }
            }
            number += 1;
        }
        while !self.waiting.is_empty() {
            self.settle_one().await?;
        }
        // Whatever it could not send has been told by its delivery.
        drop(producer.close().await);
        Ok(self.outcomes)
    }

    /// Waits for the oldest record on its way.
    async fn settle_one(&mut self) -> Result<()> {
        let Some((partition, record, delivery)) = self.waiting.pop_front() else { return Ok(()) };
        let outcome = match wait::within("a record has an outcome", READ_LIMIT, delivery).await? {
            Ok(receipt) => {
                ensure!(
                    receipt.partition == PartitionId(partition),
                    "{record:?} went to {:?}",
                    receipt.partition
                );
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
                Outcome::Acknowledged(receipt.offset.0)
            }
            Err(error) => outcome_of(&error),
        };
        self.note(partition, record, outcome).await;
        Ok(())
    }

    async fn note(&mut self, partition: u32, record: Record, outcome: Outcome) {
        self.outcomes.entry(partition).or_default().insert(record, outcome);
        if outcome == Outcome::Refused {
            // A broker that refuses is not asked again at once.
            tokio::time::sleep(REFUSED_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_names_its_record_and_every_byte_counts() {
        for number in [0, 1, 199, 1 << 40] {
            let record = Record { producer: 3, number };
            let mut value = value_of(record);
            assert_eq!(record_of(&value).unwrap(), record);
            for index in 0..value.len() {
                value[index] ^= 1;
                assert!(record_of(&value).ok() != Some(record), "byte {index} of {record:?}");
                value[index] ^= 1;
            }
            assert!(record_of(&value[..value.len() - 1]).is_err());
        }
        assert!(record_of(b"short").is_err());
    }
}
