//! Which partitions are served: follows the cluster image, opens and closes their logs, and knows their handles.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::controller::command::Command as ControllerCommand;
use highwater_broker_core::controller::image::{ClusterImage, Topic};
use highwater_broker_core::durability::Durability;
use highwater_broker_core::log::envelope;
use highwater_broker_core::log::recovery::Verdict;
use highwater_broker_core::replica::{Replica, Start};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{LeaderEpoch, NodeId, PartitionId, TopicId, TopicPartition};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use super::handle::{Closed, PartitionHandle, Shared, Status};
use super::worker::{Worker, log_config};
use crate::api::ApiError;
use crate::controller::service::ControllerHandle;
use crate::env::{Clock, Env};
use crate::io_thread;
use crate::observe::metrics::Metrics;
use crate::storage::error::Error as StorageError;
use crate::storage::file_system::FileSystem;
use crate::storage::log::{Closed as ClosedLog, RecoveryReport};
use crate::storage::sink::FlushSink;
use crate::storage::store::Store;

/// Logs that are opened at once: more than there are I/O threads, so that none of them waits.
const OPENING_MAX: usize = 64;

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
    tasks: TaskTracker,
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
                let command =
                    ControllerCommand::RecordDurability { partition: handle.partition(), durability };
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

/// A partition as the manager knows it.
#[derive(Debug, Clone)]
enum Slot {
    Opening,
    Open(PartitionHandle),
    Failed(String),
}

/// Finds the partitions of this broker.
#[derive(Debug)]
pub(crate) struct Partitions {
    slots: RwLock<HashMap<TopicPartition, Slot>>,
    /// Counts changes of `slots`.
    changes: watch::Sender<u64>,
}

impl Default for Partitions {
    fn default() -> Self {
        Self { slots: RwLock::default(), changes: watch::channel(0).0 }
    }
}

impl Partitions {
    /// The partition, if this broker serves it.
    pub(crate) fn find(&self, partition: TopicPartition) -> Result<PartitionHandle, ApiError> {
        match self.slots.read().get(&partition) {
            Some(Slot::Open(handle)) => Ok(handle.clone()),
            Some(Slot::Opening) => Err(ApiError::new(
                ErrorCode::LeaderNotReady,
                format!("partition {partition} is being opened"),
            )),
            Some(Slot::Failed(why)) => Err(ApiError::new(
                ErrorCode::StorageError,
                format!("partition {partition} could not be opened: {why}"),
            )),
            None => Err(ApiError::new(
                ErrorCode::UnknownPartition,
                format!("there is no partition {partition} on this broker"),
            )),
        }
    }

    /// Waits until every partition of the topic is open, or has failed to, or the topic does not exist any more.
    pub(crate) async fn wait_open(
        &self,
        topic: TopicId,
        count: u32,
        exists: impl Fn() -> bool,
    ) -> Result<(), ApiError> {
        let mut changes = self.changes.subscribe();
        loop {
            let pending = (0..count)
                .map(|partition| TopicPartition::new(topic, PartitionId(partition)))
                .find_map(|partition| match self.slots.read().get(&partition) {
                    Some(Slot::Open(_)) => None,
                    Some(Slot::Failed(why)) => Some(Err(why.clone())),
                    Some(Slot::Opening) | None => Some(Ok(())),
                });
            match pending {
                None => return Ok(()),
                Some(Err(why)) => return Err(ApiError::new(ErrorCode::StorageError, why)),
                Some(Ok(())) if !exists() => {
                    return Err(ApiError::new(ErrorCode::UnknownTopic, "the topic was deleted meanwhile"));
                }
                Some(Ok(())) => {}
            }
            if changes.changed().await.is_err() {
                return Err(ApiError::new(ErrorCode::ShuttingDown, "the broker is shutting down"));
            }
        }
    }

