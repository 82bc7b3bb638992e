//! Does reading old segments from the disk delay others? Round trips of one producer on an `os` topic, alone, beside a
//! reader of a log that is not in memory, and beside a reader of the same log once it is.
//!
//! ```text
//! cargo run --release -p highwater-benches --bin cold_read -- --gibibytes 4
//! ```
//!
//! Ends with 1 when the cold reader delays the others by more than 5 ms at p99.
#![expect(clippy::print_stdout, reason = "a program that prints its findings")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use highwater_benches::highwater::{BenchReport, FreshBroker};
use highwater_benches::payload::incompressible;
use highwater_benches::sample::Spread;
use highwater_client::{Client, NewTopic, Producer, ProducerRecord};
use highwater_tests::residency;

const LIVE: &str = "live";
const DELAY_US_MAX: f64 = 5_000.0;
/// How long the round trips are measured alone.
const ALONE: Duration = Duration::from_secs(5);

#[derive(Debug, Parser)]
#[command(about = "Whether a cold read of old segments delays other connections")]
struct Arguments {
    /// GiB of old log, in values of 1 KiB
    #[arg(long, default_value_t = 4)]
    gibibytes: u64,
    /// Pause between two round trips, in microseconds
    #[arg(long, default_value_t = 500)]
    pause: u64,
    /// Where the data is made and removed: on a disk, not in memory
    #[arg(long, default_value = ".")]
    directory: PathBuf,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut broker = FreshBroker::start(&arguments.directory)?;
    let records = (arguments.gibibytes << 20).to_string();
    let produce =
        ["produce", "--topic", "old", "--create", "--durability", "os", "--size", "1024", "--records"];
    broker.bench(&[&produce[..], &[&records]].concat())?;
    ensure!(broker.process.terminate()?.success(), "the broker did not stop well");
    residency::forget(broker.process.data_directory())?;
    broker.process.start_again()?;
    let before = residency::measure(broker.process.data_directory())?;
    println!("{} of {} pages of the log are in memory before the cold read", before.resident, before.pages);
    ensure!(before.part() < 0.05, "the log is still in memory: this would not be a cold read");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pause = Duration::from_micros(arguments.pause);
    let producer = runtime.block_on(connect(&broker.process.bootstrap()))?;
    let alone_until = Instant::now() + ALONE;
    let alone = runtime.block_on(round_trips(&producer, pause, || Instant::now() < alone_until))?;
    let (cold, cold_report) = beside_a_reader(&broker, &runtime, &producer, pause)?;
    let after = residency::measure(broker.process.data_directory())?;
    let (warm, warm_report) = beside_a_reader(&broker, &runtime, &producer, pause)?;
    ensure!(cold_report.records == warm_report.records, "the readers saw different logs");

    println!("{} of {} pages of the log are in memory after it\n", after.resident, after.pages);
    println!(
        "{:<28} {:>7} {:>9} {:>9} {:>9} {:>9}  reader",
        "round trips, µs", "count", "p50", "p99", "p99.9", "max"
    );
    let speed = |report: &BenchReport| format!("{:.0} MB/s", report.megabytes_per_second);
    for (name, spread, reader) in [
        ("alone", &alone, String::new()),
        ("beside a cold read", &cold, speed(&cold_report)),
        ("beside a read from memory", &warm, speed(&warm_report)),
    ] {
        println!(
            "{name:<28} {:>7} {:>9.0} {:>9.0} {:>9.0} {:>9.0}  {reader}",
            spread.count, spread.p50, spread.p99, spread.p999, spread.max
        );
    }
    let delay = cold.p99 - alone.p99;
    println!(
        "\ndelay by the cold read at p99: {:.2} ms (goal: <= {:.0} ms)",
        delay / 1e3,
        DELAY_US_MAX / 1e3
    );
    Ok(ExitCode::from(u8::from(delay > DELAY_US_MAX)))
}

async fn connect(bootstrap: &str) -> Result<Producer> {
    let client = Client::builder([bootstrap]).name("round-trips").connect().await?;
    client.admin().create_topic(NewTopic::new(LIVE).config("durability", "os")).await?;
    Ok(client.producer().build())
}

/// One record after another, each acknowledged before the next, while `goes_on`.
async fn round_trips(producer: &Producer, pause: Duration, goes_on: impl Fn() -> bool) -> Result<Spread> {
    let value = incompressible(100, 3);
    let mut durations = Vec::new();
    while goes_on() {
        let start = Instant::now();
        producer.send(ProducerRecord::new(LIVE).value(&value)).await?.await?;
        durations.push(start.elapsed());
        tokio::time::sleep(pause).await;
    }
    Ok(Spread::of(&mut durations))
}

/// Round trips while another process reads the old log from its start to its end.
fn beside_a_reader(
    broker: &FreshBroker,
    runtime: &tokio::runtime::Runtime,
    producer: &Producer,
    pause: Duration,
) -> Result<(Spread, BenchReport)> {
    let reading = AtomicBool::new(true);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let report = broker.bench(&["consume", "--topic", "old", "--size", "1024"]);
            reading.store(false, Ordering::Relaxed);
            report
        });
        let spread = runtime.block_on(round_trips(producer, pause, || reading.load(Ordering::Relaxed)));
        let report =
            reader.join().map_err(|_| anyhow!("the reader panicked"))?.context("read the old log")?;
        Ok((spread?, report))
    })
}
