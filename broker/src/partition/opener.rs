//! Opening a partition: its log is recovered on an I/O thread, its replica starts to lead, its task starts to run.

use std::sync::Arc;

use highwater_broker_core::controller::image::Topic;
use highwater_broker_core::log::recovery::Verdict;
use highwater_broker_core::replica::{Opened, Replica};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::TopicPartition;
use tracing::{debug, error, info, warn};

use super::handle::{Closed, PartitionHandle};
use super::mailbox::Shared;
use super::manager::{Partitions, Slot, remove};
use super::services::Services;
use super::status::Status;
use super::worker::{Worker, log_config};
use crate::api::ApiError;
use crate::io_thread;
use crate::observe::metrics::Metrics;
use crate::storage::error::Error as StorageError;
use crate::storage::log::RecoveryReport;
use crate::storage::sink::FlushSink;

/// Opens one partition and starts its task.
pub(super) struct Opener {
    pub(super) services: Arc<Services>,
    pub(super) partitions: Arc<Partitions>,
    /// It could not be opened before, which has been reported.
    pub(super) again: bool,
}

impl Opener {
    pub(super) async fn open(self, topic: &Topic, partition: TopicPartition) {
        if self.partitions.is_closing() {
            return self.partitions.set(partition, None);
        }
        match self.open_log(topic, partition).await {
            Ok(handle) => {
                self.services.metrics.partitions.inc();
                self.partitions.set(partition, Some(Slot::Open(handle.clone())));
                if self.partitions.is_closing() {
                    // It may have come too late to be closed with the others, and a broker ends when all are closed.
                    return handle.close(Closed::ShuttingDown).await;
                }
                self.catch_up(topic, &handle);
            }
            Err(error) => {
                if !self.again {
                    error!(
                        topic = topic.name, %partition, %error,
                        "a partition could not be opened and is not served; it is tried again"
                    );
                }
                self.partitions.set(partition, Some(Slot::Failed(error)));
            }
        }
    }

    /// The image may have changed while the log was being opened.
    fn catch_up(&self, opened: &Topic, handle: &PartitionHandle) {
        let image = self.services.controller.image();
        let partition = handle.partition();
        let why = match image.topic(opened.id) {
            Some(now) if self.services.is_here(now, partition) => {
                if now.config != opened.config {
                    handle.configure(now.config.clone());
                }
                return self.services.assign(handle, &image);
            }
            Some(_) => Closed::Moved,
            None => Closed::Deleted,
        };
        let (services, partitions) = (Arc::clone(&self.services), Arc::clone(&self.partitions));
        remove(services, partitions, partition, Some(handle.clone()), why);
    }

    async fn open_log(&self, topic: &Topic, partition: TopicPartition) -> Result<PartitionHandle, ApiError> {
        let effective = topic
            .partition(partition.partition)
            .map_or(topic.config.durability, |partition| partition.durability_effective);
        let wanted = topic.config.durability;
        let status = Status::opening(effective);
        let shared =
            Arc::new(Shared::new(partition, topic.name.clone(), topic.config.batch_bytes_max, status));
        let config = log_config(&topic.config, wanted.stricter(effective));
        let (store, sink) = (Arc::clone(&self.services.store), Arc::clone(&shared));
        let opened = io_thread::run(&*self.services.file_system, move || {
            store.open_log(partition, config, sink as Arc<dyn FlushSink>)
        })
        .await
        .ok_or_else(io_thread_ended)?;
        let (log, report) = opened.map_err(|error| not_opened(partition, &error))?;
        report_recovery(topic, partition, &report, &self.services.metrics);
        let replica = Replica::open(Opened {
            node: self.services.node_id,
            log_start: log.log_start(),
            log_end: log.log_end(),
            flushed_end: log.flushed_end(),
            high_watermark: log.durable_end().max(log.log_start()),
            log_generation: log.log_generation(),
            append_time: log.last_append_time(),
            epochs: log.epochs().to_vec(),
            durability_wanted: wanted,
            durability_effective: effective,
        });
        let services = Arc::clone(&self.services);
        let mut worker = Worker::new(Arc::clone(&shared), services, log, replica, topic.config.clone());
        // Whoever finds the handle finds it ready: the task may not run for a while.
        if let Some(assigned) = self.services.assigned(partition, &self.services.controller.image()) {
            worker.assigned(self.services.clock.mono(), assigned);
        }
        worker.publish();
        self.services.tasks.spawn(Box::new(worker).run());
        Ok(PartitionHandle { shared })
    }
}

fn io_thread_ended() -> ApiError {
    ApiError::new(ErrorCode::StorageError, "the I/O thread ended")
}

fn not_opened(partition: TopicPartition, error: &StorageError) -> ApiError {
    let code = if error.is_full() { ErrorCode::DiskFull } else { ErrorCode::StorageError };
    ApiError::new(code, format!("partition {partition} could not be opened, it is tried again: {error}"))
}

/// Tells the operator what recovery found.
fn report_recovery(topic: &Topic, partition: TopicPartition, report: &RecoveryReport, metrics: &Metrics) {
    let topic = topic.name.as_str();
    if let Some(cut) = &report.cut {
        let (file, position, bytes, offset) = (&cut.file, cut.position, cut.bytes, cut.offset.get());
        match cut.verdict {
            // An ordinary end after a crash.
            Verdict::Torn => {
                info!(topic, %partition, file, position, bytes, offset, "cut a torn tail off the log")
            }
            verdict => warn!(
                topic, %partition, file, position, bytes, offset, verdict = verdict.name(),
                quarantined = ?cut.quarantined, "cut bad bytes off the log; they are kept aside"
            ),
        }
    }
    for hole in &report.new_holes {
        error!(
            topic, %partition, start = %hole.start, end = %hole.end,
            "records are corrupt on the disk and cannot be read; everything around them goes on"
        );
    }
    metrics.corrupt_ranges.inc_by(report.new_holes.len() as i64);
    if report.manifest_rebuilt {
        warn!(topic, %partition, "the manifest was damaged and has been rebuilt from the segments");
    }
    if report.leftovers > 0 {
        info!(topic, %partition, files = report.leftovers, "files that belong to nothing went to the trash");
    }
    debug!(topic, %partition, ?report, "log opened");
}
