//! `bench failover`: a steady flow, while somebody stops, kills or cuts off brokers: which pauses producers and consumers
//! see, and whether everything that was acknowledged is there once and in order.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Client, Consumer, Delivery, Error, PartitionId, Producer, ProducerRecord, StartAt};
use serde_json::{Map, json};
use tokio::sync::mpsc;

use super::machine::Generator;
use super::pauses::Pauses;
use super::payload::Payloads;
use super::report::{Report, acks_name, publish};
use super::schedule::Schedule;
use super::series::Measured;
use super::timer::Timer;
use super::topic;
use crate::args::{AcksArg, BenchFailoverArgs, Global};
use crate::connect::stage_name;
use crate::output::{self, Answer, Progress, Unit};

/// Records that may wait for their acknowledgement; the producer's memory is the real bound.
const AHEAD: usize = 64 << 10;
/// How long the last records may take, after the last one was sent.
const LAST_WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked whether everything has come.
const LOOK: Duration = Duration::from_millis(5);

/// Runs the bench.
pub(crate) async fn run(global: &Global, client: &Client, args: BenchFailoverArgs) -> anyhow::Result<Answer> {
    let facts = topic::prepare(client, &args.topic).await?;
    let records = u64::try_from(args.duration.as_micros() * u128::from(args.rate) / 1_000_000)?.max(1);
    let consumer = client.consumer(&facts.name).from(StartAt::Latest).build().await?;
    let producer = client.producer().build();
    let generator = Generator::start();
    let start = Instant::now();
    let flow = Flow::new(start, args.pause, Schedule::new(start, args.rate))?;
    let (deliveries, receiver) = mpsc::channel(AHEAD);
    let everything = async {
        let (sent, acknowledged) = tokio::join!(
            flow.send(&producer, &facts.name, args.size as usize, records, deliveries),
            flow.acknowledge(receiver)
        );
        sent.context("send")?;
        acknowledged?;
        flow.wait_for_the_last().await
    };
    tokio::select! {
        result = everything => result?,
        result = flow.consume(consumer) => result.context("consume")?,
    }
    let mut more = Map::new();
    let (acknowledged, consumed) = (flow.acknowledged.get(), flow.consumed.get());
    more.insert("size".to_owned(), json!(args.size));
    more.insert("rate".to_owned(), json!(args.rate));
    more.insert("stage".to_owned(), json!(flow.stage.get().map(stage_name)));
    more.insert("acknowledged".to_owned(), json!(acknowledged));
    more.insert("not_acknowledged".to_owned(), json!(flow.failed.get()));
    more.insert("producer".to_owned(), flow.producer_pauses.borrow().json());
    more.insert("consumer".to_owned(), flow.consumer_pauses.borrow().json());
    let effort = generator.effort_with(Some(flow.waited.get()));
    let lines = vec![
        format!("producer: {}", flow.producer_pauses.borrow().text()),
        format!("consumer: {}", flow.consumer_pauses.borrow().text()),
    ];
    let (failed, first_error) = (flow.failed.get(), flow.first_error.into_inner());
    let report = Report {
        bench: "failover",
        topic: facts,
        records: consumed,
        bytes: consumed * u64::from(args.size),
        elapsed: args.duration,
        latency_of: "due to acknowledged",
        measured: flow.measured.into_inner(),
        acks: Some(acks_name(AcksArg::All)),
        effort,
        more,
        lines,
    };
    publish(global, &args.report, &[report])?;
    if let Some(error) = first_error {
        output::note(format!("{} not acknowledged; the first: {error}", output::count(failed)));
        return Ok(Answer::No);
    }
    Ok(Answer::Yes)
}

/// What is on its way, and what has come of it.
struct Flow {
    schedule: Schedule,
    /// How long the schedule was waited for.
    waited: Cell<Duration>,
    producer_pauses: RefCell<Pauses>,
    consumer_pauses: RefCell<Pauses>,
    measured: RefCell<Measured>,
    acknowledged: Cell<u64>,
    failed: Cell<u64>,
    consumed: Cell<u64>,
    stage: Cell<Option<highwater_client::Stage>>,
    first_error: RefCell<Option<Error>>,
    /// The number that each record has in its partition's order, to be consumed as acknowledged: offset to sequence.
    expected: RefCell<BTreeMap<PartitionId, BTreeMap<u64, u64>>>,
    /// Consumed and not acknowledged yet.
    early: RefCell<BTreeMap<PartitionId, BTreeMap<u64, u64>>>,
}

