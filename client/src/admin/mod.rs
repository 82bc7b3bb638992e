//! Topics, metadata and offsets.

mod cluster;
mod describe;
mod group_types;
mod groups;
mod types;

pub use cluster::{BrokerDetails, ClusterChange, ClusterDetails, ClusterPlan, PartitionMove};
pub use group_types::{
    GroupDetails, GroupList, GroupMemberDetails, GroupPosition, ListedGroup, ResetGroup, ResetOffset, ResetTo,
};
pub use types::{
    AlterTopic, AlteredTopic, Broker, ClusterMetadata, ConfigSetting, CreatedTopic, ListedOffset, NewTopic,
    PartitionMetadata, PartitionState, ReadBatches, ReplicaState, TopicDetails, TopicMetadata,
};

use std::collections::BTreeMap;

use bytes::Bytes;
use highwater_protocol::batch::{BatchHeader, Records};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{LeaderEpoch, Offset, PartitionId, TopicId, TopicPartition};
use highwater_protocol::messages::{
    AlterTopicRequest, CreateTopicRequest, DeleteTopicRequest, ListOffsetsReply, ListOffsetsRequest,
    OffsetQuery, Position, ReadRequest,
};
use tokio::time::Instant;

use crate::client::{Client, Repeat};
use crate::consumer::StartAt;
use crate::error::{Error, ErrorKind};
use crate::metadata::request_for;
use crate::record::ConsumedBatch;

/// Creates, describes, alters and deletes topics, and looks at logs.
///
/// Every method has the client's request deadline. When a change ends with [`ErrorKind::Connection`] or
/// [`ErrorKind::TimedOut`] it may have happened or not: describe the topic to see. All methods are cancel safe in that
/// the client stays usable; whether a change happened is not known then.
#[derive(Debug, Clone)]
pub struct Admin {
    client: Client,
}

impl Admin {
    pub(crate) const fn new(client: Client) -> Self {
        Self { client }
    }

