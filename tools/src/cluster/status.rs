//! `cluster status` and `cluster nodes`.

use highwater_protocol::messages::{BrokerDescription, DescribeClusterReply, MoveDescription};
use serde_json::{Value, json};

use super::Cluster;
use super::progress::Moving;
use crate::args::{Global, Output};
use crate::output::{self, Answer};

/// Moves that are listed by `status`; there may be thousands.
const MOVES_SHOWN: usize = 10;
/// The state of a broker that takes part.
const ACTIVE: &str = "active";

pub(super) async fn status(global: &Global, cluster: &Cluster) -> anyhow::Result<Answer> {
    let state = cluster.describe().await?;
    match global.output {
        Output::Json => output::json(&status_json(&state))?,
        Output::Table => output::line(status_text(&state))?,
    }
    Ok(if serves(&state) { Answer::Yes } else { Answer::No })
}

pub(super) async fn nodes(global: &Global, cluster: &Cluster) -> anyhow::Result<Answer> {
    let state = cluster.describe().await?;
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
fn serves(state: &DescribeClusterReply) -> bool {
    state.controller != 0 && state.partitions_offline == 0
}

fn active(state: &DescribeClusterReply) -> usize {
    state.brokers.iter().filter(|broker| broker.state == ACTIVE).count()
}

fn status_text(state: &DescribeClusterReply) -> String {
    let id =
        state.cluster_id.map(highwater_client::ClusterId::from).map_or("-".to_owned(), |id| id.to_string());
    let controller = match state.controller {
        0 => {
            "none: nothing can be elected, created or changed until a majority of the voters runs".to_owned()
        }
        node => format!("broker {node}"),
    };
    let moving = Moving::of(state);
    let moves = if moving.is_done() {
        "none".to_owned()
    } else {
        format!("{moving}, at most {}/s on each broker", output::bytes(state.move_bytes_per_second))
    };
    let partitions = format!(
        "{}: {} without a leader, {} with a replica that is not in sync",
        output::count(state.partitions),
        output::count(state.partitions_offline),
        output::count(state.partitions_under_replicated),
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

fn nodes_text(state: &DescribeClusterReply) -> String {
    let row = |broker: &BrokerDescription| {
        let mut roles = Vec::new();
        if broker.voter {
            roles.push("voter");
        }
        if broker.node_id == state.controller {
            roles.push("controller");
        }
        vec![
            broker.node_id.to_string(),
            broker.address.clone(),
            if broker.rack.is_empty() { "-".to_owned() } else { broker.rack.clone() },
            broker.state.clone(),
            if roles.is_empty() { "-".to_owned() } else { roles.join(", ") },
            broker.replicas.to_string(),
            broker.leaders.to_string(),
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
pub(super) fn moves_text(moves: &[MoveDescription]) -> String {
    let row = |change: &MoveDescription| {
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

fn status_json(state: &DescribeClusterReply) -> Value {
    json!({
        "cluster_id": state.cluster_id.map(|id| highwater_client::ClusterId::from(id).to_string()),
        "version": state.version,
        "feature_level": state.feature_level,
        "controller": (state.controller != 0).then_some(state.controller),
        "voters": state.voters,
        "brokers": state.brokers.iter().map(|broker| broker_json(state, broker)).collect::<Vec<_>>(),
        "partitions": state.partitions,
        "partitions_offline": state.partitions_offline,
        "partitions_under_replicated": state.partitions_under_replicated,
        "move_bytes_per_second": state.move_bytes_per_second,
        "moves": moves_json(&state.moves),
        "serves": serves(state),
    })
}

fn broker_json(state: &DescribeClusterReply, broker: &BrokerDescription) -> Value {
    json!({
        "node_id": broker.node_id,
        "address": broker.address,
        "rack": broker.rack,
        "state": broker.state,
        "voter": broker.voter,
        "controller": broker.node_id == state.controller,
        "replicas": broker.replicas,
        "leaders": broker.leaders,
        "broker_epoch": broker.broker_epoch,
        "directory_id": broker.directory_id.map(|id| highwater_protocol::ids::DirectoryId::from(id).to_string()),
        "feature_min": broker.feature_min,
        "feature_max": broker.feature_max,
    })
}

/// The moves for programs, all of them.
pub(super) fn moves_json(moves: &[MoveDescription]) -> Value {
    let one = |change: &MoveDescription| {
        json!({
            "topic": change.topic,
            "partition": change.partition,
            "replicas": change.replicas,
            "adding": change.adding,
            "removing": change.removing,
            "state": change.state,
            "lag": change.lag,
        })
    };
    moves.iter().map(one).collect()
}

fn list(nodes: &[u32]) -> String {
    if nodes.is_empty() {
        return "-".to_owned();
    }
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> DescribeClusterReply {
        let broker = |node_id: u32, state: &str| BrokerDescription {
            node_id,
            address: format!("127.0.0.1:94{}0", node_id + 6),
            state: state.to_owned(),
            voter: true,
            replicas: 4,
            leaders: 1,
            ..BrokerDescription::default()
        };
        DescribeClusterReply {
            version: 17,
            controller: 2,
            voters: vec![1, 2, 3],
            brokers: vec![broker(1, ACTIVE), broker(2, ACTIVE), broker(3, "fenced")],
            partitions: 4,
            partitions_under_replicated: 4,
            move_bytes_per_second: 50 << 20,
            ..DescribeClusterReply::default()
        }
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
        let leaderless = DescribeClusterReply { partitions_offline: 1, ..state() };
        let headless = DescribeClusterReply { controller: 0, ..state() };
        assert!(!serves(&leaderless) && !serves(&headless));
        assert!(status_text(&headless).contains("none: nothing can be elected"));
    }

    #[test]
    fn long_lists_of_moves_are_cut_for_people_only() {
        let one =
            MoveDescription { topic: "orders".to_owned(), adding: vec![4], ..MoveDescription::default() };
        let moves = vec![one; 25];
        let text = moves_text(&moves);
        assert!(text.contains("and 15 more") && text.contains("orders"), "{text}");
        assert_eq!(moves_json(&moves).as_array().unwrap().len(), 25);
    }
}
