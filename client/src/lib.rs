//! The Rust client of Highwater.
//!
//! [`Client`] is made from a list of addresses; [`Producer`], [`Consumer`], [`GroupConsumer`] and [`Admin`] come from it.
//!
//! ```no_run
//! use highwater_client::{Client, NewTopic, ProducerRecord, StartAt};
//!
//! # async fn example() -> Result<(), highwater_client::Error> {
//! let client = Client::builder(["127.0.0.1:9470"]).name("billing").connect().await?;
//! client.admin().create_topic(NewTopic::new("orders").partitions(8)).await?;
//!
//! let producer = client.producer().build();
//! let delivery = producer.send(ProducerRecord::new("orders").key("customer-7").value("42 apples")).await?;
//! let receipt = delivery.await?;
//! println!("partition {} offset {}: {:?}", receipt.partition, receipt.offset, receipt.stage);
//! producer.close().await?;
//!
//! let mut consumer = client.consumer("orders").from(StartAt::Earliest).build().await?;
//! if let Some(record) = consumer.next_record().await {
//!     println!("{:?}", record?.value);
//! }
//! # Ok(())
//! # }
//! ```

mod admin;
mod breaker;
mod builder;
mod client;
mod consumer;
mod error;
mod group;
mod metadata;
mod producer;
mod record;
mod retry;
mod watch;
pub mod wire;

pub use admin::{
    Admin, AlterTopic, AlteredTopic, Broker, BrokerDetails, ClusterChange, ClusterDetails, ClusterMetadata,
    ClusterPlan, ConfigSetting, CreatedTopic, GroupDetails, GroupList, GroupMemberDetails, GroupPosition,
    ListedGroup, ListedOffset, NewTopic, PartitionMetadata, PartitionMove, PartitionState, ReadBatches,
    ReplicaState, ResetGroup, ResetOffset, ResetTo, TopicDetails, TopicMetadata,
};
pub use breaker::BreakerState;
pub use builder::ClientBuilder;
pub use client::Client;
pub use consumer::{Consumer, ConsumerBuilder, StartAt};
pub use error::{Error, ErrorKind};
pub use group::{
    AssignedPartition, Commit, GroupBatch, GroupConsumer, GroupConsumerBuilder, GroupEvent, GroupOffset,
    GroupPartition, GroupRecord, LossCause,
};
pub use producer::{BatchDelivery, BatchReceipt, Delivery, Producer, ProducerBuilder, RunReceipt};
pub use record::{ConsumedBatch, ConsumedIter, ConsumedRecord, ProducerRecord, Receipt};
pub use wire::BrokerBreaker;

pub use highwater_protocol::batch::{Header, RecordRef};
pub use highwater_protocol::compression::Compression;
pub use highwater_protocol::ids::{
    BrokerEpoch, ClusterId, DirectoryId, LeaderEpoch, NodeId, Offset, PartitionId, TopicId,
};
pub use highwater_protocol::messages::{Acks, ConfigSource, Stage};
