//! The subscriptions of one connection: when to ask a partition for more, and who may be pushed to next.
//!
//! A subscription asks its partition for batches when it has credit, and waits there at no cost until the watermark
//! moves. What a partition offers is only planned, not read: the connection takes one offer after another, in deficit
//! round robin, as fast as its socket takes them. Without credit a subscription is still told when the watermark moves,
//! but no more often than `WATERMARK_PAUSE`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use highwater_protocol::ids::{Offset, SubscriptionId};
use highwater_protocol::limits::PUSH_BYTES;

use crate::round_robin::RoundRobin;
use crate::time::Mono;

/// The least time between two pushes that carry nothing but a watermark.
pub const WATERMARK_PAUSE: Duration = Duration::from_millis(100);

/// What happens to a connection's subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A new subscription; its id was checked with [`Subscriptions::may_open`].
    Opened {
        /// Its id.
        id: SubscriptionId,
        /// The first offset wanted.
        offset: Offset,
        /// The high watermark that its reply tells.
        high_watermark: Offset,
        /// Bytes that may be pushed in all.
        credit: u64,
    },
    /// The subscriber raised its credit.
    Credit {
        /// The subscription; an unknown one is ignored, it may just have ended.
        id: SubscriptionId,
        /// Bytes that may be pushed in all.
        limit: u64,
    },
    /// The partition has an offer: batches, or only a watermark that moved.
    Offered {
        /// The subscription; an unknown one is ignored.
        id: SubscriptionId,
        /// The question that it answers; see [`Subscriptions::expects`].
        number: u64,
    },
    /// An offer was taken and is on its way to the socket.
    Pushed {
        /// The subscription.
        id: SubscriptionId,
        /// Bytes of batches.
        bytes: usize,
        /// The offset after the last batch.
        next: Offset,
        /// The high watermark that the push tells.
        high_watermark: Offset,
    },
    /// The subscription is over.
    Closed {
        /// Which.
        id: SubscriptionId,
    },
    /// The deadline has come.
    Tick,
}

/// What the connection has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Ask the partition for an offer; an earlier question that still waits is replaced.
    Ask {
        /// For whom.
        id: SubscriptionId,
        /// Which question of the subscription this is.
        number: u64,
        /// The first offset wanted.
        from: Offset,
        /// Bytes to offer at most, but always a whole batch; 0: only tell when the watermark moves.
        bytes_max: usize,
        /// The high watermark that the subscriber knows.
        seen_watermark: Offset,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The partition was asked for batches, and answers when it has some.
    AskedForBatches,
    /// The partition was asked to tell when the watermark moves.
    AskedForWatermark,
    /// There is an offer to take.
    Offered,
    /// The offer is being read.
    Taken,
    /// Nothing is asked before this.
    Paused(Mono),
}

#[derive(Debug, Clone)]
struct Subscription {
    next: Offset,
    credit: u64,
    pushed: u64,
    seen_watermark: Offset,
    /// The number of the last question.
    asked: u64,
    phase: Phase,
}

impl Subscription {
    fn credit_left(&self) -> u64 {
        self.credit.saturating_sub(self.pushed)
    }
}

/// The subscriptions of one connection.
#[derive(Debug)]
pub struct Subscriptions {
    live: BTreeMap<SubscriptionId, Subscription>,
    /// Ids only grow, so that one number tells which were used.
    next_id_min: u64,
    robin: RoundRobin<SubscriptionId>,
    /// When pauses end. An entry whose subscription does something else by then is passed over.
    pauses: BTreeSet<(Mono, SubscriptionId)>,
}

impl Default for Subscriptions {
    fn default() -> Self {
        Self {
            live: BTreeMap::new(),
            next_id_min: 0,
            robin: RoundRobin::new(PUSH_BYTES as u32),
            pauses: BTreeSet::new(),
        }
    }
}

