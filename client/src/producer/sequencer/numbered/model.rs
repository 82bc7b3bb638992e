//! The lane against a model of a broker that refuses, loses replies and loses connections at random: nothing twice, nothing
//! out of order, nothing acknowledged that is not there, nothing failed that is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::error::ErrorKind;
use highwater_protocol::error_code::ErrorCode;
use proptest::prelude::*;

type Batch = u32;

/// What a partition's leader does with numbered batches, per connection.
#[derive(Default)]
struct Leader {
    log: Vec<Batch>,
    expected: BTreeMap<LinkId, u64>,
}

struct World {
    lane: NumberedLane<Batch>,
    leader: Leader,
    link: LinkId,
    now: Instant,
    deadline: Instant,
    next_batch: Batch,
    /// Requests on their way, in order; the flag: whether a byte is out.
    requests: VecDeque<(u64, Batch)>,
    /// Replies on their way, which may overtake each other.
    replies: Vec<(u64, Verdict<u64>)>,
    acknowledged: BTreeSet<Batch>,
    unknown: BTreeSet<Batch>,
    failed: BTreeSet<Batch>,
}

impl World {
    fn new() -> Self {
        let policy = RetryPolicy { first: Duration::from_millis(1), max: Duration::from_millis(1) };
        let now = Instant::now();
        Self {
            lane: NumberedLane::new(policy),
            leader: Leader::default(),
            link: LinkId(0),
            now,
            deadline: now + Duration::from_secs(1_000_000),
            next_batch: 0,
            requests: VecDeque::new(),
            replies: Vec::new(),
            acknowledged: BTreeSet::new(),
            unknown: BTreeSet::new(),
            failed: BTreeSet::new(),
        }
    }

    fn step(&mut self, choice: u8, detail: u8) {
        match choice % 8 {
            0..=2 => self.send(),
            3 | 4 => self.leader_takes(detail),
            5 | 6 => self.reply_arrives(detail),
            _ if detail.is_multiple_of(4) => self.connection_dies(detail),
            _ => self.now += Duration::from_millis(1),
        }
        self.lane.check_invariants();
        self.check();
    }

    fn send(&mut self) {
        if !self.lane.can_send(self.link, self.now) {
            return;
        }
        let batch = self.lane.take_again().map_or_else(
            || {
                self.next_batch += 1;
                self.next_batch
            },
            |(batch, _)| batch,
        );
        let number = self.lane.send(self.link, batch, self.deadline);
        self.requests.push_back((number, batch));
    }

    /// The leader looks at the oldest request that has reached it.
    fn leader_takes(&mut self, detail: u8) {
        let Some((number, batch)) = self.requests.pop_front() else { return };
        let expected = self.leader.expected.entry(self.link).or_default();
        let refused = |code, next_number| {
            let retriable = ErrorCode::is_retriable(code);
            Verdict::Refused { error: Error::from_code(code, ""), retriable, next_number }
        };
        let verdict = if number != *expected {
            refused(ErrorCode::OutOfOrder, Some(*expected))
        } else {
            match detail % 8 {
                0 | 1 => refused(ErrorCode::Busy, None),
                2 => refused(ErrorCode::BatchTooLarge, None),
                3 => {
                    *expected += 1;
                    self.leader.log.push(batch);
                    Verdict::Unknown(Error::from_code(ErrorCode::TimedOut, ""))
                }
                _ => {
                    *expected += 1;
                    self.leader.log.push(batch);
                    Verdict::Acknowledged(u64::from(batch))
                }
            }
        };
        self.replies.push((number, verdict));
    }

    fn reply_arrives(&mut self, detail: u8) {
        if self.replies.is_empty() {
            return;
        }
        let (number, verdict) = self.replies.swap_remove(usize::from(detail) % self.replies.len());
        self.resolve(number, verdict);
    }

    /// Some requests never left, some were out; of those the leader still takes some. No reply arrives any more.
    fn connection_dies(&mut self, detail: u8) {
        let out = usize::from(detail / 4) % (self.requests.len() + 1);
        let unsent: BTreeSet<u64> = self.requests.drain(out..).map(|(number, _)| number).collect();
        let mut waiting: Vec<u64> = self.replies.iter().map(|(number, _)| *number).collect();
        waiting.extend(self.requests.iter().map(|(number, _)| *number));
        waiting.extend(&unsent);
        for _ in 0..usize::from(detail / 16) {
            self.leader_takes(7);
        }
        self.requests.clear();
        self.replies.clear();
        // They are told in no particular order.
        let turn = usize::from(detail) % waiting.len().max(1);
        waiting.rotate_left(turn);
        for number in waiting {
            let error = Error::new(ErrorKind::Connection, "");
            self.resolve(number, Verdict::Lost { error, sent: !unsent.contains(&number) });
        }
        assert_eq!(self.lane.in_flight_count(), 0, "every request was told");
        self.link = LinkId(self.link.0 + 1);
    }

    fn resolve(&mut self, number: u64, verdict: Verdict<u64>) {
        let mut done = Vec::new();
        self.lane.resolve(number, verdict, self.now, 0, &mut done);
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
        assert!(
            self.leader.log.is_sorted_by(|a, b| a < b),
            "in order and nothing twice: {:?}",
            self.leader.log
        );
        let there: BTreeSet<Batch> = self.leader.log.iter().copied().collect();
        assert!(self.acknowledged.is_subset(&there), "what is acknowledged is there");
        assert!(self.failed.is_disjoint(&there), "what failed is not there");
    }

    /// Lets everything come to its end without further trouble.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.now += Duration::from_millis(1);
            if self.lane.has_again() {
                self.send();
            }
            self.leader_takes(7);
            self.reply_arrives(0);
        }
        self.check();
        let all = self.acknowledged.len() + self.unknown.len() + self.failed.len();
        assert_eq!(all, self.next_batch as usize, "every batch has ended");
        assert!(self.lane.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_twice_nothing_out_of_order_nothing_made_up(steps in prop::collection::vec(any::<(u8, u8)>(), 1..150)) {
        let mut world = World::new();
        for (choice, detail) in steps {
            world.step(choice, detail);
        }
        world.settle();
    }
}
