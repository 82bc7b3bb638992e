//! 100,000 malformed, truncated, oversized, lying and random frames against a broker in this process: no panic, bounded
//! memory, and nobody else notices.
//!
//! Beside `malformed_frames`, which attacks a real process over TCP, this one goes deeper (most frames have good checksums
//! and reach the handlers), counts every allocation, and checks that whatever the broker answers is a frame itself.
#![cfg(test)]

mod attack;
#[path = "../../../protocol/tests/counting_allocator/mod.rs"]
mod counting_allocator;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use highwater_broker::Broker;
use highwater_broker::config::Config;
use highwater_broker::env::Env;
use highwater_client::{Client, NewTopic, ProducerRecord, StartAt};
use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::{FLAG_ERROR, FLAG_ONE_WAY, FLAG_REPLY, Frame, Splitter};
use highwater_protocol::ids::{CorrelationId, TopicId};
use highwater_protocol::messages::*;
use highwater_tests::sim::random::Random;
use highwater_tests::wait;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, WriteHalf};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use attack::{Attacker, Kind, Shot};
use counting_allocator::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const FRAMES: usize = 100_000;
const ATTACKERS: usize = 4;
const LIMIT: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
/// Granted to produced batches of all connections together.
const PRODUCE_BUDGET: usize = 16 * MIB;
const TAIL_MEMORY: usize = 8 * MIB;
/// What the attack may add at its worst: the budgets, and for each attacker a whole body, its buffer while it grows, the copy
/// that it sends, and the decoded message.
const GROWTH_MAX: usize =
    PRODUCE_BUDGET + TAIL_MEMORY + ATTACKERS * 4 * highwater_protocol::limits::BODY_BYTES_MAX;

/// No attacker draws this one.
const LAST_PING: CorrelationId = CorrelationId(u64::MAX);

/// Panics of any task or thread.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn config(folder: &tempfile::TempDir) -> Config {
    let mut config = Config::default();
    config.listen = "127.0.0.1:0".to_owned();
    config.http = None;
    config.data_dir = folder.path().join("data");
    config.produce_budget = PRODUCE_BUDGET as u64;
    config.produce_window = 2 * MIB as u64;
    config.tail_memory = TAIL_MEMORY as u64;
    config.handshake_timeout = Duration::from_secs(2);
    config
}

/// How often the broker said what: the name of the API, and of the error if it is one.
type Answers = BTreeMap<(&'static str, &'static str), usize>;

fn what(frame: &Frame) -> (&'static str, &'static str) {
    let code = if frame.header.api == ApiKey::GOODBYE {
        frame.decode_body::<Goodbye>().expect("a goodbye").code
    } else if frame.header.flags & FLAG_ERROR != 0 {
        frame.decode_body::<ErrorReply>().expect("an error reply").code
    } else {
        0
    };
    (frame.header.api.name(), ErrorCode::from_code(code).name())
}

/// One connection of an attacker. What the broker says is read to its end, and must be frames.
struct Link {
    writer: WriteHalf<DuplexStream>,
    reading: JoinHandle<Answers>,
    /// Ends when the last ping was answered, or the broker closed the connection.
    pinged: oneshot::Receiver<()>,
}

impl Link {
    fn open(broker: &Broker) -> Self {
        let (near, far) = tokio::io::duplex(64 << 10);
        broker.serve(far);
        let (mut reader, writer) = tokio::io::split(near);
        let (pong, pinged) = oneshot::channel();
        let reading = tokio::spawn(async move {
            let mut pong = Some(pong);
            let mut input = attack::buffer();
            let mut answers = Answers::new();
            while reader.read_buf(&mut input).await.is_ok_and(|count| count > 0) {
                while let Some(frame) =
                    Splitter::default().next(&mut input).expect("what a broker says is a frame")
                {
                    assert!(frame.header.flags & (FLAG_REPLY | FLAG_ONE_WAY) != 0);
                    *answers.entry(what(&frame)).or_default() += 1;
                    if frame.header.correlation_id == LAST_PING {
                        pong.take();
                    }
                }
            }
            answers
        });
        Self { writer, reading, pinged }
    }

    async fn shake_hands(&mut self) {
        let hello = attack::frame(ApiKey::HANDSHAKE, 0, 1, &attack::handshake().encode_to_vec(), &[]);
        let _ = self.writer.write_all(&hello).await;
    }

    /// Waits until the broker has answered everything so far, or has closed the connection.
    async fn settle(&mut self) {
        let ping = attack::frame(ApiKey::PING, 0, LAST_PING.get(), &[], &[]);
        if self.writer.write_all(&ping).await.is_ok() {
            // Nothing is ever sent: the end is the sign.
            let _ = wait::within("the broker answers a ping", LIMIT, &mut self.pinged).await.unwrap();
        }
    }

    /// Ends the connection and returns what the broker said over it.
    async fn close(mut self) -> Answers {
        let _ = self.writer.shutdown().await;
        wait::within("the broker ends an attacked connection", LIMIT, self.reading).await.unwrap().unwrap()
    }
}

