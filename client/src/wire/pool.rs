//! Connections by address, shared by everything that only asks and waits.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use highwater_protocol::ids::ClusterId;
use parking_lot::Mutex;

use super::connection::{Connection, Events, NoEvents, Settings};
use super::link::Connector;
use crate::breaker::{Breaker, BreakerState, Failure};
use crate::error::{Error, ErrorKind};
use crate::retry::Random;

/// One slot an address. Its lock is held while connecting, so that an address is dialled once at a time.
type Slot = Arc<tokio::sync::Mutex<Option<Connection>>>;

/// Makes connections and keeps the shared ones. An address that does not answer is not tried for a while: whoever asks for
/// it then hears so at once.
#[derive(Debug)]
pub struct Pool {
    connector: Arc<dyn Connector>,
    settings: Settings,
    /// Bounded by the addresses of the cluster's brokers and the seeds.
    slots: Mutex<HashMap<String, Slot>>,
    /// Bounded likewise.
    breakers: Mutex<BTreeMap<String, Guarded>>,
    random: Random,
    /// The cluster of the first broker that answered: every other one must belong to it.
    cluster_id: Mutex<Option<ClusterId>>,
}

#[derive(Debug, Default)]
struct Guarded {
    breaker: Breaker,
    last_error: Option<Error>,
}

/// How a broker's breaker stands.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BrokerBreaker {
    /// The broker's address.
    pub address: String,
    /// Whether it is tried.
    pub state: BreakerState,
    /// Attempts in a row that failed.
    pub failure_count: u32,
    /// Why the last attempt failed, unless one has succeeded since.
    pub last_error: Option<Error>,
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new(connector: Arc<dyn Connector>, settings: Settings) -> Self {
        let cluster_id = Mutex::new(settings.cluster_id);
        Self {
            connector,
            settings,
            slots: Mutex::new(HashMap::new()),
            breakers: Mutex::new(BTreeMap::new()),
            random: Random::from_entropy(),
            cluster_id,
        }
    }

    /// What this client calls itself.
    #[must_use]
    pub fn client_name(&self) -> &str {
        &self.settings.client_name
    }

    /// The shared connection to `address`; made if there is none or it has ended.
    ///
    /// # Errors
    /// When no connection can be made.
    pub async fn get(&self, address: &str) -> Result<Connection, Error> {
        let slot = Arc::clone(self.slots.lock().entry(address.to_owned()).or_default());
        let mut slot = slot.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| connection.closed().is_none()) {
            return Ok(connection.clone());
        }
        let connection = self.connect(address, Arc::new(NoEvents)).await?;
        *slot = Some(connection.clone());
        Ok(connection)
    }

    /// A connection to `address` of its own, whose one-way messages go to `events`.
    ///
    /// # Errors
    /// When no connection can be made, or none is tried because the last attempts failed.
    pub async fn connect(&self, address: &str, events: Arc<dyn Events>) -> Result<Connection, Error> {
        self.connect_with(address, events, &self.settings).await
    }

    /// As [`Pool::connect`], for a connection whose peer is probed after `keep_alive` of silence, and given up after as
    /// much again.
    ///
    /// # Errors
    /// As [`Pool::connect`].
    pub async fn connect_alert(
        &self,
        address: &str,
        events: Arc<dyn Events>,
        keep_alive: Duration,
    ) -> Result<Connection, Error> {
        let keep_alive = keep_alive.min(self.settings.keep_alive);
        let silence_max = keep_alive.min(self.settings.silence_max);
        let settings = Settings { keep_alive, silence_max, ..self.settings.clone() };
        self.connect_with(address, events, &settings).await
    }

    async fn connect_with(
        &self,
        address: &str,
        events: Arc<dyn Events>,
        settings: &Settings,
    ) -> Result<Connection, Error> {
        let attempt = self.admit(address)?;
        let connected = self.dial(address, events, settings).await;
        attempt.end(connected.as_ref().err());
        let connection = connected?;
        self.check_cluster(&connection)?;
        Ok(connection)
    }

    async fn dial(
        &self,
        address: &str,
        events: Arc<dyn Events>,
        settings: &Settings,
    ) -> Result<Connection, Error> {
        let cannot = |text: String| Error::new(ErrorKind::Connection, text).with_address(address);
        let connecting = self.connector.connect(address);
        let link = match tokio::time::timeout(settings.connect_timeout, connecting).await {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => return Err(cannot(format!("cannot connect: {error}")).with_source(error)),
            Err(_) => return Err(cannot(format!("no connection within {:?}", settings.connect_timeout))),
        };
        Connection::open(link, address, settings, events).await
    }

    fn admit<'a>(&'a self, address: &'a str) -> Result<Attempt<'a>, Error> {
        let mut breakers = self.breakers.lock();
        let guarded = breakers.entry(address.to_owned()).or_default();
        if let Err(wait) = guarded.breaker.admit(now()) {
            let text = match wait {
                Duration::ZERO => String::from("it is being found out whether the broker answers again"),
                wait => format!("not tried for {} ms more", wait.as_millis()),
            };
            return Err(match &guarded.last_error {
                Some(error) => error.clone().becoming(ErrorKind::Connection, &text),
                None => Error::new(ErrorKind::Connection, text).with_address(address),
            });
        }
        Ok(Attempt { pool: Some(self), address, begun: now() })
    }

    /// Notes that a broker left a request unanswered for too long.
    pub(crate) fn note_silence(&self, address: &str, error: &Error) {
        let mut breakers = self.breakers.lock();
        let guarded = breakers.entry(address.to_owned()).or_default();
        guarded.breaker.failed(Failure::Silence, now(), self.random.next_u64());
        guarded.last_error = Some(error.clone());
    }

    /// Others say that the broker at `address` is there: it may be tried at once.
    pub(crate) fn encourage(&self, address: &str) {
        if let Some(guarded) = self.breakers.lock().get_mut(address) {
            guarded.breaker.encourage(now());
        }
    }

    /// Whether a broker would be tried now.
    pub(crate) fn admits(&self, address: &str) -> bool {
        self.breakers.lock().get(address).is_none_or(|guarded| guarded.breaker.admits(now()))
    }

    /// How the breakers of all addresses tried so far stand.
    #[must_use]
    pub fn breakers(&self) -> Vec<BrokerBreaker> {
        let of = |(address, guarded): (&String, &Guarded)| BrokerBreaker {
            address: address.clone(),
            state: guarded.breaker.state(),
            failure_count: guarded.breaker.failure_count(),
            last_error: guarded.last_error.clone(),
        };
        self.breakers.lock().iter().map(of).collect()
    }

    /// Ends every shared connection.
    pub fn close(&self) {
        self.slots.lock().clear();
    }

    fn check_cluster(&self, connection: &Connection) -> Result<(), Error> {
        let Some(theirs) = connection.handshake().cluster_id.map(ClusterId::from) else { return Ok(()) };
        let ours = *self.cluster_id.lock().get_or_insert(theirs);
        if ours != theirs {
            let text = format!("the broker belongs to cluster {theirs}, not to {ours}");
            return Err(Error::new(ErrorKind::WrongCluster, text).with_address(connection.address()));
        }
        Ok(())
    }
}

