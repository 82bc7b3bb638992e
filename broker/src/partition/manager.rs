//! Which partitions are served: follows the cluster image, opens and closes their logs, and knows their handles.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use highwater_broker_core::controller::image::{ClusterImage, Topic};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{BrokerEpoch, NodeId, TopicId, TopicPartition};
use parking_lot::RwLock;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::handle::{Closed, PartitionHandle};
use super::opener::Opener;
use super::services::Services;
use super::status::not_leader;
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
    /// It is not assigned to this broker any more; its log is on its way to the trash.
    Closing,
}

/// Finds the partitions of this broker.
#[derive(Debug)]
pub(crate) struct Partitions {
    slots: RwLock<HashMap<TopicPartition, Slot>>,
    /// Counts changes of `slots`.
    changes: watch::Sender<u64>,
    /// The image that was followed last, and whose eyes it is seen with.
    followed: RwLock<Option<(NodeId, Arc<ClusterImage>)>>,
    /// Its version.
    version: watch::Sender<u64>,
    /// The broker is about to end: what is still being opened is closed by whoever opens it.
    is_closing: AtomicBool,
}

impl Default for Partitions {
    fn default() -> Self {
        Self {
            slots: RwLock::default(),
            changes: watch::channel(0).0,
            followed: RwLock::default(),
            version: watch::channel(0).0,
            is_closing: AtomicBool::new(false),
        }
    }
}

impl Partitions {
    /// The partition, if this broker has a replica of it.
    pub(crate) fn find(&self, partition: TopicPartition) -> Result<PartitionHandle, ApiError> {
        match self.slots.read().get(&partition) {
            Some(Slot::Open(handle)) => Ok(handle.clone()),
            Some(Slot::Opening) => Err(ApiError::new(
                ErrorCode::LeaderNotReady,
                format!("partition {partition} is being opened"),
            )),
            Some(Slot::Failed(error)) => Err(error.clone()),
            Some(Slot::Closing) | None => Err(self.not_here(partition)),
        }
    }

    fn not_here(&self, partition: TopicPartition) -> ApiError {
        let followed = self.followed.read();
        let known = followed.as_ref().and_then(|(_, image)| image.partition(partition));
        match known {
            Some(known) => not_leader(partition, known.leader),
            None => ApiError::new(
                ErrorCode::UnknownPartition,
                format!("there is no partition {partition} on this broker"),
            ),
        }
    }

    /// Whether another broker has it, as far as is known here.
    fn is_elsewhere(&self, partition: TopicPartition) -> bool {
        let followed = self.followed.read();
        followed.as_ref().is_some_and(|(node, image)| {
            image.partition(partition).is_some_and(|known| !known.replicas.contains(node))
        })
    }

    /// Waits until every partition of the topic that this broker has a replica of is open, or has failed to, or the
    /// topic does not exist any more.
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
                Some(Slot::Opening | Slot::Closing) | None => {}
            }
            if self.is_elsewhere(*partition) {
                partitions.next();
                continue;
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

    /// Waits until every open partition has taken in an image of this version, or a later one.
    pub(crate) async fn wait_followed(&self, version: u64) {
        let mut followed = self.version.subscribe();
        if followed.wait_for(|followed| *followed >= version).await.is_err() {
            return;
        }
        for handle in self.open() {
            handle.settle().await;
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

    /// Every partition that is open, for the last time: those that are being opened see that they are not needed any more.
    fn close(&self) -> Vec<PartitionHandle> {
        // Before the slots are read: whoever puts an open partition there afterwards sees it.
        self.is_closing.store(true, Ordering::SeqCst);
        self.open()
    }

    /// Whether the broker is about to end.
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::SeqCst)
    }

    /// Counts what is opened, closed or elsewhere.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn is_known(&self, partition: TopicPartition) -> bool {
        self.slots.read().contains_key(&partition)
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

    fn follow(&self, node: NodeId, image: &Arc<ClusterImage>) {
        *self.followed.write() = Some((node, Arc::clone(image)));
        // Whoever waits for a partition may find that it is elsewhere.
        self.changes.send_modify(|count| *count += 1);
    }
}

