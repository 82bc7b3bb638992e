//! How a client is set up.

use std::sync::Arc;
use std::time::Duration;

use highwater_protocol::ids::ClusterId;
use tokio::time::Instant;

use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::retry::Random;
use crate::wire::{Connector, Pool, Settings, TcpConnector};

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
#[must_use = "nothing is connected before connect()"]
pub struct ClientBuilder {
    addresses: Vec<String>,
    connection: Settings,
    request_timeout: Duration,
    connect_timeout: Duration,
    connector: Arc<dyn Connector>,
    random_seed: Option<u64>,
}

impl ClientBuilder {
    pub(crate) fn new(addresses: Vec<String>) -> Self {
        Self {
            addresses,
            connection: Settings {
                connect_timeout: Duration::from_secs(2),
                handshake_timeout: Duration::from_secs(2),
                silence_max: Duration::from_secs(5),
                ..Settings::default()
            },
            request_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            connector: Arc::new(TcpConnector),
            random_seed: None,
        }
    }

    /// The client's name in the broker's logs and metrics.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.connection.client_name = name.into();
        self
    }

    /// Refuses brokers of any other cluster. Default: the cluster of the first broker that answers.
    pub fn cluster(mut self, cluster_id: ClusterId) -> Self {
        self.connection.cluster_id = Some(cluster_id);
        self
    }

    /// How long one request may take, retries included. Default: 10 seconds.
    pub const fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How long [`ClientBuilder::connect`] tries the addresses, over and over. Default: 10 seconds.
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Silence after which a connection is probed; half as long again, and at least a second, without an answer and it
    /// is given up. Default: 5 seconds.
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.connection.keep_alive = interval;
        self.connection.silence_max = (interval / 2).max(Duration::from_secs(1));
        self
    }

    /// How connections are made. Default: TCP. Tests connect in memory.
    pub fn connector(mut self, connector: Arc<dyn Connector>) -> Self {
        self.connector = connector;
        self
    }

    /// Seeds jitter and partition choice, so that a test can repeat them. Default: random.
    pub const fn random_seed(mut self, seed: u64) -> Self {
        self.random_seed = Some(seed);
        self
    }

    /// Connects to the first address that answers. Must be called in a tokio runtime.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// `Connection` when none answered in time, `InvalidArgument` when there is no address, `Unsupported`,
    /// `WrongCluster` or `NotAuthorized` when a broker refused.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), highwater_client::Error> {
    /// use std::time::Duration;
    ///
    /// let client = highwater_client::Client::builder(["127.0.0.1:9470"])
    ///     .connect_timeout(Duration::from_secs(2))
    ///     .connect()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(self) -> Result<Client, Error> {
        if self.addresses.is_empty() {
            let text = "a client needs the address of at least one broker";
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        for address in &self.addresses {
            check_address(address)?;
        }
        let random = self.random_seed.map_or_else(Random::from_entropy, Random::seeded);
        let pool = Pool::new(self.connector, self.connection);
        let client = Client::new(self.addresses, pool, random, self.request_timeout);
        client.connect_any(Instant::now() + self.connect_timeout).await?;
        Ok(client)
    }
}

fn check_address(address: &str) -> Result<(), Error> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
    if port.is_none_or(|port| port.parse::<u16>().is_err()) {
        let text = format!("'{address}' is not an address: write host:port, such as 127.0.0.1:9470");
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    Ok(())
}
