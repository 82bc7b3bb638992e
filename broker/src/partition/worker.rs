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
use highwater_broker_core::replica::{Health, Input, Output, Replica};
use highwater_broker_core::time::{Mono, Wall};
use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, Offset};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::handle::{Closed, Command, Parked, PartitionHandle, Produce, Shared};
use super::services::Services;
use super::waiters::Waiters;
use crate::io_thread;
use crate::storage::config::LogConfig;
use crate::storage::log::Log;
use crate::storage::sink::FlushOutcome;

/// The pauses between attempts to verify a suspect log.
const VERIFY_PAUSE_MIN: Duration = Duration::from_millis(500);
const VERIFY_PAUSE_MAX: Duration = Duration::from_secs(30);

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
    recount_bytes: bool,
    /// When the suspect log is verified, and how long to wait after that if it fails.
    verify: Option<(Mono, Duration)>,
    /// Why it closes, and who waits for that.
    closing: Option<(Closed, Vec<oneshot::Sender<()>>)>,
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
        }
    }

    /// Serves the partition until it is closed. `outputs` are what starting to lead brought about.
    pub(super) async fn run(mut self: Box<Self>, outputs: Vec<Output>) {
        self.outputs = outputs;
        self.execute();
        self.publish();
        let shared = Arc::clone(&self.shared);
        let _alarm = Alarm { shared: Arc::clone(&shared), services: Arc::clone(&self.services) };
        let (mut batches, mut commands) = (VecDeque::new(), VecDeque::new());
        let mut timer = Timer::default();
        loop {
            let deadline = self.next_deadline();
            let clock = Arc::clone(&self.services.clock);
            tokio::select! {
                () = shared.notify.notified() => {}
                () = timer.wait(deadline, move || clock.mono()) => {}
            }
            shared.take(&mut batches, &mut commands);
            if self.log.unflushed_bytes() > UNFLUSHED_BYTES_MAX && !batches.is_empty() {
                // The disk is far behind: the kernel may make writers wait for it, and that must not be this thread.
                let (mut taken, mut told) = (std::mem::take(&mut batches), std::mem::take(&mut commands));
                let job = move |worker: &mut Self| worker.work(&mut taken, &mut told);
                let Some((back, ())) = self.on_io_thread(job).await else { return };
                self = back;
            } else {
                self.work(&mut batches, &mut commands);
            }
            if self.verify.is_some_and(|(at, _)| at <= self.services.clock.mono()) {
                let Some(back) = self.verify_log().await else { return };
                self = back;
            }
            self.publish();
            if self.closing.is_some() && self.is_drained() {
                break;
            }
        }
        self.finish().await;
    }

    fn next_deadline(&self) -> Option<Mono> {
        [self.waiters.deadline(), self.flush_at, self.verify.map(|(at, _)| at)].into_iter().flatten().min()
    }

    /// One pass over what has happened since the last one.
    fn work(&mut self, batches: &mut VecDeque<Produce>, commands: &mut VecDeque<Command>) {
        let now = self.services.clock.mono();
        let flushed = self.shared.flushed.lock().take();
        if let Some(outcome) = flushed {
            self.flush_done(now, outcome);
        }
        self.append_all(now, batches);
        for command in commands.drain(..) {
            self.obey(now, command);
        }
        self.waiters.expire(now);
        self.flush_by_interval(now);
        self.offer_to_parked();
    }

    fn obey(&mut self, now: Mono, command: Command) {
        match command {
            Command::Ask(ask) => self.answer_ask(ask),
            Command::CancelAsk { connection, id } => {
                self.parked.asks.remove(&(connection, id));
                self.want_tail();
            }
            Command::Read { from, bytes_max, reply } => {
                let _gone = reply.send(self.plan_read(from, bytes_max));
            }
            Command::PlanTime { timestamp_ms, reply } => {
                let _gone = reply.send(self.plan_time(timestamp_ms));
            }
            Command::Configure(config, min_in_sync) => self.configure(now, *config, min_in_sync),
            Command::DurabilityRecorded(durability) => {
                self.step(now, Input::DurabilityRecorded(durability));
            }
            Command::Maintain(wall) => self.maintain(wall),
            Command::Close { why, done } => {
                self.shared.close(why);
                if why == Closed::Deleted {
                    self.waiters.fail_all("the topic was deleted");
                }
                match &mut self.closing {
                    // Deleted and shutting down at once: what was deleted must not stay on the disk.
                    Some((before, waiting)) => {
                        *before = if why == Closed::Deleted { why } else { *before };
                        waiting.push(done);
                    }
                    None => self.closing = Some((why, vec![done])),
                }
            }
        }
    }

    /// Gives an input to the machine and does what follows from it.
    pub(super) fn step(&mut self, now: Mono, input: Input) {
        self.replica.step(now, input, &mut self.outputs);
        self.execute();
    }

    fn execute(&mut self) {
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain(..) {
            match output {
                // Both are answered below, once for all outputs.
                Output::HighWatermark(_) | Output::FlushedEnd(_) => {}
                Output::RecordDurability(durability) => {
                    let handle = PartitionHandle { shared: Arc::clone(&self.shared) };
                    self.services.record_durability(handle, durability);
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
                        topic = self.shared.topic, partition = %self.shared.partition, log_end = log_end.get(),
                        "the log is verified, the partition serves again"
                    );
                    self.services.metrics.partitions_suspect.dec();
                }
                Output::StartLeading { .. } => {}
                Output::StopLeading => {
                    self.waiters
                        .fail_all("the replica leads no longer, so it is not known what became of the batch");
                }
                // Of replicas that have others beside them.
                Output::Propose { .. }
                | Output::EndSession { .. }
                | Output::Subscribe { .. }
                | Output::Unsubscribe
                | Output::Append
                | Output::Truncate { .. }
                | Output::Reset
                | Output::SendAck { .. }
                | Output::Report(_) => {}
            }
        }
        self.outputs = outputs;
        self.publish_ends();
        self.waiters.answer_reached(&self.replica);
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

    fn suspect(&mut self) {
        self.services.metrics.partitions_suspect.inc();
        self.waiters.fail_all("a flush failed, so it is not known whether the batch survives a power cut");
        self.verify = Some((self.services.clock.mono(), VERIFY_PAUSE_MIN));
    }

    /// Has the suspect log verified on an I/O thread; tries again later if that fails. `None`: the process is ending.
    async fn verify_log(self: Box<Self>) -> Option<Box<Self>> {
        let (mut worker, verified) = self
            .on_io_thread(|worker| {
                worker.log.mark_suspect()?;
                worker.log.verify_suspect()?;
                worker.services.next_epoch(worker.replica.epoch())
            })
            .await?;
        let now = worker.services.clock.mono();
        match verified {
            Ok(epoch) => {
                worker.verify = None;
                let log_generation = worker.log.log_generation();
                let log_end = worker.log.log_end();
                worker.recount_bytes = true;
                worker.step(now, Input::Verified { log_generation, log_end });
                worker.lead_anew(now, epoch);
                worker.end_readers_past_the_end();
            }
            Err(error) => {
                let pause = worker.verify.map_or(VERIFY_PAUSE_MIN, |(_, pause)| pause);
                error!(
                    topic = worker.shared.topic, partition = %worker.shared.partition, %error,
                    "the suspect log cannot be verified, the partition stays out of service; check the disk"
                );
                worker.verify = Some((now.after(pause), (pause * 2).min(VERIFY_PAUSE_MAX)));
            }
        }
        Some(worker)
    }

    /// A log that was suspect leads in a new epoch only.
    fn lead_anew(&mut self, now: Mono, epoch: LeaderEpoch) {
        if let Some(mut assignment) = self.replica.assignment().cloned() {
            assignment.epoch = epoch;
            self.step(now, Input::Assigned { assignment, own_epoch: BrokerEpoch(0) });
        }
    }

    fn maintain(&mut self, now: Wall) {
        if self.replica.health() != Health::Online {
            return;
        }
        self.recount_bytes = true;
        let (topic, partition) = (&self.shared.topic, self.shared.partition);
        match self.log.maintain(now, self.replica.high_watermark()) {
            Ok(maintained) => {
                let mono = self.services.clock.mono();
                let log_start = self.log.log_start();
                self.replica.step(mono, Input::LogStart { log_start }, &mut self.outputs);
                for hole in &maintained.new_holes {
                    error!(
                        topic, %partition, start = %hole.start, end = %hole.end,
                        "records are corrupt on the disk and cannot be read; everything around them goes on"
                    );
                }
                self.services.metrics.corrupt_ranges.inc_by(maintained.new_holes.len() as i64);
                if maintained.segments_removed > 0 {
                    info!(
                        topic, %partition, segments = maintained.segments_removed,
                        bytes = maintained.bytes_removed, log_start = %maintained.log_start,
                        "retention let segments go"
                    );
                }
            }
            Err(error) => {
                warn!(topic, %partition, %error, "a segment could not be rolled; it is tried again")
            }
        }
    }

    /// Runs `job` where it may block. The partition's commands queue up meanwhile.
    async fn on_io_thread<T: Send + 'static>(
        self: Box<Self>,
        job: impl FnOnce(&mut Self) -> T + Send + 'static,
    ) -> Option<(Box<Self>, T)> {
        let file_system = Arc::clone(&self.services.file_system);
        let mut worker = self;
        io_thread::run(&*file_system, move || {
            let result = job(&mut worker);
            (worker, result)
        })
        .await
    }

    fn configure(&mut self, now: Mono, config: TopicConfig, min_in_sync: u32) {
        self.shared.set_batch_bytes_max(config.batch_bytes_max);
        let wanted = config.durability;
        self.config = config;
        self.step(now, Input::MinInSync(min_in_sync));
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
        self.end_all_readers(why);
        self.waiters.fail_all("the broker is shutting down");
        self.services.metrics.partitions.dec();
        let shared = Arc::clone(&self.shared);
        let services = Arc::clone(&self.services);
        // Nothing comes after `close`, so what is in the inbox now is the last.
        let (mut batches, mut commands) = (VecDeque::new(), VecDeque::new());
        shared.take(&mut batches, &mut commands);
        for produce in batches {
            let error = why.error(shared.partition);
            produce.ticket.refuse(error.code, error.message);
        }
        let log = self.log;
        let partition = shared.partition;
        let file_system = Arc::clone(&services.file_system);
        let closed = io_thread::run(&*file_system, move || {
            let closed = log.close();
            if why == Closed::Deleted {
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
    }

    /// Tells the handles where the partition is: before anybody is answered, so that whoever acts on an answer finds what
    /// it was about.
    fn publish_ends(&self) {
        let ends = self.replica.ends();
        let mut status = self.shared.status.lock();
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
    LogConfig {
        limits: highwater_broker_core::log::retention::Limits {
            segment_bytes: config.segment_bytes,
            segment_age: config.segment_age,
            retention_bytes: config.retention_bytes,
            retention_age: config.retention_age,
        },
        durability,
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
