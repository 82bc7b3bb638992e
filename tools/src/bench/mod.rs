//! `highwater bench …`: how fast a running broker is, from where its clients are.

mod acknowledge;
mod chart;
mod connections;
mod consume;
mod csv;
mod failover;
mod fanout;
mod html;
pub(crate) mod keys;
mod latency;
mod load;
mod machine;
mod pauses;
pub(crate) mod payload;
mod produce;
mod random;
pub(crate) mod report;
mod schedule;
mod series;
mod shape;
pub(crate) mod sizes;
mod topic;

use crate::args::{BenchCommand, Global};
use crate::connect::connect;
use crate::output::Answer;

/// Runs one of the benches.
pub(crate) async fn run(global: &Global, command: BenchCommand) -> anyhow::Result<Answer> {
    let client = connect(global).await?;
    match command {
        BenchCommand::Produce(args) => produce::run(global, &client, args).await,
        BenchCommand::Consume(args) => consume::run(global, &client, args).await,
        BenchCommand::Fanout(args) => fanout::run(global, &client, args).await,
        BenchCommand::Failover(args) => failover::run(global, &client, args).await,
        BenchCommand::Latency(args) => latency::run(global, &client, args).await,
    }
}
