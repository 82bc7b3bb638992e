//! Every bound, at the bound; and what a thousand members cost.

use std::time::{Duration, Instant};

use highwater_broker_core::group::{Event, FenceReason, Request};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::limits::{
    COMMIT_OFFSETS_MAX, GROUP_MEMBERS_MAX, GROUP_PATTERN_BYTES_MAX, GROUP_TOPICS_MAX,
    OFFSET_METADATA_BYTES_MAX,
};
use highwater_protocol::messages::{GroupAction, GroupHeartbeatRequest};

use crate::bench::{Bench, Member, at, commit_request};

fn join(change: impl FnOnce(&mut GroupHeartbeatRequest)) -> Result<(), ErrorCode> {
    let mut bench = Bench::new(&[("orders", 1)]);
    let mut request = Member::new("a", &["orders"]).request(GroupAction::Alive);
    change(&mut request);
    bench.heartbeat(request).map(|_| ()).map_err(|refusal| refusal.code)
}

#[test]
fn joins_are_refused_beyond_their_bounds() {
    let topics = |count: usize| (0..count).map(|n| format!("t{n}")).collect::<Vec<_>>();
    assert_eq!(join(|r| r.subscription.as_mut().unwrap().topics = topics(GROUP_TOPICS_MAX)), Ok(()));
    let too_many = join(|r| r.subscription.as_mut().unwrap().topics = topics(GROUP_TOPICS_MAX + 1));
    assert_eq!(too_many, Err(ErrorCode::InvalidRequest));
    let pattern = |length: usize| Some("p".repeat(length));
    assert_eq!(join(|r| r.subscription.as_mut().unwrap().pattern = pattern(GROUP_PATTERN_BYTES_MAX)), Ok(()));
    let long = join(|r| r.subscription.as_mut().unwrap().pattern = pattern(GROUP_PATTERN_BYTES_MAX + 1));
    assert_eq!(long, Err(ErrorCode::InvalidGroup));
    for (session, expected) in [
        (0, Ok(())),
        (500, Ok(())),
        (499, Err(ErrorCode::InvalidRequest)),
        (1_800_001, Err(ErrorCode::InvalidRequest)),
    ] {
        assert_eq!(join(|r| r.session_timeout_ms = session), expected, "{session}");
    }
    assert_eq!(join(|r| r.subscription = None), Err(ErrorCode::InvalidRequest));
    assert_eq!(join(|r| r.subscription.as_mut().unwrap().topics.clear()), Err(ErrorCode::InvalidRequest));
    assert_eq!(join(|r| r.assignor = Some("best".to_owned())), Err(ErrorCode::InvalidGroup));
    assert_eq!(join(|r| r.action = 9), Err(ErrorCode::InvalidRequest));
    assert_eq!(join(|r| r.group = "a/b".to_owned()), Err(ErrorCode::InvalidGroup));
    assert_eq!(join(|r| r.member_id.clear()), Err(ErrorCode::InvalidGroup));
}

#[test]
fn commits_are_refused_beyond_their_bounds() {
    let mut bench = Bench::new(&[("orders", 1)]);
    let mut request = commit_request("g", "", 0, &[(at("orders", 0), 1)]);
    request.offsets[0].metadata = "m".repeat(OFFSET_METADATA_BYTES_MAX + 1);
    let decision = bench.shard.handle(bench.now(), &Request::Commit(request.clone()));
    assert_eq!(decision.records, []);
    request.offsets[0].metadata.pop();
    let decision = bench.shard.handle(bench.now(), &Request::Commit(request));
    assert_eq!(decision.records.len(), 1);
    let many = vec![(at("orders", 0), 1); COMMIT_OFFSETS_MAX + 1];
    let refused = bench.ask(&Request::Commit(commit_request("g", "", 0, &many))).unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidRequest);
}

