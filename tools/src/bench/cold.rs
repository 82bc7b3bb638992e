//! `bench cold`: the latency of live traffic alone and beside readers of old data, and how fast those read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Client, ErrorKind, NewTopic, StartAt};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::connections;
use super::consume::{measure, next_batch};
use super::http::Metrics;
use super::latency::{Flow, Live};
use super::machine::{Effort, Generator};
use super::shape::Shape;
use super::tabular::{Column, Shown, Tabular, column, publish};
use super::topic::{self, TopicFacts, records_there};
use crate::args::{BenchColdArgs, Global};
use crate::connect::{connect, runtime};
use crate::interrupt;
use crate::output::{self, Answer};

/// How often it is looked whether every reader has begun.
const LOOK: Duration = Duration::from_millis(2);

const COLUMNS: &[Column] = &[
    column("step", "LIVE TRAFFIC", Shown::Text),
    column("records", "RECORDS", Shown::Count),
    column("p50_us", "P50", Shown::Microseconds),
    column("p99_us", "P99", Shown::Microseconds),
    column("p999_us", "P99.9", Shown::Microseconds),
    column("max_us", "MAX", Shown::Microseconds),
    column("acknowledged_p99_us", "ACK P99", Shown::Microseconds),
    column("cold_megabytes_per_second", "READERS MB/S", Shown::Number),
    column("cold_records", "READ RECORDS", Shown::Count),
    column("reads_from_disk", "DISK READS", Shown::Count),
    column("reads_from_memory", "MEMORY READS", Shown::Count),
];

/// What one step showed.
struct Step {
    name: &'static str,
    live: Live,
    effort: Effort,
    /// Bytes of values and records that readers read, and in which time.
    read: Option<(u64, u64, Duration)>,
    /// Reads that went to the disk, and those that were served from memory, as far as the broker says.
    reads: [Option<u64>; 2],
}

/// Runs the bench.
pub(crate) async fn run(global: &Global, client: &Client, args: BenchColdArgs) -> anyhow::Result<Answer> {
    let shape = Shape::new(&args.size, &args.load)?;
    let old = topic::ask(client, &args.topic).await?;
    let there = records_there(client, &args.topic).await?;
    anyhow::ensure!(
        there > 0,
        "topic {} has no records to read; write some with: highwater bench produce --topic {} --create",
        args.topic,
        args.topic
    );
    if let Some(address) = &args.metrics {
        Metrics::of(address).await?;
    }
    let live = create(client, &args).await?;
    let interrupted = interrupt::watch()?;
    let measured = tokio::select! {
        measured = steps(global, client, &args, &shape, &live, there) => measured,
        () = interrupted.notified() => Err(anyhow::anyhow!("interrupted")),
    };
    // Whatever happened, nothing is left behind.
    let deleted = client.admin().delete_topic(&args.live).await;
    let measured = measured?;
    deleted.with_context(|| format!("delete topic {}", args.live))?;
    let Some((steps, passes)) = measured else { return Ok(Answer::No) };
    publish(global, &args.report, &table(&args, &shape, &live, &old, there, &steps, passes))?;
    Ok(Answer::Yes)
}

async fn create(client: &Client, args: &BenchColdArgs) -> anyhow::Result<TopicFacts> {
    let topic = NewTopic::new(&args.live)
        .partitions(1)
        .replication(args.replication.unwrap_or(0))
        .config("durability", &args.durability);
    match client.admin().create_topic(topic).await {
        Ok(_) => topic::ask(client, &args.live).await,
        Err(error) if error.kind() == ErrorKind::TopicExists => anyhow::bail!(
            "topic {} exists: this bench deletes what it made, so delete it yourself or choose another --live",
            args.live
        ),
        Err(error) => Err(error).with_context(|| format!("create topic {}", args.live)),
    }
}

