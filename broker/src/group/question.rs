//! What a shard of groups is asked, and the duty to answer.

use std::sync::Arc;

use highwater_broker_core::group::{Reply, Request};
use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::CorrelationId;
use highwater_protocol::messages::{CommitOffsetsRequest, FetchOffsetsRequest, GroupHeartbeatRequest};
use tokio::sync::oneshot;

use crate::api::ApiError;
use crate::observe::metrics::Metrics;
use crate::server::outbox::Outbox;

/// What came of a question.
pub(crate) type Outcome = Result<Reply, ApiError>;

/// A question, and who asks.
#[derive(Debug)]
pub(crate) struct Question {
    /// What is asked.
    pub(crate) request: Request,
    /// About as many bytes as it takes while it waits.
    pub(crate) bytes: usize,
    asker: Asker,
}

/// Who is answered. Dropped without an answer it says that the broker does not know the outcome, so that nobody waits in
/// vain.
#[derive(Debug)]
struct Asker {
    to: Option<To>,
}

#[derive(Debug)]
enum To {
    Connection { outbox: Arc<Outbox>, correlation_id: CorrelationId, api: ApiKey, metrics: Arc<Metrics> },
    Task(oneshot::Sender<Outcome>),
}

/// An outcome that waits for what it has seen to be committed.
#[derive(Debug)]
pub(super) struct Answer {
    asker: Asker,
    outcome: Outcome,
}

impl Question {
    /// A question of a connection: one of those that a shard answers alone.
    pub(crate) fn of_connection(
        request: Request,
        bytes: usize,
        outbox: &Arc<Outbox>,
        correlation_id: CorrelationId,
        api: ApiKey,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let (outbox, metrics) = (Arc::clone(outbox), Arc::clone(metrics));
        let to = To::Connection { outbox, correlation_id, api, metrics };
        Self { request, bytes, asker: Asker { to: Some(to) } }
    }

    /// A question of a task, and where it is answered.
    pub(crate) fn of_task(request: Request, bytes: usize) -> (Self, oneshot::Receiver<Outcome>) {
        let (sender, receiver) = oneshot::channel();
        (Self { request, bytes, asker: Asker { to: Some(To::Task(sender)) } }, receiver)
    }

    /// Answers without further ado.
    pub(super) fn answer(self, outcome: Outcome) {
        self.asker.tell(outcome);
    }

    /// The question, and the duty to answer it once what it has seen is committed.
    pub(super) fn split(self) -> (Request, impl FnOnce(Outcome) -> Answer) {
        let Self { request, asker, .. } = self;
        (request, move |outcome| Answer { asker, outcome })
    }
}

impl Answer {
    /// What was seen is committed.
    pub(super) fn give(self) {
        self.asker.tell(self.outcome);
    }

    /// What was seen may never be.
    pub(super) fn refuse(self, error: ApiError) {
        self.asker.tell(Err(error));
    }
}

impl Asker {
    fn tell(mut self, outcome: Outcome) {
        self.put(outcome);
    }

    fn put(&mut self, outcome: Outcome) {
        match self.to.take() {
            Some(To::Connection { outbox, correlation_id, api, metrics }) => {
                let error = match outcome {
                    Ok(Reply::Heartbeat(reply)) => {
                        return outbox.reply::<GroupHeartbeatRequest>(correlation_id, &reply);
                    }
                    Ok(Reply::Commit(reply)) => {
                        return outbox.reply::<CommitOffsetsRequest>(correlation_id, &reply);
                    }
                    Ok(Reply::Fetch(reply)) => {
                        return outbox.reply::<FetchOffsetsRequest>(correlation_id, &reply);
                    }
                    Ok(_) => ApiError::new(ErrorCode::Internal, "a shard of groups answered in another way"),
                    Err(error) => error,
                };
                metrics.count_error(api, error.code);
                outbox.reply_error(api, correlation_id, &error);
            }
            Some(To::Task(sender)) => {
                // Whoever does not wait any more does not need to know.
                let _gone = sender.send(outcome);
            }
            None => {}
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        if self.to.is_some() {
            let text = "the broker stopped coordinating the group before the outcome was known";
            self.put(Err(ApiError::new(ErrorCode::NotCoordinator, text)));
        }
    }
}
