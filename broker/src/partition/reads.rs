//! Reads, planned by the owner of the log and carried out by whoever asked.

use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::replica::Role;
use highwater_broker_core::time::Mono;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{NodeId, Offset};
use highwater_protocol::messages::{CorruptRange, Ended, Isolation};
use tracing::warn;

use super::handle::{Ask, Offer};
use super::mailbox::RawRead;
use super::status::{not_leader, not_ready};
use super::worker::Worker;
use crate::api::ApiError;
use crate::server::outbox::{Outbox, SubscriptionEvent};
use crate::storage::error::ReadError;
use crate::storage::time_plan::TimePlan;

/// How much later than it moved followers are told of a watermark, when no batch goes to them meanwhile.
const WATERMARK_PAUSE: Duration = Duration::from_millis(20);

impl Worker {
    /// Answers a subscription's question, or keeps it until there is an answer.
    pub(super) fn answer_ask(&mut self, ask: Ask) {
        if let Some(ask) = self.try_answer(ask) {
            if self.watermark_moved(&ask) {
                // A follower, which is told a little later.
                self.parked.look_again();
            }
            self.parked.asks.insert((ask.outbox.id(), ask.id), ask);
            self.want_tail();
        }
    }

    /// Answers every question that can be answered by now.
    pub(super) fn offer_to_parked(&mut self, now: Mono) {
        if self.parked.asks.is_empty() {
            self.watermark_at = None;
            return;
        }
        let due = self.watermark_at.is_some_and(|at| at <= now);
        let moved = self.parked.may_be_answered(self.replica.high_watermark(), self.log.log_end());
        if !moved && !due {
            return;
        }
        let mut waits = false;
        let mut answerable = Vec::new();
        for (key, ask) in &self.parked.asks {
            let moved = self.watermark_moved(ask);
            // Followers are told of the watermark with the next batches, or a little later: nobody waits for it there.
            let moved_for_follower = moved && ask.isolation == Isolation::LogEnd;
            let has_batches = ask.bytes_max > 0 && self.end_for(ask.isolation) > ask.from;
            if has_batches || (moved && (due || !moved_for_follower)) {
                answerable.push(*key);
            }
            waits |= moved_for_follower && !due;
        }
        self.watermark_at = if waits { self.watermark_at.or(Some(now.after(WATERMARK_PAUSE))) } else { None };
        self.watermark_due = due;
        for key in answerable {
            if let Some(ask) = self.parked.asks.remove(&key) {
                self.answer_ask(ask);
            }
        }
        self.watermark_due = false;
    }

    /// After a verification the log may be shorter: who has read past its end has read what is gone.
    pub(super) fn end_readers_past_the_end(&mut self) {
        let log_end = self.log.log_end();
        let past: Vec<_> =
            self.parked.asks.iter().filter(|(_, ask)| ask.from > log_end).map(|(key, _)| *key).collect();
        for key in past {
            if let Some(ask) = self.parked.asks.remove(&key) {
                let why =
                    format!("the log of {} ends at {log_end} since it was verified", self.shared.partition);
                self.end(&ask, ErrorCode::LogReset, why, None);
            }
        }
    }

    /// Nobody is served from here any more.
    pub(super) fn end_readers(&mut self, error: &ApiError) {
        for (_, ask) in std::mem::take(&mut self.parked.asks) {
            self.end(&ask, error.code, error.message.clone(), None);
        }
    }

    /// Plans one read of what is committed.
    pub(super) fn plan_read(&mut self, from: Offset, bytes_max: usize) -> Result<Offer, ApiError> {
        self.check_readable(from)?;
        let high_watermark = self.replica.high_watermark();
        let plan = if from < high_watermark {
            Some(self.log.plan_read(from, high_watermark, bytes_max).map_err(|error| read_error(&error))?)
        } else {
            None
        };
        Ok(self.offer(0, from, plan))
    }

    /// Plans a read of what is in this log, committed or not, whoever leads.
    pub(super) fn plan_raw_read(
        &mut self,
        from: Offset,
        upto: Offset,
        bytes_max: usize,
    ) -> Result<RawRead, ApiError> {
        let (log_start, log_end) = (self.log.log_start(), self.log.log_end());
        let plan = if from < upto.min(log_end) {
            Some(self.log.plan_read(from, upto, bytes_max).map_err(|error| read_error(&error))?)
        } else {
            None
        };
        Ok(RawRead { plan, log_start, log_end })
    }

    /// Plans to find an offset by time among what is committed.
    pub(super) fn plan_time(&mut self, timestamp_ms: i64) -> Result<TimePlan, ApiError> {
        self.check_serves()?;
        Ok(self.log.plan_time(timestamp_ms, self.replica.high_watermark()))
    }

