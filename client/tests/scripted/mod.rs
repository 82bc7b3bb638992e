//! A broker that does what the test says, over in-memory links.
//!
//! It shakes hands and answers pings, metadata and offset look-ups by itself; everything else is handed to the test.

#![allow(dead_code, unreachable_pub, reason = "shared by several tests, each of which uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "only tests use it")]

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use highwater_client::wire::{Connecting, Connector, Link};
use highwater_client::{Client, ClientBuilder};
use highwater_protocol::api::{ApiKey, OneWay, Request};
use highwater_protocol::batch::{BatchBuilder, BatchHeader, LeaderStamp};
use highwater_protocol::compression::Compression;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::{FLAG_ERROR, FLAG_ONE_WAY, FLAG_REPLY, Frame, Splitter, encode_frame_head};
use highwater_protocol::ids::{CorrelationId, LeaderEpoch, Offset, PartitionId, TopicId, TopicPartition};
use highwater_protocol::messages::{
    BrokerInfo, ErrorReply, HandshakeReply, HandshakeRequest, InitProducerReply, InitProducerRequest,
    ListOffsetsReply, ListOffsetsRequest, MetadataPush, MetadataReply, MetadataRequest, OffsetResult,
    PartitionInfo, PingReply, PingRequest, Position, ProduceReply, ProduceRequest, ProduceResult, Stage,
    TopicInfo,
};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

pub const TOPIC: &str = "orders";
pub const TOPIC_ID: TopicId = TopicId(77);
pub const ADDRESS: &str = "broker:1";

pub const fn place(partition: u32) -> TopicPartition {
    TopicPartition::new(TOPIC_ID, PartitionId(partition))
}

/// Where the broker with this id is.
pub fn address(node: u32) -> String {
    format!("broker:{node}")
}

/// What the broker answers by itself.
#[derive(Debug, Clone)]
pub struct Behaviour {
    pub node: u32,
    /// The brokers that metadata tells of.
    pub roster: Vec<u32>,
    /// Who leads every partition, 0 for nobody, and since when.
    pub leader: u32,
    pub leader_epoch: u32,
    pub version: u64,
    /// Whether metadata is told; otherwise the question is left unanswered.
    pub answer_metadata: bool,
    /// Whether producers get identities.
    pub identities: bool,
    /// Links are never made, and nobody is told.
    pub black_hole: bool,
    pub partitions: u32,
    pub produce_window: u64,
    pub max_in_flight: u32,
    pub idle_timeout_ms: u64,
    /// Bytes that a link holds before its writer has to wait.
    pub link_bytes: usize,
    pub topic_id: Option<TopicId>,
    pub earliest: u64,
    pub latest: u64,
    /// So many questions for offsets come before the partitions are open.
    pub unopened: Arc<AtomicU64>,
    pub refuse_connections: bool,
    pub answer_pings: bool,
    pub answer_handshakes: bool,
    /// The script of the wire: `false` stops reading links.
    pub read: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            node: 1,
            roster: vec![1],
            leader: 1,
            leader_epoch: 1,
            version: 1,
            answer_metadata: true,
            identities: true,
            black_hole: false,
            partitions: 1,
            produce_window: 1 << 30,
            max_in_flight: 64,
            idle_timeout_ms: 60_000,
            link_bytes: 1 << 20,
            topic_id: Some(TOPIC_ID),
            earliest: 0,
            latest: 0,
            unopened: Arc::default(),
            refuse_connections: false,
            answer_pings: true,
            answer_handshakes: true,
            read: true,
        }
    }
}

#[derive(Debug)]
struct Shared {
    behaviour: Mutex<Behaviour>,
    incoming: mpsc::Sender<Incoming>,
    connections: AtomicU64,
    read_again: tokio::sync::Notify,
    links: Mutex<HashMap<u64, Wire>>,
    /// Links on which changes are to be told.
    watchers: Mutex<Vec<Wire>>,
    watcher_added: tokio::sync::Notify,
}

/// The test's end.
pub struct Broker {
    shared: Arc<Shared>,
    incoming: mpsc::Receiver<Incoming>,
}

