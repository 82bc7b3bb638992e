//! Which partitions are served: follows the cluster image, opens and closes their logs, and knows their handles.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::controller::image::{ClusterImage, Topic};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{LeaderEpoch, TopicId, TopicPartition};
use parking_lot::RwLock;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::handle::{Closed, PartitionHandle};
use super::opener::Opener;
use super::services::Services;
use crate::api::ApiError;
use crate::io_thread;

/// Logs that are opened at once: more than there are I/O threads, so that none of them waits.
const OPENING_MAX: usize = 64;

/// How often partitions are tried again that could not be opened.
const RETRY_PERIOD: Duration = Duration::from_secs(5);

/// A partition as the manager knows it.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    Opening,
    Open(PartitionHandle),
    /// It is tried again from time to time.
    Failed(ApiError),
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
            Some(Slot::Failed(error)) => Err(error.clone()),
            None => Err(ApiError::new(
                ErrorCode::UnknownPartition,
                format!("there is no partition {partition} on this broker"),
            )),
        }
    }

    /// Waits until each of these partitions of a topic is open, or has failed to, or the topic does not exist any more.
    pub(crate) async fn wait_open(
        &self,
        partitions: impl Iterator<Item = TopicPartition>,
        exists: impl Fn() -> bool,
    ) -> Result<(), ApiError> {
        let mut changes = self.changes.subscribe();
        // An open partition stays open as far as this is concerned, so that none is looked at again.
        let mut partitions = partitions.peekable();
        while let Some(partition) = partitions.peek() {
            match self.slots.read().get(partition) {
                Some(Slot::Open(_)) => {
                    partitions.next();
                    continue;
                }
                Some(Slot::Failed(error)) => return Err(error.clone()),
                Some(Slot::Opening) | None => {}
            }
            if !exists() {
                return Err(ApiError::new(ErrorCode::UnknownTopic, "the topic was deleted meanwhile"));
            }
            if changes.changed().await.is_err() {
                return Err(ApiError::new(ErrorCode::ShuttingDown, "the broker is shutting down"));
            }
        }
        Ok(())
    }

    /// Waits until no partition of the topic is left here.
    pub(crate) async fn wait_gone(&self, topic: TopicId) {
        let mut changes = self.changes.subscribe();
        let mut left: Vec<TopicPartition> =
            self.slots.read().keys().filter(|partition| partition.topic_id == topic).copied().collect();
        while let Some(partition) = left.last() {
            if !self.slots.read().contains_key(partition) {
                left.pop();
            } else if changes.changed().await.is_err() {
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

    /// Every partition that could not be opened.
    fn failed(&self) -> Vec<TopicPartition> {
        let failed = |(partition, slot): (&TopicPartition, &Slot)| {
            matches!(slot, Slot::Failed(_)).then_some(*partition)
        };
        self.slots.read().iter().filter_map(failed).collect()
    }

    pub(super) fn set(&self, partition: TopicPartition, slot: Option<Slot>) {
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

    /// Opens every partition of the present image, and returns when all are open or have failed to: whether none failed.
    ///
    /// What failed is reported already, and does not keep the others from being served.
    pub(crate) async fn open_all(&mut self) -> bool {
        let image = self.services.controller.image();
        self.report_orphans(&image);
        self.follow(&image);
        let mut all_open = true;
        for topic in image.topics() {
            all_open &= self.partitions.wait_open(topic.partition_ids(), || true).await.is_ok();
        }
        all_open
    }

    /// Follows the image until `shutdown` is cancelled, then closes every partition: what is under way is finished.
    pub(crate) async fn run(mut self, shutdown: CancellationToken, drained: CancellationToken) {
        let mut versions = self.services.controller.versions();
        let mut retries = tokio::time::interval_at(Instant::now() + RETRY_PERIOD, RETRY_PERIOD);
        loop {
            let image = self.services.controller.image();
            self.follow(&image);
            tokio::select! {
                _ = retries.tick() => self.retry_failed(&image),
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

    /// Whatever kept a partition from being opened may be over: a full disk has room again.
    fn retry_failed(&self, image: &ClusterImage) {
        for partition in self.partitions.failed() {
            if let Some(topic) = image.topic(partition.topic_id) {
                self.open(topic, partition, true);
            }
        }
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
                Err(error) if error.code == ErrorCode::UnknownPartition => self.open(topic, partition, false),
                // Being opened, with the settings from before: it is configured when it is there.
                Err(_) => {}
            }
        }
    }

    fn open(&self, topic: &Arc<Topic>, partition: TopicPartition, again: bool) {
        self.partitions.set(partition, Some(Slot::Opening));
        let opener = Opener {
            services: Arc::clone(&self.services),
            partitions: Arc::clone(&self.partitions),
            epoch: self.epoch,
            again,
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
            let services = Arc::clone(&self.services);
            let handle = partitions.find(partition).ok();
            self.services.tasks.spawn(async move {
                match handle {
                    Some(handle) => handle.close(Closed::Deleted).await,
                    // Nobody has its log: it could not be opened, or is being opened and will be closed then.
                    None => trash(&services, partition).await,
                }
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

async fn trash(services: &Arc<Services>, partition: TopicPartition) {
    let store = Arc::clone(&services.store);
    if let Some(Err(error)) = io_thread::run(&*services.file_system, move || store.trash(partition)).await {
        info!(%partition, %error, "a deleted partition is not in the trash yet");
    }
}
