//! One value of every message with every field set, so that no field is missing from its golden bytes.
//!
//! No `..Default::default()` here: a new field must be given a value, which changes the golden bytes, which must be meant.

mod cluster;
mod groups;

use std::collections::BTreeMap;

use bytes::Bytes;
use highwater_protocol::api::{ApiKey, OneWay, Request};
use highwater_protocol::body::{self, Body};
use highwater_protocol::messages::*;

/// A message in its encoded form, and how to take it through the struct and back.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    /// Decodes within the bounds, encodes again, and checks that value and bytes do not change any more.
    pub(crate) through_struct: fn(&[u8]) -> Vec<u8>,
}

fn sample<M: Body + Clone + PartialEq>(message: M) -> Sample {
    fn through_struct<M: Body + Clone + PartialEq>(bytes: &[u8]) -> Vec<u8> {
        let decoded: M = body::decode(&Bytes::copy_from_slice(bytes)).unwrap();
        let encoded = decoded.encode_to_vec();
        assert_eq!(encoded.len(), decoded.encoded_len());
        let again: M = body::decode(&Bytes::copy_from_slice(&encoded)).unwrap();
        assert_eq!(again, decoded);
        encoded
    }
    let name = std::any::type_name::<M>().rsplit("::").next().unwrap();
    Sample { name, bytes: message.encode_to_vec(), through_struct: through_struct::<M> }
}

/// The samples of an API: its request and its reply, or its one-way message.
pub(crate) struct ApiSamples {
    pub(crate) api: ApiKey,
    pub(crate) samples: Vec<Sample>,
}

fn exchange<R>(request: R, response: R::Response) -> ApiSamples
where
    R: Request + Clone + PartialEq,
    R::Response: Clone + PartialEq,
{
    ApiSamples { api: R::API, samples: vec![sample(request), sample(response)] }
}

fn one_way<M: OneWay + Clone + PartialEq>(message: M) -> ApiSamples {
    ApiSamples { api: M::API, samples: vec![sample(message)] }
}

const ID: Uuid = Uuid { high: 0x0102_0304_0506_0708, low: 0x090a_0b0c_0d0e_0f10 };
const OTHER_ID: Uuid = Uuid { high: u64::MAX, low: 1 };

fn text(text: &str) -> String {
    text.to_owned()
}

pub(crate) fn error_reply() -> Sample {
    sample(ErrorReply { code: 17, message: text("node 2 does not lead orders/3: refresh metadata") })
}

pub(crate) fn all() -> Vec<ApiSamples> {
    let mut all = connection();
    all.extend(topics());
    all.extend(data());
    all.extend(subscriptions());
    all.extend(cluster::all());
    all.extend(groups::all());
    all
}

fn connection() -> Vec<ApiSamples> {
    vec![
        exchange(
            HandshakeRequest {
                version_min: 1,
                version_max: 2,
                features: vec![text("zstd"), text("idempotence")],
                cluster_id: Some(ID),
                client_name: text("billing"),
                client_version: text("0.1.0"),
                namespace: text("eu"),
                broker: Some(cluster::identity()),
            },
            HandshakeReply {
                version: 1,
                features: vec![text("zstd")],
                cluster_id: Some(ID),
                node_id: 3,
                broker_version: text("0.1.0"),
                produce_window: 16 << 20,
                max_in_flight: 1024,
                frame_bytes_max: 20 << 20,
                authentication_methods: vec![text("scram-sha-256")],
                principal: text("anonymous"),
                idle_timeout_ms: 600_000,
                directory_id: Some(OTHER_ID),
                broker_epoch: 9,
            },
        ),
        exchange(
            AuthenticateRequest {
                method: text("scram-sha-256"),
                payload: Bytes::from_static(b"n,,n=billing"),
            },
            AuthenticateReply {
                payload: Bytes::from_static(b"r=1,s=2,i=4096"),
                done: true,
                principal: text("billing"),
            },
        ),
        exchange(PingRequest {}, PingReply {}),
        one_way(Goodbye { code: 44, message: text("nothing was heard for 600 s") }),
    ]
}

fn broker_info() -> BrokerInfo {
    BrokerInfo { node_id: 1, address: text("[::1]:9470"), rack: text("a") }
}

fn partition_info() -> PartitionInfo {
    PartitionInfo {
        partition: 3,
        leader: 1,
        leader_epoch: 7,
        replicas: vec![1, 2, 300],
        in_sync: vec![1, 2],
        eligible: vec![300],
    }
}

fn topic_info() -> TopicInfo {
    TopicInfo {
        error: 10,
        name: text("orders"),
        topic_id: Some(ID),
        partitions: vec![partition_info()],
        batch_bytes_max: 4 << 20,
    }
}