/// The brokers of an image and what their registrations are: whoever follows needs to know.
type Registrations = Vec<(NodeId, BrokerEpoch)>;

/// Opens and closes partitions as the cluster image says, and tells each what the image says about it.
#[derive(Debug)]
pub(crate) struct Manager {
    services: Arc<Services>,
    partitions: Arc<Partitions>,
    opening: Arc<Semaphore>,
    /// The image that was followed last.
    image: Option<Arc<ClusterImage>>,
    /// What was in it besides topics.
    around: (Option<BrokerEpoch>, Registrations, u64),
}

impl Manager {
    pub(crate) fn new(services: Arc<Services>, partitions: Arc<Partitions>) -> Self {
        let opening = Arc::new(Semaphore::new(OPENING_MAX));
        Self { services, partitions, opening, image: None, around: (None, Vec::new(), 0) }
    }

    /// Opens every partition of the present image that this broker has a replica of, and returns when all are open or
    /// have failed to: whether none failed.
    ///
    /// What failed is reported already, and does not keep the others from being served.
    pub(crate) async fn open_all(&mut self) -> bool {
        let Some(image) = self.services.registered_image().await else { return false };
        self.look_at_disk(&image).await;
        self.follow(&image);
        let mut all_open = true;
        for topic in image.topics() {
            all_open &= self.partitions.wait_open(topic.partition_ids(), || true).await.is_ok();
        }
        // What is wrong with a log is known to the controller before it may elect it.
        self.partitions.wait_followed(image.version).await;
        self.services.wait_reported().await;
        all_open
    }

    /// Follows the image until `shutdown` is cancelled, then closes every partition: what is under way is finished.
    pub(crate) async fn run(mut self, shutdown: CancellationToken, drained: CancellationToken) {
        let mut versions = self.services.controller.versions();
        let mut registration = self.services.controller.registration();
        let mut retries = tokio::time::interval_at(Instant::now() + RETRY_PERIOD, RETRY_PERIOD);
        loop {
            let image = self.services.controller.image();
            self.follow(&image);
            tokio::select! {
                _ = retries.tick() => self.retry_failed(&image),
                () = self.services.room.notified() => self.open_missing(&image),
                changed = registration.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                changed = versions.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                () = shutdown.cancelled() => break,
            }
        }
        let handles = self.partitions.close();
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
        let registrations = image.brokers().map(|broker| (broker.node_id, broker.broker_epoch)).collect();
        let own_epoch = self.services.own_epoch(image);
        let around = (own_epoch, registrations, image.move_bytes_per_second());
        let around_changed = around != self.around;
        if self.image.as_ref().is_some_and(|last| last.version == image.version) && !around_changed {
            return;
        }
        self.around = around;
        self.partitions.follow(self.services.node_id, image);
        for topic in image.topics() {
            let before = self.image.as_ref().and_then(|last| last.topic(topic.id));
            if !around_changed && before.is_some_and(|before| Arc::ptr_eq(before, topic)) {
                continue;
            }
            self.follow_topic(image, topic, before.is_some_and(|before| before.config != topic.config));
        }
        let gone: Vec<Arc<Topic>> = self
            .image
            .iter()
            .flat_map(|last| last.topics())
            .filter(|topic| image.topic(topic.id).is_none())
            .cloned()
            .collect();
        for topic in gone {
            for partition in topic.partition_ids().filter(|partition| self.partitions.is_known(*partition)) {
                self.remove(partition, Closed::Deleted);
            }
        }
        self.image = Some(Arc::clone(image));
        self.partitions.version.send_replace(image.version);
    }

    /// Whatever kept a partition from being opened may be over: a full disk has room again.
    fn retry_failed(&self, image: &ClusterImage) {
        for partition in self.partitions.failed() {
            if let Some(topic) = image.topic(partition.topic_id) {
                self.open(topic, partition, true);
            }
        }
    }

