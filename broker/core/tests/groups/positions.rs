//! Positions: who may commit, what operators may change, what expires.

use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::group::config::GroupConfig;
use highwater_broker_core::group::{Reply, Request};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::{
    AlterGroupOffsetsRequest, AlteredOffset, FetchOffsetsRequest, GroupAction, OffsetTarget,
};

use crate::bench::{Bench, Member, at};

fn alter(bench: &mut Bench, dry_run: bool, partition: u32, offset: Option<u64>) -> AlteredOffset {
    let topic_id = Some(at("orders", 0).topic_id.into());
    let targets = vec![OffsetTarget { topic_id, partition, offset }];
    let request = AlterGroupOffsetsRequest { group: "g".to_owned(), dry_run, targets };
    match bench.ask(&Request::Alter(request)).unwrap() {
        Reply::Alter(mut reply) => reply.results.remove(0),
        other => panic!("{other:?}"),
    }
}

fn committed(bench: &mut Bench) -> Vec<(u32, Option<u64>)> {
    let request = FetchOffsetsRequest { group: "g".to_owned(), ..FetchOffsetsRequest::default() };
    match bench.ask(&Request::Fetch(request)).unwrap() {
        Reply::Fetch(reply) => reply.offsets.iter().map(|found| (found.partition, found.offset)).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_members_anybody_commits_what_exists() {
    let mut bench = Bench::new(&[("orders", 2)]);
    assert_eq!(bench.commit("", 0, at("orders", 1), 7).unwrap(), 0);
    assert_eq!(bench.commit("", 0, at("orders", 2), 7).unwrap(), ErrorCode::UnknownPartition.code());
    assert_eq!(bench.commit("", 0, at("gone", 0), 7).unwrap(), ErrorCode::UnknownTopic.code());
    assert_eq!(committed(&mut bench), [(1, Some(7))]);
    assert_eq!(bench.describe("g").unwrap().state, "empty");
}

#[test]
fn operators_change_what_nobody_owns_and_see_it_before() {
    let mut bench = Bench::new(&[("orders", 2)]);
    assert_eq!(bench.commit("", 0, at("orders", 0), 7).unwrap(), 0);
    let dry = alter(&mut bench, true, 0, Some(3));
    assert_eq!((dry.error, dry.before, dry.after), (0, Some(7), Some(3)));
    assert_eq!(committed(&mut bench), [(0, Some(7))], "a dry run changes nothing");
    assert_eq!(alter(&mut bench, false, 0, Some(3)).error, 0);
    let mut a = Member::new("a", &["orders"]);
    a.beat(&mut bench).unwrap();
    let owned = alter(&mut bench, false, 0, Some(1));
    assert_eq!((owned.error, owned.before, owned.after), (ErrorCode::GroupNotEmpty.code(), Some(3), Some(3)));
    assert_eq!(bench.ask(&Request::Delete("g".into())).unwrap_err().code, ErrorCode::GroupNotEmpty);
    bench.heartbeat(a.request(GroupAction::Leave)).unwrap();
    assert_eq!(alter(&mut bench, false, 0, None).after, None);
    assert_eq!(committed(&mut bench), []);
    bench.ask(&Request::Delete("g".into())).unwrap();
    assert_eq!(bench.shard.records().count(), 0);
    assert_eq!(bench.describe("g").unwrap_err().code, ErrorCode::UnknownGroup);
}

/// Positions go when the group has been without members for long, or nobody wants the topic any more; never because the
/// coordinator knows few topics (hole H12).
#[test]
fn h12_positions_expire_by_age_only() {
    let config = GroupConfig { offsets_retention: Duration::from_secs(3600), ..GroupConfig::default() };
    let mut bench = Bench::with_config(config, &[("orders", 1), ("other", 1)]);
    let mut a = Member::new("a", &["orders"]);
    assert_eq!(bench.commit("", 0, at("other", 0), 1).unwrap(), 0);
    a.beat(&mut bench).unwrap();
    assert_eq!(bench.commit("a", a.generation, at("orders", 0), 1).unwrap(), 0);
    let topics = std::mem::take(&mut bench.topics);
    bench.shard.set_topics(bench.now().mono, Arc::default());
    bench.wait(Duration::from_secs(5));
    assert_eq!(committed(&mut bench).len(), 2, "a broker that knows no topic removes nothing");
    bench.topics = topics;
    bench.shard.set_topics(bench.now().mono, Arc::new(bench.topics.clone()));
    for _ in 0..1500 {
        a.beat(&mut bench).unwrap();
        bench.wait(Duration::from_secs(3));
    }
    assert_eq!(committed(&mut bench), [(0, Some(1))], "what is owned stays, what nobody wants has gone");
    bench.heartbeat(a.request(GroupAction::Leave)).unwrap();
    bench.wait(Duration::from_secs(3000));
    assert_eq!(committed(&mut bench).len(), 1);
    bench.wait(Duration::from_secs(1300));
    assert_eq!(bench.shard.records().count(), 0, "positions first, then the group");
}

#[test]
fn the_speed_of_a_position_is_counted_over_its_commits() {
    let mut bench = Bench::new(&[("orders", 1)]);
    let speed = |bench: &mut Bench| bench.describe("g").unwrap().offsets[0].offsets_per_minute;
    for second in 0..30 {
        assert_eq!(bench.commit("", 0, at("orders", 0), second * 100).unwrap(), 0);
        if second == 0 {
            assert_eq!(speed(&mut bench), None);
        }
        bench.wait(Duration::from_secs(1));
    }
    assert_eq!(speed(&mut bench), Some(6000));
    bench.wait(Duration::from_secs(61));
    assert_eq!(speed(&mut bench), Some(0), "it stands still");
    // A position that is set back counts anew.
    assert_eq!(bench.commit("", 0, at("orders", 0), 5).unwrap(), 0);
    assert_eq!(speed(&mut bench), None);
}
