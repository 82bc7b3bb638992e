//! `bench …`: the commands that measure several steps and compare them.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::bench::{BenchLoadArgs, BenchReportArgs};
use crate::bench::sizes::Sizes;
use crate::parse;

/// `bench partitions`.
#[derive(Debug, Args)]
pub(crate) struct BenchPartitionsArgs {
    /// Topics are called like this, a dash and how many partitions they have; they are deleted afterwards
    #[arg(long, value_name = "T", default_value = "bench-partitions")]
    pub(crate) topic: String,
    /// How many partitions; one alone is always measured too
    #[arg(
        long,
        value_name = "N,…",
        default_value = "10,100,1000,10000",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub(crate) counts: Vec<u32>,
    /// How many replicas of each partition [default: 3, or as many as there are brokers]
    #[arg(long, value_name = "R")]
    pub(crate) replication: Option<u32>,
    /// os, interval(100ms) or fsync
    #[arg(long, value_name = "MODE", default_value = "os")]
    pub(crate) durability: String,
    /// How many records of each topic are measured
    #[arg(long, value_name = "N", default_value_t = 400_000, value_parser = clap::value_parser!(u64).range(1..1 << 40))]
    pub(crate) records: u64,
    /// Bytes of each value: 1KiB; 100..2000 (even between both); lognormal(1KiB,2.0) (median, and the factor around it within
    /// which two thirds are); 100:9,10KiB:1 (size:weight,…)
    #[arg(long, value_name = "SIZES", default_value = "1024", value_parser = Sizes::parse)]
    pub(crate) size: Sizes,
    /// What the load is like.
    #[command(flatten)]
    pub(crate) load: BenchLoadArgs,
    /// Bytes of a batch, the same for all; batches go to one partition after another
    #[arg(long, value_name = "BYTES", default_value = "16KiB", value_parser = parse::bytes)]
    pub(crate) batch_bytes: u64,
    /// Bytes that may be sent and not acknowledged
    #[arg(long, value_name = "BYTES", default_value = "8MiB", value_parser = parse::bytes)]
    pub(crate) in_flight: u64,
    /// Go through all counts this often; medians count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) repeat: u32,
    /// What it leaves behind.
    #[command(flatten)]
    pub(crate) report: BenchReportArgs,
}

/// `bench cold`.
#[derive(Debug, Args)]
pub(crate) struct BenchColdArgs {
    /// The topic with old data: write more than the brokers have memory, with `bench produce` or whatever you have
    #[arg(long, value_name = "T", default_value = "bench")]
    pub(crate) topic: String,
    /// The topic of the live traffic, which is made, and deleted afterwards
    #[arg(long, value_name = "T", default_value = "bench-live")]
    pub(crate) live: String,
    /// How many replicas the live topic has [default: 3, or as many as there are brokers]
    #[arg(long, value_name = "R")]
    pub(crate) replication: Option<u32>,
    /// Of the live topic: os, interval(100ms) or fsync
    #[arg(long, value_name = "MODE", default_value = "os")]
    pub(crate) durability: String,
    /// Readers of the old data, each on connections and a thread of its own; at the end of the data they start again
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) readers: u32,
    /// Bytes that may be on their way to each reader
    #[arg(long, value_name = "BYTES", default_value = "16MiB", value_parser = parse::bytes)]
    pub(crate) in_flight: u64,
    /// Live records a second
    #[arg(long, value_name = "R", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: u64,
    /// How long each step is: alone, beside the readers, alone again
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,
    /// How long to run before measuring a step
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    pub(crate) warm_up: Duration,
    /// Bytes of each live value: 1KiB; 100..2000 (even between both); lognormal(1KiB,2.0) (median, and the factor around it
    /// within which two thirds are); 100:9,10KiB:1 (size:weight,…)
    #[arg(long, value_name = "SIZES", default_value = "100", value_parser = Sizes::parse)]
    pub(crate) size: Sizes,
    /// What the live load is like.
    #[command(flatten)]
    pub(crate) load: BenchLoadArgs,
    /// Ask a broker at its HTTP address how many reads came from memory and how many did not
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) metrics: Option<String>,
    /// What it leaves behind.
    #[command(flatten)]
    pub(crate) report: BenchReportArgs,
}

/// `bench recovery`.
#[derive(Debug, Args)]
pub(crate) struct BenchRecoveryArgs {
    /// Bytes of values in the log that is recovered
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = parse::bytes)]
    pub(crate) bytes: u64,
    /// Bytes of each value
    #[arg(long, value_name = "SIZES", default_value = "1024", value_parser = Sizes::parse)]
    pub(crate) size: Sizes,
    /// Partitions that the log is spread over
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) partitions: u32,
    /// Of the log: os, interval(100ms) or fsync
    #[arg(long, value_name = "MODE", default_value = "os")]
    pub(crate) durability: String,
    /// Starts of each kind
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) starts: u32,
    /// Where the data is made and removed, best on the disk that counts [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Give up when a broker is not ready within this time
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) ready_within: Duration,
    /// What it leaves behind.
    #[command(flatten)]
    pub(crate) report: BenchReportArgs,
}

/// `bench groups`.
#[derive(Debug, Args)]
pub(crate) struct BenchGroupsArgs {
    /// The topic, which is made and deleted afterwards; groups are called like it, a dash and a number
    #[arg(long, value_name = "T", default_value = "bench-groups")]
    pub(crate) topic: String,
    /// How many partitions, more than members; a new member gets some only if others then have more than their share
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    pub(crate) partitions: u32,
    /// How many replicas of each partition [default: 3, or as many as there are brokers]
    #[arg(long, value_name = "R")]
    pub(crate) replication: Option<u32>,
    /// os, interval(100ms) or fsync
    #[arg(long, value_name = "MODE", default_value = "os")]
    pub(crate) durability: String,
    /// How many groups, each of which is given everything
    #[arg(long, value_name = "G", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) groups: u32,
    /// How many members each group has, each on connections of its own; one more joins and leaves
    #[arg(long, value_name = "M", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) members: u32,
    /// Records a second, evenly, to one partition after another
    #[arg(long, value_name = "R", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: u64,
    /// Bytes of each value: 1KiB; 100..2000 (even between both); lognormal(1KiB,2.0) (median, and the factor around it within
    /// which two thirds are); 100:9,10KiB:1 (size:weight,…)
    #[arg(long, value_name = "SIZES", default_value = "100", value_parser = Sizes::parse)]
    pub(crate) size: Sizes,
    /// How long each step is: steady, one more member in each group, without it again
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = some_time)]
    pub(crate) duration: Duration,
    /// How often each member commits
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = some_time)]
    pub(crate) commit_every: Duration,
    /// After this long without a sign of life a group takes a member for dead
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = some_time)]
    pub(crate) session_timeout: Duration,
    /// Bytes that may be on their way to each member
    #[arg(long, value_name = "BYTES", default_value = "4MiB", value_parser = parse::bytes)]
    pub(crate) in_flight: u64,
    /// Ask a broker at its HTTP address how many heartbeats it was sent
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) metrics: Option<String>,
    /// What it leaves behind.
    #[command(flatten)]
    pub(crate) report: BenchReportArgs,
}

/// A time that is not zero.
fn some_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time.is_zero() { Err("expected more than no time".to_owned()) } else { Ok(time) }
}
