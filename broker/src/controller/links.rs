//! Connections to other brokers for control: consensus, leases, proposals. Data has connections of its own.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use highwater_client::wire::{Connection, Connector, NoEvents, Settings, TcpConnector};
use highwater_protocol::api::Request;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{BrokerEpoch, ClusterId, DirectoryId, NodeId};
use highwater_protocol::messages::BrokerIdentity;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::api::ApiError;

/// How long a connection may take to be made, and then its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Silence after which a peer is pinged.
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// Silence beyond that, after which a connection is given up: a new one is quicker than waiting for the retransmissions
/// of one that was cut.
const SILENCE_MAX: Duration = Duration::from_millis(1500);

/// Why a peer did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct LinkError {
    /// What the peer answered; `None`: there was no answer.
    pub(crate) code: Option<ErrorCode>,
    /// Nobody listens at the address: the process is gone.
    pub(crate) refused: bool,
    pub(crate) message: String,
}

impl LinkError {
    fn lost(message: String) -> Self {
        Self { code: None, refused: false, message }
    }

    /// For whoever asked this broker.
    pub(crate) fn into_api(self) -> ApiError {
        ApiError::new(self.code.unwrap_or(ErrorCode::NoController), self.message)
    }
}

/// Who this broker says that it is.
pub(crate) trait Identity: fmt::Debug + Send + Sync {
    /// As of now.
    fn identity(&self) -> BrokerIdentity;
    /// The cluster, once it is known.
    fn cluster_id(&self) -> Option<ClusterId>;
}

/// One slot an address. Its lock is held while connecting, so that an address is dialled once at a time.
type Slot = Arc<tokio::sync::Mutex<Option<Connection>>>;

/// Control connections by address. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    identity: Arc<dyn Identity>,
    /// Bounded by the addresses of the cluster's brokers.
    slots: Arc<Mutex<HashMap<String, Slot>>>,
}

/// Who answers at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answering {
    pub(crate) node_id: NodeId,
    pub(crate) directory_id: DirectoryId,
    /// 0 while it has none.
    pub(crate) broker_epoch: BrokerEpoch,
}

impl Links {
    pub(crate) fn new(identity: Arc<dyn Identity>) -> Self {
        Self { identity, slots: Arc::default() }
    }

    /// Asks the broker at `address`. Dropping the future does not take the request back.
    pub(crate) async fn request<R: Request>(
        &self,
        address: &str,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, LinkError> {
        let asked = async {
            let connection = self.connection(address).await?;
            let reply = connection.request(request, deadline).await;
            reply.map(|(reply, _)| reply).map_err(|error| LinkError {
                code: error.code(),
                refused: false,
                message: error.to_string(),
            })
        };
        let late = |_| LinkError::lost(format!("the broker at {address} did not answer in time"));
        tokio::time::timeout_at(deadline, asked).await.map_err(late)?
    }

    async fn connection(&self, address: &str) -> Result<Connection, LinkError> {
        let slot = Arc::clone(self.slots.lock().entry(address.to_owned()).or_default());
        let (links, address) = (self.clone(), address.to_owned());
        // A task of its own: whoever asks may have less time than a connection takes, again and again.
        let connecting = tokio::spawn(async move {
            let mut slot = slot.lock().await;
            if let Some(connection) = slot.as_ref().filter(|connection| connection.closed().is_none()) {
                return Ok(connection.clone());
            }
            let connection = links.connect(&address).await?;
            *slot = Some(connection.clone());
            Ok(connection)
        });
        connecting.await.unwrap_or_else(|_| Err(LinkError::lost("the controller has stopped".to_owned())))
    }

    /// Makes a connection that nobody else uses, and says who answered.
    pub(crate) async fn probe(&self, address: &str) -> Result<Answering, LinkError> {
        let connection = self.connect(address).await?;
        let reply = connection.handshake();
        Ok(Answering {
            node_id: NodeId(reply.node_id),
            directory_id: reply.directory_id.map(DirectoryId::from).unwrap_or_default(),
            broker_epoch: BrokerEpoch(reply.broker_epoch),
        })
    }

    async fn connect(&self, address: &str) -> Result<Connection, LinkError> {
        let link = match tokio::time::timeout(CONNECT_TIMEOUT, TcpConnector.connect(address)).await {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => {
                return Err(LinkError {
                    code: None,
                    refused: error.kind() == io::ErrorKind::ConnectionRefused,
                    message: format!("cannot connect to {address}: {error}"),
                });
            }
            Err(_) => {
                return Err(LinkError::lost(format!(
                    "no connection to {address} within {CONNECT_TIMEOUT:?}"
                )));
            }
        };
        let identity = self.identity.identity();
        let settings = Settings {
            client_name: format!("broker {}", identity.node_id),
            cluster_id: self.identity.cluster_id(),
            connect_timeout: CONNECT_TIMEOUT,
            handshake_timeout: CONNECT_TIMEOUT,
            keep_alive: KEEP_ALIVE,
            silence_max: SILENCE_MAX,
            broker: Some(identity),
        };
        let opened = Connection::open(link, address, &settings, Arc::new(NoEvents)).await;
        opened.map_err(|error| LinkError { code: error.code(), refused: false, message: error.to_string() })
    }
}
