//! Peers that ask for too much, or for the wrong thing at the wrong time.
#![cfg(test)]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use highwater_broker::Broker;
use highwater_broker::config::{Bytes, Config, Settings};
use highwater_broker::env::Env;
use highwater_protocol::api::ApiKey;
use highwater_protocol::ids::PartitionId;
use highwater_protocol::messages::{
    CreateTopicRequest, Credit, DeleteTopicRequest, DescribeTopicsRequest, MetadataRequest, PingRequest,
    Push, SubscribeRequest,
};
use highwater_tests::peer::{self, PeerReader, PeerWriter, reply_to};
use highwater_tests::wait;

const TOPIC: &str = "target";
const LIMIT: Duration = Duration::from_secs(60);

async fn start(directory: &Path) -> Broker {
    let settings = Settings {
        listen: Some("127.0.0.1:0".to_owned()),
        http: Some("off".to_owned()),
        data_dir: Some(directory.to_owned()),
        disk_reserve: Some(Bytes(0)),
        ..Settings::default()
    };
    Broker::start(Config::load(settings, None).unwrap(), Env::real()).await.unwrap()
}

async fn connect(broker: &Broker) -> (PeerWriter, PeerReader) {
    let (writer, reader, _) = peer::connect(broker.address(), "attacker").await.unwrap();
    (writer, reader)
}

fn create(partitions: u32) -> CreateTopicRequest {
    CreateTopicRequest { name: TOPIC.to_owned(), partitions, ..CreateTopicRequest::default() }
}

async fn next(reader: &mut PeerReader) -> Result<highwater_protocol::frame::Frame> {
    wait::within("a frame comes", LIMIT, reader.next()).await?.context("a frame")?.context("not the end")
}

/// A name takes a few bytes in a request, and its description a megabyte in the memory of the broker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_topic_named_thousands_of_times_is_not_described_thousands_of_times() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let broker = start(directory.path()).await;
    let (mut writer, mut reader) = connect(&broker).await;
    writer.request(&create(200), &[]).await?;
    reply_to::<CreateTopicRequest>(&next(&mut reader).await?)?;

    let names = vec![TOPIC.to_owned(); 16_000];
    let begun = Instant::now();
    writer.request(&DescribeTopicsRequest { names: names.clone(), summary: false }, &[]).await?;
    let error = reply_to::<DescribeTopicsRequest>(&next(&mut reader).await?).unwrap_err().to_string();
    assert!(error.contains("3200000 partitions"), "{error}");
    writer.request(&MetadataRequest { names, ..MetadataRequest::default() }, &[]).await?;
    let error = reply_to::<MetadataRequest>(&next(&mut reader).await?).unwrap_err().to_string();
    assert!(error.contains("3200000 partitions"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());

    // What is asked for once is told.
    writer.request(&DescribeTopicsRequest { names: vec![TOPIC.to_owned()], summary: false }, &[]).await?;
    let reply = reply_to::<DescribeTopicsRequest>(&next(&mut reader).await?)?;
    assert_eq!(reply.topics[0].partitions.len(), 200);
    Ok(())
}

/// Whoever sends a thousand requests at once must not keep others waiting until all are answered.
#[tokio::test]
async fn a_flood_of_requests_does_not_hold_other_connections() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let broker = start(directory.path()).await;
    let (mut writer, mut reader) = connect(&broker).await;
    writer.request(&create(1000), &[]).await?;
    reply_to::<CreateTopicRequest>(&next(&mut reader).await?)?;
    let (mut other, mut other_reader) = connect(&broker).await;

    let request = MetadataRequest { names: vec![TOPIC.to_owned(); 20], ..MetadataRequest::default() };
    let mut flood = Vec::new();
    for id in 0..500 {
        flood.extend_from_slice(&peer::encode(ApiKey::METADATA, 0, 1000 + id, &request, &[])?);
    }
    let flooding = tokio::spawn(async move {
        writer.send_bytes(&flood).await.unwrap();
        let mut replies = 0;
        while replies < 500 && next(&mut reader).await.is_ok() {
            replies += 1;
        }
        replies
    });
    let mut slowest = Duration::ZERO;
    while !flooding.is_finished() {
        let begun = Instant::now();
        other.request(&PingRequest {}, &[]).await?;
        reply_to::<PingRequest>(&next(&mut other_reader).await?)?;
        slowest = slowest.max(begun.elapsed());
        tokio::task::yield_now().await;
    }
    assert!(flooding.await? > 0);
    assert!(slowest < Duration::from_secs(1), "a ping took {slowest:?}");
    Ok(())
}

