//! `bench produce`.

use std::time::Instant;

use highwater_client::Client;
use serde_json::{Map, json};

use super::connections;
use super::load::{Hand, Load, Sent, Settings, Upto};
use super::machine::Generator;
use super::report::{Report, acks_name, publish};
use super::schedule::Schedule;
use super::shape::Shape;
use super::topic::{self, TopicFacts};
use crate::args::{BenchProduceArgs, Global};
use crate::connect::stage_name;
use crate::output::{self, Answer, Progress, Unit};

/// Runs the bench, as often as asked.
pub(crate) async fn run(global: &Global, client: &Client, args: BenchProduceArgs) -> anyhow::Result<Answer> {
    let shape = Shape::new(&args.size, &args.load)?;
    let facts = topic::prepare(client, &args.topic).await?;
    let clients = connections::make(global, args.load.connections).await?;
    let mut runs = Vec::new();
    let mut answer = Answer::Yes;
    for _run in 0..args.repeat {
        let (report, is_good) = once(&clients, &args, &shape, &facts).await?;
        runs.push(report);
        if !is_good {
            answer = Answer::No;
        }
    }
    publish(global, &args.report, &runs)?;
    Ok(answer)
}

async fn once(
    clients: &[Client],
    args: &BenchProduceArgs,
    shape: &Shape,
    facts: &TopicFacts,
) -> anyhow::Result<(Report, bool)> {
    let settings = Settings {
        batch_bytes: usize::try_from(args.batch_bytes)?,
        in_flight: usize::try_from(args.in_flight)?,
        idempotent: !args.no_idempotence,
    };
    let hand = if args.send_each { Hand::Each } else { Hand::Batch(args.batch_bytes) };
    let mut load = Load::new(clients, &args.load, settings, shape, facts, hand);
    let schedule = |start| args.rate.map(|rate| Schedule::new(start, rate).spinning(args.load.spin));
    let mut warmed_up = 0;
    if !args.warm_up.is_zero() {
        let start = Instant::now();
        let sent = Sent::new(Progress::new(None, Unit::Records));
        let end = Upto::Moment(start + args.warm_up);
        let part = load.run(start, end, schedule(start), 0, &sent).await?;
        anyhow::ensure!(part.outcome.is_good(), "the warm-up did not succeed");
        warmed_up = part.outcome.acknowledged;
    }
    let sent = Sent::new(Progress::new(Some(args.records), Unit::Records));
    let generator = Generator::start();
    let start = Instant::now();
    let part = load.run(start, Upto::Records(args.records), schedule(start), 0, &sent).await?;
    let effort = generator.effort_with(part.waited);
    let outcome = part.outcome;
    let mut more = Map::new();
    shape.tell(&args.load, &mut more);
    more.insert("batch_bytes".to_owned(), json!(args.batch_bytes));
    more.insert("in_flight_bytes".to_owned(), json!(args.in_flight));
    more.insert("send".to_owned(), json!(if args.send_each { "each" } else { "batch" }));
    more.insert("rate".to_owned(), json!(args.rate));
    more.insert("idempotent".to_owned(), json!(!args.no_idempotence));
    more.insert("warm_up_seconds".to_owned(), json!(output::seconds(args.warm_up)));
    more.insert("warm_up_records".to_owned(), json!(warmed_up));
    more.insert("stage".to_owned(), json!(outcome.stage.map(stage_name)));
    more.insert("unknown".to_owned(), json!(outcome.unknown));
    more.insert("failed".to_owned(), json!(outcome.failed));
    let is_good = outcome.is_good();
    let report = Report {
        bench: "produce",
        topic: facts.clone(),
        records: outcome.acknowledged,
        bytes: outcome.bytes,
        elapsed: outcome.last.unwrap_or(start) - start,
        latency_of: if args.rate.is_some() { "due to acknowledged" } else { "send to acknowledged" },
        measured: outcome.measured,
        acks: Some(acks_name(args.load.acks)),
        effort,
        more,
        lines: Vec::new(),
    };
    Ok((report, is_good))
}
