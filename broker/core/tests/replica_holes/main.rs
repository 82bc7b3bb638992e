//! The holes of brokers before this one that concern replicas, and the interleavings that the rules here are for: a test
//! each, on the machine alone, every output literal. Each fails when its rule is taken out (`tests/mutate/run.sh`).

mod support;

use std::time::Duration;

use highwater_broker_core::replica::{
    Assignment, Condition, FetchedBatch, Input, Output, Problem, REPLICA_LAG_MAX, Replica, Role,
    SubscribeRefusal, Subscribed,
};
use highwater_broker_core::time::{Mono, Wall};
use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, Offset};

use support::*;

#[test]
fn h1_a_follower_asks_the_leader_and_never_cuts_at_its_own_watermark() {
    let (mut restarted, out) = follower(6);
    let asks = Output::Subscribe {
        leader: TWO,
        epoch: LeaderEpoch(5),
        offset: Offset(10),
        last_epoch: Some(LeaderEpoch(4)),
    };
    assert_eq!(out, [asks]);
    // The leader dies before it has answered: all that was committed is still here.
    assign(&mut restarted, assignment(ME, 6, &[ME, THREE]));
    assert_eq!((restarted.role(), restarted.ends().log_end), (Role::Leader, Offset(10)));
}

#[test]
fn h2_an_epoch_that_the_leader_has_not_is_answered_with_the_one_below_until_they_meet() {
    let mut leader = replica(15, 0, &[(1, 0), (4, 9)]);
    assign(&mut leader, assignment(ME, 5, &[ME, TWO, THREE]));
    let mut follower = replica(14, 0, &[(1, 0), (2, 8), (3, 12)]);
    assign(&mut follower, assignment(TWO, 5, &[ME, TWO, THREE]));
    let answer = leader.check_subscribe(&check(TWO, 5, 14, Some(3)));
    assert_eq!(answer, Ok(Subscribed::Diverged { epoch: LeaderEpoch(1), end_offset: Offset(9) }));
    // Also where the two have as many records: those of epoch 3 are not the leader's.
    assert_eq!(leader.check_subscribe(&check(TWO, 5, 9, Some(3))), answer);
    let diverged = Input::Diverged { epoch: LeaderEpoch(1), end_offset: Offset(9) };
    // It has less of epoch 1 than the leader.
    assert_eq!(step(&mut follower, diverged), [Output::Truncate { to: Offset(8) }]);
    let cut = Input::Truncated { log_generation: 2, log_end: Offset(8), flushed_end: Offset(8) };
    let asks = Output::Subscribe {
        leader: TWO,
        epoch: LeaderEpoch(5),
        offset: Offset(8),
        last_epoch: Some(LeaderEpoch(1)),
    };
    assert_eq!(step(&mut follower, cut), [asks]);
    assert_eq!(leader.check_subscribe(&check(TWO, 5, 8, Some(1))), Ok(Subscribed::Live));
}

#[test]
fn h2_a_follower_that_lacks_the_leaders_epoch_cuts_to_what_it_has_and_asks_again() {
    let mut follower = replica(20, 0, &[(1, 0), (3, 5), (7, 12)]);
    assign(&mut follower, assignment(TWO, 9, &[ME, TWO]));
    // The leader has 6, this log has not: everything above epoch 3 is another's, and perhaps some of 3.
    let diverged = Input::Diverged { epoch: LeaderEpoch(6), end_offset: Offset(18) };
    assert_eq!(step(&mut follower, diverged), [Output::Truncate { to: Offset(12) }]);
    let cut = Input::Truncated { log_generation: 2, log_end: Offset(12), flushed_end: Offset(12) };
    let out = step(&mut follower, cut);
    assert!(matches!(out[..], [Output::Subscribe { last_epoch: Some(LeaderEpoch(3)), .. }]), "{out:?}");
}

