use super::*;
use std::time::Duration;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::TopicId;

use crate::error::ErrorKind;

const LINK: LinkId = LinkId(1);
const POLICY: RetryPolicy = RetryPolicy { first: Duration::from_millis(10), max: Duration::from_millis(10) };

fn topic(name: &str) -> Topic {
    Topic { name: name.into(), id: TopicId(7) }
}

/// Room for this many bytes over all partitions, none of which may have more than its share.
fn empty(scope: Scope, bytes: u64, repair_timeout: Duration) -> Feed {
    Feed::new(scope, Memory { bytes, share_min: 0 }, POLICY, repair_timeout)
}

fn feed(share: u64) -> (Feed, Instant) {
    let mut feed = empty(Scope::Topic, share * 2, Duration::ZERO);
    for partition in [4, 6] {
        feed.add(topic("t"), PartitionId(partition), StartAt::Latest, Offset(0));
    }
    (feed, Instant::now())
}

fn subscribe(feed: &mut Feed, now: Instant) -> Vec<Subscribing> {
    let mut due = Vec::new();
    feed.take_due(now, &mut due);
    due.into_iter().filter_map(|index| feed.subscribe(index, LINK)).collect()
}

fn end(code: ErrorCode) -> End {
    End { error: Error::from_code(code, ""), corrupt: None, log_range: None }
}

fn bytes(length: usize) -> Bytes {
    Bytes::from(vec![0; length])
}

#[test]
fn partitions_take_turns() {
    let (mut feed, now) = feed(1000);
    let ids: Vec<u64> = subscribe(&mut feed, now).iter().map(|subscribing| subscribing.id).collect();
    for (id, length) in [(ids[0], 1), (ids[0], 2), (ids[0], 3), (ids[1], 4)] {
        feed.push(id, Offset(9), bytes(length));
    }
    let mut lengths = Vec::new();
    while let Taken::Chunk(chunk) = feed.take() {
        lengths.push(chunk.bytes.len());
    }
    assert_eq!(lengths, [1, 4, 2, 3]);
    assert!(matches!(feed.take(), Taken::Nothing));
    assert_eq!(feed.high_watermark(0), Some(Offset(9)));
}

#[test]
fn what_a_partition_holds_and_its_credit_never_exceed_its_share() {
    let (mut feed, now) = feed(1000);
    let subscribing = subscribe(&mut feed, now)[0].clone();
    assert_eq!(subscribing.credit, 1000);
    let (mut received, mut limit, mut held) = (0, subscribing.credit, 0);
    for step in 0..200u64 {
        // The broker sends whole batches while it has credit.
        while received < limit {
            let length = 50 + (step * 37) % 100;
            received += length;
            held += length;
            feed.push(subscribing.id, Offset(0), bytes(length as usize));
        }
        assert!(held < 1000 + 150, "at most one batch beyond the share: {held}");
        let Taken::Chunk(chunk) = feed.take() else { panic!("nothing") };
        held -= chunk.charged;
        if let Some(grant) = feed.consumed(chunk.part, chunk.generation, chunk.charged) {
            assert_eq!((grant.id, grant.link), (subscribing.id, LINK));
            assert!(grant.limit > limit, "credit only rises");
            limit = grant.limit;
        }
    }
    assert!(received > 10_000, "it goes on: {received}");
}

#[test]
fn a_new_subscription_counts_what_is_still_held() {
    let (mut feed, now) = feed(1000);
    let id = subscribe(&mut feed, now)[0].id;
    feed.push(id, Offset(0), bytes(700));
    feed.link_lost(LINK, now, 0);
    assert!(subscribe(&mut feed, now).is_empty(), "backoff");
    let again = subscribe(&mut feed, now + Duration::from_millis(10));
    assert_eq!((again[0].credit, again[1].credit), (300, 1000));
    assert!(again[0].id > id, "ids are never used twice");
    assert_eq!(feed.push(id, Offset(5), bytes(1)), Pushed::Nothing, "what comes late is dropped");
}

