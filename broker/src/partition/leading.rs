//! The leader's half of a partition: the sessions of its followers, and what it is told about itself.

use std::sync::Arc;

use highwater_broker_core::replica::{
    Ends, Input, Role, SubscribeCheck, SubscribeRefusal, Subscribed, Subscriber,
};
use highwater_broker_core::time::Mono;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, Offset, SubscriptionId};
use highwater_protocol::messages::{Divergence, Ended, SubscribeReply};
use tracing::{debug, info};

use super::mailbox::Assigned;
use super::sessions::{AckCell, SessionGuard, Subscribe};
use super::status::{not_leader, not_ready};
use super::worker::Worker;
use crate::api::ApiError;
use crate::server::outbox::{Outbox, SubscriptionEvent};

/// The session of a follower, at its leader.
#[derive(Debug)]
pub(super) struct LeaderSession {
    number: u64,
    cell: Arc<AckCell>,
    /// Where its subscription is, and which one it is there.
    outbox: Arc<Outbox>,
    id: SubscriptionId,
}

impl Worker {
    /// Takes in what the image says.
    pub(super) fn assigned(&mut self, now: Mono, assigned: Assigned) {
        let Assigned { assignment, own_epoch, image_version, move_bytes_per_second } = assigned;
        // The opener and the manager may both have told it, in either order.
        if image_version < self.image_version {
            return;
        }
        self.image_version = image_version;
        let node = self.services.node_id;
        self.is_added = assignment.adding.contains(&node);
        self.own_epoch = own_epoch;
        self.move_bytes_per_second = move_bytes_per_second;
        let members_unknown = assignment.in_sync.is_empty() && assignment.eligible.is_empty();
        self.step(now, Input::Assigned { assignment, own_epoch });
        self.report_ends(members_unknown);
        self.report_holes();
    }

    /// Answers a request to subscribe.
    pub(super) fn subscribe_here(&mut self, now: Mono, subscribe: Subscribe) {
        let request = &subscribe.request;
        // Consumers wait until the leader knows what is committed; followers make it so.
        if self.replica.role() == Role::Leader && subscribe.replica.is_none() && !self.replica.is_ready() {
            return subscribe.refuse(not_ready(self.shared.partition));
        }
        let check = SubscribeCheck {
            replica: subscribe.replica.map(|(node, broker_epoch)| Subscriber { node, broker_epoch }),
            current_epoch: request.current_epoch.map(LeaderEpoch),
            offset: Offset(request.offset),
            last_epoch: request.last_epoch.map(LeaderEpoch),
        };
        match self.replica.check_subscribe(&check) {
            Ok(Subscribed::Live) => {
                let session =
                    check.replica.map(|replica| self.open_session(now, &subscribe, replica, check.offset));
                let (reply, handle) = (self.subscribe_reply(), self.handle());
                subscribe.grant(reply, handle, session);
            }
            Ok(Subscribed::Diverged { epoch, end_offset }) => {
                let divergence = Divergence { epoch: epoch.get(), end_offset: end_offset.get() };
                let reply = SubscribeReply { divergence: Some(divergence), ..self.subscribe_reply() };
                subscribe.send_back(reply);
            }
            Ok(Subscribed::Reset { .. }) => {
                let reply = SubscribeReply { reset: true, ..self.subscribe_reply() };
                subscribe.send_back(reply);
            }
            Err(refusal) => subscribe.refuse(self.refusal(&refusal)),
        }
    }

    fn subscribe_reply(&self) -> SubscribeReply {
        SubscribeReply {
            leader_epoch: self.replica.epoch().get(),
            high_watermark: self.replica.high_watermark().get(),
            log_start: self.log.log_start().get(),
            log_end: self.log.log_end().get(),
            divergence: None,
            reset: false,
        }
    }

