//! Subscriptions: credits, watermarks, and how they end.

use highwater_protocol::api::ApiKey;
use highwater_protocol::batch::{BatchHeader, Records};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{PartitionId, TopicPartition};
use highwater_protocol::messages::{
    Acks, Credit, DeleteTopicRequest, Ended, Isolation, PingRequest, Push, ReadRequest, UnsubscribeRequest,
};

use crate::support::{Peer, batch, broker, code, subscribe_request};

#[tokio::test]
async fn batches_come_as_they_are_committed_within_the_credit() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut producer = Peer::connect(&broker, 1 << 20).await;
    let mut consumer = Peer::connect(&broker, 1 << 20).await;
    let topic = producer.create("t", 1, "fsync").await;
    let told = consumer.subscribe(1, topic, 0, 1).await.unwrap();
    assert_eq!((told.high_watermark, told.log_start, told.leader_epoch), (0, 0, 1));
    producer.produce(topic, 0, batch(topic, 3, 1000), Acks::All).await;
    // One byte of credit lets one whole batch out.
    let (push, attachment): (Push, _) = consumer.next_message().await;
    assert_eq!((push.id, push.high_watermark, push.leader_epoch), (1, 3, 1));
    let partition = TopicPartition::new(topic, PartitionId(0));
    let records = Records::verify(&attachment, partition).unwrap();
    assert_eq!(records.iter().count(), 3);
    let pushed = attachment.len() as u64;
    // Without credit only the watermark comes.
    producer.produce(topic, 1, batch(topic, 2, 1000), Acks::All).await;
    let (push, attachment): (Push, _) = consumer.next_message().await;
    assert_eq!((push.high_watermark, attachment.len()), (5, 0));
    consumer.tell(&Credit { id: 1, limit: pushed + 1 }).await;
    let (push, attachment): (Push, _) = consumer.next_message().await;
    assert_eq!(push.high_watermark, 5);
    assert_eq!(BatchHeader::decode(&attachment).unwrap().leader.base_offset.get(), 3);
    // A consumer that starts in the middle gets the whole batch that its offset is in.
    consumer.subscribe(2, topic, 1, u64::MAX).await.unwrap();
    let (push, attachment): (Push, _) = consumer.next_message().await;
    assert_eq!(push.id, 2);
    assert_eq!(BatchHeader::decode(&attachment).unwrap().leader.base_offset.get(), 0);
}

#[tokio::test]
async fn what_cannot_be_subscribed_to_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |config| config.subscriptions_max = 2).await;
    let mut peer = Peer::connect(&broker, 1 << 20).await;
    let topic = peer.create("t", 1, "os").await;
    let good = subscribe_request(5, topic, 0, 1);
    let cases = [
        (subscribe_request(5, topic, 1, 1), ErrorCode::OffsetOutOfRange),
        (subscribe_request(5, highwater_protocol::ids::TopicId(9), 0, 1), ErrorCode::UnknownPartition),
        (
            highwater_protocol::messages::SubscribeRequest { isolation: Isolation::LogEnd.into(), ..good },
            ErrorCode::NotAuthorized,
        ),
        (highwater_protocol::messages::SubscribeRequest { isolation: 9, ..good }, ErrorCode::InvalidRequest),
        (
            highwater_protocol::messages::SubscribeRequest { current_epoch: Some(0), ..good },
            ErrorCode::FencedEpoch,
        ),
        (
            highwater_protocol::messages::SubscribeRequest { current_epoch: Some(9), ..good },
            ErrorCode::UnknownEpoch,
        ),
        (
            highwater_protocol::messages::SubscribeRequest { topic_id: None, ..good },
            ErrorCode::InvalidRequest,
        ),
    ];
    for (request, expected) in cases {
        let refused = peer.call(&request, &[]).await.unwrap_err();
        assert_eq!(code(refused.code), expected, "{}", refused.message);
    }
    peer.call(&good, &[]).await.unwrap();
    for id in [5, 4] {
        let refused = peer.subscribe(id, topic, 0, 1).await.unwrap_err();
        assert_eq!(code(refused.code), ErrorCode::DuplicateSubscription);
    }
    peer.subscribe(6, topic, 0, 1).await.unwrap();
    let refused = peer.subscribe(7, topic, 0, 1).await.unwrap_err();
    assert_eq!(code(refused.code), ErrorCode::TooManySubscriptions);
    peer.call(&UnsubscribeRequest { id: 5 }, &[]).await.unwrap();
    let refused = peer.call(&UnsubscribeRequest { id: 5 }, &[]).await.unwrap_err();
    assert_eq!(code(refused.code), ErrorCode::UnknownSubscription);
    peer.subscribe(8, topic, 0, 1).await.unwrap();
    // A credit for one that is over is nobody's fault.
    peer.tell(&Credit { id: 5, limit: 9 }).await;
    peer.call(&PingRequest {}, &[]).await.unwrap();
}

#[tokio::test]
async fn a_deleted_topic_ends_its_subscriptions() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&broker, 1 << 20).await;
    let (gone, stays) = (peer.create("gone", 1, "os").await, peer.create("stays", 1, "os").await);
    peer.subscribe(1, gone, 0, 1000).await.unwrap();
    peer.subscribe(2, stays, 0, 1000).await.unwrap();
    let mut admin = Peer::connect(&broker, 1 << 20).await;
    admin.call(&DeleteTopicRequest { name: "gone".to_owned(), topic_id: None }, &[]).await.unwrap();
    let (ended, _): (Ended, _) = peer.next_message().await;
    assert_eq!((ended.id, code(ended.code)), (1, ErrorCode::UnknownTopic));
    admin.produce(stays, 0, batch(stays, 1, 10), Acks::All).await;
    let (push, _): (Push, _) = peer.next_message().await;
    assert_eq!(push.id, 2);
}

#[tokio::test]
async fn subscribers_of_one_connection_share_it_and_a_large_one_does_not_starve_a_small_one() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&broker, 1 << 20).await;
    let (large, small) = (peer.create("large", 1, "os").await, peer.create("small", 1, "os").await);
    for number in 0..40 {
        peer.produce(large, number, batch(large, 100, 5_000), Acks::All).await;
    }
    for number in 0..10 {
        peer.produce(small, number, batch(small, 1, 100), Acks::All).await;
    }
    // The first read of a file waits for an I/O thread, which is not what this is about.
    let read = ReadRequest { topic_id: Some(small.into()), partition: 0, offset: 0, bytes_max: 0 };
    peer.call(&read, &[]).await.unwrap();
    peer.subscribe(1, large, 0, u64::MAX).await.unwrap();
    peer.subscribe(2, small, 0, u64::MAX).await.unwrap();
    let (mut large_bytes, mut small_pushes) = (0, 0);
    while small_pushes == 0 {
        let (push, attachment): (Push, _) = peer.next_message().await;
        match push.id {
            1 => large_bytes += attachment.len(),
            _ => small_pushes += 1,
        }
    }
    assert!(large_bytes <= 6 << 20, "the small one waited for {large_bytes} bytes of the large one");
}

#[tokio::test]
async fn an_idle_subscription_is_silent() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&broker, 1 << 20).await;
    let topic = peer.create("t", 1, "os").await;
    peer.subscribe(1, topic, 0, 1000).await.unwrap();
    peer.subscribe(2, topic, 0, 0).await.unwrap();
    for _ in 0..20 {
        let id = peer.send(&PingRequest {}, &[]).await;
        let frame = peer.next().await.unwrap();
        assert_eq!((frame.header.api, frame.header.correlation_id), (ApiKey::PING, id), "nothing else comes");
    }
}