#[test]
fn h3_both_sides_refuse_another_epoch() {
    let leader = leader(&[ME, TWO, THREE]);
    let (current, asked) = (LeaderEpoch(5), LeaderEpoch(4));
    let fenced = SubscribeRefusal::FencedEpoch { current, asked };
    assert_eq!(leader.check_subscribe(&check(TWO, 4, 10, Some(4))), Err(fenced));
    let asked = LeaderEpoch(6);
    let unknown = SubscribeRefusal::UnknownEpoch { current, asked };
    assert_eq!(leader.check_subscribe(&check(TWO, 6, 10, Some(4))), Err(unknown));
    assert_eq!(
        leader.check_subscribe(&check(TWO, 5, 10, Some(6))),
        Err(unknown),
        "a record of a later leader"
    );
    let (mut follower, _) = follower(6);
    step(&mut follower, Input::Following { leader_epoch: LeaderEpoch(5), high_watermark: Offset(6) });
    let batch = FetchedBatch {
        base_offset: Offset(10),
        end_offset: Offset(12),
        epoch: LeaderEpoch(4),
        append_time: 1,
    };
    let pushed =
        Input::Fetched { batches: vec![batch], leader_epoch: LeaderEpoch(4), high_watermark: Offset(12) };
    assert_eq!(step(&mut follower, pushed), [Output::Unsubscribe], "neither appended nor believed");
    assert_eq!(follower.high_watermark(), Offset(6));
}

#[test]
fn h3_a_replica_never_follows_an_epoch_below_its_own_records() {
    let mut ahead = replica(10, 6, &[(1, 0), (7, 8)]);
    assert_eq!(assign(&mut ahead, assignment(TWO, 5, &[ME, TWO])), []);
    assert_eq!(ahead.role(), Role::Idle);
}

#[test]
fn h4_the_watermark_stands_still_while_too_few_are_in_sync() {
    let mut alone = leader(&[ME]);
    write(&mut alone, 12);
    assert!(!committed(&alone, 12));
    assert_eq!(alone.high_watermark(), Offset(6));
    assert!(!alone.has_quorum());
}

#[test]
fn h5_a_session_of_an_old_registration_is_refused_and_its_acknowledgements_do_not_count() {
    let mut leader = leader(&[ME, TWO]);
    step(&mut leader, opened(1, TWO, 10));
    // Broker 2 has come again, perhaps with less: only what its new registration says counts.
    let again = BrokerEpoch(99);
    let mut decided = assignment(ME, 5, &[ME]);
    decided.in_sync.push((TWO, again));
    decided.version += 1;
    assign(&mut leader, decided);
    step(&mut leader, acked(1, TWO, ends(10, 10)));
    assert!(!committed(&leader, 10));
    let refused = SubscribeRefusal::StaleRegistration { node: TWO, asked: registered(TWO) };
    assert_eq!(leader.check_subscribe(&check(TWO, 5, 10, Some(4))), Err(refused));
    step(
        &mut leader,
        Input::SessionOpened { session: 2, node: TWO, broker_epoch: again, log_end: Offset(10) },
    );
    let ends = ends(10, 10);
    step(&mut leader, Input::Acked { session: 2, leader_epoch: LeaderEpoch(5), broker_epoch: again, ends });
    assert!(committed(&leader, 10));
}

#[test]
fn h6_what_a_follower_has_written_but_not_flushed_is_not_committed() {
    let mut leader = leader(&[ME, TWO]);
    step(&mut leader, opened(1, TWO, 10));
    step(&mut leader, acked(1, TWO, ends(10, 10)));
    write(&mut leader, 14);
    step(&mut leader, acked(1, TWO, ends(14, 11)));
    assert_eq!(leader.high_watermark(), Offset(11));
    assert!(!committed(&leader, 14));
}

#[test]
fn h7_an_acknowledgement_of_another_epoch_or_of_a_session_that_is_over_counts_for_nothing() {
    let mut leader = leader(&[ME, TWO]);
    step(&mut leader, opened(1, TWO, 10));
    let late = Input::Acked {
        session: 1,
        leader_epoch: LeaderEpoch(4),
        broker_epoch: registered(TWO),
        ends: ends(10, 10),
    };
    step(&mut leader, late);
    assert_eq!(leader.high_watermark(), Offset(6));
    // The follower has lost what it had not flushed and comes again with less; then the old word arrives.
    step(&mut leader, Input::SessionClosed { session: 1 });
    step(&mut leader, opened(2, TWO, 8));
    step(&mut leader, acked(1, TWO, ends(10, 10)));
    assert!(!committed(&leader, 10));
    step(&mut leader, acked(2, TWO, ends(10, 10)));
    assert!(committed(&leader, 10));
}

