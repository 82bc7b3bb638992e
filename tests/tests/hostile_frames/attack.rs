//! What the attackers send.

use bytes::{Bytes, BytesMut};
use highwater_protocol::api::{ApiKey, OneWay, PROTOCOL_VERSION, Request};
use highwater_protocol::batch::{BatchBuilder, HEADER_LENGTH};
use highwater_protocol::body;
use highwater_protocol::compression::Compression;
use highwater_protocol::frame::{FLAG_ONE_WAY, FRAME_HEADER_LENGTH};
use highwater_protocol::ids::{PartitionId, TopicId, TopicPartition};
use highwater_protocol::limits::{BODY_BYTES_MAX, FRAME_BYTES_MAX, REQUEST_FIELDS_MAX};
use highwater_protocol::messages::*;
use highwater_tests::sim::random::Random;
use prost::Message;

/// How a frame is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Checksums are right, fields are not: reaches the handlers.
    WrongFields,
    /// Bytes of header or body changed on the way.
    Damaged,
    /// The connection ends within the frame.
    Truncated,
    /// Announces more than any frame may have, or more than comes.
    Oversized,
    /// Nothing but noise.
    Noise,
    /// A batch that is not one, or lies under good checksums.
    BadBatch,
    /// A body that would grow to many times its size.
    Amplifying,
}

/// A frame, and whether the connection ends after it.
pub(crate) struct Shot {
    pub(crate) kind: Kind,
    pub(crate) bytes: Vec<u8>,
    pub(crate) hangs_up: bool,
}

/// Makes bad frames about one topic.
pub(crate) struct Attacker {
    pub(crate) random: Random,
    topic_id: TopicId,
    bodies: Vec<(ApiKey, u16, Vec<u8>)>,
}

impl Attacker {
    pub(crate) fn new(random: Random, topic_id: TopicId) -> Self {
        Self { random, topic_id, bodies: bodies(topic_id) }
    }

    pub(crate) fn next(&mut self) -> Shot {
        let (kind, bytes) = match self.random.below(100) {
            0..40 => (Kind::WrongFields, self.wrong_fields()),
            40..55 => (Kind::Damaged, self.damaged()),
            55..63 => (Kind::Truncated, self.truncated()),
            63..73 => (Kind::Oversized, self.oversized()),
            73..80 => (Kind::Noise, self.noise()),
            80..99 => (Kind::BadBatch, self.bad_batch()),
            _ => (Kind::Amplifying, self.amplifying()),
        };
        Shot { kind, bytes, hangs_up: kind == Kind::Truncated }
    }

    /// Only frames with good checksums around bodies that decode: they reach the handlers.
    pub(crate) fn next_deep(&mut self) -> Shot {
        let (kind, bytes) = match self.random.below(3) {
            0 => (Kind::BadBatch, self.bad_batch()),
            _ => (Kind::WrongFields, self.decodable()),
        };
        Shot { kind, bytes, hangs_up: false }
    }

    fn decodable(&mut self) -> Vec<u8> {
        loop {
            let (api, flags, good) = self.random.pick(&self.bodies).cloned().unwrap();
            let mut body = good;
            mutate(&mut self.random, &mut body);
            if decodes(api, &body) && !changes_topics(&body) {
                return frame(api, flags, self.random.next_u64(), &body, &[]);
            }
        }
    }

    fn good_frame(&mut self) -> Vec<u8> {
        let (api, flags, body) = self.random.pick(&self.bodies).cloned().unwrap();
        frame(api, flags, self.random.next_u64(), &body, &[])
    }

    fn wrong_fields(&mut self) -> Vec<u8> {
        loop {
            let (mut api, mut flags, mut body) = self.random.pick(&self.bodies).cloned().unwrap();
            for _ in 0..=self.random.below(3) {
                mutate(&mut self.random, &mut body);
            }
            if self.random.percent(3) {
                api = ApiKey(self.random.next_u64() as u16);
            }
            if self.random.percent(3) {
                flags = self.random.next_u64() as u16;
            }
            let attachment = self.random.bytes(if self.random.clone().percent(5) { 100 } else { 0 });
            if !changes_topics(&body) {
                return frame(api, flags, self.random.next_u64(), &body, &attachment);
            }
        }
    }

    fn damaged(&mut self) -> Vec<u8> {
        let mut bytes = self.good_frame();
        mutate(&mut self.random, &mut bytes);
        bytes
    }

    fn truncated(&mut self) -> Vec<u8> {
        let mut bytes = if self.random.percent(50) { self.good_frame() } else { self.bad_batch() };
        bytes.truncate(self.random.index(bytes.len()));
        bytes
    }

