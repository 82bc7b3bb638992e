//! Producers that wait for a condition of their partition.

use std::collections::VecDeque;

use highwater_broker_core::replica::{Condition, Reached, Replica};
use highwater_broker_core::time::Mono;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{Offset, TopicPartition};
use highwater_protocol::messages::ProduceResult;

use super::handle::Closed;
use super::ticket::Ticket;

/// A batch that is written and not answered yet.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// The offset after its last record.
    pub(crate) end: Offset,
    /// The offset of its first record.
    pub(crate) base_offset: Offset,
    /// When it was appended, in microseconds since the Unix epoch.
    pub(crate) append_time: i64,
    /// When to answer that it took too long.
    pub(crate) deadline: Mono,
    /// Its producer can send it again without it being there twice.
    pub(crate) is_idempotent: bool,
    /// Whom to answer.
    pub(crate) ticket: Ticket,
}

/// The waiters of one partition, in the order of their offsets.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    committed: VecDeque<Waiter>,
    leader: VecDeque<Waiter>,
    /// Not later than the earliest deadline.
    deadline: Option<Mono>,
}

impl Waiters {
    /// Waits until the batch is committed.
    pub(crate) fn wait_committed(&mut self, waiter: Waiter) {
        self.note_deadline(waiter.deadline);
        put(&mut self.committed, waiter);
    }

    /// Waits until the leader has reached the topic's stage with the batch.
    pub(crate) fn wait_leader(&mut self, waiter: Waiter) {
        self.note_deadline(waiter.deadline);
        put(&mut self.leader, waiter);
    }

    /// When [`Waiters::expire`] is due.
    pub(crate) const fn deadline(&self) -> Option<Mono> {
        self.deadline
    }

    /// How many wait.
    pub(crate) fn count(&self) -> usize {
        self.committed.len() + self.leader.len()
    }

    /// Answers everybody whose condition the replica has reached.
    pub(crate) fn answer_reached(&mut self, replica: &Replica) {
        answer(&mut self.committed, |end| replica.reached(Condition::Committed(end)));
        answer(&mut self.leader, |end| replica.reached(Condition::LeaderStage(end)));
        if self.count() == 0 {
            self.deadline = None;
        }
    }

    /// Answers everybody who has waited long enough.
    pub(crate) fn expire(&mut self, now: Mono) {
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        self.deadline = None;
        for queue in [&mut self.committed, &mut self.leader] {
            for waiter in std::mem::take(queue) {
                if waiter.deadline <= now {
                    waiter.ticket.refuse(
                        ErrorCode::TimedOut,
                        "the batch was written, but what was waited for did not happen in time",
                    );
                } else {
                    let earliest = self.deadline.map_or(waiter.deadline, |at| at.min(waiter.deadline));
                    self.deadline = Some(earliest);
                    queue.push_back(waiter);
                }
            }
        }
    }

    /// Answers everybody of a leader that leads no longer: the next one may have their batches, or not. Whoever can send
    /// a batch again without it being there twice is sent to the next leader; for the others the outcome is not known.
    pub(crate) fn lost_leadership(&mut self, why: &str) {
        for waiter in self.committed.drain(..).chain(self.leader.drain(..)) {
            let code = if waiter.is_idempotent { ErrorCode::NotLeader } else { ErrorCode::OutcomeUnknown };
            waiter.ticket.refuse(code, why);
        }
        self.deadline = None;
    }

    /// Answers those who would wait in vain because the partition is being closed here.
    pub(crate) fn closing(&mut self, why: Closed, partition: TopicPartition) {
        match why {
            Closed::Deleted => self.fail_all("the topic was deleted"),
            // Nothing is committed here any more: the next leader has their batches, or takes them again.
            Closed::Moved => self.lost_leadership(&why.error(partition).message),
            // What is under way is finished. After a failure it is told by whoever finds out.
            Closed::ShuttingDown | Closed::Failed => {}
        }
    }

    /// Answers everybody that it is not known whether their batch survives.
    pub(crate) fn fail_all(&mut self, why: &str) {
        for waiter in self.committed.drain(..).chain(self.leader.drain(..)) {
            waiter.ticket.refuse(ErrorCode::OutcomeUnknown, why);
        }
        self.deadline = None;
    }

    fn note_deadline(&mut self, deadline: Mono) {
        self.deadline = Some(self.deadline.map_or(deadline, |at| at.min(deadline)));
    }
}

