//! The client: where everything else comes from.

use std::sync::{Arc, Once, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use highwater_protocol::api::{ApiKey, Request};
use highwater_protocol::error_code::{Duty, ErrorCode};
use highwater_protocol::ids::TopicId;
use highwater_protocol::messages::MetadataRequest;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, TopicMetadata};
use crate::builder::ClientBuilder;
use crate::consumer::ConsumerBuilder;
use crate::error::{Error, ErrorKind};
use crate::group::GroupConsumerBuilder;
use crate::metadata::{MetadataCache, request_for};
use crate::producer::ProducerBuilder;
use crate::retry::{Backoff, Random, RetryBudget, RetryPolicy};
use crate::watch;
use crate::wire::{BrokerBreaker, Connection, Pool};

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

/// What all clones of a client share.
#[derive(Debug)]
pub(crate) struct Shared {
    seeds: Vec<String>,
    pool: Pool,
    pub(crate) metadata: MetadataCache,
    random: Random,
    retry: RetryPolicy,
    budget: Mutex<RetryBudget>,
    request_timeout: Duration,
    /// Starts the watch once.
    watching: Once,
    end: End,
}

/// Ends the watch with the client.
#[derive(Debug)]
struct End(CancellationToken);

impl End {
    fn token(&self) -> CancellationToken {
        self.0.clone()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// How long a broker may leave a question about metadata unanswered before another one is asked.
const METADATA_ATTEMPT: Duration = Duration::from_secs(1);
/// The same for any other question.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How long an address has to answer before the next one is tried beside it.
const STAGGER: Duration = Duration::from_millis(200);

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
        let shared = Shared {
            seeds,
            pool,
            metadata: MetadataCache::default(),
            random,
            retry: RetryPolicy::default(),
            budget: Mutex::default(),
            request_timeout,
            watching: Once::new(),
            end: End(CancellationToken::new()),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The client, while anybody holds it.
    pub(crate) fn upgrade(shared: &Weak<Shared>) -> Option<Self> {
        shared.upgrade().map(|shared| Self { shared })
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

    /// Starts a consumer that shares topics with the other members of a group.
    pub fn group_consumer(&self, group: impl Into<String>) -> GroupConsumerBuilder {
        GroupConsumerBuilder::new(self.clone(), group.into())
    }

    /// How the brokers tried so far stand: one that does not answer is left alone for a while, so that it costs no
    /// waiting.
    ///
    /// ```no_run
    /// # fn example(client: highwater_client::Client) {
    /// for breaker in client.breakers() {
    ///     println!("{}: {:?} after {} failures", breaker.address, breaker.state, breaker.failure_count);
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn breakers(&self) -> Vec<BrokerBreaker> {
        self.shared.pool.breakers()
    }

    /// Has changes of a topic told by a broker from here on. Must be called in a tokio runtime.
    pub(crate) fn watch(&self, topic: &str) {
        self.shared.metadata.watch(topic);
        self.shared.watching.call_once(|| {
            let end = self.shared.end.token();
            tokio::spawn(watch::run(Arc::downgrade(&self.shared), self.shared.metadata.watched(), end));
        });
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
    ///
    /// # Errors
    /// What the last address said, once every one has been tried and there is no time for more.
    pub(crate) async fn connect_any(&self, deadline: Instant) -> Result<Connection, Error> {
        let mut backoff = self.backoff();
        loop {
            let error = match tokio::time::timeout_at(deadline, self.connect_first()).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => error,
                Err(_) => return Err(Error::new(ErrorKind::Connection, "no broker answered in time")),
            };
            if !error.is_retriable() || !self.pause(&mut backoff, deadline).await {
                return Err(error);
            }
        }
    }

    /// Tries every address once, the next one as soon as the one before has failed or taken its time: the first that
    /// answers is taken.
    async fn connect_first(&self) -> Result<Connection, Error> {
        let mut addresses = self.addresses().into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut worst: Option<Error> = None;
        loop {
            if let Some(address) = addresses.next() {
                attempts.push(async move { self.shared.pool.get(&address).await });
            }
            let last = addresses.len() == 0;
            tokio::select! {
                biased;
                attempt = attempts.next() => match attempt {
                    Some(Ok(connection)) => return Ok(connection),
                    Some(Err(error)) => {
                        // What cannot be helped by trying again says more than a lost connection.
                        if worst.as_ref().is_none_or(Error::is_retriable) {
                            worst = Some(error);
                        }
                        if last && attempts.is_empty() {
                            let none = || Error::new(ErrorKind::Connection, "no address is known");
                            return Err(worst.unwrap_or_else(none));
                        }
                    }
                    None => return Err(Error::new(ErrorKind::Connection, "no address is known")),
                },
                () = tokio::time::sleep(STAGGER), if !last => {}
            }
        }
    }

    /// Every address that is known, in the order in which to try them: brokers before seeds, since these may be long gone,
    /// and whatever does not answer at the moment last. Brokers take turns: any of them may be behind the others.
    fn addresses(&self) -> Vec<String> {
        let mut addresses = self.shared.metadata.addresses();
        addresses.sort_unstable();
        let turn = self.random() as usize % addresses.len().max(1);
        addresses.rotate_left(turn);
        let seeds = self.shared.seeds.iter().filter(|seed| !addresses.contains(seed)).cloned();
        let seeds: Vec<String> = seeds.collect();
        addresses.extend(seeds);
        addresses.sort_by_key(|address| !self.shared.pool.admits(address));
        addresses
    }

    /// Waits before the next attempt; `false` when the deadline comes first.
    pub(crate) async fn pause(&self, backoff: &mut Backoff, deadline: Instant) -> bool {
        let now = Instant::now();
        let turn = self.shared.budget.lock().take(now.into_std());
        let until = now + backoff.next(self.random()).max(turn);
        if until >= deadline {
            return false;
        }
        tokio::time::sleep_until(until).await;
        true
    }

    /// Asks any broker, again after errors that say so, until `deadline`. A question goes to another broker when one
    /// takes too long.
    pub(crate) async fn ask_any<R: Request>(
        &self,
        request: &R,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<R::Response, Error> {
        let mut backoff = self.backoff();
        loop {
            let connection = self.connect_any(deadline).await?;
            let error = match self.ask(&connection, request, repeat, deadline).await {
                Ok((reply, _)) => return Ok(reply),
                Err(error) => error,
            };
            if !may_repeat(&error, repeat) || !self.pause(&mut backoff, deadline).await {
                return Err(error);
            }
        }
    }

    /// One attempt. A broker that takes too long for a question counts as hanging.
    pub(crate) async fn ask<R: Request>(
        &self,
        connection: &Connection,
        request: &R,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<(R::Response, Bytes), Error> {
        let quick = matches!(R::API, ApiKey::METADATA | ApiKey::FIND_COORDINATOR);
        let patience = if quick { METADATA_ATTEMPT } else { ATTEMPT };
        let attempt = match repeat {
            Repeat::Freely => deadline.min(Instant::now() + patience),
            Repeat::WhenRefused => deadline,
        };
        let asked = connection.request(request, attempt).await;
        match asked {
            Err(error)
                if error.kind() == ErrorKind::TimedOut && error.code().is_none() && attempt < deadline =>
            {
                self.shared.pool.note_silence(connection.address(), &error);
                Err(error.becoming(ErrorKind::Connection, "another broker is asked"))
            }
            asked => asked,
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
                self.ask(&connection, &request(&metadata), Repeat::Freely, deadline).await
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

    /// The name of the topic with this id; `None` when there is none.
    pub(crate) async fn topic_name(
        &self,
        topic_id: TopicId,
        deadline: Instant,
    ) -> Result<Option<String>, Error> {
        if let Some(name) = self.shared.metadata.name_of(topic_id) {
            return Ok(Some(name));
        }
        let request = MetadataRequest { topic_ids: vec![topic_id.into()], ..MetadataRequest::default() };
        let reply = self.ask_any(&request, Repeat::Freely, deadline).await?;
        self.shared.metadata.update(reply);
        Ok(self.shared.metadata.name_of(topic_id))
    }

    /// A topic as a broker sees it now. That there is none is believed once as many answers say so as there are brokers:
    /// one alone may not have heard of it yet.
    pub(crate) async fn refresh_topic(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Arc<TopicMetadata>, Error> {
        let mut backoff = self.backoff();
        let mut asked = 0;
        loop {
            let request = request_for(&[name], false);
            let reply =
                self.ask_any(&request, Repeat::Freely, deadline).await.map_err(|e| e.with_topic(name))?;
            let told = reply.topics.iter().find(|topic| topic.name == name).map(|topic| topic.error);
            let code = told.map_or(ErrorCode::UnknownTopic, ErrorCode::from_code);
            self.shared.metadata.update(reply);
            if let Some(topic) = self.shared.metadata.topic(name) {
                return Ok(topic);
            }
            let is_gone = code == ErrorCode::UnknownTopic || code.is_none();
            asked += usize::from(is_gone);
            let enough = asked >= self.shared.metadata.addresses().len();
            if enough || !self.pause(&mut backoff, deadline).await {
                let error = if is_gone {
                    Error::new(ErrorKind::UnknownTopic, "there is no such topic")
                } else {
                    Error::from_code(code, "whether there is such a topic could not be found out")
                };
                return Err(error.with_topic(name));
            }
        }
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
