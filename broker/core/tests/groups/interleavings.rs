//! Messages in the order that hurts. Each of these was, or would be, two owners of one partition or a position that goes
//! back.

use std::collections::BTreeSet;
use std::time::Duration;

use highwater_broker_core::group::record::Change;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::GroupAction;

use crate::bench::{Bench, Member, assignment_of, at, partitions_of, settle, subscription};

/// Two members with two partitions each of `orders`.
fn two() -> (Bench, Member, Member) {
    let mut bench = Bench::new(&[("orders", 4)]);
    let (mut a, mut b) = (Member::new("a", &["orders"]), Member::new("b", &["orders"]));
    settle(&mut bench, &mut [&mut a, &mut b]);
    bench.wait(Duration::from_millis(100));
    (bench, a, b)
}

/// A heartbeat that was sent before the member had the partition says nothing about giving it up.
#[test]
fn a_late_heartbeat_gives_nothing_up() {
    let (mut bench, mut a, mut b) = two();
    // Said while `a` had two partitions, and on its way for long.
    let late = a.request(GroupAction::Alive);
    bench.heartbeat(b.request(GroupAction::Leave)).unwrap();
    a.beat(&mut bench).unwrap();
    assert_eq!(a.owned.len(), 4);
    // b comes back: a is told to give two up, and reads them until it says that it has.
    bench.wait(Duration::from_millis(100));
    b = Member::new("b2", &["orders"]);
    b.beat(&mut bench).unwrap();
    let told = bench.heartbeat(a.request(GroupAction::Alive)).unwrap();
    let kept = partitions_of(told.assignment.as_ref().unwrap());
    assert_eq!(kept.len(), 2);
    bench.heartbeat(late).unwrap();
    b.beat(&mut bench).unwrap();
    assert!(b.owned.is_disjoint(&a.owned), "a still reads {:?}", a.owned);
    // The heartbeat of the new generation does it.
    (a.generation, a.owned) = (told.generation, kept);
    a.beat(&mut bench).unwrap();
    b.beat(&mut bench).unwrap();
    assert_eq!(b.owned.len(), 2);
}

/// A commit from an earlier time in which the member had the partition does not count once another had it in between.
#[test]
fn a_late_commit_of_an_earlier_time_does_not_count() {
    let (mut bench, mut a, b) = two();
    let (before, held) = (a.generation, *a.owned.first().unwrap());
    assert_eq!(bench.commit("a", before, held, 5).unwrap(), 0);
    // a gives everything up by wanting another topic, and wants it back later: somebody else had it in between.
    a.subscription = subscription(&["other"]);
    let mut change = a.request(GroupAction::Alive);
    change.subscription = Some(a.subscription.clone());
    let told = bench.heartbeat(change).unwrap();
    (a.generation, a.owned) = (told.generation, partitions_of(told.assignment.as_ref().unwrap()));
    let mut b = b;
    settle(&mut bench, &mut [&mut a, &mut b]);
    assert!(b.owned.contains(&held));
    assert_eq!(bench.commit("b", b.generation, held, 50).unwrap(), 0);
    bench.heartbeat(b.request(GroupAction::Leave)).unwrap();
    bench.wait(Duration::from_millis(100));
    let mut change = a.request(GroupAction::Alive);
    change.subscription = Some(subscription(&["orders"]));
    let told = bench.heartbeat(change).unwrap();
    (a.generation, a.owned) = (told.generation, partitions_of(told.assignment.as_ref().unwrap()));
    settle(&mut bench, &mut [&mut a]);
    assert!(a.owned.contains(&held));
    assert_eq!(bench.commit("a", before, held, 6).unwrap(), ErrorCode::FencedGeneration.code());
    assert_eq!(bench.commit("a", a.generation, held, 51).unwrap(), 0);
}

/// A join that comes twice, or late, costs the member nothing of what it has been given since.
#[test]
fn a_repeated_join_changes_nothing() {
    let (mut bench, a, _b) = two();
    let join = Member::new("a", &["orders"]).request(GroupAction::Alive);
    let state: Vec<_> = bench.shard.records().collect();
    let reply = bench.heartbeat(join).unwrap();
    assert_eq!((reply.generation, reply.assignment), (a.generation, Some(assignment_of(&a.owned))));
    assert_eq!(bench.shard.records().collect::<Vec<_>>(), state);
}

