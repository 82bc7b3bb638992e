//! The client: where everything else comes from.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use highwater_protocol::api::Request;
use highwater_protocol::error_code::Duty;
use tokio::time::Instant;

use crate::admin::{Admin, TopicMetadata};
use crate::builder::ClientBuilder;
use crate::consumer::ConsumerBuilder;
use crate::error::{Error, ErrorKind};
use crate::metadata::{MetadataCache, request_for};
use crate::producer::ProducerBuilder;
use crate::retry::{Backoff, Random, RetryPolicy};
use crate::wire::{Connection, Pool};

/// A way into a cluster. Cheap to clone; connections are made when they are needed, and again when they are lost.
///
/// ```no_run
/// # async fn example() -> Result<(), highwater_client::Error> {
/// use highwater_client::Client;
///
/// let client = Client::builder(["10.0.0.1:9470", "10.0.0.2:9470"]).name("billing").connect().await?;
/// for topic in client.admin().list_topics().await? {
///     println!("{}: {} partitions", topic.name, topic.partition_count);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    seeds: Vec<String>,
    pool: Pool,
    metadata: MetadataCache,
    random: Random,
    retry: RetryPolicy,
    request_timeout: Duration,
}

/// Whether a request may be sent again when its reply was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It only asks.
    Freely,
    /// It changes something: sent again only when the broker said that nothing was done.
    WhenRefused,
}

impl Client {
    /// Starts with the addresses (`host:port`) of some brokers of the cluster. One that answers is enough.
    pub fn builder<I>(addresses: I) -> ClientBuilder
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        ClientBuilder::new(addresses.into_iter().map(Into::into).collect())
    }

    pub(crate) fn new(seeds: Vec<String>, pool: Pool, random: Random, request_timeout: Duration) -> Self {
        let metadata = MetadataCache::default();
        let retry = RetryPolicy::default();
        Self { shared: Arc::new(Shared { seeds, pool, metadata, random, retry, request_timeout }) }
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

    pub(crate) fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    pub(crate) fn metadata(&self) -> &MetadataCache {
        &self.shared.metadata
    }

    pub(crate) fn random(&self) -> u64 {
        self.shared.random.next_u64()
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(self.shared.retry)
    }

    /// When a request that starts now has to be done.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.shared.request_timeout
    }

    /// A connection to any broker, trying every address that is known over and over until `deadline`.
    pub(crate) async fn connect_any(&self, deadline: Instant) -> Result<Connection, Error> {
        let mut backoff = self.backoff();
        loop {
            let mut addresses = self.shared.metadata.addresses();
            addresses.extend(
                self.shared
                    .seeds
                    .iter()
                    .filter(|seed| !addresses.contains(seed))
                    .cloned()
                    .collect::<Vec<_>>(),
            );
            let mut last = None;
            for address in addresses {
                let attempt = tokio::time::timeout_at(deadline, self.shared.pool.get(&address)).await;
                match attempt {
                    Ok(Ok(connection)) => return Ok(connection),
                    Ok(Err(error)) if error.is_retriable() => last = Some(error),
                    Ok(Err(error)) => return Err(error),
                    Err(_) => break,
                }
            }
            let none = || Error::new(ErrorKind::Connection, "no broker answered in time");
            let error = last.unwrap_or_else(none);
            if !self.pause(&mut backoff, deadline).await {
                return Err(error);
            }
        }
    }

    /// Waits before the next attempt; `false` when the deadline comes first.
    pub(crate) async fn pause(&self, backoff: &mut Backoff, deadline: Instant) -> bool {
        let until = Instant::now() + backoff.next(self.random());
        if until >= deadline {
            return false;
        }
        tokio::time::sleep_until(until).await;
        true
    }

    /// Asks any broker, again after errors that say so, until `deadline`.
    pub(crate) async fn ask_any<R: Request>(
        &self,
        request: &R,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<R::Response, Error> {
        let mut backoff = self.backoff();
        loop {
            let connection = self.connect_any(deadline).await?;
            let error = match connection.request(request, deadline).await {
                Ok((reply, _)) => return Ok(reply),
                Err(error) => error,
            };
            if !may_repeat(&error, repeat) || !self.pause(&mut backoff, deadline).await {
                return Err(error);
            }
        }
    }

    /// Asks the leader of a partition, again after errors that say so, until `deadline`. `request` is made anew for
    /// each attempt: the topic may have become another one.
    pub(crate) async fn ask_leader<R: Request>(
        &self,
        topic: &str,
        partition: highwater_protocol::ids::PartitionId,
        deadline: Instant,
        request: impl Fn(&TopicMetadata) -> R,
    ) -> Result<(R::Response, Bytes, Arc<TopicMetadata>), Error> {
        let mut backoff = self.backoff();
        loop {
            let metadata = self.topic(topic, deadline).await?;
            let attempt = async {
                let address = self.shared.metadata.leader_address(&metadata, partition)?;
                let connecting = tokio::time::timeout_at(deadline, self.shared.pool.get(&address));
                let late =
                    |_| Error::new(ErrorKind::Connection, "no connection in time").with_address(&address);
                let connection = connecting.await.map_err(late)??;
                connection.request(&request(&metadata), deadline).await
            };
            let error = match attempt.await {
                Ok((reply, attachment)) => return Ok((reply, attachment, metadata)),
                Err(error) => error.with_partition(topic, partition),
            };
            if !may_repeat(&error, Repeat::Freely) {
                return Err(error);
            }
            if !self.pause(&mut backoff, deadline).await {
                return Err(error);
            }
            self.shared.metadata.forget(topic);
        }
    }

    /// A topic from the cache, or from a broker.
    pub(crate) async fn topic(&self, name: &str, deadline: Instant) -> Result<Arc<TopicMetadata>, Error> {
        match self.shared.metadata.topic(name) {
            Some(topic) => Ok(topic),
            None => self.refresh_topic(name, deadline).await,
        }
    }

    /// A topic as a broker sees it now.
    pub(crate) async fn refresh_topic(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Arc<TopicMetadata>, Error> {
        let request = request_for(&[name], false);
        let reply = self.ask_any(&request, Repeat::Freely, deadline).await.map_err(|e| e.with_topic(name))?;
        self.shared.metadata.update(reply);
        let unknown = || Error::new(ErrorKind::UnknownTopic, "there is no such topic").with_topic(name);
        self.shared.metadata.topic(name).ok_or_else(unknown)
    }
}

fn may_repeat(error: &Error, repeat: Repeat) -> bool {
    match error.code() {
        // The broker answered: nothing was done.
        Some(code) => match code.duty() {
            Duty::Retry | Duty::Resume => true,
            // Of a topic: its absence is an answer, not a reason to ask again.
            Duty::RefreshMetadata => error.kind() == ErrorKind::NotReady,
            Duty::Reconnect => repeat == Repeat::Freely,
            Duty::None | Duty::Fail => false,
        },
        None => {
            repeat == Repeat::Freely && error.kind() == ErrorKind::Connection
                || error.kind() == ErrorKind::NotReady
        }
    }
}
