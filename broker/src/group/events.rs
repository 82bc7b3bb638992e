//! What happens in groups, for logs and metrics.

use highwater_broker_core::group::{Event, FenceReason};
use tracing::{debug, info};

use crate::observe::metrics::Metrics;

/// Counts what has happened, and tells of it.
pub(super) fn note(events: &[Event], metrics: &Metrics) {
    for event in events {
        match event {
            Event::Joined { group, member, instead_of } => {
                metrics.group_joins.inc();
                debug!(group = &**group, member = &**member, ?instead_of, "a member has joined");
            }
            Event::Left { group, member } => {
                metrics.group_leaves.inc();
                debug!(group = &**group, member = &**member, "a member has left");
            }
            Event::Fenced { group, member, reason } => {
                metrics.group_fenced.inc();
                let reason = match reason {
                    FenceReason::Session => "it was not heard of within its session time-out",
                    FenceReason::Rebalance => "it did not give partitions up within its rebalance time-out",
                };
                info!(group = &**group, member = &**member, reason, "a member was removed");
            }
            Event::Assigned { group, generation, members, moved } => {
                metrics.group_assignments.inc();
                metrics.group_partitions_moved.inc_by(*moved as u64);
                debug!(group = &**group, generation, members, moved, "partitions were assigned");
            }
        }
    }
}
