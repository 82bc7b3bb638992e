//! How a client is set up.

use std::time::Duration;

use crate::client::Client;
use crate::error::Error;

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
#[must_use = "nothing is connected before connect()"]
pub struct ClientBuilder {
    addresses: Vec<String>,
    name: String,
    request_timeout: Duration,
    connect_timeout: Duration,
}

impl ClientBuilder {
    pub(crate) fn new(addresses: Vec<String>) -> Self {
        Self {
            addresses,
            name: String::from("highwater-client"),
            request_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
        }
    }

    /// The client's name in the broker's logs and metrics.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
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

    /// Connects to the first address that answers.
    ///
    /// # Errors
    /// `Connection` when none answered in time, `InvalidArgument` when there is no address, `Unsupported`,
    /// `WrongCluster` or `NotAuthorized` when a broker refused.
    pub async fn connect(self) -> Result<Client, Error> {
        let _ = (self.addresses, self.name);
        unimplemented!()
    }
}
