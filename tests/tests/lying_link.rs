//! Between a client and a real broker sits a link that damages and forges what the broker says: bodies with their checksums
//! made right again, batches, whole frames dropped or told twice. The client may fail, but it neither panics nor hands over
//! a record that nobody produced.
#![cfg(test)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use highwater_broker::Broker;
use highwater_broker::config::Config;
use highwater_broker::env::Env;
use highwater_client::wire::{Connecting, Connector, Link};
use highwater_client::{Client, NewTopic, ProducerRecord, StartAt};
use highwater_protocol::api::ApiKey;
use highwater_protocol::frame::{Frame, Splitter};
use highwater_tests::sim::random::Random;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const RECORDS: u64 = 2000;
const SESSIONS: usize = 480;
/// A session whose link has dropped an answer does not wait for it any longer.
const PATIENCE: Duration = Duration::from_millis(150);

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Makes links to a broker in this process.
#[derive(Debug)]
struct Liar {
    broker: Arc<Broker>,
    random: Mutex<Random>,
    /// Of a hundred frames, how many are tampered with.
    percent: u32,
    lies: Arc<AtomicUsize>,
}

impl Connector for Liar {
    fn connect<'a>(&'a self, _address: &'a str) -> Connecting<'a> {
        Box::pin(async move {
            let (client, near) = tokio::io::duplex(256 << 10);
            let (far, broker) = tokio::io::duplex(256 << 10);
            self.broker.serve(broker);
            let random = Random::new(self.random.lock().next_u64());
            tokio::spawn(tamper(near, far, random, self.percent, Arc::clone(&self.lies)));
            Ok(Link::from_stream(client))
        })
    }
}

/// Passes on what the client says, and most of what the broker says.
async fn tamper(
    client: DuplexStream,
    broker: DuplexStream,
    mut random: Random,
    percent: u32,
    lies: Arc<AtomicUsize>,
) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_broker, mut to_broker) = tokio::io::split(broker);
    let questions = async {
        let _ = tokio::io::copy(&mut from_client, &mut to_broker).await;
        let _ = to_broker.shutdown().await;
    };
    let answers = async {
        let mut input = BytesMut::with_capacity(64 << 10);
        while from_broker.read_buf(&mut input).await.is_ok_and(|count| count > 0) {
            while let Some(frame) = Splitter::default().next(&mut input).unwrap() {
                let lie = random.percent(percent);
                lies.fetch_add(usize::from(lie), Ordering::Relaxed);
                let said = if lie {
                    lie_about(&frame, &mut random)
                } else {
                    encode(&frame, &frame.body, &frame.attachment)
                };
                if to_client.write_all(&said).await.is_err() {
                    return;
                }
            }
            input.reserve(64 << 10);
        }
        let _ = to_client.shutdown().await;
    };
    tokio::join!(questions, answers);
}

/// The frame with another body or attachment, its checksum right.
fn encode(frame: &Frame, body: &[u8], attachment: &[u8]) -> Vec<u8> {
    encode_as(frame.header.api, frame.header.flags, frame.header.correlation_id.get(), body, attachment)
}

fn encode_as(api: ApiKey, flags: u16, correlation_id: u64, body: &[u8], attachment: &[u8]) -> Vec<u8> {
    let mut out = b"HWF1".to_vec();
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

fn lie_about(frame: &Frame, random: &mut Random) -> Vec<u8> {
    let (mut body, mut attachment) = (frame.body.to_vec(), frame.attachment.to_vec());
    let header = frame.header;
    match random.below(8) {
        // Another number, name or length in the body.
        0..3 => {
            for _ in 0..=random.below(2) {
                change(&mut body, random);
            }
        }
        // Another byte in a batch, or a batch too few, or bytes too many.
        3..5 if !attachment.is_empty() => change(&mut attachment, random),
        5 if !attachment.is_empty() => attachment.truncate(random.index(attachment.len())),
        // Said twice, said to somebody else, said as something else, or not said at all.
        3 | 5 => return encode(frame, &body, &attachment).repeat(2),
        4 => return encode_as(header.api, header.flags, random.next_u64(), &body, &attachment),
        6 => {
            let api = *random.pick(ApiKey::ALL).unwrap();
            return encode_as(api, random.below(8) as u16, header.correlation_id.get(), &body, &attachment);
        }
        _ => return Vec::new(),
    }
    encode(frame, &body, &attachment)
}

fn change(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        *bytes = random.bytes(6);
        return;
    }
    let at = random.index(bytes.len());
    match random.below(4) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next_u64() as u8,
        2 => drop(bytes.remove(at)),
        _ => bytes.insert(at, random.next_u64() as u8),
    }
}

fn value_of(number: u64) -> String {
    format!("record {number} is {:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Reads as far as the link lets it. Every record that comes out must be the one that was produced at its offset.
async fn read_over(liar: Arc<Liar>) -> (u64, String) {
    let mut count = 0;
    let reading = async {
        let client = Client::builder(["broker:1"]).connector(liar).connect().await?;
        let mut consumer =
            client.consumer("truth").from(StartAt::Earliest).memory_bytes(16 << 10).build().await?;
        while let Some(record) = consumer.next_record().await {
            let record = record?;
            let offset = record.offset.get();
            assert_eq!(record.value.as_deref(), Some(value_of(offset).as_bytes()), "offset {offset}");
            count += 1;
            if offset + 1 == RECORDS {
                break;
            }
        }
        Ok::<(), highwater_client::Error>(())
    };
    let end = match tokio::time::timeout(PATIENCE, reading).await {
        Ok(Ok(())) => "read to the end".to_owned(),
        Ok(Err(error)) => format!("{:?}", error.kind()),
        Err(_) => "waits for an answer".to_owned(),
    };
    (count, end)
}

#[test]
fn a_client_believes_only_what_is_proved() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        hook(info);
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.listen = "127.0.0.1:0".to_owned();
        config.http = None;
        config.data_dir = folder.path().join("data");
        let broker = Arc::new(Broker::start(config, Env::real()).await.unwrap());
        let honest = Client::builder([broker.address().to_string()]).connect().await.unwrap();
        honest.admin().create_topic(NewTopic::new("truth").config("durability", "os")).await.unwrap();
        let producer = honest.producer().batch_bytes(2000).build();
        for number in 0..RECORDS {
            drop(producer.send(ProducerRecord::new("truth").value(&value_of(number))).await.unwrap());
        }
        producer.flush().await.unwrap();

        let lies = Arc::new(AtomicUsize::new(0));
        let mut random = Random::new(1);
        let mut ends = BTreeMap::<String, usize>::new();
        let mut records = 0;
        for session in 0..SESSIONS / 8 {
            let sessions: Vec<_> = (0..8)
                .map(|_| {
                    let percent = [0, 5, 20, 50][session % 4];
                    let random = Mutex::new(Random::new(random.next_u64()));
                    let liar = Liar { broker: Arc::clone(&broker), random, percent, lies: Arc::clone(&lies) };
                    tokio::spawn(read_over(Arc::new(liar)))
                })
                .collect();
            for session in sessions {
                let (count, end) = session.await.unwrap();
                records += count;
                *ends.entry(end).or_default() += 1;
            }
        }
        let lies = lies.load(Ordering::Relaxed);
        println!("{lies} lies, {records} true records, the sessions ended so: {ends:#?}");
        assert!(lies > 200, "{lies} lies");
        assert!(ends["read to the end"] >= SESSIONS / 8, "without lies everything comes");
        assert!(ends.len() > 2, "some sessions failed");
    });
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
}
