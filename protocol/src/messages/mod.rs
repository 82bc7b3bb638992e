//! The bodies of frames: protobuf messages as plain structs. `proto/highwater.proto` says the same for other languages.

mod cluster;
mod group_offsets;
mod groups;
mod handshake;
mod list_offsets;
mod metadata;
mod produce;
mod producer_id;
mod read;
mod replica;
mod subscribe;
mod topics;

use crate::body::{Body, Nested};
use crate::ids;
use crate::limits::REPLY_FIELDS_MAX;

pub use cluster::{
    AlterClusterReply, AlterClusterRequest, BootstrapReply, BootstrapRequest, BrokerDescription,
    BrokerIdentity, ClusterOperation, DescribeClusterReply, DescribeClusterRequest, HeartbeatReply,
    HeartbeatRequest, MoveDescription, ProposeReply, ProposeRequest, RaftReply, RaftRequest,
    RegisterBrokerReply, RegisterBrokerRequest, Voter,
};
pub use group_offsets::{
    AlterGroupOffsetsReply, AlterGroupOffsetsRequest, AlteredOffset, CommitOffset, CommitOffsetsReply,
    CommitOffsetsRequest, CommittedOffset, FetchOffsetsReply, FetchOffsetsRequest, GroupLag, OffsetTarget,
    PartitionResult,
};
pub use groups::{
    Coordinator, DeleteGroupsReply, DeleteGroupsRequest, DescribeGroupsReply, DescribeGroupsRequest,
    DescribedGroup, FindCoordinatorReply, FindCoordinatorRequest, GroupAction, GroupAssignment,
    GroupHeartbeatReply, GroupHeartbeatRequest, GroupMember, GroupPartitions, GroupResult, GroupSubscription,
    ListGroupsReply, ListGroupsRequest, ListedGroup, UnavailableCoordinator,
};
pub use handshake::{
    AuthenticateReply, AuthenticateRequest, Goodbye, HandshakeReply, HandshakeRequest, PingReply, PingRequest,
};
pub use list_offsets::{ListOffsetsReply, ListOffsetsRequest, OffsetQuery, OffsetResult, Position};
pub use metadata::{BrokerInfo, MetadataPush, MetadataReply, MetadataRequest, PartitionInfo, TopicInfo};
pub use produce::{Acks, ProduceBatch, ProduceCredit, ProduceReply, ProduceRequest, ProduceResult, Stage};
pub use producer_id::{InitProducerReply, InitProducerRequest};
pub use read::{ReadReply, ReadRequest};
pub use replica::{
    EpochEntry, ReplicaChecksumReply, ReplicaChecksumRequest, ReplicaReadReply, ReplicaReadRequest,
    ReplicaResetReply, ReplicaResetRequest,
};
pub use subscribe::{
    AbortedRange, Credit, Divergence, Ended, Isolation, Push, ReplicaAck, ReplicaIdentity, SubscribeReply,
    SubscribeRequest, UnsubscribeReply, UnsubscribeRequest,
};
pub use topics::{
    AlterTopicReply, AlterTopicRequest, ConfigEntry, ConfigSource, CorruptRange, CreateTopicReply,
    CreateTopicRequest, DeleteTopicReply, DeleteTopicRequest, DescribeTopicsReply, DescribeTopicsRequest,
    PartitionDescription, ReplicaDescription, TopicDescription,
};

/// A 128-bit id, as two numbers so that it costs no allocation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Uuid {
    /// The first eight bytes, big-endian.
    #[prost(fixed64, tag = "1")]
    pub high: u64,
    /// The last eight bytes, big-endian.
    #[prost(fixed64, tag = "2")]
    pub low: u64,
}

impl From<u128> for Uuid {
    #[expect(clippy::cast_possible_truncation, reason = "each half in turn")]
    fn from(value: u128) -> Self {
        Self { high: (value >> 64) as u64, low: value as u64 }
    }
}

impl From<Uuid> for u128 {
    fn from(value: Uuid) -> Self {
        (Self::from(value.high) << 64) | Self::from(value.low)
    }
}

