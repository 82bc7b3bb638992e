//! What the partitions of a broker have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use highwater_broker_core::controller::command::{Command as ControllerCommand, ReplicaEnds, ReplicaProblem};
use highwater_broker_core::controller::image::{ClusterImage, Topic};
use highwater_broker_core::durability::Durability;
use highwater_broker_core::replica::Assignment;
use highwater_client::wire::TcpConnector;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{BrokerEpoch, ClusterId, LeaderEpoch, NodeId, Offset, TopicPartition};
use highwater_protocol::messages::BrokerIdentity;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::cleaning::Cleaner;
use super::handle::PartitionHandle;
use super::mailbox::{Assigned, Checksum};
use crate::api::ApiError;
use crate::config::Config;
use crate::controller::service::ControllerHandle;
use crate::env::{Clock, Env};
use crate::io_thread;
use crate::observe::metrics::Metrics;
use crate::replication::fetch;
use crate::replication::links::{Links, Peers};
use crate::replication::throttle::Throttle;
use crate::storage::check_plan::ScrubPlan;
use crate::storage::error::Error as StorageError;
use crate::storage::file_system::FileSystem;
use crate::storage::log::Closed as ClosedLog;
use crate::storage::store::Store;

/// Between two attempts to reach the controller.
const PROPOSAL_PAUSE: Duration = Duration::from_millis(500);

/// The brokers of the cluster, for links.
#[derive(Debug)]
struct Neighbours(ControllerHandle);

impl Peers for Neighbours {
    fn address(&self, node: NodeId) -> Option<String> {
        self.0.image().broker(node).map(|broker| broker.address.clone())
    }

    fn identity(&self) -> Option<BrokerIdentity> {
        let identity = self.0.identity();
        (identity.broker_epoch != 0).then_some(identity)
    }

    fn cluster_id(&self) -> ClusterId {
        self.0.image().cluster_id
    }
}

/// How long a start waits until the controller knows what is wrong with its logs.
const REPORTS_TIMEOUT: Duration = Duration::from_secs(5);

/// What every partition of a broker needs.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) node_id: NodeId,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) file_system: Arc<dyn FileSystem>,
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) controller: ControllerHandle,
    pub(crate) links: Links,
    /// What replicas that are being added may fetch.
    pub(super) moves: Throttle,
    pub(super) tasks: TaskTracker,
    /// How long a pass over everything on the disk takes.
    pub(super) scrub_interval: Duration,
    scrubs: Semaphore,
    pub(super) cleaner: Cleaner,
    /// Reports on their way to the controller.
    reports: TaskTracker,
    sessions: AtomicU64,
    runtime: tokio::runtime::Handle,
    shutdown: CancellationToken,
    /// The logs that were closed in order, for the clean marker.
    closed: Mutex<Vec<ClosedLog>>,
    /// Notified when what a partition was closed for is done, so that it could be opened again.
    pub(super) room: Notify,
}

