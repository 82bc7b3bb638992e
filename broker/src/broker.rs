//! The composition root: what a broker is made of, in which order it comes up, and in which order it goes down.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use highwater_broker_core::controller::command::{Command, FEATURE_LEVEL_MAX, FEATURE_LEVEL_MIN};
use highwater_broker_core::controller::image::{ClusterImage, Defaults};
use highwater_broker_core::controller::{snapshot, topics_file};
use highwater_broker_core::quota::Budget;
use highwater_protocol::ids::{ClusterId, DirectoryId, LeaderEpoch, NodeId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::controller::service::{ControllerHandle, ControllerService, TOPICS_STATE};
use crate::env::Env;
use crate::io_thread;
use crate::observe::health::Health;
use crate::observe::http;
use crate::observe::metrics::Metrics;
use crate::observe::topics::TopicMetrics;
use crate::partition::manager::{Manager, Partitions};
use crate::partition::services::{Services, start_epoch};
use crate::port_file;
use crate::server::connection::serve;
use crate::server::listener::{Listener, bind, listen};
use crate::server::{Limits, Node, NodeParts};
use crate::storage::config::StoreConfig;
use crate::storage::error::Error as StorageError;
use crate::storage::file_system::FileSystem;
use crate::storage::store::{DiskState, Store};
use crate::upkeep;

/// Bytes of one log's tail that are kept in memory while somebody follows it.
const LOG_TAIL_BYTES_MAX: u64 = 4 << 20;

/// How long a shutdown waits for tasks that have nothing to do any more, such as HTTP connections that are kept open.
const LAST_TASKS: Duration = Duration::from_secs(1);

/// A broker that runs in this process. Nothing of it is global: a process can have several.
///
/// Dropped without [`Broker::shutdown`] it stops as a crash would stop it, apart from what the operating system still
/// writes: nothing acknowledged is lost, and the next start recovers.
#[derive(Debug)]
pub struct Broker {
    node: Arc<Node>,
    health: Arc<Health>,
    store: Arc<Store>,
    services: Arc<Services>,
    file_system: Arc<dyn FileSystem>,
    address: SocketAddr,
    http_address: Option<SocketAddr>,
    drain_timeout: Duration,
    connections: TaskTracker,
    background: TaskTracker,
    /// Stops accepting.
    stop_listening: CancellationToken,
    /// Stops partitions, controller and upkeep.
    stop: CancellationToken,
    /// Stops the HTTP port, last.
    stop_http: CancellationToken,
    /// Every partition is closed.
    drained: CancellationToken,
}

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("listen on {address}: {source}; choose another address with --{setting}")]
    Listen {
        /// The setting that names it.
        setting: &'static str,
        /// As configured.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The data directory cannot be used.
    #[error("open data directory {}: {source}", .path.display())]
    Store {
        /// Which.
        path: PathBuf,
        /// Why.
        source: StorageError,
    },
    /// The file with the topics cannot be used. Data is never given up for that.
    #[error("read the topics of data directory {}: {reason}; restore state/{TOPICS_STATE} from a copy", .path.display())]
    Topics {
        /// The data directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file with the bound addresses cannot be written.
    #[error("write the port file {}: {source}", .path.display())]
    PortFile {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The threads that do I/O are gone.
    #[error("the I/O threads ended")]
    IoThreads,
}

/// Why a broker did not stop in order. Nothing acknowledged is lost; the next start recovers as after a crash.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShutdownError {
    /// Work was still under way when the time was up.
    #[error("{what} were not done within {limit:?}")]
    TooLate {
        /// What was not done.
        what: &'static str,
        /// The time there was.
        limit: Duration,
    },
    /// The clean marker could not be written.
    #[error("close the data directory: {0}")]
    Store(#[from] StorageError),
}

impl Broker {
    /// Starts a broker. When this returns, it accepts connections and every partition is recovered.
    ///
    /// # Errors
    /// Says what cannot be used, and what to do.
    pub async fn start(config: Config, env: Env) -> Result<Self, StartError> {
        let health = Arc::new(Health::starting());
        let metrics = Arc::new(Metrics::new());
        let (stop, stop_http) = (CancellationToken::new(), CancellationToken::new());
        // A start that fails leaves nothing running.
        let (undo, undo_http) = (stop.clone().drop_guard(), stop_http.clone().drop_guard());
        let background = TaskTracker::new();

        // Taken first, so that an address in use is known before anything on the disk is touched.
        let (listener, address) = listen_on("listen", &config.listen).await?;
        let http_address = match &config.http {
            None => None,
            Some(address) => {
                let (listener, address) = listen_on("http", address).await?;
                let observed = (Arc::clone(&health), Arc::clone(&metrics));
                let served = http::serve(listener, observed.0, observed.1, stop_http.clone());
                background.spawn(async move {
                    if let Err(error) = served.await {
                        warn!(%error, "the HTTP port has failed");
                    }
                });
                Some(address)
            }
        };
        let state = open_store(&config, &env, address).await?;
        let (store, epoch) = (Arc::clone(&state.store), state.epoch);
        let data = serve_data(state, config.node_id, &env, &metrics, &background, &stop).await;
        let node = Arc::new(node(&config, &env, data.controller, data.partitions, metrics));
        upkeep::start(&node, &health, &store, &env.file_system, &config.data_dir, &background, &stop);
        let (connections, stop_listening) = (TaskTracker::new(), CancellationToken::new());
        background.spawn(listen(Arc::clone(&node), listener, connections.clone(), stop_listening.clone()));
        health.clear(Health::STARTING);
        if let Some(path) = &config.port_file {
            port_file::write(path, address, http_address)
                .map_err(|source| StartError::PortFile { path: path.clone(), source })?;
        }
        info!(
            node_id = config.node_id.get(), %address, http = ?http_address, data_dir = %config.data_dir.display(),
            epoch = epoch.get(), "ready"
        );
        undo.disarm();
        undo_http.disarm();
        Ok(Self {
            node,
            health,
            store,
            services: data.services,
            file_system: env.file_system,
            address,
            http_address,
            drain_timeout: config.drain_timeout,
            connections,
            background,
            stop_listening,
            stop,
            stop_http,
            drained: data.drained,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where health and metrics are served.
    #[must_use]
    pub const fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Whether the broker is ready, and if not, why.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// What the broker counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.node.metrics
    }

    /// Serves a connection over any stream of bytes, in a task of its own.
    pub fn serve<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        self.connections.spawn(serve(Arc::clone(&self.node), reader, writer, "in memory".to_owned()));
    }

    /// Stops in order: accepts nothing new, finishes what is under way, flushes, and marks the data directory clean.
    ///
    /// # Errors
    /// When that does not work within the drain timeout. Nothing acknowledged is lost then; the next start recovers.
    pub async fn shutdown(self) -> Result<(), ShutdownError> {
        let limit = self.drain_timeout;
        let deadline = tokio::time::Instant::now() + limit;
        info!("shutting down");
        self.health.obstruct(Health::STOPPING, "shutting down".to_owned());
        self.stop_listening.cancel();
        self.node.draining.cancel();
        self.connections.close();
        let connections = tokio::time::timeout_at(deadline, self.connections.wait()).await;
        if connections.is_err() {
            warn!(connections = self.connections.len(), "connections did not end in time and are cut");
        }
        self.stop.cancel();
        // Partitions are worth waiting for even if connections took all the time: a flush takes milliseconds.
        let deadline = deadline.max(tokio::time::Instant::now() + limit / 4);
        let drained = tokio::time::timeout_at(deadline, self.drained.cancelled()).await;
        let closed = if drained.is_ok() {
            let (store, logs) = (Arc::clone(&self.store), self.services.take_closed());
            io_thread::run(&*self.file_system, move || store.close(&logs)).await
        } else {
            None
        };
        self.stop_http.cancel();
        // Whoever starts the next broker on this directory finds it unlocked.
        self.background.close();
        self.node.tasks.close();
        let ended = async {
            self.background.wait().await;
            self.node.tasks.wait().await;
        };
        if tokio::time::timeout(LAST_TASKS, ended).await.is_err() {
            info!("some tasks have not ended yet");
        }
        match (drained, closed) {
            (Err(_), _) => Err(ShutdownError::TooLate { what: "partitions", limit }),
            (Ok(()), Some(closed)) => {
                closed?;
                info!("stopped, everything is flushed");
                Ok(())
            }
            (Ok(()), None) => Err(ShutdownError::TooLate { what: "the last writes", limit }),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop_listening.cancel();
        self.node.draining.cancel();
        self.stop.cancel();
        self.stop_http.cancel();
    }
}

/// What is on the disk when a broker starts.
struct State {
    store: Arc<Store>,
    image: ClusterImage,
    epoch: LeaderEpoch,
}

async fn open_store(config: &Config, env: &Env, address: SocketAddr) -> Result<State, StartError> {
    let (config, file_system) = (config.clone(), Arc::clone(&env.file_system));
    let ids = NewIds {
        directory: DirectoryId(env.random.next_u128()),
        cluster: ClusterId(env.random.next_u128()),
        incarnation: env.random.next_u128(),
        address: advertised(&config, address),
    };
    io_thread::run(&*env.file_system, move || read_state(&config, file_system, &ids))
        .await
        .ok_or(StartError::IoThreads)?
}

fn read_state(config: &Config, file_system: Arc<dyn FileSystem>, ids: &NewIds) -> Result<State, StartError> {
    let path = &config.data_dir;
    let failed = |source| StartError::Store { path: path.clone(), source };
    let store_config = StoreConfig {
        open_files_max: config.open_files_max,
        disk_reserve_bytes: config.disk_reserve,
        tail_bytes_max: config.tail_memory,
        log_tail_bytes_max: LOG_TAIL_BYTES_MAX.min(config.tail_memory),
    };
    let (store, report) = Store::open(file_system, path, store_config, ids.directory).map_err(failed)?;
    info!(
        directory_id = %store.directory_id(), formatted = report.formatted, clean = report.boot.clean,
        same_kernel = report.boot.same_kernel, "data directory opened"
    );
    for stranger in &report.strangers {
        warn!(name = stranger, "something in the data directory is none of ours; it is left alone");
    }
    let defaults = Defaults {
        config: config.topic_defaults.clone(),
        partitions: config.default_partitions,
        replication: 0,
    };
    let epoch = start_epoch(&store).map_err(failed)?;
    let register = Command::RegisterBroker {
        node_id: config.node_id,
        directory_id: store.directory_id(),
        incarnation: ids.incarnation,
        address: ids.address.clone(),
        rack: config.rack.clone(),
        feature_min: FEATURE_LEVEL_MIN,
        feature_max: FEATURE_LEVEL_MAX,
        unclean: !report.boot.clean,
        other_kernel: !report.boot.same_kernel,
        flush_failed: false,
    };
    let image = read_image(&store, config.node_id, defaults, register, ids, epoch, path)?;
    Ok(State { store, image, epoch })
}

fn read_image(
    store: &Store,
    node_id: NodeId,
    defaults: Defaults,
    register: Command,
    ids: &NewIds,
    leader_epoch: LeaderEpoch,
    path: &std::path::Path,
) -> Result<ClusterImage, StartError> {
    let failed = |source| StartError::Store { path: path.to_owned(), source };
    let bad = |reason: String| StartError::Topics { path: path.to_owned(), reason };
    let bytes = store.read_state(TOPICS_STATE).map_err(failed)?;
    let (mut image, older) = match bytes {
        None => (ClusterImage::default(), None),
        Some(bytes) => match (snapshot::decode(&bytes), topics_file::decode(&bytes, &defaults)) {
            (Ok(image), _) => (image, None),
            (Err(_), Ok(older)) => (ClusterImage::default(), Some((older, bytes))),
            (Err(error), Err(_)) => return Err(bad(error.to_string())),
        },
    };
    let mut commands = Vec::new();
    if image.cluster_id.is_absent() {
        let cluster_id = older.as_ref().map_or(ids.cluster, |(older, _)| older.cluster_id);
        info!(%cluster_id, "a new cluster of one");
        let defaults = defaults.clone();
        commands.push(Command::Init { cluster_id, defaults, feature_level: FEATURE_LEVEL_MAX });
    }
    commands.extend([Command::SetDefaults { defaults }, register]);
    commands.extend(older.map(|(_, snapshot)| Command::ImportTopics { snapshot, leader_epoch }));
    for command in commands {
        image.apply(&command).map_err(|refusal| bad(refusal.to_string()))?;
    }
    if let Some(broker_epoch) = image.broker(node_id).map(|broker| broker.broker_epoch) {
        let ready = Command::BrokerReady { node_id, broker_epoch };
        image.apply(&ready).map_err(|refusal| bad(refusal.to_string()))?;
    }
    let bytes = snapshot::encode(&image).map_err(|error| bad(error.to_string()))?;
    store.write_state(TOPICS_STATE, &bytes).map_err(failed)?;
    Ok(image)
}

/// What a start makes up, in case it is needed.
struct NewIds {
    directory: DirectoryId,
    cluster: ClusterId,
    incarnation: u128,
    /// Where clients and brokers find this broker.
    address: String,
}

fn advertised(config: &Config, address: SocketAddr) -> String {
    config.advertise.clone().unwrap_or_else(|| address.to_string())
}

fn node(
    config: &Config,
    env: &Env,
    controller: ControllerHandle,
    partitions: Arc<Partitions>,
    metrics: Arc<Metrics>,
) -> Node {
    let budget = Budget::new(config.produce_budget, config.connections_max as u64, config.produce_window);
    Node::new(NodeParts {
        node_id: config.node_id,
        limits: Limits {
            connections_max: config.connections_max,
            in_flight_max: config.in_flight_max,
            subscriptions_max: config.subscriptions_max,
            handshake_timeout: config.handshake_timeout,
            idle_timeout: config.idle_timeout,
        },
        clock: Arc::clone(&env.clock),
        random: Arc::clone(&env.random),
        controller,
        partitions,
        metrics,
        budget,
    })
}

async fn listen_on(setting: &'static str, address: &str) -> Result<Listener, StartError> {
    bind(address).await.map_err(|source| StartError::Listen { setting, address: address.to_owned(), source })
}

/// What serves the data of a broker.
struct Data {
    controller: ControllerHandle,
    services: Arc<Services>,
    partitions: Arc<Partitions>,
    drained: CancellationToken,
}

/// Starts controller and partitions. When this returns, every partition is open or has failed to.
async fn serve_data(
    state: State,
    node_id: NodeId,
    env: &Env,
    metrics: &Arc<Metrics>,
    background: &TaskTracker,
    stop: &CancellationToken,
) -> Data {
    let (service, controller) =
        ControllerService::new(state.image, Arc::clone(&state.store), Arc::clone(&env.file_system));
    background.spawn(service.run(stop.clone()));
    let services = Arc::new(Services::new(
        node_id,
        env,
        state.store,
        Arc::clone(metrics),
        controller.clone(),
        state.epoch,
        stop.clone(),
    ));
    let partitions = Arc::new(Partitions::default());
    metrics.register_collector(TopicMetrics::new(Arc::clone(&partitions)));
    let mut manager = Manager::new(Arc::clone(&services), Arc::clone(&partitions), state.epoch);
    if manager.open_all().await {
        note_recovered(&services.store, &env.file_system).await;
    }
    let drained = CancellationToken::new();
    background.spawn(manager.run(stop.clone(), drained.clone()));
    Data { controller, services, partitions, drained }
}

/// Every log has been recovered under this kernel: from here on the page cache is evidence again. A broker on its own
/// has nobody else to report its boot state to.
async fn note_recovered(store: &Arc<Store>, file_system: &Arc<dyn FileSystem>) {
    let noted = io_thread::run(&**file_system, {
        let store = Arc::clone(store);
        move || store.boot_reported()
    });
    if let Some(Err(error)) = noted.await {
        warn!(%error, "the boot record could not be written: a restart will judge damage as after a power cut");
    }
}

impl Broker {
    /// Looks at the disk now instead of at the next round of upkeep. For tests that fill a disk.
    pub async fn refresh_space(&self) -> bool {
        let store = Arc::clone(&self.store);
        let state = io_thread::run(&*self.file_system, move || store.refresh_space()).await;
        let read_only = match state {
            Some(Ok(state)) => state == DiskState::ReadOnly,
            Some(Err(error)) => {
                error!(%error, "the room on the disk could not be read");
                true
            }
            None => true,
        };
        self.node.read_only.store(read_only, Ordering::Relaxed);
        !read_only
    }
}
