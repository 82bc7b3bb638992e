//! Produce requests over an in-memory link: order, stages, refusals.

use crate::support::{Peer, batch, broker, code, produce_request, reply};
use bytes::Bytes;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::TopicId;
use highwater_protocol::messages::{
    Acks, AlterTopicRequest, DescribeTopicsRequest, ListOffsetsRequest, OffsetQuery, Position, ProduceBatch,
    ProduceRequest, ReadRequest, Stage,
};

#[tokio::test]
async fn an_acknowledgement_names_the_stage_that_was_reached() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&broker, 1 << 20).await;
    let fsync = peer.create("fsync", 1, "fsync").await;
    let result = peer.produce(fsync, 0, batch(fsync, 3, 10), Acks::All).await;
    assert_eq!((code(result.error), result.base_offset), (ErrorCode::None, 0));
    assert_eq!(result.stage(), Stage::Flushed);
    assert_eq!((result.replicas_counted, result.replicas_total), (1, 1));
    assert!(result.append_time > 0);
    let result = peer.produce(fsync, 1, batch(fsync, 2, 10), Acks::Leader).await;
    assert_eq!((result.base_offset, result.stage()), (3, Stage::Flushed));
    let result = peer.produce(fsync, 2, batch(fsync, 2, 10), Acks::None).await;
    assert_eq!((result.base_offset, result.stage()), (5, Stage::Accepted));
    let os = peer.create("os", 1, "os").await;
    let result = peer.produce(os, 0, batch(os, 1, 10), Acks::All).await;
    assert_eq!(result.stage(), Stage::Written);
    broker.shutdown().await.unwrap();
}

#[tokio::test]
async fn after_a_refused_batch_later_ones_are_refused_until_it_comes_again() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&broker, 1 << 20).await;
    let topic = peer.create("t", 1, "os").await;
    let good = batch(topic, 1, 10);
    let mut bad = good.to_vec();
    bad[60] ^= 1;
    // All four are under way at once.
    let numbers: [(u64, Bytes); 4] =
        [(0, good.clone()), (1, Bytes::from(bad)), (2, good.clone()), (3, good.clone())];
    for (number, batch) in &numbers {
        let request = produce_request(topic, *number, batch, Acks::All);
        peer.send(&request, std::slice::from_ref(batch)).await;
    }
    let mut results = Vec::new();
    while results.len() < 4 {
        let frame = peer.next_of(highwater_protocol::api::ApiKey::PRODUCE).await;
        let result = reply::<ProduceRequest>(&frame).unwrap().results.remove(0);
        results.push((frame.header.correlation_id.get(), code(result.error), result.next_number));
    }
    results.sort_unstable_by_key(|result| result.0);
    let outcomes: Vec<_> = results.iter().map(|(_, code, next)| (*code, *next)).collect();
    assert_eq!(
        outcomes,
        [
            (ErrorCode::None, 0),
            (ErrorCode::CorruptBatch, 0),
            (ErrorCode::OutOfOrder, 1),
            (ErrorCode::OutOfOrder, 1),
        ]
    );
    let resumed = peer.produce(topic, 1, good.clone(), Acks::All).await;
    assert_eq!((code(resumed.error), resumed.base_offset), (ErrorCode::None, 1));
    let again = peer.produce(topic, 1, good.clone(), Acks::All).await;
    assert_eq!((code(again.error), again.next_number), (ErrorCode::OutOfOrder, 2), "a number is taken once");
    // Another connection has an order of its own.
    let mut other = Peer::connect(&broker, 1 << 20).await;
    let result = other.produce(topic, 0, good, Acks::All).await;
    assert_eq!((code(result.error), result.base_offset), (ErrorCode::None, 2));
}

