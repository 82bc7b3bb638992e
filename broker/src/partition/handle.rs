//! How the rest of the broker talks to a partition: a cheap handle on its mailbox and on what it last told about itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use highwater_broker_core::controller::topic_config::TopicConfig;
use highwater_broker_core::durability::Durability;
use highwater_broker_core::time::{Mono, Wall};
use highwater_protocol::batch::BatchHeader;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{LeaderEpoch, Offset, SubscriptionId, TopicPartition};
use highwater_protocol::messages::{Acks, Ended, Isolation, ProduceResult};
use tokio::sync::{oneshot, watch};

use super::cleaning::CleanerCommand;
use super::mailbox::{Assigned, Checksum, Command, LogStart, Produce, RawRead, Shared};
use super::sessions::Subscribe;
use super::status::Status;
use super::ticket::{Ticket, own_ticket};
use crate::api::ApiError;
use crate::server::outbox::{Outbox, SubscriptionEvent};
use crate::storage::check_plan::ScrubOutcome;
use crate::storage::log::StampedBatch;
use crate::storage::read_plan::ReadPlan;
use crate::storage::table_plan::KeySlice;
use crate::storage::time_plan::TimePlan;

/// A partition that this broker serves.
#[derive(Debug, Clone)]
pub(crate) struct PartitionHandle {
    pub(super) shared: Arc<Shared>,
}

/// Why a partition takes nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// Its topic was deleted.
    Deleted,
    /// Other brokers have it now.
    Moved,
    /// The broker is shutting down.
    ShuttingDown,
    /// Its task has failed.
    Failed,
}

/// The order of one connection's batches in one partition: the number that is accepted next. Changed by the partition's
/// task only.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    next: AtomicU64,
}

impl Lane {
    pub(super) fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    pub(super) fn advance(&self) {
        self.next.fetch_add(1, Ordering::Relaxed);
    }

    /// `number` was not appended after all: it is next again, if nothing before it is.
    pub(super) fn rewind(&self, number: u64) {
        self.next.fetch_min(number, Ordering::Relaxed);
    }
}

/// A subscription's question for batches, which waits until there are some.
#[derive(Debug)]
pub(crate) struct Ask {
    /// Whom to answer.
    pub(crate) outbox: Arc<Outbox>,
    /// For which subscription.
    pub(crate) id: SubscriptionId,
    /// Which question of the subscription this is.
    pub(crate) number: u64,
    /// The first offset wanted.
    pub(crate) from: Offset,
    /// Bytes wanted at most; 0: only to be told when the watermark moves.
    pub(crate) bytes_max: usize,
    /// The high watermark that the subscriber knows.
    pub(crate) seen_watermark: Offset,
    /// What the subscriber may see.
    pub(crate) isolation: Isolation,
}

impl Ask {
    /// Answers that there will never be batches.
    pub(super) fn refuse(&self, error: &ApiError) {
        let ended = Ended {
            id: self.id.get(),
            code: error.code.code(),
            message: error.message.clone(),
            ..Ended::default()
        };
        self.outbox.event(SubscriptionEvent::Ended(Box::new(ended)));
    }
}

/// The subscriptions' questions that wait, by connection and subscription. Dropped with questions in it, it answers them:
/// the task has failed then.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) asks: HashMap<(u64, SubscriptionId), Ask>,
    /// High watermark and log end for which no question that waits has an answer; `None`: they have to be gone over.
    unanswered_at: Option<(Offset, Offset)>,
    partition: TopicPartition,
}

impl Parked {
    pub(super) fn new(partition: TopicPartition) -> Self {
        Self { asks: HashMap::new(), unanswered_at: None, partition }
    }

    /// Whether questions that wait may have an answer by now, and all have to be gone over: only when the ends of the log
    /// have moved since that was done last, for a thousand subscribers may wait here while others are served.
    pub(super) fn may_be_answered(&mut self, high_watermark: Offset, log_end: Offset) -> bool {
        let ends = Some((high_watermark, log_end));
        std::mem::replace(&mut self.unanswered_at, ends) != ends
    }

    /// One has come that has an answer, but later.
    pub(super) const fn look_again(&mut self) {
        self.unanswered_at = None;
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        let error = Closed::Failed.error(self.partition);
        for ask in self.asks.values() {
            ask.refuse(&error);
        }
    }
}

/// What a partition offers: where its watermarks are, and how to read what was asked for.
#[derive(Debug)]
pub(crate) struct Offer {
    /// How to read the batches; `None` when only the watermark moved.
    pub(crate) plan: Option<ReadPlan>,
    /// Which question of a subscription this answers.
    pub(crate) number: u64,
    /// The first offset that was asked for.
    pub(crate) from: Offset,
    /// The leader's epoch.
    pub(crate) leader_epoch: LeaderEpoch,
    /// Next offset that is not committed.
    pub(crate) high_watermark: Offset,
    /// First offset that can be read.
    pub(crate) log_start: Offset,
    /// Next offset to be written.
    pub(crate) log_end: Offset,
}

