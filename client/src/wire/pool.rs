//! Connections by address, shared by everything that only asks and waits.

use std::collections::HashMap;
use std::sync::Arc;

use highwater_protocol::ids::ClusterId;
use parking_lot::Mutex;

use super::connection::{Connection, Events, NoEvents, Settings};
use super::link::Connector;
use crate::error::{Error, ErrorKind};

/// One slot an address. Its lock is held while connecting, so that an address is dialled once at a time.
type Slot = Arc<tokio::sync::Mutex<Option<Connection>>>;

/// Makes connections and keeps the shared ones.
#[derive(Debug)]
pub struct Pool {
    connector: Arc<dyn Connector>,
    settings: Settings,
    /// Bounded by the addresses of the cluster's brokers and the seeds.
    slots: Mutex<HashMap<String, Slot>>,
    /// The cluster of the first broker that answered: every other one must belong to it.
    cluster_id: Mutex<Option<ClusterId>>,
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new(connector: Arc<dyn Connector>, settings: Settings) -> Self {
        let cluster_id = Mutex::new(settings.cluster_id);
        Self { connector, settings, slots: Mutex::new(HashMap::new()), cluster_id }
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
    /// When no connection can be made.
    pub async fn connect(&self, address: &str, events: Arc<dyn Events>) -> Result<Connection, Error> {
        let cannot = |text: String| Error::new(ErrorKind::Connection, text).with_address(address);
        let connecting = self.connector.connect(address);
        let link = match tokio::time::timeout(self.settings.connect_timeout, connecting).await {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => return Err(cannot(format!("cannot connect: {error}")).with_source(error)),
            Err(_) => {
                return Err(cannot(format!("no connection within {:?}", self.settings.connect_timeout)));
            }
        };
        let connection = Connection::open(link, address, &self.settings, events).await?;
        self.check_cluster(&connection)?;
        Ok(connection)
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