/// One that is alive but does not give up what it has to is fenced after its rebalance time-out.
#[test]
fn who_does_not_give_up_in_time_is_fenced() {
    let mut bench = Bench::new(&[("orders", 2)]);
    let (mut a, mut b) = (Member::new("a", &["orders"]), Member::new("b", &["orders"]));
    a.beat(&mut bench).unwrap();
    bench.wait(Duration::from_millis(100));
    b.beat(&mut bench).unwrap();
    let told = bench.heartbeat(a.request(GroupAction::Alive)).unwrap();
    a.generation = told.generation;
    for _ in 0..19 {
        bench.wait(Duration::from_secs(1));
        bench.heartbeat(a.request(GroupAction::Alive)).unwrap();
        b.beat(&mut bench).unwrap();
        assert!(b.owned.is_empty());
    }
    bench.wait(Duration::from_millis(1_100));
    b.beat(&mut bench).unwrap();
    assert_eq!(b.owned.len(), 2);
    let fenced = Event::Fenced { group: "g".into(), member: "a".into(), reason: FenceReason::Rebalance };
    assert!(bench.events.contains(&fenced));
    assert_eq!(a.beat(&mut bench).unwrap_err().code, ErrorCode::UnknownMember);
}

/// Must-show: a thousand members in one group. Joining at once costs few assignments, a heartbeat no record and next to no
/// time.
#[test]
#[expect(clippy::disallowed_methods, reason = "what it costs is measured")]
fn a_thousand_members_join_at_once_and_cost_little() {
    let mut bench = Bench::new(&[("orders", 2000)]);
    bench.checks = false;
    let started = Instant::now();
    let mut members: Vec<Member> = (0..1000).map(|n| Member::new(&format!("m{n:04}"), &["orders"])).collect();
    for member in &mut members {
        let reply = bench.heartbeat(member.request(GroupAction::Alive)).unwrap();
        member.generation = reply.generation;
        bench.wait(Duration::from_millis(1));
    }
    let assignments = bench.events.iter().filter(|event| matches!(event, Event::Assigned { .. })).count();
    assert!(assignments < 100, "{assignments} assignments for a thousand joins");
    for _ in 0..6 {
        bench.wait(Duration::from_secs(1));
        for member in &mut members {
            member.beat(&mut bench).unwrap();
        }
    }
    let settled = started.elapsed();
    bench.shard.check_invariants().unwrap();
    assert!(members.iter().all(|member| member.owned.len() == 2));
    // From here on nothing changes.
    let recorded = bench.log.len();
    let requests: Vec<Request> = members
        .iter()
        .map(|member| {
            let mut request = member.request(GroupAction::Alive);
            request.owned = None;
            Request::Heartbeat { request: Box::new(request), host: "h".into() }
        })
        .collect();
    let started = Instant::now();
    for _ in 0..10 {
        for request in &requests {
            let decision = bench.shard.handle(bench.now(), request);
            assert!(decision.records.is_empty() && decision.reply.is_ok());
            bench.shard.accept(bench.now().mono, &decision);
        }
    }
    let each = started.elapsed() / 10_000;
    println!("1,000 members: {assignments} assignments, settled in {settled:?} of CPU, {each:?} a heartbeat");
    assert_eq!(bench.log.len(), recorded);
    // 1,000 members at 3 s are 333 heartbeats a second: at 20 µs they would be 0.7 % of a core.
    assert!(each < Duration::from_micros(20), "{each:?}");
}

#[test]
fn a_group_has_no_more_members_than_it_may() {
    let mut bench = Bench::new(&[("orders", 1)]);
    bench.checks = false;
    for n in 0..GROUP_MEMBERS_MAX {
        bench.heartbeat(Member::new(&format!("m{n}"), &["orders"]).request(GroupAction::Alive)).unwrap();
    }
    let one_more = Member::new("one-more", &["orders"]).request(GroupAction::Alive);
    assert_eq!(bench.heartbeat(one_more.clone()).unwrap_err().code, ErrorCode::GroupFull);
    bench.heartbeat(Member::new("m7", &["orders"]).request(GroupAction::Leave)).unwrap();
    assert!(bench.heartbeat(one_more).is_ok());
}
