//! The brokers' own topics.

use std::collections::BTreeMap;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::TopicId;

use super::super::codec::{decode_command, encode_command};
use super::super::command::{Command, FEATURE_LEVEL_GROUPS, Refusal, Reply};
use super::super::image::ClusterImage;
use super::super::snapshot;
use super::super::testing::{apply, create, id, image_with_brokers, nodes, ok, partition};

fn internal(id: u128, name: &str) -> Command {
    Command::CreateInternalTopic {
        topic_id: TopicId(id),
        name: name.into(),
        partitions: 4,
        config: BTreeMap::from([("segment_bytes".into(), "8MiB".into())]),
        created_at_us: 7,
    }
}

fn raise(topic: u128, to: &[u32]) -> Command {
    Command::RaiseReplication { topic_id: TopicId(topic), moves: vec![(id(topic, 0), nodes(to))] }
}

fn code(image: &mut ClusterImage, command: &Command) -> ErrorCode {
    apply(image, command).unwrap_err().code()
}

#[test]
fn reserved_names_are_refused_to_users_from_the_level_of_groups_on() {
    let mut image = image_with_brokers(1);
    image.feature_level = FEATURE_LEVEL_GROUPS - 1;
    ok(&mut image, &create(1, "hw-mine", 1, 1));
    let level = Refusal::Level { needs: FEATURE_LEVEL_GROUPS, has: FEATURE_LEVEL_GROUPS - 1 };
    assert_eq!(apply(&mut image, &internal(2, "hw-groups")), Err(level));
    ok(&mut image, &Command::SetFeatureLevel { level: FEATURE_LEVEL_GROUPS });
    assert_eq!(code(&mut image, &create(3, "hw-other", 1, 1)), ErrorCode::InvalidTopicName);
    ok(&mut image, &internal(2, "hw-groups"));
    for name in ["hw-groups", "hw-mine"] {
        let alter =
            Command::AlterTopic { name: name.into(), set: BTreeMap::new(), unset: Vec::new(), partitions: 9 };
        assert_eq!(code(&mut image, &alter), ErrorCode::NotAuthorized, "{name}");
        let delete = Command::DeleteTopic { name: name.into(), topic_id: None };
        assert_eq!(code(&mut image, &delete), ErrorCode::NotAuthorized, "{name}");
    }
    assert_eq!(code(&mut image, &internal(4, "mine")), ErrorCode::InvalidRequest);
}

#[test]
fn whoever_makes_it_second_gets_the_first() {
    for (brokers, replication) in [(1, 1), (2, 2), (3, 3), (5, 3)] {
        let mut image = image_with_brokers(brokers);
        let created = Reply::Created { topic_id: TopicId(2), partitions: 4, replication };
        assert_eq!(ok(&mut image, &internal(2, "hw-groups")), created);
        let version = image.version;
        assert_eq!(ok(&mut image, &internal(3, "hw-groups")), created);
        assert_eq!(image.version, version, "nothing has changed");
        let topic = image.topic_named("hw-groups").unwrap();
        assert!(topic.is_internal());
        assert_eq!((topic.created_at_us, topic.config.segment_bytes), (7, 8 << 20));
    }
}

#[test]
fn only_the_brokers_own_topics_are_given_more_replicas_and_keep_those_that_they_have() {
    let mut image = image_with_brokers(2);
    ok(&mut image, &create(1, "t", 1, 1));
    assert_eq!(code(&mut image, &raise(1, &[1, 2])), ErrorCode::InvalidRequest);
    let mut image = image_with_brokers(1);
    ok(&mut image, &internal(2, "hw-groups"));
    for node in [2, 3] {
        ok(&mut image, &super::super::testing::register(node, 1));
        let ready = super::super::testing::ready(&image, node);
        ok(&mut image, &ready);
    }
    for to in [&[1][..], &[2, 3], &[1, 2, 2], &[2, 3, 2]] {
        assert_eq!(code(&mut image, &raise(2, to)), ErrorCode::InvalidRequest, "{to:?}");
    }
    assert!(apply(&mut image, &raise(2, &[1, 9])).is_err(), "there is no broker 9");
    ok(&mut image, &raise(2, &[1, 2, 3]));
    let state = partition(&image, 2, 0);
    assert_eq!((state.in_sync, state.adding), (nodes(&[1]), nodes(&[2, 3])));
    let topic = image.topic(TopicId(2)).unwrap();
    assert_eq!((topic.replication, topic.min_in_sync()), (1, 1), "nobody waits for what is not there yet");
    let decoded = snapshot::decode(&snapshot::encode(&image).unwrap()).unwrap();
    assert_eq!(decoded, image);
}

#[test]
fn commands_about_them_keep_their_meaning_as_bytes() {
    for command in [internal(2, "hw-groups"), raise(2, &[1, 2])] {
        let bytes = encode_command(&command).unwrap();
        assert_eq!(bytes[..4], FEATURE_LEVEL_GROUPS.to_le_bytes());
        assert_eq!(decode_command(&bytes), Ok(command));
    }
}
