//! Who leads, who is in sync, and who holds what is committed: the rules one by one.

use highwater_protocol::ids::{LeaderEpoch, NodeId, Offset};

use super::super::command::{Command, Refusal, ReplicaEnds, ReplicaProblem, Reply};
use super::super::image::ClusterImage;
use super::super::testing::{
    apply, create, create_os, epoch, fence, id, image_with_brokers, nodes, ok, partition, propose, ready,
    register, register_unclean,
};

/// Three active brokers and one partition on all of them, led by the first.
fn three() -> ClusterImage {
    let mut image = image_with_brokers(3);
    ok(&mut image, &create(1, "t", 1, 3));
    let leader = partition(&image, 1, 0).leader.unwrap();
    if leader != NodeId(1) {
        ok(&mut image, &Command::BalanceLeaders { changes: vec![(id(1, 0), NodeId(1))] });
    }
    image
}

fn run(image: &mut ClusterImage, command: impl Fn(&ClusterImage) -> Command) -> Reply {
    let command = command(image);
    ok(image, &command)
}

#[test]
fn a_fenced_leader_is_replaced_and_whoever_is_left_out_of_a_small_set_stays_eligible() {
    let mut image = three();
    let first = partition(&image, 1, 0).leader_epoch;
    run(&mut image, |image| fence(image, 1));
    let state = partition(&image, 1, 0);
    assert_ne!(state.leader, Some(NodeId(1)));
    assert!(state.leader_epoch > first);
    assert_eq!((state.in_sync.len(), state.eligible.len()), (2, 0), "two of three go on committing");
    let second = state.leader.unwrap().get();
    run(&mut image, |image| fence(image, second));
    let state = partition(&image, 1, 0);
    assert_eq!(state.eligible, [NodeId(second)], "one alone commits nothing, so the other still has all");
    let third = state.leader.unwrap().get();
    run(&mut image, |image| fence(image, third));
    let state = partition(&image, 1, 0);
    assert_eq!((state.leader, state.in_sync.len(), state.eligible.len()), (None, 0, 2));
    run(&mut image, |image| ready(image, 1));
    assert_eq!(partition(&image, 1, 0).leader, None, "broker 1 may lack what the two have committed since");
    run(&mut image, |image| ready(image, second));
    let state = partition(&image, 1, 0);
    assert_eq!((state.leader, state.in_sync), (Some(NodeId(second)), nodes(&[second])));
    assert_eq!(state.eligible, [NodeId(third)]);
    run(&mut image, |image| propose(image, 1, &[second, 1]));
    assert_eq!(partition(&image, 1, 0).eligible, [], "two commit again without the third");
}

#[test]
fn h4_the_last_replica_does_not_lead_after_a_power_cut_that_cost_it_its_tail() {
    let mut image = image_with_brokers(3);
    ok(&mut image, &create_os(1, "t", 3));
    let leader = partition(&image, 1, 0).leader.unwrap().get();
    let others: Vec<u32> = (1..=3).filter(|node| *node != leader).collect();
    for node in &others {
        run(&mut image, |image| fence(image, *node));
    }
    run(&mut image, |image| fence(image, leader));
    // The one that stood last lost power, and its unsynced tail with it.
    ok(&mut image, &register_unclean(leader, 2, true));
    run(&mut image, |image| ready(image, leader));
    assert_eq!(partition(&image, 1, 0).leader, None, "what it lacks is at broker {}", others[1]);
    run(&mut image, |image| ready(image, others[1]));
    assert_eq!(partition(&image, 1, 0).leader, Some(NodeId(others[1])));
}

#[test]
fn under_fsync_or_the_same_kernel_an_unclean_restart_keeps_the_place() {
    for (os, power_cut, keeps) in [(false, true, true), (true, false, true), (true, true, false)] {
        let mut image = image_with_brokers(1);
        let topic = if os { create_os(1, "t", 1) } else { create(1, "t", 1, 1) };
        ok(&mut image, &topic);
        let before = partition(&image, 1, 0).leader_epoch;
        ok(&mut image, &register_unclean(1, 2, power_cut));
        let state = partition(&image, 1, 0);
        assert_eq!(state.leader, None, "the new process has not opened its log");
        assert_eq!(state.eligible == [NodeId(1)], keeps, "{state:?}");
        assert_eq!(state.last_sets == [NodeId(1)], !keeps, "{state:?}");
        run(&mut image, |image| ready(image, 1));
        let state = partition(&image, 1, 0);
        assert_eq!(state.leader, Some(NodeId(1)), "alone there is nobody to wait for");
        assert!(state.leader_epoch > before);
    }
}

#[test]
fn with_both_sets_empty_every_member_of_the_last_sets_is_heard_and_the_furthest_leads() {
    let mut image = image_with_brokers(3);
    ok(&mut image, &create_os(1, "t", 3));
    for node in 1..=3 {
        ok(&mut image, &register_unclean(node, 2, true));
    }
    let state = partition(&image, 1, 0);
    assert_eq!((state.leader, state.in_sync.len(), state.eligible.len()), (None, 0, 0));
    assert_eq!(state.last_sets, nodes(&[2, 3]), "broker 1 left while the two could still commit");
    let ends = |image: &ClusterImage, node: u32, last_epoch: u32, log_end: u64| Command::ReportReplica {
        partition: id(1, 0),
        node_id: NodeId(node),
        broker_epoch: epoch(image, node),
        problem: ReplicaProblem::Ends,
        ends: Some(ReplicaEnds { last_epoch: LeaderEpoch(last_epoch), log_end: Offset(log_end) }),
    };
    for node in 1..=3 {
        run(&mut image, |image| ready(image, node));
    }
    run(&mut image, |image| ends(image, 1, 1, 70));
    run(&mut image, |image| ends(image, 2, 1, 60));
    assert_eq!(partition(&image, 1, 0).leader, None, "broker 3 has not been heard");
    run(&mut image, |image| ends(image, 3, 1, 50));
    assert_eq!(partition(&image, 1, 0).leader, Some(NodeId(1)), "whoever has kept most, in the sets or not");
}

