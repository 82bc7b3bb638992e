//! Images and commands for tests.

use std::collections::BTreeMap;

use highwater_protocol::ids::{
    BrokerEpoch, ClusterId, DirectoryId, NodeId, PartitionId, TopicId, TopicPartition,
};

use super::command::{Command, FEATURE_LEVEL_MAX, FEATURE_LEVEL_MIN, Refusal, Reply};
use super::image::{ClusterImage, Defaults, Partition};

/// The image after `count` brokers have registered and are active, with node ids from 1.
pub(super) fn image_with_brokers(count: u32) -> ClusterImage {
    let mut image = ClusterImage::default();
    let init = Command::Init {
        cluster_id: ClusterId(9),
        defaults: Defaults::default(),
        feature_level: FEATURE_LEVEL_MAX,
    };
    ok(&mut image, &init);
    for node in 1..=count {
        ok(&mut image, &register(node, 1));
        let ready = ready(&image, node);
        ok(&mut image, &ready);
    }
    image
}

/// Applies a command that has to succeed; the image keeps its invariants.
pub(super) fn ok(image: &mut ClusterImage, command: &Command) -> Reply {
    apply(image, command).unwrap_or_else(|refusal| panic!("{command:?}: {refusal}"))
}

/// Applies a command and checks the image, and that a refused one changes nothing.
pub(super) fn apply(image: &mut ClusterImage, command: &Command) -> Result<Reply, Refusal> {
    let before = image.clone();
    let outcome = image.apply(command);
    image.check_invariants();
    image.check_step_from(&before);
    if outcome.is_err() {
        assert_eq!(*image, before, "refused, yet changed: {command:?}");
    }
    outcome
}

/// A registration of a broker with a directory of its own, after a clean stop.
pub(super) fn register(node: u32, incarnation: u128) -> Command {
    Command::RegisterBroker {
        node_id: NodeId(node),
        directory_id: DirectoryId(100 + u128::from(node)),
        incarnation,
        address: format!("127.0.0.1:{}", 9000 + node),
        rack: String::new(),
        feature_min: FEATURE_LEVEL_MIN,
        feature_max: FEATURE_LEVEL_MAX,
        unclean: false,
        other_kernel: false,
        flush_failed: false,
    }
}

/// A registration after a crash of the process.
pub(super) fn register_unclean(node: u32, incarnation: u128, power_cut: bool) -> Command {
    let mut command = register(node, incarnation);
    if let Command::RegisterBroker { unclean, other_kernel, .. } = &mut command {
        *unclean = true;
        *other_kernel = power_cut;
    }
    command
}

pub(super) fn epoch(image: &ClusterImage, node: u32) -> BrokerEpoch {
    image.broker(NodeId(node)).unwrap().broker_epoch
}

pub(super) fn ready(image: &ClusterImage, node: u32) -> Command {
    Command::BrokerReady { node_id: NodeId(node), broker_epoch: epoch(image, node) }
}

pub(super) fn fence(image: &ClusterImage, node: u32) -> Command {
    Command::FenceBroker { node_id: NodeId(node), broker_epoch: epoch(image, node) }
}

pub(super) fn create(id: u128, name: &str, partitions: u32, replication: u32) -> Command {
    Command::CreateTopic {
        topic_id: TopicId(id),
        name: name.into(),
        partitions,
        replication,
        config: BTreeMap::new(),
        created_at_us: 5,
    }
}

pub(super) fn create_os(id: u128, name: &str, replication: u32) -> Command {
    let mut command = create(id, name, 1, replication);
    if let Command::CreateTopic { config, .. } = &mut command {
        config.insert("durability".into(), "os".into());
    }
    command
}

pub(super) fn id(topic: u128, partition: u32) -> TopicPartition {
    TopicPartition::new(TopicId(topic), PartitionId(partition))
}

pub(super) fn partition(image: &ClusterImage, topic: u128, index: u32) -> Partition {
    image.partition(id(topic, index)).unwrap().clone()
}

pub(super) fn nodes(ids: &[u32]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

/// The leader's proposal of an in-sync set, as it would make it now.
pub(super) fn propose(image: &ClusterImage, topic: u128, in_sync: &[u32]) -> Command {
    let state = partition(image, topic, 0);
    let leader = state.leader.unwrap();
    Command::AlterInSync {
        partition: id(topic, 0),
        node_id: leader,
        broker_epoch: epoch(image, leader.get()),
        leader_epoch: state.leader_epoch,
        version: state.version,
        in_sync: in_sync.iter().map(|node| (NodeId(*node), epoch(image, *node))).collect(),
    }
}