    /// Creates a topic. When it returns, the topic is durable and takes records.
    ///
    /// # Errors
    /// `TopicExists`, `InvalidArgument`, or what kept the request from being answered.
    ///
    /// ```no_run
    /// # async fn example(client: highwater_client::Client) -> Result<(), highwater_client::Error> {
    /// use highwater_client::{ErrorKind, NewTopic};
    ///
    /// let topic = NewTopic::new("orders").partitions(8).config("durability", "fsync");
    /// match client.admin().create_topic(topic).await {
    ///     Ok(created) => println!("created with {} partitions", created.partitions),
    ///     Err(error) if error.kind() == ErrorKind::TopicExists => println!("it is there already"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn create_topic(&self, topic: NewTopic) -> Result<CreatedTopic, Error> {
        let request = CreateTopicRequest {
            name: topic.name,
            partitions: topic.partitions,
            replication: topic.replication,
            config: topic.config,
            validate_only: topic.validate_only,
        };
        let reply = self.change(&request, &request.name).await?;
        self.client.metadata().forget(&request.name);
        Ok(CreatedTopic {
            topic_id: reply.topic_id.map(TopicId::from),
            partitions: reply.partitions,
            replication: reply.replication,
        })
    }

    /// Settings and state of these topics, partitions included: each partition as its leader tells it. A partition whose
    /// leader does not answer has an error instead.
    ///
    /// # Errors
    /// `UnknownTopic` for the first one that is not there, or what kept the request from being answered.
    pub async fn describe_topics<S: AsRef<str>>(&self, names: &[S]) -> Result<Vec<TopicDetails>, Error> {
        if names.is_empty() {
            // An empty list would mean all topics to the broker.
            return Ok(Vec::new());
        }
        self.describe(names.iter().map(|name| name.as_ref().to_owned()).collect(), false).await
    }

    /// All topics by name, without the state of their partitions.
    ///
    /// # Errors
    /// What kept the request from being answered.
    pub async fn list_topics(&self) -> Result<Vec<TopicDetails>, Error> {
        self.describe(Vec::new(), true).await
    }

    /// Changes settings or adds partitions. When it returns, the change is durable.
    ///
    /// # Errors
    /// `UnknownTopic`, `InvalidArgument`, or what kept the request from being answered.
    ///
    /// ```no_run
    /// # async fn example(client: highwater_client::Client) -> Result<(), highwater_client::Error> {
    /// use highwater_client::AlterTopic;
    ///
    /// let change = AlterTopic::new("orders").set("retention_bytes", "1GiB").unset("segment_age");
    /// client.admin().alter_topic(change).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn alter_topic(&self, change: AlterTopic) -> Result<AlteredTopic, Error> {
        let request = AlterTopicRequest {
            name: change.name,
            set: change.set,
            unset: change.unset,
            partitions: change.partitions,
            validate_only: change.validate_only,
        };
        let reply = self.change(&request, &request.name).await?;
        self.client.metadata().forget(&request.name);
        Ok(AlteredTopic { partitions: reply.partitions })
    }

    /// Deletes a topic with all its records.
    ///
    /// # Errors
    /// `UnknownTopic`, or what kept the request from being answered.
    pub async fn delete_topic(&self, name: &str) -> Result<(), Error> {
        let request = DeleteTopicRequest { name: name.to_owned(), topic_id: None };
        self.change(&request, name).await?;
        self.client.metadata().forget(name);
        Ok(())
    }

    /// Brokers and these topics; an empty slice asks for all topics. Topics that are not there are left out.
    ///
    /// # Errors
    /// What kept the request from being answered.
    pub async fn metadata<S: AsRef<str>>(&self, topics: &[S]) -> Result<ClusterMetadata, Error> {
        let request = request_for(topics, topics.is_empty());
        let reply = self.client.ask_any(&request, Repeat::Freely, self.client.deadline()).await?;
        Ok(self.client.metadata().update(reply))
    }

    /// Looks up offsets in the partitions of a topic, in the order asked for; an empty slice asks for all of them.
    /// [`StartAt::Offset`] is answered with the offset itself.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownPartition`, or what kept the request from being answered.
    pub async fn list_offsets(
        &self,
        topic: &str,
        partitions: &[PartitionId],
        position: StartAt,
    ) -> Result<Vec<ListedOffset>, Error> {
        let deadline = self.client.deadline();
        let metadata = self.client.topic(topic, deadline).await?;
        let wanted: Vec<PartitionId> = if partitions.is_empty() {
            metadata.partitions.iter().map(|partition| partition.partition).collect()
        } else {
            partitions.to_vec()
        };
        // One request for each leader; the order is put right at the end.
        let mut by_leader: BTreeMap<String, Vec<PartitionId>> = BTreeMap::new();
        for partition in &wanted {
            let address = self.client.metadata().leader_address(&metadata, *partition);
            let address = match address {
                // The leader may be known again by the time it is asked.
                Err(error) if error.is_retriable() => String::new(),
                other => other?,
            };
            by_leader.entry(address).or_default().push(*partition);
        }
        let mut found = BTreeMap::new();
        for group in by_leader.values() {
            for listed in self.list_offsets_of(topic, group, position, deadline).await? {
                found.insert(listed.partition, listed);
            }
        }
        let missing = |partition: &PartitionId| {
            Error::new(ErrorKind::Protocol, "the broker left an offset out").with_partition(topic, *partition)
        };
        wanted
            .iter()
            .map(|partition| found.get(partition).copied().ok_or_else(|| missing(partition)))
            .collect()
    }

    /// Reads once, without waiting for records, some `bytes_max` bytes or one whole batch (0: the broker's default).
    ///
    /// # Errors
    /// `OutOfRange`, `CorruptRange`, `CorruptBatch`, or what kept the request from being answered.
    pub async fn read(
        &self,
        topic: &str,
        partition: PartitionId,
        offset: Offset,
        bytes_max: u32,
    ) -> Result<ReadBatches, Error> {
        let request = |topic: &TopicMetadata| ReadRequest {
            topic_id: Some(topic.topic_id.into()),
            partition: partition.get(),
            offset: offset.get(),
            bytes_max,
        };
        let (reply, attachment, metadata) =
            self.client.ask_leader(topic, partition, self.client.deadline(), request).await?;
        let place = TopicPartition::new(metadata.topic_id, partition);
        let batches = split_batches(attachment, place, offset, Offset(reply.high_watermark));
        Ok(ReadBatches {
            batches: batches.map_err(|error| error.with_partition(topic, partition))?,
            high_watermark: Offset(reply.high_watermark),
            log_start: Offset(reply.log_start),
            log_end: Offset(reply.log_end),
            leader_epoch: LeaderEpoch(reply.leader_epoch),
        })
    }

    async fn change<R>(&self, request: &R, topic: &str) -> Result<R::Response, Error>
    where
        R: highwater_protocol::api::Request,
    {
        let deadline = self.client.deadline();
        let reply = self.client.ask_any(request, Repeat::WhenRefused, deadline).await;
        reply.map_err(|error| error.with_topic(topic))
    }

    async fn list_offsets_of(
        &self,
        topic: &str,
        partitions: &[PartitionId],
        position: StartAt,
        deadline: Instant,
    ) -> Result<Vec<ListedOffset>, Error> {
        let (wire_position, timestamp_ms) = match position {
            StartAt::Earliest => (Position::Earliest, 0),
            StartAt::Latest => (Position::Latest, 0),
            StartAt::Time(timestamp_ms) => (Position::Time, timestamp_ms),
            StartAt::Offset(offset) => {
                let listed = |partition: &PartitionId| ListedOffset {
                    partition: *partition,
                    offset,
                    timestamp_ms: None,
                    leader_epoch: LeaderEpoch::default(),
                };
                return Ok(partitions.iter().map(listed).collect());
            }
        };
        let mut backoff = self.client.backoff();
        loop {
            let query = |metadata: &TopicMetadata, partition: &PartitionId| OffsetQuery {
                topic_id: Some(metadata.topic_id.into()),
                partition: partition.get(),
                position: wire_position.into(),
                timestamp_ms,
            };
            let request = |metadata: &TopicMetadata| ListOffsetsRequest {
                queries: partitions.iter().map(|partition| query(metadata, partition)).collect(),
            };
            let (reply, _, _) = self.client.ask_leader(topic, partitions[0], deadline, request).await?;
            match listed_offsets(topic, partitions, reply) {
                // Metadata has the partitions: a leader that does not know one is about to open it.
                Err(error)
                    if (error.is_retriable() || error.kind() == ErrorKind::UnknownPartition)
                        && self.client.pause(&mut backoff, deadline).await =>
                {
                    self.client.metadata().forget(topic);
                }
                result => return result,
            }
        }
    }
}