#[test]
fn h7_a_leader_of_an_old_epoch_neither_acknowledges_nor_commits() {
    let mut zombie = leader(&[ME, TWO]);
    step(&mut zombie, opened(1, TWO, 10));
    write(&mut zombie, 12);
    let out = assign(&mut zombie, assignment(TWO, 6, &[TWO, THREE]));
    assert_eq!(out[0], Output::StopLeading);
    step(&mut zombie, acked(1, TWO, ends(12, 12)));
    assert_eq!(zombie.reached(Condition::Committed(Offset(6))), None);
    assert_eq!(zombie.reached(Condition::LeaderStage(Offset(6))), None);
    assert_eq!(zombie.high_watermark(), Offset(6));
}

#[test]
fn h8_a_leader_is_ready_when_the_watermark_has_reached_the_start_of_its_epoch() {
    let mut leader = leader(&[ME, TWO]);
    assert!(!leader.is_ready(), "it has 10, and knows of 6 that they are committed");
    step(&mut leader, opened(1, TWO, 10));
    step(&mut leader, acked(1, TWO, ends(9, 9)));
    assert!(!leader.is_ready());
    step(&mut leader, acked(1, TWO, ends(10, 10)));
    assert!(leader.is_ready());
}

#[test]
fn h15_who_ends_below_the_log_start_starts_over_but_never_while_it_counts_as_a_member() {
    let mut leader = leader(&[ME, TWO]);
    step(&mut leader, opened(1, TWO, 10));
    step(&mut leader, acked(1, TWO, ends(10, 10)));
    step(&mut leader, Input::LogStart { log_start: Offset(9) });
    let (offset, log_start) = (Offset(5), Offset(9));
    assert_eq!(leader.check_subscribe(&check(THREE, 5, 5, Some(1))), Ok(Subscribed::Reset { log_start }));
    let member = SubscribeRefusal::MemberBelowLogStart { node: TWO, offset, log_start };
    assert_eq!(leader.check_subscribe(&check(TWO, 5, 5, Some(1))), Err(member));
    // The follower's side: in a set it waits, in neither it starts over.
    let (mut follower, _) = follower(6);
    let offered = Input::ResetOffered { log_start: Offset(20) };
    assert_eq!(step(&mut follower, offered.clone()), [Output::Unsubscribe]);
    assign(&mut follower, Assignment { version: 51, ..assignment(TWO, 5, &[TWO, THREE]) });
    let out = step_at(&mut follower, Mono(0).after(Duration::from_secs(2)), Input::Tick);
    assert!(matches!(out[..], [Output::Subscribe { .. }]), "{out:?}");
    assert_eq!(step(&mut follower, offered), [Output::Reset]);
}

#[test]
fn h15_a_replica_that_was_to_start_over_takes_up_its_new_duty_when_that_is_over_or_given_up() {
    let given_up: fn(&mut Replica) -> Vec<Output> = |replica| step(replica, Input::LinkLost);
    let done: fn(&mut Replica) -> Vec<Output> = |replica| {
        let (log_generation, log_start) = (2, Offset(20));
        step(replica, Input::WasReset { log_generation, log_start, epochs: epochs(&[(5, 20)]) })
    };
    for (end, offset) in [(given_up, Offset(10)), (done, Offset(20))] {
        let (mut follower, _) = follower(6);
        assign(&mut follower, Assignment { version: 51, ..assignment(TWO, 5, &[TWO, THREE]) });
        assert_eq!(step(&mut follower, Input::ResetOffered { log_start: Offset(20) }), [Output::Reset]);
        // The leader is another one before the log is replaced.
        let out = assign(&mut follower, assignment(THREE, 6, &[THREE]));
        assert_eq!(out, [Output::Unsubscribe], "what happens to the log is not known yet");
        let out = end(&mut follower);
        let asks = |output: &Output| matches!(output, Output::Subscribe { leader: THREE, offset: at, .. } if *at == offset);
        assert!(out.iter().any(asks), "{out:?}");
    }
}

