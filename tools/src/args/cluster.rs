//! Flags of `cluster …` and `verify`.

use std::time::Duration;

use clap::{Args, Subcommand};

use crate::parse;

/// `cluster …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show how the cluster is; exits with 1 while it cannot serve all of its partitions
    Status,
    /// List the brokers: where they are, their state, what they hold and lead
    Nodes,
    /// Move everything off a broker, which keeps running: before it is stopped for good
    Drain(DrainArgs),
    /// Forget a broker that holds nothing and does not run
    Remove {
        /// Which broker
        #[arg(value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
        node_id: u32,
    },
    /// Spread replicas and leaderships evenly, with as few moves as will do
    Rebalance(RebalanceArgs),
    /// Set how many bytes a second replicas on the move may fetch, on each broker
    Throttle {
        /// Such as 50MiB
        #[arg(value_name = "BYTES", value_parser = parse::bytes)]
        bytes_per_second: u64,
    },
    /// Make a replica the leader that may lack committed records: the last resort, says first what is lost
    ElectUnclean(ElectUncleanArgs),
}

/// Whether to wait until moves are done.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct WaitArgs {
    /// Wait until everything has moved, and show progress [default: on a terminal]
    #[arg(long)]
    pub(crate) wait: bool,
    /// Return at once; the moves go on by themselves
    #[arg(long, conflicts_with = "wait")]
    pub(crate) no_wait: bool,
    /// Wait this long at most; then exit with 1, and the moves go on
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    pub(crate) wait_max: Duration,
}

/// `cluster drain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// Which broker
    #[arg(value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) node_id: u32,
    /// Take the broker back into service
    #[arg(long)]
    pub(crate) undo: bool,
    /// Whether to wait.
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// `cluster rebalance`.
#[derive(Debug, Args)]
pub(crate) struct RebalanceArgs {
    /// Show what would move, and move nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Stop moving: what is not complete stays where it was
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) cancel: bool,
    /// Whether to wait.
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// `cluster elect-unclean`.
#[derive(Debug, Args)]
pub(crate) struct ElectUncleanArgs {
    /// Which topic
    #[arg(value_name = "TOPIC")]
    pub(crate) topic: String,
    /// Which partition of it
    #[arg(value_name = "PARTITION")]
    pub(crate) partition: u32,
    /// The broker whose replica is to lead
    #[arg(value_name = "NODE", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) node_id: u32,
    /// Do it: without this flag it is only said what would be lost
    #[arg(long)]
    pub(crate) accept_loss: bool,
}

/// `verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Which topic
    #[arg(value_name = "TOPIC")]
    pub(crate) topic: String,
    /// Only this partition; may be given again [default: all]
    #[arg(long, short, value_name = "P")]
    pub(crate) partition: Vec<u32>,
}
