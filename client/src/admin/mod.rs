//! Topics, metadata and offsets.

mod types;

pub use types::{
    AlterTopic, AlteredTopic, Broker, ClusterMetadata, ConfigSetting, CreatedTopic, ListedOffset, NewTopic,
    PartitionMetadata, PartitionState, ReadBatches, TopicDetails, TopicMetadata,
};

use highwater_protocol::ids::{Offset, PartitionId};

use crate::client::Client;
use crate::consumer::StartAt;
use crate::error::Error;

/// Creates, describes, alters and deletes topics, and looks at logs.
///
/// Every method has the client's request deadline. When a change ends with [`ErrorKind::Connection`] or
/// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) it may have happened or not: describe the topic to see.
///
/// [`ErrorKind::Connection`]: crate::ErrorKind::Connection
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
    pub async fn create_topic(&self, topic: NewTopic) -> Result<CreatedTopic, Error> {
        let _ = (topic, &self.client);
        unimplemented!()
    }

    /// Settings and state of these topics, partitions included.
    ///
    /// # Errors
    /// `UnknownTopic` for the first one that is not there, or what kept the request from being answered.
    pub async fn describe_topics<S: AsRef<str>>(&self, names: &[S]) -> Result<Vec<TopicDetails>, Error> {
        let _ = names;
        unimplemented!()
    }

    /// All topics by name, without the state of their partitions.
    ///
    /// # Errors
    /// What kept the request from being answered.
    pub async fn list_topics(&self) -> Result<Vec<TopicDetails>, Error> {
        unimplemented!()
    }

    /// Changes settings or adds partitions. When it returns, the change is durable.
    ///
    /// # Errors
    /// `UnknownTopic`, `InvalidArgument`, or what kept the request from being answered.
    pub async fn alter_topic(&self, change: AlterTopic) -> Result<AlteredTopic, Error> {
        let _ = change;
        unimplemented!()
    }

    /// Deletes a topic with all its records.
    ///
    /// # Errors
    /// `UnknownTopic`, or what kept the request from being answered.
    pub async fn delete_topic(&self, name: &str) -> Result<(), Error> {
        let _ = name;
        unimplemented!()
    }

    /// Brokers and these topics; an empty slice asks for all topics. Topics that are not there are left out.
    ///
    /// # Errors
    /// What kept the request from being answered.
    pub async fn metadata<S: AsRef<str>>(&self, topics: &[S]) -> Result<ClusterMetadata, Error> {
        let _ = topics;
        unimplemented!()
    }

    /// Looks up offsets in the partitions of a topic; an empty slice asks for all of them.
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
        let _ = (topic, partitions, position);
        unimplemented!()
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
        let _ = (topic, partition, offset, bytes_max);
        unimplemented!()
    }
}