impl Flow {
    fn new(start: Instant, pause: Duration, schedule: Schedule) -> anyhow::Result<Self> {
        Ok(Self {
            schedule,
            waited: Cell::new(Duration::ZERO),
            producer_pauses: RefCell::new(Pauses::new(start, pause)),
            consumer_pauses: RefCell::new(Pauses::new(start, pause)),
            measured: RefCell::new(Measured::new(start)?),
            acknowledged: Cell::new(0),
            failed: Cell::new(0),
            consumed: Cell::new(0),
            stage: Cell::new(None),
            first_error: RefCell::new(None),
            expected: RefCell::new(BTreeMap::new()),
            early: RefCell::new(BTreeMap::new()),
        })
    }

    async fn send(
        &self,
        producer: &Producer,
        topic: &str,
        size: usize,
        records: u64,
        deliveries: mpsc::Sender<(u64, Delivery)>,
    ) -> anyhow::Result<()> {
        let mut timer = Timer::new()?;
        let payloads = Payloads::default();
        let mut payload = vec![0; size];
        let progress = Progress::new(Some(records), Unit::Records);
        for next in 0..records {
            let asked = Instant::now();
            self.schedule.wait(next, &mut timer).await?;
            self.waited.set(self.waited.get() + asked.elapsed());
            payloads.write(next, &mut payload);
            let delivery = producer.send(ProducerRecord::new(topic).value(&payload)).await?;
            // The receiver ends with this sender, so there is always one.
            let _ = deliveries.send((next, delivery)).await;
            progress.set(next + 1);
        }
        Ok(())
    }

    async fn acknowledge(&self, mut deliveries: mpsc::Receiver<(u64, Delivery)>) -> anyhow::Result<()> {
        while let Some((sequence, delivery)) = deliveries.recv().await {
            let outcome = delivery.await;
            let now = Instant::now();
            match outcome {
                Ok(receipt) => {
                    self.acknowledged.set(self.acknowledged.get() + 1);
                    self.producer_pauses.borrow_mut().happened(now);
                    let latency = now.saturating_duration_since(self.schedule.due(sequence));
                    self.measured.borrow_mut().add(now, latency, 1)?;
                    let stage = self.stage.get().map_or(receipt.stage, |stage| stage.min(receipt.stage));
                    self.stage.set(Some(stage));
                    let mut early = self.early.borrow_mut();
                    let came = early.entry(receipt.partition).or_default().remove(&receipt.offset.get());
                    if came != Some(sequence) {
                        // Not there yet; or something else came there, which `wait_for_the_last` finds missing.
                        let mut expected = self.expected.borrow_mut();
                        expected.entry(receipt.partition).or_default().insert(receipt.offset.get(), sequence);
                    }
                }
                Err(error) => {
                    self.failed.set(self.failed.get() + 1);
                    self.first_error.borrow_mut().get_or_insert(error);
                }
            }
        }
        Ok(())
    }

    /// Consumes without end, and fails when something comes twice, out of order or changed.
    async fn consume(&self, mut consumer: Consumer) -> anyhow::Result<()> {
        let payloads = Payloads::default();
        let mut last: BTreeMap<PartitionId, u64> = BTreeMap::new();
        loop {
            let batch = match consumer.next_batch().await.context("the consumer ended")? {
                Ok(batch) => batch,
                Err(error) if error.is_retriable() => continue,
                Err(error) => return Err(error.into()),
            };
            self.consumer_pauses.borrow_mut().happened(Instant::now());
            for record in &batch {
                let record = record?;
                let (partition, offset) = (batch.partition(), record.offset.get());
                let place = || format!("partition {partition}, offset {offset}");
                let sequence = payloads
                    .check(record.value.unwrap_or_default())
                    .with_context(|| format!("{}: does somebody else write to this topic?", place()))?;
                if let Some(last) = last.insert(partition, sequence).filter(|last| *last >= sequence) {
                    anyhow::bail!("{}: record {sequence} came after record {last}", place());
                }
                self.consumed.set(self.consumed.get() + 1);
                let known = self.expected.borrow_mut().entry(partition).or_default().remove(&offset);
                match known {
                    None => {
                        self.early.borrow_mut().entry(partition).or_default().insert(offset, sequence);
                    }
                    Some(known) => anyhow::ensure!(
                        known == sequence,
                        "{}: record {sequence} came where {known} was acknowledged",
                        place()
                    ),
                }
            }
        }
    }

    async fn wait_for_the_last(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + LAST_WITHIN;
        loop {
            let missing: usize = self.expected.borrow().values().map(BTreeMap::len).sum();
            if missing == 0 {
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "{missing} acknowledged records did not come within {LAST_WITHIN:?}: they are lost"
            );
            tokio::time::sleep(LOOK).await;
        }
    }
}
