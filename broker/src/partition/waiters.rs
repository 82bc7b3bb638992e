//! Producers that wait for a condition of their partition.

use std::collections::VecDeque;

use highwater_broker_core::replica::{Condition, Reached, Replica};
use highwater_broker_core::time::Mono;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::Offset;
use highwater_protocol::messages::ProduceResult;

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
        self.committed.push_back(waiter);
    }

    /// Waits until the leader has reached the topic's stage with the batch.
    pub(crate) fn wait_leader(&mut self, waiter: Waiter) {
        self.note_deadline(waiter.deadline);
        self.leader.push_back(waiter);
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
