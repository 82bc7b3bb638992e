//! A broker in this process, and peers that speak to it over in-memory links, frame by frame.

use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use highwater_broker::Broker;
use highwater_broker::config::Config;
use highwater_broker::env::Env;
use highwater_protocol::api::{ApiKey, OneWay, PROTOCOL_VERSION, Request};
use highwater_protocol::batch::BatchBuilder;
use highwater_protocol::body::Body;
use highwater_protocol::compression::Compression;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::{FLAG_ERROR, FLAG_ONE_WAY, FLAG_REPLY, Frame, Splitter, encode_frame_head};
use highwater_protocol::ids::{CorrelationId, PartitionId, TopicId, TopicPartition};
use highwater_protocol::messages::{
    Acks, CreateTopicRequest, ErrorReply, Goodbye, HandshakeReply, HandshakeRequest, ProduceBatch,
    ProduceReply, ProduceRequest, ProduceResult, SubscribeReply, SubscribeRequest,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Nothing here takes this long, however busy the machine is.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Starts a broker on `directory`, on ports of the system's choice.
pub(crate) async fn broker(directory: &Path, change: impl FnOnce(&mut Config)) -> Broker {
    let mut config = Config::default();
    config.listen = "127.0.0.1:0".to_owned();
    config.http = None;
    config.data_dir = directory.to_owned();
    change(&mut config);
    Box::pin(Broker::start(config, Env::real())).await.unwrap()
}

/// One end of a connection.
pub(crate) struct Peer {
    pub(crate) link: DuplexStream,
    input: BytesMut,
    splitter: Splitter,
    next_id: u64,
    pub(crate) handshake: HandshakeReply,
}

impl Peer {
    /// Connects over a link that holds `buffer` bytes in each direction, and shakes hands.
    pub(crate) async fn connect(broker: &Broker, buffer: usize) -> Self {
        let mut peer = Self::link(broker, buffer);
        peer.handshake = peer.call(&handshake(), &[]).await.unwrap();
        peer
    }

    /// Connects without a handshake.
    pub(crate) fn link(broker: &Broker, buffer: usize) -> Self {
        let (link, other) = tokio::io::duplex(buffer);
        broker.serve(other);
        let handshake = HandshakeReply::default();
        Self { link, input: BytesMut::new(), splitter: Splitter::default(), next_id: 1, handshake }
    }

    /// Sends a request and returns its correlation id.
    pub(crate) async fn send<R: Request>(&mut self, request: &R, attachment: &[Bytes]) -> CorrelationId {
        let id = CorrelationId(self.next_id);
        self.next_id += 1;
        self.send_frame(R::API, 0, id, request, attachment).await;
        id
    }

    /// Sends a message that is not answered.
    pub(crate) async fn tell<M: OneWay>(&mut self, message: &M) {
        self.send_frame(M::API, FLAG_ONE_WAY, CorrelationId(0), message, &[]).await;
    }

    pub(crate) async fn send_frame(
        &mut self,
        api: ApiKey,
        flags: u16,
        id: CorrelationId,
        body: &impl prost::Message,
        attachment: &[Bytes],
    ) {
        let mut bytes = BytesMut::new();
        let length = attachment.iter().map(Bytes::len).sum();
        encode_frame_head(api, flags, id, body, length, &mut bytes).unwrap();
        attachment.iter().for_each(|batch| bytes.extend_from_slice(batch));
        let sending = self.link.write_all(&bytes);
        // A broker that has closed the connection shows on the reading side.
        let _closed = tokio::time::timeout(LIMIT, sending).await.expect("the broker reads");
    }

    /// The next frame; `None` once the broker has closed the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        tokio::time::timeout(LIMIT, async {
            loop {
                if let Some(frame) = self.splitter.next(&mut self.input).unwrap() {
                    return Some(frame);
                }
                self.input.reserve(64 << 10);
                if matches!(self.link.read_buf(&mut self.input).await, Ok(0) | Err(_)) {
                    assert!(self.input.is_empty(), "the broker closed in the middle of a frame");
                    return None;
                }
            }
        })
        .await
        .expect("the broker sends something")
    }

    /// The next frame of this kind; others are passed over.
    pub(crate) async fn next_of(&mut self, api: ApiKey) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection is open");
            if frame.header.api == api {
                return frame;
            }
        }
    }

    /// The message of the next frame of this kind.
    pub(crate) async fn next_message<M: OneWay + Body>(&mut self) -> (M, Bytes) {
        let frame = self.next_of(M::API).await;
        (frame.decode_body().unwrap(), frame.attachment)
    }

    /// Sends a request and waits for its reply; frames of other kinds are passed over.
    pub(crate) async fn call<R: Request>(
        &mut self,
        request: &R,
        attachment: &[Bytes],
    ) -> Result<R::Response, ErrorReply>
    where
        R::Response: Body,
    {
        let id = self.send(request, attachment).await;
        loop {
            let frame = self.next_of(R::API).await;
            if frame.header.correlation_id == id {
                return reply::<R>(&frame);
            }
        }
    }

    /// Reads to the end and returns what the broker gave as its reason.
    pub(crate) async fn goodbye(&mut self) -> Option<ErrorCode> {
        let mut reason = None;
        while let Some(frame) = self.next().await {
            if frame.header.api == ApiKey::GOODBYE {
                reason = Some(ErrorCode::from_code(frame.decode_body::<Goodbye>().unwrap().code));
            }
        }
        reason
    }

    /// Makes a topic.
    pub(crate) async fn create(&mut self, name: &str, partitions: u32, durability: &str) -> TopicId {
        let config = [("durability".to_owned(), durability.to_owned())].into();
        let request =
            CreateTopicRequest { name: name.to_owned(), partitions, config, ..CreateTopicRequest::default() };
        self.call(&request, &[]).await.unwrap().topic_id.unwrap().into()
    }

    /// Produces one batch and waits for its result.
    pub(crate) async fn produce(
        &mut self,
        topic: TopicId,
        number: u64,
        batch: Bytes,
        acks: Acks,
    ) -> ProduceResult {
        let request = produce_request(topic, number, &batch, acks);
        let reply: ProduceReply = self.call(&request, &[batch]).await.unwrap();
        assert_eq!(reply.results.len(), 1);
        reply.results.into_iter().next().unwrap()
    }

    /// Subscribes to partition 0.
    pub(crate) async fn subscribe(
        &mut self,
        id: u64,
        topic: TopicId,
        offset: u64,
        credit: u64,
    ) -> Result<SubscribeReply, ErrorReply> {
        self.call(&subscribe_request(id, topic, offset, credit), &[]).await
    }
}

