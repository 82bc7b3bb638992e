//! The answer to a produce request, put together from the answers of its batches; and that to a batch of the broker's own.

use std::sync::Arc;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::CorrelationId;
use highwater_protocol::messages::{ProduceReply, ProduceRequest, ProduceResult};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::server::outbox::Outbox;

/// A produce request whose batches are with their partitions. The reply goes out when the last one is answered.
#[derive(Debug)]
struct Pending {
    outbox: Arc<Outbox>,
    correlation_id: CorrelationId,
    /// Bytes of the request's batches, given back with the reply.
    bytes: u64,
    results: Mutex<Results>,
}

#[derive(Debug)]
struct Results {
    results: Vec<ProduceResult>,
    unanswered: usize,
}

/// The duty to answer one batch. Dropped without an answer it says that the broker is shutting down, so that a client
/// never waits in vain.
#[derive(Debug)]
pub(crate) struct Ticket {
    to: To,
    answered: bool,
}

/// Who is answered.
#[derive(Debug)]
enum To {
    /// A connection, together with the other batches of its request.
    Request { pending: Arc<Pending>, index: usize },
    /// A task of this broker.
    Task(Option<oneshot::Sender<ProduceResult>>),
}

/// One ticket for each of `count` batches of a request with `bytes` of batches in all. `count` is above 0.
pub(crate) fn tickets(
    outbox: &Arc<Outbox>,
    correlation_id: CorrelationId,
    count: usize,
    bytes: u64,
) -> impl Iterator<Item = Ticket> + use<> {
    let results = Mutex::new(Results { results: vec![ProduceResult::default(); count], unanswered: count });
    let pending = Arc::new(Pending { outbox: Arc::clone(outbox), correlation_id, bytes, results });
    let to = move |index| To::Request { pending: Arc::clone(&pending), index };
    (0..count).map(move |index| Ticket { to: to(index), answered: false })
}

/// A ticket for a batch of this broker's own, and where it is answered.
pub(crate) fn own_ticket() -> (Ticket, oneshot::Receiver<ProduceResult>) {
    let (sender, receiver) = oneshot::channel();
    (Ticket { to: To::Task(Some(sender)), answered: false }, receiver)
}

impl Ticket {
    /// Answers the batch.
    pub(crate) fn answer(mut self, result: ProduceResult) {
        self.put(result);
    }

    /// Answers that the batch was refused: nothing of it was appended, or its outcome is as `code` says.
    pub(crate) fn refuse(self, code: ErrorCode, message: impl Into<String>) {
        self.answer(ProduceResult {
            error: code.code(),
            message: message.into(),
            ..ProduceResult::default()
        });
    }

    fn put(&mut self, result: ProduceResult) {
        self.answered = true;
        match &mut self.to {
            To::Request { pending, index } => pending.put(*index, result),
            To::Task(sender) => {
                // Whoever does not wait any more does not need to know.
                let _gone = sender.take().map(|sender| sender.send(result));
            }
        }
    }
}

impl Pending {
    fn put(&self, index: usize, result: ProduceResult) {
        let mut results = self.results.lock();
        results.results[index] = result;
        results.unanswered -= 1;
        if results.unanswered == 0 {
            let reply = ProduceReply { results: std::mem::take(&mut results.results) };
            drop(results);
            self.outbox.reply_released::<ProduceRequest>(self.correlation_id, &reply, self.bytes);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            self.put(ProduceResult {
                error: ErrorCode::OutcomeUnknown.code(),
                message: "the broker stopped before the outcome was known".to_owned(),
                ..ProduceResult::default()
            });
        }
    }
}
