//! Topics in the image.

use highwater_protocol::ids::{PartitionId, TopicId, TopicPartition};
use highwater_protocol::limits::PARTITIONS_MAX;

use super::super::command::{Command, Refusal, Reply};
use super::super::image::ClusterImage;
use super::super::testing::{apply, image_with_brokers};
use super::super::topic_config::TopicConfig;
use crate::durability::Durability;

fn image() -> ClusterImage {
    image_with_brokers(1)
}

fn create(id: u128, name: &str, partitions: u32) -> Command {
    super::super::testing::create(id, name, partitions, 0)
}

fn alter(name: &str, set: &[(&str, &str)], unset: &[&str], partitions: u32) -> Command {
    Command::AlterTopic {
        name: name.into(),
        set: set.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        unset: unset.iter().map(|name| (*name).into()).collect(),
        partitions,
    }
}

fn delete(name: &str, id: Option<u128>) -> Command {
    Command::DeleteTopic { name: name.into(), topic_id: id.map(TopicId) }
}

#[test]
fn a_topic_lives_from_create_to_delete() {
    let mut image = image();
    let version = image.version;
    let created = Reply::Created { topic_id: TopicId(7), partitions: 3, replication: 1 };
    assert_eq!(apply(&mut image, &create(7, "orders", 3)), Ok(created));
    assert_eq!(apply(&mut image, &create(8, "orders", 1)), Err(Refusal::TopicExists("orders".into())));
    assert_eq!(image.topic_named("orders").unwrap().created_at_us, 5);
    assert_eq!(image.partitions().count(), 3);
    assert_eq!(image.version, version + 1, "a refused command is no version");
    let altered = apply(&mut image, &alter("orders", &[("retention_bytes", "1GiB")], &[], 5));
    assert_eq!(altered, Ok(Reply::Altered { partitions: 5 }));
    assert_eq!(image.topic(TopicId(7)).unwrap().config.retention_bytes, Some(1 << 30));
    assert_eq!(
        apply(&mut image, &delete("orders", Some(8))),
        Err(Refusal::OtherTopic { name: "orders".into(), asked: TopicId(8), found: TopicId(7) })
    );
    assert_eq!(apply(&mut image, &delete("orders", Some(7))), Ok(Reply::Deleted { topic_id: TopicId(7) }));
    assert_eq!(image.topic_named("orders"), None);
    assert_eq!(image.topics().count(), 0);
}

#[test]
fn an_alteration_happens_whole_or_not_at_all() {
    let mut image = image();
    apply(&mut image, &create(7, "orders", 3)).unwrap();
    let before = image.clone();
    for refused in [
        alter("orders", &[("retention_bytes", "1GiB"), ("durability", "x")], &[], 0),
        alter("orders", &[("retention_bytes", "1GiB")], &[], 2),
        alter("orders", &[("retention_bytes", "1GiB")], &["nonsense"], 0),
        alter("orders", &[], &[], PARTITIONS_MAX + 1),
        alter("order", &[], &[], 0),
    ] {
        assert!(apply(&mut image, &refused).is_err(), "{refused:?}");
        assert_eq!(image, before, "{refused:?}");
    }
    apply(&mut image, &alter("orders", &[("durability", "os")], &[], 0)).unwrap();
    apply(&mut image, &alter("orders", &[], &["durability"], 0)).unwrap();
    assert_eq!(image.topic(TopicId(7)).unwrap().config, TopicConfig::default());
}

#[test]
fn refusals_say_what_is_wrong() {
    let mut image = image();
    apply(&mut image, &create(7, "orders", 3)).unwrap();
    let text = |result: Result<Reply, Refusal>| result.unwrap_err().to_string();
    assert!(text(apply(&mut image, &delete("order", None))).contains("did you mean 'orders'?"));
    assert!(text(apply(&mut image, &create(8, "a/b", 1))).contains("'/' is reserved"));
    assert!(text(apply(&mut image, &create(8, "x", PARTITIONS_MAX + 1))).contains("from 1 to 10000"));
    let mut two = create(8, "x", 1);
    if let Command::CreateTopic { replication, .. } = &mut two {
        *replication = 2;
    }
    assert!(text(apply(&mut image, &two)).contains("needs 2 brokers, the cluster has 1"));
}

#[test]
fn a_new_partition_has_the_durability_of_its_topic_and_an_old_one_what_is_recorded() {
    let mut image = image();
    apply(&mut image, &create(7, "orders", 1)).unwrap();
    apply(&mut image, &alter("orders", &[("durability", "os")], &[], 2)).unwrap();
    let partition = |id| TopicPartition::new(TopicId(7), PartitionId(id));
    let effective = |image: &ClusterImage, id: u32| {
        image.topic(TopicId(7)).unwrap().partition(PartitionId(id)).unwrap().durability_effective
    };
    assert_eq!(effective(&image, 0), Durability::Fsync);
    assert_eq!(effective(&image, 1), Durability::Os);
    let record = |id| Command::RecordDurability {
        partition: partition(id),
        leader_epoch: None,
        durability: Durability::Os,
    };
    assert_eq!(apply(&mut image, &record(0)), Ok(Reply::Recorded));
    assert_eq!(effective(&image, 0), Durability::Os);
    assert_eq!(apply(&mut image, &record(2)), Err(Refusal::UnknownPartition(partition(2))));
}

#[test]
fn the_cluster_has_a_bound_on_partitions() {
    let mut image = image();
    for id in 1..=20u128 {
        apply(&mut image, &create(id, &format!("t{id}"), PARTITIONS_MAX)).unwrap();
    }
    assert!(matches!(
        apply(&mut image, &create(99, "one-more", 1)),
        Err(Refusal::ClusterPartitions { present: 200_000, asked: 1, .. })
    ));
}
