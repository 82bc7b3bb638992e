//! Positions, pauses, and what goes wrong while reading.

use std::time::Duration;

use highwater_client::{ErrorKind, GroupEvent, Offset, StartAt};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::CorruptRange;

use super::coordinator::World;
use super::scripted::TOPIC;
use super::{P0, P1, event, nothing, record};

#[tokio::test(start_paused = true)]
async fn a_position_outside_of_the_log_is_moved_into_it_and_told() {
    let world = World::new(1, &[0]).await;
    world.with(|state| state.committed.insert(0, (500, String::new())));
    let mut consumer = world.builder().build().await.unwrap();
    event(&mut consumer).await;
    let out_of_range = |ended: &mut highwater_protocol::messages::Ended| {
        ended.code = ErrorCode::OffsetOutOfRange.code();
        (ended.log_start, ended.log_end) = (10, 90);
    };
    world.end(0, out_of_range).await;
    let GroupEvent::Clamped { partition, wanted, log_range, position } = event(&mut consumer).await else {
        panic!("not told")
    };
    assert_eq!(partition.to_string(), format!("{TOPIC}/0"));
    assert_eq!((wanted, log_range, position), (Offset(500), Offset(10)..Offset(90), Offset(90)));
    world.until("it goes on", |state| state.subscribes.last() == Some(&(0, 90))).await;
    world.until("it is committed", |state| state.committed(0) == Some(90)).await;
    world.push(0, 90, &["new"]).await;
    assert_eq!(record(&mut consumer).await.1, 90);
}

#[tokio::test(start_paused = true)]
async fn an_application_with_positions_of_its_own_seeks_before_the_first_record() {
    let world = World::new(2, &[0, 1]).await;
    let mut consumer = world.builder().build().await.unwrap();
    event(&mut consumer).await;
    world.push(0, 0, &["not", "wanted"]).await;
    consumer.seek(TOPIC, P0, StartAt::Offset(Offset(40))).await.unwrap();
    world.until("it goes on there", |state| state.subscribes.last() == Some(&(0, 40))).await;
    world.push(0, 40, &["wanted"]).await;
    assert_eq!(record(&mut consumer).await, (0, 40, String::from("wanted")));
    let error = consumer.seek("other", P0, StartAt::Latest).await.unwrap_err();
    assert_eq!((error.kind(), error.topic()), (ErrorKind::NotMember, Some("other")));
}

#[tokio::test(start_paused = true)]
async fn a_paused_partition_gives_nothing_loses_nothing_and_stays() {
    let world = World::new(2, &[0, 1]).await;
    let mut consumer = world.builder().build().await.unwrap();
    event(&mut consumer).await;
    consumer.pause(TOPIC, P0).unwrap();
    world.push(0, 0, &["a"]).await;
    world.push(1, 0, &["x"]).await;
    assert_eq!(record(&mut consumer).await.0, 1);
    nothing(&mut consumer, Duration::from_secs(400)).await;
    consumer.resume(TOPIC, P0).unwrap();
    assert_eq!(record(&mut consumer).await.0, 0);
    assert_eq!(consumer.partitions().len(), 2);
    assert_eq!(consumer.high_watermark(TOPIC, P1), Some(Offset(1)));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_a_partition_names_it_and_the_others_go_on() {
    let world = World::new(2, &[0, 1]).await;
    let mut consumer = world.builder().repair_timeout(Duration::ZERO).build().await.unwrap();
    event(&mut consumer).await;
    let corrupt = |ended: &mut highwater_protocol::messages::Ended| {
        ended.code = ErrorCode::CorruptRange.code();
        ended.corrupt = Some(CorruptRange { start: 0, end: 20 });
    };
    world.end(0, corrupt).await;
    let error = consumer.next_event().await.unwrap().unwrap_err();
    assert_eq!((error.group(), error.topic(), error.partition()), (Some("billing"), Some(TOPIC), Some(P0)));
    world.push(1, 0, &["x"]).await;
    assert_eq!(record(&mut consumer).await.0, 1);
    consumer.seek(TOPIC, P0, StartAt::Offset(error.corrupt_range().unwrap().end)).await.unwrap();
    world.push(0, 20, &["a"]).await;
    assert_eq!(record(&mut consumer).await.1, 20);
    world.until("behind the hole", |state| state.committed(0) == Some(20)).await;
}

#[tokio::test(start_paused = true)]
async fn dropping_the_future_again_and_again_loses_nothing() {
    let world = World::new(1, &[0]).await;
    let mut consumer = world.builder().build().await.unwrap();
    let values: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    world.push(0, 0, &values).await;
    let mut seen = Vec::new();
    while seen.len() < 200 {
        tokio::select! {
            biased;
            () = std::future::ready(()), if seen.len() % 3 == 1 && seen.last() != Some(&u64::MAX) => {
                seen.push(u64::MAX);
            }
            record = consumer.next_record() => {
                seen.retain(|offset| *offset != u64::MAX);
                seen.push(record.unwrap().unwrap().offset.get());
            }
        }
    }
    seen.retain(|offset| *offset != u64::MAX);
    assert_eq!(seen, (0..seen.len() as u64).collect::<Vec<_>>());
}
