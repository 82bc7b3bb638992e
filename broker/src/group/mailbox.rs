//! What the task that owns a shard of groups and its askers share: a bounded mailbox.

use std::collections::VecDeque;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::TopicPartition;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::question::Question;
use crate::api::ApiError;

/// Questions that may wait for a shard, and their bytes. Whoever comes then is told to come again.
const QUESTIONS_MAX: usize = 8192;
const QUESTION_BYTES_MAX: usize = 32 << 20;

/// What a shard is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum State {
    /// Another broker coordinates its groups, or nobody does.
    #[default]
    Away,
    /// Its state is being read.
    Loading,
    /// It answers.
    Serving,
}

/// The mailbox of one shard.
#[derive(Debug)]
pub(super) struct Mailbox {
    partition: TopicPartition,
    inbox: Mutex<Inbox>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Inbox {
    state: State,
    questions: VecDeque<Question>,
    bytes: usize,
}

impl Mailbox {
    pub(super) fn new(partition: TopicPartition) -> Self {
        Self { partition, inbox: Mutex::default(), notify: Notify::new() }
    }

    /// Leaves a question, or answers that it cannot be taken. Never waits.
    pub(super) fn push(&self, question: Question) {
        let mut inbox = self.inbox.lock();
        let refusal = match inbox.state {
            State::Serving if inbox.questions.len() >= QUESTIONS_MAX || inbox.bytes >= QUESTION_BYTES_MAX => {
                let text = format!(
                    "{} requests of {} bytes wait for the coordinator of partition {}",
                    inbox.questions.len(),
                    inbox.bytes,
                    self.partition
                );
                ApiError::new(ErrorCode::Busy, text)
            }
            State::Serving => {
                inbox.bytes += question.bytes;
                inbox.questions.push_back(question);
                drop(inbox);
                return self.notify.notify_one();
            }
            State::Loading => loading(self.partition),
            State::Away => not_coordinator(self.partition),
        };
        drop(inbox);
        question.answer(Err(refusal));
    }

    /// Waits until a question was left. Cancel-safe.
    pub(super) async fn wait(&self) {
        self.notify.notified().await;
    }

    /// Takes up to `max` questions into `into`, in the order in which they came. If there are more, nobody waits for them.
    pub(super) fn take(&self, max: usize, into: &mut Vec<Question>) {
        let mut inbox = self.inbox.lock();
        let count = inbox.questions.len().min(max);
        into.extend(inbox.questions.drain(..count));
        let taken = into.iter().rev().take(count).map(|question| question.bytes).sum();
        inbox.bytes = inbox.bytes.saturating_sub(taken);
        if !inbox.questions.is_empty() {
            self.notify.notify_one();
        }
    }

    /// Says what the shard is doing. What waits is refused unless it serves.
    pub(super) fn set_state(&self, state: State) {
        let mut inbox = self.inbox.lock();
        inbox.state = state;
        if state == State::Serving {
            return;
        }
        let waiting = std::mem::take(&mut inbox.questions);
        inbox.bytes = 0;
        drop(inbox);
        for question in waiting {
            question.answer(Err(not_coordinator(self.partition)));
        }
    }

    /// What the shard is doing.
    pub(super) fn state(&self) -> State {
        self.inbox.lock().state
    }
}

/// Whoever asks a broker that does not coordinate the group is told to look for the one that does.
pub(super) fn not_coordinator(partition: TopicPartition) -> ApiError {
    ApiError::new(
        ErrorCode::NotCoordinator,
        format!(
            "this broker does not coordinate the groups of partition {} of topic '{}'",
            partition.partition,
            super::topic::GROUPS_TOPIC
        ),
    )
}

/// Whoever comes while the state is being read is told to come again.
pub(super) fn loading(partition: TopicPartition) -> ApiError {
    ApiError::new(
        ErrorCode::CoordinatorLoading,
        format!(
            "the state of the groups of partition {} of topic '{}' is being read",
            partition.partition,
            super::topic::GROUPS_TOPIC
        ),
    )
}

#[cfg(test)]
mod tests {
    use highwater_broker_core::group::Request;
    use highwater_protocol::ids::{PartitionId, TopicId};
    use tokio::sync::oneshot;

    use super::super::question::Outcome;
    use super::*;

    fn mailbox(state: State) -> Mailbox {
        let mailbox = Mailbox::new(TopicPartition::new(TopicId(1), PartitionId(3)));
        mailbox.set_state(state);
        mailbox
    }

    fn push(mailbox: &Mailbox, bytes: usize) -> oneshot::Receiver<Outcome> {
        let (question, answer) = Question::of_task(Request::List, bytes);
        mailbox.push(question);
        answer
    }

    fn refused(answer: &mut oneshot::Receiver<Outcome>) -> Option<ErrorCode> {
        match answer.try_recv() {
            Ok(outcome) => Some(outcome.unwrap_err().code),
            Err(_) => None,
        }
    }

    #[test]
    fn what_waits_is_bounded_in_number_and_in_bytes() {
        let waiting = mailbox(State::Serving);
        let mut answers: Vec<_> = (0..QUESTIONS_MAX).map(|_| push(&waiting, 0)).collect();
        assert_eq!(refused(answers.last_mut().unwrap()), None);
        assert_eq!(refused(&mut push(&waiting, 0)), Some(ErrorCode::Busy));
        let mut taken = Vec::new();
        waiting.take(1, &mut taken);
        assert_eq!(refused(&mut push(&waiting, 0)), None, "there is room again");

        let heavy = mailbox(State::Serving);
        let mut first = push(&heavy, QUESTION_BYTES_MAX - 1);
        let mut second = push(&heavy, 10);
        assert_eq!((refused(&mut first), refused(&mut second)), (None, None));
        assert_eq!(refused(&mut push(&heavy, 1)), Some(ErrorCode::Busy));
        taken.clear();
        heavy.take(1, &mut taken);
        assert_eq!(taken.len(), 1);
        let third = push(&heavy, QUESTION_BYTES_MAX);
        assert_eq!(refused(&mut push(&heavy, 1)), Some(ErrorCode::Busy));
        drop(third);
    }

    #[tokio::test]
    async fn what_is_not_taken_at_once_wakes_its_owner_again() {
        let waiting = mailbox(State::Serving);
        let _answers: Vec<_> = (0..3).map(|_| push(&waiting, 1)).collect();
        let mut taken = Vec::new();
        for left in [1, 0] {
            waiting.wait().await;
            waiting.take(2, &mut taken);
            assert_eq!(taken.len(), 3 - left);
        }
    }

    #[test]
    fn nobody_waits_for_a_shard_that_does_not_serve() {
        assert_eq!(refused(&mut push(&mailbox(State::Away), 1)), Some(ErrorCode::NotCoordinator));
        let waiting = mailbox(State::Loading);
        assert_eq!(refused(&mut push(&waiting, 1)), Some(ErrorCode::CoordinatorLoading));
        waiting.set_state(State::Serving);
        let mut answer = push(&waiting, 1);
        assert_eq!(refused(&mut answer), None);
        waiting.set_state(State::Away);
        assert_eq!(refused(&mut answer), Some(ErrorCode::NotCoordinator));
        // A question that is dropped answers too.
        let (question, mut answer) = Question::of_task(Request::List, 1);
        drop(question);
        assert_eq!(refused(&mut answer), Some(ErrorCode::NotCoordinator));
    }
}
