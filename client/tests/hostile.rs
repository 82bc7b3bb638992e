//! A broker that answers nonsense: errors, never a panic, a hang or a wrong answer.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not known as tests")]

mod scripted;

use std::time::Duration;

use bytes::BytesMut;
use highwater_client::{ErrorKind, NewTopic, PartitionId, ProducerRecord, StartAt};
use highwater_protocol::api::ApiKey;
use highwater_protocol::frame::{FLAG_REPLY, encode_frame_head};
use highwater_protocol::messages::{
    PingReply, ProduceReply, ProduceRequest, Push, SubscribeReply, SubscribeRequest,
};
use scripted::{Behaviour, Broker, Produced, TOPIC, acknowledged, batch};

fn record(value: &str) -> ProducerRecord<'_> {
    ProducerRecord::new(TOPIC).value(value)
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Sends one record, lets `answer` deal with the request, and checks that nobody believes it was acknowledged; then the next
/// record goes through.
async fn unbelievable(answer: impl AsyncFnOnce(&Produced)) {
    let mut broker = Broker::new(Behaviour::default());
    let producer =
        broker.client().await.producer().idempotent(false).delivery_timeout(Duration::from_secs(5)).build();
    let delivery = producer.send(record("a")).await.unwrap();
    let produced = broker.next_produce().await;
    answer(&produced).await;
    let error = delivery.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    let next = producer.send(record("b")).await.unwrap();
    broker.next_produce().await.acknowledge(1).await;
    next.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn results_that_do_not_fit_the_request_are_no_acknowledgement() {
    unbelievable(async |produced| produced.answer(Vec::new()).await).await;
    unbelievable(async |produced| produced.answer(vec![acknowledged(0), acknowledged(1)]).await).await;
}

#[tokio::test(start_paused = true)]
async fn replies_that_do_not_decode_or_answer_something_else_are_no_acknowledgement() {
    unbelievable(async |produced| {
        let id = produced.incoming.frame.header.correlation_id;
        let mut bytes = BytesMut::new();
        encode_frame_head(ApiKey::PING, FLAG_REPLY, id, &PingReply {}, 0, &mut bytes).unwrap();
        produced.incoming.wire.raw(&bytes).await;
    })
    .await;
    unbelievable(async |produced| {
        let id = produced.incoming.frame.header.correlation_id;
        let mut bytes = BytesMut::new();
        // A push has a list of messages where a produce reply has results, and they are none.
        let body = Push { id: 1, leader_epoch: 2, ..Push::default() };
        encode_frame_head(ApiKey::PRODUCE, FLAG_REPLY, id, &body, 0, &mut bytes).unwrap();
        produced.incoming.wire.raw(&bytes).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_reply_ends_the_connection() {
    for byte in 0..60 {
        unbelievable(async |produced| {
            let reply = ProduceReply { results: vec![acknowledged(77)] };
            let id = produced.incoming.frame.header.correlation_id;
            let mut bytes = BytesMut::new();
            encode_frame_head(ApiKey::PRODUCE, FLAG_REPLY, id, &reply, 0, &mut bytes).unwrap();
            let place = byte % bytes.len();
            bytes[place] ^= 0x10;
            produced.incoming.wire.raw(&bytes).await;
            // Where a damaged length makes the client wait for more, the end of the link tells.
            produced.incoming.wire.cut().await;
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn random_bytes_end_the_connection_and_nothing_else() {
    let mut state = 1;
    for _ in 0..200 {
        let length = random(&mut state) as usize % 3000;
        let mut noise: Vec<u8> = (0..length).map(|_| random(&mut state) as u8).collect();
        if random(&mut state).is_multiple_of(2) {
            // Past the magic, so that lengths are looked at.
            noise.splice(0..0, *b"HWF1");
        }
        unbelievable(async |produced| {
            produced.incoming.wire.raw(&noise).await;
            produced.incoming.wire.cut().await;
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_nobody_is_passed_over() {
    let mut broker = Broker::new(Behaviour::default());
    let producer = broker.client().await.producer().idempotent(false).build();
    let delivery = producer.send(record("a")).await.unwrap();
    let produced = broker.next_produce().await;
    let mut other = produced.incoming.frame.clone();
    other.header.correlation_id.0 += 1000;
    let reply = ProduceReply { results: vec![acknowledged(5)] };
    produced.incoming.wire.reply::<ProduceRequest>(&other, &reply).await;
    produced.acknowledge(6).await;
    produced.acknowledge(7).await;
    assert_eq!(delivery.await.unwrap().offset.get(), 6, "the first answer counts");
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_floods_a_subscription_is_left() {
    let mut broker = Broker::new(Behaviour { link_bytes: 4 << 20, ..Behaviour::default() });
    let client = broker.client().await;
    let _consumer =
        client.consumer(TOPIC).from(StartAt::Earliest).memory_bytes(100_000).build().await.unwrap();
    let incoming = broker.next().await;
    let request = incoming.frame.decode_body::<SubscribeRequest>().unwrap();
    incoming.wire.reply::<SubscribeRequest>(&incoming.frame, &SubscribeReply::default()).await;
    let large = "x".repeat(1 << 20);
    let before = broker.connection_count();
    for offset in 0..40 {
        let push = Push { id: request.id, high_watermark: 100, ..Push::default() };
        incoming.wire.one_way(&push, &batch(0, offset, &[&large])).await;
    }
    let again = broker.next().await;
    assert_eq!(again.frame.header.api, ApiKey::SUBSCRIBE);
    assert!(broker.connection_count() > before);
}

#[tokio::test(start_paused = true)]
async fn an_error_code_from_the_future_is_shown_and_not_retried() {
    let mut broker = Broker::new(Behaviour::default());
    let admin = broker.client().await.admin();
    let creating = tokio::spawn(async move { admin.create_topic(NewTopic::new("new")).await });
    let incoming = broker.next().await;
    let code = highwater_protocol::error_code::ErrorCode::Unknown(4711);
    incoming.wire.reply_error(&incoming.frame, code, "the moon is full").await;
    let error = creating.await.unwrap().unwrap_err();
    assert!(!error.is_retriable());
    let text = error.to_string();
    assert!(text.contains("4711") && text.contains("the moon is full"), "{text}");
    let read = broker.client().await.admin();
    let reading = tokio::spawn(async move { read.read(TOPIC, PartitionId(9), Default::default(), 0).await });
    assert_eq!(reading.await.unwrap().unwrap_err().kind(), ErrorKind::UnknownPartition);
}