impl Closed {
    /// What whoever asks is told.
    pub(crate) fn error(self, partition: TopicPartition) -> ApiError {
        match self {
            Self::Deleted => ApiError::new(
                ErrorCode::UnknownTopic,
                format!("the topic of partition {partition} was deleted"),
            ),
            Self::Moved => ApiError::new(
                ErrorCode::NotLeader,
                format!("partition {partition} was moved to other brokers"),
            ),
            Self::ShuttingDown => ApiError::new(ErrorCode::ShuttingDown, "the broker is shutting down"),
            Self::Failed => ApiError::new(
                ErrorCode::StorageError,
                format!("partition {partition} is out of service until the broker is restarted; see its log"),
            ),
        }
    }
}

impl PartitionHandle {
    /// Which partition this is.
    pub(crate) fn partition(&self) -> TopicPartition {
        self.shared.partition
    }

    /// The name of its topic.
    pub(crate) fn topic(&self) -> &str {
        &self.shared.topic
    }

    /// What the partition last told about itself.
    pub(crate) fn status(&self) -> Status {
        self.shared.status.lock().clone()
    }

    /// Why it takes nothing any more, if so.
    pub(crate) fn closed(&self) -> Option<Closed> {
        self.shared.closed()
    }

    /// Verifies a batch and leaves it for the partition, which answers `ticket` when what `acks` asks for has happened.
    /// Never waits: a batch that cannot be taken is refused at once.
    pub(crate) fn produce(
        &self,
        batch: Bytes,
        number: u64,
        lane: &Arc<Lane>,
        acks: Acks,
        deadline: Mono,
        ticket: Ticket,
    ) {
        if self.shared.is_internal {
            let text =
                format!("topic '{}' belongs to the brokers: nobody else produces to it", self.shared.topic);
            return ticket.refuse(ErrorCode::NotAuthorized, text);
        }
        let limit = self.shared.batch_bytes_max();
        if batch.len() > limit as usize {
            let text = format!(
                "a batch of {} bytes is larger than the {limit} that topic '{}' allows (batch_bytes_max)",
                batch.len(),
                self.shared.topic
            );
            return ticket.refuse(ErrorCode::BatchTooLarge, text);
        }
        let header = match BatchHeader::decode_produced(&batch, self.shared.partition) {
            Ok(header) => header,
            Err(error) => return ticket.refuse(error.code(), error.to_string()),
        };
        let lane = Arc::clone(lane);
        self.shared.push_batch(Produce { batch, header, number, lane, acks, epoch: None, deadline, ticket });
    }

    /// Leaves a batch of the broker's own, which is appended only while this broker leads at `epoch`, and only if everything
    /// that came through `lane` before was. The answer says that it is committed, or why that is not known.
    pub(crate) fn append_own(
        &self,
        batch: Bytes,
        (lane, number): (&Arc<Lane>, u64),
        epoch: LeaderEpoch,
        deadline: Mono,
    ) -> oneshot::Receiver<ProduceResult> {
        let (ticket, answer) = own_ticket();
        match BatchHeader::decode_produced(&batch, self.shared.partition) {
            Ok(header) => self.shared.push_batch(Produce {
                batch,
                header,
                number,
                lane: Arc::clone(lane),
                acks: Acks::All,
                epoch: Some(epoch),
                deadline,
                ticket,
            }),
            Err(error) => ticket.refuse(error.code(), error.to_string()),
        }
        answer
    }

    /// The epoch at which this broker leads it, if it does, as that changes; `None` unless its topic is the brokers' own.
    pub(crate) fn leading(&self) -> Option<watch::Receiver<Option<LeaderEpoch>>> {
        self.shared.leading()
    }

    /// Leaves a request to subscribe. The answer comes as an event of the connection's outbox.
    pub(crate) fn subscribe(&self, subscribe: Subscribe) {
        if let Err((why, Command::Subscribe(subscribe))) =
            self.shared.push(Command::Subscribe(Box::new(subscribe)))
        {
            subscribe.refuse(why.error(self.shared.partition));
        }
    }

    /// Leaves a subscription's question. The answer comes as an event of the connection's outbox.
    pub(crate) fn ask(&self, ask: Ask) -> Result<(), Closed> {
        self.shared.push(Command::Ask(ask)).map_err(|(why, _)| why)
    }

