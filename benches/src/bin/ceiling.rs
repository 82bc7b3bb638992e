//! Measures what this machine can do at best: the figures that Highwater is compared with.
//!
//! ```text
//! cargo run --release -p highwater-benches --bin ceiling -- --runs 5
//! ```
#![expect(clippy::print_stdout, reason = "a program that prints its findings")]

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use highwater_benches::ceiling::produce::Acknowledge;
use highwater_benches::ceiling::{self, Run};
use highwater_benches::sample::{Spread, median};
use serde::Serialize;

#[derive(Debug, Parser)]
#[command(about = "What this machine can do at best with the bytes that a broker moves")]
struct Arguments {
    /// MiB moved in each run
    #[arg(long, default_value_t = 1024)]
    mebibytes: u64,
    /// Runs of each ceiling; the median counts
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Appends timed for the latency of append and fdatasync
    #[arg(long, default_value_t = 2000)]
    appends: usize,
    /// Where the files are made and removed
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// For people or for programs
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Serialize)]
struct Report {
    mebibytes: u64,
    runs: usize,
    produce_written: Speeds,
    produce_flushed: Speeds,
    produce_replicated: Speeds,
    consume_mapped: Speeds,
    append_and_sync_1_kib_us: Spread,
    append_and_sync_4_kib_us: Spread,
}

#[derive(Debug, Serialize)]
struct Speeds {
    median_megabytes_per_second: f64,
    megabytes_per_second: Vec<f64>,
}

impl Speeds {
    fn of(runs: &[Run]) -> Self {
        let megabytes_per_second: Vec<_> = runs.iter().map(|run| run.megabytes_per_second()).collect();
        Self { median_megabytes_per_second: median(&megabytes_per_second), megabytes_per_second }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let directory = tempfile::Builder::new()
        .prefix("highwater-ceiling-")
        .tempdir_in(&arguments.directory)
        .with_context(|| format!("make a directory in {}", arguments.directory.display()))?;
    let report = measure(&arguments, directory.path())?;
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => print_table(&report),
    }
    Ok(())
}

fn measure(arguments: &Arguments, directory: &std::path::Path) -> Result<Report> {
    let bytes = arguments.mebibytes << 20;
    let (mut written, mut flushed, mut replicated) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.runs {
        written.push(ceiling::produce::run(directory, bytes, Acknowledge::Written)?);
        flushed.push(ceiling::produce::run(directory, bytes, Acknowledge::Flushed)?);
        replicated.push(ceiling::replicate::run(directory, bytes)?);
    }
    Ok(Report {
        mebibytes: arguments.mebibytes,
        runs: arguments.runs,
        produce_written: Speeds::of(&written),
        produce_flushed: Speeds::of(&flushed),
        produce_replicated: Speeds::of(&replicated),
        consume_mapped: Speeds::of(&ceiling::consume::run(directory, bytes, arguments.runs)?),
        append_and_sync_1_kib_us: ceiling::latency::append_and_sync(directory, arguments.appends, 1 << 10)?,
        append_and_sync_4_kib_us: ceiling::latency::append_and_sync(directory, arguments.appends, 4 << 10)?,
    })
}

fn print_table(report: &Report) {
    println!("{} MiB a run, {} runs, MB/s (10^6 bytes a second)\n", report.mebibytes, report.runs);
    println!("{:<48} {:>7}   runs", "ceiling", "median");
    for (name, speeds) in [
        ("produce: TCP, crc, write", &report.produce_written),
        ("produce: TCP, crc, write, group fdatasync", &report.produce_flushed),
        ("produce: the same, and two followers that do it", &report.produce_replicated),
        ("consume: mapping, TCP, crc", &report.consume_mapped),
    ] {
        let runs: Vec<_> = speeds.megabytes_per_second.iter().map(|speed| format!("{speed:.0}")).collect();
        println!("{name:<48} {:>7.0}   {}", speeds.median_megabytes_per_second, runs.join(" "));
    }
    println!("\n{:<44} {:>7} {:>7} {:>7} {:>7}", "append and fdatasync, µs", "p50", "p99", "p99.9", "max");
    for (name, spread) in
        [("1 KiB", &report.append_and_sync_1_kib_us), ("4 KiB", &report.append_and_sync_4_kib_us)]
    {
        println!(
            "{name:<44} {:>7.0} {:>7.0} {:>7.0} {:>7.0}",
            spread.p50, spread.p99, spread.p999, spread.max
        );
    }
}
