//! Measures Highwater beside the raw ceilings, alternately and in the same run, with one partition and one connection.
//!
//! ```text
//! cargo build --release -p highwater && cargo run --release -p highwater-benches --bin compare -- --pairs 5
//! ```
//!
//! Ends with 1 when a goal is missed.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its findings")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use highwater_benches::ceiling::produce::Acknowledge;
use highwater_benches::ceiling::{self, settle};
use highwater_benches::highwater::{BenchReport, FreshBroker, FreshCluster};
use highwater_benches::sample::median;
use serde::Serialize;

/// Bytes of a batch of the fan-out, and what each consumer holds: one or two batches are on their way to each of them.
const FAN_OUT_BYTES: &str = "768KiB";
/// Runs of the fan-out, each of whose median counts for a pair: sockets of a thousand connections take hundreds of megabytes, and a
/// virtual machine has to get them back from its host first.
const FAN_OUT_RUNS: usize = 3;

#[derive(Debug, Parser)]
#[command(about = "Highwater beside the raw ceilings of the same minutes: 1 partition, 1 connection")]
struct Arguments {
    /// How often everything is run, ceiling and broker in turn; medians count
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// MiB moved in each run
    #[arg(long, default_value_t = 1024)]
    mebibytes: u64,
    /// Only three brokers beside the replicated ceiling
    #[arg(long)]
    replicated: bool,
    /// Only many consumers of the same records beside the fan-out ceiling
    #[arg(long, conflicts_with = "replicated")]
    fanout: bool,
    /// Consumers of the fan-out, each on a connection of its own
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    consumers: u32,
    /// MiB that each of them gets
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..))]
    mebibytes_each: u64,
    /// Where the files are made and removed
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// For people or for programs
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// What a line is held against.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
enum Goal {
    /// At least this part of the ceiling's median.
    OfCeiling(f64),
    /// At least this many records a second.
    RecordsPerSecond(f64),
    /// Only shown.
    None,
}

/// One line of the comparison.
#[derive(Debug, Clone, Serialize)]
struct Line {
    name: &'static str,
    goal: Goal,
    /// Of each run, in 10^6 bytes a second.
    ceiling_megabytes_per_second: Vec<f64>,
    /// Of each run.
    highwater: Vec<BenchReport>,
}

/// Medians of a line.
#[derive(Debug, Clone, Copy, Serialize)]
struct Medians {
    ceiling_megabytes_per_second: f64,
    megabytes_per_second: f64,
    records_per_second: f64,
    ratio: f64,
    reached: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    pairs: usize,
    mebibytes: u64,
    lines: Vec<(Line, Medians)>,
}

impl Line {
    const fn new(name: &'static str, goal: Goal) -> Self {
        Self { name, goal, ceiling_megabytes_per_second: Vec::new(), highwater: Vec::new() }
    }

    fn medians(&self) -> Medians {
        let of =
            |value: fn(&BenchReport) -> f64| median(&self.highwater.iter().map(value).collect::<Vec<_>>());
        let ceiling = median(&self.ceiling_megabytes_per_second);
        let megabytes_per_second = of(|report| report.megabytes_per_second);
        let records_per_second = of(|report| report.records_per_second);
        let ratio = if ceiling > 0.0 { megabytes_per_second / ceiling } else { 0.0 };
        let reached = match self.goal {
            Goal::OfCeiling(least) => ratio >= least,
            Goal::RecordsPerSecond(least) => records_per_second >= least,
            Goal::None => true,
        };
        Medians {
            ceiling_megabytes_per_second: ceiling,
            megabytes_per_second,
            records_per_second,
            ratio,
            reached,
        }
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let directory = tempfile::Builder::new()
        .prefix("highwater-compare-")
        .tempdir_in(&arguments.directory)
        .with_context(|| format!("make a directory in {}", arguments.directory.display()))?;
    let mut lines = Vec::new();
    if !arguments.replicated && !arguments.fanout {
        lines.append(&mut measure(&arguments, directory.path())?);
    }
    if !arguments.fanout {
        lines.push(replicated(&arguments, directory.path())?);
    }
    if !arguments.replicated {
        lines.push(fan_out(&arguments, directory.path())?);
    }
    let lines: Vec<_> = lines.into_iter().map(|line| (line.clone(), line.medians())).collect();
    let reached = lines.iter().all(|(_, medians)| medians.reached);
    let report = Report { pairs: arguments.pairs, mebibytes: arguments.mebibytes, lines };
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => print_table(&report),
    }
    Ok(ExitCode::from(u8::from(!reached)))
}

