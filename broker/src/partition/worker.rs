//! The task that owns a partition: its log, its replica machine and everybody who waits for it.
//!
//! It takes everything that has queued up at once, so that batches of many producers become one write and one flush.
//! It never waits for a connection, and what may take long on the disk is done on an I/O thread.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::controller::topic_config::TopicConfig;
use highwater_broker_core::durability::Durability;
use highwater_broker_core::log::cleaning::Compaction;
use highwater_broker_core::producer::Preparation;
use highwater_broker_core::replica::{Ends, Health, Input, Output, Replica, Role};
use highwater_broker_core::time::{Mono, Wall};
use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, Offset};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::following::Following;
use super::handle::{Closed, Parked, PartitionHandle};
use super::leading::LeaderSession;
use super::mailbox::{Command, Contents, Shared};
use super::repair::Repair;
use super::scrub::Scrub;
use super::services::Services;
pub(super) use super::suspect::DiskJob;
use super::waiters::Waiters;
use crate::io_thread;
use crate::storage::config::LogConfig;
use crate::storage::log::{Log, StampedBatch};
use crate::storage::sink::FlushOutcome;

/// Unflushed bytes of a log up to which it is appended to on the thread that serves connections.
const UNFLUSHED_BYTES_MAX: u64 = 256 << 20;