/// A frame for the test to deal with.
#[derive(Debug)]
pub struct Incoming {
    pub wire: Wire,
    pub frame: Frame,
}

/// One accepted connection.
#[derive(Debug, Clone)]
pub struct Wire {
    pub number: u64,
    out: mpsc::Sender<Option<BytesMut>>,
}

/// Links to the brokers by address; to the only one by any address.
#[derive(Debug)]
struct InMemory {
    brokers: Vec<(String, Arc<Shared>)>,
}

impl Connector for InMemory {
    fn connect<'a>(&'a self, address: &'a str) -> Connecting<'a> {
        Box::pin(async move {
            let found = match self.brokers.as_slice() {
                [(_, only)] => Some(only),
                all => all.iter().find(|(of, _)| of == address).map(|(_, shared)| shared),
            };
            let Some(shared) = found else { return Err(io::ErrorKind::ConnectionRefused.into()) };
            let behaviour = shared.behaviour.lock().clone();
            if behaviour.refuse_connections {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            if behaviour.black_hole {
                std::future::pending::<()>().await;
            }
            let (ours, theirs) = tokio::io::duplex(behaviour.link_bytes);
            tokio::spawn(serve(Arc::clone(shared), theirs));
            Ok(Link::from_stream(ours))
        })
    }
}

/// Brokers that know of each other.
pub struct Cluster {
    pub brokers: Vec<Broker>,
}

impl Cluster {
    /// Brokers 1 to `count`; the first one leads.
    pub fn new(count: u32) -> Self {
        let roster: Vec<u32> = (1..=count).collect();
        let behaviour = |node: u32| Behaviour { node, roster: roster.clone(), ..Behaviour::default() };
        Self { brokers: roster.iter().map(|node| Broker::new(behaviour(*node))).collect() }
    }

    pub fn client_builder(&self, seeds: &[&str]) -> ClientBuilder {
        let of = |broker: &Broker| {
            let node = broker.shared.behaviour.lock().node;
            (address(node), Arc::clone(&broker.shared))
        };
        let connector = Arc::new(InMemory { brokers: self.brokers.iter().map(of).collect() });
        Client::builder(seeds.iter().copied()).connector(connector).random_seed(7)
    }

    /// The broker with this id.
    pub fn broker(&mut self, node: u32) -> &mut Broker {
        &mut self.brokers[node as usize - 1]
    }

    /// Another one leads from here on: every broker knows, and tells those who asked to be told.
    pub async fn lead(&mut self, leader: u32, leader_epoch: u32) {
        self.elect(leader, leader_epoch);
        for broker in &self.brokers {
            broker.tell_watchers().await;
        }
    }

    /// Another one leads from here on: every broker knows, and says so when asked.
    pub fn elect(&mut self, leader: u32, leader_epoch: u32) {
        for broker in &self.brokers {
            broker.change(|behaviour| {
                (behaviour.leader, behaviour.leader_epoch) = (leader, leader_epoch);
                behaviour.version += 1;
            });
        }
    }
}

impl Broker {
    pub fn new(behaviour: Behaviour) -> Self {
        let (sender, incoming) = mpsc::channel(1024);
        let shared = Shared {
            behaviour: Mutex::new(behaviour),
            incoming: sender,
            connections: AtomicU64::new(0),
            read_again: tokio::sync::Notify::new(),
            links: Mutex::new(HashMap::new()),
            watchers: Mutex::new(Vec::new()),
            watcher_added: tokio::sync::Notify::new(),
        };
        Self { shared: Arc::new(shared), incoming }
    }

    pub fn client_builder(&self) -> ClientBuilder {
        let connector = Arc::new(InMemory { brokers: vec![(String::new(), Arc::clone(&self.shared))] });
        Client::builder([ADDRESS]).connector(connector).random_seed(7)
    }