    fn refusal(&self, refusal: &SubscribeRefusal) -> ApiError {
        let (topic, partition) = (&self.shared.topic, self.shared.partition.partition);
        let code = match refusal {
            SubscribeRefusal::NotLeader { leader, .. } => return not_leader(self.shared.partition, *leader),
            SubscribeRefusal::FencedEpoch { .. } => ErrorCode::FencedEpoch,
            SubscribeRefusal::UnknownEpoch { .. } => ErrorCode::UnknownEpoch,
            SubscribeRefusal::OutOfRange { .. } => ErrorCode::OffsetOutOfRange,
            SubscribeRefusal::NotAReplica { .. } => ErrorCode::NotAuthorized,
            SubscribeRefusal::StaleRegistration { .. } => ErrorCode::StaleBrokerEpoch,
            SubscribeRefusal::MemberBelowLogStart { .. } => ErrorCode::IneligibleReplica,
        };
        ApiError::new(code, format!("topic '{topic}' partition {partition}: {refusal}"))
    }

    fn open_session(
        &mut self,
        now: Mono,
        subscribe: &Subscribe,
        replica: Subscriber,
        log_end: Offset,
    ) -> SessionGuard {
        let number = self.services.next_session();
        let cell = Arc::new(AckCell::default());
        let (outbox, id) = (Arc::clone(&subscribe.outbox), SubscriptionId(subscribe.request.id));
        self.sessions.push(LeaderSession { number, cell: Arc::clone(&cell), outbox, id });
        self.services.metrics.follower_sessions.inc();
        let Subscriber { node, broker_epoch } = replica;
        debug!(
            topic = self.shared.topic, partition = %self.shared.partition, follower = %node, %log_end,
            "a follower has come"
        );
        self.step(now, Input::SessionOpened { session: number, node, broker_epoch, log_end });
        self.want_tail();
        SessionGuard::new(self.handle(), number, cell)
    }

    pub(super) fn session_closed(&mut self, now: Mono, session: u64) {
        let before = self.sessions.len();
        self.sessions.retain(|live| live.number != session);
        if self.sessions.len() < before {
            self.services.metrics.follower_sessions.dec();
            self.step(now, Input::SessionClosed { session });
            self.want_tail();
        }
    }

    /// The same follower has another session now: whoever still has this one comes again.
    pub(super) fn end_session(&mut self, session: u64) {
        let Some(place) = self.sessions.iter().position(|live| live.number == session) else { return };
        let LeaderSession { outbox, id, .. } = self.sessions.swap_remove(place);
        self.services.metrics.follower_sessions.dec();
        self.parked.asks.remove(&(outbox.id(), id));
        let text = "the replica has opened another session since";
        outbox.event(SubscriptionEvent::Ended(Box::new(Ended {
            id: id.get(),
            code: ErrorCode::Conflict.code(),
            message: text.to_owned(),
            ..Ended::default()
        })));
    }

    /// Takes in what followers have acknowledged since the last pass.
    pub(super) fn take_acks(&mut self, now: Mono) {
        for place in 0..self.sessions.len() {
            let Some(LeaderSession { number, cell, .. }) = self.sessions.get(place) else { break };
            let session = *number;
            let Some(ack) = cell.take() else { continue };
            self.step(
                now,
                Input::Acked {
                    session,
                    leader_epoch: LeaderEpoch(ack.leader_epoch),
                    broker_epoch: BrokerEpoch(ack.broker_epoch),
                    ends: Ends { log_end: Offset(ack.log_end), flushed_end: Offset(ack.flushed_end) },
                },
            );
        }
    }

    pub(super) fn started_leading(&mut self, epoch: LeaderEpoch) {
        info!(
            topic = self.shared.topic, partition = %self.shared.partition, %epoch,
            log_end = %self.replica.ends().log_end, "leads from here on"
        );
        self.services.metrics.partitions_led.inc();
    }

    /// What producers and subscribers wait for does not come from here any more.
    pub(super) fn stopped_leading(&mut self) {
        info!(
            topic = self.shared.topic, partition = %self.shared.partition, leader = ?self.replica.leader(),
            "leads no longer"
        );
        self.services.metrics.partitions_led.dec();
        let error = not_leader(self.shared.partition, self.replica.leader());
        self.waiters.lost_leadership(&error.message);
        self.end_readers(&error);
        self.services.metrics.follower_sessions.dec_by(self.sessions.len() as i64);
        self.sessions.clear();
        self.want_tail();
    }
}
