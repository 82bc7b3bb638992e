//! How a broker comes up: what it opens, in which order, and when it is ready.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::controller::image::Defaults;
use highwater_broker_core::quota::Budget;
use highwater_protocol::ids::DirectoryId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{Config, OPEN_FILES_DEFAULT};
use crate::controller::service::ControllerHandle;
use crate::controller::{BootReport, ListedVoter, Setup};
use crate::env::Env;
use crate::group::manager::Manager as GroupManager;
use crate::group::{self, Groups};
use crate::io_thread;
use crate::observe::health::Health;
use crate::observe::metrics::Metrics;
use crate::observe::topics::TopicMetrics;
use crate::partition::manager::{Manager, Partitions};
use crate::partition::services::Services;
use crate::port_file;
use crate::server::listener::{Listener, bind};
use crate::server::{Limits, Node, NodeParts};
use crate::storage::config::StoreConfig;
use crate::storage::error::Error as StorageError;
use crate::storage::file_system::FileSystem;
use crate::storage::store::Store;

/// Bytes of one log's tail that are kept in memory while somebody follows it.
const LOG_TAIL_BYTES_MAX: u64 = 4 << 20;

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
    /// It does not fit the cluster that it was started for.
    #[error("{0}")]
    Cluster(String),
    /// It did not come up.
    #[error("{0}")]
    Start(String),
    /// The controller's thread cannot be started.
    #[error("start the controller's thread: {0}")]
    Thread(io::Error),
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

/// What is on the disk when a broker starts.
pub(crate) struct State {
    pub(crate) store: Arc<Store>,
}

/// Opens the data directory, or formats it.
pub(crate) async fn open_store(config: &Config, env: &Env) -> Result<State, StartError> {
    let (config, file_system) = (config.clone(), Arc::clone(&env.file_system));
    let new_directory = DirectoryId(env.random.next_u128());
    io_thread::run(&*env.file_system, move || read_state(&config, file_system, new_directory))
        .await
        .ok_or(StartError::IoThreads)?
}

fn read_state(
    config: &Config,
    file_system: Arc<dyn FileSystem>,
    new_directory: DirectoryId,
) -> Result<State, StartError> {
    let path = &config.data_dir;
    let failed = |source| StartError::Store { path: path.clone(), source };
    let store_config = StoreConfig {
        open_files_max: config.open_files_max.unwrap_or(OPEN_FILES_DEFAULT),
        disk_reserve_bytes: config.disk_reserve,
        tail_bytes_max: config.tail_memory,
        log_tail_bytes_max: LOG_TAIL_BYTES_MAX.min(config.tail_memory),
    };
    let (store, report) = Store::open(file_system, path, store_config, new_directory).map_err(failed)?;
    info!(
        directory_id = %store.directory_id(), formatted = report.formatted, clean = report.boot.clean,
        same_kernel = report.boot.same_kernel, "data directory opened"
    );
    for stranger in &report.strangers {
        warn!(name = stranger, "something in the data directory is none of ours; it is left alone");
    }
    Ok(State { store })
}

/// Where others reach this broker: as it is told, as the list of voters has it, or where it listens.
fn advertised(config: &Config, address: SocketAddr) -> String {
    let listed = config.voters.iter().find(|voter| voter.node_id == config.node_id);
    let listed = listed.map(|voter| voter.address.clone());
    config.advertise.clone().or(listed).unwrap_or_else(|| address.to_string())
}

/// Starts the controller's thread.
pub(crate) fn start_controller(
    config: &Config,
    env: &Env,
    address: SocketAddr,
    store: &Arc<Store>,
    stop: &CancellationToken,
) -> Result<ControllerHandle, StartError> {
    let report = store.boot().report;
    let voters = config
        .voters
        .iter()
        .map(|voter| ListedVoter { node_id: voter.node_id, address: voter.address.clone() })
        .collect();
    let setup = Setup {
        node_id: config.node_id,
        directory_id: store.directory_id(),
        incarnation: env.random.next_u128(),
        address: advertised(config, address),
        rack: config.rack.clone(),
        voters,
        join: config.join.clone(),
        secret: config.cluster_secret.clone(),
        lease: config.lease,
        defaults: Defaults {
            config: config.topic_defaults.clone(),
            partitions: config.default_partitions,
            ..Defaults::default()
        },
        boot: BootReport {
            unclean: report.unclean,
            other_kernel: report.other_kernel,
            flush_failed: report.flush_failed,
        },
        clock: Arc::clone(&env.clock),
        random: Arc::clone(&env.random),
    };
    ControllerHandle::start(
        setup,
        Arc::clone(store),
        Arc::clone(&env.file_system),
        config.data_dir.clone(),
        stop.clone(),
    )
    .map_err(StartError::Thread)
}