#[test]
fn h21_a_follower_that_is_busy_keeps_its_session_and_goes_on_where_it_was() {
    let mut leader = leader(&[ME, TWO]);
    step(&mut leader, opened(1, TWO, 10));
    step(&mut leader, acked(1, TWO, ends(10, 10)));
    step(&mut leader, opened(2, THREE, 3));
    // It is silent for an hour: nothing is cancelled, and one word is enough to go on.
    let later = Mono(0).after(Duration::from_secs(3600));
    assert_eq!(step_at(&mut leader, later, Input::Tick), []);
    let out = step_at(&mut leader, later, acked(2, THREE, ends(10, 10)));
    assert!(matches!(out[..], [Output::Propose { .. }]), "{out:?}");
    // A link that breaks costs nothing that was fetched.
    let (mut follower, _) = follower(6);
    step(&mut follower, Input::Following { leader_epoch: LeaderEpoch(5), high_watermark: Offset(6) });
    assert_eq!(step(&mut follower, Input::LinkLost), [Output::Unsubscribe]);
    let out = step_at(&mut follower, later, Input::Tick);
    assert!(matches!(out[..], [Output::Subscribe { offset: Offset(10), .. }]), "{out:?}");
}

#[test]
fn h26_a_follower_acknowledges_a_flush_only_when_it_is_over() {
    let (mut follower, _) = follower(6);
    let at = |log_end, flushed_end| Output::SendAck {
        leader_epoch: LeaderEpoch(5),
        ends: ends(log_end, flushed_end),
    };
    let live = Input::Following { leader_epoch: LeaderEpoch(5), high_watermark: Offset(6) };
    assert_eq!(step(&mut follower, live), [at(10, 10)]);
    let (base_offset, end_offset) = (Offset(10), Offset(12));
    let batch = FetchedBatch { base_offset, end_offset, epoch: LeaderEpoch(5), append_time: 1 };
    let (batches, leader_epoch) = (vec![batch], LeaderEpoch(5));
    let pushed = Input::Fetched { batches, leader_epoch, high_watermark: Offset(8) };
    assert_eq!(step(&mut follower, pushed), [Output::Append]);
    let appended = Input::Appended { log_end: Offset(12), append_time: 1 };
    assert_eq!(step(&mut follower, appended), [Output::HighWatermark(Offset(8))]);
    let stale = Input::Flushed { log_generation: 0, upto: Offset(12) };
    assert_eq!(step(&mut follower, stale), [], "a flush of the log before it was cut");
    let flushed = Input::Flushed { log_generation: 1, upto: Offset(12) };
    assert_eq!(step(&mut follower, flushed), [Output::FlushedEnd(Offset(12)), at(12, 12)]);
}

#[test]
fn a_growth_is_waited_for_as_soon_as_it_is_proposed_and_a_shrink_only_when_it_is_decided() {
    let mut leader = leader(&[ME, TWO]);
    step(&mut leader, opened(1, TWO, 10));
    step(&mut leader, acked(1, TWO, ends(10, 10)));
    step(&mut leader, opened(2, THREE, 10));
    let out = step(&mut leader, acked(2, THREE, ends(10, 10)));
    let all = [ME, TWO, THREE].map(|node| (node, registered(node)));
    let proposed = Output::Propose { version: 50, leader_epoch: LeaderEpoch(5), in_sync: all.to_vec() };
    assert_eq!(out, [proposed]);
    write(&mut leader, 12);
    step(&mut leader, acked(1, TWO, ends(12, 12)));
    assert_eq!(leader.high_watermark(), Offset(10), "the proposal may be decided by now");
    step(&mut leader, acked(2, THREE, ends(12, 12)));
    assert_eq!(leader.high_watermark(), Offset(12));
    assign(&mut leader, Assignment { version: 51, ..assignment(ME, 5, &[ME, TWO, THREE]) });
    // Broker 3 falls behind: it is proposed to leave, and waited for until that is decided.
    write(&mut leader, 14);
    step(&mut leader, acked(1, TWO, ends(14, 14)));
    let late = Mono(0).after(REPLICA_LAG_MAX);
    let out = step_at(&mut leader, late, Input::Tick);
    let in_sync = all[..2].to_vec();
    assert_eq!(out, [Output::Propose { version: 51, leader_epoch: LeaderEpoch(5), in_sync }]);
    step_at(&mut leader, late, Input::Tick);
    assert_eq!(leader.high_watermark(), Offset(12));
    assign(&mut leader, Assignment { version: 52, ..assignment(ME, 5, &[ME, TWO]) });
    assert_eq!(leader.high_watermark(), Offset(14));
}