impl Subscriptions {
    /// Whether a subscription with this id may be opened: ids must grow, which makes sure that none comes twice.
    #[must_use]
    pub fn may_open(&self, id: SubscriptionId) -> bool {
        // Nothing is greater than the greatest, so it could come twice.
        id.get() >= self.next_id_min && id.get() < u64::MAX
    }

    /// Notes that this id was asked for, so that it is not used again.
    pub fn reserve(&mut self, id: SubscriptionId) {
        self.next_id_min = self.next_id_min.max(id.get().saturating_add(1));
    }

    /// A request was refused: its id may be used after all, if no greater one was asked for meanwhile.
    pub fn release(&mut self, id: SubscriptionId) {
        if self.next_id_min == id.get().saturating_add(1) {
            self.next_id_min = id.get();
        }
    }

    /// How many are live.
    #[must_use]
    pub fn count(&self) -> usize {
        self.live.len()
    }

    /// Whether `id` is live.
    #[must_use]
    pub fn contains(&self, id: SubscriptionId) -> bool {
        self.live.contains_key(&id)
    }

    /// Whether an offer answers the last question. When a credit replaces a question, the answer to the earlier one may
    /// be on its way already: taken as well, it would push the same batches twice.
    #[must_use]
    pub fn expects(&self, id: SubscriptionId, number: u64) -> bool {
        self.live.get(&id).is_some_and(|subscription| subscription.asked == number)
    }