/// An attempt that a breaker has admitted. Dropped, it was given up.
struct Attempt<'a> {
    pool: Option<&'a Pool>,
    address: &'a str,
    begun: std::time::Instant,
}

/// An attempt that takes longer than this has cost its callers waiting.
const QUICK: Duration = Duration::from_millis(500);

impl Attempt<'_> {
    fn end(mut self, error: Option<&Error>) {
        let Some(pool) = self.pool.take() else { return };
        let mut breakers = pool.breakers.lock();
        let Some(guarded) = breakers.get_mut(self.address) else { return };
        match error.filter(|error| error.kind() == ErrorKind::Connection) {
            Some(error) => {
                let quick = now().saturating_duration_since(self.begun) < QUICK;
                let failure = if quick { Failure::Refused } else { Failure::Silence };
                guarded.breaker.failed(failure, now(), pool.random.next_u64());
                guarded.last_error = Some(error.clone());
            }
            None => {
                // Also when it refused: somebody answered.
                guarded.breaker.succeeded();
                guarded.last_error = None;
            }
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let Some(pool) = self.pool else { return };
        if let Some(guarded) = pool.breakers.lock().get_mut(self.address) {
            guarded.breaker.given_up(now());
        }
    }
}

/// The clock of the breakers: tokio's, which tests can hold.
fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}
