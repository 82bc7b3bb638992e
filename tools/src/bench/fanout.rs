//! `bench fanout`: many consumers of the same records, each on a connection of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Client, Consumer, Offset, StartAt};
use parking_lot::Mutex;
use serde_json::{Map, json};
use tokio::task::JoinSet;

use super::connections;
use super::machine::Generator;
use super::report::{Latencies, Report, publish};
use super::series::Measured;
use super::topic::{self, Readable, TopicFacts};
use crate::args::{BenchFanoutArgs, Global};
use crate::output::{self, Answer, Progress, Unit};

/// How often progress is shown, and whether all consumers still get something is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What the consumers have. They are on one thread, which a channel to another one would wake for every batch.
struct Board {
    measured: Measured,
    records: u64,
    bytes: u64,
    consumers: Vec<Place>,
}

/// How far a consumer is.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// When it got something, or began.
    at: Instant,
    records: u64,
    /// Whether it has everything.
    done: bool,
}

impl Board {
    /// Fails when a consumer has got nothing for `timeout`.
    fn check(&self, timeout: Duration) -> anyhow::Result<()> {
        let silent = |place: &Place| !place.done && place.at.elapsed() > timeout;
        match self.consumers.iter().position(silent) {
            Some(index) => {
                let records = self.consumers[index].records;
                anyhow::bail!("nothing came to consumer {index} for {timeout:?} after {records} records")
            }
            None => Ok(()),
        }
    }
}

/// Runs the bench, as often as asked.
pub(crate) async fn run(global: &Global, client: &Client, args: BenchFanoutArgs) -> anyhow::Result<Answer> {
    let facts = topic::ask(client, &args.topic).await?;
    let ranges = topic::ranges(client, &args.topic).await?;
    let there = topic::offsets_in(&ranges);
    let wanted = args.records.unwrap_or(there);
    anyhow::ensure!(
        wanted > 0 && there >= wanted,
        "topic {} has {there} records, not {wanted}; write more with: highwater bench produce",
        args.topic
    );
    let clients = connections::make(global, args.consumers).await?;
    let mut runs = Vec::new();
    for _run in 0..args.repeat {
        runs.push(once(global, &clients, &args, &facts, (wanted, &ranges)).await?);
    }
    publish(global, &args.report, &runs)?;
    Ok(Answer::Yes)
}

async fn once(
    global: &Global,
    clients: &[Client],
    args: &BenchFanoutArgs,
    facts: &TopicFacts,
    (wanted, ranges): (u64, &[Readable]),
) -> anyhow::Result<Report> {
    let consumers = connected(clients, args, ranges, global.timeout).await?;
    let progress = Progress::new(Some(wanted * clients.len() as u64), Unit::Records);
    let generator = Generator::start();
    let start = Instant::now();
    let begun = Place { at: start, records: 0, done: false };
    let places = vec![begun; consumers.len()];
    let board = Board { measured: Measured::new(start)?, records: 0, bytes: 0, consumers: places };
    let board = Arc::new(Mutex::new(board));
    let mut tasks = JoinSet::new();
    for (index, consumer) in consumers.into_iter().enumerate() {
        tasks.spawn(consume(consumer, index, (wanted, ranges.to_vec()), Arc::clone(&board)));
    }
    let mut done = Latencies::new()?;
    let mut last = start;
    let mut look = tokio::time::interval(LOOK);
    while !tasks.is_empty() {
        tokio::select! {
            Some(consumer) = tasks.join_next() => {
                let at: Instant = consumer.context("a consumer's task ended")??;
                done.add(at - start, 1);
                last = last.max(at);
            }
            _ = look.tick() => {
                let board = board.lock();
                board.check(global.timeout)?;
                progress.set(board.records);
            }
        }
    }
    let elapsed = last - start;
    let effort = generator.effort();
    progress.finish();
    let board = Arc::into_inner(board).context("a consumer is left")?.into_inner();
    let Board { measured, records, bytes, .. } = board;
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

/// A consumer of each client that has got the last records that there are, and nothing is on its way to: connecting is
/// not what is measured.
async fn connected(
    clients: &[Client],
    args: &BenchFanoutArgs,
    ranges: &[Readable],
    timeout: Duration,
) -> anyhow::Result<Vec<Consumer>> {
    let mut tasks = JoinSet::new();
    let filled = ranges.iter().find(|(_, range)| !range.is_empty());
    let (partition, range) = filled.cloned().context("the topic has no records")?;
    for client in clients {
        let consumer = client.consumer(&args.topic).from(StartAt::Latest);
        let consumer = consumer.memory_bytes(usize::try_from(args.in_flight)?);
        tasks.spawn(async move {
            let mut consumer = consumer.build().await?;
            consumer.seek(partition, StartAt::Offset(Offset(range.end.get() - 1))).await?;
            match consumer.next_batch().await {
                Some(Ok(_)) => Ok(consumer),
                Some(Err(error)) => Err(error.into()),
                None => Err(anyhow::anyhow!("the consumer ended before it got anything")),
            }
        });
    }
    let mut consumers = Vec::with_capacity(clients.len());
    loop {
        let next = tokio::time::timeout(timeout, tasks.join_next()).await.with_context(|| {
            let (got, all) = (consumers.len(), clients.len());
            format!("{got} of {all} consumers got something, and no further one for {timeout:?}")
        })?;
        match next {
            Some(consumer) => consumers.push(consumer.context("a consumer's task ended")??),
            None => return Ok(consumers),
        }
    }
}

/// Takes `wanted` records from the start, whose checksums the client verifies; returns when it had them.
async fn consume(
    mut consumer: Consumer,
    index: usize,
    (wanted, ranges): (u64, Vec<Readable>),
    board: Arc<Mutex<Board>>,
) -> anyhow::Result<Instant> {
    for (partition, range) in ranges {
        consumer.seek(partition, StartAt::Offset(range.start)).await?;
    }
    let mut records = 0;
    loop {
        let asked = Instant::now();
        let batch = consumer.next_batch().await;
        let batch = batch.with_context(|| format!("the consumer ended after {records} records"))??;
        let at = Instant::now();
        let (mut count, mut bytes) = (0, 0);
        for record in batch.iter().take(usize::try_from(wanted - records).unwrap_or(usize::MAX)) {
            count += 1;
            bytes += record?.value.map_or(0, <[u8]>::len) as u64;
        }
        records += count;
        let done = records >= wanted;
        let mut board = board.lock();
        board.consumers[index] = Place { at, records, done };
        board.measured.wait(at, at - asked, 1)?;
        board.measured.series.count(at, count)?;
        board.records += count;
        board.bytes += bytes;
        if done {
            return Ok(at);
        }
    }
}