    /// Waits until no partition of the topic is left here.
    pub(crate) async fn wait_gone(&self, topic: TopicId) {
        let mut changes = self.changes.subscribe();
        while self.slots.read().keys().any(|partition| partition.topic_id == topic) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Every partition that is open.
    pub(crate) fn open(&self) -> Vec<PartitionHandle> {
        let open = |slot: &Slot| match slot {
            Slot::Open(handle) => Some(handle.clone()),
            _ => None,
        };
        self.slots.read().values().filter_map(open).collect()
    }

    fn set(&self, partition: TopicPartition, slot: Option<Slot>) {
        let mut slots = self.slots.write();
        match slot {
            Some(slot) => slots.insert(partition, slot),
            None => slots.remove(&partition),
        };
        drop(slots);
        self.changes.send_modify(|count| *count += 1);
    }
}

/// Opens and closes partitions as the cluster image says.
#[derive(Debug)]
pub(crate) struct Manager {
    services: Arc<Services>,
    partitions: Arc<Partitions>,
    epoch: LeaderEpoch,
    opening: Arc<Semaphore>,
    /// The image that was followed last.
    image: Option<Arc<ClusterImage>>,
}

impl Manager {
    pub(crate) fn new(services: Arc<Services>, partitions: Arc<Partitions>, epoch: LeaderEpoch) -> Self {
        let opening = Arc::new(Semaphore::new(OPENING_MAX));
        Self { services, partitions, epoch, opening, image: None }
    }

    /// Opens every partition of the present image, and returns when all are open or have failed to.
    pub(crate) async fn open_all(&mut self) {
        let image = self.services.controller.image();
        self.report_orphans(&image);
        self.follow(&image);
        for topic in image.topics() {
            // What failed is reported already, and does not keep the others from being served.
            let count = topic.partitions.len() as u32;
            let _failed = self.partitions.wait_open(topic.id, count, || true).await;
        }
    }

    /// Follows the image until `shutdown` is cancelled, then closes every partition: what is under way is finished.
    pub(crate) async fn run(mut self, shutdown: CancellationToken, drained: CancellationToken) {
        let mut versions = self.services.controller.versions();
        loop {
            let image = self.services.controller.image();
            self.follow(&image);
            tokio::select! {
                changed = versions.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                () = shutdown.cancelled() => break,
            }
        }
        let handles = self.partitions.open();
        info!(partitions = handles.len(), "closing partitions");
        let closing = TaskTracker::new();
        for handle in handles {
            closing.spawn(async move { handle.close(Closed::ShuttingDown).await });
        }
        closing.close();
        closing.wait().await;
        self.services.tasks.close();
        self.services.tasks.wait().await;
        drained.cancel();
    }

    /// Brings what is open in line with the image.
    fn follow(&mut self, image: &Arc<ClusterImage>) {
        if self.image.as_ref().is_some_and(|last| last.version == image.version) {
            return;
        }
        for topic in image.topics() {
            let before = self.image.as_ref().and_then(|last| last.topic(topic.id));
            if before.is_some_and(|before| Arc::ptr_eq(before, topic)) {
                continue;
            }
            self.follow_topic(topic, before.map(|before| before.config != topic.config).unwrap_or(false));
        }
        let gone: Vec<Arc<Topic>> = self
            .image
            .iter()
            .flat_map(|last| last.topics())
            .filter(|topic| image.topic(topic.id).is_none())
            .cloned()
            .collect();
        for topic in gone {
            self.remove_topic(&topic);
        }
        self.image = Some(Arc::clone(image));
    }

    fn follow_topic(&self, topic: &Arc<Topic>, config_changed: bool) {
        for partition in topic.partition_ids() {
            match self.partitions.find(partition) {
                Ok(handle) => {
                    if config_changed {
                        handle
                            .configure(topic.config.clone(), topic.config.min_in_sync_of(topic.replication));
                    }
                }
                Err(error) if error.code == ErrorCode::UnknownPartition => self.open(topic, partition),
                // Being opened, with the settings from before: it is configured when it is there.
                Err(_) => {}
            }
        }
    }

    fn open(&self, topic: &Arc<Topic>, partition: TopicPartition) {
        self.partitions.set(partition, Some(Slot::Opening));
        let opener = Opener {
            services: Arc::clone(&self.services),
            partitions: Arc::clone(&self.partitions),
            epoch: self.epoch,
        };
        let (topic, opening) = (Arc::clone(topic), Arc::clone(&self.opening));
        self.services.tasks.spawn(async move {
            // The semaphore is never closed.
            let _permit = opening.acquire_owned().await;
            opener.open(&topic, partition).await;
        });
    }

    fn remove_topic(&self, topic: &Arc<Topic>) {
        for partition in topic.partition_ids() {
            let partitions = Arc::clone(&self.partitions);
            let Ok(handle) = partitions.find(partition) else {
                partitions.set(partition, None);
                continue;
            };
            self.services.tasks.spawn(async move {
                handle.close(Closed::Deleted).await;
                partitions.set(partition, None);
            });
        }
    }

