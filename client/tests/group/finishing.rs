//! What is committed, and when.

use std::time::Duration;

use highwater_client::{ErrorKind, GroupEvent, GroupOffset, Offset, StartAt};
use highwater_protocol::error_code::ErrorCode;

use super::coordinator::World;
use super::scripted::TOPIC;
use super::{P0, event, nothing, record};

const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn automatic_commits_cover_what_is_finished_and_not_what_is_in_hand() {
    let world = World::new(1, &[0]).await;
    let mut consumer = world.builder().commit_every(Duration::from_secs(2)).build().await.unwrap();
    event(&mut consumer).await;
    world.push(0, 0, &["a", "b", "c"]).await;
    for _ in 0..2 {
        record(&mut consumer).await;
    }
    // However long the application takes with "b".
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(world.with(|state| state.committed(0)), Some(1));
    let count = world.with(|state| state.commits.len());
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(world.with(|state| state.commits.len()), count, "nothing new is not committed again");
    record(&mut consumer).await;
    world.until("the second", |state| state.committed(0) == Some(2)).await;
    nothing(&mut consumer, Duration::from_secs(5)).await;
    assert_eq!(world.with(|state| state.committed(0)), Some(3), "asking for more finishes it");
}

#[tokio::test(start_paused = true)]
async fn where_a_group_begins_is_recorded_so_that_nobody_begins_elsewhere() {
    let world = World::new(1, &[0]).await;
    let mut consumer = world.builder().from(StartAt::Latest).build().await.unwrap();
    event(&mut consumer).await;
    world.until("the start is committed", |state| state.committed(0) == Some(0)).await;
}

#[tokio::test(start_paused = true)]
async fn a_commit_covers_what_was_handed_out_and_says_what_went_wrong() {
    let world = World::new(2, &[0, 1]).await;
    let mut consumer = world.builder().commit_manually().build().await.unwrap();
    event(&mut consumer).await;
    world.push(0, 0, &["a", "b"]).await;
    record(&mut consumer).await;
    consumer.commit().await.unwrap();
    assert_eq!(world.with(|state| state.committed(0)), Some(1));
    // Without waiting.
    record(&mut consumer).await;
    let commit = consumer.commit_async();
    world.until("it is committed", |state| state.committed(0) == Some(2)).await;
    commit.await.unwrap();
    world.push(0, 2, &["c"]).await;
    record(&mut consumer).await;
    drop(consumer.commit_async());
    world.until("nobody waits for it", |state| state.committed(0) == Some(3)).await;
    world.push(1, 0, &["x"]).await;
    record(&mut consumer).await;
    world.with(|state| state.commit_errors.insert(1, ErrorCode::NotAssigned));
    let error = consumer.commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotMember);
    assert_eq!(
        (error.group(), error.topic(), error.partition().map(|p| p.get())),
        (Some("billing"), Some(TOPIC), Some(1))
    );
    // By itself it commits nothing, not even at the end.
    world.with(|state| state.commit_errors.clear());
    world.push(1, 1, &["y"]).await;
    record(&mut consumer).await;
    let count = world.with(|state| state.commits.len());
    consumer.close().await.unwrap();
    assert_eq!(world.with(|state| state.commits.len()), count);
}

#[tokio::test(start_paused = true)]
async fn positions_can_be_committed_with_something_to_remember() {
    let world = World::new(1, &[0]).await;
    let mut consumer = world.builder().commit_manually().build().await.unwrap();
    event(&mut consumer).await;
    let offset = |metadata: &str| GroupOffset {
        topic: TOPIC.to_owned(),
        partition: P0,
        offset: Offset(17),
        metadata: metadata.to_owned(),
    };
    consumer.commit_offsets([offset("sum=42")]).await.unwrap();
    assert_eq!(world.with(|state| state.committed[&0].clone()), (17, String::from("sum=42")));
    let error = consumer.commit_offsets([offset(&"x".repeat(4097))]).await.unwrap_err();
    assert_eq!((error.kind(), error.partition()), (ErrorKind::InvalidArgument, Some(P0)));
    consumer.commit_offsets([offset(&"x".repeat(4096))]).await.unwrap();
    let elsewhere = GroupOffset { topic: String::from("other"), ..offset("") };
    assert_eq!(consumer.commit_offsets([elsewhere]).await.unwrap_err().kind(), ErrorKind::NotMember);
}

#[tokio::test(start_paused = true)]
async fn records_finished_in_any_order_are_committed_when_all_before_them_are() {
    let world = World::new(1, &[0]).await;
    let mut consumer = world.builder().commit_every(NEVER).finish_explicitly().build().await.unwrap();
    event(&mut consumer).await;
    world.push(0, 0, &["a", "b", "c", "d"]).await;
    let mut records = Vec::new();
    for _ in 0..4 {
        records.push(consumer.next_record().await.unwrap().unwrap());
    }
    consumer.commit().await.unwrap();
    assert_eq!(world.with(|state| state.committed(0)), Some(0), "nothing is finished");
    for (finished, committed) in [(2, 0), (0, 1), (1, 3)] {
        consumer.finish(&records[finished]);
        consumer.commit().await.unwrap();
        assert_eq!(world.with(|state| state.committed(0)), Some(committed));
    }
    world.with(|state| state.assign(&[]));
    assert!(matches!(event(&mut consumer).await, GroupEvent::Revoked(_)));
    // What was in hand can still be finished.
    consumer.finish_before(TOPIC, P0, Offset(4));
    nothing(&mut consumer, Duration::from_secs(3)).await;
    assert_eq!(world.with(|state| state.committed(0)), Some(4));
    consumer.finish(&records[3]);
}

