//! What a partition's task and its handles share: a mailbox and latest-value cells, never the state itself.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use highwater_broker_core::controller::topic_config::TopicConfig;
use highwater_broker_core::durability::Durability;
use highwater_broker_core::log::manifest::EpochStart;
use highwater_broker_core::replica::Assignment;
use highwater_broker_core::time::{Mono, Wall};
use highwater_protocol::batch::BatchHeader;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, Offset, SubscriptionId, TopicPartition};
use highwater_protocol::messages::Acks;
use highwater_protocol::topic_name::is_internal_topic;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use super::cleaning::CleanerCommand;
use super::handle::{Ask, Closed, Lane, Offer};
use super::sessions::Subscribe;
use super::status::Status;
use super::ticket::Ticket;
use crate::api::ApiError;
use crate::replication::links::{FollowEvent, Follower};
use crate::storage::check_plan::{RangeChecksum, ScrubOutcome};
use crate::storage::log::StampedBatch;
use crate::storage::read_plan::ReadPlan;
use crate::storage::sink::{FlushOutcome, FlushSink};
use crate::storage::table_plan::KeySlice;
use crate::storage::time_plan::TimePlan;

/// Batches that may wait for a partition, and their bytes. The produce windows bound them as well, but a connection that
/// ends gives its window back, and a partition whose log is being verified takes nothing for a while.
const QUEUED_BATCHES_MAX: usize = 16 << 10;
const QUEUED_BYTES_MAX: usize = 256 << 20;

/// What a partition's task and its handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) partition: TopicPartition,
    pub(super) topic: String,
    /// Whether its topic belongs to the brokers.
    pub(super) is_internal: bool,
    pub(super) flushed: Mutex<Option<FlushOutcome>>,
    pub(super) status: Mutex<Status>,
    pub(super) notify: Notify,
    /// For the broker's own topics: whether it leads, for whoever acts on it.
    leading: Option<watch::Sender<Option<LeaderEpoch>>>,
    inbox: Mutex<Inbox>,
    batch_bytes_max: AtomicU32,
}

#[derive(Debug, Default)]
struct Inbox {
    contents: Contents,
    /// Bytes of the batches that were produced.
    batch_bytes: usize,
    /// Why nothing is taken any more.
    closed: Option<Closed>,
}

/// What has queued up for a partition.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) commands: VecDeque<Command>,
    /// Batches of producers.
    pub(super) batches: VecDeque<Produce>,
    /// What happened to sessions with the leader, by session. Bounded by their credit.
    pub(super) followed: VecDeque<(u64, FollowEvent)>,
    /// The last assignment.
    pub(super) assigned: Option<Box<Assigned>>,
}

/// A partition as the image has it, for the registration that this broker runs under.
#[derive(Debug)]
pub(crate) struct Assigned {
    pub(crate) assignment: Assignment,
    pub(crate) own_epoch: BrokerEpoch,
    /// The version of that image.
    pub(crate) image_version: u64,
    /// Bytes a second that replicas on the move may fetch on each broker.
    pub(crate) move_bytes_per_second: u64,
}

/// What a partition's task can be told.
#[derive(Debug)]
pub(super) enum Command {
    Ask(Ask),
    CancelAsk {
        connection: u64,
        id: SubscriptionId,
    },
    Subscribe(Box<Subscribe>),
    SessionClosed {
        session: u64,
    },
    Read {
        from: Offset,
        bytes_max: usize,
        reply: oneshot::Sender<Result<Offer, ApiError>>,
    },
    ReadReplica {
        from: Offset,
        upto: Offset,
        bytes_max: usize,
        reply: oneshot::Sender<Result<RawRead, ApiError>>,
    },
    Checksum {
        start: Offset,
        end: Option<Offset>,
        bytes_max: u64,
        keys: Option<KeySlice>,
        reply: oneshot::Sender<Result<Checksum, ApiError>>,
    },
    Scrubbed(Option<ScrubOutcome>),
    Cleaner(CleanerCommand),
    PlanTime {
        timestamp_ms: i64,
        reply: oneshot::Sender<Result<TimePlan, ApiError>>,
    },
    LogStart {
        reply: oneshot::Sender<Result<LogStart, ApiError>>,
    },
    Configure(Box<TopicConfig>),
    DurabilityRecorded(Durability),
    Settle {
        done: oneshot::Sender<()>,
    },
    ProposalRefused {
        version: u64,
    },
    ResetAt {
        session: u64,
        start: Result<LogStart, ApiError>,
    },
    Refilled {
        range: (Offset, Offset),
        batches: Result<Vec<StampedBatch>, ApiError>,
    },
    Maintain(Wall),
    Close {
        why: Closed,
        done: oneshot::Sender<()>,
    },
}

