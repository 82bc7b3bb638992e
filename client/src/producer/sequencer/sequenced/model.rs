//! The lane against a model of a partition: connections that die while requests are still on their way, leaders that change
//! and lose what was not committed, replies that overtake each other. Nothing twice, nothing out of order, nothing
//! acknowledged that is not there, nothing failed that is; and without a batch that is given up, nothing fails at all.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::ProducerId;
use proptest::prelude::*;

type Batch = u32;

#[derive(Debug, Clone, Copy)]
struct Request {
    number: u64,
    batch: Batch,
    stamp: Stamp,
}

/// Records of a batch: not one, so that sequences are not numbers of batches.
const RECORDS: u32 = 3;

/// What a leader has, and what it remembers of the producer by that.
#[derive(Default)]
struct Leader {
    log: Vec<(Batch, Stamp)>,
    committed: usize,
    /// Batches whose producers wait: the attempt, and the end that has to be committed.
    waiting: Vec<(u64, Batch, usize)>,
}

enum Judgement {
    Append,
    Duplicate(usize),
    Gap,
    Fenced,
}

impl Leader {
    fn judge(&self, stamp: Stamp) -> Judgement {
        let Some((_, last)) = self.log.last() else {
            return if stamp.first_sequence == 0 { Judgement::Append } else { Judgement::Gap };
        };
        let remembered = self.log.iter().enumerate().rev().take(PRODUCER_BATCHES_IN_FLIGHT_MAX);
        if let Some((place, _)) = remembered.into_iter().find(|(_, (_, there))| *there == stamp) {
            return Judgement::Duplicate(place + 1);
        }
        let next = match stamp.identity.epoch.cmp(&last.identity.epoch) {
            std::cmp::Ordering::Less => return Judgement::Fenced,
            std::cmp::Ordering::Equal => after(last.first_sequence, RECORDS),
            std::cmp::Ordering::Greater => 0,
        };
        if stamp.first_sequence == next { Judgement::Append } else { Judgement::Gap }
    }
}

struct World {
    lane: SequencedLane<Batch>,
    leader: Leader,
    link: LinkId,
    now: Instant,
    /// Time that a batch has; zero: enough.
    patience: Duration,
    may_refuse: bool,
    next_batch: Batch,
    next_epoch: u16,
    /// Requests on their way, in order on each connection, the live one last. Those of a dead one arrive all the same.
    pipes: Vec<VecDeque<Request>>,
    replies: Vec<(u64, Verdict<u64>)>,
    acknowledged: BTreeSet<Batch>,
    unknown: BTreeSet<Batch>,
    failed: BTreeSet<Batch>,
}

impl World {
    fn new(patience: Duration, may_refuse: bool) -> Self {
        let policy = RetryPolicy { first: Duration::from_millis(1), max: Duration::from_millis(1) };
        Self {
            lane: SequencedLane::new(policy),
            leader: Leader::default(),
            link: LinkId(0),
            now: Instant::now(),
            patience,
            may_refuse,
            next_batch: 0,
            next_epoch: 0,
            pipes: vec![VecDeque::new()],
            replies: Vec::new(),
            acknowledged: BTreeSet::new(),
            unknown: BTreeSet::new(),
            failed: BTreeSet::new(),
        }
    }

    fn step(&mut self, choice: u8, detail: u8) {
        match choice % 16 {
            0..=3 => self.send(),
            4..=6 => self.leader_takes(detail),
            7 | 8 => self.commit(),
            9..=11 => self.reply_arrives(detail),
            12 => self.a_reply_is_late(detail),
            13 if detail.is_multiple_of(2) => self.connection_dies(detail),
            14 if detail.is_multiple_of(4) => self.leader_changes(detail),
            15 => self.identify(),
            _ => self.time_passes(Duration::from_millis(u64::from(detail % 8))),
        }
        self.lane.check_invariants();
        self.check();
    }

    fn identify(&mut self) {
        if self.lane.wants_identity().is_some() && self.lane.in_flight_count() == 0 {
            self.lane.adopt(Identity { id: ProducerId(1), epoch: self.next_epoch });
            self.next_epoch += 1;
        }
    }