#[test]
fn a_growth_that_is_refused_is_waited_for_until_another_version_makes_it_void() {
    let mut leader = leader(&[ME, TWO]);
    step(&mut leader, opened(1, TWO, 10));
    step(&mut leader, acked(1, TWO, ends(10, 10)));
    step(&mut leader, opened(2, THREE, 10));
    step(&mut leader, acked(2, THREE, ends(10, 10)));
    step(&mut leader, Input::ProposalRefused { version: 50 });
    step(&mut leader, Input::SessionClosed { session: 2 });
    write(&mut leader, 12);
    step(&mut leader, acked(1, TWO, ends(12, 12)));
    assert_eq!(leader.high_watermark(), Offset(10), "a copy of the proposal may still be on its way");
    // It takes the proposal back by proposing what is decided.
    let later = Mono(0).after(Duration::from_secs(1));
    let in_sync = [ME, TWO].map(|node| (node, registered(node))).to_vec();
    let back = Output::Propose { version: 50, leader_epoch: LeaderEpoch(5), in_sync };
    assert_eq!(step_at(&mut leader, later, Input::Tick), [back]);
    assign(&mut leader, Assignment { version: 51, ..assignment(ME, 5, &[ME, TWO]) });
    assert_eq!(leader.high_watermark(), Offset(12));
}

#[test]
fn who_joins_has_reached_the_watermark_and_the_start_of_the_epoch() {
    let mut leader = leader(&[ME, TWO]);
    step(&mut leader, opened(2, THREE, 8));
    let below_start = step(&mut leader, acked(2, THREE, ends(8, 8)));
    assert_eq!(below_start, [], "its predecessor may have committed up to 10");
    step(&mut leader, opened(1, TWO, 10));
    write(&mut leader, 14);
    step(&mut leader, acked(1, TWO, ends(14, 14)));
    assert_eq!(leader.high_watermark(), Offset(14));
    assert_eq!(step(&mut leader, acked(2, THREE, ends(12, 12))), [], "14 are committed");
    let written = step(&mut leader, acked(2, THREE, ends(14, 13)));
    assert_eq!(written, [], "and flushed");
    let out = step(&mut leader, acked(2, THREE, ends(14, 14)));
    assert!(matches!(out[..], [Output::Propose { .. }]), "{out:?}");
}

#[test]
fn who_was_left_behind_does_not_join_again_before_it_keeps_up() {
    let mut leader = leader(&[ME, TWO]);
    step(&mut leader, opened(1, TWO, 10));
    step(&mut leader, acked(1, TWO, ends(10, 10)));
    write(&mut leader, 14);
    let late = Mono(0).after(REPLICA_LAG_MAX);
    let alone = vec![(ME, registered(ME))];
    let shrink = Output::Propose { version: 50, leader_epoch: LeaderEpoch(5), in_sync: alone };
    assert_eq!(step_at(&mut leader, late, Input::Tick), [shrink]);
    // One is fewer than has to be in sync: the watermark stands still, and broker 2 is not behind it.
    let decided = Assignment { version: 51, eligible: vec![TWO], ..assignment(ME, 5, &[ME]) };
    let own_epoch = registered(ME);
    assert_eq!(step_at(&mut leader, late, Input::Assigned { assignment: decided, own_epoch }), []);
    let out = step_at(&mut leader, late, acked(1, TWO, ends(14, 14)));
    assert!(matches!(out[..], [Output::Propose { version: 51, .. }]), "{out:?}");
}

#[test]
fn nothing_committed_is_cut_unless_its_loss_was_accepted() {
    let (mut follower, _) = follower(9);
    let diverged = Input::Diverged { epoch: LeaderEpoch(1), end_offset: Offset(8) };
    let refused = Problem::Refused { to: Offset(8), high_watermark: Offset(9) };
    assert_eq!(step(&mut follower, diverged.clone()), [Output::Report(refused), Output::Unsubscribe]);
    assert_eq!(follower.ends().log_end, Offset(10));
    // An operator has elected somebody who lacks it.
    let accepted = Some(LeaderEpoch(6));
    assign(&mut follower, Assignment { unclean_epoch: accepted, ..assignment(TWO, 6, &[TWO]) });
    assert_eq!(step(&mut follower, diverged), [Output::Truncate { to: Offset(8) }]);
}