#[test]
fn errors_stand_behind_what_was_received_and_stop_only_their_partition() {
    let (mut feed, now) = feed(1000);
    let ids: Vec<u64> = subscribe(&mut feed, now).iter().map(|subscribing| subscribing.id).collect();
    feed.push(ids[0], Offset(0), bytes(1));
    assert!(!feed.ended(ids[0], end(ErrorCode::CorruptRange), now, 0));
    assert!(matches!(feed.take(), Taken::Chunk(_)));
    let Taken::Error(error) = feed.take() else { panic!("no error") };
    assert_eq!(error.kind(), ErrorKind::CorruptRange);
    assert!(matches!(feed.take(), Taken::Nothing), "the other partition goes on");
    feed.ended(ids[1], end(ErrorCode::OffsetOutOfRange), now, 0);
    assert!(matches!(feed.take(), Taken::Error(_)));
    assert!(matches!(feed.take(), Taken::Over));
    assert_eq!(feed.seek(1, StartAt::Offset(Offset(3)), Offset(3)), None, "nothing to unsubscribe");
    assert_eq!(subscribe(&mut feed, now)[0].offset, Offset(3));
    assert!(matches!(feed.take(), Taken::Nothing));
}

#[test]
fn damage_is_told_only_when_nobody_has_repaired_it_in_time() {
    let patience = Duration::from_secs(1);
    let one = || {
        let mut feed = empty(Scope::Topic, 1000, patience);
        feed.add(topic("t"), PartitionId(4), StartAt::Latest, Offset(0));
        feed
    };
    let mut feed = one();
    let mut now = Instant::now();
    let first = now;
    let mut tries = 0;
    let told = loop {
        let Some(subscribing) = subscribe(&mut feed, now).first().cloned() else {
            now += Duration::from_millis(5);
            continue;
        };
        tries += 1;
        let moved = feed.ended(subscribing.id, end(ErrorCode::CorruptRange), now, 0);
        match feed.take() {
            Taken::Error(error) => break error,
            _ => assert!(moved, "the leader may be another one by now"),
        }
    };
    assert_eq!(told.kind(), ErrorKind::CorruptRange);
    assert!(now - first >= patience && tries > 10, "{tries} tries");
    // Damaged bytes likewise: they are asked for again from where they were.
    let mut feed = one();
    let id = subscribe(&mut feed, now)[0].id;
    feed.push(id, Offset(9), bytes(7));
    assert_eq!(feed.read_again(0, (Offset(3), now), now, 0), Ok(Some((LINK, id))));
    assert!(matches!(feed.take(), Taken::Nothing), "what was received is gone");
    assert_eq!(subscribe(&mut feed, now + POLICY.max)[0].offset, Offset(3));
    assert_eq!(feed.read_again(0, (Offset(3), now), now + patience, 0), Err(Impatient));
}

#[test]
fn a_fatal_error_is_told_once_and_comes_first() {
    let (mut feed, now) = feed(1000);
    let id = subscribe(&mut feed, now)[0].id;
    feed.push(id, Offset(0), bytes(1));
    feed.ended(id, end(ErrorCode::NotAuthorized), now, 0);
    assert!(matches!(feed.take(), Taken::Error(error) if error.kind() == ErrorKind::NotAuthorized));
    assert!(matches!(feed.take(), Taken::Over));
}

#[test]
fn a_leader_elsewhere_asks_for_metadata_and_a_moment_does_not() {
    let (mut feed, now) = feed(1000);
    let ids: Vec<u64> = subscribe(&mut feed, now).iter().map(|subscribing| subscribing.id).collect();
    assert!(feed.ended(ids[0], end(ErrorCode::NotLeader), now, 0));
    assert!(!feed.ended(ids[1], end(ErrorCode::LeaderNotReady), now, 0));
    assert_eq!(subscribe(&mut feed, now + Duration::from_millis(10)).len(), 2);
}

