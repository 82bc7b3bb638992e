//! The cluster as operators see and change it.

use highwater_protocol::ids::{BrokerEpoch, ClusterId, DirectoryId, NodeId, PartitionId};
use highwater_protocol::messages::{
    AlterClusterRequest, BrokerDescription, ClusterOperation, DescribeClusterReply, DescribeClusterRequest,
    MoveDescription,
};

use super::Admin;
use crate::client::Repeat;
use crate::error::Error;

/// The state of the cluster, as the broker that answered knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterDetails {
    /// The cluster; absent before it is formed.
    pub cluster_id: Option<ClusterId>,
    /// The version of the cluster image; grows.
    pub version: u64,
    /// The controller, while there is one.
    pub controller: Option<NodeId>,
    /// The brokers that vote on metadata.
    pub voters: Vec<NodeId>,
    /// What new records, messages and formats may be used.
    pub feature_level: u32,
    /// Every broker that was ever registered and not removed.
    pub brokers: Vec<BrokerDetails>,
    /// Replicas on the move.
    pub moves: Vec<PartitionMove>,
    /// Partitions of all topics.
    pub partition_count: u64,
    /// Partitions without a leader.
    pub offline_count: u64,
    /// Partitions with fewer replicas in sync than assigned.
    pub under_replicated_count: u64,
    /// Bytes a second that replicas on the move may fetch, on each broker.
    pub move_bytes_per_second: u64,
}

/// A broker as the cluster knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerDetails {
    /// Its id.
    pub node_id: NodeId,
    /// `host:port` as clients reach it.
    pub address: String,
    /// Its failure domain; empty: none.
    pub rack: String,
    /// `active`, `starting`, `fenced`, `draining` or `stopping`.
    pub state: String,
    /// Its registration.
    pub broker_epoch: BrokerEpoch,
    /// Its data directory.
    pub directory_id: DirectoryId,
    /// Whether it votes on metadata.
    pub voter: bool,
    /// Replicas that it is assigned.
    pub replica_count: u64,
    /// Partitions that it leads.
    pub leader_count: u64,
}

/// A partition whose replicas are being moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionMove {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: PartitionId,
    /// Who gets a replica.
    pub adding: Vec<NodeId>,
    /// Who gives one up.
    pub removing: Vec<NodeId>,
    /// Who has one now.
    pub replicas: Vec<NodeId>,
    /// `planned` or `copying`.
    pub state: String,
    /// Offsets that the slowest new replica still lacks, if known.
    pub lag: Option<u64>,
}

/// What an operator asks of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterChange {
    /// Restore the bounds on replicas and leaders with the smallest plan.
    Rebalance,
    /// Move everything off a broker, which keeps running.
    Drain(NodeId),
    /// Take a drained broker back into service.
    Undrain(NodeId),
    /// Forget a broker that has no replica and does not run.
    Remove(NodeId),
    /// Stop moving: what is not complete is undone.
    CancelMoves,
    /// Change how fast replicas may move, in bytes a second on each broker.
    Throttle(u64),
    /// Elect a leader that may lack committed records.
    ElectUnclean {
        /// The topic.
        topic: String,
        /// The partition.
        partition: PartitionId,
        /// Whom.
        node_id: NodeId,
        /// Whoever asks knows what is lost: ask with `dry_run` first, which says so.
        accept_loss: bool,
    },
}

/// What follows from a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterPlan {
    /// The moves.
    pub moves: Vec<PartitionMove>,
    /// Replicas that change places.
    pub replicas_moved: u64,
    /// Leaderships that change places.
    pub leaders_moved: u64,
    /// What will happen, or what is lost, for people.
    pub message: String,
}

