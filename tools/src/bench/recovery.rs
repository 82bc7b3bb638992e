//! `bench recovery`: how long a broker takes to be ready, with nothing, and with a log after SIGKILL and after a stop in order.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Client, NewTopic, StartAt};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::consume::{Checks, next_batch};
use super::load::{Hand, Load, Sent, Settings, Upto};
use super::own_broker::{self, OwnBroker};
use super::payload::ENTROPY_MOST;
use super::report::Spread;
use super::shape::Shape;
use super::tabular::{Column, Shown, Tabular, column, publish};
use super::topic;
use crate::args::{AcksArg, BenchLoadArgs, BenchRecoveryArgs, CompressionArg, Global};
use crate::bench::keys::Skew;
use crate::connect::connect_to;
use crate::interrupt;
use crate::output::{self, Answer, Progress, Unit};

const TOPIC: &str = "bench-recovery";

/// How the log is filled.
const SETTINGS: Settings = Settings { batch_bytes: 256 << 10, in_flight: 8 << 20, idempotent: true };

/// The magic number of a file system that is in memory.
const TMPFS: u32 = 0x0102_1994;

const COLUMNS: &[Column] = &[
    column("start", "START", Shown::Text),
    column("starts", "STARTS", Shown::Count),
    column("ready_us_min", "READY, MIN", Shown::Microseconds),
    column("ready_us_median", "MEDIAN", Shown::Microseconds),
    column("ready_us_max", "MAX", Shown::Microseconds),
    column("resident_bytes", "RESIDENT WHEN IDLE", Shown::Bytes),
];

/// What starts of one kind showed.
struct Kind {
    name: &'static str,
    ready: Vec<Duration>,
    /// After the last of them.
    resident_bytes: u64,
}

/// Runs the bench. Whatever happens, the brokers and their directories are gone when it returns.
pub(crate) async fn run(global: &Global, args: BenchRecoveryArgs) -> anyhow::Result<Answer> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let interrupted = interrupt::watch()?;
    let measured = tokio::select! {
        measured = measure(global, &args, &parent) => measured,
        () = interrupted.notified() => Err(anyhow::anyhow!("interrupted")),
    };
    let table = measured?;
    publish(global, &args.report, &table)?;
    Ok(Answer::Yes)
}

async fn measure(global: &Global, args: &BenchRecoveryArgs, parent: &Path) -> anyhow::Result<Tabular> {
    let mut kinds = vec![empty(args, parent).await?];
    let directory = directory(parent)?;
    let log = Log::fill(global, args, directory.path()).await?;
    for name in ["after SIGKILL", "after SIGKILL, log out of memory", "after a stop in order"] {
        kinds.push(log.starts(args, name).await?);
    }
    let came_back = log.check(global, args).await?;
    let mut more = Map::new();
    let mut insert = |name: &str, value: Value| more.insert(name.to_owned(), value);
    insert("bytes", json!(log.bytes));
    insert("size", json!(args.size.to_string()));
    insert("partitions", json!(args.partitions));
    insert("durability", json!(args.durability));
    insert("acknowledged_records", json!(log.records));
    insert("records_that_came_back", json!(came_back));
    insert("fill_megabytes_per_second", json!((log.megabytes_per_second * 10.0).round() / 10.0));
    let is_in_memory = rustix::fs::statfs(parent).is_ok_and(|about| about.f_type as u32 == TMPFS);
    insert("in_memory", json!(is_in_memory));
    let mut lines = vec![
        "ready: from the start of the process until /health/ready says so".to_owned(),
        format!(
            "all {} that were acknowledged came back, every byte of them checked",
            output::plural(came_back, "record", "records")
        ),
    ];
    if is_in_memory {
        lines.push(format!("{} is in memory: give --dir on the disk that counts", parent.display()));
    }
    let row = |kind: &Kind| {
        let spread = Spread::of(kind.ready.iter().map(|ready| ready.as_micros() as f64));
        let of = |pick: fn(Spread) -> f64| json!(spread.map(|spread| pick(spread) as u64));
        vec![
            json!(kind.name),
            json!(kind.ready.len()),
            of(|spread| spread.least),
            of(|spread| spread.median),
            of(|spread| spread.most),
            json!(kind.resident_bytes),
        ]
    };
    Ok(Tabular {
        bench: "recovery",
        promises: String::new(),
        more,
        columns: COLUMNS,
        rows: kinds.iter().map(row).collect(),
        lines,
        effort: None,
    })
}

fn directory(parent: &Path) -> anyhow::Result<TempDir> {
    tempfile::Builder::new()
        .prefix("highwater-bench-")
        .tempdir_in(parent)
        .with_context(|| format!("make a directory in {}", parent.display()))
}

/// Starts with nothing.
async fn empty(args: &BenchRecoveryArgs, parent: &Path) -> anyhow::Result<Kind> {
    let mut kind = Kind { name: "empty directory", ready: Vec::new(), resident_bytes: 0 };
    for _start in 0..args.starts {
        let directory = directory(parent)?;
        let broker = OwnBroker::start(directory.path(), args.ready_within).await?;
        kind.ready.push(broker.ready_after);
        kind.resident_bytes = broker.resident_bytes().await?;
        broker.kill()?;
    }
    Ok(kind)
}