#[test]
fn a_proposal_counts_only_as_it_was_made() {
    let mut image = three();
    let stale = propose(&image, 1, &[1, 2]);
    run(&mut image, |image| propose(image, 1, &[1, 3]));
    assert!(matches!(apply(&mut image, &stale), Err(Refusal::StaleVersion { .. })));
    let old = propose(&image, 1, &[1, 2, 3]);
    run(&mut image, |image| fence(image, 1));
    assert!(matches!(apply(&mut image, &old), Err(Refusal::NotLeader { .. })));
    let without_leader = propose(&image, 1, &[2]);
    let leader = partition(&image, 1, 0).leader.unwrap();
    assert_eq!(leader, NodeId(3));
    assert!(matches!(apply(&mut image, &without_leader), Err(Refusal::Ineligible { .. })));
    let fenced = propose(&image, 1, &[3, 1]);
    assert!(matches!(apply(&mut image, &fenced), Err(Refusal::Ineligible { .. })));
}

#[test]
fn h5_a_growth_under_way_does_not_bring_in_a_reborn_broker() {
    let mut image = three();
    run(&mut image, |image| fence(image, 3));
    run(&mut image, |image| ready(image, 3));
    let growth = propose(&image, 1, &[1, 2, 3]);
    ok(&mut image, &register_unclean(3, 2, true));
    run(&mut image, |image| ready(image, 3));
    let refused = apply(&mut image, &growth);
    assert!(matches!(refused, Err(Refusal::Ineligible { node_id: NodeId(3), .. })), "{refused:?}");
    assert!(!partition(&image, 1, 0).is_member(NodeId(3)));
}

#[test]
fn h5_another_directory_never_passes_as_the_old_one() {
    let mut image = three();
    let mut wiped = register(3, 2);
    if let Command::RegisterBroker { directory_id, .. } = &mut wiped {
        directory_id.0 = 555;
    }
    let refused = apply(&mut image, &wiped).unwrap_err();
    assert!(matches!(refused, Refusal::OtherDirectory { node_id: NodeId(3), .. }));
    assert!(refused.to_string().contains("--join"), "{refused}");
    let mut swapped = register(4, 2);
    if let Command::RegisterBroker { directory_id, .. } = &mut swapped {
        directory_id.0 = 103;
    }
    let refused = apply(&mut image, &swapped).unwrap_err();
    assert!(refused.to_string().contains("--node-id 3"), "{refused}");
}

#[test]
fn a_registration_that_is_sent_again_is_the_same_one() {
    let mut image = three();
    let first = ok(&mut image, &register(2, 7));
    assert_eq!(image.apply(&register(2, 7)), Ok(first.clone()));
    assert_ne!(ok(&mut image, &register(2, 8)), first);
}

#[test]
fn a_broker_that_stops_hands_over_and_leaves_where_it_can() {
    let mut image = three();
    let stop = |image: &ClusterImage, node| Command::StopBroker {
        node_id: NodeId(node),
        broker_epoch: epoch(image, node),
    };
    run(&mut image, |image| stop(image, 1));
    let state = partition(&image, 1, 0);
    let second = state.leader.unwrap();
    assert!(second != NodeId(1) && !state.in_sync.contains(&NodeId(1)) && state.in_sync.len() == 2);
    assert!(image.may_stop(NodeId(1), epoch(&image, 1)));
    run(&mut image, |image| stop(image, second.get()));
    let state = partition(&image, 1, 0);
    assert!(state.leader != Some(second) && state.in_sync.contains(&second), "it is needed until it is gone");
    run(&mut image, |image| fence(image, second.get()));
    assert_eq!(partition(&image, 1, 0).eligible, [second]);
}

#[test]
fn a_damaged_leader_hands_over_and_alone_it_leads_on() {
    let mut image = three();
    let report = |image: &ClusterImage, node, problem| Command::ReportReplica {
        partition: id(1, 0),
        node_id: NodeId(node),
        broker_epoch: epoch(image, node),
        problem,
        ends: None,
    };
    run(&mut image, |image| report(image, 1, ReplicaProblem::Corrupt));
    let state = partition(&image, 1, 0);
    assert_eq!((state.leader.unwrap() == NodeId(1), state.in_sync.len()), (false, 3));
    run(&mut image, |image| fence(image, 2));
    run(&mut image, |image| fence(image, 3));
    assert_eq!(partition(&image, 1, 0).leader, None, "a clean eligible one may still come");
    assert!(image.waits_for_clean_replicas());
    ok(&mut image, &Command::ElectDamaged {});
    let state = partition(&image, 1, 0);
    assert_eq!(state.leader, Some(NodeId(1)));
    run(&mut image, |image| report(image, 1, ReplicaProblem::Recovered));
    run(&mut image, |image| report(image, 1, ReplicaProblem::Suspect));
    let alone = partition(&image, 1, 0);
    assert_eq!((alone.leader, alone.leader_epoch), (Some(NodeId(1)), state.leader_epoch.next()));
    let version = image.version;
    run(&mut image, |image| report(image, 1, ReplicaProblem::Corrupt));
    assert_eq!(image.version, version, "told twice is told once");
    // Another flush has failed: what it wrote in this epoch may be gone again.
    run(&mut image, |image| report(image, 1, ReplicaProblem::Suspect));
    let again = partition(&image, 1, 0);
    assert_eq!((again.leader, again.leader_epoch), (Some(NodeId(1)), alone.leader_epoch.next()));
}
