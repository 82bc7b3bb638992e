//! Which shards a broker has: one for each partition of the internal topic that is open here.

use std::collections::HashMap;
use std::sync::Arc;

use highwater_broker_core::controller::image::ClusterImage;
use highwater_broker_core::group::config::GroupConfig;
use highwater_broker_core::group::topics::Topics;
use highwater_protocol::ids::TopicPartition;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Groups;
use super::ends::Ends;
use super::loader::{LOADS_AT_ONCE, Loader};
use super::mailbox::{Mailbox, State};
use super::shared::GroupServices;
use super::survey::{self, GroupMetrics};
use super::topic::{GROUPS_TOPIC, TopicMaker};
use super::worker::Worker;
use crate::controller::service::ControllerHandle;
use crate::env::Env;
use crate::observe::metrics::Metrics;
use crate::partition::manager::Partitions;
use crate::replication::links::Links;

/// What groups are made of.
pub(crate) struct Parts {
    pub(crate) controller: ControllerHandle,
    pub(crate) partitions: Arc<Partitions>,
    pub(crate) links: Links,
    pub(crate) config: GroupConfig,
    pub(crate) metrics: Arc<Metrics>,
    /// Partitions of the internal topic, when it is made.
    pub(crate) partition_count: u32,
}

/// Starts and ends the tasks that own shards.
#[derive(Debug)]
pub(crate) struct Manager {
    groups: Arc<Groups>,
    services: Arc<GroupServices>,
    controller: ControllerHandle,
    partitions: Arc<Partitions>,
    metrics: GroupMetrics,
    tasks: TaskTracker,
    owners: HashMap<TopicPartition, JoinHandle<()>>,
    /// Notified when an owner has ended.
    ended: Arc<Notify>,
}

/// However an owner ends, nobody waits for it in vain, and another one takes its place if there is still a partition.
struct Over {
    mailbox: Arc<Mailbox>,
    ended: Arc<Notify>,
}

impl Drop for Over {
    fn drop(&mut self) {
        self.mailbox.set_state(State::Away);
        self.ended.notify_one();
    }
}

/// Groups that are not served yet, and what serves them.
pub(crate) fn groups(parts: Parts, env: &Env) -> (Arc<Groups>, Manager) {
    let Parts { controller, partitions, links, config, metrics, partition_count } = parts;
    let maker =
        TopicMaker::new(controller.clone(), Arc::clone(&env.clock), Arc::clone(&env.random), partition_count);
    let ends = Ends::new(controller.node_id(), controller.clone(), Arc::clone(&partitions), links);
    let gauges = GroupMetrics::default();
    metrics.register_collector(gauges.clone());
    let groups = Arc::new(Groups { controller: controller.clone(), maker, ends, shards: Default::default() });
    let services = Arc::new(GroupServices {
        clock: Arc::clone(&env.clock),
        config,
        metrics: Arc::clone(&metrics),
        loader: Loader {
            file_system: Arc::clone(&env.file_system),
            at_once: Arc::new(Semaphore::new(LOADS_AT_ONCE)),
        },
        topics: watch::channel(Arc::default()).0,
    });
    let manager = Manager {
        groups: Arc::clone(&groups),
        services,
        controller,
        partitions,
        metrics: gauges,
        tasks: TaskTracker::new(),
        owners: HashMap::new(),
        ended: Arc::default(),
    };
    (groups, manager)
}

impl Manager {
    /// Tells the shards of topics that have come, gone or changed.
    fn tell_topics(&self, image: &ClusterImage) {
        let topics = Topics::of(image);
        self.services.topics.send_if_modified(|last| {
            let changed = **last != topics;
            if changed {
                *last = Arc::new(topics);
            }
            changed
        });
    }

    /// Follows the image and what is open until `stop` is cancelled.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        self.tasks.spawn(survey::run(Arc::clone(&self.groups), self.metrics.clone(), stop.clone()));
        let mut versions = self.controller.versions();
        let mut changes = self.partitions.changes();
        loop {
            let image = self.controller.image();
            self.tell_topics(&image);
            self.follow(&image, &stop);
            tokio::select! {
                changed = versions.changed() => if changed.is_err() { break },
                changed = changes.changed() => if changed.is_err() { break },
                () = self.ended.notified() => {}
                () = stop.cancelled() => break,
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// One owner for each partition that is open here. An owner ends with its partition; one that came back has a new one.
    fn follow(&mut self, image: &ClusterImage, stop: &CancellationToken) {
        self.owners.retain(|_, owner| !owner.is_finished());
        let Some(topic) = image.topic_named(GROUPS_TOPIC) else { return };
        for id in topic.partition_ids() {
            if self.owners.contains_key(&id) {
                continue;
            }
            let Ok(handle) = self.partitions.find(id) else { continue };
            let mailbox = Arc::clone(
                self.groups.shards.write().entry(id).or_insert_with(|| Arc::new(Mailbox::new(id))),
            );
            let services = Arc::clone(&self.services);
            let Some(worker) = Worker::new(services, handle, Arc::clone(&mailbox)) else { continue };
            let stop = stop.clone();
            let over = Over { mailbox: Arc::clone(&mailbox), ended: Arc::clone(&self.ended) };
            let task = self.tasks.spawn(async move {
                let _over = over;
                let _stopped = stop.run_until_cancelled_owned(worker.run()).await;
            });
            self.owners.insert(id, task);
        }
    }
}
