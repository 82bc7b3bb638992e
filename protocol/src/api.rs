//! Which messages exist, and which reply belongs to which request.

use crate::body::Body;

/// The number of a request, its reply, or a one-way message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ApiKey(pub u16);

/// The protocol version that this code speaks. Agreed on in the handshake; bodies grow by protobuf fields, so it is
/// raised only for changes that an older peer could not pass over.
pub const PROTOCOL_VERSION: u32 = 1;

macro_rules! api_keys {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        impl ApiKey {
            $($(#[$doc])* pub const $name: Self = Self($number);)*

            /// Every API of this version.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name used in logs and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $($number => $text,)*
                    _ => "unknown",
                }
            }
        }
    };
}

api_keys! {
    /// First on every connection: versions, features, names.
    HANDSHAKE = 1, "handshake";
    /// A round of authentication.
    AUTHENTICATE = 2, "authenticate";
    /// Keeps an idle connection open and measures its round trip.
    PING = 3, "ping";
    /// One-way, from the broker: why it closes the connection.
    GOODBYE = 4, "goodbye";
    /// Brokers, topics and who leads their partitions.
    METADATA = 10, "metadata";
    /// Makes a topic.
    CREATE_TOPIC = 11, "create_topic";
    /// Settings and state of topics.
    DESCRIBE_TOPICS = 12, "describe_topics";
    /// Changes settings or adds partitions.
    ALTER_TOPIC = 13, "alter_topic";
    /// Removes a topic.
    DELETE_TOPIC = 14, "delete_topic";
    /// One-way, from the broker, to whoever asked to watch: what has changed in the metadata.
    METADATA_PUSH = 15, "metadata_push";
    /// Appends batches.
    PRODUCE = 20, "produce";
    /// One-way, from the broker: how many bytes of batches may be produced in all.
    PRODUCE_CREDIT = 21, "produce_credit";
    /// Finds offsets by position or by time.
    LIST_OFFSETS = 22, "list_offsets";
    /// A plain bounded read, for tools.
    READ = 23, "read";
    /// Gives an idempotent producer its identity.
    INIT_PRODUCER = 24, "init_producer";
    /// Opens a subscription.
    SUBSCRIBE = 30, "subscribe";
    /// One-way, from the broker: batches, or a watermark that moved.
    PUSH = 31, "push";
    /// One-way: how many bytes may be pushed in all.
    CREDIT = 32, "credit";
    /// Ends a subscription.
    UNSUBSCRIBE = 33, "unsubscribe";
    /// One-way, from the broker: the subscription is over.
    ENDED = 34, "ended";
    /// One-way, from a follower: how far it is.
    REPLICA_ACK = 35, "replica_ack";
    /// Where a follower starts over whose log ends below the leader's log start.
    REPLICA_RESET = 36, "replica_reset";
    /// Reads from any replica, to fill a hole.
    REPLICA_READ = 37, "replica_read";
    /// A checksum over a range of any replica.
    REPLICA_CHECKSUM = 38, "replica_checksum";
    /// What a listed voter is.
    BOOTSTRAP = 40, "bootstrap";
    /// A broker comes.
    REGISTER_BROKER = 41, "register_broker";
    /// A broker is alive.
    HEARTBEAT = 42, "heartbeat";
    /// A broker asks the controller for a change.
    PROPOSE = 43, "propose";
    /// A message of consensus.
    RAFT = 44, "raft";
    /// The state of the cluster.
    DESCRIBE_CLUSTER = 45, "describe_cluster";
    /// Drains, removes, rebalances.
    ALTER_CLUSTER = 46, "alter_cluster";
    /// Who coordinates groups.
    FIND_COORDINATOR = 50, "find_coordinator";
    /// A member of a group joins, is alive, or leaves.
    GROUP_HEARTBEAT = 51, "group_heartbeat";
    /// Records how far a group has come.
    COMMIT_OFFSETS = 52, "commit_offsets";
    /// How far a group has come.
    FETCH_OFFSETS = 53, "fetch_offsets";
    /// The groups of a coordinator.
    LIST_GROUPS = 54, "list_groups";
    /// Members and offsets of groups.
    DESCRIBE_GROUPS = 55, "describe_groups";
    /// Sets or removes positions of a group.
    ALTER_GROUP_OFFSETS = 56, "alter_group_offsets";
    /// Removes groups.
    DELETE_GROUPS = 57, "delete_groups";
}

/// A message that is answered.
pub trait Request: Body {
    /// What a successful reply carries.
    type Response: Body;
    /// Its number.
    const API: ApiKey;
}

/// A message that is not answered.
pub trait OneWay: Body {
    /// Its number.
    const API: ApiKey;
}