#[test]
fn a_replica_never_leads_twice_in_an_epoch() {
    let mut restarted = replica(10, 6, &[(1, 0), (5, 8)]);
    assert_eq!(assign(&mut restarted, assignment(ME, 5, &[ME, TWO])), [], "it has led epoch 5 before");
    let mut leader = leader(&[ME, TWO]);
    step(&mut leader, Input::FlushFailed { log_generation: 1 });
    step(&mut leader, Input::Verified { log_generation: 2, log_end: Offset(10) });
    assign(&mut leader, Assignment { version: 51, ..assignment(ME, 5, &[ME, TWO]) });
    assert_eq!(leader.role(), Role::Idle, "others may have copied what the failed flush has lost");
    assign(&mut leader, assignment(ME, 6, &[ME, TWO]));
    assert_eq!(leader.role(), Role::Leader);
}

#[test]
fn whoever_lost_something_counts_as_damaged_until_it_has_it_again() {
    let (mut follower, _) = follower(6);
    let live = |end| Input::Following { leader_epoch: LeaderEpoch(5), high_watermark: Offset(end) };
    step(&mut follower, live(10));
    step(&mut follower, Input::FlushFailed { log_generation: 1 });
    let out = step(&mut follower, Input::Verified { log_generation: 2, log_end: Offset(8) });
    assert!(!out.contains(&Output::Report(Problem::Recovered)), "{out:?}");
    step(&mut follower, live(10));
    let (base_offset, end_offset) = (Offset(8), Offset(10));
    let batch = FetchedBatch { base_offset, end_offset, epoch: LeaderEpoch(4), append_time: 1 };
    let (batches, leader_epoch) = (vec![batch], LeaderEpoch(5));
    step(&mut follower, Input::Fetched { batches, leader_epoch, high_watermark: Offset(10) });
    step(&mut follower, Input::Appended { log_end: Offset(10), append_time: 1 });
    let out = step(&mut follower, Input::Flushed { log_generation: 2, upto: Offset(10) });
    assert!(out.contains(&Output::Report(Problem::Recovered)), "{out:?}");
}

#[test]
fn interleaving_a_leader_back_within_its_lease_leads_only_what_its_new_registration_was_given() {
    // It led epoch 5 without writing, was killed, and is back before anybody noticed: an old image still names it.
    let mut back = replica(10, 6, &[(1, 0), (4, 8)]);
    let own_epoch = BrokerEpoch(77);
    let old = assignment(ME, 5, &[ME, TWO]);
    assert_eq!(step(&mut back, Input::Assigned { assignment: old, own_epoch }), []);
    assert_eq!(back.role(), Role::Idle);
    let mut new = assignment(ME, 6, &[TWO]);
    new.in_sync.push((ME, own_epoch));
    let out = step(&mut back, Input::Assigned { assignment: new, own_epoch });
    assert_eq!(out[0], Output::StartLeading { epoch: LeaderEpoch(6) });
}

/// A leader with a follower in sync, under `os`: 14 are committed, 10 are flushed on both.
fn os_leader() -> Replica {
    let os = |assignment| Assignment { durability_effective: OS, durability_wanted: OS, ..assignment };
    let mut leader = replica(10, 10, &[(1, 0), (4, 8)]);
    assign(&mut leader, os(assignment(ME, 5, &[ME, TWO])));
    step(&mut leader, opened(1, TWO, 10));
    step(&mut leader, Input::Appended { log_end: Offset(14), append_time: 1 });
    step(&mut leader, acked(1, TWO, ends(14, 10)));
    assert_eq!(leader.high_watermark(), Offset(14));
    leader
}

#[test]
fn interleaving_a_stricter_durability_is_recorded_when_a_power_cut_finds_everything_committed() {
    let mut leader = os_leader();
    let record = Output::RecordDurability(FSYNC);
    assert_eq!(step(&mut leader, Input::DurabilityWanted(FSYNC)), [Output::FlushBy(FSYNC)]);
    let out = step(&mut leader, Input::Flushed { log_generation: 1, upto: Offset(14) });
    assert_eq!(out, [Output::FlushedEnd(Offset(14))], "the follower has not flushed");
    assert_eq!(step(&mut leader, acked(1, TWO, ends(14, 14))), [record]);
}