/// A create request waits for its partitions; deleted before they are open, it must not wait for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_deleted_while_it_is_being_made_leaves_nobody_waiting() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let broker = start(directory.path()).await;
    let (mut creator, mut created) = connect(&broker).await;
    let (mut deleter, mut deleted) = connect(&broker).await;
    for _ in 0..10 {
        creator.request(&create(300), &[]).await?;
        let delete = DeleteTopicRequest { name: TOPIC.to_owned(), topic_id: None };
        // Until the topic is there to be deleted.
        loop {
            deleter.request(&delete, &[]).await?;
            if reply_to::<DeleteTopicRequest>(&next(&mut deleted).await?).is_ok() {
                break;
            }
        }
        // Made or refused, but answered.
        let _either = reply_to::<CreateTopicRequest>(&next(&mut created).await?);
    }
    wait::within("it stops", LIMIT, broker.shutdown()).await??;
    Ok(())
}

/// Credits that come while the watermark moves: every batch is pushed once, in order.
#[tokio::test]
async fn credits_that_cross_a_watermark_bring_nothing_twice() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let broker = start(directory.path()).await;
    let (mut producer, mut produced) = connect(&broker).await;
    producer.request(&create(1), &[]).await?;
    reply_to::<CreateTopicRequest>(&next(&mut produced).await?)?;
    let topic = peer::topic_id(&mut producer, &mut produced, TOPIC).await?;
    let (mut consumer, mut pushes) = connect(&broker).await;
    let subscribe = SubscribeRequest { id: 1, topic_id: Some(topic.into()), ..SubscribeRequest::default() };
    consumer.request(&subscribe, &[]).await?;
    reply_to::<SubscribeRequest>(&next(&mut pushes).await?)?;

    const BATCHES: u64 = 300;
    let producing = tokio::spawn(async move {
        for number in 0..BATCHES {
            let batch = peer::batch(topic, PartitionId(0), 1, number, 1).unwrap();
            let request = peer::produce(topic, PartitionId(0), number, &batch).unwrap();
            producer.request(&request, std::slice::from_ref(&batch)).await.unwrap();
            next(&mut produced).await.unwrap();
        }
    });
    let (mut seen, mut bytes) = (Vec::new(), 0u64);
    while (seen.len() as u64) < BATCHES {
        let frame = next(&mut pushes).await?;
        if frame.header.api != ApiKey::PUSH {
            continue;
        }
        let push: Push = frame.decode_body()?;
        let mut rest = &frame.attachment[..];
        while !rest.is_empty() {
            let header = highwater_protocol::batch::BatchHeader::decode(rest)?;
            seen.push(header.leader.base_offset.get());
            rest = &rest[header.length()..];
        }
        bytes += frame.attachment.len() as u64;
        // Just enough for one more batch, as soon as a watermark is heard of.
        consumer.one_way(&Credit { id: push.id, limit: bytes + 1 }).await?;
    }
    producing.await?;
    let distinct: BTreeSet<u64> = seen.iter().copied().collect();
    assert_eq!(distinct.len(), seen.len(), "nothing comes twice: {seen:?}");
    assert!(seen.is_sorted(), "in order: {seen:?}");
    Ok(())
}
