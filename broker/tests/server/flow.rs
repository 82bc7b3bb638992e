//! Flow control over links that hold little: who goes beyond what was agreed is told so and sent away, and whoever stops
//! reading holds up nobody else.

use std::time::Duration;

use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::{Acks, MetadataRequest, PingRequest, ProduceCredit, ProduceRequest, Push};

use crate::support::{LIMIT, Peer, batch, broker, code, produce_request, reply};

#[tokio::test]
async fn a_window_may_be_overdrawn_by_one_request_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |config| {
        config.produce_window = 64 << 10;
        config.produce_budget = 1 << 20;
        config.connections_max = 4;
    })
    .await;
    let mut peer = Peer::connect(&broker, 8 << 20).await;
    let topic = peer.create("t", 1, "fsync").await;
    let window = peer.handshake.produce_window;
    assert!(window <= 128 << 10, "{window}");
    // Everything is in the link before the broker's task runs again, so no credit can come in between.
    let large = batch(topic, 100, 2_000);
    assert!(large.len() as u64 > window);
    for number in 0..2 {
        peer.send(&produce_request(topic, number, &large, Acks::All), std::slice::from_ref(&large)).await;
    }
    assert_eq!(peer.goodbye().await, Some(ErrorCode::WindowExceeded));
    // Within the window it goes on for ever, because credit comes back.
    let mut peer = Peer::connect(&broker, 8 << 20).await;
    let mut granted = peer.handshake.produce_window;
    let (mut sent, mut acknowledged) = (0, 0);
    let mut number = 0;
    while acknowledged < 60 {
        while sent < granted && number < 60 {
            peer.send(&produce_request(topic, number, &large, Acks::All), std::slice::from_ref(&large)).await;
            sent += large.len() as u64;
            number += 1;
        }
        let frame = peer.next().await.expect("within the window nothing is wrong");
        match frame.header.api {
            ApiKey::PRODUCE_CREDIT => {
                let limit = frame.decode_body::<ProduceCredit>().unwrap().limit;
                assert!(limit > granted, "credit only grows");
                granted = limit;
            }
            _ => {
                let result = &reply::<ProduceRequest>(&frame).unwrap().results[0];
                assert_eq!(code(result.error), ErrorCode::None, "{}", result.message);
                acknowledged += 1;
            }
        }
    }
}

#[tokio::test]
async fn more_requests_than_agreed_end_the_connection() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |config| config.in_flight_max = 10).await;
    // The link holds few replies, so that they stay unwritten.
    let mut peer = Peer::connect(&broker, 256).await;
    assert_eq!(peer.handshake.max_in_flight, 10);
    let flood = async {
        for _ in 0..200 {
            peer.send(&PingRequest {}, &[]).await;
        }
    };
    tokio::time::timeout(LIMIT, flood).await.expect("the broker reads, or has closed");
    // The reason may be lost on a peer that does not read; the end is not.
    let mut rest = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut peer.link, &mut rest);
    tokio::time::timeout(LIMIT, read).await.expect("the broker closes the connection").unwrap();
    let mut other = Peer::connect(&broker, 1 << 20).await;
    other.call(&PingRequest {}, &[]).await.unwrap();
}

/// Many subscribers of one partition, one of which does not read: the others get everything, and quickly.
#[tokio::test]
async fn a_reader_that_stops_holds_up_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut producer = Peer::connect(&broker, 1 << 20).await;
    let topic = producer.create("t", 1, "os").await;
    let mut stopped = Peer::connect(&broker, 1024).await;
    stopped.subscribe(1, topic, 0, u64::MAX).await.unwrap();
    let mut reading = Peer::connect(&broker, 1 << 20).await;
    reading.subscribe(1, topic, 0, u64::MAX).await.unwrap();
    for number in 0..100u64 {
        let result = producer.produce(topic, number, batch(topic, 10, 1000), Acks::All).await;
        assert_eq!(code(result.error), ErrorCode::None);
        let mut seen = 0;
        while seen < (number + 1) * 10 {
            let (push, _): (Push, _) = reading.next_message().await;
            seen = push.high_watermark;
        }
    }
    // It gets everything in the end.
    let mut bytes = 0;
    while bytes < 100 * batch(topic, 10, 1000).len() {
        let (_, attachment): (Push, _) = stopped.next_message().await;
        bytes += attachment.len();
    }
}

/// Both ends have more to write than the link takes, and only one of them reads.
#[tokio::test]
async fn a_flood_against_a_reader_that_stops_is_no_deadlock() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut setup = Peer::connect(&broker, 1 << 20).await;
    let topic = setup.create("t", 1, "os").await;
    for number in 0..50 {
        setup.produce(topic, number, batch(topic, 100, 1000), Acks::All).await;
    }
    let mut peer = Peer::connect(&broker, 4096).await;
    let mut granted = peer.handshake.produce_window;
    peer.subscribe(1, topic, 0, u64::MAX).await.unwrap();
    // It writes without reading for as long as its window lasts: the broker must take it although its own pushes stand
    // still.
    let one = batch(topic, 1, 1000);
    let (mut sent, mut number) = (0, 0);
    while sent < granted && number < 200 {
        peer.send(&produce_request(topic, number, &one, Acks::All), std::slice::from_ref(&one)).await;
        sent += one.len() as u64;
        number += 1;
    }
    // Then it reads, and everything arrives: replies, credit and pushes.
    let (mut acknowledged, mut watermark) = (0, 0);
    while acknowledged < number || watermark < 5_000 + number {
        let frame = peer.next().await.expect("nothing is wrong with this connection");
        match frame.header.api {
            ApiKey::PUSH => watermark = watermark.max(frame.decode_body::<Push>().unwrap().high_watermark),
            ApiKey::PRODUCE_CREDIT => granted = frame.decode_body::<ProduceCredit>().unwrap().limit,
            ApiKey::PRODUCE => acknowledged += 1,
            _ => {}
        }
    }
    assert!(granted > 0);
}

/// Random bytes, cut and changed frames: the broker refuses what it must and serves everybody else.
#[tokio::test]
async fn malformed_frames_end_one_connection_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut witness = Peer::connect(&broker, 64 << 10).await;
    let topic = witness.create("t", 1, "os").await;
    let good = batch(topic, 3, 50);
    let mut frame = bytes::BytesMut::new();
    let request = produce_request(topic, 0, &good, Acks::All);
    highwater_protocol::frame::encode_frame_head(
        ApiKey::PRODUCE,
        0,
        highwater_protocol::ids::CorrelationId(1),
        &request,
        good.len(),
        &mut frame,
    )
    .unwrap();
    frame.extend_from_slice(&good);
    let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
    for round in 0..2_000 {
        let mut peer = Peer::connect(&broker, 64 << 10).await;
        let mut bytes = frame.to_vec();
        match round % 4 {
            0 => {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
            1 => bytes.truncate(random.below(bytes.len())),
            2 => bytes.iter_mut().for_each(|byte| *byte = random.below(256) as u8),
            _ => bytes[4..8].copy_from_slice(&(random.below(1 << 32) as u32).to_le_bytes()),
        }
        use tokio::io::AsyncWriteExt;
        peer.link.write_all(&bytes).await.unwrap();
        peer.link.shutdown().await.unwrap();
        let ended =
            tokio::time::timeout(Duration::from_secs(20), async { while peer.next().await.is_some() {} })
                .await;
        assert!(ended.is_ok(), "round {round}: the connection ends");
        if round % 100 == 0 {
            witness
                .call(&MetadataRequest { all_topics: true, ..MetadataRequest::default() }, &[])
                .await
                .unwrap();
        }
    }
}

struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}
