//! Compaction of the partitions of a broker: one at a time, at a bounded rate, on I/O threads.

use std::sync::Arc;

use highwater_broker_core::log::cleaning::Passed;
use highwater_broker_core::log::cleaning::merge::Counts;
use highwater_broker_core::replica::Health;
use highwater_broker_core::time::{Mono, Wall};
use tokio::sync::{Semaphore, oneshot};
use tracing::{debug, info, warn};

use super::handle::PartitionHandle;
use super::mailbox::Command;
use super::services::Services;
use super::worker::Worker;
use crate::config::CleanerConfig;
use crate::env::Random;
use crate::io_thread;
use crate::replication::throttle::Throttle;
use crate::storage::log::{Cleaning, Replacement, Step};

/// Bytes of one step: what an I/O thread is busy with at a time.
const STEP_BYTES: u64 = 1 << 20;

/// What all passes of a broker share.
#[derive(Debug)]
pub(super) struct Cleaner {
    config: CleanerConfig,
    /// One pass at a time: the memory for keys is one pass's.
    passes: Semaphore,
    throttle: Throttle,
    random: Arc<dyn Random>,
}

/// What a partition's task is asked by a pass.
#[derive(Debug)]
pub(super) enum CleanerCommand {
    /// Is there something to do?
    Plan { seed: u64, map_bytes_max: usize, reply: oneshot::Sender<Option<Cleaning>> },
    /// Put this in its place; false if it has none any more.
    Swap { replacement: Box<Replacement>, reply: oneshot::Sender<bool> },
    /// The pass is over; `Some` with the revision of the log that it was of if it went to its end.
    Over(Option<(u64, Passed)>),
}

impl Cleaner {
    pub(super) fn new(config: CleanerConfig, random: Arc<dyn Random>) -> Self {
        Self { config, passes: Semaphore::new(1), throttle: Throttle::default(), random }
    }
}

impl Services {
    /// Cleans a partition once it is its turn.
    pub(super) fn clean(self: &Arc<Self>, handle: PartitionHandle) {
        let services = Arc::clone(self);
        self.spawn(async move {
            // The semaphore is never closed.
            let _permit = services.cleaner.passes.acquire().await;
            let passed = services.run_pass(&handle).await;
            handle.cleaner(CleanerCommand::Over(passed));
        });
    }

    /// A pass; `None` if it had nothing to do or did not come to its end.
    async fn run_pass(&self, handle: &PartitionHandle) -> Option<(u64, Passed)> {
        let (seed, map_bytes_max) =
            (self.cleaner.random.next_u128() as u64, self.cleaner.config.memory_bytes);
        let plan = |reply| Command::Cleaner(CleanerCommand::Plan { seed, map_bytes_max, reply });
        let mut cleaning = Box::new(handle.call(plan).await.ok()??);
        let partition = handle.partition();
        let began = self.clock.mono();
        loop {
            let step = io_thread::run(&*self.file_system, move || {
                let step = cleaning.step(STEP_BYTES);
                (cleaning, step)
            });
            let (back, step) = step.await?;
            cleaning = back;
            match step {
                Ok(Step::Worked { bytes }) => {
                    self.metrics.cleaner_bytes.inc_by(bytes);
                    self.pace(bytes).await;
                }
                Ok(Step::Replace(replacement)) => {
                    let swap = |reply| Command::Cleaner(CleanerCommand::Swap { replacement, reply });
                    if !handle.call(swap).await.ok()? {
                        debug!(%partition, "the log has changed: compaction starts over later");
                        return None;
                    }
                }
                Ok(Step::Done(passed)) => {
                    self.note_pass(cleaning.totals(), began);
                    let Counts { records, kept } = cleaning.totals();
                    info!(%partition, upto = %passed.upto, records, kept, "compacted");
                    return Some((cleaning.revision(), passed));
                }
                Err(error) => {
                    self.metrics.cleaner_failures.inc();
                    warn!(%partition, %error, "compaction was given up; it is tried again, and nothing is lost");
                    return None;
                }
            }
        }
    }

    /// Waits until so many bytes may have been worked through.
    async fn pace(&self, bytes: u64) {
        let now = self.clock.mono();
        let rate = self.cleaner.config.bytes_per_second;
        let place = self.cleaner.throttle.ask(now, bytes, rate);
        tokio::time::sleep(self.cleaner.throttle.granted_at(place, rate).since(now)).await;
    }

    fn note_pass(&self, totals: Counts, began: Mono) {
        let seconds = self.clock.mono().since(began).as_secs_f64();
        self.metrics.cleaner_passes.inc();
        self.metrics.cleaner_removed_records.inc_by(totals.records - totals.kept);
        self.metrics.cleaner_seconds.inc_by(seconds);
    }
}

impl Worker {
    /// Has the log cleaned, if there is something to clean and nobody is at it.
    pub(super) fn clean_if_due(&mut self, wall: Wall) {
        if !self.is_cleaned && self.log.wants_cleaning(wall, self.replica.high_watermark()) {
            self.is_cleaned = true;
            self.services.clean(self.handle());
        }
    }

    pub(super) fn obey_cleaner(&mut self, command: CleanerCommand) {
        let is_free = self.replica.health() == Health::Online && self.disk_jobs.is_empty();
        let wall = self.services.clock.wall();
        match command {
            CleanerCommand::Plan { seed, map_bytes_max, reply } => {
                let high_watermark = self.replica.high_watermark();
                let cleaning = if is_free {
                    self.log.plan_cleaning(wall, high_watermark, seed, map_bytes_max)
                } else {
                    None
                };
                let _gone = reply.send(cleaning);
            }
            CleanerCommand::Swap { replacement, reply } => {
                self.recount_bytes = true;
                let _gone = reply.send(self.log.swap_cleaned(*replacement));
            }
            CleanerCommand::Over(passed) => {
                self.is_cleaned = false;
                if let Some((revision, passed)) = passed {
                    self.log.cleaning_done(revision, passed, wall);
                }
            }
        }
    }
}