    pub async fn client(&self) -> Client {
        self.client_builder().connect().await.unwrap()
    }

    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.behaviour.lock());
        self.shared.read_again.notify_waiters();
    }

    /// How many connections were made so far.
    pub fn connection_count(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    async fn tell_watchers(&self) {
        let behaviour = self.shared.behaviour.lock().clone();
        let watchers = self.shared.watchers.lock().clone();
        let names = MetadataRequest { names: vec![TOPIC.to_owned()], ..MetadataRequest::default() };
        let MetadataReply { version, controller, brokers, topics, .. } = metadata(&names, &behaviour);
        for wire in watchers {
            let (brokers, topics) = (brokers.clone(), topics.clone());
            wire.one_way(&MetadataPush { version, controller, brokers, topics }, &[]).await;
        }
    }

    /// Waits until somebody asks to be told of changes.
    pub async fn watched(&self) {
        loop {
            let added = self.shared.watcher_added.notified();
            if !self.shared.watchers.lock().is_empty() {
                return;
            }
            added.await;
        }
    }

    /// Cuts every connection.
    pub async fn cut_all(&self) {
        let wires: Vec<_> = self.shared.links.lock().drain().map(|(_, wire)| wire).collect();
        for wire in wires {
            wire.cut().await;
        }
    }

    /// The next frame for the test.
    pub async fn next(&mut self) -> Incoming {
        tokio::time::timeout(Duration::from_secs(100), self.incoming.recv())
            .await
            .expect("a frame in time")
            .unwrap()
    }

    /// The next frame for the test, however long it takes.
    pub async fn next_unhurried(&mut self) -> Incoming {
        self.incoming.recv().await.unwrap()
    }

    /// The next frame for the test, which must be a produce request.
    pub async fn next_produce(&mut self) -> Produced {
        let incoming = self.next().await;
        assert_eq!(incoming.frame.header.api, ApiKey::PRODUCE);
        let request = incoming.frame.decode_body::<ProduceRequest>().unwrap();
        Produced { incoming, request }
    }

    /// No frame comes for this long.
    pub async fn nothing_for(&mut self, time: Duration) {
        if let Ok(incoming) = tokio::time::timeout(time, self.incoming.recv()).await {
            panic!("nothing was expected, {:?} came", incoming.map(|incoming| incoming.frame.header));
        }
    }
}

/// A produce request to answer.
#[derive(Debug)]
pub struct Produced {
    pub incoming: Incoming,
    pub request: ProduceRequest,
}

impl Produced {
    /// Partition, number and values of each batch, checksums verified.
    pub fn batches(&self) -> Vec<(u32, u64, Vec<String>)> {
        let mut attachment = self.incoming.frame.attachment.clone();
        let mut batches = Vec::new();
        for batch in &self.request.batches {
            let bytes = attachment.split_to(batch.length as usize);
            let records = highwater_protocol::batch::Records::verify(&bytes, place(batch.partition)).unwrap();
            let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap_or_default().to_vec()).unwrap();
            let values = records.iter().map(|record| text(record.unwrap().value)).collect();
            batches.push((batch.partition, batch.number, values));
        }
        assert!(attachment.is_empty(), "the lengths add up to the attachment");
        batches
    }

    /// Id, epoch and first sequence of the only batch, and its values.
    pub fn stamped(&self) -> (u64, u16, u32, Vec<String>) {
        let producer = BatchHeader::decode(&self.incoming.frame.attachment).unwrap().producer;
        let (number, values) = self.batch();
        assert_eq!(number, 0, "sequences take the place of numbers");
        (producer.producer_id.get(), producer.producer_epoch, producer.first_sequence, values)
    }

    /// Number and values of the only batch.
    pub fn batch(&self) -> (u64, Vec<String>) {
        let mut batches = self.batches();
        assert_eq!(batches.len(), 1);
        let (_, number, values) = batches.remove(0);
        (number, values)
    }

    pub async fn answer(&self, results: Vec<ProduceResult>) {
        self.incoming.wire.reply::<ProduceRequest>(&self.incoming.frame, &ProduceReply { results }).await;
    }

    /// Acknowledges every batch, with offsets from `base_offset` on in each partition.
    pub async fn acknowledge(&self, base_offset: u64) {
        let result = |_: &_| acknowledged(base_offset);
        self.answer(self.request.batches.iter().map(result).collect()).await;
    }

    pub async fn refuse(&self, code: ErrorCode, next_number: u64) {
        let result = |_: &_| ProduceResult {
            error: code.code(),
            message: String::from("says the script"),
            next_number,
            ..ProduceResult::default()
        };
        self.answer(self.request.batches.iter().map(result).collect()).await;
    }
}

