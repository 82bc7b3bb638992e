//! Appending everything that has queued up in one write.

use std::collections::VecDeque;
use std::sync::Arc;

use highwater_broker_core::replica::{Health, Input, Stamper};
use highwater_broker_core::time::Mono;
use highwater_protocol::batch::{BatchHeader, HEADER_LENGTH};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::ProducerId;
use highwater_protocol::messages::{Acks, ProduceResult, Stage};
use tracing::{error, warn};

use super::handle::{Lane, Produce};
use super::waiters::Waiter;
use super::worker::Worker;
use crate::api::ApiError;
use crate::storage::error::AppendError;
use crate::storage::log::StampedBatch;

/// Bytes of one write, unless a single batch is larger: more than this gains nothing and keeps others waiting.
const WRITE_BYTES_MAX: usize = 4 << 20;

/// A batch that is being written.
struct Writing {
    acks: Acks,
    lane: Arc<Lane>,
    number: u64,
    waiter: Waiter,
}

impl Worker {
    /// Appends batches in the order in which they came.
    pub(super) fn append_all(&mut self, now: Mono, produces: &mut VecDeque<Produce>) {
        while !produces.is_empty() {
            self.append_some(now, produces);
        }
    }

    fn append_some(&mut self, now: Mono, produces: &mut VecDeque<Produce>) {
        let mut stamper = self.replica.stamper(self.services.clock.wall());
        let mut batches = Vec::with_capacity(produces.len());
        let mut writing = Vec::with_capacity(produces.len());
        let mut bytes = 0;
        while let Some(produce) = produces.pop_front() {
            bytes += produce.batch.len();
            self.prepare(produce, &mut stamper, &mut batches, &mut writing);
            if bytes >= WRITE_BYTES_MAX {
                break;
            }
        }
        if batches.is_empty() {
            return;
        }
        match self.log.append(&batches) {
            Ok(()) => {
                let metrics = &self.services.metrics;
                metrics.append_writes.inc();
                metrics.appended_batches.inc_by(batches.len() as u64);
                let written: u64 = batches.iter().map(|batch| batch.header.length() as u64).sum();
                metrics.appended_bytes.inc_by(written);
                self.appended_bytes += written;
                metrics
                    .appended_records
                    .inc_by(batches.iter().map(|batch| u64::from(batch.header.producer.record_count)).sum());
                self.wait(writing);
                self.timed.get_or_insert((stamper.end(), now));
                let appended = Input::Appended { log_end: stamper.end(), append_time: stamper.append_time() };
                self.step(now, appended);
            }
            Err(error) => self.refuse_written(&error, writing),
        }
    }

    /// Checks one batch against the order of its connection and the state of the partition, and stamps it.
    fn prepare(
        &self,
        produce: Produce,
        stamper: &mut Stamper,
        batches: &mut Vec<StampedBatch>,
        writing: &mut Vec<Writing>,
    ) {
        let next = produce.lane.next();
        if produce.number != next {
            return produce.ticket.answer(ProduceResult {
                error: ErrorCode::OutOfOrder.code(),
                message: format!("batch number {} came, number {next} is next", produce.number),
                next_number: next,
                ..ProduceResult::default()
            });
        }
        if let Err(refusal) = self.may_append(&produce.header) {
            return produce.ticket.refuse(refusal.code, refusal.message);
        }
        let Some(stamp) = stamper.next(produce.header.offset_count()) else {
            return produce.ticket.refuse(ErrorCode::Internal, "the partition has no offsets left");
        };
        produce.lane.advance();
        let header = BatchHeader { leader: stamp, ..produce.header };
        batches.push(StampedBatch {
            head: produce.header.stamped(stamp, self.shared.partition),
            tail: produce.batch.slice(HEADER_LENGTH..),
            header,
        });
        let waiter = Waiter {
            end: header.end_offset(),
            base_offset: stamp.base_offset,
            append_time: stamp.append_time,
            deadline: produce.deadline,
            ticket: produce.ticket,
        };
        writing.push(Writing { acks: produce.acks, lane: produce.lane, number: produce.number, waiter });
    }

    fn may_append(&self, header: &BatchHeader) -> Result<(), ApiError> {
        if self.replica.health() != Health::Online {
            return Err(ApiError::new(
                ErrorCode::ReplicaSuspect,
                format!("a flush of partition {} failed; its log is being verified", self.shared.partition),
            ));
        }
        if !self.replica.has_quorum() {
            return Err(ApiError::new(
                ErrorCode::NotEnoughReplicas,
                format!(
                    "partition {} has {} replicas in sync, fewer than its min_in_sync",
                    self.shared.partition,
                    self.replica.in_sync_count()
                ),
            ));
        }
        if header.producer.producer_id != ProducerId::NONE {
            return Err(ApiError::new(
                ErrorCode::UnsupportedFormat,
                "this broker takes no batches of idempotent producers yet",
            ));
        }
        Ok(())
    }

    fn wait(&mut self, writing: Vec<Writing>) {
        for Writing { acks, waiter, .. } in writing {
            match acks {
                Acks::All => self.waiters.wait_committed(waiter),
                Acks::Leader => self.waiters.wait_leader(waiter),
                Acks::None => waiter.ticket.answer(ProduceResult {
                    base_offset: waiter.base_offset.get(),
                    append_time: waiter.append_time,
                    stage: Stage::Accepted.into(),
                    replicas_counted: 1,
                    replicas_total: self.replica.replication(),
                    ..ProduceResult::default()
                }),
            }
        }
    }

    /// Nothing of the write counts: every batch of it is refused, and its connection may send it again.
    fn refuse_written(&mut self, error: &AppendError, writing: Vec<Writing>) {
        let code = match error {
            AppendError::Full(_) => ErrorCode::DiskFull,
            AppendError::Suspect => ErrorCode::ReplicaSuspect,
            AppendError::Closed => ErrorCode::ShuttingDown,
            AppendError::Stuck { .. } => ErrorCode::OutcomeUnknown,
            _ => ErrorCode::StorageError,
        };
        let partition = self.shared.partition;
        match code {
            ErrorCode::DiskFull => warn!(topic = self.shared.topic, %partition, %error, "append refused"),
            _ => error!(topic = self.shared.topic, %partition, %error, "append failed"),
        }
        let message = error.to_string();
        for Writing { waiter, lane, number, .. } in writing {
            // What may be there is not sent again under its number.
            if code != ErrorCode::OutcomeUnknown {
                lane.rewind(number);
            }
            waiter.ticket.refuse(code, message.clone());
        }
    }
}
