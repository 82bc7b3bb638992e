//! `highwater cluster …`: the state of a cluster, and what an operator can change about it.

mod change;
mod progress;
mod state;
mod status;

use crate::args::{ClusterCommand, Global};
use crate::connect::connect;
use crate::output::Answer;

/// Runs one of the commands.
pub(crate) async fn run(global: &Global, command: ClusterCommand) -> anyhow::Result<Answer> {
    let client = connect(global).await?;
    let admin = client.admin();
    match command {
        ClusterCommand::Status => status::status(global, &admin).await,
        ClusterCommand::Nodes => status::nodes(global, &admin).await,
        ClusterCommand::Drain(args) => change::drain(global, &admin, &args).await,
        ClusterCommand::Remove { node_id } => change::remove(global, &admin, node_id).await,
        ClusterCommand::Rebalance(args) => change::rebalance(global, &admin, &args).await,
        ClusterCommand::Throttle { bytes_per_second } => {
            change::throttle(global, &admin, bytes_per_second).await
        }
        ClusterCommand::ElectUnclean(args) => change::elect_unclean(global, &admin, &args).await,
    }
}