macro_rules! uuid_of {
    ($($id:ident),*) => {
        $(impl From<ids::$id> for Uuid {
            fn from(id: ids::$id) -> Self {
                id.0.into()
            }
        }

        impl From<Uuid> for ids::$id {
            fn from(id: Uuid) -> Self {
                Self(id.into())
            }
        })*
    };
}
uuid_of!(TopicId, DirectoryId, ClusterId);

/// The body of a reply with `FLAG_ERROR`.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ErrorReply {
    /// An [`ErrorCode`](crate::error_code::ErrorCode).
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// What happened, to what, and what to do, for people.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// Ties each message to its number and its reply.
macro_rules! requests {
    ($($request:ident => $response:ident = $api:ident),* $(,)?) => {
        $(impl crate::api::Request for $request {
            type Response = $response;
            const API: crate::api::ApiKey = crate::api::ApiKey::$api;
        })*
    };
}

macro_rules! one_ways {
    ($($message:ident = $api:ident),* $(,)?) => {
        $(impl crate::api::OneWay for $message {
            const API: crate::api::ApiKey = crate::api::ApiKey::$api;
        })*
    };
}

requests! {
    HandshakeRequest => HandshakeReply = HANDSHAKE,
    AuthenticateRequest => AuthenticateReply = AUTHENTICATE,
    PingRequest => PingReply = PING,
    MetadataRequest => MetadataReply = METADATA,
    CreateTopicRequest => CreateTopicReply = CREATE_TOPIC,
    DescribeTopicsRequest => DescribeTopicsReply = DESCRIBE_TOPICS,
    AlterTopicRequest => AlterTopicReply = ALTER_TOPIC,
    DeleteTopicRequest => DeleteTopicReply = DELETE_TOPIC,
    ProduceRequest => ProduceReply = PRODUCE,
    ListOffsetsRequest => ListOffsetsReply = LIST_OFFSETS,
    ReadRequest => ReadReply = READ,
    SubscribeRequest => SubscribeReply = SUBSCRIBE,
    UnsubscribeRequest => UnsubscribeReply = UNSUBSCRIBE,
    InitProducerRequest => InitProducerReply = INIT_PRODUCER,
    ReplicaResetRequest => ReplicaResetReply = REPLICA_RESET,
    ReplicaReadRequest => ReplicaReadReply = REPLICA_READ,
    ReplicaChecksumRequest => ReplicaChecksumReply = REPLICA_CHECKSUM,
    BootstrapRequest => BootstrapReply = BOOTSTRAP,
    RegisterBrokerRequest => RegisterBrokerReply = REGISTER_BROKER,
    HeartbeatRequest => HeartbeatReply = HEARTBEAT,
    ProposeRequest => ProposeReply = PROPOSE,
    RaftRequest => RaftReply = RAFT,
    DescribeClusterRequest => DescribeClusterReply = DESCRIBE_CLUSTER,
    AlterClusterRequest => AlterClusterReply = ALTER_CLUSTER,
    FindCoordinatorRequest => FindCoordinatorReply = FIND_COORDINATOR,
    GroupHeartbeatRequest => GroupHeartbeatReply = GROUP_HEARTBEAT,
    CommitOffsetsRequest => CommitOffsetsReply = COMMIT_OFFSETS,
    FetchOffsetsRequest => FetchOffsetsReply = FETCH_OFFSETS,
    ListGroupsRequest => ListGroupsReply = LIST_GROUPS,
    DescribeGroupsRequest => DescribeGroupsReply = DESCRIBE_GROUPS,
    AlterGroupOffsetsRequest => AlterGroupOffsetsReply = ALTER_GROUP_OFFSETS,
    DeleteGroupsRequest => DeleteGroupsReply = DELETE_GROUPS,
}

one_ways! {
    Goodbye = GOODBYE,
    ProduceCredit = PRODUCE_CREDIT,
    Push = PUSH,
    Credit = CREDIT,
    Ended = ENDED,
    ReplicaAck = REPLICA_ACK,
    MetadataPush = METADATA_PUSH,
}

