//! Records on their way: sending, acknowledgements and consuming beside each other, and what is known about them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use highwater_client::{
    Client, ConsumedBatch, Consumer, Delivery, Error, ErrorKind, PartitionId, Producer, ProducerRecord,
    StartAt,
};
use tokio::sync::{Notify, mpsc};

use super::ledger::Ledger;
use super::source::{Line, Source};
use crate::bench::report::Latencies;

/// Records that may be on their way: beyond it, sending waits for consuming.
const OPEN_MAX: usize = 200_000;
/// Deliveries that are awaited at once.
const DELIVERIES_AHEAD: usize = 1 << 16;
/// Lines that are sent before others get their turn.
const TURN: usize = 64;
/// How long to wait before asking again after a retriable failure.
const PAUSE: Duration = Duration::from_millis(20);

/// What has happened so far.
#[derive(Debug)]
pub(crate) struct Counts {
    pub(crate) ledger: Ledger,
    pub(crate) sent: u64,
    pub(crate) acknowledged: u64,
    pub(crate) unknown: u64,
    /// Given back although they were sent: not there.
    pub(crate) refused: u64,
    /// Lines that are too long for a record: not sent.
    pub(crate) too_long: u64,
    pub(crate) consumed: u64,
    /// From the call until the acknowledgement.
    pub(crate) acknowledging: Latencies,
    /// From the call until the record was consumed.
    pub(crate) end_to_end: Latencies,
    /// When the first record of each partition was acknowledged that was sent after the kill.
    pub(crate) first_after_kill: BTreeMap<PartitionId, Instant>,
    pub(crate) durability: Option<highwater_client::Stage>,
}

/// The flow of records through one topic.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) topic: String,
    pub(crate) counts: RefCell<Counts>,
    hasher: RandomState,
    stop: Cell<bool>,
    stopped: Notify,
    /// When a broker was dead.
    killed: Cell<Option<Instant>>,
    /// The source has come to its end, or sending was stopped.
    pub(crate) sending_done: Cell<bool>,
    /// Every outcome is in.
    pub(crate) outcomes_done: Cell<bool>,
    pub(crate) half_taken: Cell<bool>,
    /// The source has come to its end.
    pub(crate) at_end: Cell<bool>,
}

/// A record whose outcome is awaited.
struct Pending {
    fingerprint: u64,
    at: Instant,
    delivery: Delivery,
}

impl Flow {
    /// Nothing sent yet. The ledger knows where each partition goes on.
    pub(crate) fn new(topic: &str, ledger: Ledger) -> anyhow::Result<Self> {
        let counts = Counts {
            ledger,
            sent: 0,
            acknowledged: 0,
            unknown: 0,
            refused: 0,
            too_long: 0,
            consumed: 0,
            acknowledging: Latencies::new()?,
            end_to_end: Latencies::new()?,
            first_after_kill: BTreeMap::new(),
            durability: None,
        };
        Ok(Self {
            topic: topic.to_owned(),
            counts: RefCell::new(counts),
            hasher: RandomState::new(),
            stop: Cell::new(false),
            stopped: Notify::new(),
            killed: Cell::new(None),
            sending_done: Cell::new(false),
            outcomes_done: Cell::new(false),
            half_taken: Cell::new(false),
            at_end: Cell::new(false),
        })
    }

    /// No further records; what is on its way goes on.
    pub(crate) fn stop(&self) {
        self.stop.set(true);
        self.stopped.notify_one();
    }

    /// A broker is dead now: what is sent from here on has to be acknowledged by another one.
    pub(crate) fn killed(&self) {
        self.killed.set(Some(Instant::now()));
    }

    /// Sends what comes from the source, and takes in the outcomes, until there are no more.
    pub(crate) async fn produce(&self, producer: &Producer, source: &mut Source) -> anyhow::Result<()> {
        let (pending, outcomes) = mpsc::channel(DELIVERIES_AHEAD);
        let (sent, taken) = tokio::join!(self.send(producer, source, pending), self.take_outcomes(outcomes));
        sent?;
        taken
    }