impl Services {
    /// Called within the runtime that serves the broker.
    pub(crate) fn new(
        config: &Config,
        env: &Env,
        store: Arc<Store>,
        metrics: Arc<Metrics>,
        controller: ControllerHandle,
        shutdown: CancellationToken,
    ) -> Self {
        let (tasks, node_id) = (TaskTracker::new(), config.node_id);
        let peers = Arc::new(Neighbours(controller.clone()));
        let (connector, random) = (Arc::new(TcpConnector), Arc::clone(&env.random));
        let links = Links::new(node_id, peers, connector, random, tasks.clone(), shutdown.clone());
        Self {
            node_id,
            clock: Arc::clone(&env.clock),
            file_system: Arc::clone(&env.file_system),
            store,
            metrics,
            controller,
            links,
            moves: Throttle::default(),
            tasks,
            scrub_interval: config.scrub_interval,
            scrubs: Semaphore::new(1),
            cleaner: Cleaner::new(config.cleaner, Arc::clone(&env.random)),
            reports: TaskTracker::new(),
            sessions: AtomicU64::new(1),
            runtime: tokio::runtime::Handle::current(),
            shutdown,
            closed: Mutex::default(),
            room: Notify::new(),
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

    /// The registration that this broker runs under, if the image has it: what was decided before it is not for this
    /// process.
    pub(super) fn own_epoch(&self, image: &ClusterImage) -> Option<BrokerEpoch> {
        let registered = *self.controller.registration().borrow();
        let known = image.broker(self.node_id).map(|broker| broker.broker_epoch);
        registered.filter(|registered| known == Some(*registered))
    }

    /// The image, once it has the registration of this broker. `None`: the broker is about to end.
    pub(super) async fn registered_image(&self) -> Option<Arc<ClusterImage>> {
        let mut versions = self.controller.versions();
        let found = async {
            loop {
                versions.borrow_and_update();
                let image = self.controller.image();
                if self.own_epoch(&image).is_some() {
                    return Some(image);
                }
                versions.changed().await.ok()?;
            }
        };
        self.shutdown.run_until_cancelled(found).await.flatten()
    }

    /// Waits until the controller has what it was told so far, or cannot be asked for a while.
    pub(super) async fn wait_reported(&self) {
        self.reports.close();
        let _in_time = tokio::time::timeout(REPORTS_TIMEOUT, self.reports.wait()).await;
        self.reports.reopen();
    }

    /// Whether this broker has, or gets, a replica.
    pub(super) fn is_here(&self, topic: &Topic, partition: TopicPartition) -> bool {
        topic
            .partition(partition.partition)
            .is_some_and(|partition| partition.replicas.contains(&self.node_id))
    }

    /// Tells a partition what the image says about it.
    pub(super) fn assign(&self, handle: &PartitionHandle, image: &ClusterImage) {
        if let Some(assigned) = self.assigned(handle.partition(), image) {
            handle.assign(assigned);
        }
    }

    /// What the image says about a partition; `None` while it does not know the registration of this broker.
    pub(super) fn assigned(&self, id: TopicPartition, image: &ClusterImage) -> Option<Assigned> {
        let own_epoch = self.own_epoch(image)?;
        let topic = image.topic(id.topic_id)?;
        let partition = topic.partition(id.partition)?;
        let registered = |node: &NodeId| {
            let epoch = image.broker(*node).map_or(BrokerEpoch(0), |broker| broker.broker_epoch);
            (*node, epoch)
        };
        let assignment = Assignment {
            leader: partition.leader,
            epoch: partition.leader_epoch,
            version: partition.version,
            replicas: partition.replicas.clone(),
            adding: partition.adding.clone(),
            in_sync: partition.in_sync.iter().map(registered).collect(),
            eligible: partition.eligible.clone(),
            min_in_sync: topic.min_in_sync(),
            durability_effective: partition.durability_effective,
            durability_wanted: topic.config.durability,
            unclean_epoch: partition.unclean_epoch,
        };
        let move_bytes_per_second = image.move_bytes_per_second();
        Some(Assigned { assignment, own_epoch, image_version: image.version, move_bytes_per_second })
    }

    /// A number for a session of a follower, never given twice.
    pub(super) fn next_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs a task that is cut short at shutdown. The partition may be on an I/O thread at the moment.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        let task = async move {
            let _cut_short_at_shutdown = shutdown.run_until_cancelled_owned(task).await;
        };
        self.tasks.spawn_on(task, &self.runtime);
    }

    /// Has the controller carry a command out; tried again while it cannot be asked.
    ///
    /// # Errors
    /// When the controller refuses.
    async fn propose(&self, command: ControllerCommand) -> Result<(), ApiError> {
        loop {
            match self.controller.propose(command.clone(), false).await {
                Ok(_) => return Ok(()),
                Err(error)
                    if matches!(
                        error.code,
                        ErrorCode::StorageError
                            | ErrorCode::DiskFull
                            | ErrorCode::NoController
                            | ErrorCode::NotController
                            | ErrorCode::TimedOut
                    ) =>
                {
                    tokio::time::sleep(PROPOSAL_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Has the controller record which durability holds, and tells the partition when that is done.
    pub(super) fn record_durability(
        self: &Arc<Self>,
        handle: PartitionHandle,
        leader_epoch: LeaderEpoch,
        durability: Durability,
    ) {
        let services = Arc::clone(self);
        self.spawn(async move {
            let partition = handle.partition();
            let leader_epoch = Some(leader_epoch);
            let command = ControllerCommand::RecordDurability { partition, leader_epoch, durability };
            match services.propose(command).await {
                Ok(()) => handle.durability_recorded(durability),
                // Another one leads by now, the topic is gone, or the broker is about to be.
                Err(error) => debug!(%partition, %error, "the durability that holds was not recorded"),
            }
        });
    }

    /// Has the controller decide on another in-sync set. What it decides comes with the next image.
    pub(super) fn propose_in_sync(
        self: &Arc<Self>,
        handle: PartitionHandle,
        broker_epoch: BrokerEpoch,
        leader_epoch: LeaderEpoch,
        version: u64,
        in_sync: Vec<(NodeId, BrokerEpoch)>,
    ) {
        let services = Arc::clone(self);
        self.spawn(async move {
            let (partition, node_id) = (handle.partition(), services.node_id);
            let command = ControllerCommand::AlterInSync {
                partition,
                node_id,
                broker_epoch,
                leader_epoch,
                version,
                in_sync,
            };
            // Not tried again here: what is right may be something else by then.
            if let Err(error) = services.controller.propose(command, false).await {
                debug!(%partition, %error, "another in-sync set was not decided");
                handle.proposal_refused(version);
            }
        });
    }

    /// Tells the controller what is wrong with a replica, or right again.
    pub(super) fn report(
        self: &Arc<Self>,
        partition: TopicPartition,
        broker_epoch: BrokerEpoch,
        problem: ReplicaProblem,
        ends: Option<ReplicaEnds>,
    ) {
        let (services, pending) = (Arc::clone(self), self.reports.token());
        self.spawn(async move {
            let _pending = pending;
            let node_id = services.node_id;
            let command =
                ControllerCommand::ReportReplica { partition, node_id, broker_epoch, problem, ends };
            if let Err(error) = services.propose(command).await {
                debug!(%partition, ?problem, %error, "a report about a replica was refused");
            }
        });
    }

    /// Has a part of a log verified, and tells the partition. One at a time on a broker: nobody waits for it.
    pub(super) fn scrub(self: &Arc<Self>, handle: PartitionHandle, plan: ScrubPlan) {
        let services = Arc::clone(self);
        self.spawn(async move {
            // The semaphore is never closed.
            let _permit = services.scrubs.acquire().await;
            let outcome = io_thread::run(&*services.file_system, move || plan.execute()).await;
            if let Some(Err(error)) = &outcome {
                debug!(partition = %handle.partition(), %error, "scrubbing was cut short");
            }
            handle.scrubbed(outcome.and_then(Result::ok));
        });
    }

    /// Has a range of a log verified, and answers with its checksum.
    pub(super) fn checksum(
        self: &Arc<Self>,
        reply: oneshot::Sender<Result<Checksum, ApiError>>,
        execute: impl FnOnce() -> Result<Checksum, StorageError> + Send + 'static,
    ) {
        let services = Arc::clone(self);
        self.spawn(async move {
            let failed = |text: String| ApiError::new(ErrorCode::StorageError, text);
            let found = match io_thread::run(&*services.file_system, execute).await {
                Some(Ok(found)) => Ok(found),
                Some(Err(error)) => Err(failed(error.to_string())),
                None => Err(failed("the I/O thread ended".to_owned())),
            };
            let _gone = reply.send(found);
        });
    }

    /// Asks a leader where its log starts, and tells the partition.
    pub(super) fn ask_for_log_start(
        self: &Arc<Self>,
        handle: PartitionHandle,
        session: u64,
        leader: NodeId,
        epoch: LeaderEpoch,
    ) {
        let services = Arc::clone(self);
        self.spawn(async move {
            let start = fetch::log_start(&services.links, leader, handle.partition(), epoch).await;
            handle.reset_at(session, start);
        });
    }

    /// Asks other replicas, one after another, for a range that this one cannot read, and tells the partition.
    pub(super) fn ask_for_range(
        self: &Arc<Self>,
        handle: PartitionHandle,
        range: (Offset, Offset),
        sources: Vec<NodeId>,
    ) {
        let services = Arc::clone(self);
        self.spawn(async move {
            let batches = fetch::range(&services.links, &sources, handle.partition(), range).await;
            handle.refilled(range, batches);
        });
    }
}
