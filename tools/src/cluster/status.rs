//! `cluster status` and `cluster nodes`.

use highwater_client::{Admin, BrokerDetails, ClusterDetails, NodeId, PartitionMove};
use serde_json::{Value, json};

use super::progress::Moving;
use super::state::describe;
use crate::args::{Global, Output};
use crate::output::{self, Answer};

/// Moves that are listed by `status`; there may be thousands.
const MOVES_SHOWN: usize = 10;
/// The state of a broker that takes part.
const ACTIVE: &str = "active";

pub(super) async fn status(global: &Global, admin: &Admin) -> anyhow::Result<Answer> {
    let state = describe(admin).await?;
    match global.output {
        Output::Json => output::json(&status_json(&state))?,
        Output::Table => output::line(status_text(&state))?,
    }
    Ok(if serves(&state) { Answer::Yes } else { Answer::No })
}

pub(super) async fn nodes(global: &Global, admin: &Admin) -> anyhow::Result<Answer> {
    let state = describe(admin).await?;
    match global.output {
        Output::Json => {
            let brokers: Vec<Value> =
                state.brokers.iter().map(|broker| broker_json(&state, broker)).collect();
            output::json(&json!({ "brokers": brokers }))?;
        }
        Output::Table => output::line(nodes_text(&state))?,
    }
    Ok(Answer::Yes)
}

/// Whether every partition can be written and read, and metadata can change.
fn serves(state: &ClusterDetails) -> bool {
    state.controller.is_some() && state.offline_count == 0
}

fn active(state: &ClusterDetails) -> usize {
    state.brokers.iter().filter(|broker| broker.state == ACTIVE).count()
}

fn status_text(state: &ClusterDetails) -> String {
    let id = state.cluster_id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let controller = match state.controller {
        None => {
            "none: nothing can be elected, created or changed until a majority of the voters runs".to_owned()
        }
        Some(node) => format!("broker {node}"),
    };
    let moving = Moving::of(state);
    let moves = if moving.is_done() {
        "none".to_owned()
    } else {
        format!("{moving}, at most {}/s on each broker", output::bytes(state.move_bytes_per_second))
    };
    let partitions = format!(
        "{}: {} without a leader, {} with a replica that is not in sync",
        output::count(state.partition_count),
        output::count(state.offline_count),
        output::count(state.under_replicated_count),
    );
    let mut text = format!(
        "cluster     {id}, version {} of its image, feature level {}\n\
         controller  {controller}; voters {}\n\
         brokers     {} of {} active\n\
         partitions  {partitions}\n\
         moves       {moves}\n\n{}",
        state.version,
        state.feature_level,
        list(&state.voters),
        active(state),
        state.brokers.len(),
        nodes_text(state),
    );
    if !state.moves.is_empty() {
        text.push_str("\n\n");
        text.push_str(&moves_text(&state.moves));
    }
    text
}

fn nodes_text(state: &ClusterDetails) -> String {
    let row = |broker: &BrokerDetails| {
        let mut roles = Vec::new();
        if broker.voter {
            roles.push("voter");
        }
        if Some(broker.node_id) == state.controller {
            roles.push("controller");
        }
        vec![
            broker.node_id.to_string(),
            broker.address.clone(),
            if broker.rack.is_empty() { "-".to_owned() } else { broker.rack.clone() },
            broker.state.clone(),
            if roles.is_empty() { "-".to_owned() } else { roles.join(", ") },
            broker.replica_count.to_string(),
            broker.leader_count.to_string(),
            broker.broker_epoch.to_string(),
        ]
    };
    output::table(
        &["NODE", "ADDRESS", "RACK", "STATE", "ROLE", "REPLICAS", "LEADS", "EPOCH"],
        &["REPLICAS", "LEADS", "EPOCH"],
        state.brokers.iter().map(row).collect(),
    )
}