    fn oversized(&mut self) -> Vec<u8> {
        let mut bytes = self.good_frame();
        let length = match self.random.below(3) {
            0 => self.random.within(FRAME_BYTES_MAX as u64 + 1..u64::from(u32::MAX)),
            1 => u64::from(u32::MAX),
            // Allowed, but never sent: the rest of this frame is missing for ever.
            _ => self.random.within(1000..FRAME_BYTES_MAX as u64),
        };
        let at = if self.random.percent(80) { 4 } else { 20 };
        bytes[at..at + 4].copy_from_slice(&(length as u32).to_le_bytes());
        bytes
    }

    fn noise(&mut self) -> Vec<u8> {
        let length = self.random.index(3000);
        let mut bytes = self.random.bytes(length);
        if self.random.percent(50) {
            bytes.splice(..0, *b"HWF1");
        }
        bytes
    }

    fn bad_batch(&mut self) -> Vec<u8> {
        let partition = PartitionId(self.random.below(3) as u32);
        let mut builder = BatchBuilder::with_capacity(0);
        for number in 0..1 + self.random.below(20) {
            let value = vec![b'v'; self.random.index(100)];
            builder.push(number as i64, Some(b"key"), Some(&value), &[("name", Some(b"x"))]);
        }
        let compression = *self.random.pick(&[Compression::None, Compression::Lz4]).unwrap();
        let place = TopicPartition::new(self.topic_id, partition);
        let mut batch = builder.build(place, compression).unwrap().to_vec();
        for _ in 0..=self.random.below(2) {
            mutate(&mut self.random, &mut batch);
        }
        if self.random.percent(80) {
            seal(&mut batch, place);
        }
        let mut length = batch.len() as u32;
        if self.random.percent(10) {
            length = self.random.next_u64() as u32;
        }
        let entry = ProduceBatch {
            topic_id: Some(self.topic_id.into()),
            partition: partition.0,
            number: self.random.below(3),
            length,
        };
        let request =
            ProduceRequest { acks: self.random.below(4) as i32, timeout_ms: 100, batches: vec![entry] };
        frame(ApiKey::PRODUCE, 0, self.random.next_u64(), &request.encode_to_vec(), &batch)
    }

    fn amplifying(&mut self) -> Vec<u8> {
        let apis = [
            ApiKey::PRODUCE,
            ApiKey::METADATA,
            ApiKey::LIST_OFFSETS,
            ApiKey::CREATE_TOPIC,
            ApiKey::DESCRIBE_TOPICS,
        ];
        let tag = 1 + self.random.below(4) as u8;
        let elements =
            *self.random.pick(&[REQUEST_FIELDS_MAX, REQUEST_FIELDS_MAX + 1, BODY_BYTES_MAX / 2]).unwrap();
        let body = [tag << 3 | 2, 0].repeat(elements);
        frame(*self.random.pick(&apis).unwrap(), 0, self.random.next_u64(), &body, &[])
    }
}

/// Good bodies of everything that a client may send.
fn bodies(topic_id: TopicId) -> Vec<(ApiKey, u16, Vec<u8>)> {
    fn request<R: Request>(request: &R) -> (ApiKey, u16, Vec<u8>) {
        (R::API, 0, request.encode_to_vec())
    }
    fn one_way<M: OneWay>(message: &M) -> (ApiKey, u16, Vec<u8>) {
        (M::API, FLAG_ONE_WAY, message.encode_to_vec())
    }
    let id = Some(Uuid::from(topic_id));
    let name = || "attacked".to_owned();
    let query = OffsetQuery { topic_id: id, partition: 0, position: Position::Time.into(), timestamp_ms: 5 };
    let subscribe = |offset| SubscribeRequest {
        id: 1,
        topic_id: id,
        partition: 0,
        offset,
        credit: 1 << 16,
        ..SubscribeRequest::default()
    };
    let config = [("durability".to_owned(), "os".to_owned())];
    vec![
        request(&handshake()),
        request(&AuthenticateRequest { method: "plain".to_owned(), payload: Bytes::from_static(b"secret") }),
        request(&PingRequest {}),
        request(&MetadataRequest {
            names: vec![name()],
            topic_ids: vec![topic_id.into()],
            all_topics: false,
            watch: false,
        }),
        request(&CreateTopicRequest {
            name: name(),
            partitions: 4,
            replication: 1,
            config: config.into(),
            validate_only: true,
        }),
        request(&DescribeTopicsRequest { names: vec![name()], summary: false }),
        request(&AlterTopicRequest {
            name: name(),
            validate_only: true,
            partitions: 9,
            ..AlterTopicRequest::default()
        }),
        request(&DeleteTopicRequest { name: "other".to_owned(), topic_id: id }),
        request(&ListOffsetsRequest { queries: vec![query, query] }),
        request(&ReadRequest { topic_id: id, partition: 0, offset: 0, bytes_max: 1000 }),
        request(&subscribe(0)),
        request(&SubscribeRequest { isolation: 2, last_epoch: Some(1), ..subscribe(1) }),
        request(&UnsubscribeRequest { id: 1 }),
        one_way(&Credit { id: 1, limit: 1 << 20 }),
        one_way(&ReplicaAck { id: 1, leader_epoch: 1, broker_epoch: 1, log_end: 1, flushed_end: 1 }),
        one_way(&Goodbye { code: 1, message: name() }),
    ]
}

