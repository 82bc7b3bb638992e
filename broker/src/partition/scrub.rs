//! Looking at what is on the disk although nobody reads it, and comparing replicas.

use std::time::Duration;

use highwater_broker_core::replica::Health;
use highwater_broker_core::time::Mono;
use highwater_protocol::ids::Offset;
use tokio::sync::oneshot;
use tracing::{debug, info};

use super::mailbox::Checksum;
use super::reads::read_error;
use super::worker::Worker;
use crate::api::ApiError;
use crate::storage::check_plan::ScrubOutcome;
use crate::storage::error::Error as StorageError;
use crate::storage::table_plan::KeySlice;

/// Bytes that are verified at a time.
const SCRUB_BYTES: u64 = 1 << 20;

/// What is left of a comparison to be done on an I/O thread.
type Execute = Box<dyn FnOnce() -> Result<Checksum, StorageError> + Send>;

/// How far the scrub of a partition is: where in the log is the log's own affair.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    /// When the next part is due; `None` while one is being read.
    at: Option<Mono>,
    /// When the present pass began.
    began: Option<Mono>,
}

impl Scrub {
    /// When [`Worker::scrub_due`] has something to do.
    pub(super) const fn deadline(&self) -> Option<Mono> {
        self.at
    }
}

impl Worker {
    /// Begins at some time within the first interval: partitions that were opened together are not read together.
    pub(super) fn plan_scrub(&mut self, now: Mono) {
        let id = self.shared.partition;
        let spread =
            (id.topic_id.0 as u64 ^ u64::from(id.partition.get())).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
        self.scrub.at = Some(now.after(self.services.scrub_interval / 1024 * (spread as u32 + 1)));
    }

    /// Has the next part of the log verified, if it is time.
    pub(super) fn scrub_due(&mut self, now: Mono) {
        if self.scrub.at.take_if(|at| *at <= now).is_none() {
            return;
        }
        self.scrub.began.get_or_insert(now);
        if self.replica.health() == Health::Online
            && self.disk_jobs.is_empty()
            && let Ok(plan) = self.log.plan_scrub(SCRUB_BYTES)
        {
            return self.services.scrub(self.handle(), plan);
        }
        self.scrub.at = Some(now.after(self.services.scrub_interval));
    }

    /// A part was verified. The parts of a pass are spread over the interval.
    pub(super) fn scrubbed(&mut self, now: Mono, outcome: Option<ScrubOutcome>) {
        let interval = self.services.scrub_interval;
        let Some(outcome) = outcome else {
            // Retention or a cut came in between, or the disk cannot be read.
            self.scrub.at = Some(now.after(interval));
            return;
        };
        self.services.metrics.scrubbed_bytes.inc_by(outcome.bytes);
        if !outcome.corrupt.is_empty() {
            info!(
                topic = self.shared.topic, partition = %self.shared.partition, ranges = outcome.corrupt.len(),
                "scrubbing has found corrupt ranges"
            );
            let wall = self.services.clock.wall();
            self.maintain(now, wall);
        }
        self.scrub.at = Some(if outcome.pass_complete {
            debug!(topic = self.shared.topic, partition = %self.shared.partition, "scrubbed from end to end");
            let began = self.scrub.began.take().unwrap_or(now);
            began.after(interval).max(now.after(Duration::from_millis(10)))
        } else {
            let parts = u32::try_from(self.log.bytes() / SCRUB_BYTES + 1).unwrap_or(u32::MAX);
            now.after(interval / parts)
        });
    }

    /// Has a range of this replica read and verified.
    pub(super) fn checksum(
        &mut self,
        start: Offset,
        end: Option<Offset>,
        bytes_max: u64,
        keys: Option<KeySlice>,
        reply: oneshot::Sender<Result<Checksum, ApiError>>,
    ) {
        let (log_start, log_end) = (self.log.log_start(), self.log.log_end());
        let high_watermark = self.replica.high_watermark();
        let (compacted_end, end) = (self.log.compacted_end(), end.unwrap_or(high_watermark));
        let complete = move |range, slices_needed| Checksum {
            range,
            slices_needed,
            compacted_end,
            log_start,
            log_end,
            high_watermark,
        };
        let execute = match keys {
            None => self.log.plan_checksum(start, end, bytes_max).map(|plan| -> Execute {
                Box::new(move || plan.execute().map(|range| complete(range, None)))
            }),
            Some(keys) => self.log.plan_table(start, end, keys).map(|plan| -> Execute {
                Box::new(move || plan.execute().map(|table| complete(table.range, table.slices_needed)))
            }),
        };
        match execute {
            Ok(execute) => self.services.checksum(reply, execute),
            Err(error) => {
                let _gone = reply.send(Err(read_error(&error)));
            }
        }
    }
}