macro_rules! of_few_fields {
    ($($message:ident),* $(,)?) => {
        $(impl Body for $message {})*
    };
}

of_few_fields! {
    HandshakeRequest,
    AuthenticateRequest,
    PingRequest,
    MetadataRequest,
    CreateTopicRequest,
    DescribeTopicsRequest,
    AlterTopicRequest,
    DeleteTopicRequest,
    ProduceRequest,
    ListOffsetsRequest,
    ReadRequest,
    SubscribeRequest,
    UnsubscribeRequest,
    InitProducerRequest,
    ReplicaResetRequest,
    ReplicaReadRequest,
    ReplicaChecksumRequest,
    BootstrapRequest,
    RegisterBrokerRequest,
    HeartbeatRequest,
    ProposeRequest,
    RaftRequest,
    DescribeClusterRequest,
    AlterClusterRequest,
    FindCoordinatorRequest,
    CommitOffsetsRequest,
    FetchOffsetsRequest,
    ListGroupsRequest,
    DescribeGroupsRequest,
    AlterGroupOffsetsRequest,
    DeleteGroupsRequest,
    Goodbye,
    ProduceCredit,
    Push,
    Credit,
    Ended,
    ReplicaAck,
    ErrorReply,
    HandshakeReply,
    AuthenticateReply,
    PingReply,
    CreateTopicReply,
    AlterTopicReply,
    DeleteTopicReply,
    ProduceReply,
    ListOffsetsReply,
    ReadReply,
    SubscribeReply,
    UnsubscribeReply,
    InitProducerReply,
    ReplicaResetReply,
    ReplicaReadReply,
    ReplicaChecksumReply,
    BootstrapReply,
    RegisterBrokerReply,
    HeartbeatReply,
    ProposeReply,
    RaftReply,
    FindCoordinatorReply,
    CommitOffsetsReply,
    DeleteGroupsReply,
    AlterGroupOffsetsReply,
}

impl Body for GroupHeartbeatRequest {
    const NESTED: &'static [Nested] = &[Nested { tag: 10, inside: &[] }, Nested { tag: 11, inside: &[] }];
}

impl Body for GroupHeartbeatReply {
    const FIELDS_MAX: usize = REPLY_FIELDS_MAX;
    const NESTED: &'static [Nested] = &[Nested { tag: 3, inside: &[] }];
}

impl Body for FetchOffsetsReply {
    const FIELDS_MAX: usize = REPLY_FIELDS_MAX;
}

impl Body for ListGroupsReply {
    const FIELDS_MAX: usize = REPLY_FIELDS_MAX;
}

impl Body for DescribeGroupsReply {
    const FIELDS_MAX: usize = REPLY_FIELDS_MAX;
    const NESTED: &'static [Nested] = &[Nested {
        tag: 1,
        inside: &[Nested {
            tag: 8,
            inside: &[Nested { tag: 8, inside: &[] }, Nested { tag: 9, inside: &[] }],
        }],
    }];
}

impl Body for DescribeClusterReply {
    const FIELDS_MAX: usize = REPLY_FIELDS_MAX;
    const NESTED: &'static [Nested] = &[Nested { tag: 6, inside: &[] }, Nested { tag: 7, inside: &[] }];
}

impl Body for AlterClusterReply {
    const FIELDS_MAX: usize = REPLY_FIELDS_MAX;
    const NESTED: &'static [Nested] = &[Nested { tag: 1, inside: &[] }];
}

impl Body for MetadataReply {
    const FIELDS_MAX: usize = REPLY_FIELDS_MAX;
    const NESTED: &'static [Nested] = &[Nested { tag: 5, inside: &[] }];
}

impl Body for MetadataPush {
    const FIELDS_MAX: usize = REPLY_FIELDS_MAX;
    const NESTED: &'static [Nested] = &[Nested { tag: 4, inside: &[] }];
}

impl Body for DescribeTopicsReply {
    const FIELDS_MAX: usize = REPLY_FIELDS_MAX;
    const NESTED: &'static [Nested] = &[Nested { tag: 1, inside: &[Nested { tag: 7, inside: &[] }] }];
}
