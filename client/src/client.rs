//! The client: where everything else comes from.

use crate::admin::Admin;
use crate::builder::ClientBuilder;
use crate::consumer::ConsumerBuilder;
use crate::producer::ProducerBuilder;

/// A connection to a cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {}

impl Client {
    /// Starts with the addresses (`host:port`) of some brokers of the cluster. One that answers is enough.
    pub fn builder<I>(addresses: I) -> ClientBuilder
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        ClientBuilder::new(addresses.into_iter().map(Into::into).collect())
    }

    /// Topics, metadata and offsets.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// Starts a producer.
    pub fn producer(&self) -> ProducerBuilder {
        ProducerBuilder::new(self.clone())
    }

    /// Starts a consumer of a topic.
    pub fn consumer(&self, topic: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), topic.into())
    }
}
