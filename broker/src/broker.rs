//! The composition root: what a broker is made of, in which order it comes up, and in which order it goes down.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::controller::service::ControllerHandle;
use crate::env::Env;
use crate::io_thread;
use crate::observe::health::Health;
use crate::observe::http;
use crate::observe::metrics::Metrics;
use crate::partition::services::Services;
use crate::server::Node;
use crate::server::connection::serve;
use crate::server::listener::listen;
use crate::startup::{self, Coming};
pub use crate::startup::{ShutdownError, StartError};
use crate::storage::file_system::FileSystem;
use crate::storage::store::{DiskState, Store};
use crate::upkeep;

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
    controller: ControllerHandle,
    file_system: Arc<dyn FileSystem>,
    address: SocketAddr,
    http_address: Option<SocketAddr>,
    drain_timeout: Duration,
    connections: TaskTracker,
    background: TaskTracker,
    /// Whether it is up, once that is decided.
    up: watch::Receiver<Option<Result<(), String>>>,
    /// Stops accepting.
    stop_listening: CancellationToken,
    /// Stops partitions, controller and upkeep.
    stop: CancellationToken,
    /// Stops the HTTP port, last.
    stop_http: CancellationToken,
    /// Every partition is closed.
    drained: CancellationToken,
}

impl Broker {
    /// Starts a broker. When this returns, it accepts connections, is a member of its cluster, and every partition that it
    /// has a replica of is recovered. The first brokers of a cluster wait for each other.
    ///
    /// # Errors
    /// Says what cannot be used, and what to do.
    pub async fn start(config: Config, env: Env) -> Result<Self, StartError> {
        let broker = Self::launch(config, env).await?;
        broker.ready().await?;
        Ok(broker)
    }

    /// Starts a broker that comes up by itself: see [`Broker::ready`]. When this returns, it accepts connections.
    ///
    /// # Errors
    /// Says what cannot be used, and what to do.
    pub async fn launch(config: Config, env: Env) -> Result<Self, StartError> {
        let health = Arc::new(Health::starting());
        let metrics = Arc::new(Metrics::new());
        let (stop, stop_http) = (CancellationToken::new(), CancellationToken::new());
        // A start that fails leaves nothing running.
        let (undo, undo_http) = (stop.clone().drop_guard(), stop_http.clone().drop_guard());
        let background = TaskTracker::new();

        // Taken first, so that an address in use is known before anything on the disk is touched.
        let (listener, address) = startup::listen_on("listen", &config.listen).await?;
        let http_address = match &config.http {
            None => None,
            Some(address) => {
                let (listener, address) = startup::listen_on("http", address).await?;
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
        let state = startup::open_store(&config, &env).await?;
        let store = Arc::clone(&state.store);
        let controller = startup::start_controller(&config, &env, address, &store, &stop)?;
        let data = startup::data(state, &config, &env, &controller, &metrics, &stop);
        let node = startup::node(&config, &env, controller.clone(), &data, metrics);
        let node = Arc::new(node);
        upkeep::start(&node, &health, &store, &env.file_system, &config.data_dir, &background, &stop);
        let (connections, stop_listening) = (TaskTracker::new(), CancellationToken::new());
        background.spawn(data.group_manager.run(stop.clone()));
        background.spawn(listen(Arc::clone(&node), listener, connections.clone(), stop_listening.clone()));
        let (told, up) = watch::channel(None);
        let coming = Coming {
            controller: controller.clone(),
            health: Arc::clone(&health),
            file_system: Arc::clone(&env.file_system),
            store: Arc::clone(&store),
            port_file: config.port_file.clone(),
            addresses: (address, http_address),
            stop: stop.clone(),
        };
        let drained = CancellationToken::new();
        background.spawn(coming.run(data.manager, Arc::clone(&data.partitions), told, drained.clone()));
        undo.disarm();
        undo_http.disarm();
        Ok(Self {
            node,
            health,
            store,
            services: data.services,
            controller,
            file_system: env.file_system,
            address,
            http_address,
            drain_timeout: config.drain_timeout,
            connections,
            background,
            up,
            stop_listening,
            stop,
            stop_http,
            drained,
        })
    }

    /// Waits until the broker is a member of its cluster and has recovered its partitions. Cancel safe.
    ///
    /// # Errors
    /// Says why it will never come up like that, and what to do.
    pub async fn ready(&self) -> Result<(), StartError> {
        let mut up = self.up.clone();
        let told = async {
            match up.wait_for(Option::is_some).await.map(|told| told.clone()) {
                Ok(Some(told)) => told.map_err(StartError::Start),
                _ => Err(StartError::IoThreads),
            }
        };
        tokio::select! {
            error = self.failed() => Err(error),
            told = told => told,
        }
    }

    /// Waits until the broker finds that it may not go on, and says why, and what to do. It has to be shut down then.
    /// Cancel safe.
    pub async fn failed(&self) -> StartError {
        StartError::Cluster(self.controller.failed().await)
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
        self.hand_over(limit / 2).await;
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
        // What was not recovered is not clean.
        let recovered = matches!(&*self.up.borrow(), Some(Ok(())));
        let closed = if drained.is_ok() && recovered {
            let (store, logs) = (Arc::clone(&self.store), self.services.take_closed());
            io_thread::run(&*self.file_system, move || store.close(&logs)).await
        } else if recovered {
            None
        } else {
            Some(Ok(()))
        };
        self.stop_http.cancel();
        // Whoever starts the next broker on this directory finds it unlocked.
        self.background.close();
        self.node.tasks.close();
        let ended = async {
            self.controller.ended().await;
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

impl Broker {
    /// Has the controller make other brokers lead what this one leads, if there are others.
    async fn hand_over(&self, limit: Duration) {
        if !self.controller.has_company() {
            return;
        }
        if tokio::time::timeout(limit, self.controller.stop_leading()).await.is_err() {
            warn!("leadership was not handed over in time; others take it when this broker is gone");
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