    /// Takes a subscription's question back.
    pub(crate) fn cancel_ask(&self, connection: u64, id: SubscriptionId) {
        // A closed partition has forgotten all questions already.
        let _closed = self.shared.push(Command::CancelAsk { connection, id });
    }

    /// Plans one read of what is committed.
    pub(crate) async fn plan_read(&self, from: Offset, bytes_max: usize) -> Result<Offer, ApiError> {
        self.call(|reply| Command::Read { from, bytes_max, reply }).await?
    }

    /// Plans to find the first offset whose timestamp is at least `timestamp_ms`.
    pub(crate) async fn plan_time(&self, timestamp_ms: i64) -> Result<TimePlan, ApiError> {
        self.call(|reply| Command::PlanTime { timestamp_ms, reply }).await?
    }

    /// Plans a read of this replica's log, wherever it is led: up to `upto`, committed or not.
    pub(crate) async fn read_replica(
        &self,
        from: Offset,
        upto: Offset,
        bytes_max: usize,
    ) -> Result<RawRead, ApiError> {
        self.call(|reply| Command::ReadReplica { from, upto, bytes_max, reply }).await?
    }

    /// Reads a range of this replica from the disk, verifies it, and returns its checksum; `end` is the high watermark
    /// that the replica knows if it is not given. `keys`: over the last record of each of these keys instead of batches.
    pub(crate) async fn checksum(
        &self,
        start: Offset,
        end: Option<Offset>,
        bytes_max: u64,
        keys: Option<KeySlice>,
    ) -> Result<Checksum, ApiError> {
        self.call(|reply| Command::Checksum { start, end, bytes_max, keys, reply }).await?
    }

    /// Tells the partition what scrubbing a part of its log has found; `None`: it could not be read.
    pub(super) fn scrubbed(&self, outcome: Option<ScrubOutcome>) {
        let _closed = self.shared.push(Command::Scrubbed(outcome));
    }

    /// What a pass of compaction asks of the partition, or tells it.
    pub(super) fn cleaner(&self, command: CleanerCommand) {
        let _closed = self.shared.push(Command::Cleaner(command));
    }

    /// Where the leader's log starts, for a follower that starts over.
    pub(crate) async fn log_start(&self) -> Result<LogStart, ApiError> {
        self.call(|reply| Command::LogStart { reply }).await?
    }

    /// Gives the partition new settings.
    pub(crate) fn configure(&self, config: TopicConfig) {
        let _closed = self.shared.push(Command::Configure(Box::new(config)));
    }

    /// Tells the partition what the image says about it. The latest value wins.
    pub(crate) fn assign(&self, assigned: Assigned) {
        self.shared.assign(assigned);
    }

    /// Waits until everything that the partition was told so far is taken in.
    pub(crate) async fn settle(&self) {
        let _closed = self.call(|done| Command::Settle { done }).await;
    }

    /// Tells the partition that the controller did not take a proposal.
    pub(super) fn proposal_refused(&self, version: u64) {
        let _closed = self.shared.push(Command::ProposalRefused { version });
    }

    /// Tells the partition where its leader's log starts.
    pub(super) fn reset_at(&self, session: u64, start: Result<LogStart, ApiError>) {
        let _closed = self.shared.push(Command::ResetAt { session, start });
    }

    /// Gives the partition what another replica has where this one has a hole.
    pub(super) fn refilled(&self, range: (Offset, Offset), batches: Result<Vec<StampedBatch>, ApiError>) {
        let _closed = self.shared.push(Command::Refilled { range, batches });
    }

    /// Tells the partition that this durability is recorded as holding.
    pub(crate) fn durability_recorded(&self, durability: Durability) {
        let _closed = self.shared.push(Command::DurabilityRecorded(durability));
    }

    /// Lets the partition roll old segments and let go of older ones.
    pub(crate) fn maintain(&self, now: Wall) {
        let _closed = self.shared.push(Command::Maintain(now));
    }

    /// Stops the partition: what is under way is finished, what comes later is refused. Returns when its log is closed.
    pub(crate) async fn close(&self, why: Closed) {
        let _closed_already = self.call(|done| Command::Close { why, done }).await;
    }

    pub(super) async fn call<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, ApiError> {
        let (sender, receiver) = oneshot::channel();
        let partition = self.shared.partition;
        self.shared.push(command(sender)).map_err(|(why, _)| why.error(partition))?;
        receiver.await.map_err(|_| self.closed().unwrap_or(Closed::ShuttingDown).error(partition))
    }
}

#[cfg(test)]
mod tests {
    use highwater_broker_core::durability::Durability;
    use highwater_protocol::batch::BatchBuilder;
    use highwater_protocol::compression::Compression;
    use highwater_protocol::ids::{CorrelationId, PartitionId, TopicId};

