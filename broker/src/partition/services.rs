//! What the partitions of a broker have in common.

use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::controller::command::Command as ControllerCommand;
use highwater_broker_core::durability::Durability;
use highwater_broker_core::log::envelope;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{LeaderEpoch, NodeId};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::handle::PartitionHandle;
use crate::controller::service::ControllerHandle;
use crate::env::{Clock, Env};
use crate::observe::metrics::Metrics;
use crate::storage::error::Error as StorageError;
use crate::storage::file_system::FileSystem;
use crate::storage::log::Closed as ClosedLog;
use crate::storage::store::Store;

/// The state file with the last leader epoch that was given out.
const EPOCH_STATE: &str = "epoch";
const EPOCH_MAGIC: [u8; 4] = *b"HWEP";
const EPOCH_FORMAT: u16 = 1;

/// Between two attempts to record a durability.
const RECORD_PAUSE: Duration = Duration::from_secs(1);

/// What every partition of a broker needs.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) node_id: NodeId,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) file_system: Arc<dyn FileSystem>,
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) controller: ControllerHandle,
    pub(super) tasks: TaskTracker,
    runtime: tokio::runtime::Handle,
    shutdown: CancellationToken,
    /// The logs that were closed in order, for the clean marker.
    closed: Mutex<Vec<ClosedLog>>,
    /// The last leader epoch that was given out; on stable storage before it is used.
    epoch: Mutex<u32>,
}

impl Services {
    /// Called within the runtime that serves the broker.
    pub(crate) fn new(
        node_id: NodeId,
        env: &Env,
        store: Arc<Store>,
        metrics: Arc<Metrics>,
        controller: ControllerHandle,
        epoch: LeaderEpoch,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            node_id,
            clock: Arc::clone(&env.clock),
            file_system: Arc::clone(&env.file_system),
            store,
            metrics,
            controller,
            tasks: TaskTracker::new(),
            runtime: tokio::runtime::Handle::current(),
            shutdown,
            closed: Mutex::default(),
            epoch: Mutex::new(epoch.get()),
        }
    }

    /// Whether the broker is about to end.
    pub(super) fn is_stopping(&self) -> bool {
        self.shutdown.is_cancelled()
    }

    /// A log was closed in order.
    pub(super) fn note_closed(&self, log: ClosedLog) {
        self.closed.lock().push(log);
    }

    /// The logs that were closed in order.
    pub(crate) fn take_closed(&self) -> Vec<ClosedLog> {
        std::mem::take(&mut *self.closed.lock())
    }

    /// A leader epoch above all that were given out, and above `than`. Blocks on the disk.
    pub(super) fn next_epoch(&self, than: LeaderEpoch) -> Result<LeaderEpoch, StorageError> {
        let mut last = self.epoch.lock();
        let next = (*last).max(than.get()).saturating_add(1);
        write_epoch(&self.store, next)?;
        *last = next;
        Ok(LeaderEpoch(next))
    }

    /// Has the controller record which durability holds, and tells the partition when that is done.
    pub(super) fn record_durability(self: &Arc<Self>, handle: PartitionHandle, durability: Durability) {
        let services = Arc::clone(self);
        let task = async move {
            loop {
                let command = ControllerCommand::RecordDurability {
                    partition: handle.partition(),
                    leader_epoch: None,
                    durability,
                };
                match services.controller.propose(command, false).await {
                    Ok(_) => return handle.durability_recorded(durability),
                    // The topic is gone, or the broker is about to be.
                    Err(error)
                        if error.code != ErrorCode::StorageError && error.code != ErrorCode::DiskFull =>
                    {
                        return;
                    }
                    Err(_) => tokio::time::sleep(RECORD_PAUSE).await,
                }
            }
        };
        let shutdown = self.shutdown.clone();
        // The partition may be on an I/O thread at the moment.
        let task = async move {
            let _cut_short_at_shutdown = shutdown.run_until_cancelled(task).await;
        };
        self.tasks.spawn_on(task, &self.runtime);
    }
}

/// The leader epoch of a broker that starts: one more than the last one. On stable storage when this returns; blocks.
pub(crate) fn start_epoch(store: &Store) -> Result<LeaderEpoch, StorageError> {
    let last = match store.read_state(EPOCH_STATE)? {
        None => 0,
        Some(bytes) => match envelope::unwrap(EPOCH_MAGIC, EPOCH_FORMAT, &bytes) {
            Ok((_, payload)) => payload.first_chunk().copied().map_or(0, u32::from_le_bytes),
            // Every log raises the epoch above its own last one, so that starting over is safe.
            Err(error) => {
                warn!(%error, "the file with the last leader epoch is bad; epochs go on from those in the logs");
                0
            }
        },
    };
    let next = last.saturating_add(1);
    write_epoch(store, next)?;
    Ok(LeaderEpoch(next))
}

fn write_epoch(store: &Store, epoch: u32) -> Result<(), StorageError> {
    store.write_state(EPOCH_STATE, &envelope::wrap(EPOCH_MAGIC, EPOCH_FORMAT, &epoch.to_le_bytes()))
}