#[tokio::test(start_paused = true)]
async fn a_partition_with_too_much_unfinished_waits() {
    let world = World::new(2, &[0, 1]).await;
    let mut consumer = world.builder().finish_explicitly().memory_bytes(64 << 20).build().await.unwrap();
    event(&mut consumer).await;
    let many = vec!["x"; 50_000];
    for base in [0, 50_000, 100_000] {
        world.push(0, base, &many).await;
    }
    for _ in 0..100_000 {
        consumer.next_record().await.unwrap().unwrap();
    }
    nothing(&mut consumer, Duration::from_secs(3)).await;
    world.push(1, 0, &["other"]).await;
    assert_eq!(record(&mut consumer).await.0, 1, "the others go on");
    consumer.finish_before(TOPIC, P0, Offset(49_999));
    nothing(&mut consumer, Duration::from_secs(3)).await;
    consumer.finish_before(TOPIC, P0, Offset(50_000));
    assert_eq!(record(&mut consumer).await, (0, 100_000, String::from("x")));
}

#[tokio::test(start_paused = true)]
async fn a_commit_of_unknown_outcome_is_made_again_before_anything_is_given_up() {
    for code in [ErrorCode::TimedOut, ErrorCode::OutcomeUnknown, ErrorCode::StorageError] {
        let world = World::new(1, &[0]).await;
        let mut consumer = world.builder().commit_every(NEVER).build().await.unwrap();
        event(&mut consumer).await;
        world.push(0, 0, &["a"]).await;
        record(&mut consumer).await;
        world.with(|state| {
            state.holds_commits = true;
            state.assign(&[]);
        });
        assert!(matches!(event(&mut consumer).await, GroupEvent::Revoked(_)));
        nothing(&mut consumer, Duration::from_secs(1)).await;
        world.answer_commits(code).await;
        nothing(&mut consumer, Duration::from_secs(3)).await;
        assert_eq!(
            world.with(|state| (state.committed(0), state.owned())),
            (Some(1), Some(vec![])),
            "{code}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn at_most_once_commits_before_it_hands_out() {
    let world = World::new(1, &[0]).await;
    let mut consumer = world.builder().at_most_once().commit_every(NEVER).build().await.unwrap();
    event(&mut consumer).await;
    world.with(|state| state.holds_commits = true);
    world.push(0, 0, &["a", "b"]).await;
    nothing(&mut consumer, Duration::from_secs(2)).await;
    world.answer_commits(ErrorCode::CoordinatorLoading).await;
    assert_eq!(record(&mut consumer).await.1, 0);
    assert_eq!(world.with(|state| state.committed(0)), Some(2));
    // What is committed is handed out even if the partition goes.
    world.with(|state| state.assign(&[]));
    world.until("the change was told", |state| state.heartbeats.len() > 3).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(record(&mut consumer).await.1, 1);
    assert!(matches!(event(&mut consumer).await, GroupEvent::Revoked(_)));
}

#[tokio::test(start_paused = true)]
async fn at_most_once_drops_what_it_could_not_commit() {
    let world = World::new(1, &[0]).await;
    let mut consumer = world.builder().at_most_once().commit_every(NEVER).build().await.unwrap();
    event(&mut consumer).await;
    world.with(|state| state.holds_commits = true);
    world.push(0, 0, &["a", "b"]).await;
    nothing(&mut consumer, Duration::from_secs(2)).await;
    world.with(|state| state.heartbeat_errors.push_back(ErrorCode::UnknownMember));
    world.answer_commits(ErrorCode::UnknownMember).await;
    assert!(matches!(event(&mut consumer).await, GroupEvent::Lost { .. }), "another one gets them");
}

#[tokio::test(start_paused = true)]
async fn batches_are_finished_as_a_whole_or_up_to_an_offset() {
    let world = World::new(1, &[0]).await;
    let mut consumer = world.builder().commit_manually().build().await.unwrap();
    world.push(0, 0, &["a", "b", "c"]).await;
    let batch = consumer.next_batch().await.unwrap().unwrap();
    assert_eq!((batch.topic(), batch.partition(), batch.iter().count()), (TOPIC, P0, 3));
    consumer.commit().await.unwrap();
    assert_eq!(world.with(|state| state.committed(0)), Some(3));
    consumer.close().await.unwrap();
    let world = World::new(1, &[0]).await;
    let mut consumer = world.builder().commit_manually().finish_explicitly().build().await.unwrap();
    world.push(0, 0, &["a", "b", "c"]).await;
    consumer.next_batch().await.unwrap().unwrap();
    consumer.finish_before(TOPIC, P0, Offset(2));
    consumer.commit().await.unwrap();
    assert_eq!(world.with(|state| state.committed(0)), Some(2));
}