/// A partition that is served.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) services: Arc<Services>,
    pub(super) log: Log,
    pub(super) replica: Replica,
    pub(super) config: TopicConfig,
    pub(super) waiters: Waiters,
    pub(super) parked: Parked,
    pub(super) outputs: Vec<Output>,
    /// When the next flush is asked for, while there is something to flush and the durability is an interval.
    flush_at: Option<Mono>,
    /// An append whose flush is timed: where it ended, and when it was.
    pub(super) timed: Option<(Offset, Mono)>,
    /// Bytes appended since the handles were told.
    pub(super) appended_bytes: u64,
    /// The bytes of the log may have changed in another way.
    pub(super) recount_bytes: bool,
    /// When the suspect log is verified, and how long to wait after that if it fails.
    pub(super) verify: Option<(Mono, Duration)>,
    /// Why it closes, and who waits for that.
    closing: Option<(Closed, Vec<oneshot::Sender<()>>)>,
    /// The version of the image that was taken in last.
    pub(super) image_version: u64,
    /// The registration under which that was seen.
    pub(super) own_epoch: BrokerEpoch,
    /// This replica is being added: what it fetches is throttled.
    pub(super) is_added: bool,
    /// Kept between writes for its memory.
    pub(super) preparation: Preparation,
    /// What the throttle allows.
    pub(super) move_bytes_per_second: u64,
    /// The session with the leader, while it follows.
    pub(super) following: Option<Following>,
    /// What the leader pushed last, until the machine has judged it.
    pub(super) fetched: Vec<StampedBatch>,
    /// What the leader is told at the end of this pass.
    pub(super) ack: Option<(LeaderEpoch, Ends)>,
    /// Nothing is asked of the leader before this, because an append has failed.
    pub(super) pause_following: Option<Mono>,
    /// The session in which the leader was asked where its log starts.
    pub(super) reset_asked: Option<u64>,
    /// The sessions of followers, while it leads.
    pub(super) sessions: Vec<LeaderSession>,
    /// Followers are told of a watermark that moved, without batches, no earlier than this.
    pub(super) watermark_at: Option<Mono>,
    /// That time has come.
    pub(super) watermark_due: bool,
    pub(super) disk_jobs: VecDeque<DiskJob>,
    pub(super) repair: Repair,
    pub(super) scrub: Scrub,
    /// A pass of compaction is under way, or waits for its turn.
    pub(super) is_cleaned: bool,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        services: Arc<Services>,
        log: Log,
        replica: Replica,
        config: TopicConfig,
    ) -> Self {
        let partition = shared.partition;
        Self {
            shared,
            services,
            log,
            replica,
            config,
            waiters: Waiters::default(),
            parked: Parked::new(partition),
            outputs: Vec::new(),
            flush_at: None,
            timed: None,
            appended_bytes: 0,
            recount_bytes: true,
            verify: None,
            closing: None,
            image_version: 0,
            own_epoch: BrokerEpoch(0),
            is_added: false,
            preparation: Preparation::default(),
            move_bytes_per_second: 0,
            following: None,
            fetched: Vec::new(),
            ack: None,
            pause_following: None,
            reset_asked: None,
            sessions: Vec::new(),
            watermark_at: None,
            watermark_due: false,
            disk_jobs: VecDeque::new(),
            repair: Repair::default(),
            scrub: Scrub::default(),
            is_cleaned: false,
        }
    }

    pub(super) fn handle(&self) -> PartitionHandle {
        PartitionHandle { shared: Arc::clone(&self.shared) }
    }

    /// Serves the partition until it is closed.
    pub(super) async fn run(mut self: Box<Self>) {
        self.plan_scrub(self.services.clock.mono());
        self.publish();
        let shared = Arc::clone(&self.shared);
        let _alarm = Alarm { shared: Arc::clone(&shared), services: Arc::clone(&self.services) };
        let mut contents = Contents::default();
        let mut timer = Timer::default();
        loop {
            let deadline = self.next_deadline();
            let clock = Arc::clone(&self.services.clock);
            tokio::select! {
                () = shared.notify.notified() => {}
                () = timer.wait(deadline, move || clock.mono()) => {}
            }
            shared.take(&mut contents);
            let appends = !contents.batches.is_empty() || !contents.followed.is_empty();
            if appends && self.log.unflushed_bytes() > UNFLUSHED_BYTES_MAX {
                // The disk is far behind: the kernel may make writers wait for it, and that must not be this thread.
                let mut taken = std::mem::take(&mut contents);
                let job = move |worker: &mut Self| worker.work(&mut taken);
                let Some((back, ())) = self.on_io_thread(job).await else { return };
                self = back;
            } else {
                self.work(&mut contents);
            }
            if self.has_disk_work() {
                let Some(back) = self.work_on_disk().await else { return };
                self = back;
            }
            self.publish();
            if self.closing.is_some() && self.is_drained() {
                break;
            }
        }
        self.finish().await;
    }

    /// When [`Worker::work`] has something to do although nothing has come.
    fn next_deadline(&self) -> Option<Mono> {
        [
            self.waiters.deadline(),
            self.flush_at,
            self.verify.map(|(at, _)| at),
            self.replica.next_deadline(),
            self.follow_deadline(),
            self.watermark_at,
            self.repair.deadline(),
            self.scrub.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// One pass over what has happened since the last one.
    fn work(&mut self, contents: &mut Contents) {
        let now = self.services.clock.mono();
        let flushed = self.shared.flushed.lock().take();
        if let Some(outcome) = flushed {
            self.flush_done(now, outcome);
        }
        if let Some(assigned) = contents.assigned.take() {
            self.assigned(now, *assigned);
        }
        self.take_acks(now);
        self.take_followed(now, &mut contents.followed);
        self.append_all(now, &mut contents.batches);
        for command in contents.commands.drain(..) {
            self.obey(now, command);
        }
        if self.replica.next_deadline().is_some_and(|at| at <= now) {
            self.step(now, Input::Tick);
        }
        self.resume_following(now);
        self.grant_due(now);
        self.waiters.expire(now);
        self.flush_by_interval(now);
        self.repair_holes(now);
        self.scrub_due(now);
        self.offer_to_parked(now);
        self.send_ack();
    }

    fn obey(&mut self, now: Mono, command: Command) {
        match command {
            Command::Ask(ask) => self.answer_ask(ask),
            Command::CancelAsk { connection, id } => {
                self.parked.asks.remove(&(connection, id));
                self.want_tail();
            }
            Command::Subscribe(subscribe) => self.subscribe_here(now, *subscribe),
            Command::SessionClosed { session } => self.session_closed(now, session),
            Command::Read { from, bytes_max, reply } => {
                let _gone = reply.send(self.plan_read(from, bytes_max));
            }
            Command::ReadReplica { from, upto, bytes_max, reply } => {
                let _gone = reply.send(self.plan_raw_read(from, upto, bytes_max));
            }
            Command::Checksum { start, end, bytes_max, keys, reply } => {
                self.checksum(start, end, bytes_max, keys, reply);
            }
            Command::Cleaner(command) => self.obey_cleaner(command),
            Command::Scrubbed(outcome) => self.scrubbed(now, outcome),
            Command::PlanTime { timestamp_ms, reply } => {
                let _gone = reply.send(self.plan_time(timestamp_ms));
            }
            Command::LogStart { reply } => self.disk_jobs.push_back(DiskJob::Start(reply)),
            Command::Configure(config) => self.configure(now, *config),
            Command::DurabilityRecorded(durability) => {
                self.step(now, Input::DurabilityRecorded(durability));
            }
            Command::Settle { done } => {
                let _gone = done.send(());
            }
            Command::ProposalRefused { version } => self.step(now, Input::ProposalRefused { version }),
            Command::ResetAt { session, start } => self.reset_at(now, session, start),
            Command::Refilled { range, batches } => self.refilled(now, range, batches),
            Command::Maintain(wall) => self.maintain(now, wall),
            Command::Close { why, done } => self.begin_closing(why, done),
        }
    }

    fn begin_closing(&mut self, why: Closed, done: oneshot::Sender<()>) {
        self.shared.close(why);
        self.unsubscribe();
        self.waiters.closing(why, self.shared.partition);
        match &mut self.closing {
            // Deleted and shutting down at once: what was deleted must not stay on the disk.
            Some((before, waiting)) => {
                *before = if why == Closed::Deleted { why } else { *before };
                waiting.push(done);
            }
            None => self.closing = Some((why, vec![done])),
        }
    }

    /// Gives an input to the machine and does what follows from it.
    pub(super) fn step(&mut self, now: Mono, input: Input) {
        self.replica.step(now, input, &mut self.outputs);
        self.execute(now);
    }

    fn execute(&mut self, now: Mono) {
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain(..) {
            self.carry_out(now, output);
        }
        // What was carried out may have led to more, which is done by now.
        self.outputs = outputs;
        self.publish_ends();
        self.waiters.answer_reached(&self.replica);
    }

    fn carry_out(&mut self, now: Mono, output: Output) {
        match output {
            // Both are answered once for all outputs.
            Output::HighWatermark(_) | Output::FlushedEnd(_) => {}
            Output::RecordDurability(durability) => {
                let epoch = self.replica.epoch();
                self.services.record_durability(self.handle(), epoch, durability);
            }
            Output::FlushBy(durability) => {
                self.log.configure(log_config(&self.config, durability));
                // What was written under a laxer rule has to be flushed as well.
                if durability.waits_for_flush() {
                    self.log.request_flush();
                }
            }
            Output::VerifyLog => self.suspect(),
            Output::Resumed { log_end } => {
                info!(
                    topic = self.shared.topic, partition = %self.shared.partition, %log_end,
                    "the log is verified and can be relied on again"
                );
                self.services.metrics.partitions_suspect.dec();
            }
            Output::Propose { version, leader_epoch, in_sync } => {
                let own_epoch = self.own_epoch;
                self.services.propose_in_sync(self.handle(), own_epoch, leader_epoch, version, in_sync);
            }
            Output::StartLeading { epoch } => self.started_leading(epoch),
            Output::EndSession { session } => self.end_session(session),
            Output::StopLeading => self.stopped_leading(),
            Output::Subscribe { leader, epoch, offset, last_epoch } => {
                self.subscribe_at(leader, epoch, offset, last_epoch);
            }
            Output::Unsubscribe => self.unsubscribe(),
            Output::Append => self.append_fetched(now),
            Output::Truncate { to } => self.disk_jobs.push_back(DiskJob::Truncate(to)),
            Output::Reset => self.ask_for_reset(),
            Output::SendAck { leader_epoch, ends } => self.note_ack(leader_epoch, ends),
            Output::Report(problem) => self.report(problem),
        }
    }

    fn flush_done(&mut self, now: Mono, outcome: FlushOutcome) {
        match outcome {
            FlushOutcome::Flushed { log_generation, upto } => {
                self.log.flushed(log_generation, upto);
                if let Some((_, since)) = self.timed.take_if(|(end, _)| *end <= upto) {
                    self.services.metrics.flush_seconds.observe(now.since(since).as_secs_f64());
                }
                self.step(now, Input::Flushed { log_generation, upto });
            }
            FlushOutcome::Failed { log_generation, error } => {
                self.services.metrics.flush_failures.inc();
                error!(
                    topic = self.shared.topic, partition = %self.shared.partition, %error,
                    "a flush failed: nothing is acknowledged until the log has been verified past the page cache; \
                     check the disk"
                );
                self.step(now, Input::FlushFailed { log_generation });
            }
        }
    }

    pub(super) fn maintain(&mut self, now: Mono, wall: Wall) {
        if self.replica.health() != Health::Online || !self.disk_jobs.is_empty() {
            return;
        }
        self.recount_bytes = true;
        let (topic, partition) = (&self.shared.topic, self.shared.partition);
        match self.log.maintain(wall, self.replica.high_watermark()) {
            Ok(maintained) => {
                if maintained.segments_removed > 0 {
                    info!(
                        topic, %partition, segments = maintained.segments_removed,
                        bytes = maintained.bytes_removed, log_start = %maintained.log_start,
                        "retention let segments go"
                    );
                    self.step(now, Input::LogStart { log_start: maintained.log_start });
                }
                self.found_holes(&maintained.new_holes);
                self.clean_if_due(wall);
            }
            Err(error) => {
                warn!(topic, %partition, %error, "a segment could not be rolled; it is tried again")
            }
        }
    }

    fn configure(&mut self, now: Mono, config: TopicConfig) {
        self.shared.set_batch_bytes_max(config.batch_bytes_max);
        let wanted = config.durability;
        self.config = config;
        // Whether it is led or not: what is written here is flushed by it.
        self.step(now, Input::DurabilityWanted(wanted));
        self.log.configure(log_config(&self.config, self.replica.durability_gate()));
    }

    /// With `interval` durability the owner asks for flushes.
    fn flush_by_interval(&mut self, now: Mono) {
        let Durability::Interval(interval) = self.replica.durability_gate() else {
            self.flush_at = None;
            return;
        };
        let ends = self.replica.ends();
        if ends.flushed_end == ends.log_end {
            self.flush_at = None;
            return;
        }
        match self.flush_at {
            None => self.flush_at = Some(now.after(interval)),
            Some(at) if at <= now => {
                self.log.request_flush();
                self.flush_at = Some(now.after(interval));
            }
            Some(_) => {}
        }
    }

    /// Whether nothing is under way any more, so that the log can be closed.
    fn is_drained(&self) -> bool {
        self.waiters.count() == 0 || self.replica.health() != Health::Online
    }

    async fn finish(mut self: Box<Self>) {
        let Some((why, done)) = self.closing.take() else { return };
        self.end_readers(&why.error(self.shared.partition));
        self.waiters.fail_all("the broker is shutting down");
        self.unsubscribe();
        let metrics = &self.services.metrics;
        metrics.partitions.dec();
        if self.replica.role() == Role::Leader {
            metrics.partitions_led.dec();
        }
        metrics.follower_sessions.dec_by(self.sessions.len() as i64);
        let shared = Arc::clone(&self.shared);
        let services = Arc::clone(&self.services);
        // Nothing comes after `close`, so what is in the inbox now is the last.
        let mut contents = Contents::default();
        shared.take(&mut contents);
        contents.refuse(&why.error(shared.partition));
        let log = self.log;
        let partition = shared.partition;
        let file_system = Arc::clone(&services.file_system);
        let closed = io_thread::run(&*file_system, move || {
            let closed = log.close();
            if matches!(why, Closed::Deleted | Closed::Moved) {
                return services.store.trash(partition);
            }
            closed.map(|closed| services.note_closed(closed))
        })
        .await;
        if let Some(Err(error)) = closed {
            error!(
                topic = shared.topic, partition = %partition, %error,
                "the log could not be closed in order; it is recovered at the next start"
            );
        }
        for done in done {
            let _nobody_waits = done.send(());
        }
    }

    /// Tells the handles everything about the partition.
    pub(super) fn publish(&mut self) {
        self.publish_ends();
        // Adding up all segments takes long where there are many, so that appends are added instead in between.
        let bytes = if std::mem::take(&mut self.recount_bytes) { Some(self.log.bytes()) } else { None };
        let appended = std::mem::take(&mut self.appended_bytes);
        let mut status = self.shared.status.lock();
        status.bytes = bytes.unwrap_or(status.bytes + appended);
        status.segments = self.log.segment_count() as u32;
        let holes = self.log.holes().iter().map(|hole| (hole.start, hole.end));
        if status.corrupt.iter().copied().ne(holes.clone()) {
            status.corrupt = holes.collect();
        }
        status.replicas.clear();
        status.replicas.extend(self.replica.progress());
    }

    /// Tells the handles where the partition is: before anybody is answered, so that whoever acts on an answer finds what
    /// it was about.
    fn publish_ends(&self) {
        if self.shared.is_internal {
            let leads = self.replica.role() == Role::Leader;
            self.shared.set_leading(leads.then(|| self.replica.epoch()));
        }
        let ends = self.replica.ends();
        let mut status = self.shared.status.lock();
        status.is_leader = self.replica.role() == Role::Leader;
        status.leader = self.replica.leader();
        status.leader_epoch = self.replica.epoch();
        status.log_start = self.log.log_start();
        status.log_end = ends.log_end;
        status.flushed_end = ends.flushed_end;
        status.high_watermark = self.replica.high_watermark();
        status.durability = self.replica.durability_effective();
        status.is_ready = self.replica.is_ready();
        status.state = match self.replica.health() {
            Health::Online => "online",
            Health::Suspect => "suspect",
        };
    }
}

/// Speaks up when a partition's task ends without having closed the partition, which is a defect: whoever waits for it
/// would wait for ever otherwise.
struct Alarm {
    shared: Arc<Shared>,
    services: Arc<Services>,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if self.shared.fail() && !self.services.is_stopping() {
            error!(
                topic = self.shared.topic, partition = %self.shared.partition,
                "the task of a partition has failed, and the partition is out of service until the broker is restarted; \
                 nothing acknowledged is lost; please report this"
            );
        }
    }
}