/// The moves for people; long lists are cut.
pub(super) fn moves_text(moves: &[PartitionMove]) -> String {
    let row = |change: &PartitionMove| {
        vec![
            change.topic.clone(),
            change.partition.to_string(),
            list(&change.replicas),
            list(&change.adding),
            list(&change.removing),
            change.state.clone(),
            change.lag.map_or("-".to_owned(), output::count),
        ]
    };
    let mut text = output::table(
        &["TOPIC", "PARTITION", "REPLICAS", "TO", "FROM", "STATE", "LAG"],
        &["LAG"],
        moves.iter().take(MOVES_SHOWN).map(row).collect(),
    );
    if moves.len() > MOVES_SHOWN {
        text.push_str(&format!("\nand {} more; --output json names them all", moves.len() - MOVES_SHOWN));
    }
    text
}

fn status_json(state: &ClusterDetails) -> Value {
    json!({
        "cluster_id": state.cluster_id.map(|id| id.to_string()),
        "version": state.version,
        "feature_level": state.feature_level,
        "controller": state.controller.map(NodeId::get),
        "voters": ids(&state.voters),
        "brokers": state.brokers.iter().map(|broker| broker_json(state, broker)).collect::<Vec<_>>(),
        "partitions": state.partition_count,
        "partitions_offline": state.offline_count,
        "partitions_under_replicated": state.under_replicated_count,
        "move_bytes_per_second": state.move_bytes_per_second,
        "moves": moves_json(&state.moves),
        "serves": serves(state),
    })
}

fn broker_json(state: &ClusterDetails, broker: &BrokerDetails) -> Value {
    json!({
        "node_id": broker.node_id.get(),
        "address": broker.address,
        "rack": broker.rack,
        "state": broker.state,
        "voter": broker.voter,
        "controller": Some(broker.node_id) == state.controller,
        "replicas": broker.replica_count,
        "leaders": broker.leader_count,
        "broker_epoch": broker.broker_epoch.get(),
        "directory_id": broker.directory_id.to_string(),
    })
}

/// The moves for programs, all of them.
pub(super) fn moves_json(moves: &[PartitionMove]) -> Value {
    let one = |change: &PartitionMove| {
        json!({
            "topic": change.topic,
            "partition": change.partition.get(),
            "replicas": ids(&change.replicas),
            "adding": ids(&change.adding),
            "removing": ids(&change.removing),
            "state": change.state,
            "lag": change.lag,
        })
    };
    moves.iter().map(one).collect()
}

fn ids(nodes: &[NodeId]) -> Vec<u32> {
    nodes.iter().map(|node| node.get()).collect()
}

fn list(nodes: &[NodeId]) -> String {
    if nodes.is_empty() {
        return "-".to_owned();
    }
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ClusterDetails {
        let broker = |node: u32, state: &str| {
            let mut broker = BrokerDetails::default();
            broker.node_id = NodeId(node);
            broker.state = state.to_owned();
            broker.voter = true;
            broker
        };
        let mut state = ClusterDetails::default();
        state.controller = Some(NodeId(2));
        state.voters = vec![NodeId(1), NodeId(2), NodeId(3)];
        state.brokers = vec![broker(1, ACTIVE), broker(2, ACTIVE), broker(3, "fenced")];
        state.partition_count = 4;
        state.under_replicated_count = 4;
        state
    }

    #[test]
    fn a_broker_that_is_away_is_seen_and_the_cluster_serves() {
        let state = state();
        let text = status_text(&state);
        for part in
            ["broker 2; voters 1,2,3", "2 of 3 active", "4 with a replica that is not in sync", "fenced"]
        {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert!(serves(&state));
        assert_eq!(status_json(&state)["brokers"][1]["controller"], true);
    }

    #[test]
    fn without_controller_or_leader_it_does_not_serve() {
        let (mut leaderless, mut headless) = (state(), state());
        leaderless.offline_count = 1;
        headless.controller = None;
        assert!(!serves(&leaderless) && !serves(&headless));
        assert!(status_text(&headless).contains("none: nothing can be elected"));
    }

    #[test]
    fn long_lists_of_moves_are_cut_for_people_only() {
        let mut one = PartitionMove::default();
        one.topic = "orders".to_owned();
        one.adding = vec![NodeId(4)];
        let moves = vec![one; 25];
        let text = moves_text(&moves);
        assert!(text.contains("and 15 more") && text.contains("orders"), "{text}");
        assert_eq!(moves_json(&moves).as_array().unwrap().len(), 25);
    }
}