/// Keeps the order of offsets: a batch that came again may be anywhere, others come last.
fn put(queue: &mut VecDeque<Waiter>, waiter: Waiter) {
    let last = queue.iter().rposition(|known| known.end <= waiter.end);
    queue.insert(last.map_or(0, |last| last + 1), waiter);
}

fn answer(queue: &mut VecDeque<Waiter>, reached: impl Fn(Offset) -> Option<Reached>) {
    while let Some(front) = queue.front() {
        let Some(reached) = reached(front.end) else { break };
        let Some(waiter) = queue.pop_front() else { break };
        waiter.ticket.answer(ProduceResult {
            base_offset: waiter.base_offset.get(),
            append_time: waiter.append_time,
            stage: reached.stage.into(),
            replicas_counted: reached.replicas_counted,
            replicas_total: reached.replicas_total,
            ..ProduceResult::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::BytesMut;
    use highwater_broker_core::durability::Durability;
    use highwater_broker_core::replica::{Assignment, Input, Opened};
    use highwater_protocol::frame::Splitter;
    use highwater_protocol::ids::{BrokerEpoch, CorrelationId, LeaderEpoch, NodeId, PartitionId, TopicId};
    use highwater_protocol::messages::{ProduceReply, Stage};

    use super::super::ticket::tickets;
    use super::*;
    use crate::server::outbox::{Contents, Outbox};

    fn replica() -> Replica {
        let mut replica = Replica::open(Opened {
            node: NodeId(1),
            log_start: Offset(0),
            log_end: Offset(0),
            flushed_end: Offset(0),
            high_watermark: Offset(0),
            log_generation: 0,
            append_time: 0,
            epochs: Vec::new(),
            durability_wanted: Durability::Fsync,
            durability_effective: Durability::Fsync,
        });
        let (own_epoch, fsync) = (BrokerEpoch(1), Durability::Fsync);
        let assignment = Assignment::alone(NodeId(1), own_epoch, LeaderEpoch(1), fsync, fsync);
        replica.step(Mono(0), Input::Assigned { assignment, own_epoch }, &mut Vec::new());
        replica.step(Mono(0), Input::Appended { log_end: Offset(9), append_time: 5 }, &mut Vec::new());
        replica
    }

    fn flush(replica: &mut Replica, upto: u64) {
        let flushed = Input::Flushed { log_generation: 0, upto: Offset(upto) };
        replica.step(Mono(0), flushed, &mut Vec::new());
    }

    fn waiter(outbox: &Arc<Outbox>, end: u64, deadline: u64) -> Waiter {
        let ticket = tickets(outbox, CorrelationId(end), 1, 100).next().unwrap();
        Waiter {
            end: Offset(end),
            base_offset: Offset(end - 1),
            append_time: 5,
            deadline: Mono(deadline),
            is_idempotent: false,
            ticket,
        }
    }

    /// The replies that were left: correlation id, code and stage of each; and the bytes given back with them.
    fn replies(outbox: &Outbox) -> (Vec<(u64, ErrorCode, Stage)>, u64) {
        let mut contents = Contents::default();
        outbox.take(&mut contents);
        let mut frames: BytesMut = contents.frames;
        let mut replies = Vec::new();
        while let Some(frame) = Splitter::default().next(&mut frames).unwrap() {
            let reply: ProduceReply = frame.decode_body().unwrap();
            let result = &reply.results[0];
            replies.push((
                frame.header.correlation_id.get(),
                ErrorCode::from_code(result.error),
                result.stage(),
            ));
        }
        (replies, contents.released)
    }

    #[test]
    fn each_is_answered_when_its_condition_is_reached() {
        let outbox = Arc::new(Outbox::new(1));
        let (mut replica, mut waiters) = (replica(), Waiters::default());
        waiters.wait_committed(waiter(&outbox, 3, 100));
        waiters.wait_leader(waiter(&outbox, 5, 100));
        waiters.wait_committed(waiter(&outbox, 9, 100));
        waiters.answer_reached(&replica);
        assert_eq!(replies(&outbox), (vec![], 0), "nothing is flushed yet");
        flush(&mut replica, 5);
        waiters.answer_reached(&replica);
        let flushed = |id| (id, ErrorCode::None, Stage::Flushed);
        assert_eq!(replies(&outbox), (vec![flushed(3), flushed(5)], 200));
        flush(&mut replica, 9);
        waiters.answer_reached(&replica);
        assert_eq!(replies(&outbox), (vec![flushed(9)], 100));
        assert_eq!((waiters.count(), waiters.deadline()), (0, None));
    }

    #[test]
    fn a_batch_that_came_again_is_answered_with_the_first_one_and_holds_nobody_up() {
        let outbox = Arc::new(Outbox::new(1));
        let (mut replica, mut waiters) = (replica(), Waiters::default());
        let flushed = |id| (id, ErrorCode::None, Stage::Flushed);
        waiters.wait_committed(waiter(&outbox, 3, 100));
        waiters.wait_committed(waiter(&outbox, 9, 100));
        waiters.wait_committed(waiter(&outbox, 3, 100));
        waiters.answer_reached(&replica);
        assert_eq!(replies(&outbox), (vec![], 0), "not before it is committed");
        flush(&mut replica, 5);
        waiters.answer_reached(&replica);
        assert_eq!(replies(&outbox), (vec![flushed(3), flushed(3)], 200));
        // Below the watermark: at once.
        waiters.wait_committed(waiter(&outbox, 2, 100));
        waiters.answer_reached(&replica);
        assert_eq!(replies(&outbox), (vec![flushed(2)], 100));
        assert_eq!(waiters.count(), 1);
    }

    #[test]
    fn whoever_waits_too_long_is_told_that_the_batch_was_written() {
        let outbox = Arc::new(Outbox::new(1));
        let mut waiters = Waiters::default();
        waiters.wait_committed(waiter(&outbox, 3, 300));
        waiters.wait_committed(waiter(&outbox, 4, 100));
        waiters.wait_leader(waiter(&outbox, 5, 200));
        assert_eq!(waiters.deadline(), Some(Mono(100)));
        waiters.expire(Mono(99));
        assert_eq!(waiters.count(), 3);
        waiters.expire(Mono(100));
        let timed_out = |id| (id, ErrorCode::TimedOut, Stage::Accepted);
        assert_eq!(replies(&outbox).0, [timed_out(4)]);
        assert_eq!(waiters.deadline(), Some(Mono(200)));
        waiters.expire(Mono(1000));
        assert_eq!(replies(&outbox).0, [timed_out(3), timed_out(5)]);
        assert_eq!(waiters.deadline(), None);
    }

    #[test]
    fn after_a_failed_flush_nobody_is_told_more_than_is_known() {
        let outbox = Arc::new(Outbox::new(1));
        let (mut replica, mut waiters) = (replica(), Waiters::default());
        waiters.wait_committed(waiter(&outbox, 3, 100));
        replica.step(Mono(0), Input::FlushFailed { log_generation: 0 }, &mut Vec::new());
        waiters.answer_reached(&replica);
        assert_eq!(waiters.count(), 1);
        waiters.fail_all("the flush failed");
        assert_eq!(replies(&outbox).0, [(3, ErrorCode::OutcomeUnknown, Stage::Accepted)]);
        // A ticket that is dropped answers too: nobody waits in vain.
        drop(waiter(&outbox, 7, 100));
        assert_eq!(replies(&outbox).0, [(7, ErrorCode::OutcomeUnknown, Stage::Accepted)]);
    }

    #[test]
    fn whoever_waits_for_a_partition_that_is_moved_away_is_sent_to_the_next_leader_at_once() {
        let partition = TopicPartition::new(TopicId(1), PartitionId(0));
        for (why, told) in [
            (Closed::Moved, vec![(4, ErrorCode::NotLeader), (5, ErrorCode::OutcomeUnknown)]),
            (Closed::Deleted, vec![(4, ErrorCode::OutcomeUnknown), (5, ErrorCode::OutcomeUnknown)]),
            (Closed::ShuttingDown, Vec::new()),
        ] {
            let outbox = Arc::new(Outbox::new(1));
            let mut waiters = Waiters::default();
            waiters.wait_committed(Waiter { is_idempotent: true, ..waiter(&outbox, 4, 1000) });
            waiters.wait_leader(waiter(&outbox, 5, 1000));
            waiters.closing(why, partition);
            let replies: Vec<_> = replies(&outbox).0.into_iter().map(|(id, code, _)| (id, code)).collect();
            assert_eq!(waiters.count(), 2 - told.len(), "{why:?}");
            assert_eq!(replies, told, "{why:?}");
        }
    }
}
