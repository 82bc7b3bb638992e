//! `highwater cluster …`: the state of a cluster, and what an operator can change about it.

mod ask;
mod change;
pub(crate) mod progress;
mod status;

use crate::args::{ClusterCommand, Global};
use crate::output::Answer;

pub(crate) use ask::Cluster;

/// Runs one of the commands.
pub(crate) async fn run(global: &Global, command: ClusterCommand) -> anyhow::Result<Answer> {
    let cluster = Cluster::connect(global).await?;
    match command {
        ClusterCommand::Status => status::status(global, &cluster).await,
        ClusterCommand::Nodes => status::nodes(global, &cluster).await,
        ClusterCommand::Drain(args) => change::drain(global, &cluster, &args).await,
        ClusterCommand::Remove { node_id } => change::remove(global, &cluster, node_id).await,
        ClusterCommand::Rebalance(args) => change::rebalance(global, &cluster, &args).await,
        ClusterCommand::Throttle { bytes_per_second } => {
            change::throttle(global, &cluster, bytes_per_second).await
        }
        ClusterCommand::ElectUnclean(args) => change::elect_unclean(global, &cluster, &args).await,
    }
}
