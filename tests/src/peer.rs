//! A peer that speaks the wire protocol with its bare hands: it keeps no rule that a test wants broken.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use highwater_protocol::api::{ApiKey, OneWay, PROTOCOL_VERSION, Request};
use highwater_protocol::batch::BatchBuilder;
use highwater_protocol::compression::Compression;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::{FLAG_ERROR, FLAG_ONE_WAY, FLAG_REPLY, Frame, Splitter, encode_frame_head};
use highwater_protocol::ids::{CorrelationId, PartitionId, TopicId, TopicPartition};
use highwater_protocol::messages::{
    Acks, ErrorReply, HandshakeReply, HandshakeRequest, MetadataRequest, ProduceBatch, ProduceRequest,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::oracle::Record;
use crate::workload;

/// Bytes that are asked of the socket at once.
const READ_BYTES: usize = 256 << 10;

/// The writing half of a connection, handshake done.
#[derive(Debug)]
pub struct PeerWriter {
    stream: OwnedWriteHalf,
    next_id: u64,
}

/// The reading half of a connection, handshake done.
#[derive(Debug)]
pub struct PeerReader {
    stream: OwnedReadHalf,
    buffer: BytesMut,
    splitter: Splitter,
}

/// Connects and shakes hands.
///
/// # Errors
/// When the broker refuses.
pub async fn connect(address: SocketAddr, name: &str) -> Result<(PeerWriter, PeerReader, HandshakeReply)> {
    let stream = TcpStream::connect(address).await.context("connect")?;
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    let mut writer = PeerWriter { stream: write, next_id: 1 };
    let mut reader = PeerReader {
        stream: read,
        buffer: BytesMut::with_capacity(READ_BYTES),
        splitter: Splitter::default(),
    };
    let request = HandshakeRequest {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        client_name: name.to_owned(),
        ..HandshakeRequest::default()
    };
    writer.request(&request, &[]).await?;
    let frame = reader.next().await?.context("the broker closed the connection in the handshake")?;
    let reply = reply_to::<HandshakeRequest>(&frame)?;
    Ok((writer, reader, reply))
}

/// The frame of a request or one-way message, attachment included.
///
/// # Errors
/// When it is beyond the limits of a frame.
pub fn encode(
    api: ApiKey,
    flags: u16,
    id: u64,
    body: &impl prost::Message,
    attachment: &[Bytes],
) -> Result<Bytes> {
    let length = attachment.iter().map(Bytes::len).sum();
    let mut bytes = BytesMut::new();
    encode_frame_head(api, flags, CorrelationId(id), body, length, &mut bytes)?;
    for part in attachment {
        bytes.extend_from_slice(part);
    }
    Ok(bytes.freeze())
}

/// The reply to a request of type `R`.
///
/// # Errors
/// When the frame is another one, or the broker answered with an error.
pub fn reply_to<R: Request>(frame: &Frame) -> Result<R::Response> {
    let header = frame.header;
    ensure!(
        header.api == R::API && header.flags & FLAG_REPLY != 0,
        "{:?} is no reply to {:?}",
        header,
        R::API
    );
    if header.flags & FLAG_ERROR != 0 {
        let error = frame.decode_body::<ErrorReply>()?;
        bail!("{}: {}", ErrorCode::from_code(error.code), error.message);
    }
    Ok(frame.decode_body::<R::Response>()?)
}

impl PeerWriter {
    /// Sends a request and returns its correlation id.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn request<R: Request>(&mut self, request: &R, attachment: &[Bytes]) -> Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        self.send_bytes(&encode(R::API, 0, id, request, attachment)?).await?;
        Ok(id)
    }

    /// Sends a one-way message.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn one_way<M: OneWay>(&mut self, message: &M) -> Result<()> {
        self.send_bytes(&encode(M::API, FLAG_ONE_WAY, 0, message, &[])?).await
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await.context("send")
    }
}

impl PeerReader {
    /// The next frame; `None` when the broker has closed the connection between two frames.
    ///
    /// # Errors
    /// When the connection breaks, or what comes is not a frame.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.splitter.next(&mut self.buffer).context("understand the broker")? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.buffer).await.context("receive")? == 0 {
                ensure!(self.buffer.is_empty(), "the connection ended within a frame");
                return Ok(None);
            }
        }
    }
}

/// The id of a topic.
///
/// # Errors
/// When there is no such topic.
pub async fn topic_id(writer: &mut PeerWriter, reader: &mut PeerReader, name: &str) -> Result<TopicId> {
    let request = MetadataRequest { names: vec![name.to_owned()], ..MetadataRequest::default() };
    writer.request(&request, &[]).await?;
    let frame = reader.next().await?.context("the connection ended")?;
    let reply = reply_to::<MetadataRequest>(&frame)?;
    let topic = reply.topics.first().context("no topic in the answer")?;
    Ok(topic.topic_id.with_context(|| format!("there is no topic {name}"))?.into())
}

/// A batch of `count` records of `producer`, numbered from `first`.
///
/// # Errors
/// Never: an uncompressed batch needs no codec.
pub fn batch(topic: TopicId, partition: PartitionId, producer: u32, first: u64, count: u64) -> Result<Bytes> {
    let mut builder = BatchBuilder::with_capacity(64 << 10);
    for number in first..first + count {
        builder.push(0, None, Some(&workload::value_of(Record { producer, number })), &[]);
    }
    Ok(builder.build(TopicPartition { topic_id: topic, partition }, Compression::None)?)
}

/// A request that produces one batch, the `number`th of this connection for its partition.
///
/// # Errors
/// When the batch is longer than any may be.
pub fn produce(topic: TopicId, partition: PartitionId, number: u64, batch: &Bytes) -> Result<ProduceRequest> {
    let entry = ProduceBatch {
        topic_id: Some(topic.into()),
        partition: partition.0,
        number,
        length: u32::try_from(batch.len())?,
    };
    Ok(ProduceRequest { acks: Acks::All.into(), timeout_ms: 0, batches: vec![entry] })
}
