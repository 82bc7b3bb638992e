//! The state of the cluster, and what operators ask of it.

use std::collections::BTreeMap;

use highwater_broker_core::controller::command::{Command, Refusal, Reply};
use highwater_broker_core::controller::image::{Broker, BrokerState, ClusterImage};
use highwater_broker_core::controller::reassignment::{Plan, plan_drain, plan_leaders, plan_rebalance};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{NodeId, PartitionId, TopicPartition};
use highwater_protocol::messages::{
    AlterClusterReply, AlterClusterRequest, BrokerDescription, ClusterOperation, DescribeClusterReply,
    MoveDescription,
};

use super::ApiError;
use crate::server::Node;
use crate::server::principal::{Operation, Principal};

/// How long a broker that stops in order may take to be found gone before it is removed.
const STOPPING_MAX: std::time::Duration = std::time::Duration::from_secs(5);

/// Moves that one reply describes: what a frame has room for. The counts tell about all of them.
const MOVES_DESCRIBED_MAX: usize = 10_000;

/// What this broker knows of the cluster.
pub(crate) fn describe(node: &Node, principal: &Principal) -> Result<DescribeClusterReply, ApiError> {
    principal.authorise(Operation::Describe)?;
    let image = node.controller.image();
    let voters: Vec<u32> = node.controller.voters().iter().map(|voter| voter.get()).collect();
    let mut loads: BTreeMap<NodeId, Load> = BTreeMap::new();
    let (mut offline, mut under_replicated) = (0, 0);
    for partition in image.topics().flat_map(|topic| &topic.partitions) {
        for replica in &partition.replicas {
            loads.entry(*replica).or_default().replicas += 1;
        }
        match partition.leader {
            Some(leader) => loads.entry(leader).or_default().leaders += 1,
            None => offline += 1,
        }
        under_replicated += u64::from(partition.is_under_replicated());
    }
    let describe = |broker: &Broker| {
        let load = loads.get(&broker.node_id).copied().unwrap_or_default();
        broker_description(broker, load, voters.contains(&broker.node_id.get()))
    };
    let brokers = image.brokers().map(|broker| describe(broker)).collect();
    let moves = image.moves().map(|(id, planned)| describe_move(&image, id, &planned.to));
    Ok(DescribeClusterReply {
        cluster_id: Some(image.cluster_id.into()),
        version: image.version,
        controller: node.controller.controller().map_or(0, NodeId::get),
        feature_level: image.feature_level,
        brokers,
        moves: moves.take(MOVES_DESCRIBED_MAX).collect(),
        partitions: image.partition_count(),
        partitions_offline: offline,
        partitions_under_replicated: under_replicated,
        move_bytes_per_second: image.move_bytes_per_second(),
        voters,
    })
}

#[derive(Clone, Copy, Default)]
struct Load {
    replicas: u64,
    leaders: u64,
}

fn broker_description(broker: &Broker, load: Load, voter: bool) -> BrokerDescription {
    BrokerDescription {
        node_id: broker.node_id.get(),
        address: broker.address.clone(),
        rack: broker.rack.clone(),
        state: broker.state_name().to_owned(),
        broker_epoch: broker.broker_epoch.get(),
        directory_id: Some(broker.directory_id.into()),
        voter,
        replicas: load.replicas,
        leaders: load.leaders,
        feature_min: broker.feature_min,
        feature_max: broker.feature_max,
    }
}

/// A move to the replicas `to`, whether it is planned only or under way.
fn describe_move(image: &ClusterImage, id: TopicPartition, to: &[NodeId]) -> MoveDescription {
    let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.get()).collect::<Vec<u32>>();
    let mut description = MoveDescription {
        topic: image.topic(id.topic_id).map(|topic| topic.name.clone()).unwrap_or_default(),
        partition: id.partition.get(),
        state: "planned".to_owned(),
        ..MoveDescription::default()
    };
    let Some(partition) = image.partition(id) else { return description };
    if partition.adding.is_empty() && partition.removing.is_empty() {
        let (now, then) = (&partition.replicas, to);
        description.replicas = ids(now);
        description.adding = ids(then).into_iter().filter(|node| !now.contains(&NodeId(*node))).collect();
        description.removing = ids(now).into_iter().filter(|node| !then.contains(&NodeId(*node))).collect();
        return description;
    }
    let holds = |node: &&NodeId| !partition.adding.contains(node);
    description.replicas = partition.replicas.iter().filter(holds).map(|node| node.get()).collect();
    description.adding = ids(&partition.adding);
    description.removing = ids(&partition.removing);
    description.state = "copying".to_owned();
    description
}

/// Returns when the change is recorded; moves go on by themselves.
pub(crate) async fn alter(
    node: &Node,
    principal: &Principal,
    request: AlterClusterRequest,
) -> Result<AlterClusterReply, ApiError> {
    principal.authorise(Operation::Administer)?;
    let target = NodeId(request.node_id);
    match request.operation() {
        ClusterOperation::Unspecified => {
            Err(ApiError::invalid("the operation is missing, or not known here"))
        }
        ClusterOperation::Rebalance => rebalance(node, request.dry_run).await,
        ClusterOperation::Drain => drain(node, target, request.dry_run).await,
        ClusterOperation::Undrain => {
            let command = Command::DrainBroker { node_id: target, draining: false };
            node.controller.propose(command, request.dry_run).await?;
            said(format!("broker {target} gets replicas again"))
        }
        ClusterOperation::Remove => remove(node, target, request.dry_run).await,
        ClusterOperation::CancelMoves => cancel(node, request.dry_run).await,
        ClusterOperation::ElectUnclean => elect_unclean(node, &request).await,
        ClusterOperation::Throttle => {
            let bytes_per_second = request.bytes_per_second;
            node.controller.propose(Command::SetThrottle { bytes_per_second }, request.dry_run).await?;
            said(format!("replicas move at up to {bytes_per_second} bytes a second on each broker"))
        }
    }
}

