//! Connections to the brokers that lead what this broker follows: one for each of them, with many subscriptions on it.
//!
//! A subscription lives on one connection. When that is lost, or the leader ends it, its follower is told and asks again
//! if it still wants to; what nobody wants any more is taken back.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use highwater_client::wire::{Connection, Connector, Events, NoEvents, Pool, Settings};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{ClusterId, LeaderEpoch, NodeId, Offset, TopicPartition};
use highwater_protocol::messages::{BrokerIdentity, Ended, ReplicaAck, SubscribeReply};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fetched::Fetched;
use super::link::Link;
use crate::api::ApiError;
use crate::env::Random;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Silence after which a leader is pinged, and silence beyond that after which its connection is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// What links need to know about the cluster.
pub(crate) trait Peers: Debug + Send + Sync {
    /// Where a broker is; `None` while that is not known.
    fn address(&self, node: NodeId) -> Option<String>;
    /// Who this broker is; `None` while it is not registered.
    fn identity(&self) -> Option<BrokerIdentity>;
    /// The cluster that leaders must belong to.
    fn cluster_id(&self) -> ClusterId;
}

/// A replica that follows.
pub(crate) trait Follower: Debug + Send + Sync {
    /// Takes in what happened to one of its sessions. Called on the task that reads the connection: must not block.
    fn happened(&self, session: u64, event: FollowEvent);
}

/// What happens to a session of a follower.
#[derive(Debug)]
pub(crate) enum FollowEvent {
    /// The leader answered. With a divergence or a reset in it, the session is over.
    Subscribed(SubscribeReply),
    /// The leader refused; the session is over.
    Refused(ApiError),
    /// The leader pushed.
    Pushed(Fetched),
    /// The leader ended the session.
    Ended(Box<Ended>),
    /// The session is over for another reason, given here.
    Lost(String),
}

/// What a follower asks its leader for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Follow {
    pub(crate) leader: NodeId,
    pub(crate) partition: TopicPartition,
    /// The epoch in which it follows.
    pub(crate) epoch: LeaderEpoch,
    /// Its log end.
    pub(crate) offset: Offset,
    /// The epoch of its last batch.
    pub(crate) last_epoch: Option<LeaderEpoch>,
    /// Bytes that may be pushed in all at first.
    pub(crate) credit: u64,
}

/// The links of a broker. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Links(Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    node_id: NodeId,
    pub(super) peers: Arc<dyn Peers>,
    connector: Arc<dyn Connector>,
    random: Arc<dyn Random>,
    tasks: TaskTracker,
    runtime: tokio::runtime::Handle,
    stop: CancellationToken,
    /// Bounded by the brokers of the cluster.
    links: Mutex<HashMap<NodeId, Arc<Link>>>,
    /// The number of the next session.
    next_key: AtomicU64,
}

impl Links {
    /// Links that end with `stop`. Called within the runtime that serves the broker.
    pub(crate) fn new(
        node_id: NodeId,
        peers: Arc<dyn Peers>,
        connector: Arc<dyn Connector>,
        random: Arc<dyn Random>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let runtime = tokio::runtime::Handle::current();
        let (links, next_key) = (Mutex::default(), AtomicU64::new(1));
        Self(Arc::new(Shared { node_id, peers, connector, random, tasks, runtime, stop, links, next_key }))
    }

    /// Asks a leader for batches. What comes of it is told to `follower`, until the session is dropped.
    pub(crate) fn follow(&self, follow: Follow, follower: Arc<dyn Follower>) -> Session {
        let link = {
            let mut links = self.0.links.lock();
            let link = links.entry(follow.leader).or_insert_with(|| self.start(follow.leader));
            Arc::clone(link)
        };
        let key = link.enter(&self.0.next_key, follow, follower);
        Session { link, key }
    }

    /// A connection to a broker for a few requests, apart from the one that carries pushes.
    ///
    /// # Errors
    /// When the broker is not known or cannot be reached.
    pub(crate) async fn dial(&self, node: NodeId) -> Result<Connection, ApiError> {
        let failed = |text| ApiError::new(ErrorCode::StorageError, text);
        self.0.connect(node, Arc::new(NoEvents)).await.map_err(failed)
    }

    fn start(&self, leader: NodeId) -> Arc<Link> {
        let link = Arc::new(Link::new(leader));
        let (running, shared) = (Arc::clone(&link), Arc::clone(&self.0));
        let task = async move {
            let stop = shared.stop.clone();
            let _stopped = stop.run_until_cancelled_owned(running.run(shared)).await;
        };
        self.0.tasks.spawn_on(task, &self.0.runtime);
        link
    }
}

impl Shared {
    pub(super) async fn connect(&self, node: NodeId, events: Arc<dyn Events>) -> Result<Connection, String> {
        let address =
            self.peers.address(node).ok_or_else(|| format!("the address of broker {node} is not known"))?;
        let identity =
            self.peers.identity().ok_or_else(|| "this broker is not registered at the moment".to_owned())?;
        let settings = Settings {
            client_name: format!("broker-{}", self.node_id),
            cluster_id: Some(self.peers.cluster_id()),
            connect_timeout: CONNECT_TIMEOUT,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            keep_alive: KEEP_ALIVE,
            silence_max: SILENCE_MAX,
            broker: Some(identity),
        };
        let pool = Pool::new(Arc::clone(&self.connector), settings);
        let connection = pool.connect(&address, events).await.map_err(|error| error.to_string())?;
        if connection.node_id() != node {
            return Err(format!("broker {} answers at {address}, not broker {node}", connection.node_id()));
        }
        Ok(connection)
    }

    /// `pause`, or less by up to a half: brokers that lost the same peer do not come back all at once.
    pub(super) fn jittered(&self, pause: Duration) -> Duration {
        let part = (self.random.next_u128() % 1024) as u32;
        pause / 2 + pause / 2 * part / 1024
    }
}

/// A follower's session with a leader. Dropped, it is taken back.
#[derive(Debug)]
pub(crate) struct Session {
    link: Arc<Link>,
    key: u64,
}

impl Session {
    /// Which session this is; no other one of this process has had this number.
    pub(crate) const fn key(&self) -> u64 {
        self.key
    }

    /// Raises the bytes that may be pushed in all.
    pub(crate) fn credit(&self, limit: u64) {
        self.link.credit(self.key, limit);
    }

    /// Tells the leader how far this replica is. The id is filled in here.
    pub(crate) fn acknowledge(&self, ack: ReplicaAck) {
        self.link.acknowledge(self.key, ack);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.link.leave(self.key);
    }
}
