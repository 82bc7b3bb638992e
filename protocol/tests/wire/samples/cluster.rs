//! Samples of what brokers, operators and idempotent producers say.

use bytes::Bytes;
use highwater_protocol::messages::*;

use super::{ApiSamples, ID, OTHER_ID, broker_info, exchange, one_way, text, topic_info};

pub(super) fn all() -> Vec<ApiSamples> {
    let mut all = producers_and_watches();
    all.extend(replicas());
    all.extend(brokers());
    all.extend(control());
    all.extend(operators());
    all
}

pub(super) fn identity() -> BrokerIdentity {
    BrokerIdentity { node_id: 2, directory_id: Some(OTHER_ID), broker_epoch: 9, secret: text("high water") }
}

fn producers_and_watches() -> Vec<ApiSamples> {
    vec![
        exchange(
            InitProducerRequest { producer_id: Some(0), producer_epoch: 4 },
            InitProducerReply { producer_id: 1 << 48, producer_epoch: 5 },
        ),
        one_way(MetadataPush {
            version: 13,
            controller: 2,
            brokers: vec![broker_info()],
            topics: vec![topic_info()],
        }),
    ]
}

fn replicas() -> Vec<ApiSamples> {
    let replica = ReplicaIdentity { node_id: 2, directory_id: Some(OTHER_ID), broker_epoch: 9 };
    vec![
        exchange(
            ReplicaResetRequest { topic_id: Some(ID), partition: 3, leader_epoch: 7, replica: Some(replica) },
            ReplicaResetReply { log_start: 1 << 40, epochs: vec![EpochEntry { epoch: 6, start: 70 }] },
        ),
        exchange(
            ReplicaReadRequest { topic_id: Some(ID), partition: 3, start: 78, end: 80, bytes_max: 1 << 20 },
            ReplicaReadReply { log_start: 10, log_end: 81 },
        ),
        exchange(
            ReplicaChecksumRequest {
                topic_id: Some(ID),
                partition: 3,
                start: 10,
                end: 80,
                bytes_max: 8 << 20,
                key_slices: 4,
                key_slice: 3,
            },
            ReplicaChecksumReply {
                start: 10,
                end: 80,
                checksum: u32::MAX,
                batches: 12,
                corrupt: vec![CorruptRange { start: 78, end: 79 }],
                log_start: 5,
                log_end: 82,
                high_watermark: 81,
                compacted: true,
                compacted_end: 70,
                key_slices_needed: 8,
            },
        ),
    ]
}

fn voter() -> Voter {
    Voter { node_id: 1, address: text("[::1]:9470"), directory_id: Some(ID) }
}

fn brokers() -> Vec<ApiSamples> {
    vec![
        exchange(
            BootstrapRequest { node_id: 2, directory_id: Some(OTHER_ID), voters: vec![voter()] },
            BootstrapReply {
                node_id: 1,
                directory_id: Some(ID),
                voters: vec![voter()],
                cluster_id: Some(OTHER_ID),
                initialised: true,
                members: vec![voter()],
            },
        ),
        exchange(
            RegisterBrokerRequest {
                node_id: 2,
                directory_id: Some(OTHER_ID),
                incarnation: Some(ID),
                address: text("[::1]:9471"),
                rack: text("a"),
                feature_min: 1,
                feature_max: 2,
                unclean: true,
                other_kernel: true,
                flush_failed: true,
            },
            RegisterBrokerReply { broker_epoch: 9, version: 13, lease_ms: 2000 },
        ),
        exchange(
            HeartbeatRequest { node_id: 2, broker_epoch: 9, version: 13, ready: true, stopping: true },
            HeartbeatReply { lease_ms: 2000, fenced: true, may_stop: true },
        ),
    ]
}

fn control() -> Vec<ApiSamples> {
    vec![
        exchange(
            ProposeRequest { command: Bytes::from_static(b"command"), validate_only: true },
            ProposeReply { outcome: Bytes::from_static(b"outcome"), version: 14 },
        ),
        exchange(
            RaftRequest { kind: 1, payload: Bytes::from_static(b"append"), to_directory: Some(ID) },
            RaftReply { payload: Bytes::from_static(b"appended") },
        ),
    ]
}

fn a_move() -> MoveDescription {
    MoveDescription {
        topic: text("orders"),
        partition: 3,
        adding: vec![4],
        removing: vec![1],
        replicas: vec![1, 2, 300],
        state: text("copying"),
        lag: Some(0),
    }
}

fn operators() -> Vec<ApiSamples> {
    let broker = BrokerDescription {
        node_id: 1,
        address: text("[::1]:9470"),
        rack: text("a"),
        state: text("active"),
        broker_epoch: 9,
        directory_id: Some(ID),
        voter: true,
        replicas: 300,
        leaders: 100,
        feature_min: 1,
        feature_max: 2,
    };
    vec![
        exchange(
            DescribeClusterRequest {},
            DescribeClusterReply {
                cluster_id: Some(OTHER_ID),
                version: 14,
                controller: 1,
                voters: vec![1, 2, 300],
                feature_level: 1,
                brokers: vec![broker],
                moves: vec![a_move()],
                partitions: 300,
                partitions_offline: 1,
                partitions_under_replicated: 2,
                move_bytes_per_second: 32 << 20,
            },
        ),
        exchange(
            AlterClusterRequest {
                operation: ClusterOperation::ElectUnclean.into(),
                node_id: 2,
                dry_run: true,
                topic: text("orders"),
                partition: 3,
                bytes_per_second: 32 << 20,
                accept_loss: true,
            },
            AlterClusterReply {
                moves: vec![a_move()],
                replicas_moved: 75,
                leaders_moved: 25,
                message: text("offsets 78 to 81 of orders/3 are lost"),
            },
        ),
    ]
}