#[tokio::test]
async fn what_is_no_batch_of_the_partition_is_refused_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&broker, 1 << 20).await;
    let topic = peer.create("t", 1, "os").await;
    let other = peer.create("other", 1, "os").await;
    let good = batch(topic, 1, 10);
    let with = |at: usize, value: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = value;
        Bytes::from(bytes)
    };
    let cases = [
        ("of another topic", batch(other, 1, 10), ErrorCode::CorruptBatch),
        ("an unknown format", with(2, 9), ErrorCode::UnsupportedFormat),
        ("a control batch", with(5, 1 << 5), ErrorCode::CorruptBatch),
        ("an offset of its own", with(7, 1), ErrorCode::CorruptBatch),
        ("a flipped bit", with(good.len() - 1, b'y'), ErrorCode::CorruptBatch),
        ("cut short", good.slice(..good.len() - 1), ErrorCode::CorruptBatch),
        ("not a batch", Bytes::from_static(b"nonsense"), ErrorCode::CorruptBatch),
    ];
    for (what, bytes, expected) in cases {
        let result = peer.produce(topic, 0, bytes, Acks::All).await;
        assert_eq!(code(result.error), expected, "{what}: {}", result.message);
        assert!(!result.message.is_empty(), "{what}");
    }
    let set = [("batch_bytes_max".to_owned(), "1KiB".to_owned())].into();
    peer.call(&AlterTopicRequest { name: "t".to_owned(), set, ..AlterTopicRequest::default() }, &[])
        .await
        .unwrap();
    // The setting reaches the partition's task a moment after the reply.
    let mut number = 0;
    let deadline = tokio::time::Instant::now() + crate::support::LIMIT;
    loop {
        let result = peer.produce(topic, number, batch(topic, 10, 1000), Acks::All).await;
        if code(result.error) == ErrorCode::BatchTooLarge {
            assert!(result.message.contains("batch_bytes_max"), "{}", result.message);
            break;
        }
        number += 1;
        assert!(tokio::time::Instant::now() < deadline, "the new limit never holds");
    }
}

#[tokio::test]
async fn one_request_answers_each_of_its_batches() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&broker, 1 << 20).await;
    let topic = peer.create("t", 1, "fsync").await;
    let good = batch(topic, 2, 10);
    let entry = |topic: TopicId, partition, number| ProduceBatch {
        topic_id: Some(topic.into()),
        partition,
        number,
        length: good.len() as u32,
    };
    let batches = vec![entry(topic, 0, 0), entry(topic, 9, 0), entry(TopicId(1), 0, 0), entry(topic, 0, 1)];
    let request = ProduceRequest { acks: Acks::All.into(), timeout_ms: 0, batches };
    let reply = peer.call(&request, &vec![good.clone(); 4]).await.unwrap();
    let outcomes: Vec<_> =
        reply.results.iter().map(|result| (code(result.error), result.base_offset)).collect();
    assert_eq!(
        outcomes,
        [
            (ErrorCode::None, 0),
            (ErrorCode::UnknownPartition, 0),
            (ErrorCode::UnknownPartition, 0),
            (ErrorCode::None, 2),
        ]
    );
    // Lengths that do not add up refuse the request as a whole, and so do values that mean nothing.
    let refused = peer.call(&request, std::slice::from_ref(&good)).await.unwrap_err();
    assert_eq!(code(refused.code), ErrorCode::InvalidRequest);
    let refused =
        peer.call(&ProduceRequest { acks: 9, ..request.clone() }, &vec![good; 4]).await.unwrap_err();
    assert_eq!(code(refused.code), ErrorCode::InvalidRequest);
    let refused = peer.call(&ProduceRequest { batches: vec![], ..request }, &[]).await.unwrap_err();
    assert_eq!(code(refused.code), ErrorCode::InvalidRequest);
}

#[tokio::test]
async fn a_changed_durability_holds_for_what_comes_after() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&broker, 1 << 20).await;
    let topic = peer.create("t", 1, "fsync").await;
    let mut number = 0;
    for (wanted, stage) in
        [("os", Stage::Written), ("interval(5ms)", Stage::Written), ("fsync", Stage::Flushed)]
    {
        let set = [("durability".to_owned(), wanted.to_owned())].into();
        let alter = AlterTopicRequest { name: "t".to_owned(), set, ..AlterTopicRequest::default() };
        peer.call(&alter, &[]).await.unwrap();
        let deadline = tokio::time::Instant::now() + crate::support::LIMIT;
        loop {
            let describe = DescribeTopicsRequest { names: vec!["t".to_owned()], summary: false };
            let described = peer.call(&describe, &[]).await.unwrap();
            let result = peer.produce(topic, number, batch(topic, 1, 10), Acks::All).await;
            assert_eq!(code(result.error), ErrorCode::None, "{}", result.message);
            number += 1;
            if described.topics[0].partitions[0].durability == wanted && result.stage() == stage {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{wanted} never holds");
        }
    }
    // With an interval everything is flushed a little later.
    let set = [("durability".to_owned(), "interval(5ms)".to_owned())].into();
    peer.call(&AlterTopicRequest { name: "t".to_owned(), set, ..AlterTopicRequest::default() }, &[])
        .await
        .unwrap();
    peer.produce(topic, number, batch(topic, 1, 10), Acks::All).await;
    let deadline = tokio::time::Instant::now() + crate::support::LIMIT;
    loop {
        let describe = DescribeTopicsRequest { names: vec!["t".to_owned()], summary: false };
        let partition = peer.call(&describe, &[]).await.unwrap().topics.remove(0).partitions.remove(0);
        if partition.flushed_end == partition.log_end {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "never flushed");
    }
}

