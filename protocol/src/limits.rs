//! Every limit of the protocol, in one place. A length read from a peer is compared with one of these before anything
//! is allocated for it.

/// Bytes of one whole record batch, header included. A topic may set a smaller bound, never a larger one.
pub const BATCH_BYTES_MAX: usize = 16 << 20;

/// Bytes of the records section of one batch after decompression. Bounds what a hostile batch can expand to.
pub const RECORDS_BYTES_MAX: usize = 64 << 20;

/// Bytes of a frame's protobuf body.
pub const BODY_BYTES_MAX: usize = 4 << 20;

/// Fields of a request's body, or of a reply that is not about many topics: what bounds the memory that a decoded body
/// takes beyond its own bytes.
pub const REQUEST_FIELDS_MAX: usize = 16 << 10;

/// Fields of a reply about many topics and partitions, their inner messages included.
pub const REPLY_FIELDS_MAX: usize = 256 << 10;

/// Bytes after the header of a frame before the peer is authenticated.
pub const HANDSHAKE_FRAME_BYTES_MAX: usize = 64 << 10;

/// Bytes of a frame after its header: body and attachment.
pub const FRAME_BYTES_MAX: usize = BATCH_BYTES_MAX + BODY_BYTES_MAX;

/// Batches in one produce request.
pub const PRODUCE_BATCHES_MAX: usize = 4096;

/// Bytes of a batch header with all its extensions.
pub const HEADER_LENGTH_MAX: usize = 256;

/// Bytes that a record takes at least: its length, attributes, two deltas, two absent fields and a header count.
pub const RECORD_LENGTH_MIN: usize = 7;

/// Headers of one record.
pub const RECORD_HEADERS_MAX: usize = 1024;

/// Bytes of a topic name.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;

/// Bytes of a client name, a namespace or the name of an authentication method.
pub const NAME_BYTES_MAX: usize = 256;

/// Batches of one idempotent producer that may be in flight to one partition. A partition remembers as many of each
/// producer, so that whatever a producer may have to send again is recognised.
pub const PRODUCER_BATCHES_IN_FLIGHT_MAX: usize = 32;

/// Partitions of one topic.
pub const PARTITIONS_MAX: u32 = 10_000;

/// Rounds of an authentication exchange before it is refused.
pub const AUTHENTICATION_ROUNDS_MAX: usize = 8;

/// Bytes of a group's name, and of the instance id of a static member.
pub const GROUP_NAME_BYTES_MAX: usize = 249;

/// Bytes of a member's id. Clients make 32 hexadecimal digits.
pub const MEMBER_ID_BYTES_MAX: usize = 64;

/// Members of one group.
pub const GROUP_MEMBERS_MAX: usize = 2000;

/// Topics that one member subscribes to by name.
pub const GROUP_TOPICS_MAX: usize = 1000;

/// Bytes of the pattern that a member subscribes to.
pub const GROUP_PATTERN_BYTES_MAX: usize = 1024;

/// Groups in one request.
pub const GROUPS_PER_REQUEST_MAX: usize = 1000;

/// Positions in one request to commit or to change offsets.
pub const COMMIT_OFFSETS_MAX: usize = 10_000;

/// Bytes of what an application commits with a position.
pub const OFFSET_METADATA_BYTES_MAX: usize = 4096;

/// Bytes that one push or read reply carries, unless a single batch is larger.
pub const PUSH_BYTES: usize = 1 << 20;

/// Bytes of error text in a reply; longer text is cut.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 1024;

// A maximal batch and its produce body fit a frame, and so does a push.
const _: () = assert!(BATCH_BYTES_MAX + BODY_BYTES_MAX <= FRAME_BYTES_MAX);
const _: () = assert!(PUSH_BYTES <= FRAME_BYTES_MAX - BODY_BYTES_MAX);
// Lengths of frames, batches and records are u32 on the wire, and i32 once a Kafka listener passes them through.
const _: () = assert!(FRAME_BYTES_MAX <= i32::MAX as usize);
const _: () = assert!(RECORDS_BYTES_MAX <= i32::MAX as usize);
// A request may name every partition of a topic, and every batch that it may carry.
const _: () =
    assert!(PARTITIONS_MAX as usize <= REQUEST_FIELDS_MAX && PRODUCE_BATCHES_MAX <= REQUEST_FIELDS_MAX);
// A member may commit every partition of a topic at once, and own as many.
const _: () =
    assert!(PARTITIONS_MAX as usize <= COMMIT_OFFSETS_MAX && COMMIT_OFFSETS_MAX <= REQUEST_FIELDS_MAX);
const _: () = assert!(GROUP_TOPICS_MAX <= REQUEST_FIELDS_MAX && GROUPS_PER_REQUEST_MAX <= REQUEST_FIELDS_MAX);
// The names of all topics of a subscription fit a body, and so do the members of a group with theirs in a description.
const _: () =
    assert!(GROUP_TOPICS_MAX * (TOPIC_NAME_BYTES_MAX + 3) + GROUP_PATTERN_BYTES_MAX <= BODY_BYTES_MAX);
// One produce entry takes at most some 64 bytes of body.
const _: () = assert!(PRODUCE_BATCHES_MAX * 64 <= BODY_BYTES_MAX);
