//! What an operator changes: drain, remove, rebalance, throttle, elect-unclean.

use anyhow::Context;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::{
    AlterClusterReply, AlterClusterRequest, BrokerDescription, ClusterOperation, DescribeClusterReply,
};
use serde_json::{Value, json};

use super::status::{moves_json, moves_text};
use super::{Cluster, progress};
use crate::args::{DrainArgs, ElectUncleanArgs, Global, Output, RebalanceArgs};
use crate::output::{self, Answer};

fn request(operation: ClusterOperation) -> AlterClusterRequest {
    AlterClusterRequest { operation: operation.into(), ..AlterClusterRequest::default() }
}

/// Asks for a change. `None`: the cluster says no, and the reason has been said.
async fn alter(
    cluster: &Cluster,
    request: &AlterClusterRequest,
    what: &str,
) -> anyhow::Result<Option<AlterClusterReply>> {
    match cluster.alter(request).await {
        Ok(reply) => Ok(Some(reply)),
        Err(error) if matches!(error.code(), Some(ErrorCode::Conflict | ErrorCode::BrokerConflict)) => {
            output::note(format!("{what}: {error}"));
            Ok(None)
        }
        Err(error) => Err(error).context(what.to_owned()),
    }
}

/// A broker that the cluster knows; says so if it does not.
async fn find(cluster: &Cluster, node_id: u32) -> anyhow::Result<Option<BrokerDescription>> {
    let state = cluster.describe().await?;
    let found = state.brokers.into_iter().find(|broker| broker.node_id == node_id);
    if found.is_none() {
        output::note(format!(
            "there is no broker {node_id}; highwater cluster nodes lists those that are there"
        ));
    }
    Ok(found)
}

pub(super) async fn drain(global: &Global, cluster: &Cluster, args: &DrainArgs) -> anyhow::Result<Answer> {
    let node_id = args.node_id;
    if find(cluster, node_id).await?.is_none() {
        return Ok(Answer::No);
    }
    let (operation, what) = if args.undo {
        (ClusterOperation::Undrain, format!("take broker {node_id} back into service"))
    } else {
        (ClusterOperation::Drain, format!("drain broker {node_id}"))
    };
    let request = AlterClusterRequest { node_id, ..request(operation) };
    let Some(reply) = alter(cluster, &request, &what).await? else { return Ok(Answer::No) };
    let verb = if args.undo { "undrained" } else { "drained" };
    if args.undo {
        say(global, &json!({ "node_id": node_id, verb: true }), &reply)?;
        return Ok(Answer::Yes);
    }
    tell_plan(global, &reply)?;
    let mut complete = None;
    if progress::is_wanted(&args.wait) {
        complete = Some(progress::wait(cluster, &args.wait, |state| is_empty(state, node_id)).await?);
    }
    match global.output {
        Output::Json => {
            output::json(&plan_json(&reply, json!({ "node_id": node_id, "complete": complete })))?
        }
        Output::Table if complete == Some(true) => output::line(format!(
            "broker {node_id} holds nothing any more: stop it, then: highwater cluster remove {node_id}"
        ))?,
        Output::Table => {}
    }
    Ok(if complete == Some(false) { Answer::No } else { Answer::Yes })
}

fn is_empty(state: &DescribeClusterReply, node_id: u32) -> bool {
    state.brokers.iter().find(|broker| broker.node_id == node_id).is_none_or(|broker| broker.replicas == 0)
}

pub(super) async fn remove(global: &Global, cluster: &Cluster, node_id: u32) -> anyhow::Result<Answer> {
    if find(cluster, node_id).await?.is_none() {
        return Ok(Answer::No);
    }
    let request = AlterClusterRequest { node_id, ..request(ClusterOperation::Remove) };
    let what = format!("remove broker {node_id}");
    let Some(reply) = alter(cluster, &request, &what).await? else { return Ok(Answer::No) };
    say(global, &json!({ "node_id": node_id, "removed": true }), &reply)?;
    Ok(Answer::Yes)
}