    /// Takes one input and appends what follows from it to `out`.
    pub fn step(&mut self, now: Mono, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Opened { id, offset, high_watermark, credit } => {
                self.reserve(id);
                let subscription = Subscription {
                    next: offset,
                    credit,
                    pushed: 0,
                    seen_watermark: high_watermark,
                    asked: 0,
                    phase: Phase::Taken,
                };
                self.live.insert(id, subscription);
                self.ask(id, out);
            }
            Input::Credit { id, limit } => self.credit(id, limit, out),
            Input::Offered { id, number } => {
                if let Some(subscription) = self.live.get_mut(&id).filter(|live| live.asked == number) {
                    subscription.phase = Phase::Offered;
                    self.robin.enqueue(id);
                }
            }
            Input::Pushed { id, bytes, next, high_watermark } => {
                self.pushed(now, id, bytes, next, high_watermark, out);
            }
            Input::Closed { id } => {
                self.live.remove(&id);
                self.robin.remove(id);
            }
            Input::Tick => self.tick(now, out),
        }
    }

    /// When [`Input::Tick`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        self.pauses.first().map(|(until, _)| *until)
    }

    /// The subscription whose offer is to be taken next. [`Input::Pushed`] or [`Input::Closed`] must follow.
    pub fn take(&mut self) -> Option<SubscriptionId> {
        let (id, _may) = self.robin.take()?;
        if let Some(subscription) = self.live.get_mut(&id) {
            subscription.phase = Phase::Taken;
        }
        Some(id)
    }

    fn tick(&mut self, now: Mono, out: &mut Vec<Output>) {
        while let Some(&(until, id)) = self.pauses.first()
            && until <= now
        {
            self.pauses.pop_first();
            if self.live.get(&id).is_some_and(|subscription| subscription.phase == Phase::Paused(until)) {
                self.ask(id, out);
            }
        }
    }

    fn credit(&mut self, id: SubscriptionId, limit: u64, out: &mut Vec<Output>) {
        let Some(subscription) = self.live.get_mut(&id) else { return };
        let had_none = subscription.credit_left() == 0;
        subscription.credit = subscription.credit.max(limit);
        let waits = matches!(subscription.phase, Phase::AskedForWatermark | Phase::Paused(_));
        if had_none && subscription.credit_left() > 0 && waits {
            self.ask(id, out);
        }
    }

    fn pushed(
        &mut self,
        now: Mono,
        id: SubscriptionId,
        bytes: usize,
        next: Offset,
        high_watermark: Offset,
        out: &mut Vec<Output>,
    ) {
        self.robin.sent(id, bytes);
        self.robin.rest(id);
        let Some(subscription) = self.live.get_mut(&id) else { return };
        let stood_still = bytes == 0 && subscription.seen_watermark == high_watermark;
        subscription.pushed += bytes as u64;
        subscription.next = next;
        subscription.seen_watermark = high_watermark;
        if stood_still || (bytes == 0 && subscription.credit_left() == 0) {
            let until = now.after(WATERMARK_PAUSE);
            subscription.phase = Phase::Paused(until);
            self.pauses.insert((until, id));
        } else {
            self.ask(id, out);
        }
    }

    fn ask(&mut self, id: SubscriptionId, out: &mut Vec<Output>) {
        let Some(subscription) = self.live.get_mut(&id) else { return };
        let left = usize::try_from(subscription.credit_left()).unwrap_or(usize::MAX);
        subscription.phase = if left == 0 { Phase::AskedForWatermark } else { Phase::AskedForBatches };
        subscription.asked += 1;
        out.push(Output::Ask {
            id,
            number: subscription.asked,
            from: subscription.next,
            bytes_max: left.min(PUSH_BYTES),
            seen_watermark: subscription.seen_watermark,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SubscriptionId = SubscriptionId(1);
    const B: SubscriptionId = SubscriptionId(2);
    const NOW: Mono = Mono(0);

    fn step(subscriptions: &mut Subscriptions, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        subscriptions.step(NOW, input, &mut out);
        out
    }

    fn opened(id: SubscriptionId, credit: u64) -> Input {
        Input::Opened { id, offset: Offset(5), high_watermark: Offset(9), credit }
    }

    fn ask(id: SubscriptionId, number: u64, from: u64, bytes_max: usize, seen: u64) -> Vec<Output> {
        vec![Output::Ask { id, number, from: Offset(from), bytes_max, seen_watermark: Offset(seen) }]
    }

    /// The answer to the last question.
    fn offered(subscriptions: &Subscriptions, id: SubscriptionId) -> Input {
        Input::Offered { id, number: subscriptions.live.get(&id).map_or(0, |live| live.asked) }
    }

    fn pushed(id: SubscriptionId, bytes: usize, next: u64, high_watermark: u64) -> Input {
        Input::Pushed { id, bytes, next: Offset(next), high_watermark: Offset(high_watermark) }
    }

    #[test]
    fn batches_are_asked_for_within_the_credit_and_one_may_overdraw_it() {
        let mut subscriptions = Subscriptions::default();
        assert_eq!(step(&mut subscriptions, opened(A, 1000)), ask(A, 1, 5, 1000, 9));
        assert_eq!(subscriptions.take(), None, "nothing is offered yet");
        {
            let offer = offered(&subscriptions, A);
            step(&mut subscriptions, offer)
        };
        assert_eq!(subscriptions.take(), Some(A));
        assert_eq!(step(&mut subscriptions, pushed(A, 600, 7, 9)), ask(A, 2, 7, 400, 9));
        {
            let offer = offered(&subscriptions, A);
            step(&mut subscriptions, offer)
        };
        assert_eq!(subscriptions.take(), Some(A));
        // A large batch goes out whole; then only the watermark is told, until the credit is above what was pushed.
        assert_eq!(step(&mut subscriptions, pushed(A, 5000, 8, 9)), ask(A, 3, 8, 0, 9));
        assert_eq!(step(&mut subscriptions, Input::Credit { id: A, limit: 5600 }), []);
        assert_eq!(step(&mut subscriptions, Input::Credit { id: A, limit: 5700 }), ask(A, 4, 8, 100, 9));
        assert_eq!(step(&mut subscriptions, Input::Credit { id: A, limit: 9000 }), [], "it is asked already");
        assert_eq!(step(&mut subscriptions, Input::Credit { id: A, limit: 10 }), [], "credit never shrinks");
    }

    #[test]
    fn watermarks_are_coalesced_in_time() {
        let mut subscriptions = Subscriptions::default();
        step(&mut subscriptions, opened(A, 0));
        {
            let offer = offered(&subscriptions, A);
            step(&mut subscriptions, offer)
        };
        assert_eq!(subscriptions.take(), Some(A));
        assert_eq!(step(&mut subscriptions, pushed(A, 0, 5, 11)), []);
        let deadline = subscriptions.next_deadline().unwrap();
        assert_eq!(deadline, NOW.after(WATERMARK_PAUSE));
        assert_eq!(step(&mut subscriptions, Input::Tick), [], "not yet");
        let mut out = Vec::new();
        subscriptions.step(deadline, Input::Tick, &mut out);
        assert_eq!(out, ask(A, 2, 5, 0, 11));
        assert_eq!(subscriptions.next_deadline(), None, "an idle subscription needs no timer");
    }

    #[test]
    fn the_answer_to_a_replaced_question_is_not_taken() {
        let mut subscriptions = Subscriptions::default();
        assert_eq!(step(&mut subscriptions, opened(A, 0)), ask(A, 1, 5, 0, 9));
        // The watermark moves, and before its offer is seen, a credit comes.
        assert_eq!(step(&mut subscriptions, Input::Credit { id: A, limit: 1000 }), ask(A, 2, 5, 1000, 9));
        assert!(!subscriptions.expects(A, 1));
        step(&mut subscriptions, Input::Offered { id: A, number: 1 });
        assert_eq!(subscriptions.take(), None, "or batches from 5 on would be asked for once more");
        assert!(subscriptions.expects(A, 2));
        step(&mut subscriptions, Input::Offered { id: A, number: 2 });
        assert_eq!(subscriptions.take(), Some(A));
        assert_eq!(step(&mut subscriptions, pushed(A, 600, 7, 11)), ask(A, 3, 7, 400, 11));
    }

    #[test]
    fn the_greatest_id_cannot_be_used_twice() {
        assert!(!Subscriptions::default().may_open(SubscriptionId(u64::MAX)));
        assert!(Subscriptions::default().may_open(SubscriptionId(u64::MAX - 1)));
    }

    #[test]
    fn offers_are_taken_in_turn() {
        let mut subscriptions = Subscriptions::default();
        for id in [A, B] {
            step(&mut subscriptions, opened(id, u64::MAX));
            {
                let offer = offered(&subscriptions, id);
                step(&mut subscriptions, offer)
            };
        }
        let mut sent = BTreeMap::from([(A, 0usize), (B, 0usize)]);
        for _ in 0..30 {
            let id = subscriptions.take().unwrap();
            // One has batches of three pushes' size, the other of half a push.
            let bytes = if id == A { 3 * PUSH_BYTES } else { PUSH_BYTES / 2 };
            *sent.get_mut(&id).unwrap() += bytes;
            step(&mut subscriptions, pushed(id, bytes, 6, 9));
            {
                let offer = offered(&subscriptions, id);
                step(&mut subscriptions, offer)
            };
        }
        let turns = (sent[&A] / (3 * PUSH_BYTES), sent[&B] / (PUSH_BYTES / 2));
        assert!(turns.1 >= 2 * turns.0, "{turns:?}");
    }

    #[test]
    fn ids_grow_and_the_closed_are_forgotten() {
        let mut subscriptions = Subscriptions::default();
        step(&mut subscriptions, opened(B, 1));
        assert!(!subscriptions.may_open(A));
        assert!(!subscriptions.may_open(B));
        assert!(subscriptions.may_open(SubscriptionId(3)));
        {
            let offer = offered(&subscriptions, B);
            step(&mut subscriptions, offer)
        };
        step(&mut subscriptions, Input::Closed { id: B });
        assert_eq!(subscriptions.take(), None);
        assert_eq!(
            {
                let offer = offered(&subscriptions, B);
                step(&mut subscriptions, offer)
            },
            []
        );
        assert_eq!(step(&mut subscriptions, Input::Credit { id: B, limit: 9 }), []);
        assert_eq!(step(&mut subscriptions, pushed(B, 1, 1, 1)), []);
        assert_eq!(subscriptions.count(), 0);
    }
}
