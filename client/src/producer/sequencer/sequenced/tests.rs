use super::*;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::ProducerId;
use std::time::Duration;

const LINK: LinkId = LinkId(1);

struct World {
    lane: SequencedLane<char>,
    start: Instant,
    done: Vec<(char, Result<u64, ErrorKind>)>,
}

const fn identity(epoch: u16) -> Identity {
    Identity { id: ProducerId(5), epoch }
}

impl World {
    /// Every batch has ten records, so that sequences are not numbers.
    fn new(batches: &str) -> Self {
        let policy = RetryPolicy { first: Duration::from_millis(10), max: Duration::from_millis(10) };
        let mut lane = SequencedLane::new(policy);
        assert_eq!(lane.wants_identity(), Some(None));
        assert!(!lane.can_send(LINK, Instant::now()), "not without an identity");
        lane.adopt(identity(0));
        let mut world = Self { lane, start: Instant::now(), done: Vec::new() };
        for batch in batches.chars() {
            world.send(batch);
        }
        world
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn send(&mut self, batch: char) -> u64 {
        let deadline = self.start + Duration::from_millis(1000);
        let stamp = self.lane.next_stamp();
        self.lane.send(LINK, batch, Ticket { deadline, stamp, record_count: 10, maybe_there: false })
    }

    fn resolve_at(&mut self, millis: u64, number: u64, verdict: Verdict<u64>) {
        let mut done = Vec::new();
        self.lane.resolve(number, verdict, self.at(millis), 0, &mut done);
        self.lane.check_invariants();
        self.note(done);
    }

    fn note(&mut self, done: Vec<Done<char, u64>>) {
        self.done.extend(done.into_iter().map(|d| (d.batch, d.outcome.map_err(|error| error.kind()))));
    }

    fn resolve(&mut self, number: u64, verdict: Verdict<u64>) {
        self.resolve_at(0, number, verdict);
    }

    /// Sends what goes next again over `link`; returns batch, epoch, sequence and number.
    fn again(&mut self, link: LinkId, millis: u64) -> (char, u16, u32, u64) {
        assert!(self.lane.can_send(link, self.at(millis)));
        let (batch, ticket) = self.lane.take_again().unwrap();
        let stamp = ticket.stamp.unwrap();
        (batch, stamp.identity.epoch, stamp.first_sequence, self.lane.send(link, batch, ticket))
    }
}

fn ok() -> Verdict<u64> {
    Verdict::Acknowledged(7)
}

fn refused(code: ErrorCode) -> Verdict<u64> {
    Verdict::Refused { error: Error::from_code(code, ""), retriable: code.is_retriable(), next_number: None }
}

fn gap() -> Verdict<u64> {
    Verdict::Gap(Error::from_code(ErrorCode::SequenceGap, ""))
}

fn unknown() -> Verdict<u64> {
    Verdict::Unknown(Error::from_code(ErrorCode::TimedOut, ""))
}

fn lost(sent: bool) -> Verdict<u64> {
    Verdict::Lost { error: Error::new(ErrorKind::Connection, "reset"), sent }
}

#[test]
fn what_a_dead_connection_leaves_open_goes_again_with_the_same_sequences() {
    let mut world = World::new("abc");
    world.resolve(0, ok());
    world.resolve(2, lost(true));
    assert!(!world.lane.can_send(LinkId(2), world.at(100)), "one batch is not answered yet");
    world.resolve(1, lost(true));
    assert_eq!(world.done, [('a', Ok(7))], "nothing is reported");
    assert!(!world.lane.can_send(LinkId(2), world.at(4)), "backoff");
    assert_eq!(world.again(LinkId(2), 10), ('b', 0, 10, 3));
    assert!(!world.lane.can_send(LinkId(2), world.at(10)), "one at a time until one is acknowledged");
    world.resolve(3, ok());
    assert_eq!(world.again(LinkId(2), 10), ('c', 0, 20, 4));
    let new = world.lane.next_stamp().unwrap();
    assert_eq!(new.first_sequence, 30);
}

#[test]
fn an_answer_to_an_attempt_that_was_recalled_is_passed_over() {
    let mut world = World::new("ab");
    let mut done = Vec::new();
    world.lane.recall(&Error::new(ErrorKind::NotReady, "moved"), world.at(0), &mut done);
    world.note(done);
    assert_eq!(world.again(LinkId(2), 0), ('a', 0, 0, 2), "without backoff");
    world.resolve(0, refused(ErrorCode::NotLeader));
    world.resolve(1, gap());
    assert_eq!(world.lane.in_flight_count(), 1);
    world.resolve(2, ok());
    assert_eq!(world.done, [('a', Ok(7))]);
}

#[test]
fn a_time_out_at_the_broker_is_asked_about_again() {
    let mut world = World::new("a");
    world.resolve(0, unknown());
    assert_eq!(world.again(LINK, 10), ('a', 0, 0, 1));
    world.resolve(1, ok());
    assert_eq!(world.done, [('a', Ok(7))]);
}

#[test]
fn a_gap_behind_a_refused_batch_is_only_its_consequence() {
    let mut world = World::new("abc");
    world.resolve(0, refused(ErrorCode::Busy));
    world.resolve(1, gap());
    world.resolve(2, gap());
    assert_eq!(world.lane.wants_identity(), None);
    assert_eq!(world.again(LINK, 10), ('a', 0, 0, 3));
    world.resolve_at(20, 3, ok());
    assert_eq!(world.again(LINK, 20), ('b', 0, 10, 4));
    assert_eq!(world.again(LINK, 20), ('c', 0, 20, 5));
}

#[test]
fn behind_a_batch_that_was_given_up_the_rest_goes_under_the_next_epoch() {
    let mut world = World::new("abc");
    world.resolve(0, refused(ErrorCode::BatchTooLarge));
    assert_eq!(world.done, [('a', Err(ErrorKind::RecordTooLarge))]);
    world.resolve(1, gap());
    world.resolve(2, gap());
    assert_eq!(world.lane.wants_identity(), Some(Some(identity(0))));
    assert!(!world.lane.can_send(LINK, world.at(500)));
    world.lane.adopt(identity(1));
    assert_eq!(world.again(LINK, 10), ('b', 1, 0, 3));
    world.resolve_at(20, 3, ok());
    assert_eq!(world.again(LINK, 20), ('c', 1, 10, 4));
    assert_eq!(world.lane.next_stamp().unwrap().first_sequence, 20);
}

#[test]
fn the_last_batch_gives_its_sequences_back_when_it_is_refused_for_good() {
    let mut world = World::new("ab");
    world.resolve(1, refused(ErrorCode::BatchTooLarge));
    world.resolve(0, ok());
    assert_eq!(world.lane.next_stamp().unwrap().first_sequence, 10);
    // Not if an earlier attempt may have been appended.
    let mut world = World::new("a");
    world.resolve(0, lost(true));
    world.again(LINK, 10);
    world.resolve(1, refused(ErrorCode::BatchTooLarge));
    assert_eq!(world.done, [('a', Err(ErrorKind::OutcomeUnknown))]);
    assert_eq!(world.lane.next_stamp().unwrap().first_sequence, 10);
}

#[test]
fn what_may_still_arrive_under_the_old_epoch_is_reported_and_not_sent_under_the_new_one() {
    let mut world = World::new("abc");
    world.resolve(1, lost(true));
    world.resolve(2, lost(false));
    world.resolve(0, lost(true));
    let mut done = Vec::new();
    // The first is given up: its time is over. The others were sent later and have time left.
    world.lane.again[0].ticket.deadline = world.at(5);
    world.lane.expire(world.at(6), &mut done);
    world.note(done);
    assert_eq!(world.done, [('a', Err(ErrorKind::OutcomeUnknown))]);
    assert_eq!(world.again(LinkId(2), 10).0, 'b');
    world.resolve(3, gap());
    assert_eq!(world.done[1..], [('b', Err(ErrorKind::OutcomeUnknown))]);
    world.lane.adopt(identity(1));
    let (batch, epoch, sequence, _) = world.again(LinkId(2), 30);
    assert_eq!((batch, epoch, sequence), ('c', 1, 0));
}

#[test]
fn a_given_up_batch_that_is_there_after_all_needs_no_new_epoch() {
    let mut world = World::new("ab");
    world.resolve(0, lost(true));
    world.resolve(1, lost(true));
    let mut done: Vec<Done<char, u64>> = Vec::new();
    world.lane.again[0].ticket.deadline = world.at(5);
    world.lane.expire(world.at(6), &mut done);
    let (batch, epoch, sequence, number) = world.again(LinkId(2), 10);
    assert_eq!((batch, epoch, sequence), ('b', 0, 10));
    world.resolve(number, ok());
    assert_eq!(world.lane.wants_identity(), None);
}

#[test]
fn past_the_deadline_a_batch_that_was_never_taken_is_known_not_to_be_there() {
    let mut world = World::new("ab");
    world.resolve(0, refused(ErrorCode::NotEnoughReplicas));
    world.resolve_at(2000, 1, gap());
    assert_eq!(world.done, [('a', Err(ErrorKind::TimedOut)), ('b', Err(ErrorKind::TimedOut))]);
}

#[test]
fn no_more_batches_are_unanswered_than_a_partition_remembers() {
    let mut world = World::new("");
    for _ in 0..PRODUCER_BATCHES_IN_FLIGHT_MAX {
        assert!(world.lane.can_send(LINK, world.at(0)));
        world.send('x');
    }
    assert!(!world.lane.can_send(LINK, world.at(0)));
    world.resolve(4, ok());
    assert!(world.lane.can_send(LINK, world.at(0)));
}

#[test]
fn a_fenced_producer_tells_and_goes_on_under_another_epoch_only() {
    let mut world = World::new("ab");
    world.resolve(0, Verdict::Fenced(Error::from_code(ErrorCode::ProducerFenced, "")));
    world.resolve(1, Verdict::Fenced(Error::from_code(ErrorCode::ProducerFenced, "")));
    assert_eq!(world.done, [('a', Err(ErrorKind::Fenced)), ('b', Err(ErrorKind::Fenced))]);
    assert_eq!(world.lane.wants_identity(), Some(Some(identity(0))));
}

#[test]
fn sequences_wrap_where_signed_numbers_end() {
    assert_eq!(after(SEQUENCES - 1, 1), 0);
    assert_eq!(after(SEQUENCES - 3, 10), 7);
    assert_eq!(after(5, 10), 15);
}

#[test]
fn a_sender_that_stops_says_of_which_batches_the_outcome_is_open() {
    let mut world = World::new("abc");
    world.resolve(1, refused(ErrorCode::Busy));
    let mut done = Vec::new();
    world.lane.abandon(&Error::new(ErrorKind::Closed, "dropped"), &mut done);
    world.note(done);
    let unknown = Err(ErrorKind::OutcomeUnknown);
    assert_eq!(world.done, [('a', unknown), ('b', Err(ErrorKind::Closed)), ('c', unknown)]);
}
