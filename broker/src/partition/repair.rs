//! Ranges that cannot be read: reported, fetched again from another replica, and filled.

use std::time::Duration;

use highwater_broker_core::controller::command::{ReplicaEnds, ReplicaProblem};
use highwater_broker_core::log::manifest::Hole;
use highwater_broker_core::replica::{Health, Problem, Role};
use highwater_broker_core::time::Mono;
use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, NodeId, Offset};
use tracing::{error, info, warn};

use super::suspect::DiskJob;
use super::worker::Worker;
use crate::api::ApiError;
use crate::storage::log::StampedBatch;

/// Between two attempts to fill a hole.
const REFILL_PAUSE: Duration = Duration::from_secs(2);

/// How far the repair of a partition is.
#[derive(Debug, Default)]
pub(super) struct Repair {
    /// Another replica is being asked for a range.
    is_asking: bool,
    /// No replica is asked before this.
    not_before: Option<Mono>,
    /// The registration under which the controller was told that there are holes.
    reported: Option<BrokerEpoch>,
}

impl Repair {
    /// When the next attempt is due.
    pub(super) const fn deadline(&self) -> Option<Mono> {
        self.not_before
    }
}

impl Worker {
    /// Tells the operator what was found, and counts it.
    pub(super) fn found_holes(&self, holes: &[Hole]) {
        let (topic, partition) = (&self.shared.topic, self.shared.partition);
        for hole in holes {
            error!(
                topic, %partition, start = %hole.start, end = %hole.end,
                "records are corrupt on the disk and cannot be read; they are fetched again from another replica, and \
                 everything around them goes on"
            );
        }
        self.services.metrics.corrupt_ranges.inc_by(holes.len() as i64);
    }

    /// Asks another replica for the first hole, if there is one and nobody is being asked.
    pub(super) fn repair_holes(&mut self, now: Mono) {
        if self.repair.not_before.is_some_and(|at| at > now) || self.repair.is_asking {
            return;
        }
        self.repair.not_before = None;
        self.report_holes();
        let Some(hole) = self.log.holes().first() else { return };
        let range = (hole.start, hole.end);
        let sources = self.healthy_replicas();
        if sources.is_empty() || self.replica.health() != Health::Online {
            return;
        }
        self.repair.is_asking = true;
        self.services.ask_for_range(self.handle(), range, sources);
    }

    /// Another replica has answered.
    pub(super) fn refilled(
        &mut self,
        now: Mono,
        range: (Offset, Offset),
        batches: Result<Vec<StampedBatch>, ApiError>,
    ) {
        self.repair.is_asking = false;
        let (topic, partition) = (&self.shared.topic, self.shared.partition);
        let (start, end) = range;
        match batches {
            Ok(batches) if self.is_of_this_log(&batches) => {
                self.disk_jobs.push_back(DiskJob::Refill(range, batches));
                return;
            }
            Ok(_) => warn!(
                topic, %partition, %start, %end,
                "another replica has records of another history where this one has a hole; it is tried again"
            ),
            Err(error) => info!(
                topic, %partition, %start, %end, %error, "a hole could not be filled yet; it is tried again"
            ),
        }
        self.repair.not_before = Some(now.after(REFILL_PAUSE));
    }

    /// Whether each batch is of the epoch that this log had at its offset.
    fn is_of_this_log(&self, batches: &[StampedBatch]) -> bool {
        let epochs = self.log.epochs();
        batches.iter().all(|batch| {
            let leader = &batch.header.leader;
            let place = epochs.partition_point(|start| start.start <= leader.base_offset);
            place.checked_sub(1).is_none_or(|last| epochs[last].epoch == leader.leader_epoch)
        })
    }

    /// Puts what another replica has where this log has a hole.
    pub(super) async fn refill(
        self: Box<Self>,
        range: (Offset, Offset),
        batches: Vec<StampedBatch>,
    ) -> Option<Box<Self>> {
        let (start, end) = range;
        let before = self.log.holes().len();
        let (mut worker, filled) =
            self.on_io_thread(move |worker| worker.log.fill_hole(start, &batches)).await?;
        let now = worker.services.clock.mono();
        worker.recount_bytes = true;
        let (topic, partition) = (&worker.shared.topic, worker.shared.partition);
        match filled {
            Ok(upto) => {
                info!(topic, %partition, %start, %end, %upto, "a corrupt range was fetched again and is good");
                worker.services.metrics.refilled_ranges.inc();
                let left = worker.log.holes().len();
                worker.services.metrics.corrupt_ranges.dec_by(before as i64 - left as i64);
                worker.report_holes();
            }
            Err(error) => {
                warn!(topic, %partition, %start, %end, %error, "a hole could not be filled; it is tried again");
                worker.repair.not_before = Some(now.after(REFILL_PAUSE));
            }
        }
        Some(worker)
    }

    /// Who surely has what this replica lacks: the leader first, then the others in sync, then whoever may be elected.
    fn healthy_replicas(&self) -> Vec<NodeId> {
        let Some(assignment) = self.replica.assignment() else { return Vec::new() };
        let own = self.services.node_id;
        let mut sources: Vec<NodeId> = assignment.leader.into_iter().collect();
        let members =
            assignment.in_sync.iter().map(|(node, _)| *node).chain(assignment.eligible.iter().copied());
        for node in members {
            if !sources.contains(&node) {
                sources.push(node);
            }
        }
        sources.retain(|node| *node != own);
        sources
    }

    /// Tells the controller that there are holes, once for each registration, or that there are none any more.
    pub(super) fn report_holes(&mut self) {
        if self.own_epoch == BrokerEpoch(0) {
            return;
        }
        let has_holes = !self.log.holes().is_empty();
        let reported = self.repair.reported == Some(self.own_epoch);
        if has_holes && !reported {
            self.repair.reported = Some(self.own_epoch);
            self.tell_controller(ReplicaProblem::Corrupt);
        } else if !has_holes && self.repair.reported.take().is_some() {
            self.tell_controller(ReplicaProblem::Recovered);
        }
    }

    /// While nobody can be elected for want of knowledge, the controller asks everybody how far they are.
    pub(super) fn report_ends(&mut self, members_unknown: bool) {
        if members_unknown && self.replica.role() == Role::Idle {
            let last_epoch = self.log.last_epoch().unwrap_or(LeaderEpoch(0));
            let ends = ReplicaEnds { last_epoch, log_end: self.log.log_end() };
            let (partition, own_epoch) = (self.shared.partition, self.own_epoch);
            self.services.report(partition, own_epoch, ReplicaProblem::Ends, Some(ends));
        }
    }

    fn tell_controller(&self, problem: ReplicaProblem) {
        self.services.report(self.shared.partition, self.own_epoch, problem, None);
    }

    /// Tells the controller and the operator what the machine has found.
    pub(super) fn report(&mut self, problem: Problem) {
        match problem {
            Problem::Suspect => self.tell_controller(ReplicaProblem::Suspect),
            Problem::Recovered => {
                self.tell_controller(ReplicaProblem::Recovered);
                // Holes that are still there are told again.
                if !self.log.holes().is_empty() {
                    self.repair.reported = None;
                }
            }
            Problem::Refused { to, high_watermark } => error!(
                topic = self.shared.topic, partition = %self.shared.partition, %to, %high_watermark,
                leader = ?self.replica.leader(),
                "the leader lacks records that were committed: this replica keeps its log and stays out of sync; \
                 compare the replicas with 'highwater verify'"
            ),
        }
    }
}
