//! Every error that crosses the wire, and what the client does about it.

/// What a client does after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Nothing went wrong.
    None,
    /// Wait and send the same request again, within the caller's deadline.
    Retry,
    /// Fetch metadata, then send the request again to where it says.
    RefreshMetadata,
    /// Go on from the batch number in the reply: what came after the refused batch was not appended.
    Resume,
    /// Open a new connection.
    Reconnect,
    /// Give the error to the application: the same request would fail again.
    Fail,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal, $duty:ident;)*) => {
        /// The outcome of a request. Codes are never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
            /// A code that this version does not know: treated as a failure.
            Unknown(u32),
        }

        impl ErrorCode {
            /// Every code that this version knows.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The number on the wire.
            #[must_use]
            pub const fn code(self) -> u32 {
                match self {
                    $(Self::$name => $code,)*
                    Self::Unknown(code) => code,
                }
            }

            /// The code with this number.
            #[must_use]
            pub const fn from_code(code: u32) -> Self {
                match code {
                    $($code => Self::$name,)*
                    code => Self::Unknown(code),
                }
            }

            /// The name used in documents, logs and JSON.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Unknown(_) => "unknown",
                }
            }

            /// What the client does about it.
            #[must_use]
            pub const fn duty(self) -> Duty {
                match self {
                    $(Self::$name => Duty::$duty,)*
                    Self::Unknown(_) => Duty::Fail,
                }
            }
        }
    };
}

