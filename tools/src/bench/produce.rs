//! `bench produce`.

use std::time::Instant;

use anyhow::Context;
use highwater_client::{Client, PartitionId, Producer, ProducerRecord};
use serde_json::{Map, json};
use tokio::sync::mpsc;

use super::acknowledge::{self, Deliveries, Group, Outcome, Since};
use super::machine::Generator;
use super::payload::Payloads;
use super::report::{Report, acks_name, publish};
use super::schedule::Schedule;
use super::topic::{self, TopicFacts};
use crate::args::{BenchProduceArgs, Global};
use crate::connect::{compression, stage_name};
use crate::output::{Answer, Progress, Unit};

/// Records that are sent before others of the program get their turn, with one send each.
const TURN: u64 = 64;

/// Runs the bench, as often as asked.
pub(crate) async fn run(global: &Global, client: &Client, args: BenchProduceArgs) -> anyhow::Result<Answer> {
    let facts = topic::prepare(client, &args.topic).await?;
    let mut runs = Vec::new();
    let mut answer = Answer::Yes;
    for _run in 0..args.repeat {
        let (report, is_good) = once(client, &args, &facts).await?;
        runs.push(report);
        if !is_good {
            answer = Answer::No;
        }
    }
    publish(global, &args.report, &runs)?;
    Ok(answer)
}

async fn once(
    client: &Client,
    args: &BenchProduceArgs,
    facts: &TopicFacts,
) -> anyhow::Result<(Report, bool)> {
    let (groups, receiver) = acknowledge::channel();
    let producer = client
        .producer()
        .acks(args.send.acks.into())
        .linger(args.send.linger)
        .compression(compression(args.send.compression)?)
        .batch_bytes(usize::try_from(args.batch_bytes)?)
        .memory_bytes(usize::try_from(args.in_flight)?)
        .idempotent(!args.no_idempotence)
        .build();
    let generator = Generator::start();
    let start = Instant::now();
    let mut outcome = Outcome::new(start, 0)?;
    let sender = Sender {
        producer: &producer,
        args,
        topic: facts,
        payloads: Payloads::default(),
        scratch: Vec::new(),
        schedule: args.rate.map(|rate| Schedule::new(start, rate)),
        progress: Progress::new(Some(args.send.records), Unit::Records),
    };
    let (sent, collected) = tokio::join!(sender.run(groups), outcome.collect(receiver));
    sent.context("send")?;
    collected?;
    let effort = generator.effort();
    let elapsed = outcome.last.unwrap_or(start) - start;
    let mut more = Map::new();
    more.insert("size".to_owned(), json!(args.send.size));
    more.insert("batch_bytes".to_owned(), json!(args.batch_bytes));
    more.insert("in_flight_bytes".to_owned(), json!(args.in_flight));
    more.insert("send".to_owned(), json!(if args.send_each { "each" } else { "batch" }));
    more.insert("rate".to_owned(), json!(args.rate));
    more.insert("idempotent".to_owned(), json!(!args.no_idempotence));
    more.insert("stage".to_owned(), json!(outcome.stage.map(stage_name)));
    more.insert("unknown".to_owned(), json!(outcome.unknown));
    more.insert("failed".to_owned(), json!(outcome.failed));
    let is_good = outcome.is_good();
    let report = Report {
        bench: "produce",
        topic: facts.clone(),
        records: outcome.acknowledged,
        bytes: outcome.acknowledged * u64::from(args.send.size),
        elapsed,
        latency_of: if args.rate.is_some() { "due to acknowledged" } else { "send to acknowledged" },
        measured: outcome.measured,
        acks: Some(acks_name(args.send.acks)),
        effort,
        more,
        lines: Vec::new(),
    };
    Ok((report, is_good))
}

struct Sender<'a> {
    producer: &'a Producer,
    args: &'a BenchProduceArgs,
    topic: &'a TopicFacts,
    payloads: Payloads,
    /// Payloads of one turn.
    scratch: Vec<u8>,
    schedule: Option<Schedule>,
    progress: Progress,
}

impl Sender<'_> {
    async fn run(mut self, groups: mpsc::Sender<Group>) -> Result<(), highwater_client::Error> {
        let records = self.args.send.records;
        let turn = self.turn();
        let mut next = 0;
        let mut turns = 0_u64;
        while next < records {
            let (since, end) = match self.schedule {
                None => (Since::Call(Instant::now()), (next + turn).min(records)),
                Some(schedule) => {
                    schedule.wait(next).await;
                    let due = schedule.due_by(Instant::now(), records);
                    (Since::Due(schedule, next), due.clamp(next + 1, next + turn))
                }
            };
            let deliveries = self.send(next, end, turns).await?;
            next = end;
            turns += 1;
            self.progress.set(next);
            // The receiver ends with this sender, so there is always one.
            let _ = groups.send(Group { since, deliveries }).await;
            // Connections and acknowledgements get their turn.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Records a turn: those of a batch, or a few.
    fn turn(&self) -> u64 {
        /// What a record costs beside its value.
        const AROUND: u64 = 12;
        match self.args.send_each {
            true => TURN,
            false => (self.args.batch_bytes / (u64::from(self.args.send.size) + AROUND)).max(1),
        }
    }

    async fn send(&mut self, first: u64, end: u64, turn: u64) -> Result<Deliveries, highwater_client::Error> {
        let size = self.args.send.size as usize;
        let count = (end - first) as usize;
        self.scratch.resize(count * size, 0);
        for (index, payload) in self.scratch.chunks_exact_mut(size).enumerate() {
            self.payloads.write(first + index as u64, payload);
        }
        let topic = self.topic.name.as_str();
        let records =
            self.scratch.chunks_exact(size).map(|payload| ProducerRecord::new(topic).value(payload));
        if self.args.send_each {
            let mut deliveries = Vec::with_capacity(count);
            for record in records {
                deliveries.push(self.producer.send(record).await?);
            }
            return Ok(Deliveries::Each(deliveries));
        }
        let partition = PartitionId((turn % u64::from(self.topic.partitions.max(1))) as u32);
        let delivery = self.producer.send_batch(topic, Some(partition), records).await?;
        Ok(Deliveries::Batch(delivery, count as u64))
    }
}
