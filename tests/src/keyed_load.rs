//! Keyed records under load, and whether a compacted topic still knows the last one of every key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwater_client::{Client, Offset, PartitionId, Producer, ProducerRecord, StartAt};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::sim::random::Random;
use crate::wait;

/// Every so many-th record of a key has no value: it deletes the key.
const TOMBSTONE_EVERY: u64 = 10;
/// Records that are sent before they are waited for.
const CHUNK: u64 = 300;
/// How long reading a partition may take.
const READ_LIMIT: Duration = Duration::from_secs(120);

/// What is known of a key: the records of a key are numbered from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// The last one that was sent.
    pub sent: u64,
    /// The last one that was acknowledged.
    pub acknowledged: u64,
}

/// What is known of all keys.
pub type KnownKeys = BTreeMap<u64, Known>;

/// A producer that writes keyed records until it is told to stop.
#[derive(Debug)]
pub struct KeyedLoad {
    known: Arc<Mutex<KnownKeys>>,
    acknowledged: Arc<AtomicU64>,
    /// How many records may be acknowledged before it waits.
    allowed: watch::Sender<u64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<()>>,
}

impl KeyedLoad {
    /// Starts writing to a topic of one partition, as much as [`KeyedLoad::allow`] says: `keys` keys, some of them often and some hardly ever, in values of up to
    /// `value_bytes` bytes.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn start(
        bootstrap: &str,
        topic: &'static str,
        keys: u64,
        value_bytes: usize,
        seed: u64,
    ) -> Result<Self> {
        let client = Client::builder([bootstrap]).connect().await.context("connect")?;
        let (known, acknowledged) = (Arc::<Mutex<KnownKeys>>::default(), Arc::<AtomicU64>::default());
        let stop = Arc::<AtomicBool>::default();
        let (allowed, mut may_go_on) = watch::channel(0);
        let (known_here, counted, stopped) =
            (Arc::clone(&known), Arc::clone(&acknowledged), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut random = Random::new(seed);
            let producer = client.producer().build();
            loop {
                let goes_on = |allowed: &u64| {
                    stopped.load(Ordering::Relaxed) || counted.load(Ordering::Relaxed) < *allowed
                };
                may_go_on.wait_for(goes_on).await.context("the test is over")?;
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                send_chunk(&producer, topic, keys, value_bytes, &mut random, &known_here, &counted).await?;
            }
            producer.close().await.context("close the producer")
        });
        Ok(Self { known, acknowledged, allowed, stop, task })
    }

    /// Lets it write so many records more.
    pub fn allow(&self, records: u64) {
        self.allowed.send_modify(|allowed| *allowed = self.acknowledged() + records);
    }

    /// How many records were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// What is known of all keys at this moment.
    #[must_use]
    pub fn known(&self) -> KnownKeys {
        self.known.lock().clone()
    }

    /// Stops, and tells what is known in the end.
    ///
    /// # Errors
    /// When the producer has given up.
    pub async fn stop(self) -> Result<KnownKeys> {
        self.stop.store(true, Ordering::Relaxed);
        self.allowed.send_modify(|_| {});
        self.task.await.context("the load")??;
        Ok(self.known.lock().clone())
    }
}

async fn send_chunk(
    producer: &Producer,
    topic: &str,
    keys: u64,
    value_bytes: usize,
    random: &mut Random,
    known: &Mutex<KnownKeys>,
    acknowledged: &AtomicU64,
) -> Result<()> {
    let mut deliveries = Vec::new();
    for _ in 0..CHUNK {
        let key = random.below(keys).min(random.below(keys));
        let number = {
            let mut known = known.lock();
            let known = known.entry(key).or_default();
            known.sent += 1;
            known.sent
        };
        let mut value = number.to_le_bytes().to_vec();
        let filler = random.index(value_bytes + 1);
        value.extend(random.bytes(filler));
        let key_bytes = key.to_le_bytes();
        let record = ProducerRecord::new(topic).partition(PartitionId(0)).key(&key_bytes);
        // A tombstone says nothing of its number: whoever reads it knows that it is one of a few.
        let record = if number.is_multiple_of(TOMBSTONE_EVERY) { record } else { record.value(&value) };
        deliveries.push((key, number, producer.send(record).await.context("send")?));
    }
    for (key, number, delivery) in deliveries {
        delivery.await.context("an acknowledgement")?;
        acknowledged.fetch_add(1, Ordering::Relaxed);
        if let Some(known) = known.lock().get_mut(&key) {
            known.acknowledged = known.acknowledged.max(number);
        }
    }
    Ok(())
}

/// What reading a partition from its start has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// The number of the last value of each key.
    pub values: BTreeMap<u64, u64>,
    /// Records that were read.
    pub records: u64,
    /// How many offsets there are.
    pub offsets: u64,
}

/// Reads the only partition of a topic from its start up to the high watermark of this moment.
///
/// # Errors
/// When reading fails, or the values of a key do not go up.
pub async fn read(client: &Client, topic: &str) -> Result<Table> {
    let latest = client.admin().list_offsets(topic, &[PartitionId(0)], StartAt::Latest).await?;
    let end = latest.first().context("no answer for the partition")?.offset;
    let mut consumer = client.consumer(topic).from(StartAt::Earliest).build().await.context("subscribe")?;
    let mut table = Table { offsets: end.0, ..Table::default() };
    let mut next = Offset(0);
    let reading = async {
        while consumer.position(PartitionId(0)).is_some_and(|position| position < end) {
            let batch = consumer.next_batch().await.context("the stream ended")?.context("read")?;
            for record in batch.iter() {
                let record = record.context("a record")?;
                ensure!(record.offset >= next, "offset {} after {next}", record.offset);
                next = record.offset.next();
                table.records += 1;
                let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
                let key = record.key.and_then(number).context("a record without a key")?;
                let Some(value) = record.value else {
                    table.values.remove(&key);
                    continue;
                };
                let value = number(value).context("a value that is too short")?;
                let before = table.values.insert(key, value);
                ensure!(before < Some(value), "key {key}: {value} after {before:?}");
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    wait::within("a partition is read to its end", READ_LIMIT, reading).await??;
    Ok(table)
}

/// Whether each key has a value at least as late as the last acknowledged one, and none that was never sent. `before`: what
/// was known before the reading began, `after`: after it.
///
/// # Errors
/// Names the first key that is wrong.
pub fn check(table: &Table, before: &KnownKeys, after: &KnownKeys) -> Result<()> {
    for (key, known) in before {
        let sent = after.get(key).map_or(known.sent, |after| after.sent);
        let possible = known.acknowledged..=sent;
        match table.values.get(key) {
            Some(value) => ensure!(
                possible.contains(value),
                "key {key} has value {value}, {} was acknowledged and {sent} sent",
                known.acknowledged
            ),
            None => ensure!(
                known.acknowledged == 0 || sent / TOMBSTONE_EVERY * TOMBSTONE_EVERY >= known.acknowledged,
                "key {key} is gone, {} was acknowledged and {sent} sent",
                known.acknowledged
            ),
        }
    }
    ensure!(table.values.keys().all(|key| after.contains_key(key)), "a key that nobody wrote");
    Ok(())
}