    use super::super::mailbox;
    use super::super::status::Status;
    use super::super::ticket::tickets;
    use super::*;
    use crate::server::outbox::Contents;
    use crate::storage::sink::{FlushOutcome, FlushSink};

    const PARTITION: TopicPartition = TopicPartition::new(TopicId(1), PartitionId(0));

    fn shared() -> Arc<Shared> {
        let status = Status::opening(Durability::Fsync);
        Arc::new(Shared::new(PARTITION, "queue".to_owned(), 16 << 20, status))
    }

    #[test]
    fn questions_that_wait_are_gone_over_only_when_the_log_has_moved() {
        let mut parked = Parked::new(PARTITION);
        assert!(parked.may_be_answered(Offset(5), Offset(9)), "nobody has looked yet");
        assert!(!parked.may_be_answered(Offset(5), Offset(9)));
        assert!(parked.may_be_answered(Offset(6), Offset(9)), "the watermark has moved");
        assert!(parked.may_be_answered(Offset(6), Offset(10)), "the log end has moved");
        assert!(!parked.may_be_answered(Offset(6), Offset(10)));
        parked.look_again();
        assert!(parked.may_be_answered(Offset(6), Offset(10)));
        assert!(!parked.may_be_answered(Offset(6), Offset(10)));
    }

    #[test]
    fn what_waits_for_a_partition_is_bounded_in_bytes() {
        let handle = PartitionHandle { shared: shared() };
        let mut builder = BatchBuilder::with_capacity(9 << 20);
        builder.push(0, None, Some(&vec![7; 8 << 20]), &[]);
        let batch = builder.build(PARTITION, Compression::None).unwrap();
        let outbox = Arc::new(Outbox::new(1));
        let produce = || {
            // Each from a connection of its own, all of which are gone by the time the partition looks.
            let ticket = tickets(&outbox, CorrelationId(1), 1, batch.len() as u64).next().unwrap();
            handle.produce(batch.clone(), 0, &Arc::default(), Acks::All, Mono(0), ticket);
        };
        let answered = || {
            let mut contents = Contents::default();
            outbox.take(&mut contents);
            contents.answered
        };
        (0..32).for_each(|_| produce());
        assert_eq!(answered(), 0);
        produce();
        assert_eq!(answered(), 1, "refused at once");
        let mut contents = mailbox::Contents::default();
        handle.shared.take(&mut contents);
        assert_eq!(contents.batches.len(), 32);
        produce();
        assert_eq!(answered(), 0, "there is room again");
    }

    #[test]
    fn a_flush_outcome_covers_only_what_is_of_its_generation_and_says_less() {
        let shared = shared();
        let flushed = |log_generation, upto| FlushOutcome::Flushed { log_generation, upto: Offset(upto) };
        let failed = |log_generation| FlushOutcome::Failed {
            log_generation,
            error: Arc::new(std::io::ErrorKind::Other.into()),
        };
        let is_flushed = |upto| {
            matches!(
                shared.flushed.lock().take(),
                Some(FlushOutcome::Flushed { upto: at, .. }) if at == Offset(upto)
            )
        };
        shared.flush_done(flushed(1, 10));
        shared.flush_done(flushed(1, 5));
        assert!(is_flushed(10));
        shared.flush_done(flushed(1, 10));
        shared.flush_done(failed(1));
        shared.flush_done(flushed(1, 20));
        assert!(matches!(shared.flushed.lock().take(), Some(FlushOutcome::Failed { .. })));
        shared.flush_done(flushed(2, 10));
        shared.flush_done(failed(1));
        assert!(is_flushed(10), "a failure of before the truncation");
        shared.flush_done(failed(1));
        shared.flush_done(flushed(2, 10));
        assert!(is_flushed(10));
    }

    #[test]
    fn a_partition_that_nobody_works_at_refuses_and_answers() {
        let handle = PartitionHandle { shared: shared() };
        let outbox = Arc::new(Outbox::new(1));
        let ask = || Ask {
            outbox: Arc::clone(&outbox),
            id: SubscriptionId(1),
            number: 1,
            from: Offset(0),
            bytes_max: 1,
            seen_watermark: Offset(0),
            isolation: Isolation::Committed,
        };
        handle.ask(ask()).unwrap();
        let mut parked = Parked::new(PARTITION);
        parked.asks.insert((1, SubscriptionId(2)), ask());
        assert!(handle.shared.fail());
        drop(parked);
        let mut contents = Contents::default();
        outbox.take(&mut contents);
        assert_eq!(contents.events.len(), 2, "both readers are told");
        assert_eq!(handle.ask(ask()).unwrap_err(), Closed::Failed);
        assert_eq!(handle.status().state, "offline");
        assert!(!handle.shared.fail(), "only once");
    }
}