/// A read of any replica's log, the part that is not committed included.
#[derive(Debug)]
pub(crate) struct RawRead {
    pub(crate) plan: Option<ReadPlan>,
    pub(crate) log_start: Offset,
    pub(crate) log_end: Offset,
}

/// A checksum over a range of one replica.
#[derive(Debug)]
pub(crate) struct Checksum {
    pub(crate) range: RangeChecksum,
    /// By keys: there are too many for so few slices.
    pub(crate) slices_needed: Option<u32>,
    /// The log is compacted, and passes looked up to here.
    pub(crate) compacted_end: Option<Offset>,
    pub(crate) log_start: Offset,
    pub(crate) log_end: Offset,
    pub(crate) high_watermark: Offset,
}

/// Where a log starts, for a follower that starts over there.
#[derive(Debug)]
pub(crate) struct LogStart {
    pub(crate) log_start: Offset,
    /// Where each leader epoch starts, up to the log start, oldest first.
    pub(crate) epochs: Vec<EpochStart>,
    /// The producers as they were at the log start; empty if that is not known.
    pub(crate) producers: Bytes,
}

/// A batch that was verified, on its way into the log.
#[derive(Debug)]
pub(super) struct Produce {
    pub(super) batch: Bytes,
    pub(super) header: BatchHeader,
    pub(super) number: u64,
    pub(super) lane: Arc<Lane>,
    pub(super) acks: Acks,
    /// If set, only while this is the epoch that this broker leads.
    pub(super) epoch: Option<LeaderEpoch>,
    pub(super) deadline: Mono,
    pub(super) ticket: Ticket,
}

impl Shared {
    pub(super) fn new(
        partition: TopicPartition,
        topic: String,
        batch_bytes_max: u32,
        status: Status,
    ) -> Self {
        let is_internal = is_internal_topic(&topic);
        Self {
            partition,
            is_internal,
            leading: is_internal.then(|| watch::channel(None).0),
            topic,
            inbox: Mutex::default(),
            flushed: Mutex::new(None),
            status: Mutex::new(status),
            notify: Notify::new(),
            batch_bytes_max: AtomicU32::new(batch_bytes_max),
        }
    }

    /// Takes what has queued up into `contents`, which must be empty.
    pub(super) fn take(&self, contents: &mut Contents) {
        let mut inbox = self.inbox.lock();
        std::mem::swap(&mut inbox.contents, contents);
        inbox.batch_bytes = 0;
    }

    /// Takes nothing any more.
    pub(super) fn close(&self, why: Closed) {
        self.inbox.lock().closed = Some(why);
        self.set_leading(None);
    }

    /// Tells whoever acts on it at which epoch this broker leads, if it does. After the end it does not.
    pub(super) fn set_leading(&self, epoch: Option<LeaderEpoch>) {
        let Some(sender) = &self.leading else { return };
        let epoch = epoch.filter(|_| self.closed().is_none());
        sender.send_if_modified(|last| std::mem::replace(last, epoch) != epoch);
    }

    /// The epoch at which this broker leads, as it changes; `None` unless the topic is the brokers' own.
    pub(super) fn leading(&self) -> Option<watch::Receiver<Option<LeaderEpoch>>> {
        self.leading.as_ref().map(watch::Sender::subscribe)
    }

    /// Why nothing is taken any more, if so.
    pub(super) fn closed(&self) -> Option<Closed> {
        self.inbox.lock().closed
    }

