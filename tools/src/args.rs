//! The command line: every command, flag and default, as `--help` shows them.

mod bench;
mod bench_steps;
mod cluster;
mod group;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::parse::{self, From, Separator};

pub(crate) use bench::{
    BenchCommand, BenchConsumeArgs, BenchFailoverArgs, BenchFanoutArgs, BenchLatencyArgs, BenchLoadArgs,
    BenchProduceArgs, BenchReportArgs, BenchTopicArgs,
};
pub(crate) use bench_steps::{BenchColdArgs, BenchGroupsArgs, BenchPartitionsArgs, BenchRecoveryArgs};
pub(crate) use cluster::{ClusterCommand, DrainArgs, ElectUncleanArgs, RebalanceArgs, VerifyArgs, WaitArgs};
pub(crate) use group::{GroupCommand, GroupResetArgs};

/// A persistent message broker: nothing below the high watermark is ever lost.
#[derive(Debug, Parser)]
#[command(
    name = "highwater",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 done, 1 the answer is no, 2 failed (the reason is on standard error).\n\
                  Start here: highwater quickstart"
)]
pub(crate) struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Brokers to connect to first
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT,…",
        env = "HIGHWATER_BOOTSTRAP",
        hide_env_values = true,
        default_value = "127.0.0.1:9470",
        value_delimiter = ',',
        help_heading = "Global options"
    )]
    pub(crate) bootstrap: Vec<String>,
    /// How to print results: a table for people, JSON for programs
    #[arg(long, global = true, value_enum, default_value_t = Output::Table, help_heading = "Global options")]
    pub(crate) output: Output,
    /// Give up when no broker answers for this long
    #[arg(
        long,
        global = true,
        value_name = "DURATION",
        default_value = "10s",
        value_parser = humantime::parse_duration,
        help_heading = "Global options"
    )]
    pub(crate) timeout: Duration,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a broker
    Broker(Box<crate::broker::BrokerArgs>),
    /// See it work: three brokers, real input, a leader killed in the middle, everything verified
    Quickstart(QuickstartArgs),
    /// Make, list, describe, change and remove topics
    #[command(subcommand)]
    Topic(TopicCommand),
    /// Send lines to a topic, one record a line
    Produce(ProduceArgs),
    /// Print the records of a topic, one a line
    Consume(ConsumeArgs),
    /// Look at consumer groups, move their positions, remove them
    #[command(subcommand)]
    Group(GroupCommand),
    /// Look at a cluster and change it: status, nodes, drain, remove, rebalance
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Compare the replicas of a topic with each other, while everything runs
    Verify(VerifyArgs),
    /// Look into a data directory while no broker runs in it
    #[command(subcommand)]
    Log(LogCommand),
    /// Measure a running broker
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// `quickstart`.
#[derive(Debug, Args)]
pub(crate) struct QuickstartArgs {
    /// End when everything is verified, instead of running until Ctrl-C
    #[arg(long)]
    pub(crate) exit: bool,
    /// Keep the brokers' data here [default: a temporary directory, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Send this file, one record a line [default: live telemetry of this host from /proc]
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
}

/// `topic …`.
#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Make a topic
    Create(TopicCreateArgs),
    /// List all topics
    List,
    /// Show settings, offsets and state of topics
    Describe {
        /// Which topics [default: all]
        #[arg(value_name = "TOPIC")]
        names: Vec<String>,
    },
    /// Change settings of a topic or add partitions
    Alter(TopicAlterArgs),
    /// Remove a topic and its records
    Delete {
        /// Which topics
        #[arg(value_name = "TOPIC", required = true)]
        names: Vec<String>,
        /// A topic that does not exist is no reason to exit with 1
        #[arg(long)]
        if_exists: bool,
    },
}

/// `topic create`.
#[derive(Debug, Args)]
pub(crate) struct TopicCreateArgs {
    /// Name: letters, digits, '.', '_' and '-'
    #[arg(value_name = "TOPIC")]
    pub(crate) name: String,
    /// How many partitions [default: the broker's default]
    #[arg(long, value_name = "N")]
    pub(crate) partitions: Option<u32>,
    /// How many replicas of each partition [default: 3, or as many as there are brokers]
    #[arg(long, value_name = "R")]
    pub(crate) replication: Option<u32>,
    /// A setting, such as durability=fsync, retention_age=7d or retention_bytes=10GiB; may be given again
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::key_value)]
    pub(crate) config: Vec<(String, String)>,
    /// A topic of this name that exists already is no reason to exit with 1
    #[arg(long)]
    pub(crate) if_not_exists: bool,
}