fn topic_description() -> TopicDescription {
    let partition = PartitionDescription {
        error: 17,
        info: Some(partition_info()),
        log_start: 10,
        log_end: 40,
        flushed_end: 30,
        high_watermark: 20,
        bytes: 1 << 33,
        segments: 32,
        durability: text("fsync"),
        state: text("online"),
        corrupt: vec![CorruptRange { start: 12, end: 14 }],
        replicas: vec![ReplicaDescription {
            node_id: 2,
            log_end: 40,
            flushed_end: 30,
            in_sync: true,
            connected: true,
        }],
    };
    TopicDescription {
        error: 10,
        name: text("orders"),
        topic_id: Some(ID),
        replication: 3,
        partition_count: 8,
        config: vec![ConfigEntry {
            name: text("durability"),
            value: text("fsync"),
            source: ConfigSource::Topic.into(),
        }],
        partitions: vec![partition],
        created_at_us: 1_790_000_000_000_000,
    }
}

fn topics() -> Vec<ApiSamples> {
    let config = BTreeMap::from([
        (text("durability"), text("interval(100ms)")),
        (text("segment_bytes"), text("64MiB")),
    ]);
    vec![
        exchange(
            MetadataRequest {
                names: vec![text("orders"), text("")],
                topic_ids: vec![ID, OTHER_ID],
                all_topics: true,
                watch: true,
            },
            MetadataReply {
                cluster_id: Some(OTHER_ID),
                version: 12,
                controller: 1,
                brokers: vec![broker_info()],
                topics: vec![topic_info()],
            },
        ),
        exchange(
            CreateTopicRequest {
                name: text("orders"),
                partitions: 8,
                replication: 3,
                config: config.clone(),
                validate_only: true,
            },
            CreateTopicReply { topic_id: Some(ID), partitions: 8, replication: 3 },
        ),
        exchange(
            DescribeTopicsRequest { names: vec![text("orders")], summary: true },
            DescribeTopicsReply { topics: vec![topic_description()] },
        ),
        exchange(
            AlterTopicRequest {
                name: text("orders"),
                set: config,
                unset: vec![text("retention_age")],
                partitions: 16,
                validate_only: true,
            },
            AlterTopicReply { partitions: 16 },
        ),
        exchange(DeleteTopicRequest { name: text("orders"), topic_id: Some(ID) }, DeleteTopicReply {}),
    ]
}

fn data() -> Vec<ApiSamples> {
    let batch = ProduceBatch { topic_id: Some(ID), partition: 3, number: 1 << 40, length: 4096 };
    let result = ProduceResult {
        error: 26,
        message: text("batch 5 of orders/3 was refused: resume at 5"),
        base_offset: 1 << 50,
        append_time: 1_790_000_000_000_001,
        stage: Stage::Flushed.into(),
        replicas_counted: 2,
        replicas_total: 3,
        next_number: 5,
    };
    let query =
        OffsetQuery { topic_id: Some(ID), partition: 3, position: Position::Time.into(), timestamp_ms: -1 };
    let found = OffsetResult {
        error: 16,
        message: text("orders has 8 partitions, from 0"),
        offset: 77,
        timestamp_ms: -1,
        leader_epoch: 7,
    };
    vec![
        exchange(
            ProduceRequest { acks: Acks::Leader.into(), timeout_ms: 30_000, batches: vec![batch, batch] },
            ProduceReply { results: vec![result] },
        ),
        one_way(ProduceCredit { limit: u64::MAX }),
        exchange(ListOffsetsRequest { queries: vec![query] }, ListOffsetsReply { results: vec![found] }),
        exchange(
            ReadRequest { topic_id: Some(ID), partition: 3, offset: 77, bytes_max: 1 << 20 },
            ReadReply { high_watermark: 80, log_start: 10, log_end: 81, leader_epoch: 7 },
        ),
    ]
}

fn subscriptions() -> Vec<ApiSamples> {
    let replica = ReplicaIdentity { node_id: 2, directory_id: Some(OTHER_ID), broker_epoch: 9 };
    vec![
        exchange(
            SubscribeRequest {
                id: 1,
                topic_id: Some(ID),
                partition: 3,
                current_epoch: Some(0),
                offset: 77,
                last_epoch: Some(6),
                credit: 4 << 20,
                isolation: Isolation::LogEnd.into(),
                replica: Some(replica),
            },
            SubscribeReply {
                leader_epoch: 7,
                high_watermark: 80,
                log_start: 10,
                log_end: 81,
                divergence: Some(Divergence { epoch: 6, end_offset: 70 }),
                reset: true,
            },
        ),
        one_way(Push {
            id: 1,
            leader_epoch: 7,
            high_watermark: 80,
            last_stable: 79,
            log_start: 10,
            aborted: vec![AbortedRange { producer_id: 5, first_offset: 78 }],
        }),
        one_way(Credit { id: 1, limit: 8 << 20 }),
        exchange(UnsubscribeRequest { id: 1 }, UnsubscribeReply {}),
        one_way(Ended {
            id: 1,
            code: 22,
            message: text("offsets 78 to 80 of orders/3 are corrupt on node 1"),
            leader: 1,
            log_start: 10,
            log_end: 81,
            divergence: Some(Divergence { epoch: 6, end_offset: 70 }),
            corrupt: Some(CorruptRange { start: 78, end: 80 }),
        }),
        one_way(ReplicaAck { id: 1, leader_epoch: 7, broker_epoch: 9, log_end: 81, flushed_end: 80 }),
    ]
}