    /// Ends what nobody works at any more, if it was not closed; true then.
    pub(super) fn fail(&self) -> bool {
        let mut inbox = self.inbox.lock();
        if inbox.closed.is_some() {
            return false;
        }
        inbox.closed = Some(Closed::Failed);
        let contents = std::mem::take(&mut inbox.contents);
        drop(inbox);
        let mut status = self.status.lock();
        status.state = "offline";
        status.is_ready = false;
        drop(status);
        self.set_leading(None);
        contents.refuse(&Closed::Failed.error(self.partition));
        true
    }

    /// Bytes that a batch may have.
    pub(super) fn batch_bytes_max(&self) -> u32 {
        self.batch_bytes_max.load(Ordering::Relaxed)
    }

    pub(super) fn set_batch_bytes_max(&self, bytes: u32) {
        self.batch_bytes_max.store(bytes, Ordering::Relaxed);
    }

    /// Leaves a batch, or answers that it cannot be taken.
    pub(super) fn push_batch(&self, produce: Produce) {
        let mut inbox = self.inbox.lock();
        let (count, bytes) = (inbox.contents.batches.len(), inbox.batch_bytes);
        let refusal = match inbox.closed {
            Some(why) => Some(why.error(self.partition)),
            None if count >= QUEUED_BATCHES_MAX || bytes >= QUEUED_BYTES_MAX => {
                let text = format!("{count} batches of {bytes} bytes wait for partition {}", self.partition);
                Some(ApiError::new(ErrorCode::Busy, text))
            }
            None => None,
        };
        if let Some(refusal) = refusal {
            drop(inbox);
            return produce.ticket.refuse(refusal.code, refusal.message);
        }
        inbox.batch_bytes += produce.batch.len();
        inbox.contents.batches.push_back(produce);
        drop(inbox);
        self.notify.notify_one();
    }

    /// Leaves a command, or gives it back if nothing is taken any more.
    pub(super) fn push(&self, command: Command) -> Result<(), (Closed, Command)> {
        let mut inbox = self.inbox.lock();
        if let Some(why) = inbox.closed {
            return Err((why, command));
        }
        inbox.contents.commands.push_back(command);
        drop(inbox);
        self.notify.notify_one();
        Ok(())
    }

    /// Leaves an assignment in place of the last one, unless that is of a later image.
    pub(super) fn assign(&self, assigned: Assigned) {
        let mut inbox = self.inbox.lock();
        let place = &mut inbox.contents.assigned;
        if place.as_ref().is_none_or(|last| last.image_version <= assigned.image_version) {
            *place = Some(Box::new(assigned));
        }
        drop(inbox);
        self.notify.notify_one();
    }
}

impl Contents {
    /// Answers everybody in it.
    pub(super) fn refuse(self, error: &ApiError) {
        for produce in self.batches {
            produce.ticket.refuse(error.code, error.message.clone());
        }
        for command in self.commands {
            match command {
                Command::Ask(ask) => ask.refuse(error),
                Command::Subscribe(subscribe) => subscribe.refuse(error.clone()),
                _ => {}
            }
        }
    }
}

impl Follower for Shared {
    fn happened(&self, session: u64, event: FollowEvent) {
        let mut inbox = self.inbox.lock();
        if inbox.closed.is_none() {
            inbox.contents.followed.push_back((session, event));
            drop(inbox);
            self.notify.notify_one();
        }
    }
}

impl FlushSink for Shared {
    fn flush_done(&self, outcome: FlushOutcome) {
        let mut cell = self.flushed.lock();
        // Rounds may overlap and finish in any order; a failure must not be covered by a success. What is about a log
        // that was truncated since says nothing, and must cover nothing.
        let replaces = match (&*cell, &outcome) {
            (None, _) => true,
            (Some(before), after) if before.log_generation() != after.log_generation() => {
                after.log_generation() > before.log_generation()
            }
            (Some(FlushOutcome::Failed { .. }), _) => false,
            (Some(_), FlushOutcome::Failed { .. }) => true,
            (Some(FlushOutcome::Flushed { upto, .. }), FlushOutcome::Flushed { upto: new_upto, .. }) => {
                new_upto > upto
            }
        };
        if replaces {
            *cell = Some(outcome);
        }
        drop(cell);
        self.notify.notify_one();
    }
}
