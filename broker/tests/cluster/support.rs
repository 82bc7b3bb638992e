//! Brokers of one cluster, each with a directory and an address that stay the same.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use highwater_broker::config::{Config, Settings};
use highwater_broker::env::Env;
use highwater_broker::{Broker, StartError};
use highwater_client::wire::{Connection, Connector, NoEvents, Settings as LinkSettings, TcpConnector};
use highwater_protocol::api::Request;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::{BrokerIdentity, DescribeClusterReply, DescribeClusterRequest};
use tempfile::TempDir;
use tokio::time::Instant;

/// Nothing here takes this long, however busy the machine is.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How many places there have been.
static PLACES: AtomicU32 = AtomicU32::new(0);

/// A place for a cluster: addresses and directories.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
    pub(crate) addresses: BTreeMap<u32, String>,
}

impl Place {
    /// For brokers 1 to `count`.
    pub(crate) fn new(count: u32) -> Self {
        let _first_wins = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_env("HIGHWATER_LOG"))
            .with_test_writer()
            .try_init();
        // An address of loopback for each place: whatever else connects meanwhile takes ports of another one.
        let number = PLACES.fetch_add(1, Ordering::Relaxed) % 250;
        let host = Ipv4Addr::new(127, 1 + (std::process::id() % 250) as u8, number as u8, 1);
        // All held at once, so that no port comes twice.
        let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind((host, 0)).unwrap()).collect();
        let addresses =
            (1..=count).zip(held.iter().map(|held| held.local_addr().unwrap().to_string())).collect();
        Self { folder: tempfile::tempdir().unwrap(), addresses }
    }

    /// The list of voters with these brokers.
    pub(crate) fn voters(&self, nodes: &[u32]) -> String {
        let items: Vec<String> =
            nodes.iter().map(|node| format!("{node}@{}", self.addresses[node])).collect();
        items.join(",")
    }

    /// The settings of a broker that is one of these voters, or a cluster of its own if there are none.
    pub(crate) fn settings(&self, node: u32, voters: &[u32]) -> Settings {
        Settings {
            node_id: Some(node),
            listen: Some(self.addresses[&node].clone()),
            http: Some("off".to_owned()),
            data_dir: Some(self.folder.path().join(node.to_string())),
            voters: (!voters.is_empty()).then(|| self.voters(voters).parse().unwrap()),
            ..Settings::default()
        }
    }

    /// Starts brokers at once and waits until all are up.
    pub(crate) async fn start(&self, nodes: &[u32], voters: &[u32]) -> BTreeMap<u32, Broker> {
        let starting: Vec<_> =
            nodes.iter().map(|&node| (node, tokio::spawn(start(self.settings(node, voters))))).collect();
        let mut brokers = BTreeMap::new();
        for (node, broker) in starting {
            brokers.insert(node, broker.await.unwrap().unwrap());
        }
        brokers
    }

    /// What a broker says of the cluster, if it answers.
    pub(crate) async fn describe(&self, node: u32) -> Option<DescribeClusterReply> {
        ask(&self.addresses[&node], &DescribeClusterRequest {}).await
    }

    /// Waits until `found` finds what it looks for in what a broker says.
    pub(crate) async fn see<T>(
        &self,
        what: &str,
        node: u32,
        found: impl Fn(&DescribeClusterReply) -> Option<T>,
    ) -> T {
        until(what, || async { self.describe(node).await.as_ref().and_then(&found) }).await
    }

    /// Waits until a broker sees these brokers active, a controller among them, and no other broker active.
    pub(crate) async fn see_active(&self, node: u32, active: &[u32]) -> DescribeClusterReply {
        let what = format!("broker {node} sees {active:?} active");
        self.see(&what, node, |reply| {
            let found: Vec<u32> = reply
                .brokers
                .iter()
                .filter(|broker| broker.state == "active")
                .map(|broker| broker.node_id)
                .collect();
            (found == active && active.contains(&reply.controller)).then(|| reply.clone())
        })
        .await
    }
}

/// Starts a broker; fails when it takes too long.
pub(crate) async fn start(settings: Settings) -> Result<Broker, StartError> {
    let config = Config::from_settings(settings).unwrap();
    tokio::time::timeout(LIMIT, Box::pin(Broker::start(config, Env::real()))).await.expect("it comes up")
}

/// Why a broker does not start.
pub(crate) async fn refused(settings: Settings) -> String {
    let address = settings.listen.clone().unwrap();
    let why = match start(settings).await {
        Ok(_) => panic!("it has started"),
        Err(error) => error.to_string(),
    };
    // Whoever is to start next finds the address free.
    until("the address is free", || async { TcpListener::bind(&address).ok() }).await;
    why
}

/// Stops as a crash does.
pub(crate) async fn kill(place: &Place, node: u32, broker: Broker) {
    drop(broker);
    free(place, node).await;
}

/// Waits until nobody uses a broker's directory and address any more.
pub(crate) async fn free(place: &Place, node: u32) {
    let lock = place.folder.path().join(node.to_string()).join("lock");
    until("directory and address are free", || async {
        let file = std::fs::File::open(&lock).unwrap();
        file.try_lock().ok()?;
        TcpListener::bind(&place.addresses[&node]).ok()
    })
    .await;
}

/// Asks whoever listens at `address`.
pub(crate) async fn ask<R: Request>(address: &str, request: &R) -> Option<R::Response> {
    let connection = connect(address, None).await?;
    connection.request(request, soon()).await.ok().map(|(reply, _)| reply)
}

/// What `address` refuses a request with.
pub(crate) async fn refusal<R: Request>(
    address: &str,
    broker: Option<BrokerIdentity>,
    request: &R,
) -> Option<ErrorCode> {
    let connection = connect(address, broker).await?;
    connection.request(request, soon()).await.err()?.code()
}

/// What a broker says when it refuses a request.
pub(crate) async fn refusal_text<R: Request>(address: &str, request: &R) -> Option<String> {
    let connection = connect(address, None).await?;
    Some(connection.request(request, soon()).await.err()?.to_string())
}

async fn connect(address: &str, broker: Option<BrokerIdentity>) -> Option<Connection> {
    let link = TcpConnector.connect(address).await.ok()?;
    let settings = LinkSettings { broker, ..LinkSettings::default() };
    Connection::open(link, address, &settings, Arc::new(NoEvents)).await.ok()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(15)
}

/// Asks again and again until there is an answer.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + LIMIT;
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not in {LIMIT:?}: {what}");
        looks.tick().await;
    }
}
