//! `bench latency`: from when a record was due to be sent until a consumer has it.

use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Client, Consumer, Producer, ProducerRecord, StartAt};
use serde_json::{Map, json};
use tokio::sync::mpsc;

use super::acknowledge::{self, Deliveries, Group, Outcome, Since};
use super::machine::Generator;
use super::payload::Payloads;
use super::report::{Report, acks_name, publish};
use super::schedule::Schedule;
use super::series::Measured;
use super::topic::{self, TopicFacts};
use crate::args::{BenchLatencyArgs, Global};
use crate::connect::stage_name;
use crate::output::{Answer, Progress, Unit};

/// Runs the bench, as often as asked.
pub(crate) async fn run(global: &Global, client: &Client, args: BenchLatencyArgs) -> anyhow::Result<Answer> {
    let facts = topic::prepare(client, &args.topic).await?;
    let mut runs = Vec::new();
    for _run in 0..args.repeat {
        let Some(report) = once(global, client, &args, &facts).await? else { return Ok(Answer::No) };
        runs.push(report);
    }
    publish(global, &args.report, &runs)?;
    Ok(Answer::Yes)
}

/// `None`: not everything was acknowledged, which was said.
async fn once(
    global: &Global,
    client: &Client,
    args: &BenchLatencyArgs,
    facts: &TopicFacts,
) -> anyhow::Result<Option<Report>> {
    let warm_up = records_in(args.warm_up, args.rate);
    let records = warm_up + records_in(args.duration, args.rate).max(1);
    let consumer = client.consumer(&facts.name).from(StartAt::Latest).build().await?;
    let producer = client.producer().acks(args.acks.into()).linger(args.linger).build();
    let (groups, receiver) = acknowledge::channel();
    let generator = Generator::start();
    let start = Instant::now() + Duration::from_millis(10);
    // What is measured begins after the warm-up.
    let measured_from = start + args.warm_up;
    let mut outcome = Outcome::new(measured_from, warm_up)?;
    let schedule = Schedule::new(start, args.rate);
    let mut arrivals = Arrivals { measured: Measured::new(measured_from)?, records: 0, warm_up, schedule };
    let (sent, collected, arrived) = tokio::join!(
        send(&producer, &facts.name, args.size as usize, schedule, records, groups),
        outcome.collect(receiver),
        arrivals.receive(consumer, records, global.timeout),
    );
    sent.context("send")?;
    collected?;
    let effort = generator.effort();
    if !outcome.is_good() {
        return Ok(None);
    }
    arrived?;
    let mut more = Map::new();
    more.insert("size".to_owned(), json!(args.size));
    more.insert("rate".to_owned(), json!(args.rate));
    more.insert("stage".to_owned(), json!(outcome.stage.map(stage_name)));
    more.insert("acknowledged_us".to_owned(), outcome.measured.latencies.json());
    let count = arrivals.measured.latencies.count();
    Ok(Some(Report {
        bench: "latency",
        topic: facts.clone(),
        records: count,
        bytes: count * u64::from(args.size),
        elapsed: args.duration,
        latency_of: "due to consumed",
        measured: arrivals.measured,
        acks: Some(acks_name(args.acks)),
        effort,
        more,
        lines: vec![format!("until acknowledged: {}", outcome.measured.latencies.text())],
    }))
}

fn records_in(duration: Duration, rate: u64) -> u64 {
    u64::try_from(duration.as_micros() * u128::from(rate) / 1_000_000).unwrap_or(u64::MAX / 2)
}

async fn send(
    producer: &Producer,
    topic: &str,
    size: usize,
    schedule: Schedule,
    records: u64,
    groups: mpsc::Sender<Group>,
) -> Result<(), highwater_client::Error> {
    let payloads = Payloads::default();
    let mut payload = vec![0; size];
    let progress = Progress::new(Some(records), Unit::Records);
    let mut next = 0;
    while next < records {
        schedule.wait(next).await;
        let due = schedule.due_by(Instant::now(), records).max(next + 1);
        let first = next;
        let mut deliveries = Vec::with_capacity((due - first) as usize);
        while next < due {
            payloads.write(next, &mut payload);
            deliveries.push(producer.send(ProducerRecord::new(topic).value(&payload)).await?);
            next += 1;
        }
        let since = Since::Due(schedule, first);
        // The receiver ends with this sender, so there is always one.
        let _ = groups.send(Group { since, deliveries: Deliveries::Each(deliveries) }).await;
        progress.set(next);
        tokio::task::yield_now().await;
    }
    Ok(())
}

struct Arrivals {
    measured: Measured,
    records: u64,
    warm_up: u64,
    schedule: Schedule,
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
                let sequence = payloads.check(record.value.unwrap_or_default()).with_context(|| {
                    format!("offset {}: does somebody else write to this topic?", record.offset)
                })?;
                if sequence >= self.warm_up {
                    self.measured.add(now, now.saturating_duration_since(self.schedule.due(sequence)), 1)?;
                }
                self.records += 1;
            }
        }
        Ok(())
    }
}
