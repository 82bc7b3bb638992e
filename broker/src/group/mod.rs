//! Consumer groups: the shells around the shards of `broker/core/src/group`.
//!
//! The state of groups is in an internal topic. Whoever leads a partition of it coordinates the groups whose names hash to
//! it: one task a partition ([`worker`]) reads the log ([`loader`]), decides, writes what it decided ([`journal`]) and
//! answers when that is committed. Another leader reads the same log and goes on.

pub(crate) mod ends;
mod events;
mod journal;
mod loader;
mod mailbox;
pub(crate) mod manager;
pub(crate) mod question;
mod shared;
mod survey;
pub(crate) mod topic;
mod worker;

use std::collections::HashMap;
use std::sync::Arc;

use highwater_broker_core::controller::image::Topic;
use highwater_broker_core::group::{Reply, Request};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::group_name::check_group_name;
use highwater_protocol::ids::{PartitionId, TopicPartition};
use highwater_protocol::messages::Coordinator;
use parking_lot::RwLock;

use ends::Ends;
use mailbox::{Mailbox, State, loading, not_coordinator};
use question::Question;
use topic::{GROUPS_TOPIC, TopicMaker, partition_of};

use crate::api::ApiError;
use crate::controller::service::ControllerHandle;

/// Finds the shards of this broker, and the coordinators of others.
#[derive(Debug)]
pub(crate) struct Groups {
    controller: ControllerHandle,
    maker: TopicMaker,
    ends: Ends,
    /// One for each partition of the internal topic that this broker has a replica of.
    shards: RwLock<HashMap<TopicPartition, Arc<Mailbox>>>,
}

impl Groups {
    /// Who coordinates each of `groups`. The internal topic is made if there is none.
    ///
    /// # Errors
    /// When it can not be made now.
    pub(crate) async fn coordinators(&self, groups: Vec<String>) -> Result<Vec<Coordinator>, ApiError> {
        let topic = self.maker.ensure().await?;
        Ok(groups.into_iter().map(|group| self.coordinator(&topic, group)).collect())
    }

    fn coordinator(&self, topic: &Topic, group: String) -> Coordinator {
        if let Err(error) = check_group_name(&group) {
            let error_code = ErrorCode::InvalidGroup.code();
            return Coordinator {
                error: error_code,
                message: error.to_string(),
                group,
                ..Coordinator::default()
            };
        }
        let id = partition_of(topic, &group);
        let image = self.controller.image();
        let leader = image.partition(id).and_then(|partition| partition.leader);
        match leader.and_then(|leader| image.broker(leader)) {
            Some(broker) => Coordinator {
                node_id: broker.node_id.get(),
                address: broker.address.clone(),
                group,
                ..Coordinator::default()
            },
            None => Coordinator {
                error: ErrorCode::NoCoordinator.code(),
                message: format!(
                    "partition {} of topic '{GROUPS_TOPIC}', which has the group, has no leader at the moment",
                    id.partition
                ),
                group,
                ..Coordinator::default()
            },
        }
    }

    /// Leaves a question about one group with its shard, which answers it. Never waits.
    pub(crate) fn leave(&self, group: &str, question: Question) {
        match self.shard_of(group) {
            Ok(shard) => shard.push(question),
            Err(error) => question.answer(Err(error)),
        }
    }

    /// Asks the shard of a group.
    pub(crate) async fn ask(&self, group: &str, request: Request, bytes: usize) -> Result<Reply, ApiError> {
        ask(&*self.shard_of(group)?, request, bytes).await
    }

    /// Asks every shard that this broker has: what each says, by partition. Those that others coordinate are left out.
    pub(crate) async fn ask_all(
        &self,
        request: impl Fn() -> Request,
    ) -> Vec<(PartitionId, Result<Reply, ApiError>)> {
        let mut shards: Vec<_> =
            self.shards.read().iter().map(|(id, shard)| (*id, Arc::clone(shard))).collect();
        shards.sort_unstable_by_key(|(id, _)| *id);
        let mut answers = Vec::with_capacity(shards.len());
        for (id, shard) in shards {
            let answer = match shard.state() {
                State::Away => continue,
                State::Loading => Err(loading(id)),
                State::Serving => ask(&shard, request(), 0).await,
            };
            if !matches!(&answer, Err(error) if error.code == ErrorCode::NotCoordinator) {
                answers.push((id.partition, answer));
            }
        }
        answers
    }

    /// Where partitions begin and end.
    pub(crate) fn ends(&self) -> &Ends {
        &self.ends
    }

    fn shard_of(&self, group: &str) -> Result<Arc<Mailbox>, ApiError> {
        let image = self.controller.image();
        let topic = image.topic_named(GROUPS_TOPIC).ok_or_else(|| {
            ApiError::new(
                ErrorCode::NotCoordinator,
                "nobody coordinates groups yet: ask find_coordinator first",
            )
        })?;
        let id = partition_of(topic, group);
        self.shards.read().get(&id).cloned().ok_or_else(|| not_coordinator(id))
    }
}

async fn ask(shard: &Mailbox, request: Request, bytes: usize) -> Result<Reply, ApiError> {
    let (question, answer) = Question::of_task(request, bytes);
    shard.push(question);
    answer
        .await
        .unwrap_or_else(|_| Err(ApiError::new(ErrorCode::ShuttingDown, "the broker is shutting down")))
}