impl Admin {
    /// Brokers, controller and moves.
    ///
    /// # Errors
    /// What kept the request from being answered.
    ///
    /// ```no_run
    /// # async fn example(client: highwater_client::Client) -> Result<(), highwater_client::Error> {
    /// for broker in client.admin().describe_cluster().await?.brokers {
    ///     println!("{} at {}: {}, leads {}", broker.node_id, broker.address, broker.state, broker.leader_count);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn describe_cluster(&self) -> Result<ClusterDetails, Error> {
        let deadline = self.client.deadline();
        let reply = self.client.ask_any(&DescribeClusterRequest {}, Repeat::Freely, deadline).await?;
        Ok(cluster_details(reply))
    }

    /// Changes the cluster; with `dry_run` only says what would follow. When it returns, the change is recorded by a
    /// majority, and goes on by itself: [`Admin::describe_cluster`] shows how far it is.
    ///
    /// # Errors
    /// `Conflict` when it does not fit the present state, `InvalidArgument`, or what kept the request from being answered.
    pub async fn alter_cluster(&self, change: ClusterChange, dry_run: bool) -> Result<ClusterPlan, Error> {
        let request = AlterClusterRequest { dry_run, ..request_of(change) };
        let repeat = if dry_run { Repeat::Freely } else { Repeat::WhenRefused };
        let reply = self.client.ask_any(&request, repeat, self.client.deadline()).await?;
        Ok(ClusterPlan {
            moves: reply.moves.into_iter().map(partition_move).collect(),
            replicas_moved: reply.replicas_moved,
            leaders_moved: reply.leaders_moved,
            message: reply.message,
        })
    }
}

fn request_of(change: ClusterChange) -> AlterClusterRequest {
    let of = |operation: ClusterOperation, node: NodeId| AlterClusterRequest {
        operation: operation.into(),
        node_id: node.get(),
        ..AlterClusterRequest::default()
    };
    match change {
        ClusterChange::Rebalance => of(ClusterOperation::Rebalance, NodeId(0)),
        ClusterChange::Drain(node) => of(ClusterOperation::Drain, node),
        ClusterChange::Undrain(node) => of(ClusterOperation::Undrain, node),
        ClusterChange::Remove(node) => of(ClusterOperation::Remove, node),
        ClusterChange::CancelMoves => of(ClusterOperation::CancelMoves, NodeId(0)),
        ClusterChange::Throttle(bytes_per_second) => {
            AlterClusterRequest { bytes_per_second, ..of(ClusterOperation::Throttle, NodeId(0)) }
        }
        ClusterChange::ElectUnclean { topic, partition, node_id, accept_loss } => AlterClusterRequest {
            topic,
            partition: partition.get(),
            accept_loss,
            ..of(ClusterOperation::ElectUnclean, node_id)
        },
    }
}

fn nodes(ids: Vec<u32>) -> Vec<NodeId> {
    ids.into_iter().map(NodeId).collect()
}

fn cluster_details(reply: DescribeClusterReply) -> ClusterDetails {
    ClusterDetails {
        cluster_id: reply.cluster_id.map(ClusterId::from),
        version: reply.version,
        controller: (reply.controller != 0).then_some(NodeId(reply.controller)),
        voters: nodes(reply.voters),
        feature_level: reply.feature_level,
        brokers: reply.brokers.into_iter().map(broker_details).collect(),
        moves: reply.moves.into_iter().map(partition_move).collect(),
        partition_count: reply.partitions,
        offline_count: reply.partitions_offline,
        under_replicated_count: reply.partitions_under_replicated,
        move_bytes_per_second: reply.move_bytes_per_second,
    }
}

fn broker_details(broker: BrokerDescription) -> BrokerDetails {
    BrokerDetails {
        node_id: NodeId(broker.node_id),
        address: broker.address,
        rack: broker.rack,
        state: broker.state,
        broker_epoch: BrokerEpoch(broker.broker_epoch),
        directory_id: broker.directory_id.map(DirectoryId::from).unwrap_or_default(),
        voter: broker.voter,
        replica_count: broker.replicas,
        leader_count: broker.leaders,
    }
}

fn partition_move(one: MoveDescription) -> PartitionMove {
    PartitionMove {
        topic: one.topic,
        partition: PartitionId(one.partition),
        adding: nodes(one.adding),
        removing: nodes(one.removing),
        replicas: nodes(one.replicas),
        state: one.state,
        lag: one.lag,
    }
}