#[test]
fn a_seek_while_a_subscription_is_prepared_wins() {
    let (mut feed, now) = feed(1000);
    let mut due = Vec::new();
    feed.take_due(now, &mut due);
    feed.seek(0, StartAt::Offset(Offset(9)), Offset(9));
    assert_eq!(feed.subscribe(0, LINK), None, "it was prepared for the old position");
    assert_eq!(subscribe(&mut feed, now)[0].offset, Offset(9));
}

#[test]
fn a_broker_that_ignores_credit_is_stopped_before_it_fills_the_memory() {
    let (mut feed, now) = feed(1000);
    let id = subscribe(&mut feed, now)[0].id;
    let mut held = 0;
    while feed.push(id, Offset(0), bytes(1 << 20)) != Pushed::BeyondCredit {
        held += 1 << 20;
        assert!(held <= 1000 + FRAME_BYTES_MAX + (1 << 20), "{held} bytes are held");
    }
}

#[test]
fn what_was_listed_before_a_seek_does_not_hide_the_others() {
    let (mut feed, now) = feed(1000);
    let ids: Vec<u64> = subscribe(&mut feed, now).iter().map(|subscribing| subscribing.id).collect();
    feed.push(ids[0], Offset(0), bytes(1));
    feed.push(ids[1], Offset(0), bytes(2));
    feed.seek(0, StartAt::Offset(Offset(9)), Offset(9));
    assert!(matches!(feed.take(), Taken::Chunk(chunk) if chunk.part == 1));
}

#[test]
fn partitions_come_and_go_while_the_others_flow() {
    let (mut feed, now) = feed(1000);
    let first = subscribe(&mut feed, now);
    feed.push(first[0].id, Offset(0), bytes(10));
    feed.push(first[1].id, Offset(0), bytes(20));
    assert_eq!(feed.remove(0), Some((LINK, first[0].id)));
    assert_eq!(feed.push(first[0].id, Offset(0), bytes(5)), Pushed::Nothing, "what comes late is dropped");
    let added = feed.add(topic("other"), PartitionId(4), StartAt::Latest, Offset(7));
    assert_eq!(added, 2, "a place is never used again");
    let second = subscribe(&mut feed, now);
    assert_eq!((second.len(), second[0].offset, &*second[0].topic.name), (1, Offset(7), "other"));
    let Taken::Chunk(chunk) = feed.take() else { panic!("nothing") };
    assert_eq!((chunk.part, chunk.bytes.len()), (1, 20), "nothing of what was removed is given out");
    assert!(matches!(feed.take(), Taken::Nothing));
    // Whatever still concerns it finds nothing.
    assert_eq!(feed.remove(0), None);
    assert_eq!(feed.consumed(0, 0, 10), None);
    assert_eq!(feed.subscribe(0, LINK), None);
    assert_eq!(feed.moved(0, None), None);
    assert_eq!(feed.charged, 20 + second[0].credit + (1000 - 20));
}

/// Brokers send all that they have credit for, the application takes everything: how many bytes are here and under way.
fn flood(feed: &mut Feed, now: Instant, received: &mut BTreeMap<u64, (u64, u64)>) -> u64 {
    for Subscribing { id, credit, .. } in subscribe(feed, now) {
        received.insert(id, (0, credit));
    }
    let mut most = 0;
    for _ in 0..50 {
        for (id, (sent, limit)) in received.iter_mut().filter(|(_, (sent, limit))| sent < limit) {
            *sent += 100;
            let _limit = limit;
            feed.push(*id, Offset(0), bytes(100));
        }
        most = most.max(feed.charged);
        while let Taken::Chunk(chunk) = feed.take() {
            if let Some(grant) = feed.consumed(chunk.part, chunk.generation, chunk.charged) {
                received.insert(grant.id, (received[&grant.id].0, grant.limit));
            }
        }
    }
    most
}

