//! Connecting, deadlines and admin requests against a broker that does what the test says.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not known as tests")]

mod scripted;

use std::sync::Arc;
use std::time::Duration;

use highwater_client::{AlterTopic, Client, ErrorKind, NewTopic, Offset, PartitionId, StartAt};
use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::{
    AlterTopicReply, AlterTopicRequest, CreateTopicReply, CreateTopicRequest, DeleteTopicReply,
    DeleteTopicRequest, DescribeTopicsReply, DescribeTopicsRequest, TopicDescription,
};
use scripted::{Behaviour, Broker, TOPIC};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn addresses_are_checked_before_anything_is_connected() {
    for bad in ["", "localhost", ":9470", "host:port", "host:70000"] {
        let error = Client::builder([bad]).connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad:?}");
    }
    let none: [&str; 0] = [];
    assert_eq!(Client::builder(none).connect().await.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn connecting_is_tried_again_until_the_broker_is_there_or_time_is_up() {
    let broker = Broker::new(Behaviour { refuse_connections: true, ..Behaviour::default() });
    let begun = Instant::now();
    let builder = broker.client_builder().connect_timeout(Duration::from_secs(3));
    let error = builder.clone().connect().await.unwrap_err();
    assert_eq!((error.kind(), error.address()), (ErrorKind::Connection, Some("broker:1")));
    assert!((2..=3).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let connecting = tokio::spawn(builder.connect());
    tokio::time::sleep(Duration::from_millis(500)).await;
    broker.change(|behaviour| behaviour.refuse_connections = false);
    connecting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_accepts_and_says_nothing_does_not_hang_the_client() {
    let broker = Broker::new(Behaviour { answer_handshakes: false, ..Behaviour::default() });
    let begun = Instant::now();
    let error = broker.client_builder().connect_timeout(Duration::from_secs(8)).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert!(begun.elapsed() <= Duration::from_secs(8));
}

#[tokio::test(start_paused = true)]
async fn requests_have_a_deadline() {
    let mut broker = Broker::new(Behaviour::default());
    let client = broker.client_builder().request_timeout(Duration::from_secs(2)).connect().await.unwrap();
    let begun = Instant::now();
    let error = client.admin().create_topic(NewTopic::new("new")).await.unwrap_err();
    assert_eq!((error.kind(), error.topic()), (ErrorKind::TimedOut, Some("new")));
    assert_eq!(begun.elapsed().as_secs(), 2);
    // A reply that comes too late is nobody's.
    let late = broker.next().await;
    late.wire.reply::<CreateTopicRequest>(&late.frame, &CreateTopicReply::default()).await;
    let again = tokio::spawn({
        let admin = client.admin();
        async move { admin.create_topic(NewTopic::new("new").partitions(3)).await }
    });
    let incoming = broker.next().await;
    let reply = CreateTopicReply { topic_id: None, partitions: 3, replication: 1 };
    incoming.wire.reply::<CreateTopicRequest>(&incoming.frame, &reply).await;
    assert_eq!(again.await.unwrap().unwrap().partitions, 3);
}

#[tokio::test(start_paused = true)]
async fn a_change_is_not_repeated_when_its_reply_is_lost_but_a_question_is() {
    let mut broker = Broker::new(Behaviour::default());
    let client = broker.client().await;
    let admin = client.admin();
    let deleting = tokio::spawn(async move { admin.delete_topic(TOPIC).await });
    let incoming = broker.next().await;
    assert_eq!(incoming.frame.header.api, ApiKey::DELETE_TOPIC);
    incoming.wire.cut().await;
    assert_eq!(deleting.await.unwrap().unwrap_err().kind(), ErrorKind::Connection);
    let admin = client.admin();
    let listing = tokio::spawn(async move { admin.list_topics().await });
    let incoming = broker.next().await;
    assert_eq!(incoming.frame.header.api, ApiKey::DESCRIBE_TOPICS);
    incoming.wire.cut().await;
    let incoming = broker.next().await;
    let topics =
        vec![TopicDescription { name: String::from("a"), partition_count: 2, ..TopicDescription::default() }];
    incoming.wire.reply::<DescribeTopicsRequest>(&incoming.frame, &DescribeTopicsReply { topics }).await;
    let listed = listing.await.unwrap().unwrap();
    assert_eq!((listed[0].name.as_str(), listed[0].partition_count), ("a", 2));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_says_try_again_is_tried_again() {
    let mut broker = Broker::new(Behaviour::default());
    let client = broker.client().await;
    let admin = client.admin();
    let altering = tokio::spawn(async move {
        admin.alter_topic(AlterTopic::new(TOPIC).set("durability", "os").partitions(4)).await
    });
    let first = broker.next().await;
    first.wire.reply_error(&first.frame, ErrorCode::Busy, "a moment").await;
    let second = broker.next().await;
    let request = second.frame.decode_body::<AlterTopicRequest>().unwrap();
    assert_eq!((request.set["durability"].as_str(), request.partitions), ("os", 4));
    second.wire.reply::<AlterTopicRequest>(&second.frame, &AlterTopicReply { partitions: 4 }).await;
    assert_eq!(altering.await.unwrap().unwrap().partitions, 4);
    let admin = client.admin();
    let creating = tokio::spawn(async move { admin.create_topic(NewTopic::new("bad name")).await });
    let incoming = broker.next().await;
    incoming.wire.reply_error(&incoming.frame, ErrorCode::InvalidTopicName, "' ' is not allowed").await;
    let error = creating.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("' ' is not allowed"), "{error}");
    let admin = client.admin();
    let deleting = tokio::spawn(async move { admin.delete_topic(TOPIC).await });
    let incoming = broker.next().await;
    incoming.wire.reply::<DeleteTopicRequest>(&incoming.frame, &DeleteTopicReply {}).await;
    deleting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn more_callers_than_requests_in_flight_wait_their_turn() {
    let mut broker = Broker::new(Behaviour { max_in_flight: 2, ..Behaviour::default() });
    let client = broker.client().await;
    let mut callers = Vec::new();
    for _ in 0..5 {
        let admin = client.admin();
        callers.push(tokio::spawn(async move { admin.list_topics().await }));
    }
    let mut waiting = vec![broker.next().await, broker.next().await];
    for _ in 0..3 {
        broker.nothing_for(Duration::from_millis(100)).await;
        let one = waiting.remove(0);
        one.wire.reply::<DescribeTopicsRequest>(&one.frame, &DescribeTopicsReply::default()).await;
        waiting.push(broker.next().await);
    }
    for one in waiting {
        one.wire.reply::<DescribeTopicsRequest>(&one.frame, &DescribeTopicsReply::default()).await;
    }
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn offsets_of_a_partition_that_its_leader_is_about_to_open_are_asked_for_again() {
    let unopened = Arc::new(std::sync::atomic::AtomicU64::new(2));
    let broker =
        Broker::new(Behaviour { latest: 8, unopened: Arc::clone(&unopened), ..Behaviour::default() });
    let admin = broker.client().await.admin();
    let listed = admin.list_offsets(TOPIC, &[], StartAt::Latest).await.unwrap();
    assert_eq!((listed.len(), listed[0].offset.get()), (1, 8));
    assert_eq!(unopened.load(std::sync::atomic::Ordering::SeqCst), 0);
    let error = admin.list_offsets(TOPIC, &[PartitionId(7)], StartAt::Latest).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownPartition, "{error}");
}

#[tokio::test(start_paused = true)]
async fn offsets_are_listed_in_the_order_asked_for() {
    let broker = Broker::new(Behaviour { partitions: 3, earliest: 4, latest: 8, ..Behaviour::default() });
    let admin = broker.client().await.admin();
    let wanted = [PartitionId(2), PartitionId(0)];
    let listed = admin.list_offsets(TOPIC, &wanted, StartAt::Earliest).await.unwrap();
    let seen: Vec<_> = listed.iter().map(|listed| (listed.partition, listed.offset.get())).collect();
    assert_eq!(seen, [(PartitionId(2), 4), (PartitionId(0), 4)]);
    assert_eq!(admin.list_offsets(TOPIC, &[], StartAt::Latest).await.unwrap().len(), 3);
    let fixed = admin.list_offsets(TOPIC, &wanted, StartAt::Offset(Offset(5))).await.unwrap();
    assert_eq!(fixed[1].offset, Offset(5));
    let metadata = admin.metadata(&[TOPIC, "nope"]).await.unwrap();
    assert_eq!((metadata.topics.len(), metadata.brokers[0].address.as_str()), (1, "broker:1"));
}
