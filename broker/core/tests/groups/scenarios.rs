//! What members see.

use std::collections::BTreeSet;
use std::time::Duration;

use highwater_broker_core::group::{Event, FenceReason};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::GroupAction;

use crate::bench::{Bench, Member, at, settle};

#[test]
fn the_first_member_gets_everything_with_its_first_reply() {
    let mut bench = Bench::new(&[("orders", 4), ("other", 2)]);
    let mut a = Member::new("a", &["orders"]);
    a.beat(&mut bench).unwrap();
    assert_eq!(a.generation, 1);
    assert_eq!(a.owned, (0..4).map(|p| at("orders", p)).collect());
    let described = bench.describe("g").unwrap();
    assert_eq!((described.state.as_str(), described.generation), ("stable", 1));
    // From now on a heartbeat is worth no record.
    let recorded = bench.log.len();
    for _ in 0..100 {
        bench.wait(a.interval);
        a.beat(&mut bench).unwrap();
    }
    assert_eq!(bench.log.len(), recorded);
    assert_eq!(a.interval, bench.config.heartbeat_interval);
}

#[test]
fn a_partition_that_does_not_move_is_owned_all_the_time() {
    let mut bench = Bench::new(&[("orders", 4)]);
    let (mut a, mut b) = (Member::new("a", &["orders"]), Member::new("b", &["orders"]));
    a.beat(&mut bench).unwrap();
    bench.wait(Duration::from_millis(100));
    b.beat(&mut bench).unwrap();
    assert!(b.owned.is_empty(), "a has not given anything up yet");
    assert_eq!(b.interval, bench.config.hand_over_interval, "so b asks often");
    // The first heartbeat tells a what to give up; it is b's only after the second.
    let before = a.owned.clone();
    let reply = bench.heartbeat(a.request(GroupAction::Alive)).unwrap();
    let kept = crate::bench::partitions_of(reply.assignment.as_ref().unwrap());
    assert_eq!(kept.len(), 2);
    assert!(kept.is_subset(&before));
    b.beat(&mut bench).unwrap();
    assert!(b.owned.is_empty());
    a.generation = reply.generation;
    a.owned.clone_from(&kept);
    a.beat(&mut bench).unwrap();
    b.beat(&mut bench).unwrap();
    assert_eq!(b.owned, before.difference(&kept).copied().collect());
    assert_eq!(bench.describe("g").unwrap().state, "stable");
}

#[test]
fn a_member_that_is_not_heard_of_loses_everything_when_its_session_ends() {
    let mut bench = Bench::new(&[("orders", 4)]);
    let (mut a, mut b) = (Member::new("a", &["orders"]), Member::new("b", &["orders"]));
    a.beat(&mut bench).unwrap();
    settle(&mut bench, &mut [&mut a, &mut b]);
    b.beat(&mut bench).unwrap();
    bench.wait(Duration::from_millis(9_999));
    assert_eq!(bench.describe("g").unwrap().members.len(), 2);
    b.beat(&mut bench).unwrap();
    bench.wait(Duration::from_millis(201));
    b.beat(&mut bench).unwrap();
    assert_eq!(b.owned.len(), 4);
    let fenced = Event::Fenced { group: "g".into(), member: "a".into(), reason: FenceReason::Session };
    assert!(bench.events.contains(&fenced));
    assert_eq!(a.beat(&mut bench).unwrap_err().code, ErrorCode::UnknownMember);
}

#[test]
fn a_member_that_leaves_is_followed_at_once() {
    let mut bench = Bench::new(&[("orders", 4)]);
    let (mut a, mut b) = (Member::new("a", &["orders"]), Member::new("b", &["orders"]));
    settle(&mut bench, &mut [&mut a, &mut b]);
    bench.heartbeat(a.request(GroupAction::Leave)).unwrap();
    b.beat(&mut bench).unwrap();
    assert_eq!(b.owned, (0..4).map(|p| at("orders", p)).collect::<BTreeSet<_>>());
    // Leaving twice is no error, and the last one leaves an empty group behind.
    bench.heartbeat(a.request(GroupAction::Leave)).unwrap();
    bench.heartbeat(b.request(GroupAction::Leave)).unwrap();
    assert_eq!(bench.describe("g").unwrap().state, "empty");
}

/// Must-show: paused past its session, a member can neither commit nor disturb whoever owns its partitions now.
#[test]
fn a_zombie_cannot_commit_or_disturb_the_new_owner() {
    let mut bench = Bench::new(&[("orders", 4)]);
    let (mut a, mut b) = (Member::new("a", &["orders"]), Member::new("b", &["orders"]));
    settle(&mut bench, &mut [&mut a, &mut b]);
    let held = *a.owned.first().unwrap();
    assert_eq!(bench.commit("a", a.generation, held, 10).unwrap(), 0);
    while b.owned.len() < 4 {
        bench.wait(Duration::from_secs(1));
        b.beat(&mut bench).unwrap();
    }
    assert_eq!(bench.commit("b", b.generation, held, 20).unwrap(), 0);
    let state: Vec<_> = bench.shard.records().collect();
    // It wakes up: whatever it says is refused, and nothing is recorded.
    assert_eq!(bench.commit("a", a.generation, held, 11).unwrap_err().code, ErrorCode::UnknownMember);
    assert_eq!(a.clone().beat(&mut bench).unwrap_err().code, ErrorCode::UnknownMember);
    bench.heartbeat(a.request(GroupAction::Leave)).unwrap();
    assert_eq!(bench.shard.records().collect::<Vec<_>>(), state);
    // It joins again, even under the same id: what it says of before does not count.
    let before = a.generation;
    (a.generation, a.owned) = (0, BTreeSet::new());
    settle(&mut bench, &mut [&mut a, &mut b]);
    assert_eq!(bench.commit("a", before, held, 12).unwrap_err().code, ErrorCode::FencedGeneration);
    let described = bench.describe("g").unwrap();
    let committed = described.offsets.iter().find(|lag| lag.partition == held.partition.get()).unwrap();
    assert_eq!(committed.committed, Some(20));
}