    /// What could not be opened, because what was there before was still being closed.
    fn open_missing(&self, image: &Arc<ClusterImage>) {
        for topic in image.topics() {
            for partition in topic.partition_ids().filter(|partition| !self.partitions.is_known(*partition)) {
                if self.services.is_here(topic, partition) {
                    self.open(topic, partition, false);
                }
            }
        }
    }

    fn follow_topic(&self, image: &Arc<ClusterImage>, topic: &Arc<Topic>, config_changed: bool) {
        for partition in topic.partition_ids() {
            let slot = self.partitions.slots.read().get(&partition).cloned();
            let is_here = self.services.is_here(topic, partition);
            match (slot, is_here) {
                (None, true) => self.open(topic, partition, false),
                (Some(Slot::Open(handle)), true) => {
                    if config_changed {
                        handle.configure(topic.config.clone());
                    }
                    self.services.assign(&handle, image);
                }
                // The image says that the others have everything.
                (Some(Slot::Open(_) | Slot::Failed(_)), false) => self.remove(partition, Closed::Moved),
                // Being opened, as the image was before: it is told when it is there. Being closed: it is opened again
                // when that is done.
                (Some(Slot::Opening | Slot::Closing | Slot::Failed(_)), _) | (None, false) => {}
            }
        }
    }

    fn open(&self, topic: &Arc<Topic>, partition: TopicPartition, again: bool) {
        self.partitions.set(partition, Some(Slot::Opening));
        let opener =
            Opener { services: Arc::clone(&self.services), partitions: Arc::clone(&self.partitions), again };
        let (topic, opening) = (Arc::clone(topic), Arc::clone(&self.opening));
        self.services.tasks.spawn(async move {
            // The semaphore is never closed.
            let _permit = opening.acquire_owned().await;
            opener.open(&topic, partition).await;
        });
    }

    fn remove(&self, partition: TopicPartition, why: Closed) {
        let handle = self.partitions.find(partition).ok();
        if handle.is_none() && why == Closed::Moved {
            // It could not be opened. Its directory stays for now: the next start takes care of it.
            return self.partitions.set(partition, None);
        }
        remove(Arc::clone(&self.services), Arc::clone(&self.partitions), partition, handle, why);
    }

    /// What was moved away while this broker was not running goes to the trash. Directories of partitions that no topic
    /// has stay where they are: metadata may have been lost, not data.
    async fn look_at_disk(&self, image: &Arc<ClusterImage>) {
        let on_disk = match self.services.store.partitions() {
            Ok(on_disk) => on_disk,
            Err(error) => return warn!(%error, "the partitions on the disk could not be listed"),
        };
        for partition in on_disk {
            match image
                .topic(partition.topic_id)
                .filter(|topic| topic.partition(partition.partition).is_some())
            {
                None => warn!(
                    %partition,
                    "a partition on the disk belongs to no topic; it is left alone, remove it by hand if it is not \
                     needed"
                ),
                Some(topic) if !self.services.is_here(topic, partition) => {
                    info!(topic = topic.name, %partition, "other brokers have this partition now; it goes to the trash");
                    trash(&self.services, partition).await;
                }
                Some(_) => {}
            }
        }
    }
}

/// Closes a partition and removes its log, in a task of its own.
pub(super) fn remove(
    services: Arc<Services>,
    partitions: Arc<Partitions>,
    partition: TopicPartition,
    handle: Option<PartitionHandle>,
    why: Closed,
) {
    partitions.set(partition, Some(Slot::Closing));
    let tasks = services.tasks.clone();
    tasks.spawn(async move {
        match handle {
            Some(handle) => handle.close(why).await,
            // Nobody has its log: it could not be opened, or is being opened and will be closed then.
            None => trash(&services, partition).await,
        }
        partitions.set(partition, None);
        services.room.notify_one();
    });
}

async fn trash(services: &Arc<Services>, partition: TopicPartition) {
    let store = Arc::clone(&services.store);
    if let Some(Err(error)) = io_thread::run(&*services.file_system, move || store.trash(partition)).await {
        info!(%partition, %error, "a partition that is not needed any more is not in the trash yet");
    }
}
