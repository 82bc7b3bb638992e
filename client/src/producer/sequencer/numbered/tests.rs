use super::*;
use crate::error::ErrorKind;
use highwater_protocol::error_code::ErrorCode;

const LINK: LinkId = LinkId(1);

struct World {
    lane: NumberedLane<char>,
    start: Instant,
    done: Vec<(char, Result<u64, ErrorKind>)>,
}

impl World {
    fn new(batches: &str) -> Self {
        let policy = RetryPolicy { first: Duration::from_millis(10), max: Duration::from_millis(10) };
        let mut world = Self { lane: NumberedLane::new(policy), start: Instant::now(), done: Vec::new() };
        for batch in batches.chars() {
            world.send(batch);
        }
        world
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn send(&mut self, batch: char) -> u64 {
        self.lane.send(LINK, batch, self.start + Duration::from_millis(1000))
    }

    fn resolve_at(&mut self, millis: u64, number: u64, verdict: Verdict<u64>) {
        let mut done = Vec::new();
        self.lane.resolve(number, verdict, self.at(millis), 0, &mut done);
        self.lane.check_invariants();
        self.done.extend(done.into_iter().map(|d| (d.batch, d.outcome.map_err(|error| error.kind()))));
    }

    fn resolve(&mut self, number: u64, verdict: Verdict<u64>) {
        self.resolve_at(0, number, verdict);
    }

    /// Sends again what may be, at `millis`; returns batches and numbers.
    fn send_again(&mut self, millis: u64) -> Vec<(char, u64)> {
        assert!(self.lane.can_send(LINK, self.at(millis)));
        let mut sent = Vec::new();
        while let Some((batch, deadline)) = self.lane.take_again() {
            sent.push((batch, self.lane.send(LINK, batch, deadline)));
        }
        sent
    }
}

fn ok() -> Verdict<u64> {
    Verdict::Acknowledged(7)
}

fn refused(code: ErrorCode) -> Verdict<u64> {
    Verdict::Refused { error: Error::from_code(code, ""), retriable: code.is_retriable(), next_number: None }
}

fn out_of_order(next: u64) -> Verdict<u64> {
    let error = Error::from_code(ErrorCode::OutOfOrder, "");
    Verdict::Refused { error, retriable: true, next_number: Some(next) }
}

fn lost(sent: bool) -> Verdict<u64> {
    Verdict::Lost { error: Error::new(ErrorKind::Connection, "reset"), sent }
}

#[test]
fn replies_in_any_order_settle_their_batches() {
    let mut world = World::new("ab");
    world.resolve(1, ok());
    world.resolve(0, ok());
    assert_eq!(world.done, [('b', Ok(7)), ('a', Ok(7))]);
    assert_eq!(world.send('c'), 2);
}

#[test]
fn after_a_refusal_everything_goes_again_in_order_with_the_same_numbers() {
    let mut world = World::new("abcd");
    world.resolve(0, ok());
    world.resolve(1, refused(ErrorCode::Busy));
    assert!(!world.lane.can_send(LINK, world.at(500)), "two batches are not answered yet");
    world.resolve(3, out_of_order(1));
    world.resolve(2, out_of_order(1));
    assert!(!world.lane.can_send(LINK, world.at(4)), "backoff");
    assert_eq!(world.send_again(10), [('b', 1), ('c', 2), ('d', 3)]);
    assert_eq!(world.send('e'), 4);
    assert_eq!(world.done, [('a', Ok(7))]);
}

#[test]
fn out_of_order_may_be_heard_before_its_cause() {
    let mut world = World::new("ab");
    world.resolve(1, out_of_order(0));
    world.resolve(0, refused(ErrorCode::DiskFull));
    assert_eq!(world.send_again(10), [('a', 0), ('b', 1)]);
}

#[test]
fn a_batch_refused_for_good_gives_its_number_to_the_next_one() {
    let mut world = World::new("ab");
    world.resolve(0, refused(ErrorCode::BatchTooLarge));
    world.resolve(1, out_of_order(0));
    assert_eq!(world.done, [('a', Err(ErrorKind::RecordTooLarge))]);
    assert_eq!(world.send_again(10), [('b', 0)]);
}

#[test]
fn a_batch_without_a_known_outcome_is_never_sent_again_but_those_behind_it_go_on() {
    let mut world = World::new("abc");
    world.resolve(0, lost(true));
    world.resolve(2, lost(false));
    world.resolve(1, lost(true));
    assert_eq!(world.done, [('a', Err(ErrorKind::OutcomeUnknown)), ('b', Err(ErrorKind::OutcomeUnknown))]);
    let next = LinkId(2);
    assert!(world.lane.can_send(next, world.at(10)));
    let (batch, deadline) = world.lane.take_again().unwrap();
    assert_eq!((batch, world.lane.send(next, batch, deadline)), ('c', 0), "numbers start again");
}

#[test]
fn behind_a_refused_batch_nothing_can_have_been_appended_even_if_the_connection_dies() {
    let mut world = World::new("ab");
    world.resolve(0, refused(ErrorCode::Busy));
    world.resolve(1, lost(true));
    assert_eq!(world.done, []);
    assert_eq!(world.send_again(10), [('a', 0), ('b', 1)]);
    // The broker told with the second reply what it takes next: so the first was refused too.
    let mut world = World::new("ab");
    world.resolve(1, out_of_order(0));
    world.resolve(0, lost(true));
    assert_eq!(world.done, []);
    assert_eq!(world.send_again(10), [('a', 0), ('b', 1)]);
}

#[test]
fn an_unknown_outcome_keeps_its_number_unless_the_broker_says_otherwise() {
    let unknown = || Verdict::Unknown(Error::from_code(ErrorCode::TimedOut, ""));
    let mut world = World::new("ab");
    world.resolve(0, unknown());
    world.resolve(1, ok());
    assert_eq!(world.send('c'), 2);
    let mut world = World::new("ab");
    world.resolve(0, unknown());
    world.resolve(1, out_of_order(0));
    assert_eq!(world.send_again(10), [('b', 0)]);
}

#[test]
fn what_was_refused_before_what_still_waits_goes_first() {
    let mut world = World::new("abc");
    for number in 0..3 {
        world.resolve(number, lost(false));
    }
    // Only the first goes out before it is refused again.
    let (batch, deadline) = world.lane.take_again().unwrap();
    world.lane.send(LINK, batch, deadline);
    world.resolve_at(20, 0, refused(ErrorCode::Busy));
    assert_eq!(world.send_again(40), [('a', 0), ('b', 1), ('c', 2)]);
}

#[test]
fn past_the_delivery_deadline_a_refused_batch_ends() {
    let mut world = World::new("ab");
    world.resolve(0, refused(ErrorCode::DiskFull));
    world.resolve_at(2000, 1, out_of_order(0));
    assert_eq!(world.done, [('a', Err(ErrorKind::TimedOut)), ('b', Err(ErrorKind::TimedOut))]);
    let mut world = World::new("a");
    world.resolve(0, refused(ErrorCode::DiskFull));
    let mut done: Vec<Done<char, u64>> = Vec::new();
    world.lane.expire(world.at(999), &mut done);
    assert!(done.is_empty());
    world.lane.expire(world.at(1000), &mut done);
    assert_eq!(done[0].outcome.as_ref().unwrap_err().code(), Some(ErrorCode::DiskFull), "it says why");
    assert!(world.lane.is_empty());
}

#[test]
fn a_batch_that_was_passed_over_is_not_sent_behind_its_successor() {
    let mut world = World::new("ab");
    world.resolve(0, refused(ErrorCode::Busy));
    world.resolve(1, ok());
    assert_eq!(world.done, [('b', Ok(7)), ('a', Err(ErrorKind::Busy))]);
    assert!(world.lane.is_empty());
}