pub fn acknowledged(base_offset: u64) -> ProduceResult {
    ProduceResult {
        base_offset,
        append_time: 1,
        stage: Stage::Flushed.into(),
        replicas_counted: 1,
        replicas_total: 1,
        ..ProduceResult::default()
    }
}

impl Wire {
    async fn send<M: prost::Message>(
        &self,
        api: ApiKey,
        flags: u16,
        id: CorrelationId,
        body: &M,
        attachment: &[u8],
    ) {
        let mut bytes = BytesMut::new();
        encode_frame_head(api, flags, id, body, attachment.len(), &mut bytes).unwrap();
        bytes.extend_from_slice(attachment);
        // The client may have closed the link.
        let _ = self.out.send(Some(bytes)).await;
    }

    pub async fn reply<R: Request>(&self, frame: &Frame, reply: &R::Response) {
        self.send(R::API, FLAG_REPLY, frame.header.correlation_id, reply, &[]).await;
    }

    pub async fn reply_error(&self, frame: &Frame, code: ErrorCode, message: &str) {
        let reply = ErrorReply { code: code.code(), message: message.to_owned() };
        let header = frame.header;
        self.send(header.api, FLAG_REPLY | FLAG_ERROR, header.correlation_id, &reply, &[]).await;
    }

    pub async fn one_way<M: OneWay>(&self, message: &M, attachment: &[u8]) {
        self.send(M::API, FLAG_ONE_WAY, CorrelationId(0), message, attachment).await;
    }

    /// Sends bytes that need not be a frame.
    pub async fn raw(&self, bytes: &[u8]) {
        let _ = self.out.send(Some(BytesMut::from(bytes))).await;
    }

    /// Cuts the connection after what was sent.
    pub async fn cut(&self) {
        let _ = self.out.send(None).await;
    }
}

async fn serve(shared: Arc<Shared>, stream: DuplexStream) {
    let number = shared.connections.fetch_add(1, Ordering::SeqCst);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (out, mut queue) = mpsc::channel::<Option<BytesMut>>(1024);
    let wire = Wire { number, out };
    shared.links.lock().insert(number, wire.clone());
    let cut = Arc::new(tokio::sync::Notify::new());
    let over = Arc::clone(&cut);
    tokio::spawn(async move {
        while let Some(Some(bytes)) = queue.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        over.notify_one();
    });
    let mut buffer = BytesMut::new();
    loop {
        while let Some(frame) = Splitter::default().next(&mut buffer).unwrap() {
            handle(&shared, &wire, frame).await;
        }
        loop {
            let again = shared.read_again.notified();
            if shared.behaviour.lock().read {
                break;
            }
            tokio::select! {
                () = again => {}
                () = cut.notified() => return,
            }
        }
        buffer.reserve(4096);
        tokio::select! {
            read = reader.read_buf(&mut buffer) => if !matches!(read, Ok(1..)) { return },
            // Both halves go, and the client sees the end of the link.
            () = cut.notified() => return,
        }
    }
}