/// Runs everything, one pair after the other, so that a change of the machine meets ceiling and broker alike.
fn measure(arguments: &Arguments, directory: &Path) -> Result<Vec<Line>> {
    let bytes = arguments.mebibytes << 20;
    let mut os = Line::new("produce 1 KiB, os", Goal::OfCeiling(0.6));
    let mut fsync = Line::new("produce 1 KiB, fsync", Goal::OfCeiling(0.7));
    let mut consume = Line::new("consume 1 KiB", Goal::OfCeiling(0.5));
    let mut cold = Line::new("consume 1 KiB, broker started anew", Goal::None);
    let mut small_batch = Line::new("produce 100 B, batch call, os", Goal::RecordsPerSecond(6e6));
    let mut small_each = Line::new("produce 100 B, a send each, os", Goal::RecordsPerSecond(3e6));
    let mut small_consume = Line::new("consume 100 B", Goal::RecordsPerSecond(6e6));
    for pair in 1..=arguments.pairs {
        eprintln!("pair {pair} of {}", arguments.pairs);
        let written = ceiling::produce::run(directory, bytes, Acknowledge::Written)?;
        for line in [&mut os, &mut small_batch, &mut small_each] {
            line.ceiling_megabytes_per_second.push(written.megabytes_per_second());
        }
        let (produced, consumed, restarted) = large(directory, bytes)?;
        os.highwater.push(produced);
        let mapped = ceiling::consume::run(directory, bytes, 1)?;
        let mapped = mapped.first().context("no run")?.megabytes_per_second();
        for line in [&mut consume, &mut cold, &mut small_consume] {
            line.ceiling_megabytes_per_second.push(mapped);
        }
        consume.highwater.push(consumed);
        cold.highwater.push(restarted);
        let flushed = ceiling::produce::run(directory, bytes, Acknowledge::Flushed)?;
        fsync.ceiling_megabytes_per_second.push(flushed.megabytes_per_second());
        fsync.highwater.push(produce(directory, bytes, "1024", "fsync", &[])?.1);
        let (broker, produced) = produce(directory, bytes, "100", "os", &[])?;
        small_batch.highwater.push(produced);
        small_consume.highwater.push(broker.bench(&["consume", "--topic", "bench", "--size", "100"])?);
        drop(broker);
        small_each.highwater.push(produce(directory, bytes, "100", "os", &["--send-each"])?.1);
    }
    Ok(vec![os, fsync, consume, cold, small_batch, small_each, small_consume])
}

/// Produces into a fresh cluster of three beside the replicated ceiling, in turn.
fn replicated(arguments: &Arguments, directory: &Path) -> Result<Line> {
    let bytes = arguments.mebibytes << 20;
    let mut line = Line::new("produce 1 KiB, fsync, 3 brokers", Goal::OfCeiling(0.6));
    for pair in 1..=arguments.pairs {
        eprintln!("replicated pair {pair} of {}", arguments.pairs);
        let ceiling = ceiling::replicate::run(directory, bytes)?;
        line.ceiling_megabytes_per_second.push(ceiling.megabytes_per_second());
        let cluster = FreshCluster::start(directory)?;
        settle(directory, 3 * bytes + bytes / 2)?;
        let records = (bytes / 1024).to_string();
        let report = cluster.bench(&[
            "produce",
            "--topic",
            "bench",
            "--create",
            "--durability",
            "fsync",
            "--replication",
            "3",
            "--partitions",
            "1",
            "--acks",
            "all",
            "--records",
            &records,
            "--size",
            "1024",
        ])?;
        let (count, replication) = (report.records, report.replication);
        ensure!(count.to_string() == records, "{count} of {records} records were acknowledged");
        ensure!(replication.is_none_or(|replicas| replicas == 3), "replication is {replication:?}");
        line.highwater.push(report);
    }
    Ok(line)
}