#[test]
fn a_commit_counts_for_what_the_member_has_and_since_it_has_it() {
    let mut bench = Bench::new(&[("orders", 4)]);
    let (mut a, mut b) = (Member::new("a", &["orders"]), Member::new("b", &["orders"]));
    a.beat(&mut bench).unwrap();
    let alone = a.generation;
    settle(&mut bench, &mut [&mut a, &mut b]);
    let (kept, given) = (*a.owned.first().unwrap(), *b.owned.first().unwrap());
    assert!(b.generation > alone);
    // A commit that was on its way while the generation went up is good for what did not move.
    assert_eq!(bench.commit("a", alone, kept, 5).unwrap(), 0);
    assert_eq!(bench.commit("a", alone, given, 5).unwrap(), ErrorCode::NotAssigned.code());
    assert_eq!(bench.commit("b", b.generation, given, 7).unwrap(), 0);
    assert_eq!(bench.commit("b", b.generation + 1, given, 8).unwrap_err().code, ErrorCode::FencedGeneration);
    assert_eq!(bench.commit("", 0, given, 9).unwrap_err().code, ErrorCode::GroupNotEmpty);
}

#[test]
fn another_coordinator_goes_on_where_the_first_one_was() {
    let mut bench = Bench::new(&[("orders", 4)]);
    let (mut a, mut b) = (Member::new("a", &["orders"]), Member::new("b", &["orders"]));
    settle(&mut bench, &mut [&mut a, &mut b]);
    assert_eq!(bench.commit("a", a.generation, *a.owned.first().unwrap(), 5).unwrap(), 0);
    let (owned, state) = (a.owned.clone(), bench.shard.records().collect::<Vec<_>>());
    bench.pass(Duration::from_secs(9));
    bench.fail_over();
    assert_eq!(bench.shard.records().collect::<Vec<_>>(), state);
    // A full session from now on, and no member notices.
    bench.wait(Duration::from_secs(9));
    let recorded = bench.log.len();
    settle(&mut bench, &mut [&mut a, &mut b]);
    assert_eq!((a.owned, bench.log.len()), (owned, recorded));
}

#[test]
fn new_partitions_and_topics_are_picked_up() {
    let mut bench = Bench::new(&[("orders", 2)]);
    let mut a = Member::new("a", &["orders", "later"]);
    let mut b = Member::new("b", &["none"]);
    (b.subscription.topics, b.subscription.pattern) = (Vec::new(), Some("ord*,refunds-?".to_owned()));
    settle(&mut bench, &mut [&mut a, &mut b]);
    assert_eq!((a.owned.len(), b.owned.len()), (1, 1));
    bench.wait(Duration::from_millis(10));
    bench.set_topic("orders", 4);
    settle(&mut bench, &mut [&mut a, &mut b]);
    assert_eq!((a.owned.len(), b.owned.len()), (2, 2));
    for name in ["later", "refunds-1", "refunds-12"] {
        bench.wait(Duration::from_millis(10));
        bench.set_topic(name, 1);
    }
    settle(&mut bench, &mut [&mut a, &mut b]);
    assert!(a.owned.contains(&at("later", 0)) && b.owned.contains(&at("refunds-1", 0)));
    assert_eq!((a.owned.len(), b.owned.len()), (3, 3));
}

/// Must-show: others have what a crashed member had about when its session ends, not a heartbeat interval later.
#[test]
fn a_crashed_members_share_is_with_others_when_its_session_ends() {
    let mut worst = Duration::ZERO;
    // Heartbeats of the others fall anywhere between those of the one that dies.
    for shift in (0..3_000).step_by(250) {
        let mut bench = Bench::new(&[("orders", 6)]);
        let mut members = ["a", "b", "c"].map(|id| Member::new(id, &["orders"]));
        let [a, b, c] = &mut members;
        settle(&mut bench, &mut [a, b, c]);
        bench.wait(Duration::from_millis(shift));
        members[1].beat(&mut bench).unwrap();
        bench.wait(Duration::from_millis(3_000 - shift));
        members[0].beat(&mut bench).unwrap();
        members[2].beat(&mut bench).unwrap();
        let died = bench.now().mono;
        let mut due = [shift, 3_000];
        let mut at = 0;
        while members[1].owned.len() + members[2].owned.len() < 6 {
            let next = *due.iter().min().unwrap();
            bench.wait(Duration::from_millis(next - at));
            at = next;
            for (member, due) in members[1..].iter_mut().zip(&mut due) {
                if *due <= at {
                    member.beat(&mut bench).unwrap();
                    *due = at + member.interval.as_millis() as u64;
                }
            }
        }
        worst = worst.max(bench.now().mono.since(died));
    }
    println!("session 10 s: the last partition is with another {worst:?} after the last heartbeat");
    assert!(worst <= Duration::from_millis(10_200), "{worst:?}");
}