fn decodes(api: ApiKey, encoded: &[u8]) -> bool {
    let bytes = Bytes::copy_from_slice(encoded);
    match api {
        ApiKey::METADATA => body::decode::<MetadataRequest>(&bytes).is_ok(),
        ApiKey::CREATE_TOPIC => body::decode::<CreateTopicRequest>(&bytes).is_ok(),
        ApiKey::DESCRIBE_TOPICS => body::decode::<DescribeTopicsRequest>(&bytes).is_ok(),
        ApiKey::ALTER_TOPIC => body::decode::<AlterTopicRequest>(&bytes).is_ok(),
        ApiKey::DELETE_TOPIC => body::decode::<DeleteTopicRequest>(&bytes).is_ok(),
        ApiKey::LIST_OFFSETS => body::decode::<ListOffsetsRequest>(&bytes).is_ok(),
        ApiKey::READ => body::decode::<ReadRequest>(&bytes).is_ok(),
        ApiKey::SUBSCRIBE => body::decode::<SubscribeRequest>(&bytes).is_ok(),
        ApiKey::UNSUBSCRIBE => body::decode::<UnsubscribeRequest>(&bytes).is_ok(),
        ApiKey::CREDIT => body::decode::<Credit>(&bytes).is_ok(),
        ApiKey::REPLICA_ACK => body::decode::<ReplicaAck>(&bytes).is_ok(),
        _ => body::decode::<PingRequest>(&bytes).is_ok(),
    }
}

pub(crate) fn handshake() -> HandshakeRequest {
    HandshakeRequest {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        client_name: "attacker".to_owned(),
        ..HandshakeRequest::default()
    }
}

/// Whether the body, taken for any request, would really make, change or delete topics: what anybody may do is no attack,
/// and ten thousand partitions take their time.
fn changes_topics(encoded: &[u8]) -> bool {
    let bytes = Bytes::copy_from_slice(encoded);
    let creates =
        body::decode::<CreateTopicRequest>(&bytes).is_ok_and(|it| !it.validate_only && !it.name.is_empty());
    let alters =
        body::decode::<AlterTopicRequest>(&bytes).is_ok_and(|it| !it.validate_only && it.name == "attacked");
    let deletes = body::decode::<DeleteTopicRequest>(&bytes).is_ok_and(|it| it.name == "attacked");
    creates || alters || deletes
}

/// A frame with good checksums around any body.
pub(crate) fn frame(api: ApiKey, flags: u16, correlation_id: u64, body: &[u8], attachment: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(FRAME_HEADER_LENGTH + body.len() + attachment.len());
    out.extend_from_slice(b"HWF1");
    out.extend_from_slice(&((body.len() + attachment.len()) as u32).to_le_bytes());
    out.extend_from_slice(&api.0.to_le_bytes());
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&correlation_id.to_le_bytes());
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&out);
    hasher.update(body);
    out.extend_from_slice(&hasher.finalize().to_le_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(attachment);
    out
}

/// Makes length and checksums of a batch right.
fn seal(batch: &mut [u8], place: TopicPartition) {
    if batch.len() < HEADER_LENGTH {
        return;
    }
    let length = batch.len() as u32;
    batch[35..39].copy_from_slice(&length.to_le_bytes());
    let crc = crc32fast::hash(&batch[HEADER_LENGTH..]);
    batch[39..43].copy_from_slice(&crc.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&place.topic_id.to_bytes());
    hasher.update(&place.partition.0.to_le_bytes());
    hasher.update(&batch[..43]);
    batch[43..47].copy_from_slice(&hasher.finalize().to_le_bytes());
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    const BORDERS: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];
    if bytes.is_empty() {
        *bytes = random.bytes(8);
        return;
    }
    let at = random.index(bytes.len());
    match random.below(5) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next_u64() as u8,
        2 => {
            let number = random.pick(&BORDERS).unwrap().to_le_bytes();
            let width = (1 << random.below(4)).min(bytes.len() - at);
            bytes[at..at + width].copy_from_slice(&number[..width]);
        }
        3 => drop(bytes.drain(at..bytes.len().min(at + 5))),
        _ => {
            let copied = bytes[at..bytes.len().min(at + 20)].to_vec();
            bytes.splice(at..at, copied);
        }
    }
}

/// Bytes as a buffer that a splitter takes from.
pub(crate) fn buffer() -> BytesMut {
    BytesMut::with_capacity(4096)
}
