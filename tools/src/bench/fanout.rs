//! `bench fanout`: many consumers of the same records, each on a connection of its own.

use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Client, StartAt};
use serde_json::{Map, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::connections;
use super::machine::Generator;
use super::report::{Latencies, Report, publish};
use super::series::Measured;
use super::topic::{self, TopicFacts, records_there};
use crate::args::{BenchFanoutArgs, Global};
use crate::output::{self, Answer, Progress, Unit};

/// Batches that consumers may tell of before they are counted.
const TOLD_MAX: usize = 4096;

/// A batch that a consumer has.
struct Told {
    at: Instant,
    /// How long it was waited for.
    waited: Duration,
    records: u64,
    bytes: u64,
}

/// Runs the bench, as often as asked.
pub(crate) async fn run(global: &Global, client: &Client, args: BenchFanoutArgs) -> anyhow::Result<Answer> {
    let facts = topic::ask(client, &args.topic).await?;
    let there = records_there(client, &args.topic).await?;
    let wanted = args.records.unwrap_or(there);
    anyhow::ensure!(
        wanted > 0 && there >= wanted,
        "topic {} has {there} records, not {wanted}; write more with: highwater bench produce",
        args.topic
    );
    let clients = connections::make(global, args.consumers).await?;
    let mut runs = Vec::new();
    for _run in 0..args.repeat {
        runs.push(once(global, &clients, &args, &facts, wanted).await?);
    }
    publish(global, &args.report, &runs)?;
    Ok(Answer::Yes)
}

async fn once(
    global: &Global,
    clients: &[Client],
    args: &BenchFanoutArgs,
    facts: &TopicFacts,
    wanted: u64,
) -> anyhow::Result<Report> {
    let progress = Progress::new(Some(wanted * clients.len() as u64), Unit::Records);
    let (told, mut telling) = mpsc::channel(TOLD_MAX);
    let generator = Generator::start();
    let start = Instant::now();
    let mut measured = Measured::new(start)?;
    let mut consumers = JoinSet::new();
    for client in clients {
        let consumer = client.consumer(&args.topic).from(StartAt::Earliest);
        let consumer = consumer.memory_bytes(usize::try_from(args.in_flight)?);
        consumers.spawn(consume(consumer, wanted, global.timeout, told.clone()));
    }
    drop(told);
    let (mut records, mut bytes) = (0, 0);
    while let Some(batch) = telling.recv().await {
        measured.wait(batch.at, batch.waited, 1)?;
        measured.series.count(batch.at, batch.records)?;
        records += batch.records;
        bytes += batch.bytes;
        progress.set(records);
    }
    let elapsed = start.elapsed();
    let effort = generator.effort();
    progress.finish();
    let mut done = Latencies::new()?;
    while let Some(consumer) = consumers.join_next().await {
        let at = consumer.context("a consumer's task ended")??;
        done.add(at - start, 1);
    }
    let mut more = Map::new();
    more.insert("consumers".to_owned(), json!(clients.len()));
    more.insert("records_each".to_owned(), json!(wanted));
    more.insert("in_flight_bytes".to_owned(), json!(args.in_flight));
    more.insert("done_us".to_owned(), done.json());
    Ok(Report {
        bench: "fanout",
        topic: facts.clone(),
        records,
        bytes,
        elapsed,
        latency_of: "waiting for the next batch",
        measured,
        acks: None,
        effort,
        more,
        lines: vec![format!(
            "consumers had everything: half of them after {}, the last after {}",
            output::microseconds(done.at(0.5)),
            output::microseconds(done.max())
        )],
    })
}

/// Takes `wanted` records, whose checksums the client verifies; returns when it had them.
async fn consume(
    consumer: highwater_client::ConsumerBuilder,
    wanted: u64,
    timeout: Duration,
    told: mpsc::Sender<Told>,
) -> anyhow::Result<Instant> {
    let mut consumer = consumer.build().await?;
    let mut records = 0;
    loop {
        let asked = Instant::now();
        let batch = tokio::time::timeout(timeout, consumer.next_batch())
            .await
            .with_context(|| format!("nothing came for {timeout:?} after {records} records"))?
            .with_context(|| format!("the consumer ended after {records} records"))??;
        let at = Instant::now();
        let (mut count, mut bytes) = (0, 0);
        for record in batch.iter().take(usize::try_from(wanted - records).unwrap_or(usize::MAX)) {
            count += 1;
            bytes += record?.value.map_or(0, <[u8]>::len) as u64;
        }
        records += count;
        // Whoever counts ends after all consumers.
        let _ = told.send(Told { at, waited: at - asked, records: count, bytes }).await;
        if records >= wanted {
            return Ok(at);
        }
    }
}
