//! Connections: accepting them, reading frames, writing replies and pushes.

pub(crate) mod connection;
pub(crate) mod dispatch;
pub(crate) mod lanes;
pub(crate) mod listener;
pub(crate) mod metadata_watch;
pub(crate) mod outbox;
pub(crate) mod output;
pub(crate) mod principal;
pub(crate) mod subscriptions;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use highwater_broker_core::quota::Budget;
use highwater_protocol::api::ApiKey;
use highwater_protocol::ids::NodeId;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::controller::producer_ids::ProducerIds;
use crate::controller::service::ControllerHandle;
use crate::env::{Clock, Random};
use crate::group::Groups;
use crate::observe::metrics::Metrics;
use crate::partition::manager::Partitions;

/// Bounds on connections, from the configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) connections_max: usize,
    pub(crate) in_flight_max: u32,
    pub(crate) subscriptions_max: usize,
    pub(crate) handshake_timeout: Duration,
    pub(crate) idle_timeout: Duration,
}

/// What every connection of a broker shares.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) node_id: NodeId,
    pub(crate) limits: Limits,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) controller: ControllerHandle,
    pub(crate) partitions: Arc<Partitions>,
    pub(crate) groups: Arc<Groups>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) requests: RequestCounters,
    pub(crate) budget: Mutex<Budget>,
    /// Bounds the reads that wait for the disk, so that cold readers cannot take every I/O thread.
    pub(crate) cold_reads: Arc<Semaphore>,
    /// The same for followers.
    pub(crate) replica_reads: Arc<Semaphore>,
    /// What connections have left with tasks of their own: requests that take time, reads that wait for the disk.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when connections are to finish what is under way and close.
    pub(crate) draining: CancellationToken,
    pub(crate) read_only: AtomicBool,
    /// Identities for idempotent producers.
    pub(crate) producer_ids: ProducerIds,
    connection_ids: AtomicU64,
}

/// What a [`Node`] is made of.
pub(crate) struct NodeParts {
    pub(crate) node_id: NodeId,
    pub(crate) limits: Limits,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) controller: ControllerHandle,
    pub(crate) partitions: Arc<Partitions>,
    pub(crate) groups: Arc<Groups>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) budget: Budget,
}

/// Reads that may wait for the disk at once: fewer than there are I/O threads, because acknowledgements wait for what
/// the others do.
const COLD_READS_MAX: usize = 6;
/// The same for reads of followers, scrubbing and comparing.
const REPLICA_READS_MAX: usize = 3;

impl Node {
    pub(crate) fn new(parts: NodeParts) -> Self {
        Self {
            node_id: parts.node_id,
            limits: parts.limits,
            clock: parts.clock,
            random: parts.random,
            controller: parts.controller,
            partitions: parts.partitions,
            groups: parts.groups,
            requests: RequestCounters::new(&parts.metrics),
            metrics: parts.metrics,
            budget: Mutex::new(parts.budget),
            cold_reads: Arc::new(Semaphore::new(COLD_READS_MAX)),
            replica_reads: Arc::new(Semaphore::new(REPLICA_READS_MAX)),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            read_only: AtomicBool::new(false),
            producer_ids: ProducerIds::default(),
            connection_ids: AtomicU64::new(1),
        }
    }

    /// A number for a new connection, never given twice.
    pub(crate) fn next_connection_id(&self) -> u64 {
        self.connection_ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether the disk is below its reserve.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }
}

/// A counter for each API, looked up once.
#[derive(Debug)]
pub(crate) struct RequestCounters {
    known: Vec<Counter>,
    unknown: Counter,
}

impl RequestCounters {
    fn new(metrics: &Metrics) -> Self {
        let highest = ApiKey::ALL.iter().map(|api| api.0).max().unwrap_or(0);
        let known = (0..=highest).map(|number| metrics.requests(ApiKey(number))).collect();
        Self { known, unknown: metrics.requests(ApiKey(u16::MAX)) }
    }

    /// Counts a frame.
    pub(crate) fn count(&self, api: ApiKey) {
        self.known.get(usize::from(api.0)).unwrap_or(&self.unknown).inc();
    }
}
