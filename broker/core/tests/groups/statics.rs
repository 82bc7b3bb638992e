//! Static members: a restart within the session time-out moves nothing.

use std::time::Duration;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::GroupAction;

use crate::bench::{Bench, Member, settle};

fn named(id: &str, instance: &str) -> Member {
    Member { instance: Some(instance.to_owned()), ..Member::new(id, &["orders"]) }
}

#[test]
fn a_restart_within_the_session_moves_nothing() {
    let mut bench = Bench::new(&[("orders", 6)]);
    let (mut a, mut b) = (named("a", "one"), named("b", "two"));
    settle(&mut bench, &mut [&mut a, &mut b]);
    let (owned, of_b) = (a.owned.clone(), (b.generation, b.owned.clone()));
    bench.heartbeat(a.request(GroupAction::LeaveForRestart)).unwrap();
    for _ in 0..9 {
        bench.wait(Duration::from_secs(1));
        b.beat(&mut bench).unwrap();
    }
    assert_eq!(bench.describe("g").unwrap().members[0].state, "away");
    let mut again = named("a2", "one");
    again.beat(&mut bench).unwrap();
    assert_eq!(again.owned, owned, "it has everything with its first reply");
    b.beat(&mut bench).unwrap();
    assert_eq!((b.generation, b.owned), of_b, "the other one has noticed nothing");
    // The old one is out, and is told why.
    assert_eq!(a.beat(&mut bench).unwrap_err().code, ErrorCode::InstanceInUse);
    let held = *owned.first().unwrap();
    assert_eq!(bench.commit("a", a.generation, held, 1).unwrap_err().code, ErrorCode::UnknownMember);
    assert_eq!(bench.commit("a2", again.generation, held, 1).unwrap(), 0);
}

#[test]
fn one_that_does_not_come_back_loses_its_place_after_its_session() {
    let mut bench = Bench::new(&[("orders", 6)]);
    let (mut a, mut b) = (named("a", "one"), named("b", "two"));
    settle(&mut bench, &mut [&mut a, &mut b]);
    bench.heartbeat(a.request(GroupAction::LeaveForRestart)).unwrap();
    for _ in 0..11 {
        bench.wait(Duration::from_secs(1));
        b.beat(&mut bench).unwrap();
    }
    assert_eq!(b.owned.len(), 6);
}

#[test]
fn a_second_one_waits_until_the_first_is_silent_or_takes_over() {
    let mut bench = Bench::new(&[("orders", 6)]);
    let mut a = named("a", "one");
    a.beat(&mut bench).unwrap();
    let join = named("a2", "one").request(GroupAction::Alive);
    assert_eq!(bench.heartbeat(join.clone()).unwrap_err().code, ErrorCode::InstanceInUse);
    // A process that was killed says nothing: after one and a half intervals its place is free.
    bench.wait(Duration::from_millis(4_500));
    assert_eq!(bench.heartbeat(join.clone()).unwrap_err().code, ErrorCode::InstanceInUse);
    bench.wait(Duration::from_millis(1));
    assert!(bench.heartbeat(join).is_ok());
    let mut third = named("a3", "one").request(GroupAction::Alive);
    third.take_over = true;
    assert!(bench.heartbeat(third).is_ok());
    assert_eq!(bench.describe("g").unwrap().members.len(), 1);
    let leave = Member::new("x", &["orders"]).request(GroupAction::LeaveForRestart);
    assert_eq!(bench.heartbeat(leave).unwrap_err().code, ErrorCode::InvalidRequest);
}