async fn handle(shared: &Shared, wire: &Wire, frame: Frame) {
    let behaviour = shared.behaviour.lock().clone();
    match frame.header.api {
        ApiKey::HANDSHAKE => {
            let reply = HandshakeReply {
                version: 1,
                node_id: behaviour.node,
                produce_window: behaviour.produce_window,
                max_in_flight: behaviour.max_in_flight,
                idle_timeout_ms: behaviour.idle_timeout_ms,
                ..HandshakeReply::default()
            };
            if behaviour.answer_handshakes {
                wire.reply::<HandshakeRequest>(&frame, &reply).await;
            }
        }
        ApiKey::PING if behaviour.answer_pings => wire.reply::<PingRequest>(&frame, &PingReply {}).await,
        ApiKey::PING => {}
        ApiKey::METADATA if behaviour.answer_metadata => {
            let request: MetadataRequest = frame.decode_body().unwrap();
            if request.watch {
                shared.watchers.lock().push(wire.clone());
                shared.watcher_added.notify_waiters();
            }
            wire.reply::<MetadataRequest>(&frame, &metadata(&request, &behaviour)).await;
        }
        ApiKey::METADATA => {}
        ApiKey::INIT_PRODUCER if behaviour.identities => {
            let request: InitProducerRequest = frame.decode_body().unwrap();
            let next = InitProducerReply {
                producer_id: request.producer_id.unwrap_or(5),
                producer_epoch: request.producer_id.map_or(0, |_| request.producer_epoch + 1),
            };
            wire.reply::<InitProducerRequest>(&frame, &next).await;
        }
        ApiKey::INIT_PRODUCER => {
            wire.reply_error(&frame, ErrorCode::UnknownApi, "this broker is too old").await;
        }
        ApiKey::LIST_OFFSETS => {
            let request = frame.decode_body::<ListOffsetsRequest>().unwrap();
            let offset = |position: i32| match Position::try_from(position) {
                Ok(Position::Earliest) => behaviour.earliest,
                _ => behaviour.latest,
            };
            let unopened = behaviour
                .unopened
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            let error = if unopened.is_ok() { ErrorCode::UnknownPartition } else { ErrorCode::None };
            let result = |query: &highwater_protocol::messages::OffsetQuery| OffsetResult {
                error: error.code(),
                offset: offset(query.position),
                timestamp_ms: -1,
                ..OffsetResult::default()
            };
            let reply = ListOffsetsReply { results: request.queries.iter().map(result).collect() };
            wire.reply::<ListOffsetsRequest>(&frame, &reply).await;
        }
        _ => {
            let _ = shared.incoming.send(Incoming { wire: wire.clone(), frame }).await;
        }
    }
}

fn metadata(request: &MetadataRequest, behaviour: &Behaviour) -> MetadataReply {
    let broker = |node: &u32| BrokerInfo { node_id: *node, address: address(*node), rack: String::new() };
    let partition = |partition| PartitionInfo {
        partition,
        leader: behaviour.leader,
        leader_epoch: behaviour.leader_epoch,
        ..PartitionInfo::default()
    };
    let topic = |name: &String| match behaviour.topic_id.filter(|_| name == TOPIC) {
        Some(topic_id) => TopicInfo {
            name: name.clone(),
            topic_id: Some(topic_id.into()),
            partitions: (0..behaviour.partitions).map(partition).collect(),
            ..TopicInfo::default()
        },
        None => {
            TopicInfo { error: ErrorCode::UnknownTopic.code(), name: name.clone(), ..TopicInfo::default() }
        }
    };
    let is_it = |id: &&highwater_protocol::messages::Uuid| Some(TopicId::from(**id)) == behaviour.topic_id;
    let by_id = request.topic_ids.iter().filter(is_it).map(|_| topic(&TOPIC.to_owned()));
    MetadataReply {
        version: behaviour.version,
        brokers: behaviour.roster.iter().map(broker).collect(),
        topics: request.names.iter().map(topic).chain(by_id).collect(),
        ..MetadataReply::default()
    }
}

/// A batch as a leader has it in its log.
pub fn batch(partition: u32, base_offset: u64, values: &[&str]) -> Bytes {
    let mut builder = BatchBuilder::with_capacity(256);
    for value in values {
        builder.push(1000, None, Some(value.as_bytes()), &[]);
    }
    let bytes = builder.build(place(partition), Compression::None).unwrap();
    let header = BatchHeader::decode(&bytes).unwrap();
    let stamp = LeaderStamp {
        base_offset: Offset(base_offset),
        leader_epoch: LeaderEpoch(1),
        append_time: 1,
        ..LeaderStamp::default()
    };
    let mut stamped = header.stamped(stamp, place(partition)).to_vec();
    stamped.extend_from_slice(&bytes[stamped.len()..]);
    Bytes::from(stamped)
}
