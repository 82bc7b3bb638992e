//! Latencies of the real broker beside the raw ones, in turn.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its findings")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use highwater_benches::ceiling;
use highwater_benches::highwater::{BenchReport, FreshBroker, FreshCluster};
use highwater_benches::memory::{KEPT_BYTES_MAX, Kept};
use highwater_benches::sample::{Spread, median};

/// Bytes of a value.
const VALUE_BYTES: usize = 1024;
/// Faster than anything goes: what is reached is the maximum.
const TOO_FAST: u32 = 1_000_000;
/// How long a schedule of that is: a gigabyte or so.
const MAXIMUM_MILLISECONDS: u32 = 1000;
/// The part of the maximum at which latency is measured too.
const PART_OF_MAXIMUM: f64 = 0.7;

#[derive(Debug, Parser)]
#[command(about = "Latencies of Highwater beside the raw ones, end to end, by a schedule of 1 KiB values")]
struct Arguments {
    /// How often everything is run, raw and broker in turn; medians count
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Values a second
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Values a second with three brokers
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    replicated_rate: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Wait for the moments of the schedule by looking again and again
    #[arg(long)]
    spin: bool,
    /// MiB of free memory that a virtual machine does not give back to its host meanwhile; 0: whatever it does
    #[arg(long, default_value_t = KEPT_BYTES_MAX >> 20, value_parser = clap::value_parser!(u64).range(..=KEPT_BYTES_MAX >> 20))]
    keep_memory: u64,
    /// Where the files are made and removed
    #[arg(long, default_value = ".")]
    directory: PathBuf,
}

impl Arguments {
    /// How long a schedule of so many values a second may be, warm-up of a second included, for the memory that is kept: half of
    /// that are blocks as the broker takes them.
    fn milliseconds_in_memory(&self, rate: u32) -> u32 {
        let milliseconds = self.seconds.min(3) * 1000;
        if self.keep_memory == 0 {
            return milliseconds;
        }
        let values = (self.keep_memory << 20) / 2 / VALUE_BYTES as u64;
        let room = values * 1000 / u64::from(rate.max(1));
        milliseconds.min(u32::try_from(room).unwrap_or(u32::MAX).saturating_sub(1000)).max(500)
    }
}

/// What is measured of one case: p50, p99 and p99.9 of each run, in microseconds.
#[derive(Debug, Default)]
struct Runs(Vec<[f64; 3]>);

impl Runs {
    fn raw(&mut self, spread: Spread) {
        self.0.push([spread.p50, spread.p99, spread.p999]);
    }

    fn broker(&mut self, report: &BenchReport) -> Result<()> {
        let latency = report.latency_us.as_ref().context("the bench tells no latency")?;
        let at = |name: &str| latency[name].as_f64().with_context(|| format!("no {name} in {latency}"));
        self.0.push([at("p50")?, at("p99")?, at("p999")?]);
        Ok(())
    }

    /// The median of the runs.
    fn at(&self, column: usize) -> f64 {
        median(&self.0.iter().filter_map(|run| run.get(column).copied()).collect::<Vec<_>>())
    }

    fn p99(&self) -> f64 {
        self.at(1)
    }