    fn time_passes(&mut self, time: Duration) {
        self.now += time;
        let mut done = Vec::new();
        self.lane.expire(self.now, &mut done);
        self.note(done);
    }

    fn send(&mut self) {
        if !self.lane.can_send(self.link, self.now) {
            return;
        }
        let (batch, ticket) = self.lane.take_again().unwrap_or_else(|| {
            self.next_batch += 1;
            let patience =
                if self.patience.is_zero() { Duration::from_secs(1_000_000) } else { self.patience };
            let stamp = self.lane.next_stamp();
            let deadline = self.now + patience;
            (self.next_batch, Ticket { deadline, stamp, record_count: RECORDS, maybe_there: false })
        });
        let number = self.lane.send(self.link, batch, ticket);
        let request = Request { number, batch, stamp: ticket.stamp.unwrap() };
        self.pipes.last_mut().unwrap().push_back(request);
    }

    /// The leader looks at the oldest request of some connection, dead or alive.
    fn leader_takes(&mut self, detail: u8) {
        let count = self.pipes.len();
        let pipe = if detail.is_multiple_of(3) { usize::from(detail) % count } else { count - 1 };
        let Some(Request { number, batch, stamp }) = self.pipes[pipe].pop_front() else { return };
        let there = self.leader.log.iter().any(|(other, _)| *other == batch);
        let verdict = match self.leader.judge(stamp) {
            _ if detail % 16 == 5 => refused(ErrorCode::Busy),
            _ if detail % 16 == 7 && self.may_refuse && !there => refused(ErrorCode::BatchTooLarge),
            Judgement::Append => {
                self.leader.log.push((batch, stamp));
                return self.leader.waiting.push((number, batch, self.leader.log.len()));
            }
            Judgement::Duplicate(end) => return self.leader.waiting.push((number, batch, end)),
            Judgement::Gap => Verdict::Gap(Error::from_code(ErrorCode::SequenceGap, "")),
            Judgement::Fenced => Verdict::Fenced(Error::from_code(ErrorCode::ProducerFenced, "")),
        };
        self.reply(number, verdict);
    }

    fn reply(&mut self, number: u64, verdict: Verdict<u64>) {
        self.replies.push((number, verdict));
    }

    fn commit(&mut self) {
        self.leader.committed = self.leader.log.len();
        for (number, batch, end) in std::mem::take(&mut self.leader.waiting) {
            assert!(end <= self.leader.committed);
            self.reply(number, Verdict::Acknowledged(u64::from(batch)));
        }
    }

    fn a_reply_is_late(&mut self, detail: u8) {
        if !self.leader.waiting.is_empty() {
            let place = usize::from(detail) % self.leader.waiting.len();
            let (number, _, _) = self.leader.waiting.swap_remove(place);
            self.reply(number, Verdict::Unknown(Error::from_code(ErrorCode::TimedOut, "")));
        }
    }

    fn reply_arrives(&mut self, detail: u8) {
        if !self.replies.is_empty() {
            let (number, verdict) = self.replies.swap_remove(usize::from(detail) % self.replies.len());
            self.resolve(number, verdict);
        }
    }

    /// Some requests never left. The others may reach the leader at any time later; no reply comes back.
    fn connection_dies(&mut self, detail: u8) {
        let pipe = self.pipes.last_mut().unwrap();
        let out = usize::from(detail / 4) % (pipe.len() + 1);
        let unsent: BTreeSet<u64> = pipe.drain(out..).map(|request| request.number).collect();
        self.replies.clear();
        self.pipes.push(VecDeque::new());
        self.link = LinkId(self.link.0 + 1);
        let mut waiting: Vec<u64> = self.lane.in_flight.iter().map(|flight| flight.number).collect();
        let turn = usize::from(detail) % waiting.len().max(1);
        waiting.rotate_left(turn);
        for number in waiting {
            if self.lane.in_flight.iter().any(|flight| flight.number == number && flight.failure.is_none()) {
                let error = Error::new(ErrorKind::Connection, "");
                self.resolve(number, Verdict::Lost { error, sent: !unsent.contains(&number) });
            }
        }
    }

