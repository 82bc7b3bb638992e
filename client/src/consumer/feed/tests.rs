use super::*;
use std::time::Duration;

const LINK: LinkId = LinkId(1);
const POLICY: RetryPolicy = RetryPolicy { first: Duration::from_millis(10), max: Duration::from_millis(10) };

fn feed(share: u64) -> (Feed, Instant) {
    let starts = [(PartitionId(4), Offset(0)), (PartitionId(6), Offset(0))];
    (Feed::new(starts, StartAt::Latest, share, POLICY, Duration::ZERO), Instant::now())
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
    assert_eq!(feed.high_watermark(0), Offset(9));
}

#[test]
fn what_a_partition_holds_and_its_credit_never_exceed_its_share() {
    let (mut feed, now) = feed(1000);
    let subscribing = subscribe(&mut feed, now)[0];
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
    let starts = [(PartitionId(4), Offset(0))];
    let patience = Duration::from_secs(1);
    let mut feed = Feed::new(starts, StartAt::Latest, 1000, POLICY, patience);
    let mut now = Instant::now();
    let first = now;
    let mut tries = 0;
    let told = loop {
        let Some(subscribing) = subscribe(&mut feed, now).first().copied() else {
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
    let mut feed = Feed::new(starts, StartAt::Latest, 1000, POLICY, patience);
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
