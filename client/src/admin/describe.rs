//! Topics as their leaders tell them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{NodeId, Offset, TopicId};
use highwater_protocol::messages::{
    ConfigSource, DescribeTopicsReply, DescribeTopicsRequest, PartitionDescription, ReplicaDescription,
    TopicDescription,
};
use tokio::time::Instant;

use super::{Admin, ConfigSetting, PartitionState, ReplicaState, TopicDetails};
use crate::client::Repeat;
use crate::error::Error;
use crate::metadata::{partition_of, request_for};

/// How long a leader has to describe what it leads: one that does not answer must not hold up the others.
const LEADER_TIME: Duration = Duration::from_secs(3);

impl Admin {
    pub(super) async fn describe(
        &self,
        names: Vec<String>,
        summary: bool,
    ) -> Result<Vec<TopicDetails>, Error> {
        let request = DescribeTopicsRequest { names, summary };
        let deadline = self.client.deadline();
        let mut reply: DescribeTopicsReply = self.client.ask_any(&request, Repeat::Freely, deadline).await?;
        if !summary {
            self.ask_leaders(&mut reply, deadline).await;
        }
        reply.topics.into_iter().map(details).collect()
    }

    /// Replaces what the first broker could not tell by what the leaders tell.
    async fn ask_leaders(&self, reply: &mut DescribeTopicsReply, deadline: Instant) {
        let mut by_leader: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
        for topic in &reply.topics {
            for partition in topic.partitions.iter().filter(|partition| !is_of_leader(partition)) {
                let leader = partition.info.as_ref().map_or(0, |info| info.leader);
                if leader != 0 {
                    by_leader.entry(leader).or_default().insert(topic.name.clone());
                }
            }
        }
        if by_leader.is_empty() {
            return;
        }
        let roster = request_for::<&str>(&[], false);
        let Ok(roster) = self.client.ask_any(&roster, Repeat::Freely, deadline).await else { return };
        let roster = self.client.metadata().update(roster);
        let address = |leader: u32| roster.brokers.iter().find(|broker| broker.node_id == NodeId(leader));
        let asking = by_leader.into_iter().filter_map(|(leader, names)| {
            let address = address(leader)?.address.clone();
            Some(async move { (leader, self.ask_leader(&address, names, deadline).await) })
        });
        for (leader, answer) in join_all(asking).await {
            match answer {
                Ok(answer) => merge(reply, answer),
                Err(error) => tracing::debug!(leader, %error, "a leader does not describe its partitions"),
            }
        }
    }

    async fn ask_leader(
        &self,
        address: &str,
        names: BTreeSet<String>,
        deadline: Instant,
    ) -> Result<DescribeTopicsReply, Error> {
        let deadline = deadline.min(Instant::now() + LEADER_TIME);
        let connection = self.client.pool().get(address).await?;
        let request = DescribeTopicsRequest { names: names.into_iter().collect(), summary: false };
        Ok(connection.request(&request, deadline).await?.0)
    }
}

/// Whether the answer comes from the partition's leader: only a leader knows how far every replica is.
const fn is_of_leader(partition: &PartitionDescription) -> bool {
    partition.error == 0 && !partition.replicas.is_empty()
}

/// Takes over the partitions of which the second answer is their leader's.
fn merge(reply: &mut DescribeTopicsReply, answer: DescribeTopicsReply) {
    for told in answer.topics {
        let Some(topic) = reply.topics.iter_mut().find(|topic| topic.topic_id == told.topic_id) else {
            continue;
        };
        for partition in told.partitions.into_iter().filter(is_of_leader) {
            let number = number_of(&partition);
            if let Some(here) = topic.partitions.iter_mut().find(|here| number_of(here) == number) {
                *here = partition;
            }
        }
    }
}

fn number_of(partition: &PartitionDescription) -> Option<u32> {
    partition.info.as_ref().map(|info| info.partition)
}

fn details(topic: TopicDescription) -> Result<TopicDetails, Error> {
    let code = ErrorCode::from_code(topic.error);
    if !code.is_none() {
        return Err(Error::from_code(code, "the topic cannot be described").with_topic(&topic.name));
    }
    let setting = |entry: highwater_protocol::messages::ConfigEntry| {
        let source = ConfigSource::try_from(entry.source).unwrap_or(ConfigSource::Default);
        ConfigSetting { name: entry.name, value: entry.value, source }
    };
    let name = topic.name;
    let state = |partition| partition_state(&name, partition);
    Ok(TopicDetails {
        topic_id: topic.topic_id.map(TopicId::from).unwrap_or_default(),
        replication: topic.replication,
        partition_count: topic.partition_count,
        config: topic.config.into_iter().map(setting).collect(),
        partitions: topic.partitions.into_iter().map(state).collect(),
        created_at_us: topic.created_at_us,
        name,
    })
}

fn partition_state(topic: &str, state: PartitionDescription) -> PartitionState {
    let metadata = partition_of(state.info.unwrap_or_default());
    let code = ErrorCode::from_code(state.error);
    let error = (!code.is_none()).then(|| {
        Error::from_code(code, "its state is not known here").with_partition(topic, metadata.partition)
    });
    let corrupt = state.corrupt.into_iter().map(|range| Offset(range.start)..Offset(range.end)).collect();
    PartitionState {
        metadata,
        error,
        log_start: Offset(state.log_start),
        log_end: Offset(state.log_end),
        flushed_end: Offset(state.flushed_end),
        high_watermark: Offset(state.high_watermark),
        bytes: state.bytes,
        segment_count: state.segments,
        durability: state.durability,
        state: state.state,
        corrupt,
        replicas: state.replicas.into_iter().map(replica_state).collect(),
    }
}

fn replica_state(replica: ReplicaDescription) -> ReplicaState {
    ReplicaState {
        node_id: NodeId(replica.node_id),
        log_end: Offset(replica.log_end),
        flushed_end: Offset(replica.flushed_end),
        in_sync: replica.in_sync,
        connected: replica.connected,
    }
}
