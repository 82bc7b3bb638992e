//! What an operator changes: drain, remove, rebalance, throttle, elect-unclean.

use anyhow::Context;
use highwater_client::{
    Admin, BrokerDetails, ClusterChange, ClusterDetails, ClusterPlan, ErrorKind, NodeId, PartitionId,
};
use serde_json::{Value, json};

use super::progress;
use super::state::describe;
use super::status::{moves_json, moves_text};
use crate::args::{DrainArgs, ElectUncleanArgs, Global, Output, RebalanceArgs};
use crate::output::{self, Answer};

/// Asks for a change. `None`: the cluster says no, and the reason has been said.
async fn alter(
    admin: &Admin,
    change: ClusterChange,
    dry_run: bool,
    what: &str,
) -> anyhow::Result<Option<ClusterPlan>> {
    match admin.alter_cluster(change, dry_run).await {
        Ok(plan) => Ok(Some(plan)),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::Conflict | ErrorKind::UnknownTopic | ErrorKind::UnknownPartition
            ) =>
        {
            output::note(format!("{what}: {error}"));
            Ok(None)
        }
        Err(error) => Err(error).context(what.to_owned()),
    }
}

/// A broker that the cluster knows; says so if it does not.
async fn find(admin: &Admin, node: NodeId) -> anyhow::Result<Option<BrokerDetails>> {
    let state = describe(admin).await?;
    let found = state.brokers.into_iter().find(|broker| broker.node_id == node);
    if found.is_none() {
        output::note(format!(
            "there is no broker {node}; highwater cluster nodes lists those that are there"
        ));
    }
    Ok(found)
}

pub(super) async fn drain(global: &Global, admin: &Admin, args: &DrainArgs) -> anyhow::Result<Answer> {
    let node_id = args.node_id;
    let node = NodeId(node_id);
    if find(admin, node).await?.is_none() {
        return Ok(Answer::No);
    }
    let (change, what) = if args.undo {
        (ClusterChange::Undrain(node), format!("take broker {node_id} back into service"))
    } else {
        (ClusterChange::Drain(node), format!("drain broker {node_id}"))
    };
    let Some(reply) = alter(admin, change, false, &what).await? else { return Ok(Answer::No) };
    let verb = if args.undo { "undrained" } else { "drained" };
    if args.undo {
        say(global, &json!({ "node_id": node_id, verb: true }), &reply)?;
        return Ok(Answer::Yes);
    }
    tell_plan(global, &reply)?;
    let mut complete = None;
    if progress::is_wanted(&args.wait) {
        complete = Some(progress::wait(admin, &args.wait, |state| is_empty(state, node)).await?);
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

fn is_empty(state: &ClusterDetails, node: NodeId) -> bool {
    state.brokers.iter().find(|broker| broker.node_id == node).is_none_or(|broker| broker.replica_count == 0)
}

pub(super) async fn remove(global: &Global, admin: &Admin, node_id: u32) -> anyhow::Result<Answer> {
    let node = NodeId(node_id);
    if find(admin, node).await?.is_none() {
        return Ok(Answer::No);
    }
    let change = ClusterChange::Remove(node);
    let what = format!("remove broker {node_id}");
    let Some(reply) = alter(admin, change, false, &what).await? else { return Ok(Answer::No) };
    say(global, &json!({ "node_id": node_id, "removed": true }), &reply)?;
    Ok(Answer::Yes)
}

pub(super) async fn rebalance(
    global: &Global,
    admin: &Admin,
    args: &RebalanceArgs,
) -> anyhow::Result<Answer> {
    if args.cancel {
        let change = ClusterChange::CancelMoves;
        let Some(reply) = alter(admin, change, false, "cancel the moves").await? else {
            return Ok(Answer::No);
        };
        say(global, &json!({ "cancelled": true }), &reply)?;
        return Ok(Answer::Yes);
    }
    let change = ClusterChange::Rebalance;
    let Some(reply) = alter(admin, change, args.dry_run, "rebalance").await? else { return Ok(Answer::No) };
    tell_plan(global, &reply)?;
    let mut complete = None;
    if !args.dry_run && progress::is_wanted(&args.wait) {
        complete = Some(progress::wait(admin, &args.wait, |_| true).await?);
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
    admin: &Admin,
    bytes_per_second: u64,
) -> anyhow::Result<Answer> {
    let change = ClusterChange::Throttle(bytes_per_second);
    let Some(reply) = alter(admin, change, false, "set the throttle").await? else { return Ok(Answer::No) };
    say(global, &json!({ "move_bytes_per_second": bytes_per_second }), &reply)?;
    Ok(Answer::Yes)
}

/// Tells what is lost before it does anything, and does it only when that is accepted.
pub(super) async fn elect_unclean(
    global: &Global,
    admin: &Admin,
    args: &ElectUncleanArgs,
) -> anyhow::Result<Answer> {
    let change = |accept_loss| ClusterChange::ElectUnclean {
        topic: args.topic.clone(),
        partition: PartitionId(args.partition),
        node_id: NodeId(args.node_id),
        accept_loss,
    };
    let what = format!("elect broker {} for {}, partition {}", args.node_id, args.topic, args.partition);
    let Some(loss) = alter(admin, change(false), true, &what).await? else { return Ok(Answer::No) };
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
    let Some(reply) = alter(admin, change(true), false, &what).await? else { return Ok(Answer::No) };
    say(global, &document(true), &reply)?;
    Ok(Answer::Yes)
}

/// A document for programs, the cluster's own words for people.
fn say(global: &Global, document: &Value, reply: &ClusterPlan) -> anyhow::Result<()> {
    match global.output {
        Output::Json => output::json(document),
        Output::Table if reply.message.is_empty() => output::line("done"),
        Output::Table => output::line(&reply.message),
    }
}

/// Shows people what will move, before it does.
fn tell_plan(global: &Global, reply: &ClusterPlan) -> anyhow::Result<()> {
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

fn plan_json(reply: &ClusterPlan, mut document: Value) -> Value {
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
        let mut broker = BrokerDetails::default();
        (broker.node_id, broker.replica_count) = (NodeId(2), 1);
        let mut state = ClusterDetails::default();
        state.brokers = vec![broker];
        assert!(!is_empty(&state, NodeId(2)) && is_empty(&state, NodeId(3)));
        state.brokers[0].replica_count = 0;
        assert!(is_empty(&state, NodeId(2)));
    }
}
