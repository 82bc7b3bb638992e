//! What many partitions cost: speed beside that of one, processor time of a broker with nothing to do, and its start.
//!
//! ```text
//! cargo run --release -p highwater-benches --bin partitions -- --passes 5
//! ```
//!
//! Ends with 1 when a goal is missed.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its findings")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use highwater_benches::highwater::FreshBroker;
use highwater_benches::memory::{KEPT_BYTES_MAX, Kept};
use highwater_benches::sample::median;
use serde::Deserialize;

/// Partitions of an `os` topic, and what share of the speed of one partition they have to reach.
const MANY: (u32, f64) = (10_000, 0.7);
/// Partitions of a `fsync` topic, and their share with as many bytes in flight.
const SYNCED: (u32, f64) = (1_000, 0.5);
/// Bytes in flight on each of the latter.
const IN_FLIGHT_EACH: u32 = 64 << 10;
/// The part of a core that a broker with many partitions and nothing to do may take.
const IDLE_CORE_MAX: f64 = 0.03;
const START_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, Parser)]
#[command(about = "What many partitions cost: their speed, a broker with nothing to do, and its start")]
struct Arguments {
    /// How often everything is run; medians count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    passes: u32,
    /// Records of each pass with `os`
    #[arg(long, default_value_t = 400_000)]
    records: u32,
    /// Records of each pass with `fsync`
    #[arg(long, default_value_t = 400_000)]
    synced_records: u32,
    /// Seconds for which a broker has nothing to do
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    idle_seconds: u64,
    /// MiB of free memory that a virtual machine does not give back to its host meanwhile; 0: whatever it does
    #[arg(long, default_value_t = KEPT_BYTES_MAX >> 20, value_parser = clap::value_parser!(u64).range(..=KEPT_BYTES_MAX >> 20))]
    keep_memory: u64,
    /// Where the data is made and removed
    #[arg(long, default_value = ".")]
    directory: PathBuf,
}

/// What `bench partitions` prints, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Passes {
    runs: Vec<Vec<Step>>,
}

#[derive(Debug, Deserialize)]
struct Step {
    produce_megabytes_per_second: f64,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let kept = Kept::new(arguments.keep_memory << 20)?;
    println!(
        "{} passes, values of 1024 bytes, medians; {} MiB of free memory kept\n",
        arguments.passes, arguments.keep_memory
    );
    let mut reached = share("os", MANY, &arguments)?;
    reached &= share("fsync", SYNCED, &arguments)?;
    drop(kept);
    reached &= idle(&arguments)?;
    Ok(ExitCode::from(u8::from(!reached)))
}

/// Produces to one partition and to many in turn, each pass to a broker of its own. Returns whether the goal is reached.
fn share(durability: &str, (partitions, goal): (u32, f64), arguments: &Arguments) -> Result<bool> {
    let (mut one, mut many, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    let counts = partitions.to_string();
    let (records, in_flight) = match durability {
        "os" => (arguments.records, None),
        _ => (arguments.synced_records, Some((partitions * IN_FLIGHT_EACH).to_string())),
    };
    let records = records.to_string();
    for pass in 1..=arguments.passes {
        eprintln!("{durability}, {partitions} partitions, pass {pass} of {}", arguments.passes);
        let broker = FreshBroker::start(&arguments.directory)?;
        let mut command =
            vec!["partitions", "--counts", &counts, "--durability", durability, "--repeat", "1"];
        command.extend(["--size", "1024", "--records", &records]);
        command.extend(in_flight.iter().flat_map(|bytes| ["--in-flight", bytes]));
        let report: Passes = broker.bench_as(&command)?;
        let steps = report.runs.first().context("no pass is in the report")?;
        let [of_one, of_many] = steps.as_slice() else {
            anyhow::bail!("the report has {} steps, not 2", steps.len());
        };
        one.push(of_one.produce_megabytes_per_second);
        many.push(of_many.produce_megabytes_per_second);
        shares.push(of_many.produce_megabytes_per_second / of_one.produce_megabytes_per_second);
    }
    let name = format!("produce to {partitions} partitions, {durability}, beside one");
    let shown: Vec<_> = shares.iter().map(|share| format!("{share:.2}")).collect();
    println!(
        "{name:<52} {:.2} ({:.0} of {:.0} MB/s)  goal >= {goal}  passes: {}",
        median(&shares),
        median(&many),
        median(&one),
        shown.join(" ")
    );
    Ok(median(&shares) >= goal)
}

/// Makes a topic with many partitions that all have records, and looks at a broker that has nothing to do but to keep and
/// to open them. Returns whether the goals are reached.
fn idle(arguments: &Arguments) -> Result<bool> {
    let (partitions, _) = MANY;
    let mut broker = FreshBroker::start(&arguments.directory)?;
    let (count, records) = (partitions.to_string(), (10 * partitions).to_string());
    let mut command = vec!["produce", "--create", "--topic", "many", "--durability", "os", "--size", "100"];
    command.extend(["--partitions", &count, "--records", &records, "--batch-bytes", "1024"]);
    let report = broker.bench(&command)?;
    ensure!(report.records.to_string() == records, "{} of {records} records went in", report.records);
    let (mut cores, mut starts) = (Vec::new(), Vec::new());
    for pass in 1..=arguments.passes {
        eprintln!("start and idle, pass {pass} of {}", arguments.passes);
        broker.process.kill9()?;
        let begun = Instant::now();
        broker.process.start_again()?;
        broker.ready()?;
        starts.push(begun.elapsed());
        let (before, since) = (broker.process.usage()?.cpu, Instant::now());
        pass_time(Duration::from_secs(arguments.idle_seconds));
        let spent = broker.process.usage()?.cpu - before;
        cores.push(spent.as_secs_f64() / since.elapsed().as_secs_f64());
    }
    let shown: Vec<_> = cores.iter().map(|part| format!("{:.1}", part * 100.0)).collect();
    println!(
        "{:<52} {:.1} % of a core  goal < {:.0} %  passes: {}",
        format!("idle with {partitions} partitions"),
        median(&cores) * 100.0,
        IDLE_CORE_MAX * 100.0,
        shown.join(" ")
    );
    let longest = starts.iter().max().copied().unwrap_or_default();
    let shown: Vec<_> = starts.iter().map(|took| format!("{:.0}", took.as_secs_f64() * 1e3)).collect();
    println!(
        "{:<52} {:.0} ms at most  goal < {} ms  starts: {}",
        format!("ready after kill -9 with {partitions} partitions"),
        longest.as_secs_f64() * 1e3,
        START_MAX.as_millis(),
        shown.join(" ")
    );
    Ok(median(&cores) < IDLE_CORE_MAX && longest < START_MAX)
}

#[expect(clippy::disallowed_methods, reason = "what is measured is that nothing happens for so long")]
fn pass_time(duration: Duration) {
    std::thread::sleep(duration);
}
