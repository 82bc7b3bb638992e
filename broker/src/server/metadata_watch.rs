//! Tells a connection that asked for it what has changed in the metadata it routes by.
//!
//! Nothing is queued: what has changed is worked out from the image that the connection knows and the present one, and
//! only while little waits to be written. So changes that come quickly are told together, and a slow reader costs nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use highwater_broker_core::controller::image::{ClusterImage, Partition, Topic};
use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::TopicId;
use highwater_protocol::messages::{MetadataPush, MetadataRequest, TopicInfo};
use tokio::sync::watch;

use super::Node;
use super::output::Output;
use super::subscriptions::send;
use crate::api::metadata::{brokers, topic_info};

/// Partitions that one push tells about; what is more goes into the next one.
const PUSH_PARTITIONS_MAX: usize = 20_000;

/// Bytes on their way to a connection beyond which it is told nothing more: what comes meanwhile is told together.
const BACKLOG_BYTES_MAX: usize = 4 << 20;

/// What a connection watches.
#[derive(Debug, Default)]
pub(crate) struct MetadataWatch {
    watched: Option<Watched>,
}

#[derive(Debug)]
struct Watched {
    /// `None`: all topics.
    some: Option<Chosen>,
    versions: watch::Receiver<u64>,
    /// What the connection knows.
    last: Arc<ClusterImage>,
    /// The controller that the connection was told.
    controller: u32,
    /// Images come no more: the broker is about to end.
    over: bool,
}

#[derive(Debug)]
struct Chosen {
    names: BTreeSet<String>,
    ids: BTreeSet<TopicId>,
}

impl MetadataWatch {
    /// Tells about changes after `image`, which the request was answered from.
    pub(crate) fn start(&mut self, node: &Node, request: MetadataRequest, image: Arc<ClusterImage>) {
        let some = (!request.all_topics).then(|| Chosen {
            names: request.names.into_iter().collect(),
            ids: request.topic_ids.into_iter().map(TopicId::from).collect(),
        });
        let mut versions = node.controller.versions();
        // What came between the answer and this is noticed by its version.
        versions.mark_changed();
        let controller = node.controller.controller().map_or(0, |controller| controller.get());
        self.watched = Some(Watched { some, versions, last: image, controller, over: false });
    }

    /// Waits for another image. Pending for ever without a watch. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        match &mut self.watched {
            Some(watched) if !watched.over => {
                watched.over = watched.versions.changed().await.is_err();
            }
            _ => std::future::pending().await,
        }
    }

    /// Adds what has changed to `output`, if there is room for it.
    pub(crate) fn pump(&mut self, node: &Node, output: &mut Output) {
        let Some(watched) = &mut self.watched else { return };
        if output.bytes() > BACKLOG_BYTES_MAX || node.draining.is_cancelled() {
            return;
        }
        let image = node.controller.image();
        if image.version != watched.last.version {
            watched.push(node, image, output);
        }
    }
}

impl Watched {
    fn push(&mut self, node: &Node, image: Arc<ClusterImage>, output: &mut Output) {
        let mut topics = self.changed_topics(&image);
        let controller = node.controller.controller().map_or(0, |controller| controller.get());
        let brokers = brokers(&image);
        let same = topics.is_empty() && controller == self.controller && brokers == self::brokers(&self.last);
        self.last = Arc::clone(&image);
        self.controller = controller;
        if same {
            return;
        }
        loop {
            let mut count = 0;
            let fits = |topic: &TopicInfo| {
                count += topic.partitions.len();
                count <= PUSH_PARTITIONS_MAX
            };
            let now = topics.iter().map(fits).take_while(|fits| *fits).count().max(1).min(topics.len());
            let rest = topics.split_off(now);
            let push = MetadataPush { version: image.version, controller, brokers: brokers.clone(), topics };
            send(output, ApiKey::METADATA_PUSH, &push, Vec::new());
            topics = rest;
            if topics.is_empty() {
                return;
            }
        }
    }

    /// The watched topics that lead elsewhere than the connection knows.
    fn changed_topics(&self, image: &ClusterImage) -> Vec<TopicInfo> {
        let mut changed = Vec::new();
        match &self.some {
            None => {
                let gone = self.last.topics().filter(|topic| image.topic(topic.id).is_none());
                changed.extend(gone.map(|topic| gone_info(topic)));
                for topic in image.topics() {
                    changed.extend(difference(self.last.topic(topic.id), Some(topic)));
                }
            }
            Some(some) => {
                for name in &some.names {
                    changed.extend(difference(self.last.topic_named(name), image.topic_named(name)));
                }
                for id in &some.ids {
                    changed.extend(difference(self.last.topic(*id), image.topic(*id)));
                }
            }
        }
        changed
    }
}

fn difference(before: Option<&Arc<Topic>>, now: Option<&Arc<Topic>>) -> Option<TopicInfo> {
    match (before, now) {
        (Some(before), Some(now)) => routes_differ(before, now).then(|| topic_info(now)),
        (None, Some(now)) => Some(topic_info(now)),
        (Some(before), None) => Some(gone_info(before)),
        (None, None) => None,
    }
}

/// Whether a client would send or read elsewhere or otherwise. Who is in sync is nothing that clients go by.
fn routes_differ(before: &Arc<Topic>, now: &Arc<Topic>) -> bool {
    if Arc::ptr_eq(before, now) {
        return false;
    }
    let of = |topic: &Topic| (topic.id, topic.config.batch_bytes_max, topic.partitions.len());
    let differ = |(before, now): (&Partition, &Partition)| {
        (before.leader, before.leader_epoch) != (now.leader, now.leader_epoch)
            || before.replicas != now.replicas
    };
    of(before) != of(now) || before.partitions.iter().zip(&now.partitions).any(differ)
}

fn gone_info(topic: &Topic) -> TopicInfo {
    TopicInfo {
        error: ErrorCode::UnknownTopic.code(),
        name: topic.name.clone(),
        topic_id: Some(topic.id.into()),
        ..TopicInfo::default()
    }
}
