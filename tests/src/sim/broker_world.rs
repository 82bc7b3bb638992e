//! A whole broker on a simulated disk: it is reached over its protocol, and what it acknowledged is remembered.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use highwater_broker::Broker;
use highwater_broker::config::Config;
use highwater_broker::env::Env;
use highwater_protocol::api::{PROTOCOL_VERSION, Request};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::{Frame, Splitter};
use highwater_protocol::ids::{PartitionId, TopicId, TopicPartition};
use highwater_protocol::messages::{
    CreateTopicRequest, HandshakeRequest, MetadataRequest, ReadReply, ReadRequest,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;

use super::batches::{self, Seen};
use super::clock::{SimClock, SimRandom};
use super::disk::SimDisk;
use crate::peer;

/// The topic of all histories.
pub const TOPIC: &str = "history";

/// A stream of bytes to a broker.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection to a broker, handshake done.
pub struct Connection {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
    splitter: Splitter,
    next_id: u64,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("next_id", &self.next_id).finish_non_exhaustive()
    }
}

impl Connection {
    /// Over TCP.
    ///
    /// # Errors
    /// When the broker is not there.
    pub async fn tcp(broker: &Broker) -> Result<Self> {
        let stream = TcpStream::connect(broker.address()).await?;
        stream.set_nodelay(true)?;
        Self::over(Box::new(stream)).await
    }

    /// Over memory.
    ///
    /// # Errors
    /// When the broker is not there.
    pub async fn memory(broker: &Broker) -> Result<Self> {
        let (here, there): (DuplexStream, DuplexStream) = tokio::io::duplex(256 << 10);
        broker.serve(there);
        Self::over(Box::new(here)).await
    }

    async fn over(stream: Box<dyn Stream>) -> Result<Self> {
        let mut connection =
            Self { stream, buffer: BytesMut::new(), splitter: Splitter::default(), next_id: 1 };
        let request = HandshakeRequest {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            client_name: "history".to_owned(),
            ..HandshakeRequest::default()
        };
        connection.call(&request, &[]).await?;
        Ok(connection)
    }

    /// Sends a request and returns its correlation id.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn send<R: Request>(&mut self, request: &R, attachment: &[Bytes]) -> Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let bytes = peer::encode(R::API, 0, id, request, attachment)?;
        self.stream.write_all(&bytes).await?;
        Ok(id)
    }

    /// The next frame.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn next(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.splitter.next(&mut self.buffer)? {
                return Ok(frame);
            }
            self.buffer.reserve(64 << 10);
            ensure!(
                self.stream.read_buf(&mut self.buffer).await? > 0,
                "the broker has closed the connection"
            );
        }
    }

    /// Sends a request and waits for its reply, the only one that is under way.
    ///
    /// # Errors
    /// When the connection is over, or the broker answers with an error.
    pub async fn call<R: Request>(
        &mut self,
        request: &R,
        attachment: &[Bytes],
    ) -> Result<(R::Response, Bytes)> {
        self.send(request, attachment).await?;
        loop {
            let frame = self.next().await?;
            // Credit comes whenever it likes.
            if frame.header.api == R::API {
                return Ok((peer::reply_to::<R>(&frame)?, frame.attachment));
            }
        }
    }

    /// Makes the topic.
    ///
    /// # Errors
    /// When the broker does not.
    pub async fn create_topic(
        &mut self,
        partitions: u32,
        config: BTreeMap<String, String>,
    ) -> Result<TopicId> {
        let request = CreateTopicRequest {
            name: TOPIC.to_owned(),
            partitions,
            replication: 1,
            config,
            ..CreateTopicRequest::default()
        };
        let (reply, _) = self.call(&request, &[]).await?;
        Ok(reply.topic_id.context("no topic id in the answer")?.into())
    }

    /// The id of the topic and how many partitions it has; `None` if there is none.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn find_topic(&mut self) -> Result<Option<(TopicId, u32)>> {
        let request = MetadataRequest { names: vec![TOPIC.to_owned()], ..MetadataRequest::default() };
        let (reply, _) = self.call(&request, &[]).await?;
        let topic = reply.topics.first().context("no topic in the answer")?;
        if ErrorCode::from_code(topic.error) == ErrorCode::UnknownTopic {
            return Ok(None);
        }
        ensure!(topic.error == 0, "metadata: {}", ErrorCode::from_code(topic.error));
        let id = topic.topic_id.context("no topic id")?;
        Ok(Some((id.into(), u32::try_from(topic.partitions.len())?)))
    }

    /// Everything that can be read of a partition, and the last reply.
    ///
    /// # Errors
    /// When something is not served, or what is served is not good.
    pub async fn read_all(&mut self, partition: TopicPartition) -> Result<(Vec<Seen>, ReadReply)> {
        let mut seen: Vec<Seen> = Vec::new();
        let mut offset = 0;
        loop {
            let request = ReadRequest {
                topic_id: Some(partition.topic_id.into()),
                partition: partition.partition.0,
                offset,
                bytes_max: 64 << 10,
            };
            let (reply, attachment) =
                self.call(&request, &[]).await.with_context(|| format!("read at {offset}"))?;
            let read = batches::records(attachment, partition).map_err(anyhow::Error::msg)?;
            seen.extend(read.into_iter().filter(|seen| seen.offset >= offset));
            let next = seen.last().map_or(0, |last| last.offset + 1);
            if next >= reply.high_watermark {
                return Ok((seen, reply));
            }
            if next <= offset && offset > 0 || next == 0 {
                bail!(
                    "a read at {offset} returned nothing below the high watermark {}",
                    reply.high_watermark
                );
            }
            offset = next;
        }
    }
}

/// Where the broker keeps its data; it makes the directories itself.
#[must_use]
pub fn data_dir() -> PathBuf {
    PathBuf::from("/srv/highwater/data")
}

/// Starts a broker on the disk as it is now.
///
/// # Errors
/// When it does not start.
pub async fn start(disk: &SimDisk, clock: &Arc<SimClock>, seed: u64) -> Result<Broker> {
    let mut config = Config::default();
    "127.0.0.1:0".clone_into(&mut config.listen);
    config.http = None;
    config.data_dir = data_dir();
    config.disk_reserve = 0;
    let env = Env {
        file_system: disk.mount(),
        clock: Arc::<SimClock>::clone(clock),
        random: Arc::new(SimRandom::new(seed)),
    };
    Ok(Broker::start(config, env).await?)
}

/// What a broker serves: all records of all partitions of the topic; `None` if there is no topic.
pub type Served = Option<(TopicId, Vec<Vec<Seen>>)>;

/// Reads everything over a connection of its own.
///
/// # Errors
/// When something is not served, or what is served is not good.
pub async fn read_everything(broker: &Broker) -> Result<Served> {
    let mut connection = Connection::memory(broker).await?;
    let Some((topic, partitions)) = connection.find_topic().await? else { return Ok(None) };
    let mut all = Vec::new();
    for partition in 0..partitions {
        let partition = TopicPartition::new(topic, PartitionId(partition));
        let (seen, reply) = connection.read_all(partition).await.with_context(|| format!("{partition}"))?;
        ensure!(
            reply.high_watermark == reply.log_end,
            "{partition}: high watermark {} and log end {} after a start",
            reply.high_watermark,
            reply.log_end
        );
        all.push(seen);
    }
    Ok(Some((topic, all)))
}
