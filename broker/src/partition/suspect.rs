//! What may take long on the disk and needs the log for itself: verification, cuts, starting over, repair.

use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::log::manifest::EpochStart;
use highwater_broker_core::replica::{Input, Role};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::Offset;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::mailbox::LogStart;
use super::status::not_leader;
use super::worker::Worker;
use crate::api::ApiError;
use crate::io_thread;
use crate::storage::log::StampedBatch;

/// The pauses between attempts to verify a suspect log.
pub(super) const VERIFY_PAUSE_MIN: Duration = Duration::from_millis(500);
const VERIFY_PAUSE_MAX: Duration = Duration::from_secs(30);

/// What is done on an I/O thread while the partition's commands queue up.
#[derive(Debug)]
pub(super) enum DiskJob {
    /// Cut the log, because the leader's goes on differently.
    Truncate(Offset),
    /// Replace the log by an empty one.
    Reset(LogStart),
    /// Say where the log starts, and what producers were known there.
    Start(oneshot::Sender<Result<LogStart, ApiError>>),
    /// Put another replica's batches where this log cannot be read.
    Refill((Offset, Offset), Vec<StampedBatch>),
}

impl Worker {
    /// Does everything that waits for the disk. `None`: the process is ending.
    pub(super) async fn work_on_disk(self: Box<Self>) -> Option<Box<Self>> {
        let mut worker = self;
        while let Some(job) = worker.disk_jobs.pop_front() {
            worker = match job {
                DiskJob::Truncate(to) => worker.truncate(to).await?,
                DiskJob::Reset(start) => worker.reset(start).await?,
                DiskJob::Start(reply) => worker.tell_log_start(reply).await?,
                DiskJob::Refill(range, batches) => worker.refill(range, batches).await?,
            };
        }
        if worker.verify.is_some_and(|(at, _)| at <= worker.services.clock.mono()) {
            worker = worker.verify_log().await?;
        }
        Some(worker)
    }

    /// Whether [`Worker::work_on_disk`] has something to do.
    pub(super) fn has_disk_work(&self) -> bool {
        !self.disk_jobs.is_empty() || self.verify.is_some_and(|(at, _)| at <= self.services.clock.mono())
    }

    pub(super) fn suspect(&mut self) {
        self.services.metrics.partitions_suspect.inc();
        self.waiters.fail_all("a flush failed, so it is not known whether the batch survives a power cut");
        self.verify = Some((self.services.clock.mono(), VERIFY_PAUSE_MIN));
    }

    /// Has the suspect log verified; tries again later if that fails.
    async fn verify_log(self: Box<Self>) -> Option<Box<Self>> {
        let (mut worker, verified) = self
            .on_io_thread(|worker| {
                worker.log.mark_suspect()?;
                worker.log.verify_suspect()
            })
            .await?;
        let now = worker.services.clock.mono();
        match verified {
            Ok(_) => {
                worker.verify = None;
                let log_generation = worker.log.log_generation();
                let log_end = worker.log.log_end();
                worker.recount_bytes = true;
                worker.step(now, Input::Verified { log_generation, log_end });
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

    async fn truncate(self: Box<Self>, to: Offset) -> Option<Box<Self>> {
        let (mut worker, cut) = self.on_io_thread(move |worker| worker.log.truncate(to)).await?;
        let now = worker.services.clock.mono();
        worker.recount_bytes = true;
        match cut {
            Ok(log_end) => {
                info!(
                    topic = worker.shared.topic, partition = %worker.shared.partition, %log_end,
                    "cut what the leader does not have"
                );
                let (log_generation, flushed_end) = (worker.log.log_generation(), worker.log.flushed_end());
                worker.step(now, Input::Truncated { log_generation, log_end, flushed_end });
            }
            Err(error) => worker.cut_failed(&error.to_string()),
        }
        Some(worker)
    }

    async fn reset(self: Box<Self>, start: LogStart) -> Option<Box<Self>> {
        let LogStart { log_start, epochs, producers } = start;
        let after = epochs.clone();
        let (mut worker, reset) =
            self.on_io_thread(move |worker| worker.log.reset(log_start, epochs, &producers)).await?;
        let now = worker.services.clock.mono();
        worker.recount_bytes = true;
        match reset {
            Ok(()) => {
                info!(
                    topic = worker.shared.topic, partition = %worker.shared.partition, %log_start,
                    "starts over where the leader's log starts"
                );
                let log_generation = worker.log.log_generation();
                worker.step(now, Input::WasReset { log_generation, log_start, epochs: after });
            }
            Err(error) => worker.cut_failed(&error.to_string()),
        }
        Some(worker)
    }

    /// Where the log starts, for a follower that starts over there.
    async fn tell_log_start(
        self: Box<Self>,
        reply: oneshot::Sender<Result<LogStart, ApiError>>,
    ) -> Option<Box<Self>> {
        let (worker, producers) = self.on_io_thread(|worker| worker.log.producers_at_start()).await?;
        let start = match producers {
            _ if worker.replica.role() != Role::Leader => {
                Err(not_leader(worker.shared.partition, worker.replica.leader()))
            }
            Ok(producers) => {
                let log_start = worker.log.log_start();
                let before = |start: &&EpochStart| start.start <= log_start;
                let epochs = worker.log.epochs().iter().filter(before).copied().collect();
                Ok(LogStart { log_start, epochs, producers: producers.into() })
            }
            Err(error) => Err(ApiError::new(ErrorCode::StorageError, error.to_string())),
        };
        let _gone = reply.send(start);
        Some(worker)
    }

    /// A log that could not be cut is suspect: it is verified before anything else is done with it.
    fn cut_failed(&mut self, error: &str) {
        let now = self.services.clock.mono();
        warn!(
            topic = self.shared.topic, partition = %self.shared.partition, error,
            "the log could not be cut; it is tried again"
        );
        if self.log.is_suspect() {
            self.step(now, Input::FlushFailed { log_generation: self.replica.log_generation() });
        }
        self.step(now, Input::LinkLost);
    }

    /// Runs `job` where it may block. The partition's commands queue up meanwhile.
    pub(super) async fn on_io_thread<T: Send + 'static>(
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
}
