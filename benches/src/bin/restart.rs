//! How long a broker takes to be ready: with an empty directory, and after `kill -9` with a long log, in memory and not;
//! and what it holds when it is idle.
//!
//! ```text
//! cargo run --release -p highwater-benches --bin restart -- --gibibytes 10
//! ```
//!
//! Ends with 1 when a goal is missed.
#![expect(clippy::print_stdout, reason = "a program that prints its findings")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use highwater_benches::highwater::{FreshBroker, READY_LIMIT};
use highwater_tests::{residency, wait};

const EMPTY_START_MAX: Duration = Duration::from_millis(100);
const RESTART_MAX: Duration = Duration::from_secs(1);
const IDLE_BYTES_MAX: u64 = 20_000_000;

#[derive(Debug, Parser)]
#[command(about = "How long a broker takes to be ready, and what it holds when it is idle")]
struct Arguments {
    /// GiB of log to restart with, in values of 1 KiB
    #[arg(long, default_value_t = 20)]
    gibibytes: u64,
    /// Starts of each kind
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Where the data is made and removed: on a disk, not in memory
    #[arg(long, default_value = ".")]
    directory: PathBuf,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut reached = true;
    let mut note = |name: &str, took: &[Duration], goal: Duration| {
        let longest = took.iter().max().copied().unwrap_or_default();
        reached &= longest <= goal;
        let shown: Vec<_> = took.iter().map(|took| format!("{:.0}", took.as_secs_f64() * 1e3)).collect();
        println!("{name:<52} {:>6} ms goal  runs, ms: {}", goal.as_millis(), shown.join(" "));
    };

    let (mut empty, mut idle) = (Vec::new(), Vec::new());
    for _ in 0..arguments.runs {
        let start = Instant::now();
        let mut broker = FreshBroker::start(&arguments.directory)?;
        broker.ready()?;
        empty.push(start.elapsed());
        idle.push(settled_resident_bytes(&mut broker)?);
    }
    note("empty directory, from spawn to /health/ready", &empty, EMPTY_START_MAX);

    let mut broker = FreshBroker::start(&arguments.directory)?;
    let records = (arguments.gibibytes << 20).to_string();
    let produce =
        ["produce", "--topic", "long", "--create", "--durability", "os", "--size", "1024", "--records"];
    let report = broker.bench(&[&produce[..], &[&records]].concat())?;
    ensure!(report.records.to_string() == records, "{} of {records} records went in", report.records);
    let mut warm = Vec::new();
    for _ in 0..arguments.runs {
        broker.process.kill9()?;
        warm.push(restart(&mut broker)?);
    }
    note("after kill -9, log in memory where it was", &warm, RESTART_MAX);
    let (mut cold, mut part) = (Vec::new(), 0.0_f64);
    for _ in 0..arguments.runs {
        broker.process.kill9()?;
        residency::forget(broker.process.data_directory())?;
        part = part.max(residency::measure(broker.process.data_directory())?.part());
        cold.push(restart(&mut broker)?);
    }
    note("after kill -9, log out of memory", &cold, RESTART_MAX);
    println!("  (at most {:.2} % of the log was in memory before those starts)", part * 100.0);
    let consumed = broker.bench(&["consume", "--topic", "long", "--size", "1024"])?;
    ensure!(consumed.records == report.records, "{} of {records} records came back", consumed.records);
    println!("  all {records} records came back, checked: {:.0} MB/s", consumed.megabytes_per_second);

    let most = idle.iter().max().copied().unwrap_or_default();
    let shown: Vec<_> = idle.iter().map(|bytes| format!("{:.1}", *bytes as f64 / 1e6)).collect();
    println!(
        "{:<52} {:>6} MB goal  runs, MB: {}",
        "resident when idle, empty",
        IDLE_BYTES_MAX / 1_000_000,
        shown.join(" ")
    );
    reached &= most < IDLE_BYTES_MAX;
    Ok(ExitCode::from(u8::from(!reached)))
}

/// Starts a broker that was killed, and returns how long it took until it was ready.
fn restart(broker: &mut FreshBroker) -> Result<Duration> {
    let start = Instant::now();
    broker.process.start_again()?;
    broker.ready()?;
    Ok(start.elapsed())
}

/// Resident bytes once they have stopped to change.
fn settled_resident_bytes(broker: &mut FreshBroker) -> Result<u64> {
    let mut last = (0, 0);
    wait::until("the broker settles", READY_LIMIT, || {
        let now = broker.process.usage().ok()?.resident_bytes;
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        (last.1 >= 200).then_some(now)
    })
}