/// What serves the data of a broker.
pub(crate) struct Data {
    pub(crate) services: Arc<Services>,
    pub(crate) partitions: Arc<Partitions>,
    pub(crate) manager: Manager,
    pub(crate) groups: Arc<Groups>,
    pub(crate) group_manager: GroupManager,
}

/// Makes what serves the data; nothing of it runs yet.
pub(crate) fn data(
    state: State,
    config: &Config,
    env: &Env,
    controller: &ControllerHandle,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
) -> Data {
    let services = Arc::new(Services::new(
        config,
        env,
        state.store,
        Arc::clone(metrics),
        controller.clone(),
        stop.clone(),
    ));
    let partitions = Arc::new(Partitions::default());
    metrics.register_collector(TopicMetrics::new(Arc::clone(&partitions)));
    let manager = Manager::new(Arc::clone(&services), Arc::clone(&partitions));
    let parts = group::manager::Parts {
        controller: controller.clone(),
        partitions: Arc::clone(&partitions),
        links: services.links.clone(),
        config: config.groups.clone(),
        metrics: Arc::clone(metrics),
        partition_count: config.groups_partitions,
    };
    let (groups, group_manager) = group::manager::groups(parts, env);
    Data { services, partitions, manager, groups, group_manager }
}

/// What connections share.
pub(crate) fn node(
    config: &Config,
    env: &Env,
    controller: ControllerHandle,
    data: &Data,
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
        partitions: Arc::clone(&data.partitions),
        groups: Arc::clone(&data.groups),
        metrics,
        budget,
    })
}

/// Listens on a configured address.
pub(crate) async fn listen_on(setting: &'static str, address: &str) -> Result<Listener, StartError> {
    bind(address).await.map_err(|source| StartError::Listen { setting, address: address.to_owned(), source })
}

/// A broker on its way up.
pub(crate) struct Coming {
    pub(crate) controller: ControllerHandle,
    pub(crate) health: Arc<Health>,
    pub(crate) file_system: Arc<dyn FileSystem>,
    pub(crate) store: Arc<Store>,
    pub(crate) port_file: Option<PathBuf>,
    /// Of the protocol port, and of the HTTP port.
    pub(crate) addresses: (SocketAddr, Option<SocketAddr>),
    pub(crate) stop: CancellationToken,
}

impl Coming {
    /// Comes up, then serves the partitions until it is stopped.
    pub(crate) async fn run(
        self,
        mut manager: Manager,
        partitions: Arc<Partitions>,
        told: watch::Sender<Option<Result<(), String>>>,
        drained: CancellationToken,
    ) {
        let stop = self.stop.clone();
        if stop.run_until_cancelled(self.register()).await.is_none() {
            drained.cancel();
            return;
        }
        let all_open = manager.open_all().await;
        if all_open {
            self.note_recovered().await;
        }
        let serving = tokio::spawn(manager.run(stop.clone(), drained));
        self.controller.set_ready();
        if stop.run_until_cancelled(self.wait_serving(&partitions)).await.is_some() {
            told.send_replace(Some(self.announce()));
        }
        if let Err(error) = serving.await {
            warn!(%error, "the partitions were not closed in order");
        }
    }

    async fn register(&self) {
        let mut registration = self.controller.registration();
        // The handle keeps the sender.
        let _registered = registration.wait_for(Option::is_some).await;
    }

    /// Waits until this broker is active, and whatever it leads then is led.
    async fn wait_serving(&self, partitions: &Partitions) {
        self.controller.wait_active().await;
        partitions.wait_followed(self.controller.image().version).await;
    }

    fn announce(&self) -> Result<(), String> {
        self.health.clear(Health::STARTING);
        let (address, http) = self.addresses;
        if let Some(path) = &self.port_file {
            port_file::write(path, address, http)
                .map_err(|source| StartError::PortFile { path: path.clone(), source }.to_string())?;
        }
        info!(
            node_id = self.controller.node_id().get(), %address, ?http, cluster_id = %self.controller.image().cluster_id,
            "ready"
        );
        Ok(())
    }

    /// Every log has been recovered under this kernel, and the controller knows how the last broker ended: from here on
    /// the page cache is evidence again.
    async fn note_recovered(&self) {
        let store = Arc::clone(&self.store);
        let noted = io_thread::run(&*self.file_system, move || store.boot_reported());
        if let Some(Err(error)) = noted.await {
            warn!(%error, "the boot record could not be written: a restart will judge damage as after a power cut");
        }
    }
}
