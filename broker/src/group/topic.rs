//! The internal topic that holds the state of consumer groups: what it is like, when it is made, and whose groups are where.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::controller::command::{Command, FEATURE_LEVEL_GROUPS};
use highwater_broker_core::controller::image::{ClusterImage, Topic};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{PartitionId, TopicId, TopicPartition};
use highwater_protocol::key_hash::key_hash;

use crate::api::ApiError;
use crate::controller::service::ControllerHandle;
use crate::env::{Clock, Random};

/// Its name.
pub(crate) const GROUPS_TOPIC: &str = "hw-groups";

/// Its settings: none of them is left to the defaults of topics, which are made for what applications keep.
///
/// Segments are small, because the last one is never cleaned and a coordinator that takes over reads all that is left.
const CONFIG: [(&str, &str); 10] = [
    ("batch_bytes_max", "16MiB"),
    ("cleanup", "compact"),
    ("dirty_percent_min", "50"),
    ("durability", "fsync"),
    ("min_in_sync", "majority"),
    ("retention_age", "unlimited"),
    ("retention_bytes", "unlimited"),
    ("segment_age", "1h"),
    ("segment_bytes", "8MiB"),
    ("tombstone_grace", "1h"),
];

/// How long whoever needs it first waits for this broker to hear of it.
const IMAGE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Makes the topic when it is needed first.
#[derive(Debug)]
pub(super) struct TopicMaker {
    controller: ControllerHandle,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    partitions: u32,
    /// Held while the controller is asked, so that many who come at once cost one question.
    asking: tokio::sync::Mutex<()>,
}

impl TopicMaker {
    pub(super) fn new(
        controller: ControllerHandle,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        partitions: u32,
    ) -> Self {
        Self { controller, clock, random, partitions, asking: tokio::sync::Mutex::new(()) }
    }

    /// The topic, made if there is none.
    ///
    /// # Errors
    /// When the controller cannot be asked, or a broker of the cluster is too old for it.
    pub(super) async fn ensure(&self) -> Result<Arc<Topic>, ApiError> {
        if let Some(topic) = self.find(&*self.controller.current_image()?) {
            return Ok(topic);
        }
        let _asking = self.asking.lock().await;
        if let Some(topic) = self.find(&self.controller.image()) {
            return Ok(topic);
        }
        if self.controller.image().feature_level < FEATURE_LEVEL_GROUPS {
            let raise = Command::SetFeatureLevel { level: FEATURE_LEVEL_GROUPS };
            self.controller.propose(raise, false).await?;
        }
        let create = Command::CreateInternalTopic {
            topic_id: TopicId(self.random.next_u128()),
            name: GROUPS_TOPIC.to_owned(),
            partitions: self.partitions,
            config: config(),
            created_at_us: self.clock.wall().0,
        };
        self.controller.propose(create, false).await?;
        let mut versions = self.controller.versions();
        let known = async {
            loop {
                versions.borrow_and_update();
                if let Some(topic) = self.find(&self.controller.image()) {
                    return Some(topic);
                }
                versions.changed().await.ok()?;
            }
        };
        tokio::time::timeout(IMAGE_WAIT_MAX, known).await.ok().flatten().ok_or_else(|| {
            ApiError::new(
                ErrorCode::NoCoordinator,
                format!("topic '{GROUPS_TOPIC}' is being made, and this broker has not heard of it yet"),
            )
        })
    }

    fn find(&self, image: &ClusterImage) -> Option<Arc<Topic>> {
        image.topic_named(GROUPS_TOPIC).cloned()
    }
}

/// The settings of the topic.
fn config() -> BTreeMap<String, String> {
    CONFIG.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The partition that has a group; its leader coordinates the group.
pub(super) fn partition_of(topic: &Topic, group: &str) -> TopicPartition {
    let count = (topic.partitions.len() as u64).max(1);
    TopicPartition::new(topic.id, PartitionId((key_hash(group.as_bytes()) % count) as u32))
}

#[cfg(test)]
mod tests {
    use highwater_broker_core::controller::topic_config::TopicConfig;

    use super::*;

    #[test]
    fn every_setting_of_the_topic_is_its_own() {
        let config = config();
        assert!(TopicConfig::with_overrides(&TopicConfig::default(), &config, 3).unwrap().cleanup.compacts());
        for name in TopicConfig::NAMES {
            assert!(config.contains_key(*name), "{name} is left to the defaults of other topics");
        }
    }
}