#[test]
fn interleaving_a_stricter_durability_waits_while_an_eligible_replica_may_not_have_flushed() {
    let mut leader = os_leader();
    step(&mut leader, acked(1, TWO, ends(14, 14)));
    step(&mut leader, Input::Flushed { log_generation: 1, upto: Offset(14) });
    step(&mut leader, Input::SessionClosed { session: 1 });
    let out_of_sync =
        Assignment { version: 51, eligible: vec![TWO], durability_effective: OS, ..assignment(ME, 5, &[ME]) };
    // Recorded now, a power cut would leave broker 2 its place although it may lack what is committed.
    assert_eq!(assign(&mut leader, out_of_sync.clone()), [Output::FlushBy(FSYNC)]);
    let in_sync = vec![(ME, registered(ME)), (TWO, registered(TWO))];
    let together = Assignment { version: 52, eligible: Vec::new(), in_sync, ..out_of_sync };
    assert!(assign(&mut leader, together).contains(&Output::RecordDurability(FSYNC)));
}

#[test]
fn interleaving_a_stricter_durability_waits_until_a_new_leader_knows_what_is_committed() {
    let os = |assignment| Assignment { durability_effective: OS, durability_wanted: OS, ..assignment };
    // Its predecessor may have committed up to 10; it knows of 0, and of broker 2 nothing.
    let mut leader = replica(10, 0, &[(1, 0), (4, 8)]);
    assign(&mut leader, os(assignment(ME, 5, &[ME, TWO])));
    assert_eq!(step(&mut leader, Input::DurabilityWanted(FSYNC)), [Output::FlushBy(FSYNC)]);
    step(&mut leader, opened(1, TWO, 10));
    assert_eq!(step(&mut leader, acked(1, TWO, ends(10, 6))), [Output::HighWatermark(Offset(6))]);
    let out = step(&mut leader, acked(1, TWO, ends(10, 10)));
    assert_eq!(out, [Output::HighWatermark(Offset(10)), Output::RecordDurability(FSYNC)]);
}

#[test]
fn interleaving_a_laxer_durability_counts_only_when_it_is_recorded() {
    let mut leader = leader(&[ME, TWO]);
    step(&mut leader, opened(1, TWO, 10));
    step(&mut leader, Input::DurabilityWanted(OS));
    step(&mut leader, acked(1, TWO, ends(10, 7)));
    assert_eq!(leader.high_watermark(), Offset(7), "a restart would still believe that all was flushed");
    assert_eq!(leader.durability_gate(), FSYNC);
    let out = step(&mut leader, Input::DurabilityRecorded(OS));
    assert_eq!(out, [Output::FlushBy(OS), Output::HighWatermark(Offset(10))]);
}

#[test]
fn interleaving_a_stale_acknowledgement_after_a_re_election_is_dropped() {
    let mut leader = leader(&[ME, TWO]);
    step(&mut leader, opened(1, TWO, 10));
    write(&mut leader, 12);
    assign(&mut leader, assignment(TWO, 6, &[ME, TWO]));
    assign(&mut leader, assignment(ME, 7, &[ME, TWO]));
    assert_eq!(leader.role(), Role::Leader);
    // Broker 2 has cut what it acknowledged in epoch 5; both copies of the word arrive now.
    step(&mut leader, acked(1, TWO, ends(12, 12)));
    step(&mut leader, opened(2, TWO, 10));
    step(&mut leader, acked(1, TWO, ends(12, 12)));
    step(&mut leader, acked(2, TWO, ends(12, 12)));
    assert!(!committed(&leader, 12));
    assert!(!leader.is_ready());
}

#[test]
fn interleaving_a_duplicate_has_the_condition_of_the_first_and_is_not_answered_before_it() {
    // The batch [8, 10) is in the log of the new leader; its producer sends it again.
    let mut leader = leader(&[ME, TWO]);
    assert!(!committed(&leader, 10), "it is there, and nobody knows whether it is anywhere else");
    step(&mut leader, opened(1, TWO, 9));
    step(&mut leader, acked(1, TWO, ends(9, 9)));
    assert!(!committed(&leader, 10));
    step(&mut leader, acked(1, TWO, ends(10, 10)));
    assert!(committed(&leader, 10));
}

#[test]
fn a_stamp_calls_durable_what_every_member_has_flushed() {
    let mut leader = leader(&[ME, TWO]);
    let durable_end = |leader: &Replica| leader.stamper(Wall(1)).next(1).unwrap().durable_end;
    assert_eq!(durable_end(&leader), Offset(0), "of broker 2 nothing is known");
    step(&mut leader, opened(1, TWO, 10));
    step(&mut leader, acked(1, TWO, ends(10, 8)));
    assert_eq!(durable_end(&leader), Offset(8));
}
