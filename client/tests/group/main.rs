//! Members of a group against a coordinator that does what the test says.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests are not known as tests")]

#[allow(dead_code, unreachable_pub, reason = "only these tests use it")]
mod coordinator;
mod finishing;
mod membership;
mod reading;
#[path = "../scripted/mod.rs"]
mod scripted;

use std::time::Duration;

use highwater_client::{GroupConsumer, GroupEvent, PartitionId};

const P0: PartitionId = PartitionId(0);
/// Long enough for whatever is to come.
const PATIENCE: Duration = Duration::from_secs(200);
const P1: PartitionId = PartitionId(1);

/// The next record: partition, offset, value.
async fn record(consumer: &mut GroupConsumer) -> (u32, u64, String) {
    let next = tokio::time::timeout(PATIENCE, consumer.next_record());
    let record = next.await.expect("a record in time").unwrap().unwrap();
    assert_eq!(&*record.topic, scripted::TOPIC);
    let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
    (record.partition.get(), record.offset.get(), value)
}

async fn event(consumer: &mut GroupConsumer) -> GroupEvent {
    let next = tokio::time::timeout(PATIENCE, consumer.next_event());
    next.await.expect("an event in time").unwrap().unwrap()
}

/// The partitions that an event speaks of.
fn partitions(event: &GroupEvent) -> Vec<u32> {
    match event {
        GroupEvent::Assigned(assigned) => {
            assigned.iter().map(|assigned| assigned.partition.partition.get()).collect()
        }
        GroupEvent::Revoked(partitions) | GroupEvent::Lost { partitions, .. } => {
            partitions.iter().map(|partition| partition.partition.get()).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Nothing comes for this long.
async fn nothing(consumer: &mut GroupConsumer, time: Duration) {
    let got = tokio::time::timeout(time, consumer.next_event()).await;
    assert!(got.is_err(), "{got:?}");
}