/// A subscription that was on its way for long does not replace a newer one.
#[test]
fn a_late_subscription_does_not_count() {
    let (mut bench, mut a, mut b) = two();
    let mut late = a.request(GroupAction::Alive);
    late.subscription = Some(subscription(&["nothing"]));
    bench.set_topic("more", 2);
    let mut change = a.request(GroupAction::Alive);
    change.subscription = Some(subscription(&["orders", "more"]));
    bench.heartbeat(change).unwrap();
    settle(&mut bench, &mut [&mut a, &mut b]);
    assert!(a.owned.contains(&at("more", 0)));
    let owned = a.owned.clone();
    bench.heartbeat(late).unwrap();
    settle(&mut bench, &mut [&mut a, &mut b]);
    assert_eq!(a.owned, owned);
}

/// A coordinator dies after it has recorded some targets of a new assignment. The next one makes another assignment, under
/// the same number: nobody may have been given anything by the first.
#[test]
fn half_an_assignment_is_none() {
    let mut bench = Bench::new(&[("orders", 6)]);
    let (mut a, mut b) = (Member::new("a", &["orders"]), Member::new("b", &["orders"]));
    settle(&mut bench, &mut [&mut a, &mut b]);
    bench.wait(Duration::from_millis(100));
    let committed = bench.log.len();
    let mut c = Member::new("c", &["orders"]);
    c.beat(&mut bench).unwrap();
    let is_target = |change: &Change| matches!(change, Change::Target(..));
    let end = (committed..bench.log.len()).rfind(|at| is_target(&bench.log[*at].change)).unwrap();
    let whole = bench.log.clone();
    for cut in committed..=end {
        bench.log = whole[..=cut].to_vec();
        bench.fail_over();
        // Somebody is heard of before the coordinator has looked at its timers.
        let (mut a, mut b) = (a.clone(), b.clone());
        a.beat(&mut bench).unwrap();
        b.beat(&mut bench).unwrap();
        assert_eq!((a.owned.len(), b.owned.len()), (3, 3), "{cut}");
    }
    // Without what was lost of it, the group comes to rest all the same.
    bench.log = whole[..=end].to_vec();
    bench.fail_over();
    let mut d = Member::new("d", &["orders"]);
    settle(&mut bench, &mut [&mut a, &mut b, &mut d]);
    let all: BTreeSet<_> = [&a, &b, &d].into_iter().flat_map(|member| member.owned.clone()).collect();
    assert!(all.len() >= 4, "only c's share waits for its session: {all:?}");
}

/// A static member comes back with another subscription while an assignment is due: what it inherits is not its yet.
#[test]
fn what_is_inherited_while_an_assignment_is_due_is_not_given() {
    let mut bench = Bench::new(&[("orders", 4), ("other", 4)]);
    let mut a = Member::new("a", &["orders"]);
    a.instance = Some("i".to_owned());
    let mut b = Member::new("b", &["orders", "other"]);
    settle(&mut bench, &mut [&mut a, &mut b]);
    bench.wait(Duration::from_millis(100));
    // This assignment is so new that the next one waits.
    let mut c = Member::new("c", &["orders"]);
    c.beat(&mut bench).unwrap();
    bench.heartbeat(a.request(GroupAction::LeaveForRestart)).unwrap();
    let mut again = Member::new("a2", &["other"]);
    again.instance = Some("i".to_owned());
    let reply = bench.heartbeat(again.request(GroupAction::Alive)).unwrap();
    assert!(partitions_of(&reply.assignment.unwrap()).is_empty());
    settle(&mut bench, &mut [&mut again, &mut b, &mut c]);
    assert!(again.owned.iter().all(|partition| partition.topic_id == at("other", 0).topic_id));
    assert_eq!(again.owned.len() + b.owned.len() + c.owned.len(), 8);
}