/// All steps, and how often readers were through with the old data. `None`: not everything was acknowledged.
async fn steps(
    global: &Global,
    client: &Client,
    args: &BenchColdArgs,
    shape: &Shape,
    live: &TopicFacts,
    there: u64,
) -> anyhow::Result<Option<(Vec<Step>, u64)>> {
    let clients = connections::make(global, args.load.connections).await?;
    let flow =
        Flow { rate: args.rate, warm_up: args.warm_up, duration: args.duration, timeout: global.timeout };
    let mut all = Vec::new();
    let mut passes = 0;
    for name in ["alone", "beside readers", "alone again"] {
        let readers = match name {
            "beside readers" => Some(Readers::start(global, args, there).await?),
            _ => None,
        };
        let consumer = client.consumer(&live.name).from(StartAt::Latest).build().await?;
        let before = scrape(args).await?;
        let read_before = readers.as_ref().map(Readers::read);
        let generator = Generator::start();
        let start = Instant::now();
        let Some(measured) = flow.measure(consumer, &clients, &args.load, shape, live).await? else {
            return Ok(None);
        };
        let elapsed = start.elapsed();
        let effort = generator.effort_with(measured.waited);
        let read = readers.as_ref().zip(read_before).map(|(readers, before)| {
            let after = readers.read();
            (after.0 - before.0, after.1 - before.1, elapsed)
        });
        let after = scrape(args).await?;
        let reads = ["highwater_reads_cold_total", "highwater_reads_hot_total"]
            .map(|name| before.as_ref()?.grown(after.as_ref()?, name, ""));
        if let Some(readers) = readers {
            passes = readers.stop()?;
        }
        all.push(Step { name, live: measured, effort, read, reads });
    }
    Ok(Some((all, passes)))
}

async fn scrape(args: &BenchColdArgs) -> anyhow::Result<Option<Metrics>> {
    match &args.metrics {
        None => Ok(None),
        Some(address) => Metrics::of(address).await.map(Some),
    }
}

/// What readers count together.
#[derive(Debug, Default)]
struct Count {
    bytes: AtomicU64,
    records: AtomicU64,
    passes: AtomicU64,
    /// Readers that have had a batch.
    begun: AtomicU64,
}