pub(crate) fn handshake() -> HandshakeRequest {
    HandshakeRequest {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        client_name: "test".to_owned(),
        ..HandshakeRequest::default()
    }
}

pub(crate) fn reply<R: Request>(frame: &Frame) -> Result<R::Response, ErrorReply>
where
    R::Response: Body,
{
    assert_ne!(frame.header.flags & FLAG_REPLY, 0);
    if frame.header.flags & FLAG_ERROR != 0 {
        return Err(frame.decode_body().unwrap());
    }
    Ok(frame.decode_body().unwrap())
}

pub(crate) fn subscribe_request(id: u64, topic: TopicId, offset: u64, credit: u64) -> SubscribeRequest {
    SubscribeRequest { id, topic_id: Some(topic.into()), offset, credit, ..SubscribeRequest::default() }
}

pub(crate) fn produce_request(topic: TopicId, number: u64, batch: &Bytes, acks: Acks) -> ProduceRequest {
    let entry =
        ProduceBatch { topic_id: Some(topic.into()), partition: 0, number, length: batch.len() as u32 };
    ProduceRequest { acks: acks.into(), timeout_ms: 0, batches: vec![entry] }
}

/// A batch for partition 0 with `count` records of `size` bytes.
pub(crate) fn batch(topic: TopicId, count: usize, size: usize) -> Bytes {
    let mut builder = BatchBuilder::with_capacity(count * (size + 20));
    let value = vec![b'x'; size];
    (0..count).for_each(|_| builder.push(1_000, None, Some(&value), &[]));
    builder.build(TopicPartition::new(topic, PartitionId(0)), Compression::None).unwrap()
}

pub(crate) fn code(number: u32) -> ErrorCode {
    ErrorCode::from_code(number)
}