#[derive(Debug, Default)]
struct Sent {
    by_kind: BTreeMap<Kind, usize>,
    connections: usize,
    answers: Answers,
}

/// Sends `count` bad frames, over as many connections as that takes.
async fn attack(broker: Arc<Broker>, mut attacker: Attacker, count: usize) -> Sent {
    let mut sent = Sent::default();
    let mut total = 0;
    while total < count {
        let mut link = Link::open(&broker);
        sent.connections += 1;
        if attacker.random.percent(85) {
            link.shake_hands().await;
        }
        // Half of the connections send only what is a frame, so that they live; the others end with the first that is not.
        let deep = attacker.random.percent(50);
        while total < count {
            let Shot { kind, bytes, hangs_up } = if deep { attacker.next_deep() } else { attacker.next() };
            let written = link.writer.write_all(&bytes).await;
            total += 1;
            *sent.by_kind.entry(kind).or_default() += 1;
            if written.is_err() || hangs_up || kind == Kind::Oversized || attacker.random.percent(10) {
                break;
            }
        }
        if deep {
            link.settle().await;
        }
        for (what, count) in link.close().await {
            *sent.answers.entry(what).or_default() += count;
        }
    }
    sent
}

/// Somebody who behaves, over TCP: each record is acknowledged, comes back, and nothing takes long.
async fn behave(client: Client, over: Arc<AtomicBool>) -> (u64, Duration) {
    let producer = client.producer().build();
    let mut consumer = client.consumer("good").from(StartAt::Earliest).build().await.unwrap();
    let (mut count, mut slowest) = (0u64, Duration::ZERO);
    while !over.load(Ordering::Relaxed) || count == 0 {
        let began = Instant::now();
        let value = format!("record {count}");
        let delivery = producer.send(ProducerRecord::new("good").value(&value)).await.unwrap();
        let receipt = wait::within("an acknowledgement", LIMIT, delivery).await.unwrap().unwrap();
        assert_eq!(receipt.offset.get(), count);
        let record = wait::within("the record comes back", LIMIT, consumer.next_record())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(record.value.as_deref(), Some(value.as_bytes()));
        slowest = slowest.max(began.elapsed());
        count += 1;
    }
    (count, slowest)
}

async fn create(client: &Client, name: &str, partitions: u32) -> TopicId {
    let topic = NewTopic::new(name).partitions(partitions).config("durability", "os");
    client.admin().create_topic(topic).await.unwrap();
    let described = client.admin().describe_topics(&[name]).await.unwrap();
    described[0].topic_id
}

#[test]
fn a_hundred_thousand_bad_frames_harm_nobody_but_their_senders() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        hook(info);
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let broker = Arc::new(Broker::start(config(&folder), Env::real()).await.unwrap());
        let client = Client::builder([broker.address().to_string()]).connect().await.unwrap();
        let attacked = create(&client, "attacked", 2).await;
        create(&client, "good", 1).await;

        let over = Arc::new(AtomicBool::new(false));
        let well_behaved = tokio::spawn(behave(client.clone(), Arc::clone(&over)));
        let began = Instant::now();
        let before = counting_allocator::start();
        let mut random = Random::new(1);
        let attacks: Vec<_> = (0..ATTACKERS)
            .map(|_| {
                let attacker = Attacker::new(Random::new(random.next_u64()), attacked);
                tokio::spawn(attack(Arc::clone(&broker), attacker, FRAMES / ATTACKERS))
            })
            .collect();
        let mut sent = Sent::default();
        for attack in attacks {
            let of_one = attack.await.unwrap();
            for (kind, count) in of_one.by_kind {
                *sent.by_kind.entry(kind).or_default() += count;
            }
            sent.connections += of_one.connections;
            for (what, count) in of_one.answers {
                *sent.answers.entry(what).or_default() += count;
            }
        }
        let growth = counting_allocator::peak() - before;
        over.store(true, Ordering::Relaxed);
        let (good, slowest) = well_behaved.await.unwrap();
        println!("{sent:#?} in {:?}", began.elapsed());
        println!(
            "memory: {:.1} MiB more at the worst, {} MiB allowed",
            growth as f64 / MIB as f64,
            GROWTH_MAX / MIB
        );
        println!("beside it: {good} records went and came back, the slowest in {slowest:?}");
        assert_eq!(sent.by_kind.values().sum::<usize>(), FRAMES);
        assert_eq!(sent.by_kind.len(), 7, "every kind was sent");
        assert!(sent.answers.len() > 30, "the handlers were reached, and refused in many ways");
        assert!(growth <= GROWTH_MAX, "{growth} bytes more than before");
        assert_eq!(PANICS.load(Ordering::SeqCst), 0);

        drop(client);
        let broker = Arc::into_inner(broker).expect("no attacker is left");
        broker.shutdown().await.unwrap();
    });
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
}