    /// The tail is kept in memory while somebody waits for it.
    pub(super) fn want_tail(&mut self) {
        self.log.set_tail_wanted(!self.parked.asks.is_empty() || !self.sessions.is_empty());
    }

    /// Answers, or gives the question back if there is nothing to say yet.
    fn try_answer(&mut self, ask: Ask) -> Option<Ask> {
        let end = self.end_for(ask.isolation);
        if self.replica.role() != Role::Leader {
            let error = not_leader(self.shared.partition, self.replica.leader());
            self.end(&ask, error.code, error.message, None);
            return None;
        }
        let (log_start, log_end) = (self.log.log_start(), self.log.log_end());
        if ask.from < log_start || ask.from > log_end {
            let text =
                format!("offset {} is not in the log, which goes from {log_start} to {log_end}", ask.from);
            self.end(&ask, ErrorCode::OffsetOutOfRange, text, None);
            return None;
        }
        if ask.from >= end || ask.bytes_max == 0 {
            let is_due = ask.isolation != Isolation::LogEnd || self.watermark_due;
            if !self.watermark_moved(&ask) || !is_due {
                return Some(ask);
            }
            let offer = self.offer(ask.number, ask.from, None);
            ask.outbox.event(SubscriptionEvent::Offered(ask.id, offer));
            return None;
        }
        match self.log.plan_read(ask.from, end, ask.bytes_max) {
            Ok(plan) => {
                let offer = self.offer(ask.number, ask.from, Some(plan));
                ask.outbox.event(SubscriptionEvent::Offered(ask.id, offer));
            }
            Err(error) => self.end_for_error(&ask, &error),
        }
        None
    }

    fn end_for_error(&self, ask: &Ask, error: &ReadError) {
        let corrupt = match error {
            ReadError::CorruptRange { start, end } => {
                Some(CorruptRange { start: start.get(), end: end.get() })
            }
            _ => None,
        };
        if corrupt.is_none() {
            warn!(topic = self.shared.topic, partition = %self.shared.partition, %error, "read failed");
        }
        let error = read_error(error);
        self.end(ask, error.code, error.message, corrupt);
    }

    fn end(&self, ask: &Ask, code: ErrorCode, message: String, corrupt: Option<CorruptRange>) {
        end(
            &ask.outbox,
            Ended {
                id: ask.id.get(),
                code: code.code(),
                message,
                leader: self.replica.leader().map_or(0, NodeId::get),
                log_start: self.log.log_start().get(),
                log_end: self.log.log_end().get(),
                divergence: None,
                corrupt,
            },
        );
    }

    fn watermark_moved(&self, ask: &Ask) -> bool {
        self.replica.high_watermark() > ask.seen_watermark
    }

    fn end_for(&self, isolation: Isolation) -> Offset {
        match isolation {
            // Without transactions everything committed is stable.
            Isolation::Committed | Isolation::Stable => self.replica.high_watermark(),
            Isolation::LogEnd => self.log.log_end(),
        }
    }

    fn check_readable(&self, from: Offset) -> Result<(), ApiError> {
        self.check_serves()?;
        let (log_start, log_end) = (self.log.log_start(), self.log.log_end());
        if from < log_start || from > log_end {
            return Err(ApiError::new(
                ErrorCode::OffsetOutOfRange,
                format!("offset {from} is not in the log, which goes from {log_start} to {log_end}"),
            ));
        }
        Ok(())
    }

    fn check_serves(&self) -> Result<(), ApiError> {
        if self.replica.role() != Role::Leader {
            return Err(not_leader(self.shared.partition, self.replica.leader()));
        }
        if !self.replica.is_ready() {
            return Err(not_ready(self.shared.partition));
        }
        Ok(())
    }

    fn offer(&self, number: u64, from: Offset, plan: Option<crate::storage::read_plan::ReadPlan>) -> Offer {
        Offer {
            plan,
            number,
            from,
            leader_epoch: self.replica.epoch(),
            high_watermark: self.replica.high_watermark(),
            log_start: self.log.log_start(),
            log_end: self.log.log_end(),
        }
    }
}

fn end(outbox: &Arc<Outbox>, ended: Ended) {
    outbox.event(SubscriptionEvent::Ended(Box::new(ended)));
}

/// What whoever reads is told.
pub(crate) fn read_error(error: &ReadError) -> ApiError {
    let code = match error {
        ReadError::OutOfRange { .. } => ErrorCode::OffsetOutOfRange,
        ReadError::CorruptRange { .. } => ErrorCode::CorruptRange,
        ReadError::Suspect => ErrorCode::ReplicaSuspect,
        _ => ErrorCode::StorageError,
    };
    ApiError::new(code, error.to_string())
}
