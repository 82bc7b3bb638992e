//! Where partitions begin and how far they are committed, wherever they are led: what lag is computed from.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use highwater_client::wire::Connection;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{NodeId, PartitionId, TopicId, TopicPartition};
use highwater_protocol::messages::{DescribedGroup, GroupLag, ListOffsetsRequest, OffsetQuery, Position};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::debug;

use crate::controller::service::ControllerHandle;
use crate::partition::manager::Partitions;
use crate::replication::links::Links;

/// Partitions in one question.
const PARTITIONS_PER_REQUEST: usize = 4096;
/// How long other brokers have to answer. Lag is for people and dashboards: what is not known in time is left out.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a partition begins and how far it is committed, as its leader says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// First offset that can be read.
    pub(crate) log_start: u64,
    /// Next offset that is not committed.
    pub(crate) high_watermark: u64,
}

/// Knows the ends of partitions, or asks those who lead them. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Ends(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node_id: NodeId,
    controller: ControllerHandle,
    partitions: Arc<Partitions>,
    links: Links,
    /// One connection to each broker that was asked. Bounded by the brokers of the cluster.
    connections: Mutex<HashMap<NodeId, Connection>>,
}

impl Ends {
    pub(super) fn new(
        node_id: NodeId,
        controller: ControllerHandle,
        partitions: Arc<Partitions>,
        links: Links,
    ) -> Self {
        let connections = Mutex::default();
        Self(Arc::new(Shared { node_id, controller, partitions, links, connections }))
    }

    /// The ends of `wanted`, as far as their leaders can be reached within a moment.
    pub(crate) async fn of(
        &self,
        wanted: impl IntoIterator<Item = TopicPartition>,
    ) -> HashMap<TopicPartition, End> {
        let mut ends = HashMap::new();
        let mut elsewhere: BTreeMap<NodeId, Vec<TopicPartition>> = BTreeMap::new();
        let image = self.0.controller.image();
        for id in wanted {
            let Some(leader) = image.partition(id).and_then(|partition| partition.leader) else { continue };
            if leader == self.0.node_id {
                if let Some(end) = self.0.here(id) {
                    ends.insert(id, end);
                }
            } else {
                elsewhere.entry(leader).or_default().push(id);
            }
        }
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut asked = JoinSet::new();
        for (leader, partitions) in elsewhere {
            let shared = Arc::clone(&self.0);
            asked.spawn(async move { shared.ask(leader, &partitions, deadline).await });
        }
        while let Some(answered) = asked.join_next().await {
            ends.extend(answered.into_iter().flatten());
        }
        ends
    }
}

impl Ends {
    /// Fills in how far behind groups are, as far as the leaders of their partitions say so in time.
    pub(crate) async fn fill_in(&self, groups: &mut [DescribedGroup]) {
        let id = |lag: &GroupLag| {
            let topic_id = TopicId::from(lag.topic_id?);
            Some(TopicPartition::new(topic_id, PartitionId(lag.partition)))
        };
        let wanted: BTreeSet<TopicPartition> =
            groups.iter().flat_map(|group| &group.offsets).filter_map(id).collect();
        let ends = self.of(wanted).await;
        for lag in groups.iter_mut().flat_map(|group| &mut group.offsets) {
            if let Some(end) = id(lag).and_then(|id| ends.get(&id)) {
                lag.log_start = Some(end.log_start);
                lag.high_watermark = Some(end.high_watermark);
                lag.lag = lag.committed.map(|committed| end.behind(committed));
            }
        }
    }
}

impl End {
    /// Records between a position and the watermark. What retention has let go of is not counted, and a position beyond the
    /// watermark is behind by nothing.
    pub(crate) fn behind(&self, committed: u64) -> u64 {
        self.high_watermark.saturating_sub(committed.max(self.log_start))
    }
}

impl Shared {
    fn here(&self, id: TopicPartition) -> Option<End> {
        let status = self.partitions.find(id).ok()?.status();
        status.check_serves(id).ok()?;
        Some(End { log_start: status.log_start.get(), high_watermark: status.high_watermark.get() })
    }

    async fn ask(
        &self,
        leader: NodeId,
        partitions: &[TopicPartition],
        deadline: Instant,
    ) -> Vec<(TopicPartition, End)> {
        let mut found = Vec::with_capacity(partitions.len());
        for some in partitions.chunks(PARTITIONS_PER_REQUEST) {
            let asked = tokio::time::timeout_at(deadline, self.ask_for(leader, some, deadline)).await;
            match asked {
                Ok(Ok(ends)) => found.extend(ends),
                Ok(Err(error)) => {
                    debug!(%leader, error, "a broker did not say how far its partitions are");
                    self.connections.lock().remove(&leader);
                    break;
                }
                Err(_) => break,
            }
        }
        found
    }

    async fn ask_for(
        &self,
        leader: NodeId,
        partitions: &[TopicPartition],
        deadline: Instant,
    ) -> Result<Vec<(TopicPartition, End)>, String> {
        let connection = self.connection(leader).await?;
        let query = |id: &TopicPartition, position: Position| OffsetQuery {
            topic_id: Some(id.topic_id.into()),
            partition: id.partition.get(),
            position: position.into(),
            ..OffsetQuery::default()
        };
        let both = |id: &TopicPartition| [query(id, Position::Earliest), query(id, Position::Latest)];
        let request = ListOffsetsRequest { queries: partitions.iter().flat_map(both).collect() };
        let (reply, _) = connection.request(&request, deadline).await.map_err(|error| error.to_string())?;
        let ends = partitions.iter().zip(reply.results.chunks_exact(2)).filter_map(|(id, results)| {
            let [start, end] = results else { return None };
            let known = [start, end].iter().all(|result| result.error == ErrorCode::None.code());
            known.then_some((*id, End { log_start: start.offset, high_watermark: end.offset }))
        });
        Ok(ends.collect())
    }

    async fn connection(&self, leader: NodeId) -> Result<Connection, String> {
        let known = self.connections.lock().get(&leader).cloned();
        if let Some(connection) = known.filter(|connection| connection.closed().is_none()) {
            return Ok(connection);
        }
        let connection = self.links.dial(leader).await.map_err(|error| error.message)?;
        self.connections.lock().insert(leader, connection.clone());
        Ok(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_counts_what_can_still_be_read() {
        let end = End { log_start: 10, high_watermark: 30 };
        assert_eq!([0, 10, 12, 30, 99].map(|committed| end.behind(committed)), [20, 20, 18, 0, 0]);
    }
}