    /// Another broker leads: it has everything that is committed, and some of the rest.
    fn leader_changes(&mut self, detail: u8) {
        let uncommitted = self.leader.log.len() - self.leader.committed;
        let kept = usize::from(detail / 4) % (uncommitted + 1);
        self.leader.log.truncate(self.leader.committed + kept);
        self.leader.waiting.clear();
        // What is on its way to the old leader does not reach the new one.
        self.pipes = vec![VecDeque::new()];
        self.link = LinkId(self.link.0 + 1);
        let mut done = Vec::new();
        self.lane.recall(&Error::new(ErrorKind::NotReady, "another leader"), self.now, &mut done);
        self.note(done);
        assert_eq!(self.lane.in_flight_count(), 0, "everything was recalled");
    }

    fn resolve(&mut self, number: u64, verdict: Verdict<u64>) {
        let mut done = Vec::new();
        self.lane.resolve(number, verdict, self.now, 0, &mut done);
        self.note(done);
    }

    fn note(&mut self, done: Vec<Done<Batch, u64>>) {
        for Done { batch, outcome } in done {
            let set = match outcome {
                Ok(acknowledged) => {
                    assert_eq!(acknowledged, u64::from(batch), "each batch hears its own acknowledgement");
                    &mut self.acknowledged
                }
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => &mut self.unknown,
                Err(_) => &mut self.failed,
            };
            assert!(set.insert(batch), "a batch ends once");
        }
    }

    fn check(&self) {
        let log: Vec<Batch> = self.leader.log.iter().map(|(batch, _)| *batch).collect();
        assert!(log.is_sorted_by(|a, b| a < b), "in order and nothing twice: {log:?}");
        let committed: BTreeSet<Batch> = log[..self.leader.committed].iter().copied().collect();
        assert!(self.acknowledged.is_subset(&committed), "what is acknowledged is committed");
        assert!(log.iter().all(|batch| !self.failed.contains(batch)), "what failed is not there");
    }

    /// Lets everything come to its end without further trouble.
    fn settle(&mut self) {
        for _ in 0..3_000 {
            self.time_passes(Duration::from_millis(1));
            self.identify();
            if self.lane.has_again() {
                self.send();
            }
            for pipe in 0..self.pipes.len() {
                if !self.pipes[pipe].is_empty() {
                    // Not a multiple of three, and nothing is refused; then some other connection.
                    self.pipes.swap(pipe, 0);
                    let detail = if self.pipes.len() > 1 { 0 } else { 1 };
                    self.leader_takes(detail);
                    self.pipes.swap(pipe, 0);
                }
            }
            self.commit();
            self.reply_arrives(0);
            self.check();
        }
        let all = self.acknowledged.len() + self.unknown.len() + self.failed.len();
        assert_eq!(all, self.next_batch as usize, "every batch has ended");
    }
}

fn refused(code: ErrorCode) -> Verdict<u64> {
    Verdict::Refused { error: Error::from_code(code, ""), retriable: code.is_retriable(), next_number: None }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn h13_without_a_batch_given_up_every_batch_is_there_exactly_once(
        steps in prop::collection::vec(any::<(u8, u8)>(), 1..300),
    ) {
        let mut world = World::new(Duration::ZERO, false);
        for (choice, detail) in steps {
            world.step(choice, detail);
        }
        world.settle();
        prop_assert!(world.failed.is_empty() && world.unknown.is_empty(), "a pause is all there is to see");
    }

    #[test]
    fn h13_batches_given_up_leave_no_duplicate_and_no_disorder(
        patience in 1u64..60,
        steps in prop::collection::vec(any::<(u8, u8)>(), 1..300),
    ) {
        let mut world = World::new(Duration::from_millis(patience), true);
        for (choice, detail) in steps {
            world.step(choice, detail);
        }
        world.settle();
    }
}
