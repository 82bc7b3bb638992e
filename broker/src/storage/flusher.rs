//! Flush rounds: all dirty logs at once, the next round when the last one is over.

use std::io;
use std::sync::Arc;

use highwater_broker_core::log::slot::Slot;
use highwater_protocol::ids::Offset;
use parking_lot::Mutex;

use super::file_system::{File, FileSystem, RoundResult};
use super::shared::{Lane, LogShared, Snapshot};
use super::sink::FlushOutcome;
use super::slots::Slots;

/// Collects dirty logs and runs rounds, without a thread of its own.
///
/// There are two lanes. In the eager one somebody waits for the flush. In the other one sealed segments of logs that are
/// not flushed at once get to the disk; a round there may take as long as the disk needs for whole segments, and the
/// eager lane does not wait for it.
#[derive(Debug)]
pub(super) struct Flusher {
    fs: Arc<dyn FileSystem>,
    slots: Slots,
    lanes: [Mutex<Queue>; 2],
}

#[derive(Debug, Default)]
struct Queue {
    dirty: Vec<Arc<LogShared>>,
    in_flight: bool,
}

impl Flusher {
    pub(super) fn new(fs: Arc<dyn FileSystem>, slots: Slots) -> Self {
        Self { fs, slots, lanes: Default::default() }
    }

    pub(super) const fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Puts a log into a lane; the caller has marked it as queued. Starts a round if none is in flight.
    pub(super) fn enqueue(self: &Arc<Self>, log: &Arc<LogShared>, lane: Lane) {
        self.lanes[lane as usize].lock().dirty.push(Arc::clone(log));
        self.start(lane);
    }

    /// Starts a round in a lane if something is dirty and none is in flight.
    pub(super) fn start(self: &Arc<Self>, lane: Lane) {
        loop {
            let dirty = {
                let mut queue = self.lanes[lane as usize].lock();
                if queue.in_flight || queue.dirty.is_empty() {
                    return;
                }
                queue.in_flight = true;
                std::mem::take(&mut queue.dirty)
            };
            let round: Vec<Snapshot> = dirty.iter().filter_map(|log| log.snapshot(lane)).collect();
            if round.is_empty() {
                self.lanes[lane as usize].lock().in_flight = false;
                continue;
            }
            self.run(lane, round);
            return;
        }
    }

    fn run(self: &Arc<Self>, lane: Lane, round: Vec<Snapshot>) {
        let mut files: Vec<Arc<dyn File>> = Vec::with_capacity(round.len());
        files.extend(round.iter().flat_map(|log| &log.files).map(|file| Arc::clone(&file.file)));
        let this = Arc::clone(self);
        self.fs.flush_round(
            files,
            Box::new(move |results| {
                this.complete(&round, results);
                this.lanes[lane as usize].lock().in_flight = false;
                this.start(lane);
            }),
        );
        // After the round, for which somebody waits, was handed over.
        if lane == Lane::Eager {
            self.sync_slots();
        }
    }

    /// Has the slots of earlier rounds flushed beside this one, which nobody waits for.
    fn sync_slots(self: &Arc<Self>) {
        let Some(file) = self.slots.begin_sync() else { return };
        let this = Arc::clone(self);
        self.fs.flush_round(
            vec![file],
            Box::new(move |results| this.slots.end_sync(results.into_iter().find_map(Result::err))),
        );
    }

    fn complete(self: &Arc<Self>, round: &[Snapshot], results: RoundResult) {
        let mut results = results.into_iter();
        let mut reports = Vec::with_capacity(round.len());
        for log in round {
            let mut failed: Option<io::Error> = None;
            for _ in &log.files {
                let result =
                    results.next().unwrap_or_else(|| Err(io::Error::other("no result for the file")));
                failed = failed.or(result.err());
            }
            if let Some(error) = failed {
                if cfg!(hw_mutate = "h18_retry_fsync") {
                    let again = log.log.flush.lock().queue(Lane::Eager);
                    if again {
                        self.lanes[Lane::Eager as usize].lock().dirty.push(Arc::clone(&log.log));
                    }
                } else {
                    log.log.fail(Arc::new(error));
                }
            } else {
                if let Some(upto) = log.log.flushed(log) {
                    reports.push((Arc::clone(&log.log), log.log_generation, upto));
                }
                if log.log.structure.start() {
                    self.spawn_structure_job(&log.log);
                }
            }
        }
        self.report(&reports);
    }

    /// Writes the slots of logs that have new flushed ends, and tells their owners.
    pub(super) fn report(&self, reports: &[(Arc<LogShared>, u64, Offset)]) {
        let news: Vec<_> = reports
            .iter()
            .filter(|(log, generation, upto)| log.note_flushed_end(*generation, *upto))
            .collect();
        let slots: Vec<Slot> = news
            .iter()
            .map(|(log, log_generation, flushed_end)| Slot {
                partition: log.partition,
                log_generation: *log_generation,
                flushed_end: *flushed_end,
            })
            .collect();
        self.slots.write(&slots);
        for (log, log_generation, upto) in news {
            log.sink.flush_done(FlushOutcome::Flushed { log_generation: *log_generation, upto: *upto });
        }
    }

    /// Runs the job that makes a log's names and manifest durable; the caller has marked it as running.
    pub(super) fn spawn_structure_job(self: &Arc<Self>, log: &Arc<LogShared>) {
        let this = Arc::clone(self);
        let job_log = Arc::clone(log);
        self.fs.spawn_io(Box::new(move || {
            let report = |generation, upto| this.report(&[(Arc::clone(&job_log), generation, upto)]);
            let result = job_log.structure.run(&*this.fs, &job_log, report);
            if let Err(error) = result {
                if error.is_full() {
                    tracing::warn!(partition = %job_log.partition, %error, "the manifest waits for room on the disk");
                } else {
                    tracing::error!(partition = %job_log.partition, %error, "the log cannot be made durable");
                    job_log.fail(Arc::new(io::Error::other(error)));
                }
            }
        }));
    }
}
