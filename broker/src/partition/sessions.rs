//! Opening subscriptions, and the sessions of followers that come with them.

use std::sync::Arc;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{BrokerEpoch, CorrelationId, NodeId, Offset, SubscriptionId};
use highwater_protocol::messages::{Isolation, ReplicaAck, SubscribeReply, SubscribeRequest};
use parking_lot::Mutex;

use super::handle::PartitionHandle;
use super::mailbox::Command;
use crate::api::ApiError;
use crate::server::outbox::{Outbox, SubscriptionEvent};

/// A request to subscribe on its way to its partition. Dropped without an answer it is refused, so that nobody waits in
/// vain.
#[derive(Debug)]
pub(crate) struct Subscribe {
    pub(super) outbox: Arc<Outbox>,
    correlation_id: CorrelationId,
    pub(super) request: SubscribeRequest,
    pub(super) isolation: Isolation,
    /// Who follows, if a replica does: its broker, and the registration that it runs under.
    pub(super) replica: Option<(NodeId, BrokerEpoch)>,
    answered: bool,
}

impl Subscribe {
    pub(crate) const fn new(
        outbox: Arc<Outbox>,
        correlation_id: CorrelationId,
        request: SubscribeRequest,
        isolation: Isolation,
        replica: Option<(NodeId, BrokerEpoch)>,
    ) -> Self {
        Self { outbox, correlation_id, request, isolation, replica, answered: false }
    }

    /// Answers that there is no subscription.
    pub(crate) fn refuse(mut self, error: ApiError) {
        self.answer(Err(error), None);
    }

    /// Answers what the subscriber has to do first.
    pub(super) fn send_back(mut self, reply: SubscribeReply) {
        self.answer(Ok(reply), None);
    }

    /// Answers that the subscription is open.
    pub(super) fn grant(
        mut self,
        reply: SubscribeReply,
        handle: PartitionHandle,
        session: Option<SessionGuard>,
    ) {
        let grant = Grant {
            handle,
            isolation: self.isolation,
            offset: Offset(self.request.offset),
            credit: self.request.credit,
            session,
        };
        self.answer(Ok(reply), Some(grant));
    }

    fn answer(&mut self, reply: Result<SubscribeReply, ApiError>, grant: Option<Grant>) {
        self.answered = true;
        let answer =
            Answer { id: SubscriptionId(self.request.id), correlation_id: self.correlation_id, reply, grant };
        self.outbox.event(SubscriptionEvent::Answered(Box::new(answer)));
    }
}

impl Drop for Subscribe {
    fn drop(&mut self) {
        if !self.answered {
            self.answer(Err(ApiError::new(ErrorCode::ShuttingDown, "the partition was closed")), None);
        }
    }
}

/// The answer to a request to subscribe.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) id: SubscriptionId,
    pub(crate) correlation_id: CorrelationId,
    pub(crate) reply: Result<SubscribeReply, ApiError>,
    /// Set when the subscription is open.
    pub(crate) grant: Option<Grant>,
}

/// A subscription that is open.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) handle: PartitionHandle,
    pub(crate) isolation: Isolation,
    pub(crate) offset: Offset,
    pub(crate) credit: u64,
    /// The session of a follower.
    pub(crate) session: Option<SessionGuard>,
}

/// Where a follower's acknowledgements are left for the leader. The latest value wins.
#[derive(Debug, Default)]
pub(crate) struct AckCell(Mutex<Option<ReplicaAck>>);

impl AckCell {
    /// What was acknowledged since this was looked at last.
    pub(super) fn take(&self) -> Option<ReplicaAck> {
        self.0.lock().take()
    }
}

/// A follower's session at the leader. It is closed when this is dropped: with the subscription, or with its connection.
#[derive(Debug)]
pub(crate) struct SessionGuard {
    handle: PartitionHandle,
    session: u64,
    cell: Arc<AckCell>,
}

impl SessionGuard {
    pub(super) const fn new(handle: PartitionHandle, session: u64, cell: Arc<AckCell>) -> Self {
        Self { handle, session, cell }
    }

    /// Leaves what the follower acknowledges.
    pub(crate) fn acknowledge(&self, ack: ReplicaAck) {
        *self.cell.0.lock() = Some(ack);
        self.handle.shared.notify.notify_one();
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        // A partition that is closed has forgotten all sessions already.
        let _closed = self.handle.shared.push(Command::SessionClosed { session: self.session });
    }
}