    /// Directories of partitions that no topic has stay where they are: metadata may have been lost, not data.
    fn report_orphans(&self, image: &ClusterImage) {
        match self.services.store.partitions() {
            Ok(on_disk) => {
                for partition in on_disk {
                    if image
                        .topic(partition.topic_id)
                        .is_none_or(|t| t.partition(partition.partition).is_none())
                    {
                        warn!(
                            %partition,
                            "a partition on the disk belongs to no topic; it is left alone, remove it by hand if \
                             it is not needed"
                        );
                    }
                }
            }
            Err(error) => warn!(%error, "the partitions on the disk could not be listed"),
        }
    }
}

/// Opens one partition and starts its task.
struct Opener {
    services: Arc<Services>,
    partitions: Arc<Partitions>,
    epoch: LeaderEpoch,
}

impl Opener {
    async fn open(self, topic: &Topic, partition: TopicPartition) {
        match self.open_log(topic, partition).await {
            Ok(handle) => {
                self.services.metrics.partitions.inc();
                self.partitions.set(partition, Some(Slot::Open(handle.clone())));
                self.reconfigure(topic, &handle);
            }
            Err(why) => {
                error!(topic = topic.name, %partition, error = why, "a partition could not be opened and is not served");
                self.partitions.set(partition, Some(Slot::Failed(why)));
            }
        }
    }

    /// The image may have changed while the log was being opened.
    fn reconfigure(&self, opened: &Topic, handle: &PartitionHandle) {
        let image = self.services.controller.image();
        match image.topic(opened.id) {
            Some(now) if now.config != opened.config => {
                handle.configure(now.config.clone(), now.config.min_in_sync_of(now.replication));
            }
            Some(_) => {}
            None => {
                let (handle, partitions) = (handle.clone(), Arc::clone(&self.partitions));
                self.services.tasks.spawn(async move {
                    handle.close(Closed::Deleted).await;
                    partitions.set(handle.partition(), None);
                });
            }
        }
    }

    async fn open_log(&self, topic: &Topic, partition: TopicPartition) -> Result<PartitionHandle, String> {
        let effective = topic
            .partition(partition.partition)
            .map_or(topic.config.durability, |partition| partition.durability_effective);
        let wanted = topic.config.durability;
        let status = Status::opening(self.epoch, self.services.node_id, effective);
        let shared =
            Arc::new(Shared::new(partition, topic.name.clone(), topic.config.batch_bytes_max, status));
        let config = log_config(&topic.config, wanted.stricter(effective));
        let (store, sink) = (Arc::clone(&self.services.store), Arc::clone(&shared));
        let opened = io_thread::run(&*self.services.file_system, move || {
            store.open_log(partition, config, sink as Arc<dyn FlushSink>)
        })
        .await
        .ok_or("the I/O thread ended")?;
        let (log, report) = opened.map_err(|error| error.to_string())?;
        report_recovery(topic, partition, &report, &self.services.metrics);
        let epoch = self.epoch_above(log.last_epoch()).await?;
        let start = Start {
            node: self.services.node_id,
            epoch,
            replication: topic.replication,
            min_in_sync: topic.config.min_in_sync_of(topic.replication),
            durability_wanted: wanted,
            durability_effective: effective,
            log_end: log.log_end(),
            flushed_end: log.flushed_end(),
            high_watermark: log.log_start(),
            log_generation: log.log_generation(),
            append_time: log.last_append_time(),
        };
        let mut outputs = Vec::new();
        let replica = Replica::lead(start, &mut outputs);
        let services = Arc::clone(&self.services);
        let worker = Worker::new(Arc::clone(&shared), services, log, replica, topic.config.clone());
        self.services.tasks.spawn(Box::new(worker).run(outputs));
        Ok(PartitionHandle { shared })
    }

    /// This start's epoch, or, when the log has a higher one (it came from another directory), one above that.
    async fn epoch_above(&self, last: Option<LeaderEpoch>) -> Result<LeaderEpoch, String> {
        match last {
            Some(last) if last >= self.epoch => {
                let services = Arc::clone(&self.services);
                io_thread::run(&*self.services.file_system, move || services.next_epoch(last))
                    .await
                    .ok_or("the I/O thread ended")?
                    .map_err(|error| error.to_string())
            }
            _ => Ok(self.epoch),
        }
    }
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