error_codes! {
    /// Success.
    None = 0, "none", None;
    /// The broker does not know this API.
    UnknownApi = 1, "unknown_api", Fail;
    /// No protocol version is shared.
    UnsupportedVersion = 2, "unsupported_version", Fail;
    /// A frame or its body does not decode, or its checksum is wrong. The connection is closed.
    MalformedFrame = 3, "malformed_frame", Reconnect;
    /// A frame is larger than the limit. The connection is closed.
    FrameTooLarge = 4, "frame_too_large", Fail;
    /// A request came before the handshake and authentication were done.
    NotAuthenticated = 5, "not_authenticated", Fail;
    /// The principal may not do this.
    NotAuthorized = 6, "not_authorized", Fail;
    /// A field of the request has a value that is not allowed.
    InvalidRequest = 7, "invalid_request", Fail;
    /// The client named another cluster than this one.
    WrongCluster = 8, "wrong_cluster", Fail;
    /// No topic with this id or name.
    UnknownTopic = 10, "unknown_topic", RefreshMetadata;
    /// A topic with this name exists.
    TopicExists = 11, "topic_exists", Fail;
    /// The name of a topic is empty, too long or has a character that is not allowed.
    InvalidTopicName = 12, "invalid_topic_name", Fail;
    /// A topic setting is unknown or its value out of range.
    InvalidConfig = 13, "invalid_config", Fail;
    /// The number of partitions is out of range, or below the present number.
    InvalidPartitions = 14, "invalid_partitions", Fail;
    /// The replication is out of range or larger than the number of brokers.
    InvalidReplication = 15, "invalid_replication", Fail;
    /// The topic has no such partition here.
    UnknownPartition = 16, "unknown_partition", RefreshMetadata;
    /// This broker does not lead the partition.
    NotLeader = 17, "not_leader", RefreshMetadata;
    /// The leader's high watermark has not reached the start of its epoch yet.
    LeaderNotReady = 18, "leader_not_ready", Retry;
    /// The client's leader epoch is older than the broker's.
    FencedEpoch = 19, "fenced_epoch", RefreshMetadata;
    /// The client's leader epoch is newer than the broker's.
    UnknownEpoch = 20, "unknown_epoch", Retry;
    /// The offset lies before the log start or after the log end.
    OffsetOutOfRange = 21, "offset_out_of_range", Fail;
    /// The offset lies in a range whose bytes are corrupt on this replica.
    CorruptRange = 22, "corrupt_range", Fail;
    /// A batch does not have the shape or the checksums of a batch of this partition.
    CorruptBatch = 23, "corrupt_batch", Fail;
    /// A batch is larger than the topic or the protocol allows.
    BatchTooLarge = 24, "batch_too_large", Fail;
    /// A batch has a format, header or compression that this broker does not accept.
    UnsupportedFormat = 25, "unsupported_format", Fail;
    /// An earlier batch of this connection and partition was refused, so this one would break the order.
    OutOfOrder = 26, "out_of_order", Resume;
    /// More bytes were produced than the window granted. The connection is closed.
    WindowExceeded = 27, "window_exceeded", Reconnect;
    /// More requests were in flight than agreed. The connection is closed.
    TooManyInFlight = 28, "too_many_in_flight", Reconnect;
    /// The peer does not read its replies. The connection is closed.
    SlowReader = 29, "slow_reader", Reconnect;
    /// The partition has more queued work than it accepts; nothing was appended.
    Busy = 30, "busy", Retry;
    /// Free disk space is below the reserve: the broker is read-only until space returns; nothing was appended.
    DiskFull = 31, "disk_full", Retry;
    /// Reading or writing the disk failed; nothing was appended.
    StorageError = 32, "storage_error", Retry;
    /// A flush failed: the replica does not serve until it has been verified past the page cache.
    ReplicaSuspect = 33, "replica_suspect", Retry;
    /// The broker is shutting down.
    ShuttingDown = 34, "shutting_down", Reconnect;
    /// The condition was not reached in time; the batch may or may not be committed later.
    TimedOut = 35, "timed_out", Fail;
    /// The batch was appended but its durability could not be confirmed; it may or may not survive.
    OutcomeUnknown = 36, "outcome_unknown", Fail;
    /// Too few replicas are in sync to accept this.
    NotEnoughReplicas = 37, "not_enough_replicas", Retry;
    /// A subscription id is not greater than all before it on the connection.
    DuplicateSubscription = 40, "duplicate_subscription", Fail;
    /// No live subscription has this id.
    UnknownSubscription = 41, "unknown_subscription", Fail;
    /// The connection has as many subscriptions as it may.
    TooManySubscriptions = 42, "too_many_subscriptions", Fail;
    /// The broker has as many connections as it accepts.
    TooManyConnections = 43, "too_many_connections", Retry;
    /// Nothing was heard from the peer for too long. The connection is closed.
    IdleTimeout = 44, "idle_timeout", Reconnect;
    /// The replica's log was reset below its log start: its subscriber starts over.
    LogReset = 45, "log_reset", RefreshMetadata;
    /// There is no controller at the moment, or it cannot reach a majority.
    NoController = 50, "no_controller", Retry;
    /// This broker is not the controller, and the request has to go there.
    NotController = 51, "not_controller", RefreshMetadata;
    /// The broker's registration is not, or not any more, the one that the cluster knows.
    StaleBrokerEpoch = 52, "stale_broker_epoch", Fail;
    /// A node id or a data directory is taken by another broker.
    BrokerConflict = 53, "broker_conflict", Fail;
    /// The partition has changed since the proposal was made.
    StaleVersion = 54, "stale_version", Retry;
    /// A replica that a proposal names may not be in the set.
    IneligibleReplica = 55, "ineligible_replica", Retry;
    /// The request does not fit the present state of the cluster.
    Conflict = 56, "conflict", Fail;
    /// A newer incarnation of this producer has written: this one is a zombie.
    ProducerFenced = 60, "producer_fenced", Fail;
    /// A batch's sequence does not follow the last one that the partition has of this producer.
    SequenceGap = 61, "sequence_gap", Fail;
    /// The partition does not know this producer (any more), and the batch is not its first.
    UnknownProducer = 62, "unknown_producer", Fail;
    /// The batch is so old that its offset is not remembered; it was appended once, and is not again.
    AlreadyApplied = 63, "already_applied", Fail;
    /// The group has no coordinator at the moment.
    NoCoordinator = 70, "no_coordinator", Retry;
    /// This broker does not coordinate the group (any more): find the coordinator again.
    NotCoordinator = 71, "not_coordinator", RefreshMetadata;
    /// The coordinator is reading the group's state.
    CoordinatorLoading = 72, "coordinator_loading", Retry;
    /// The group has no such member (any more). The member owns nothing; it may join again under another id.
    UnknownMember = 73, "unknown_member", Fail;
    /// The member does not own the partition under this generation, or has joined again since.
    FencedGeneration = 74, "fenced_generation", Fail;
    /// Another member has this instance id and is alive.
    InstanceInUse = 75, "instance_in_use", Fail;
    /// There is no such group.
    UnknownGroup = 76, "unknown_group", Fail;
    /// The group has members, or one of them owns the partition.
    GroupNotEmpty = 77, "group_not_empty", Fail;
    /// A group, member, instance, pattern or assignor has a name that is not allowed.
    InvalidGroup = 78, "invalid_group", Fail;
    /// The group has as many members as it may, or the coordinator as many groups.
    GroupFull = 79, "group_full", Fail;
    /// The member is not assigned the partition.
    NotAssigned = 80, "not_assigned", Fail;
    /// A defect of the broker. Its log says more.
    Internal = 99, "internal", Fail;
}

impl ErrorCode {
    /// Whether this is success.
    #[must_use]
    pub const fn is_none(self) -> bool {
        matches!(self, Self::None)
    }

    /// Whether a later attempt may succeed without a change by the application.
    #[must_use]
    pub const fn is_retriable(self) -> bool {
        matches!(self.duty(), Duty::Retry | Duty::RefreshMetadata | Duty::Resume | Duty::Reconnect)
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown(code) => write!(f, "unknown error code {code}"),
            known => f.write_str(known.name()),
        }
    }
}
