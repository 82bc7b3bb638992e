//! The cluster as a whole: its first command, feature levels, batches, identities, bytes, and take-over.

use std::collections::BTreeMap;

use highwater_protocol::ids::{BrokerEpoch, ClusterId, LeaderEpoch, NodeId};

use super::super::codec::{CodecError, decode_command, decode_outcome, encode_command, encode_outcome};
use super::super::command::{Command, FEATURE_LEVEL_GROUPS, FEATURE_LEVEL_MAX, Refusal, Reply};
use super::super::image::{ClusterImage, Defaults};
use super::super::testing::{
    apply, create, epoch, fence, id, image_with_brokers, nodes, ok, partition, ready, register,
};

fn init(id: u128) -> Command {
    Command::Init {
        cluster_id: ClusterId(id),
        defaults: Defaults::default(),
        feature_level: FEATURE_LEVEL_MAX,
    }
}

#[test]
fn a_cluster_begins_once() {
    let mut image = ClusterImage::default();
    assert_eq!(apply(&mut image, &register(1, 1)), Err(Refusal::NotInitialised));
    ok(&mut image, &init(9));
    assert_eq!(apply(&mut image, &init(8)), Err(Refusal::Initialised(ClusterId(9))));
}

#[test]
fn h24_what_not_every_broker_understands_is_not_used() {
    let mut image = image_with_brokers(2);
    image.feature_level = 0;
    let refused = apply(&mut image, &create(1, "t", 1, 1));
    assert_eq!(refused, Err(Refusal::Level { needs: 1, has: 0 }));
    // The level rises to what every registered broker can do, and no further, and never goes back.
    ok(&mut image, &Command::SetFeatureLevel { level: 1 });
    ok(&mut image, &create(1, "t", 1, 1));
    let beyond = FEATURE_LEVEL_MAX + 1;
    let refused = apply(&mut image, &Command::SetFeatureLevel { level: beyond }).unwrap_err();
    let text = format!("broker 1 works at levels 1 to {FEATURE_LEVEL_MAX}");
    assert!(refused.to_string().contains(&text), "{refused}");
    assert!(apply(&mut image, &Command::SetFeatureLevel { level: 0 }).is_err());
    let mut newer = register(3, 1);
    if let Command::RegisterBroker { feature_min, feature_max, .. } = &mut newer {
        (*feature_min, *feature_max) = (2, 3);
    }
    let level = Refusal::BrokerLevel { node_id: NodeId(3), min: 2, max: 3, level: 1 };
    assert_eq!(apply(&mut image, &newer), Err(level));
}

#[test]
fn h24_a_command_of_a_newer_level_is_told_from_a_damaged_one() {
    let mut bytes = encode_command(&create(1, "t", 1, 1)).unwrap();
    assert_eq!(decode_command(&bytes), Ok(create(1, "t", 1, 1)));
    let needs = FEATURE_LEVEL_MAX + 1;
    bytes[0] = needs as u8;
    assert_eq!(decode_command(&bytes), Err(CodecError::Newer { needs, knows: FEATURE_LEVEL_MAX }));
    bytes[0] = 1;
    for cut in 0..bytes.len() {
        assert!(matches!(decode_command(&bytes[..cut]), Err(CodecError::Damaged(_))), "cut at {cut}");
    }
}

#[test]
fn commands_and_outcomes_come_through_as_bytes() {
    let mut image = image_with_brokers(3);
    let commands = Command::Batch(vec![
        create(1, "t", 2, 3),
        register(3, 2),
        ready(&image, 1),
        Command::AlterInSync {
            partition: id(1, 0),
            node_id: NodeId(1),
            broker_epoch: BrokerEpoch(1),
            leader_epoch: LeaderEpoch(1),
            version: 1,
            in_sync: vec![(NodeId(1), BrokerEpoch(1))],
        },
        Command::AdvanceMoves {},
        Command::Batch(Vec::new()),
    ]);
    let decoded = decode_command(&encode_command(&commands).unwrap()).unwrap();
    assert_eq!(decoded, commands);
    let outcome = image.apply(&decoded);
    let Ok(Reply::Batch(outcomes)) = &outcome else { panic!("{outcome:?}") };
    assert!(outcomes[0].is_ok() && outcomes[5].is_err(), "each on its own: {outcomes:?}");
    let told = decode_outcome(&encode_outcome(&outcome).unwrap()).unwrap();
    let Ok(Reply::Batch(told)) = told else { panic!("{told:?}") };
    assert_eq!(told[0], outcomes[0]);
    let (Err(told), Err(refused)) = (&told[5], &outcomes[5]) else { panic!("{told:?}") };
    assert_eq!((told.code(), told.to_string()), (refused.code(), refused.to_string()));
}

