//! `highwater bench …`: how fast a running broker is, from where its clients are.

mod acknowledge;
mod chart;
mod cold;
mod connections;
mod consume;
mod csv;
mod failover;
mod fanout;
mod group_board;
mod group_member;
mod group_run;
mod groups;
mod html;
mod http;
pub(crate) mod keys;
mod latency;
mod load;
mod machine;
mod own_broker;
mod partitions;
mod pauses;
pub(crate) mod payload;
mod produce;
mod random;
mod recovery;
pub(crate) mod report;
mod schedule;
mod series;
mod shape;
pub(crate) mod sizes;
mod tabular;
mod timer;
mod topic;

use crate::args::{BenchCommand, Global};
use crate::connect::connect;
use crate::output::Answer;

/// Runs one of the benches.
pub(crate) async fn run(global: &Global, command: BenchCommand) -> anyhow::Result<Answer> {
    // It has a broker of its own.
    if let BenchCommand::Recovery(args) = command {
        return recovery::run(global, args).await;
    }
    let client = connect(global).await?;
    match command {
        BenchCommand::Produce(args) => produce::run(global, &client, args).await,
        BenchCommand::Consume(args) => consume::run(global, &client, args).await,
        BenchCommand::Fanout(args) => fanout::run(global, &client, args).await,
        BenchCommand::Failover(args) => failover::run(global, &client, args).await,
        BenchCommand::Latency(args) => latency::run(global, &client, args).await,
        BenchCommand::Partitions(args) => partitions::run(global, &client, args).await,
        BenchCommand::Cold(args) => cold::run(global, &client, args).await,
        BenchCommand::Groups(args) => groups::run(global, &client, args).await,
        BenchCommand::Recovery(_) => unreachable!("handled above"),
    }
}