async fn rebalance(node: &Node, dry_run: bool) -> Result<AlterClusterReply, ApiError> {
    let image = node.controller.image();
    let plan = plan_rebalance(&image);
    let leaders = plan_leaders(&image);
    let mut reply = planned(&image, &plan);
    reply.leaders_moved += leaders.len() as u64;
    reply.message = if plan.moves.is_empty() && leaders.is_empty() {
        "the brokers are within their bounds: there is nothing to move".to_owned()
    } else if plan.moves.is_empty() {
        "leaderships change at once".to_owned()
    } else {
        "replicas are copied first; leaderships follow when everything is in sync".to_owned()
    };
    if dry_run {
        return Ok(reply);
    }
    let mut commands = vec![Command::StartMoves { moves: plan.moves }];
    if !leaders.is_empty() {
        commands.push(Command::BalanceLeaders { changes: leaders });
    }
    propose_all(node, commands).await?;
    Ok(reply)
}

async fn drain(node: &Node, target: NodeId, dry_run: bool) -> Result<AlterClusterReply, ApiError> {
    let image = node.controller.image();
    let plan = plan_drain(&image, target).map_err(refused)?;
    let mut reply = planned(&image, &plan);
    reply.message = format!("broker {target} gets no new replicas, and those that it has move to others");
    if !dry_run {
        let drain = Command::DrainBroker { node_id: target, draining: true };
        propose_all(node, vec![drain, Command::StartMoves { moves: plan.moves }]).await?;
    }
    Ok(reply)
}

async fn remove(node: &Node, target: NodeId, dry_run: bool) -> Result<AlterClusterReply, ApiError> {
    let (image, voters) = (node.controller.image(), node.controller.voters());
    let heir = |broker: &Broker| broker.state == BrokerState::Active && !voters.contains(&broker.node_id);
    if voters.contains(&target) && !image.brokers().any(|broker| heir(broker)) {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!(
                "broker {target} votes on metadata, and no other can take its place: let another broker join first"
            ),
        ));
    }
    wait_stopped(node, target).await;
    node.controller.propose(Command::RemoveBroker { node_id: target }, dry_run).await?;
    said(format!("broker {target} is no longer part of the cluster; its data directory can be deleted"))
}

/// A broker that has just stopped in order is found to be gone a moment later.
async fn wait_stopped(node: &Node, target: NodeId) {
    let stopping = || {
        let image = node.controller.image();
        image.broker(target).is_some_and(|broker| broker.state == BrokerState::Stopping)
    };
    let mut versions = node.controller.versions();
    let stopped = async { while stopping() && versions.changed().await.is_ok() {} };
    // Whoever goes on stopping is refused by the command.
    let _in_time = tokio::time::timeout(STOPPING_MAX, stopped).await;
}

async fn cancel(node: &Node, dry_run: bool) -> Result<AlterClusterReply, ApiError> {
    let reply = node.controller.propose(Command::CancelMoves {}, dry_run).await?;
    let Reply::Moves { changed, kept } = reply else { return Err(odd(&reply)) };
    let mut message = format!("{changed} moves are undone or dropped");
    if kept > 0 {
        message
            .push_str(&format!("; {kept} go on, because only the new replicas have all that is committed"));
    }
    said(message)
}

async fn elect_unclean(node: &Node, request: &AlterClusterRequest) -> Result<AlterClusterReply, ApiError> {
    let image = node.controller.image();
    let unknown = || ApiError::new(ErrorCode::UnknownTopic, format!("there is no topic '{}'", request.topic));
    let topic = image.topic_named(&request.topic).ok_or_else(unknown)?;
    let partition = TopicPartition::new(topic.id, PartitionId(request.partition));
    let node_id = NodeId(request.node_id);
    let loss = image.unclean_loss(partition, node_id).map_err(refused)?;
    if request.dry_run {
        return said(loss);
    }
    let accept_loss = request.accept_loss;
    let command = Command::ElectUnclean { partition, node_id, accept_loss };
    let reply = node.controller.propose(command, false).await?;
    let Reply::Partition { state } = reply else { return Err(odd(&reply)) };
    said(format!(
        "broker {node_id} leads topic '{}', partition {} at epoch {}",
        request.topic, request.partition, state.leader_epoch
    ))
}

/// Proposes one after another, and fails with the first that is refused; those before it are carried out.
async fn propose_all(node: &Node, commands: Vec<Command>) -> Result<(), ApiError> {
    for command in commands {
        node.controller.propose(command, false).await?;
    }
    Ok(())
}

fn planned(image: &ClusterImage, plan: &Plan) -> AlterClusterReply {
    let moves = plan.moves.iter().take(MOVES_DESCRIBED_MAX);
    AlterClusterReply {
        moves: moves.map(|(id, to)| describe_move(image, *id, to)).collect(),
        replicas_moved: plan.replicas,
        leaders_moved: plan.leaders,
        message: String::new(),
    }
}

fn said(message: String) -> Result<AlterClusterReply, ApiError> {
    Ok(AlterClusterReply { message, ..AlterClusterReply::default() })
}

fn refused(refusal: Refusal) -> ApiError {
    ApiError::new(refusal.code(), refusal.to_string())
}

/// The command machine answers every command in kind; anything else is a defect.
fn odd(reply: &Reply) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("the controller answered {reply:?}"))
}
