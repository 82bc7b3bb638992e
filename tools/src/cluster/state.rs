//! The state of a cluster as the commands need it.

use std::collections::BTreeSet;

use anyhow::Context;
use highwater_client::{Admin, ClusterDetails, PartitionMove, PartitionState, TopicDetails};

/// Topics whose leaders are asked how far new replicas are; the progress of more is not known.
const TOPICS_ASKED_MAX: usize = 32;

/// Brokers, controller and moves, with how far new replicas are as far as their leaders tell.
///
/// # Errors
/// When no broker answers.
pub(super) async fn describe(admin: &Admin) -> anyhow::Result<ClusterDetails> {
    let mut state = admin.describe_cluster().await.context("ask for the state of the cluster")?;
    let copying = state.moves.iter().filter(|change| change.lag.is_none() && is_copying(change));
    let topics: BTreeSet<String> =
        copying.map(|change| change.topic.clone()).take(TOPICS_ASKED_MAX).collect();
    if topics.is_empty() {
        return Ok(state);
    }
    let topics: Vec<String> = topics.into_iter().collect();
    // A topic may be deleted meanwhile: then nothing is said about the others either, this time.
    let told = admin.describe_topics(&topics).await.unwrap_or_default();
    for change in state.moves.iter_mut().filter(|change| change.lag.is_none() && is_copying(change)) {
        change.lag =
            told.iter().find(|topic| topic.name == change.topic).and_then(|topic| lag(topic, change));
    }
    Ok(state)
}

/// Whether new replicas are being copied, rather than waiting for their turn.
pub(super) fn is_copying(change: &PartitionMove) -> bool {
    change.state == "copying"
}

/// Offsets that the slowest new replica still lacks.
fn lag(topic: &TopicDetails, change: &PartitionMove) -> Option<u64> {
    let same = |partition: &&PartitionState| partition.metadata.partition == change.partition;
    let partition = topic.partitions.iter().find(same).filter(|partition| partition.error.is_none())?;
    let end = |node| {
        let replica = partition.replicas.iter().find(|replica| replica.node_id == node);
        replica.map_or(0, |replica| replica.log_end.get())
    };
    let slowest = change.adding.iter().map(|&node| end(node).max(partition.log_start.get())).min()?;
    Some(partition.log_end.get().saturating_sub(slowest))
}