/// The settings of a log that follow from those of its topic.
pub(super) fn log_config(config: &TopicConfig, durability: Durability) -> LogConfig {
    // What is only compacted is kept whatever its age and size.
    let deletes = config.cleanup.deletes();
    LogConfig {
        limits: highwater_broker_core::log::retention::Limits {
            segment_bytes: config.segment_bytes,
            segment_age: config.segment_age,
            retention_bytes: config.retention_bytes.filter(|_| deletes),
            retention_age: config.retention_age.filter(|_| deletes),
        },
        durability,
        compaction: config.cleanup.compacts().then_some(Compaction {
            tombstone_grace: config.tombstone_grace,
            dirty_percent_min: config.dirty_percent_min,
        }),
        ..LogConfig::default()
    }
}

/// A timer that costs nothing while there is no deadline, and little when deadlines move all the time: it is armed anew
/// only when it has to fire earlier than before.
#[derive(Default)]
pub(crate) struct Timer {
    sleep: Option<(Mono, Pin<Box<tokio::time::Sleep>>)>,
}

impl Timer {
    /// Returns when `deadline` has come, or earlier; never without a deadline. Cancel-safe.
    pub(crate) async fn wait(&mut self, deadline: Option<Mono>, now: impl Fn() -> Mono) {
        let Some(deadline) = deadline else {
            self.sleep = None;
            return std::future::pending().await;
        };
        if self.sleep.as_ref().is_none_or(|(armed, _)| *armed > deadline) {
            let sleep = tokio::time::sleep(deadline.since(now()));
            self.sleep = Some((deadline, Box::pin(sleep)));
        }
        if let Some((_, sleep)) = &mut self.sleep {
            sleep.as_mut().await;
            self.sleep = None;
        }
    }
}
