//! The whole way of a produce batch inside of a real broker: bytes of the request → connection, checks, window →
//! partition, verdict about its producer, stamp, append to a log in a temporary directory (`durability=os`) → bytes of
//! the answer.
//!
//! Broker and client share one thread and one runtime and take turns: one request, then its answer. So two runs do nearly
//! the same. What the client does is left out of the count, but for the wake-up by its own socket.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use highwater_broker::Broker;
use highwater_broker::config::Config;
use highwater_broker::env::Env;
use highwater_protocol::api::{ApiKey, PROTOCOL_VERSION, Request};
use highwater_protocol::batch::{BatchHeader, restamp_producer};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::{FLAG_ERROR, FLAG_ONE_WAY, Frame, Splitter, encode_frame_head};
use highwater_protocol::ids::{CorrelationId, PartitionId, ProducerId, TopicId, TopicPartition};
use highwater_protocol::messages::{
    Acks, CreateTopicRequest, ErrorReply, HandshakeRequest, InitProducerRequest, ProduceBatch, ProduceCredit,
    ProduceRequest,
};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;

use super::codec::batch_of;
use super::{Repeat, uncounted};

/// Idempotent producers that take turns: the broker has to find the right one.
const PRODUCERS: usize = 8;

/// Bytes that the kernel takes from the client at once, so that a request is there as a whole before the broker reads.
const SEND_BUFFER_BYTES: u32 = 1 << 20;

/// Batches that are sent before anything is counted: buffers, files and tables have their sizes then.
const WARM_UP: u64 = 50;

/// Batches of `bytes` bytes without an idempotent producer.
pub(super) fn plain(bytes: usize) -> Result<Box<dyn Repeat>> {
    prepare(bytes, 0)
}

/// Batches of `bytes` bytes with idempotent producers.
pub(super) fn idempotent(bytes: usize) -> Result<Box<dyn Repeat>> {
    prepare(bytes, PRODUCERS)
}

fn prepare(bytes: usize, producers: usize) -> Result<Box<dyn Repeat>> {
    // As `highwater broker` runs on few cores.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let directory = tempfile::tempdir()?;
    let mut config = Config::default();
    config.listen = "127.0.0.1:0".to_owned();
    config.http = None;
    config.data_dir = directory.path().join("data");
    config.worker_threads = 1;
    let (broker, client) = runtime.block_on(Box::pin(async {
        let broker = Broker::start(config, Env::real()).await?;
        let client = Client::connect(broker.address(), bytes, producers).await?;
        Ok::<_, anyhow::Error>((broker, client))
    }))?;
    let mut produce = Produce { client, _broker: broker, runtime, _directory: directory };
    produce.repeat(WARM_UP)?;
    Ok(Box::new(produce))
}

/// Fields are dropped in this order: the broker before its runtime, and its directory last.
struct Produce {
    client: Client,
    _broker: Broker,
    runtime: Runtime,
    _directory: TempDir,
}

impl Repeat for Produce {
    fn repeat(&mut self, count: u64) -> Result<()> {
        let client = &mut self.client;
        self.runtime.block_on(async {
            for _ in 0..count {
                client.exchange = Exchange::Next;
                (&mut *client).await?;
            }
            Ok(())
        })
    }
}

/// Where the client is with a batch.
#[derive(Debug, Clone, Copy)]
enum Exchange {
    /// A new request is to be made.
    Next,
    /// So many bytes of the request are sent.
    Sending(usize),
    /// The answer is to come.
    Waiting,
}

/// A client with its bare hands. As a future it sends the next batch and takes its answer.
struct Client {
    stream: TcpStream,
    input: BytesMut,
    partition: TopicPartition,
    /// A batch without identity.
    template: Bytes,
    records: u32,
    producers: Vec<(ProducerId, u16)>,
    /// Batches sent so far.
    sent: u64,
    /// Bytes of batches that may be sent in all; one batch may go beyond.
    window: u64,
    /// Bytes of batches before the one that is sent.
    used: u64,
    request: BytesMut,
    exchange: Exchange,
}