#[test]
fn however_many_partitions_come_and_go_the_memory_is_bounded_and_all_get_their_share() {
    const BYTES: u64 = 100_000;
    const LEAST: u64 = 200;
    let memory = Memory { bytes: BYTES, share_min: LEAST };
    let mut feed = Feed::new(Scope::Group, memory, POLICY, Duration::ZERO);
    let now = Instant::now();
    let mut received = BTreeMap::new();
    for count in 1..=60u64 {
        feed.add(topic("t"), PartitionId(count as u32), StartAt::Latest, Offset(0));
        let most = flood(&mut feed, now, &mut received);
        // One batch beyond its credit each, and the least share of each.
        assert!(most <= BYTES + count * (LEAST + 100), "{most} bytes with {count} partitions");
    }
    let share = BYTES / 60;
    let part = |feed: &Feed, index| feed.parts[&index].charge();
    let all: Vec<u64> = (0..60).map(|index| part(&feed, index)).collect();
    assert!(all.iter().all(|charge| (share / 2..=share + 100).contains(charge)), "{all:?} of {share}");
    for index in 0..59 {
        feed.remove(index);
    }
    assert_eq!(feed.charged, part(&feed, 59));
    received.retain(|id, _| feed.by_id.contains_key(id));
    flood(&mut feed, now, &mut received);
    assert!(part(&feed, 59) > BYTES * 3 / 4, "the last one has all of it: {}", part(&feed, 59));
}

#[test]
fn a_member_goes_on_at_the_nearest_offset_and_is_told() {
    let mut feed = empty(Scope::Group, 1000, Duration::ZERO);
    let mut now = Instant::now();
    for (offset, nearest) in [(3, 10), (95, 90)] {
        let index = feed.add(topic("t"), PartitionId(0), StartAt::Offset(Offset(offset)), Offset(offset));
        let id = subscribe(&mut feed, now)[0].id;
        let range = Offset(10)..Offset(90);
        feed.ended(id, End { log_range: Some(range.clone()), ..end(ErrorCode::OffsetOutOfRange) }, now, 0);
        let clamp = Clamp { wanted: Offset(offset), log_range: range, position: Offset(nearest) };
        assert!(matches!(feed.take(), Taken::Clamped(at, told) if at == index && told == clamp));
        now += POLICY.max;
        assert_eq!(subscribe(&mut feed, now)[0].offset, Offset(nearest));
        feed.remove(index);
    }
    // A broker that does not say where the log is: it is asked.
    let index = feed.add(topic("t"), PartitionId(0), StartAt::Offset(Offset(3)), Offset(3));
    let id = subscribe(&mut feed, now)[0].id;
    assert_eq!(feed.lookup(index), None);
    feed.ended(id, end(ErrorCode::OffsetOutOfRange), now, 0);
    let (lookup, generation) = feed.lookup(index).unwrap();
    assert_eq!(lookup, Lookup::Range);
    feed.found_range(index, generation, Offset(5)..Offset(9), (now, 0));
    assert!(matches!(feed.take(), Taken::Clamped(_, Clamp { position: Offset(5), .. })));
    assert_eq!(feed.lookup(index), None);
    assert!(matches!(feed.take(), Taken::Nothing));
}

#[test]
fn a_member_goes_on_without_a_topic_that_it_cannot_have() {
    let mut feed = empty(Scope::Group, 1000, Duration::ZERO);
    let now = Instant::now();
    assert!(matches!(feed.take(), Taken::Nothing), "a member may have nothing");
    for partition in 0..2 {
        feed.add(topic("secret"), PartitionId(partition), StartAt::Latest, Offset(0));
    }
    feed.add(topic("open"), PartitionId(0), StartAt::Latest, Offset(0));
    let all = subscribe(&mut feed, now);
    for _ in 0..2 {
        feed.fail("secret", Error::new(ErrorKind::NotAuthorized, "no"));
    }
    assert!(matches!(feed.take(), Taken::Error(_)));
    assert!(matches!(feed.take(), Taken::Nothing), "told once");
    feed.push(all[2].id, Offset(0), bytes(1));
    assert!(matches!(feed.take(), Taken::Chunk(_)));
    assert!(subscribe(&mut feed, now + POLICY.max).is_empty());
}
