//! Appending everything that has queued up in one write.

use std::collections::VecDeque;
use std::sync::Arc;

use highwater_broker_core::producer::{FirstResult, Judged, Preparation, Verdict};
use highwater_broker_core::replica::{Health, Input, Role, Stamper};
use highwater_broker_core::time::Mono;
use highwater_protocol::batch::{BatchHeader, HEADER_LENGTH};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{LeaderEpoch, Offset, ProducerId};
use highwater_protocol::messages::{Acks, ProduceResult, Stage};
use tracing::{error, warn};

use super::handle::Lane;
use super::mailbox::Produce;
use super::status::not_leader;
use super::waiters::Waiter;
use super::worker::Worker;
use crate::api::ApiError;
use crate::storage::error::AppendError;
use crate::storage::log::StampedBatch;

/// Bytes of one write, unless a single batch is larger: more than this gains nothing and keeps others waiting.
const WRITE_BYTES_MAX: usize = 4 << 20;

/// A batch that is being written, or a duplicate of one.
struct Writing {
    acks: Acks,
    /// Its number on its connection, if that counts: it is next again if the write fails.
    lane: Option<(Arc<Lane>, u64)>,
    waiter: Waiter,
}

/// What goes into one write.
struct Write {
    stamper: Stamper,
    preparation: Preparation,
    batches: Vec<StampedBatch>,
    writing: Vec<Writing>,
    /// Batches that are in the log already: their producers wait for what the first ones waited for, whatever becomes of
    /// the write.
    duplicates: Vec<Writing>,
}

impl Worker {
    /// Appends batches in the order in which they came.
    pub(super) fn append_all(&mut self, now: Mono, produces: &mut VecDeque<Produce>) {
        while !produces.is_empty() {
            self.append_some(now, produces);
        }
    }

    fn append_some(&mut self, now: Mono, produces: &mut VecDeque<Produce>) {
        let mut write = Write {
            stamper: self.replica.stamper(self.services.clock.wall()),
            preparation: std::mem::take(&mut self.preparation),
            batches: Vec::with_capacity(produces.len()),
            writing: Vec::with_capacity(produces.len()),
            duplicates: Vec::new(),
        };
        let mut bytes = 0;
        while let Some(produce) = produces.pop_front() {
            bytes += produce.batch.len();
            self.prepare(produce, &mut write);
            if bytes >= WRITE_BYTES_MAX {
                break;
            }
        }
        let Write { stamper, mut preparation, batches, writing, duplicates } = write;
        preparation.clear();
        self.preparation = preparation;
        let repeated = !duplicates.is_empty();
        self.wait(duplicates);
        if batches.is_empty() {
            if repeated {
                // What they wait for may have happened long ago.
                self.waiters.answer_reached(&self.replica);
            }
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
            Err(error) => {
                self.refuse_written(&error, writing);
                self.waiters.answer_reached(&self.replica);
            }
        }
    }

    /// Checks one batch against the state of the partition and the order of its producer, and stamps it.
    fn prepare(&self, produce: Produce, write: &mut Write) {
        // The order of an idempotent producer is in its sequences; other batches are numbered by connection.
        let is_numbered = produce.header.producer.producer_id == ProducerId::NONE;
        let next = produce.lane.next();
        if is_numbered && produce.number != next {
            return produce.ticket.answer(ProduceResult {
                error: ErrorCode::OutOfOrder.code(),
                message: format!("batch number {} came, number {next} is next", produce.number),
                next_number: next,
                ..ProduceResult::default()
            });
        }
        if let Err(refusal) = self.may_append(produce.epoch) {
            return produce.ticket.refuse(refusal.code, refusal.message);
        }
        let append_time = write.stamper.append_time();
        let judged = write.preparation.handle(self.log.producers(), &produce.header, append_time);
        match judged {
            Judged::Settled(Verdict::Append) => {}
            Judged::Settled(Verdict::Duplicate(first)) => {
                return write.duplicates.push(Writing::again(produce, first));
            }
            Judged::InThisWrite(first) => return write.writing.push(Writing::again(produce, first)),
            Judged::Settled(Verdict::Refuse(refusal)) => {
                let partition = self.shared.partition;
                return produce.ticket.refuse(refusal.code(), format!("partition {partition}: {refusal}"));
            }
        }
        let Some(stamp) = write.stamper.next(produce.header.offset_count()) else {
            return produce.ticket.refuse(ErrorCode::Internal, "the partition has no offsets left");
        };
        let header = BatchHeader { leader: stamp, ..produce.header };
        write.preparation.note(self.log.producers(), &header);
        write.batches.push(StampedBatch {
            head: produce.header.stamped(stamp, self.shared.partition),
            tail: produce.batch.slice(HEADER_LENGTH..),
            header,
        });
        let waiter = Waiter {
            end: header.end_offset(),
            base_offset: stamp.base_offset,
            append_time: stamp.append_time,
            deadline: produce.deadline,
            is_idempotent: header.producer.producer_id != ProducerId::NONE,
            ticket: produce.ticket,
        };
        let lane = is_numbered.then(|| {
            produce.lane.advance();
            (produce.lane, produce.number)
        });
        write.writing.push(Writing { acks: produce.acks, lane, waiter });
    }

    fn may_append(&self, epoch: Option<LeaderEpoch>) -> Result<(), ApiError> {
        if epoch.is_some_and(|epoch| epoch != self.replica.epoch()) {
            // It was decided from what the log had then; others may have appended since.
            return Err(not_leader(self.shared.partition, self.replica.leader()));
        }
        if self.replica.role() != Role::Leader && self.replica.health() == Health::Online {
            return Err(not_leader(self.shared.partition, self.replica.leader()));
        }
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
        for Writing { waiter, lane, .. } in writing {
            // What may be there is not sent again under its number.
            if let (Some((lane, number)), true) = (lane, code != ErrorCode::OutcomeUnknown) {
                lane.rewind(number);
            }
            waiter.ticket.refuse(code, message.clone());
        }
    }
}

impl Writing {
    /// A batch that is there already, or will be with this write: it gets the result of the first one when that has what
    /// this one asks for.
    fn again(produce: Produce, first: FirstResult) -> Self {
        let waiter = Waiter {
            end: if cfg!(hw_mutate = "duplicate_answered_early") { Offset::ZERO } else { first.end_offset },
            base_offset: first.base_offset,
            append_time: first.append_time,
            deadline: produce.deadline,
            is_idempotent: true,
            ticket: produce.ticket,
        };
        Self { acks: produce.acks, lane: None, waiter }
    }
}