/// Readers of old data, each on a thread of its own: what they do must not delay the clock of the live traffic.
struct Readers {
    count: Arc<Count>,
    stop: CancellationToken,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Readers {
    /// Starts them, and waits until every one has read something.
    async fn start(global: &Global, args: &BenchColdArgs, there: u64) -> anyhow::Result<Self> {
        let (count, stop) = (Arc::new(Count::default()), CancellationToken::new());
        let mut readers = Self { count, stop, threads: Vec::new() };
        for number in 0..args.readers {
            let (count, stop) = (Arc::clone(&readers.count), readers.stop.clone());
            let (global, topic) = (global.clone(), args.topic.clone());
            let memory_bytes = usize::try_from(args.in_flight)?;
            let read = move || {
                runtime()?.block_on(async {
                    tokio::select! {
                        read = read(&global, &topic, memory_bytes, there, &count) => read,
                        () = stop.cancelled() => Ok(()),
                    }
                })
            };
            let thread = std::thread::Builder::new().name(format!("reader-{number}")).spawn(read);
            readers.threads.push(thread.context("start the thread of a reader")?);
        }
        let begun = |readers: &Self| readers.count.begun.load(Ordering::Relaxed) == u64::from(args.readers);
        while !begun(&readers) {
            if readers.threads.iter().any(JoinHandle::is_finished) {
                readers.stop()?;
                anyhow::bail!("a reader ended before it was stopped");
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(readers)
    }

    /// Bytes and records so far.
    fn read(&self) -> (u64, u64) {
        (self.count.bytes.load(Ordering::Relaxed), self.count.records.load(Ordering::Relaxed))
    }

    /// Ends them, and tells how often they were through with everything.
    fn stop(mut self) -> anyhow::Result<u64> {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(read) => read.context("read old data")?,
                Err(_) => anyhow::bail!("the thread of a reader panicked"),
            }
        }
        Ok(self.count.passes.load(Ordering::Relaxed))
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        // Nobody waits for them any more.
        self.stop.cancel();
    }
}

/// Reads what was there when the bench began, again and again.
async fn read(
    global: &Global,
    topic: &str,
    memory_bytes: usize,
    there: u64,
    count: &Count,
) -> anyhow::Result<()> {
    let client = connect(global).await?;
    let mut is_first = true;
    loop {
        let consumer = client.consumer(topic).from(StartAt::Earliest);
        let mut consumer = consumer.memory_bytes(memory_bytes).build().await?;
        let mut records = 0;
        while records < there {
            let batch = next_batch(&mut consumer, global.timeout, records).await?;
            let (some, bytes) = measure(&batch, there - records)?;
            records += some;
            count.records.fetch_add(some, Ordering::Relaxed);
            count.bytes.fetch_add(bytes, Ordering::Relaxed);
            if std::mem::take(&mut is_first) {
                count.begun.fetch_add(1, Ordering::Relaxed);
            }
        }
        count.passes.fetch_add(1, Ordering::Relaxed);
    }
}

fn table(
    args: &BenchColdArgs,
    shape: &Shape,
    live: &TopicFacts,
    old: &TopicFacts,
    there: u64,
    steps: &[Step],
    passes: u64,
) -> Tabular {
    let row = |step: &Step| {
        let at = |quantile| json!(step.live.arrived.latencies.at(quantile));
        let speed =
            |(bytes, _, elapsed): (u64, u64, Duration)| bytes as f64 / elapsed.as_secs_f64().max(1e-9) / 1e6;
        vec![
            json!(step.name),
            json!(step.live.arrived.latencies.count()),
            at(0.5),
            at(0.99),
            at(0.999),
            json!(step.live.arrived.latencies.max()),
            json!(step.live.outcome.measured.latencies.at(0.99)),
            json!(step.read.map(speed)),
            json!(step.read.map(|(_, records, _)| records)),
            json!(step.reads[0]),
            json!(step.reads[1]),
        ]
    };
    let mut more = Map::new();
    let mut insert = |name: &str, value: Value| more.insert(name.to_owned(), value);
    insert("old_topic", json!(old.name));
    insert("old_partitions", json!(old.partitions));
    insert("old_records", json!(there));
    insert("readers", json!(args.readers));
    insert("reader_in_flight_bytes", json!(args.in_flight));
    insert("passes", json!(passes));
    insert("live_topic", json!(live.name));
    insert("durability", json!(live.durability));
    insert("replication", json!(live.replication));
    shape.tell(&args.load, &mut more);
    let flow =
        Flow { rate: args.rate, warm_up: args.warm_up, duration: args.duration, timeout: Duration::ZERO };
    flow.tell(&mut more);
    let p99 = |index: usize| steps.get(index).map_or(0, |step| step.live.arrived.latencies.at(0.99));
    let delay = p99(1) as i64 - p99(0) as i64;
    more.insert("delay_us_p99".to_owned(), json!(delay));
    let sign = if delay < 0 { "-" } else { "" };
    let mut lines = vec![
        "latency from when a record was due to be sent until it was consumed".to_owned(),
        format!("p99 beside readers less p99 alone: {sign}{}", output::microseconds(delay.unsigned_abs())),
    ];
    let through = if passes > 0 {
        format!(
            "readers were through with the old data {}: from the second time on it may have come from memory",
            output::plural(passes, "time", "times")
        )
    } else {
        "no reader was through with the old data: nothing was read twice by one of them".to_owned()
    };
    lines.push(through);
    Tabular {
        bench: "cold",
        promises: String::new(),
        more,
        columns: COLUMNS,
        rows: steps.iter().map(row).collect(),
        lines,
        // The step in which it had most to do.
        effort: steps.get(1).map(|step| step.effort),
    }
}
