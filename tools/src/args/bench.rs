//! `bench …`: its commands and flags.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::bench_steps::{BenchColdArgs, BenchGroupsArgs, BenchPartitionsArgs, BenchRecoveryArgs};
use super::{AcksArg, CompressionArg};
use crate::bench::keys::Skew;
use crate::bench::payload::PRODUCERS_MOST;
use crate::bench::sizes::Sizes;
use crate::parse;

/// `bench …`.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// How fast records go in, and how long until they are acknowledged
    Produce(BenchProduceArgs),
    /// How fast records come out; checks every byte of what `bench produce` wrote
    Consume(BenchConsumeArgs),
    /// How long from the intended moment of sending until a consumer has the record
    Latency(BenchLatencyArgs),
    /// How fast records come out for many consumers of the same ones, each on a connection of its own
    Fanout(BenchFanoutArgs),
    /// Which pauses producers and consumers see while you stop, kill or cut off brokers; checks that nothing is lost
    Failover(BenchFailoverArgs),
    /// How fast topics with many partitions are, as a share of the speed of one; makes and deletes them
    Partitions(BenchPartitionsArgs),
    /// What reading old data does to the latency of live traffic, and how fast old data is read
    Cold(BenchColdArgs),
    /// What groups deliver at a steady rate, and what it costs when a member joins and leaves
    Groups(BenchGroupsArgs),
    /// How long a broker takes to be ready, empty and after SIGKILL with a log; starts brokers of its own
    Recovery(BenchRecoveryArgs),
}

/// The topic of a bench, and how to make it.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchTopicArgs {
    /// Which topic
    #[arg(long, value_name = "T", default_value = "bench")]
    pub(crate) topic: String,
    /// Make the topic if it does not exist
    #[arg(long)]
    pub(crate) create: bool,
    /// With --create: how many partitions
    #[arg(long, value_name = "N", default_value_t = 1, requires = "create")]
    pub(crate) partitions: u32,
    /// With --create: how many replicas of each partition [default: 3, or as many as there are brokers]
    #[arg(long, value_name = "R", requires = "create")]
    pub(crate) replication: Option<u32>,
    /// With --create: os, interval(100ms) or fsync
    #[arg(long, value_name = "MODE", default_value = "fsync", requires = "create")]
    pub(crate) durability: String,
}

/// What a bench leaves behind.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchReportArgs {
    /// Write a report with charts to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write rates and latencies over time to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
}

/// The shape of a load, beside its size and speed.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchLoadArgs {
    /// Bits of information in each byte of the values, which says how far they compress: 8 is noise, 0 all the same
    #[arg(long, value_name = "BITS", default_value_t = 8, value_parser = clap::value_parser!(u8).range(0..=8))]
    pub(crate) entropy: u8,
    /// Give records one of this many different keys [default: no keys]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) keys: Option<u64>,
    /// With --keys: uniform, or zipf(S): the key of rank R comes as often as 1/R^S, such as zipf(1.1)
    #[arg(long, value_name = "SKEW", default_value = "uniform", requires = "keys", value_parser = Skew::parse)]
    pub(crate) key_skew: Skew,
    /// Producers, each on connections of its own, that share the load
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(PRODUCERS_MOST)))]
    pub(crate) connections: u32,
    /// With a rate: wait for each moment by looking again and again, not asleep. Keeps a core busy; how long a sleeping
    /// thread takes to wake is not in the latencies then
    #[arg(long)]
    pub(crate) spin: bool,
    /// When a record counts as acknowledged
    #[arg(long, value_enum, default_value_t = AcksArg::All)]
    pub(crate) acks: AcksArg,
    /// Wait this long for more records before a batch is sent
    #[arg(long, value_name = "DURATION", default_value = "0ms", value_parser = humantime::parse_duration)]
    pub(crate) linger: Duration,
    /// How batches are compressed
    #[arg(long, value_enum, default_value_t = CompressionArg::None)]
    pub(crate) compression: CompressionArg,
}