#[test]
fn identities_of_producers_go_to_registered_brokers_only() {
    let mut image = image_with_brokers(1);
    let allocate =
        |broker_epoch| Command::AllocateProducerIds { node_id: NodeId(1), broker_epoch, count: 100 };
    let now = epoch(&image, 1);
    let Reply::ProducerIds { first, count } = ok(&mut image, &allocate(now)) else { panic!() };
    let Reply::ProducerIds { first: second, .. } = ok(&mut image, &allocate(now)) else { panic!() };
    assert_eq!(second.get(), first.get() + u64::from(count));
    assert!(matches!(apply(&mut image, &allocate(BrokerEpoch(99))), Err(Refusal::StaleBroker { .. })));
}

#[test]
fn new_topics_get_three_replicas_or_as_many_as_there_are_brokers() {
    for (brokers, expected) in [(1, 1), (2, 2), (3, 3), (5, 3)] {
        let mut image = image_with_brokers(brokers);
        let reply = ok(&mut image, &create(1, "t", 1, 0));
        assert!(matches!(reply, Reply::Created { replication, .. } if replication == expected), "{reply:?}");
    }
}

#[test]
fn an_operator_who_elects_uncleanly_is_told_what_is_lost_and_has_to_accept_it() {
    let mut image = image_with_brokers(3);
    ok(&mut image, &create(1, "t", 1, 3));
    let elect =
        |node, accept_loss| Command::ElectUnclean { partition: id(1, 0), node_id: NodeId(node), accept_loss };
    assert!(
        apply(&mut image, &elect(1, true)).unwrap_err().to_string().contains("nothing has to be given up")
    );
    let leader = partition(&image, 1, 0).leader.unwrap().get();
    for node in [leader % 3 + 1, (leader + 1) % 3 + 1, leader] {
        let command = fence(&image, node);
        ok(&mut image, &command);
    }
    let out = leader % 3 + 1;
    assert!(!partition(&image, 1, 0).is_member(NodeId(out)));
    assert!(apply(&mut image, &elect(out, true)).unwrap_err().to_string().contains("start it first"));
    let back = ready(&image, out);
    ok(&mut image, &back);
    let refused = apply(&mut image, &elect(out, false)).unwrap_err();
    assert!(matches!(refused, Refusal::LossNotAccepted(_)));
    assert!(refused.to_string().contains("lost for good"), "{refused}");
    let epoch = partition(&image, 1, 0).leader_epoch;
    ok(&mut image, &elect(out, true));
    let state = partition(&image, 1, 0);
    assert_eq!((state.leader, state.in_sync, state.eligible.len()), (Some(NodeId(out)), nodes(&[out]), 0));
    assert!(state.leader_epoch > epoch);
}

#[test]
fn h24_settings_of_compaction_wait_until_every_broker_knows_them() {
    let alter = |name: &str| Command::AlterTopic {
        name: "topic".to_owned(),
        set: BTreeMap::from([(name.to_owned(), "1".to_owned())]),
        unset: Vec::new(),
        partitions: 0,
    };
    assert_eq!(alter("segment_bytes").level(), 1);
    for name in crate::controller::topic_config::COMPACTION_SETTINGS {
        assert_eq!(alter(name).level(), FEATURE_LEVEL_GROUPS, "{name}");
        let unset = Command::AlterTopic {
            name: "topic".to_owned(),
            set: BTreeMap::new(),
            unset: vec![name.to_owned()],
            partitions: 0,
        };
        assert_eq!(unset.level(), FEATURE_LEVEL_GROUPS, "{name}");
    }
}