/// Many consumers of the same records, each on a connection of its own, beside the fan-out ceiling, in turn.
fn fan_out(arguments: &Arguments, directory: &Path) -> Result<Line> {
    let mut line = Line::new("consume 1 KiB, many connections", Goal::OfCeiling(0.7));
    let each = arguments.mebibytes_each << 20;
    let consumers = arguments.consumers.to_string();
    for pair in 1..=arguments.pairs {
        eprintln!("fan-out pair {pair} of {}", arguments.pairs);
        let mut ceilings = Vec::with_capacity(FAN_OUT_RUNS);
        for _run in 0..FAN_OUT_RUNS {
            let ceiling = ceiling::fanout::run(directory, each, arguments.consumers as usize)?;
            ceilings.push(ceiling.megabytes_per_second());
        }
        line.ceiling_megabytes_per_second.push(median(&ceilings));
        let (broker, _) = produce(directory, each, "1024", "os", &["--batch-bytes", FAN_OUT_BYTES])?;
        settle(directory, 256 << 20)?;
        let runs = FAN_OUT_RUNS.to_string();
        let mut command = vec!["fanout", "--topic", "bench", "--consumers", &consumers];
        command.extend(["--in-flight", FAN_OUT_BYTES, "--repeat", &runs]);
        let report = broker.bench(&command)?;
        let expected = each / 1024 * u64::from(arguments.consumers);
        ensure!(report.records == expected, "{} of {expected} records came", report.records);
        line.highwater.push(report);
    }
    Ok(line)
}

/// Produces into a fresh broker, consumes from it, and once more after it was started anew.
fn large(directory: &Path, bytes: u64) -> Result<(BenchReport, BenchReport, BenchReport)> {
    let (mut broker, produced) = produce(directory, bytes, "1024", "os", &[])?;
    let arguments = ["consume", "--topic", "bench", "--size", "1024"];
    settle(directory, 256 << 20)?;
    let consumed = broker.bench(&arguments)?;
    broker.process.terminate()?;
    broker.process.start_again()?;
    settle(directory, 256 << 20)?;
    let restarted = broker.bench(&arguments)?;
    for report in [&consumed, &restarted] {
        ensure!(
            report.records == produced.records,
            "{} of {} records came back",
            report.records,
            produced.records
        );
    }
    Ok((produced, consumed, restarted))
}

/// Produces `bytes` in values of `size` into a fresh broker, with `more` flags.
fn produce(
    directory: &Path,
    bytes: u64,
    size: &str,
    durability: &str,
    more: &[&str],
) -> Result<(FreshBroker, BenchReport)> {
    let records = (bytes / size.parse::<u64>()?).to_string();
    let broker = FreshBroker::start(directory)?;
    // Room for the log and for what the client holds.
    settle(directory, bytes + bytes / 2)?;
    let mut arguments = vec!["produce", "--topic", "bench", "--create", "--durability", durability];
    arguments.extend(["--records", &records, "--size", size]);
    arguments.extend(more);
    let report = broker.bench(&arguments)?;
    ensure!(
        report.records.to_string() == records,
        "{} of {records} records were acknowledged",
        report.records
    );
    if let Some(in_force) = &report.durability {
        ensure!(in_force == durability, "durability is {in_force}, not {durability}");
    }
    Ok((broker, report))
}

fn print_table(report: &Report) {
    println!(
        "{} MiB a run, medians of {} pairs, 1 partition, 1 connection, MB = 10^6 bytes of values\n",
        { report.mebibytes },
        report.pairs
    );
    println!(
        "{:<36} {:>12} {:>12} {:>12} {:>7}  goal",
        "", "ceiling MB/s", "broker MB/s", "records/s", "ratio"
    );
    for (line, medians) in &report.lines {
        let goal = match line.goal {
            Goal::OfCeiling(least) => format!(">= {least} of the ceiling"),
            Goal::RecordsPerSecond(least) => format!(">= {:.1} M records/s", least / 1e6),
            Goal::None => "(shown only)".to_owned(),
        };
        let missed = if medians.reached { "" } else { ": MISSED" };
        println!(
            "{:<36} {:>12.0} {:>12.0} {:>12.0} {:>7.2}  {goal}{missed}",
            line.name,
            medians.ceiling_megabytes_per_second,
            medians.megabytes_per_second,
            medians.records_per_second,
            medians.ratio,
        );
    }
}