/// `topic alter`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub(crate) struct TopicAlterArgs {
    /// Which topic
    #[arg(value_name = "TOPIC")]
    pub(crate) name: String,
    /// Set a setting; may be given again
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::key_value, group = "change")]
    pub(crate) config: Vec<(String, String)>,
    /// Return a setting to the broker's default; may be given again
    #[arg(long, value_name = "KEY", group = "change")]
    pub(crate) unset: Vec<String>,
    /// The new number of partitions, larger than the present one: keys then map to other partitions
    #[arg(long, value_name = "N", group = "change")]
    pub(crate) partitions: Option<u32>,
}

/// When the broker answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcksArg {
    /// Synchronous: when every in-sync replica has it; the only one with which nothing acknowledged is lost
    All,
    /// Semi-synchronous: when the leader has it as durably as the topic asks; followers come after
    Leader,
    /// Asynchronous: when the leader has accepted it into its queue
    None,
}

/// How batches are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompressionArg {
    /// Not at all
    None,
    /// Fast
    Lz4,
    /// Small; needs a build with the zstd feature
    Zstd,
}

/// `produce`.
#[derive(Debug, Args)]
pub(crate) struct ProduceArgs {
    /// Which topic
    #[arg(value_name = "TOPIC")]
    pub(crate) topic: String,
    /// Read this file [default: standard input]
    #[arg(long, short, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    /// What comes before the first S in a line is the record's key (a line without S has no key); \t is a tab
    #[arg(long, value_name = "S", value_parser = parse::separator)]
    pub(crate) key_separator: Option<Separator>,
    /// Send everything to this partition [default: by key, else in turn]
    #[arg(long, short, value_name = "P")]
    pub(crate) partition: Option<u32>,
    /// When a record counts as acknowledged
    #[arg(long, value_enum, default_value_t = AcksArg::All)]
    pub(crate) acks: AcksArg,
    /// How batches are compressed
    #[arg(long, value_enum, default_value_t = CompressionArg::None)]
    pub(crate) compression: CompressionArg,
    /// Wait this long for more lines before a batch is sent
    #[arg(long, value_name = "DURATION", default_value = "0ms", value_parser = humantime::parse_duration)]
    pub(crate) linger: Duration,
}

/// How `consume` prints a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The value and a newline
    Value,
    /// The key, the separator, the value and a newline; without a key only the value
    KeyValue,
    /// An object a line with partition, offset, timestamp, key, value and headers; bytes that are not UTF-8 as base64
    Json,
}

/// `consume`.
#[derive(Debug, Args)]
pub(crate) struct ConsumeArgs {
    /// Which topic
    #[arg(value_name = "TOPIC")]
    pub(crate) topic: String,
    /// Share the topic with the other consumers of this group, and go on where it was; a record that was printed is
    /// committed
    #[arg(long, short, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    /// With --group: after this long without a sign of life others go on with what this one had
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "10s",
        value_parser = humantime::parse_duration,
        requires = "group"
    )]
    pub(crate) session_timeout: Duration,
    /// Where to start (a group: where it has not been yet): earliest, latest, an offset, or @ and a time (RFC 3339, or
    /// milliseconds since 1970)
    #[arg(long, value_name = "WHERE", default_value = "earliest", value_parser = parse::from)]
    pub(crate) from: From,
    /// Only this partition; may be given again [default: all]
    #[arg(long, short, value_name = "P", conflicts_with = "group")]
    pub(crate) partition: Vec<u32>,
    /// Stop after this many records
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Stop at what the high watermarks are when the command starts, instead of waiting for more; a group: when all of it
    /// is committed, by whatever member
    #[arg(long)]
    pub(crate) exit_at_end: bool,
    /// Go on after records that cannot be read because their bytes are corrupt; the exit code is 1 then
    #[arg(long)]
    pub(crate) skip_corrupt: bool,
    /// How to print a record
    #[arg(long, value_enum, default_value_t = Format::Value)]
    pub(crate) format: Format,
    /// What stands between key and value with --format key-value; \t is a tab
    #[arg(long, value_name = "S", default_value = "\\t", value_parser = parse::separator)]
    pub(crate) key_separator: Separator,
}

/// `log …`.
#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Print the batches, or with --records the records, of a data directory
    Dump(LogDumpArgs),
    /// Check every byte of a data directory; exits with 1 when something is wrong
    Verify(LogPathArgs),
}

/// Which data directory, which part of it.
#[derive(Debug, Args)]
pub(crate) struct LogPathArgs {
    /// The broker's data directory, one partition's directory in it, or one segment file
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
}

/// `log dump`.
#[derive(Debug, Args)]
pub(crate) struct LogDumpArgs {
    /// Which files.
    #[command(flatten)]
    pub(crate) path: LogPathArgs,
    /// Print every record instead of every batch
    #[arg(long)]
    pub(crate) records: bool,
    /// Start at this offset
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    pub(crate) from: u64,
    /// Stop after this many batches or records
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) count: Option<u64>,
}
