//! Malformed, truncated, oversized and random frames against the real broker: it does not die, does not allocate what
//! they ask for, and others do not notice.
//!
//! 5,000 frames by default; `HIGHWATER_FRAMES=100000` and `HIGHWATER_SEED` make it longer and different. The seed is
//! printed.
#![cfg(test)]

use std::env;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use highwater_client::{Client, NewTopic, PartitionId, ProducerRecord};
use highwater_protocol::api::ApiKey;
use highwater_protocol::ids::TopicId;
use highwater_protocol::messages::{Credit, ProduceCredit, SubscribeRequest};
use highwater_tests::cluster::{BrokerProcess, Options};
use highwater_tests::oracle::Record;
use highwater_tests::peer::{self, PeerReader, PeerWriter};
use highwater_tests::sim::random::Random;
use highwater_tests::{wait, workload};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(60);
const PARTITION: PartitionId = PartitionId(0);
/// The program itself, what a few good connections hold, and the largest frame twice.
const PEAK_BYTES_MAX: u64 = 160 << 20;

fn setting(name: &str, default: u64) -> u64 {
    env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// A frame that is right in itself.
fn good_frame(random: &mut Random, topic: TopicId) -> Result<Bytes> {
    let id = random.next_u64() | 1;
    match random.below(4) {
        0 => {
            let batch = peer::batch(topic, PARTITION, 7, 0, 1 + random.below(50))?;
            let request = peer::produce(topic, PARTITION, random.below(3), &batch)?;
            peer::encode(ApiKey::PRODUCE, 0, id, &request, &[batch])
        }
        1 => {
            let request = SubscribeRequest {
                id: random.below(8),
                topic_id: Some(topic.into()),
                partition: u32::try_from(random.below(3))?,
                offset: random.below(1 << 20),
                credit: random.next_u64(),
                ..SubscribeRequest::default()
            };
            peer::encode(ApiKey::SUBSCRIBE, 0, id, &request, &[])
        }
        2 => {
            peer::encode(ApiKey::CREDIT, 4, 0, &Credit { id: random.below(8), limit: random.next_u64() }, &[])
        }
        _ => peer::encode(ApiKey::PRODUCE_CREDIT, 4, 0, &ProduceCredit { limit: random.next_u64() }, &[]),
    }
}

/// Bytes that no honest client sends.
fn bad_frame(random: &mut Random, topic: TopicId) -> Result<Vec<u8>> {
    let mut frame = good_frame(random, topic)?.to_vec();
    match random.below(7) {
        // A bit of it is wrong.
        0 => {
            let index = random.index(frame.len());
            frame[index] ^= 1 << random.below(8);
        }
        // It ends too early.
        1 => frame.truncate(random.index(frame.len())),
        // It says that it is far longer than any frame may be.
        2 => frame[4..8]
            .copy_from_slice(&u32::try_from(random.within(20 << 20..u64::from(u32::MAX)))?.to_le_bytes()),
        // Its length is wrong, and allowed.
        3 => frame[4..8].copy_from_slice(&u32::try_from(random.below(16 << 20))?.to_le_bytes()),
        // Its body is random, its checksum right.
        4 => {
            let body = random.bytes(random.clone().index(600));
            frame = frame_around(*random.pick(ApiKey::ALL).context("no API")?, random, &body);
        }
        // An API or flags that nobody knows, its checksum right.
        5 => frame = frame_around(ApiKey(u16::try_from(random.below(1 << 16))?), random, b""),
        // Nothing but random bytes.
        _ => frame = random.bytes(random.clone().index(2_000)),
    }
    Ok(frame)
}

/// A frame with a right checksum around any body.
fn frame_around(api: ApiKey, random: &mut Random, body: &[u8]) -> Vec<u8> {
    let attachment = random.bytes(random.clone().index(200));
    let mut frame = Vec::new();
    frame.extend_from_slice(b"HWF1");
    frame.extend_from_slice(&u32::try_from(body.len() + attachment.len()).unwrap_or_default().to_le_bytes());
    frame.extend_from_slice(&api.0.to_le_bytes());
    frame.extend_from_slice(&u16::try_from(random.below(8)).unwrap_or_default().to_le_bytes());
    frame.extend_from_slice(&random.next_u64().to_le_bytes());
    frame.extend_from_slice(&u32::try_from(body.len()).unwrap_or_default().to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame);
    hasher.update(body);
    frame.extend_from_slice(&hasher.finalize().to_le_bytes());
    frame.extend_from_slice(body);
    frame.extend_from_slice(&attachment);
    frame
}

/// Sends bad frames on new connections, some before and some after the handshake, until `count` were sent.
async fn attack(address: SocketAddr, topic: TopicId, mut random: Random, count: u64) -> Result<u64> {
    let mut sent = 0;
    while sent < count {
        if random.percent(20) {
            let mut stream = TcpStream::connect(address).await.context("connect")?;
            // The broker may have closed it in the middle of this.
            drop(stream.write_all(&bad_frame(&mut random, topic)?).await);
            sent += 1;
            continue;
        }
        let (mut writer, reader, _) = peer::connect(address, "attacker").await.context("connect")?;
        let drain = tokio::spawn(drain(reader));
        for _ in 0..1 + random.below(20) {
            if send_one(&mut writer, &mut random, topic).await?.is_none() {
                break;
            }
            sent += 1;
        }
        drop(writer);
        wait::within("the broker ends the connection", LIMIT, drain).await??;
    }
    Ok(sent)
}

/// `None` once the broker has closed the connection.
async fn send_one(writer: &mut PeerWriter, random: &mut Random, topic: TopicId) -> Result<Option<()>> {
    let frame =
        if random.percent(20) { good_frame(random, topic)?.to_vec() } else { bad_frame(random, topic)? };
    Ok(writer.send_bytes(&frame).await.ok())
}

/// Reads and forgets until the end, whatever it is.
async fn drain(mut reader: PeerReader) {
    while let Ok(Some(_)) = reader.next().await {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_frames_harm_nobody_but_their_sender() {
    let (count, seed) = (setting("HIGHWATER_FRAMES", 5_000), setting("HIGHWATER_SEED", 1));
    println!("seed {seed}, {count} frames");
    let mut broker = BrokerProcess::start(Options::default()).unwrap();
    let address = broker.addresses().listen;
    let client = Client::builder([broker.bootstrap()]).connect().await.unwrap();
    for topic in ["attacked", "good"] {
        client.admin().create_topic(NewTopic::new(topic).config("durability", "os")).await.unwrap();
    }
    let (mut writer, mut reader, _) = peer::connect(address, "bare hands").await.unwrap();
    let topic = peer::topic_id(&mut writer, &mut reader, "attacked").await.unwrap();

    let mut random = Random::new(seed);
    let attacks: Vec<_> = (0..4)
        .map(|_| tokio::spawn(attack(address, topic, Random::new(random.next_u64()), count / 4)))
        .collect();
    // One good connection works all the time, and never has to be made again.
    let producer = client.producer().build();
    let mut good = 0;
    while !attacks.iter().all(tokio::task::JoinHandle::is_finished) {
        let value = workload::value_of(Record { producer: 1, number: good });
        let delivery = producer.send(ProducerRecord::new("good").value(&value)).await.unwrap();
        let receipt = wait::within("others are acknowledged", LIMIT, delivery).await.unwrap().unwrap();
        assert_eq!(receipt.offset.0, good);
        good += 1;
    }
    let mut sent = 0;
    for attack in attacks {
        sent += attack.await.unwrap().unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
    }
    assert!(sent >= count / 4 * 4);
    assert!(broker.is_running().unwrap());
    let usage = broker.usage().unwrap();
    println!("{sent} bad frames, {good} good records beside them, {usage:?}");
    assert!(usage.peak_resident_bytes < PEAK_BYTES_MAX, "{usage:?}");
    let pass = workload::read(&client, "good", PARTITION, None).await.unwrap();
    assert_eq!(pass.len() as u64, good);
    assert!(!broker.log().unwrap().contains("panicked"), "no panic");
    assert!(broker.terminate().unwrap().success());
}