    async fn send(
        &self,
        producer: &Producer,
        source: &mut Source,
        pending: mpsc::Sender<Pending>,
    ) -> anyhow::Result<()> {
        while !self.stop.get() {
            let lines = tokio::select! {
                lines = source.next() => lines?,
                () = self.stopped.notified() => break,
            };
            self.half_taken.set(source.is_half_taken());
            let Some(lines) = lines else {
                self.at_end.set(true);
                break;
            };
            for (index, line) in lines.iter().enumerate() {
                if self.stop.get() {
                    break;
                }
                while self.counts.borrow().ledger.open() > OPEN_MAX {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                self.send_line(producer, line, &pending).await?;
                if index % TURN == TURN - 1 {
                    tokio::task::yield_now().await;
                }
            }
        }
        self.sending_done.set(true);
        Ok(())
    }

    async fn send_line(
        &self,
        producer: &Producer,
        line: &Line,
        pending: &mpsc::Sender<Pending>,
    ) -> anyhow::Result<()> {
        let mut record = ProducerRecord::new(&self.topic).value(&line.value);
        if let Some(key) = &line.key {
            record = record.key(key);
        }
        let fingerprint = self.fingerprint(line.key.as_deref(), Some(&line.value));
        let at = Instant::now();
        match producer.send(record).await {
            Ok(delivery) => {
                self.counts.borrow_mut().sent += 1;
                // The receiver ends with this sender, so there is always one, unless it found a fault.
                let _ = pending.send(Pending { fingerprint, at, delivery }).await;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::RecordTooLarge => {
                self.counts.borrow_mut().too_long += 1;
                Ok(())
            }
            // Refused before it was sent: it is not there, and the next one may be taken.
            Err(error) if error.is_retriable() => {
                let mut counts = self.counts.borrow_mut();
                counts.sent += 1;
                counts.refused += 1;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn take_outcomes(&self, mut pending: mpsc::Receiver<Pending>) -> anyhow::Result<()> {
        while let Some(Pending { fingerprint, at, delivery }) = pending.recv().await {
            let outcome = delivery.await;
            let now = Instant::now();
            let counts = &mut *self.counts.borrow_mut();
            match outcome {
                Ok(receipt) => {
                    counts.acknowledged += 1;
                    counts.acknowledging.add(now - at, 1);
                    if self.killed.get().is_some_and(|killed| at > killed) {
                        counts.first_after_kill.entry(receipt.partition).or_insert(now);
                    }
                    counts.durability =
                        Some(counts.durability.map_or(receipt.stage, |stage| stage.min(receipt.stage)));
                    let arrived =
                        counts.ledger.acknowledged(receipt.partition, receipt.offset, fingerprint, at)?;
                    if let Some(latency) = arrived {
                        counts.end_to_end.add(latency, 1);
                    }
                }
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                    counts.unknown += 1;
                    counts.ledger.unknown(fingerprint);
                }
                Err(_) => counts.refused += 1,
            }
        }
        self.outcomes_done.set(true);
        Ok(())
    }

    /// Consumes without end. Returns when the promise was broken, or on an error that does not pass.
    pub(crate) async fn consume(&self, client: &Client, mut consumer: Consumer) -> anyhow::Result<()> {
        loop {
            match consumer.next_batch().await {
                Some(Ok(batch)) => self.take_batch(&batch)?,
                Some(Err(error)) if error.is_retriable() => tokio::time::sleep(PAUSE).await,
                Some(Err(error)) => return Err(error.into()),
                None => consumer = self.consume_again(client).await?,
            }
        }
    }

    /// A consumer that goes on where the last one was.
    async fn consume_again(&self, client: &Client) -> Result<Consumer, Error> {
        loop {
            let positions: Vec<_> = self.counts.borrow().ledger.positions().collect();
            let partitions: Vec<PartitionId> = positions.iter().map(|(partition, _)| *partition).collect();
            let built = async {
                let mut consumer = client.consumer(&self.topic).partitions(partitions).build().await?;
                for (partition, offset) in positions {
                    consumer.seek(partition, StartAt::Offset(offset)).await?;
                }
                Ok::<_, Error>(consumer)
            };
            match built.await {
                Err(error) if error.is_retriable() => tokio::time::sleep(PAUSE).await,
                other => return other,
            }
        }
    }

    fn take_batch(&self, batch: &ConsumedBatch) -> anyhow::Result<()> {
        let now = Instant::now();
        let counts = &mut *self.counts.borrow_mut();
        for record in batch {
            let record = record?;
            let fingerprint = self.fingerprint(record.key, record.value);
            counts.consumed += 1;
            if let Some(latency) =
                counts.ledger.consumed(batch.partition(), record.offset, fingerprint, now)?
            {
                counts.end_to_end.add(latency, 1);
            }
        }
        Ok(())
    }

    fn fingerprint(&self, key: Option<&[u8]>, value: Option<&[u8]>) -> u64 {
        self.hasher.hash_one((key, value))
    }
}
