//! `bench latency`: from when a record was due to be sent until a consumer has it.

use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Client, Consumer, StartAt};
use serde_json::{Map, Value, json};

use super::acknowledge::Outcome;
use super::connections;
use super::load::{Hand, Load, Sent, Settings, Upto};
use super::machine::Generator;
use super::payload::{Payloads, producer_and_index};
use super::report::{Report, acks_name, publish};
use super::schedule::Schedule;
use super::series::Measured;
use super::shape::Shape;
use super::topic::{self, TopicFacts};
use crate::args::{BenchLatencyArgs, BenchLoadArgs, Global};
use crate::connect::stage_name;
use crate::output::{self, Answer, Progress, Unit};

/// Batches of an open loop are as full as the rate makes them, up to this; memory is what holds a slow broker's backlog.
const SETTINGS: Settings = Settings { batch_bytes: 256 << 10, in_flight: 64 << 20, idempotent: true };

/// Runs the bench, as often as asked.
pub(crate) async fn run(global: &Global, client: &Client, args: BenchLatencyArgs) -> anyhow::Result<Answer> {
    let shape = Shape::new(&args.size, &args.load)?;
    let facts = topic::prepare(client, &args.topic).await?;
    let clients = connections::make(global, args.load.connections).await?;
    let mut runs = Vec::new();
    for _run in 0..args.repeat {
        let consumer = client.consumer(&facts.name).from(StartAt::Latest).build().await?;
        let run = once(global, consumer, &clients, &args, &shape, &facts).await?;
        let Some(report) = run else { return Ok(Answer::No) };
        runs.push(report);
    }
    publish(global, &args.report, &runs)?;
    Ok(Answer::Yes)
}

/// `None`: not everything was acknowledged, which was said.
async fn once(
    global: &Global,
    consumer: Consumer,
    clients: &[Client],
    args: &BenchLatencyArgs,
    shape: &Shape,
    facts: &TopicFacts,
) -> anyhow::Result<Option<Report>> {
    let generator = Generator::start();
    let flow =
        Flow { rate: args.rate, warm_up: args.warm_up, duration: args.duration, timeout: global.timeout };
    let Some(live) = flow.measure(consumer, clients, &args.load, shape, facts).await? else {
        return Ok(None);
    };
    let mut more = Map::new();
    shape.tell(&args.load, &mut more);
    flow.tell(&mut more);
    more.insert("stage".to_owned(), json!(live.outcome.stage.map(stage_name)));
    more.insert("acknowledged_us".to_owned(), live.outcome.measured.latencies.json());
    Ok(Some(Report {
        bench: "latency",
        topic: facts.clone(),
        records: live.arrived.latencies.count(),
        bytes: live.bytes,
        elapsed: live.elapsed,
        latency_of: "due to consumed",
        measured: live.arrived,
        acks: Some(acks_name(args.load.acks)),
        effort: generator.effort_with(live.waited),
        more,
        lines: vec![format!("until acknowledged: {}", live.outcome.measured.latencies.text())],
    }))
}

/// An even flow of records whose latency is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    /// Records a second.
    pub(super) rate: u64,
    /// What is not measured at the beginning.
    pub(super) warm_up: Duration,
    pub(super) duration: Duration,
    /// How long nothing may come.
    pub(super) timeout: Duration,
}

/// What came of a flow.
pub(super) struct Live {
    pub(super) outcome: Outcome,
    /// From when each record was due until it was consumed.
    pub(super) arrived: Measured,
    /// Bytes of the values that were measured.
    pub(super) bytes: u64,
    /// How long it took until the last of them came: longer than the schedule when brokers or bench do not keep up.
    pub(super) elapsed: Duration,
    pub(super) waited: Option<Duration>,
}

impl Flow {
    /// Sends and receives. `None`: not everything was acknowledged, which was said.
    ///
    /// # Errors
    /// When records cannot be sent, do not come, or are not those that were sent.
    pub(super) async fn measure(
        &self,
        consumer: Consumer,
        clients: &[Client],
        args: &BenchLoadArgs,
        shape: &Shape,
        facts: &TopicFacts,
    ) -> anyhow::Result<Option<Live>> {
        let warm_up = records_in(self.warm_up, self.rate);
        let records = warm_up + records_in(self.duration, self.rate).max(1);
        let mut load = Load::new(clients, args, SETTINGS, shape, facts, Hand::Each);
        let sent = Sent::new(Progress::new(Some(records), Unit::Records));
        let start = Instant::now() + Duration::from_millis(10);
        // What is measured begins after the warm-up.
        let measured_from = start + self.warm_up;
        let schedule = Schedule::new(start, self.rate).spinning(args.spin);
        let producers = clients.len() as u64;
        let mut arrivals = Arrivals {
            measured: Measured::new(measured_from)?,
            records: 0,
            bytes: 0,
            warm_up,
            schedule,
            producers,
        };
        let (part, arrived) = tokio::join!(
            load.run(measured_from, Upto::Records(records), Some(schedule), warm_up, &sent),
            arrivals.receive(consumer, records, self.timeout),
        );
        let elapsed = measured_from.elapsed().max(self.duration);
        let part = part?;
        if !part.outcome.is_good() {
            return Ok(None);
        }
        arrived?;
        let (arrived, bytes) = (arrivals.measured, arrivals.bytes);
        Ok(Some(Live { outcome: part.outcome, arrived, bytes, elapsed, waited: part.waited }))
    }

    /// Its settings, for reports.
    pub(super) fn tell(&self, more: &mut Map<String, Value>) {
        more.insert("rate".to_owned(), json!(self.rate));
        more.insert("duration_seconds".to_owned(), json!(output::seconds(self.duration)));
        more.insert("warm_up_seconds".to_owned(), json!(output::seconds(self.warm_up)));
        more.insert("batch_bytes".to_owned(), json!(SETTINGS.batch_bytes));
        more.insert("in_flight_bytes".to_owned(), json!(SETTINGS.in_flight));
    }
}

/// How many records are due in a time.
pub(super) fn records_in(duration: Duration, rate: u64) -> u64 {
    u64::try_from(duration.as_micros() * u128::from(rate) / 1_000_000).unwrap_or(u64::MAX / 2)
}

struct Arrivals {
    measured: Measured,
    records: u64,
    /// Bytes of the values that are measured.
    bytes: u64,
    warm_up: u64,
    schedule: Schedule,
    /// How many share the schedule.
    producers: u64,
}

impl Arrivals {
    /// Takes `wanted` records and measures them.
    async fn receive(
        &mut self,
        mut consumer: Consumer,
        wanted: u64,
        timeout: Duration,
    ) -> anyhow::Result<()> {
        let payloads = Payloads::default();
        while self.records < wanted {
            let batch = tokio::time::timeout(timeout, consumer.next_batch())
                .await
                .with_context(|| format!("nothing came for {timeout:?} after {} records", self.records))?
                .with_context(|| format!("the consumer ended after {} records", self.records))??;
            let now = Instant::now();
            for record in &batch {
                let record = record?;
                let value = record.value.unwrap_or_default();
                let sequence = payloads.check(value).with_context(|| {
                    format!("offset {}: does somebody else write to this topic?", record.offset)
                })?;
                let (producer, index) = producer_and_index(sequence);
                let number = self.schedule.share(producer, self.producers).number(index);
                if number >= self.warm_up {
                    let latency = now.saturating_duration_since(self.schedule.due(number));
                    self.measured.add(now, latency, 1)?;
                    self.bytes += value.len() as u64;
                }
                self.records += 1;
            }
        }
        Ok(())
    }
}