/// `bench produce`.
#[derive(Debug, Args)]
pub(crate) struct BenchProduceArgs {
    /// Which topic.
    #[command(flatten)]
    pub(crate) topic: BenchTopicArgs,
    /// How many records
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..1 << 40))]
    pub(crate) records: u64,
    /// Bytes of each value: 1KiB; 100..2000 (even between both); lognormal(1KiB,2.0) (median, and the factor around it within
    /// which two thirds are); 100:9,10KiB:1 (size:weight,…)
    #[arg(long, value_name = "SIZES", default_value = "1024", value_parser = Sizes::parse)]
    pub(crate) size: Sizes,
    /// What the load is like.
    #[command(flatten)]
    pub(crate) load: BenchLoadArgs,
    /// Send like this before it is measured, and wait for the acknowledgements
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) warm_up: Duration,
    /// Bytes of a batch
    #[arg(long, value_name = "BYTES", default_value = "256KiB", value_parser = parse::bytes)]
    pub(crate) batch_bytes: u64,
    /// Bytes that may be sent and not acknowledged
    #[arg(long, value_name = "BYTES", default_value = "8MiB", value_parser = parse::bytes)]
    pub(crate) in_flight: u64,
    /// Send this many records a second, evenly, and count latency from when each was due (open loop)
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    /// One send for each record, instead of one call for each batch
    #[arg(long)]
    pub(crate) send_each: bool,
    /// Send without identity and sequences, to see what they cost
    #[arg(long)]
    pub(crate) no_idempotence: bool,
    /// Run this often; the run with the median throughput counts, and the spread is told
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) repeat: u32,
    /// What it leaves behind.
    #[command(flatten)]
    pub(crate) report: BenchReportArgs,
}

/// `bench consume`.
#[derive(Debug, Args)]
pub(crate) struct BenchConsumeArgs {
    /// Which topic
    #[arg(long, value_name = "T", default_value = "bench")]
    pub(crate) topic: String,
    /// How many records [default: all that are there]
    #[arg(long, value_name = "N")]
    pub(crate) records: Option<u64>,
    /// Check the bytes of each value against this, as it was given to `bench produce` [default: take them as they come]
    #[arg(long, value_name = "SIZES", value_parser = Sizes::parse)]
    pub(crate) size: Option<Sizes>,
    /// Bytes that may be on their way to the consumer
    #[arg(long, value_name = "BYTES", default_value = "16MiB", value_parser = parse::bytes)]
    pub(crate) in_flight: u64,
    /// Do not check the payloads
    #[arg(long)]
    pub(crate) no_check: bool,
    /// Run this often; the run with the median throughput counts, and the spread is told
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) repeat: u32,
    /// What it leaves behind.
    #[command(flatten)]
    pub(crate) report: BenchReportArgs,
}

/// `bench fanout`.
#[derive(Debug, Args)]
pub(crate) struct BenchFanoutArgs {
    /// Which topic; write it with `bench produce`
    #[arg(long, value_name = "T", default_value = "bench")]
    pub(crate) topic: String,
    /// How many consumers
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) consumers: u32,
    /// How many records each of them takes [default: all that are there]
    #[arg(long, value_name = "N")]
    pub(crate) records: Option<u64>,
    /// Bytes that may be on their way to each consumer
    #[arg(long, value_name = "BYTES", default_value = "256KiB", value_parser = parse::bytes)]
    pub(crate) in_flight: u64,
    /// Run this often; the run with the median throughput counts, and the spread is told
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) repeat: u32,
    /// What it leaves behind.
    #[command(flatten)]
    pub(crate) report: BenchReportArgs,
}

/// `bench latency`.
#[derive(Debug, Args)]
pub(crate) struct BenchLatencyArgs {
    /// Which topic.
    #[command(flatten)]
    pub(crate) topic: BenchTopicArgs,
    /// Records a second
    #[arg(long, value_name = "R", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: u64,
    /// How long to measure
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,
    /// How long to run before measuring
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    pub(crate) warm_up: Duration,
    /// Bytes of each value: 1KiB; 100..2000 (even between both); lognormal(1KiB,2.0) (median, and the factor around it within
    /// which two thirds are); 100:9,10KiB:1 (size:weight,…)
    #[arg(long, value_name = "SIZES", default_value = "100", value_parser = Sizes::parse)]
    pub(crate) size: Sizes,
    /// What the load is like.
    #[command(flatten)]
    pub(crate) load: BenchLoadArgs,
    /// Run this often; the run with the median throughput counts, and the spread is told
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) repeat: u32,
    /// What it leaves behind.
    #[command(flatten)]
    pub(crate) report: BenchReportArgs,
}

/// `bench failover`.
#[derive(Debug, Args)]
pub(crate) struct BenchFailoverArgs {
    /// Which topic.
    #[command(flatten)]
    pub(crate) topic: BenchTopicArgs,
    /// Records a second
    #[arg(long, value_name = "R", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: u64,
    /// How long to send
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,
    /// Bytes of each value, 16 at least
    #[arg(long, value_name = "B", default_value_t = 100, value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub(crate) size: u32,
    /// What counts as a pause
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = humantime::parse_duration)]
    pub(crate) pause: Duration,
    /// What it leaves behind.
    #[command(flatten)]
    pub(crate) report: BenchReportArgs,
}