fn listed_offsets(
    topic: &str,
    partitions: &[PartitionId],
    reply: ListOffsetsReply,
) -> Result<Vec<ListedOffset>, Error> {
    if reply.results.len() != partitions.len() {
        let text = format!("{} offsets were asked for, {} came", partitions.len(), reply.results.len());
        return Err(Error::new(ErrorKind::Protocol, text).with_topic(topic));
    }
    let listed = |(partition, result): (&PartitionId, highwater_protocol::messages::OffsetResult)| {
        let code = ErrorCode::from_code(result.error);
        if !code.is_none() {
            return Err(Error::from_code(code, result.message).with_partition(topic, *partition));
        }
        Ok(ListedOffset {
            partition: *partition,
            offset: Offset(result.offset),
            timestamp_ms: (result.timestamp_ms >= 0).then_some(result.timestamp_ms),
            leader_epoch: LeaderEpoch(result.leader_epoch),
        })
    };
    partitions.iter().zip(reply.results).map(listed).collect()
}

/// Cuts whole batches apart, verifies them, and drops what the application did not ask for.
fn split_batches(
    mut attachment: Bytes,
    place: TopicPartition,
    from: Offset,
    high_watermark: Offset,
) -> Result<Vec<ConsumedBatch>, Error> {
    let corrupt = |text: String| Error::new(ErrorKind::CorruptBatch, format!("a batch is corrupt: {text}"));
    let mut batches = Vec::new();
    while !attachment.is_empty() {
        let header =
            BatchHeader::decode_verified(&attachment, place).map_err(|error| corrupt(error.to_string()))?;
        let batch = attachment.split_to(header.length());
        if header.end_offset() <= from || header.is_control() {
            continue;
        }
        let records = Records::open(header, &batch).map_err(|error| corrupt(error.to_string()))?;
        batches.push(ConsumedBatch { partition: place.partition, records, from, high_watermark });
    }
    Ok(batches)
}