pub(super) async fn rebalance(
    global: &Global,
    cluster: &Cluster,
    args: &RebalanceArgs,
) -> anyhow::Result<Answer> {
    if args.cancel {
        let request = request(ClusterOperation::CancelMoves);
        let Some(reply) = alter(cluster, &request, "cancel the moves").await? else { return Ok(Answer::No) };
        say(global, &json!({ "cancelled": true }), &reply)?;
        return Ok(Answer::Yes);
    }
    let request = AlterClusterRequest { dry_run: args.dry_run, ..request(ClusterOperation::Rebalance) };
    let Some(reply) = alter(cluster, &request, "rebalance").await? else { return Ok(Answer::No) };
    tell_plan(global, &reply)?;
    let mut complete = None;
    if !args.dry_run && progress::is_wanted(&args.wait) {
        complete = Some(progress::wait(cluster, &args.wait, |_| true).await?);
    }
    match global.output {
        Output::Json => {
            output::json(&plan_json(&reply, json!({ "dry_run": args.dry_run, "complete": complete })))?;
        }
        Output::Table if args.dry_run => output::line("nothing was moved: this was a dry run")?,
        Output::Table if complete == Some(true) => output::line("everything has moved")?,
        Output::Table => {}
    }
    Ok(if complete == Some(false) { Answer::No } else { Answer::Yes })
}

pub(super) async fn throttle(
    global: &Global,
    cluster: &Cluster,
    bytes_per_second: u64,
) -> anyhow::Result<Answer> {
    let request = AlterClusterRequest { bytes_per_second, ..request(ClusterOperation::Throttle) };
    let Some(reply) = alter(cluster, &request, "set the throttle").await? else { return Ok(Answer::No) };
    say(global, &json!({ "move_bytes_per_second": bytes_per_second }), &reply)?;
    Ok(Answer::Yes)
}

/// Tells what is lost before it does anything, and does it only when that is accepted.
pub(super) async fn elect_unclean(
    global: &Global,
    cluster: &Cluster,
    args: &ElectUncleanArgs,
) -> anyhow::Result<Answer> {
    let asked = AlterClusterRequest {
        node_id: args.node_id,
        topic: args.topic.clone(),
        partition: args.partition,
        dry_run: true,
        ..request(ClusterOperation::ElectUnclean)
    };
    let what = format!("elect broker {} for {}, partition {}", args.node_id, args.topic, args.partition);
    let Some(loss) = alter(cluster, &asked, &what).await? else { return Ok(Answer::No) };
    if global.output == Output::Table {
        output::line(format!("{what}: {}", loss.message))?;
    }
    let document = |elected: bool| {
        json!({
            "topic": args.topic,
            "partition": args.partition,
            "node_id": args.node_id,
            "elected": elected,
            "loss": loss.message,
        })
    };
    if !args.accept_loss {
        match global.output {
            Output::Json => output::json(&document(false))?,
            Output::Table => output::note("nothing was done; --accept-loss does it, and it cannot be undone"),
        }
        return Ok(Answer::No);
    }
    let request = AlterClusterRequest { dry_run: false, accept_loss: true, ..asked };
    let Some(reply) = alter(cluster, &request, &what).await? else { return Ok(Answer::No) };
    say(global, &document(true), &reply)?;
    Ok(Answer::Yes)
}

/// A document for programs, the cluster's own words for people.
fn say(global: &Global, document: &Value, reply: &AlterClusterReply) -> anyhow::Result<()> {
    match global.output {
        Output::Json => output::json(document),
        Output::Table if reply.message.is_empty() => output::line("done"),
        Output::Table => output::line(&reply.message),
    }
}

/// Shows people what will move, before it does.
fn tell_plan(global: &Global, reply: &AlterClusterReply) -> anyhow::Result<()> {
    if global.output == Output::Json {
        return Ok(());
    }
    if !reply.message.is_empty() {
        output::line(&reply.message)?;
    }
    output::line(format!(
        "{} and {} change places",
        output::plural(reply.replicas_moved, "replica", "replicas"),
        output::plural(reply.leaders_moved, "leadership", "leaderships"),
    ))?;
    if reply.moves.is_empty() { Ok(()) } else { output::line(moves_text(&reply.moves)) }
}

fn plan_json(reply: &AlterClusterReply, mut document: Value) -> Value {
    document["replicas_moved"] = json!(reply.replicas_moved);
    document["leaders_moved"] = json!(reply.leaders_moved);
    document["moves"] = moves_json(&reply.moves);
    document["message"] = json!(reply.message);
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_empty_when_it_holds_no_replica_or_is_not_known() {
        let broker = BrokerDescription { node_id: 2, replicas: 1, ..BrokerDescription::default() };
        let mut state = DescribeClusterReply { brokers: vec![broker], ..DescribeClusterReply::default() };
        assert!(!is_empty(&state, 2) && is_empty(&state, 3));
        state.brokers[0].replicas = 0;
        assert!(is_empty(&state, 2));
    }
}
