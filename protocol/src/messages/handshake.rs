//! Opening and closing a connection.

/// First on every connection.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct HandshakeRequest {
    /// The oldest protocol version that the client speaks.
    #[prost(uint32, tag = "1")]
    pub version_min: u32,
    /// The newest protocol version that the client speaks.
    #[prost(uint32, tag = "2")]
    pub version_max: u32,
    /// Optional abilities of the client.
    #[prost(string, repeated, tag = "3")]
    pub features: Vec<String>,
    /// The cluster that the client expects, if it knows.
    #[prost(message, optional, tag = "4")]
    pub cluster_id: Option<super::Uuid>,
    /// For logs and metrics.
    #[prost(string, tag = "5")]
    pub client_name: String,
    /// For logs.
    #[prost(string, tag = "6")]
    pub client_version: String,
    /// In which topic names are looked up. Empty: the default one, the only one yet.
    #[prost(string, tag = "7")]
    pub namespace: String,
    /// Set by brokers of the cluster.
    #[prost(message, optional, tag = "8")]
    pub broker: Option<super::BrokerIdentity>,
}

/// What the broker agrees to.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct HandshakeReply {
    /// The version that both speak from here on.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Optional abilities that both have.
    #[prost(string, repeated, tag = "2")]
    pub features: Vec<String>,
    /// The broker's cluster.
    #[prost(message, optional, tag = "3")]
    pub cluster_id: Option<super::Uuid>,
    /// The broker.
    #[prost(uint32, tag = "4")]
    pub node_id: u32,
    /// For logs.
    #[prost(string, tag = "5")]
    pub broker_version: String,
    /// Bytes of batches that may be produced before the first `ProduceCredit`; cumulative.
    #[prost(uint64, tag = "6")]
    pub produce_window: u64,
    /// Requests that may be unanswered at once.
    #[prost(uint32, tag = "7")]
    pub max_in_flight: u32,
    /// Bytes that a frame may have after its header.
    #[prost(uint32, tag = "8")]
    pub frame_bytes_max: u32,
    /// How the client may authenticate. Empty: no rounds are needed and the principal below holds.
    #[prost(string, repeated, tag = "9")]
    pub authentication_methods: Vec<String>,
    /// Who the client is taken for when no rounds are needed.
    #[prost(string, tag = "10")]
    pub principal: String,
    /// Milliseconds of silence after which the broker closes the connection; `Ping` keeps it open.
    #[prost(uint64, tag = "11")]
    pub idle_timeout_ms: u64,
    /// The broker's data directory.
    #[prost(message, optional, tag = "12")]
    pub directory_id: Option<super::Uuid>,
    /// The broker's registration; 0 while it has none.
    #[prost(uint64, tag = "13")]
    pub broker_epoch: u64,
}

/// One round of authentication from the client.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AuthenticateRequest {
    /// One of the methods offered; the same in every round.
    #[prost(string, tag = "1")]
    pub method: String,
    /// What the method says.
    #[prost(bytes = "bytes", tag = "2")]
    pub payload: bytes::Bytes,
}

/// The broker's part of a round.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AuthenticateReply {
    /// What the method says.
    #[prost(bytes = "bytes", tag = "1")]
    pub payload: bytes::Bytes,
    /// Whether the client is authenticated now; otherwise another round follows.
    #[prost(bool, tag = "2")]
    pub done: bool,
    /// Who the client is, once done.
    #[prost(string, tag = "3")]
    pub principal: String,
}

/// Keeps an idle connection open.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct PingRequest {}

/// The answer to a ping.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct PingReply {}

/// Why the broker closes the connection; nothing follows it.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Goodbye {
    /// An [`ErrorCode`](crate::error_code::ErrorCode).
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
}