/// A directory with a log in which no broker runs.
struct Log<'a> {
    directory: &'a Path,
    records: u64,
    bytes: u64,
    megabytes_per_second: f64,
}

impl<'a> Log<'a> {
    /// Writes it, and kills the broker that did.
    async fn fill(global: &Global, args: &BenchRecoveryArgs, directory: &'a Path) -> anyhow::Result<Self> {
        let broker = OwnBroker::start(directory, args.ready_within).await?;
        let client = connect(global, &broker).await?;
        let topic = NewTopic::new(TOPIC).partitions(args.partitions).config("durability", &args.durability);
        client.admin().create_topic(topic).await.with_context(|| format!("create topic {TOPIC}"))?;
        let facts = topic::ask(&client, TOPIC).await?;
        let shape_args = plain();
        let shape = Shape::new(&args.size, &shape_args)?;
        let records = ((args.bytes as f64 / args.size.mean()).ceil() as u64).max(u64::from(args.partitions));
        // Every partition gets something.
        let batch = (args.bytes / u64::from(args.partitions)).clamp(1, SETTINGS.batch_bytes as u64);
        let clients = std::slice::from_ref(&client);
        let mut load = Load::new(clients, &shape_args, SETTINGS, &shape, &facts, Hand::Batch(batch));
        let start = Instant::now();
        let sent = Sent::new(Progress::new(Some(records), Unit::Records));
        let outcome = load.run(start, Upto::Records(records), None, 0, &sent).await?.outcome;
        anyhow::ensure!(outcome.is_good(), "not everything was acknowledged");
        let elapsed = outcome.last.unwrap_or(start) - start;
        broker.kill()?;
        Ok(Self {
            directory,
            records: outcome.acknowledged,
            bytes: outcome.bytes,
            megabytes_per_second: outcome.bytes as f64 / elapsed.as_secs_f64().max(1e-9) / 1e6,
        })
    }

    /// Starts a broker in it again and again. It ends as the kind says, and so did the one before.
    async fn starts(&self, args: &BenchRecoveryArgs, name: &'static str) -> anyhow::Result<Kind> {
        let in_order = name == "after a stop in order";
        if in_order {
            // The first start of this kind comes after a stop, too.
            OwnBroker::start(self.directory, args.ready_within).await?.stop().await?;
        }
        let mut kind = Kind { name, ready: Vec::new(), resident_bytes: 0 };
        for _start in 0..args.starts {
            if name == "after SIGKILL, log out of memory" {
                forget(&own_broker::data(self.directory))?;
            }
            let broker = OwnBroker::start(self.directory, args.ready_within).await?;
            kind.ready.push(broker.ready_after);
            kind.resident_bytes = broker.resident_bytes().await?;
            if in_order { broker.stop().await? } else { broker.kill()? }
        }
        Ok(kind)
    }

    /// Reads everything that was acknowledged, and checks it.
    async fn check(&self, global: &Global, args: &BenchRecoveryArgs) -> anyhow::Result<u64> {
        let broker = OwnBroker::start(self.directory, args.ready_within).await?;
        let client = connect(global, &broker).await?;
        let there = topic::records_there(&client, TOPIC).await?;
        anyhow::ensure!(
            there == self.records,
            "{there} of {} acknowledged records came back: the broker has lost or doubled some",
            self.records
        );
        let mut checks = Checks::new(Some(args.size.clone()), args.partitions);
        let progress = Progress::new(Some(there), Unit::Records);
        let mut consumer = client.consumer(TOPIC).from(StartAt::Earliest).build().await?;
        let mut records = 0;
        while records < there {
            let batch = next_batch(&mut consumer, global.timeout, records).await?;
            records += checks.take(&batch, u64::MAX)?.0;
            progress.set(records);
        }
        anyhow::ensure!(records == there, "{records} records came, not {there}");
        broker.stop().await?;
        Ok(records)
    }
}

async fn connect(global: &Global, broker: &OwnBroker) -> anyhow::Result<Client> {
    connect_to(std::slice::from_ref(&broker.address), global.timeout).await
}

/// One producer, without anything special.
const fn plain() -> BenchLoadArgs {
    BenchLoadArgs {
        entropy: ENTROPY_MOST,
        keys: None,
        key_skew: Skew::Uniform,
        connections: 1,
        spin: false,
        acks: AcksArg::All,
        linger: Duration::ZERO,
        compression: CompressionArg::None,
    }
}

/// Has the kernel write files to the disk and drop them from memory, as after the machine itself was started again.
fn forget(directory: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
        if path.is_dir() {
            forget(&path)?;
        } else if path.is_file() {
            let file = fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
            file.sync_all().with_context(|| format!("flush {}", path.display()))?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
                .with_context(|| format!("drop {} from memory", path.display()))?;
        }
    }
    Ok(())
}