#[tokio::test]
async fn offsets_are_found_and_read_back_and_a_restart_keeps_them() {
    let directory = tempfile::tempdir().unwrap();
    let first = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&first, 1 << 20).await;
    let topic = peer.create("t", 1, "fsync").await;
    for number in 0..5 {
        peer.produce(topic, number, batch(topic, 4, 100), Acks::All).await;
    }
    first.shutdown().await.unwrap();
    assert_eq!(peer.goodbye().await, Some(ErrorCode::ShuttingDown));

    let second = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&second, 1 << 20).await;
    let query = |position: Position, timestamp_ms| OffsetQuery {
        topic_id: Some(topic.into()),
        partition: 0,
        position: position.into(),
        timestamp_ms,
    };
    let queries = vec![
        query(Position::Earliest, 0),
        query(Position::Latest, 0),
        query(Position::Time, 500),
        query(Position::Time, 2_000),
    ];
    let listed = peer.call(&ListOffsetsRequest { queries }, &[]).await.unwrap();
    let found: Vec<_> = listed.results.iter().map(|r| (code(r.error), r.offset, r.timestamp_ms)).collect();
    assert_eq!(
        found,
        [
            (ErrorCode::None, 0, -1),
            (ErrorCode::None, 20, -1),
            (ErrorCode::None, 0, 1_000),
            (ErrorCode::None, 20, -1),
        ]
    );
    assert!(listed.results[1].leader_epoch > 1, "a start raises the epoch");
    let request = ReadRequest { topic_id: Some(topic.into()), partition: 0, offset: 5, bytes_max: 1 };
    let id = peer.send(&request, &[]).await;
    let frame = peer.next_of(highwater_protocol::api::ApiKey::READ).await;
    assert_eq!(frame.header.correlation_id, id);
    let read = reply::<ReadRequest>(&frame).unwrap();
    assert_eq!((read.high_watermark, read.log_start, read.log_end), (20, 0, 20));
    let header = highwater_protocol::batch::BatchHeader::decode(&frame.attachment).unwrap();
    assert_eq!(
        (header.leader.base_offset.get(), header.length()),
        (4, frame.attachment.len()),
        "one whole batch"
    );
    let beyond = peer.call(&ReadRequest { offset: 21, ..request }, &[]).await.unwrap_err();
    assert_eq!(code(beyond.code), ErrorCode::OffsetOutOfRange);
}

#[tokio::test]
async fn a_partition_that_could_not_be_opened_is_served_once_it_can_be() {
    let directory = tempfile::tempdir().unwrap();
    let first = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&first, 1 << 20).await;
    let topic = peer.create("t", 2, "fsync").await;
    peer.produce(topic, 0, batch(topic, 4, 100), Acks::All).await;
    first.shutdown().await.unwrap();
    // Something is in the way of one of its two partitions.
    let partition = directory.path().join("topics").join(topic.to_string()).join("0");
    let aside = directory.path().join("aside");
    std::fs::rename(&partition, &aside).unwrap();
    std::fs::write(&partition, b"no directory").unwrap();

    let second = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&second, 1 << 20).await;
    let refused = peer.subscribe(1, topic, 0, 0).await.unwrap_err();
    assert_eq!(code(refused.code), ErrorCode::StorageError, "{}", refused.message);
    assert!(code(refused.code).is_retriable());
    std::fs::remove_file(&partition).unwrap();
    std::fs::rename(&aside, &partition).unwrap();
    let deadline = tokio::time::Instant::now() + crate::support::LIMIT;
    let mut id = 2;
    let told = loop {
        if let Ok(told) = peer.subscribe(id, topic, 0, 0).await {
            break told;
        }
        id += 1;
        assert!(tokio::time::Instant::now() < deadline, "it is never served");
    };
    assert_eq!(told.high_watermark, 4);
}