impl Client {
    async fn connect(address: std::net::SocketAddr, bytes: usize, producers: usize) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        let stream = socket.connect(address).await.context("connect")?;
        stream.set_nodelay(true)?;
        let mut client = Self {
            stream,
            input: BytesMut::with_capacity(64 << 10),
            partition: TopicPartition::new(TopicId(0), PartitionId(0)),
            template: Bytes::new(),
            records: 0,
            producers: Vec::new(),
            sent: 0,
            window: 0,
            used: 0,
            request: BytesMut::new(),
            exchange: Exchange::Next,
        };
        let handshake = HandshakeRequest {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            client_name: "instructions".to_owned(),
            ..HandshakeRequest::default()
        };
        client.window = client.call(&handshake).await?.produce_window;
        let create = CreateTopicRequest {
            name: "bench".to_owned(),
            partitions: 1,
            replication: 1,
            config: BTreeMap::from([("durability".to_owned(), "os".to_owned())]),
            validate_only: false,
        };
        let topic_id = client.call(&create).await?.topic_id.context("the topic has no id")?;
        client.partition.topic_id = topic_id.into();
        for _ in 0..producers {
            let identity = client.call(&InitProducerRequest::default()).await?;
            let epoch = u16::try_from(identity.producer_epoch)?;
            client.producers.push((ProducerId(identity.producer_id), epoch));
        }
        client.template = batch_of(bytes, 1000, client.partition)?;
        client.records = BatchHeader::decode(&client.template)?.producer.record_count;
        Ok(client)
    }

    /// Asks something that is not counted.
    async fn call<R: Request>(&mut self, request: &R) -> Result<R::Response> {
        self.request.clear();
        encode_frame_head(R::API, 0, CorrelationId(u64::MAX), request, 0, &mut self.request)?;
        self.exchange = Exchange::Sending(0);
        let frame = std::future::poll_fn(|cx| self.go_on(cx)).await?;
        Ok(frame.decode_body()?)
    }

    /// Makes the request of the next batch.
    fn make_request(&mut self) -> Result<()> {
        let batch = if self.producers.is_empty() {
            self.template.clone()
        } else {
            let turn = usize::try_from(self.sent)? % self.producers.len();
            let (id, epoch) = *self.producers.get(turn).context("nobody's turn")?;
            let round = u32::try_from(self.sent)? / u32::try_from(self.producers.len())?;
            restamp_producer(&self.template, self.partition, id, epoch, round * self.records)
        };
        let entry = ProduceBatch {
            topic_id: Some(self.partition.topic_id.into()),
            partition: self.partition.partition.get(),
            number: self.sent,
            length: u32::try_from(batch.len())?,
        };
        let request = ProduceRequest { acks: Acks::All.into(), timeout_ms: 0, batches: vec![entry] };
        self.request.clear();
        let id = CorrelationId(self.sent);
        encode_frame_head(ApiKey::PRODUCE, 0, id, &request, batch.len(), &mut self.request)?;
        self.request.extend_from_slice(&batch);
        Ok(())
    }

    /// Whether a request may be sent: credit for it may still be on its way.
    const fn may_send(&self) -> bool {
        self.used < self.window || self.window == 0
    }

    /// Sends what is left of the request and takes what comes, up to the answer.
    fn go_on(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<Frame>> {
        loop {
            match self.exchange {
                Exchange::Next => {
                    self.make_request()?;
                    self.exchange = Exchange::Sending(0);
                }
                Exchange::Sending(sent) if self.may_send() => {
                    let rest = self.request.get(sent..).unwrap_or_default();
                    if rest.is_empty() {
                        self.exchange = Exchange::Waiting;
                        continue;
                    }
                    let count = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
                    self.exchange = Exchange::Sending(sent + count);
                }
                Exchange::Sending(_) | Exchange::Waiting => {
                    while let Some(frame) = Splitter::default().next(&mut self.input)? {
                        if let Some(answer) = self.take(frame)? {
                            return Poll::Ready(Ok(answer));
                        }
                    }
                    if !self.may_send() || matches!(self.exchange, Exchange::Waiting) {
                        ready!(self.receive(cx))?;
                    }
                }
            }
        }
    }

    fn receive(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<()>> {
        let mut bytes = [0; 4096];
        let mut buffer = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Err(anyhow::anyhow!("the broker closed the connection")));
        }
        self.input.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(()))
    }

    /// The frame, if it is an answer.
    fn take(&mut self, frame: Frame) -> Result<Option<Frame>> {
        let header = frame.header;
        if header.flags & FLAG_ERROR != 0 {
            let error = frame.decode_body::<ErrorReply>()?;
            bail!("{}: {}", ErrorCode::from_code(error.code), error.message);
        }
        if header.flags & FLAG_ONE_WAY == 0 {
            return Ok(Some(frame));
        }
        ensure!(header.api == ApiKey::PRODUCE_CREDIT, "the broker sent {}", header.api.name());
        self.window = self.window.max(frame.decode_body::<ProduceCredit>()?.limit);
        Ok(None)
    }

    /// Checks the answer to the last batch.
    fn check(&mut self, frame: &Frame) -> Result<()> {
        ensure!(
            frame.header.correlation_id == CorrelationId(self.sent),
            "the answer to another request came"
        );
        let reply = frame.decode_body::<<ProduceRequest as Request>::Response>()?;
        let result = reply.results.first().context("no result")?;
        ensure!(result.error == 0, "{}: {}", ErrorCode::from_code(result.error), result.message);
        let expected = self.sent * u64::from(self.records);
        ensure!(result.base_offset == expected, "offset {} instead of {expected}", result.base_offset);
        self.sent += 1;
        self.used += self.template.len() as u64;
        Ok(())
    }
}

impl Future for Client {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let mut polled = Poll::Pending;
        uncounted(&mut || {
            polled = self.go_on(cx).map(|answer| answer.and_then(|frame| self.check(&frame)));
        });
        polled
    }
}