    fn print(&self, name: &str, goal: &str) {
        let all: Vec<String> = self.0.iter().map(|run| format!("{:.0}", run[1])).collect();
        println!(
            "{name:<52} {:>7.0} {:>7.0} {:>7.0}  {goal}  (p99 of the runs: {})",
            self.at(0),
            self.at(1),
            self.at(2),
            all.join(" ")
        );
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let directory = tempfile::Builder::new()
        .prefix("highwater-latency-")
        .tempdir_in(&arguments.directory)
        .with_context(|| format!("make a directory in {}", arguments.directory.display()))?;
    let directory = directory.path();
    let kept = Kept::new(arguments.keep_memory << 20)?;
    let count = arguments.rate as usize * arguments.seconds as usize;
    let milliseconds = arguments.seconds * 1000;
    let mut runs: [Runs; 7] = Default::default();
    for pair in 1..=arguments.pairs {
        eprintln!("pair {pair} of {}", arguments.pairs);
        let [echo, one_by_one, synced, os, fsync, most, replicated] = &mut runs;
        echo.raw(ceiling::scheduled::echo(arguments.rate, count, VALUE_BYTES)?);
        let broker = FreshBroker::start(directory)?;
        os.broker(&broker.bench(&latency(&arguments, "os", arguments.rate, milliseconds))?)?;
        one_by_one.raw(ceiling::latency::append_and_sync(directory, count / 20, VALUE_BYTES)?);
        synced.raw(ceiling::scheduled::append_and_sync(directory, arguments.rate, count, VALUE_BYTES)?);
        fsync.broker(&broker.bench(&latency(&arguments, "fsync", arguments.rate, milliseconds))?)?;
        drop(broker);
        most.broker(&near_the_maximum(&arguments, directory)?)?;
        let cluster = FreshCluster::start(directory)?;
        let rate = arguments.replicated_rate;
        replicated.broker(&cluster.bench(&latency(&arguments, "fsync", rate, milliseconds))?)?;
    }
    drop(kept);
    Ok(print(&arguments, &runs))
}

/// Runs a little below what is the most.
fn near_the_maximum(arguments: &Arguments, directory: &Path) -> Result<BenchReport> {
    let broker = FreshBroker::start(directory)?;
    let mut schedule = latency(arguments, "os", TOO_FAST, MAXIMUM_MILLISECONDS);
    // Otherwise the records of the warm-up would still be on their way.
    schedule.extend(["--warm-up", "0s"].map(str::to_owned));
    let most = broker.bench(&schedule)?;
    let rate = (most.records_per_second * PART_OF_MAXIMUM) as u32;
    eprintln!("  at most {:.0} a second, now {rate}", most.records_per_second);
    drop(broker);
    let broker = FreshBroker::start(directory)?;
    broker.bench(&latency(arguments, "os", rate, arguments.milliseconds_in_memory(rate)))
}

fn latency(arguments: &Arguments, durability: &str, rate: u32, milliseconds: u32) -> Vec<String> {
    let text = format!(
        "latency --create --topic {durability} --durability {durability} --size {VALUE_BYTES} --rate {rate} --duration \
         {milliseconds}ms"
    );
    let spin = arguments.spin.then(|| "--spin".to_owned());
    text.split_whitespace().map(str::to_owned).chain(spin).collect()
}

fn print(arguments: &Arguments, runs: &[Runs; 7]) -> ExitCode {
    let [echo, one_by_one, synced, os, fsync, most, replicated] = runs;
    println!(
        "{} pairs, {} values of {VALUE_BYTES} bytes a second for {} s, microseconds since each was due, medians; {} MiB of \
         free memory kept\n",
        arguments.pairs, arguments.rate, arguments.seconds, arguments.keep_memory
    );
    println!("{:<52} {:>7} {:>7} {:>7}", "", "p50", "p99", "p99.9");
    echo.print("raw: loopback and back", "");
    one_by_one.print("raw: append + fdatasync, one after another", "");
    synced.print("raw: append, fdatasync by another thread", "");
    let mut reached = true;
    let mut check = |name: &str, runs: &Runs, goals: &[(usize, f64)]| {
        let met = goals.iter().all(|(column, most)| runs.at(*column) <= *most);
        reached &= met;
        let text: Vec<String> = goals
            .iter()
            .map(|(column, most)| format!("{} <= {most:.0}", if *column == 0 { "p50" } else { "p99" }))
            .collect();
        runs.print(name, &format!("{}{}", text.join(", "), if met { "" } else { ": MISSED" }));
    };
    check("os, produced to consumed", os, &[(0, 400.0), (1, 1500.0)]);
    let raw = 2.0 * one_by_one.p99().max(synced.p99());
    check("fsync, produced to consumed", fsync, &[(1, raw.max(2500.0))]);
    check("os, at 0.7 of the most", most, &[(1, 10_000.0)]);
    let name = format!("fsync, 3 brokers, {} a second", arguments.replicated_rate);
    check(&name, replicated, &[(1, 6000.0)]);
    ExitCode::from(u8::from(!reached))
}
