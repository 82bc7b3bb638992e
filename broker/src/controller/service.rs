//! How the rest of the broker reaches the controller's thread.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::controller::command::{Command, Reply};
use highwater_broker_core::controller::image::{BrokerState, ClusterImage};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{BrokerEpoch, DirectoryId, NodeId};
use highwater_protocol::messages::{
    BootstrapReply, BrokerIdentity, HeartbeatReply, HeartbeatRequest, ProposeReply, ProposeRequest,
    RaftReply, RaftRequest, RegisterBrokerReply, RegisterBrokerRequest,
};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::core::{Core, Setup};
use super::engine::Engine;
use super::network;
use super::proposals::{PROPOSALS_MAX, refused, stopped};
use crate::api::ApiError;
use crate::storage::file_system::FileSystem;
use crate::storage::store::Store;

/// Requests from elsewhere that the controller's thread has taken and not answered. More wait.
const REQUESTS_MAX: usize = 1024;
/// Threads for what may block on the disk: one writes, one reads.
const DISK_THREADS: usize = 2;
/// How long such a thread waits for more work.
const DISK_THREAD_IDLE: Duration = Duration::from_secs(5);
/// How long the thread waits at its end for what is being written.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// Proposes changes and shows the last image. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ControllerHandle {
    core: Arc<Core>,
    runtime: Handle,
    requests: Arc<Semaphore>,
    ended: CancellationToken,
}

impl ControllerHandle {
    /// Starts the controller's thread on a data directory. It ends when `stop` is cancelled.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn start(
        setup: Setup,
        store: Arc<Store>,
        file_system: Arc<dyn FileSystem>,
        root: PathBuf,
        stop: CancellationToken,
    ) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(DISK_THREADS)
            .thread_keep_alive(DISK_THREAD_IDLE)
            .build()?;
        let (sender, proposals) = mpsc::channel(PROPOSALS_MAX);
        let core = Core::new(setup, sender);
        let handle = Self {
            core: Arc::clone(&core),
            runtime: runtime.handle().clone(),
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            ended: CancellationToken::new(),
        };
        let ended = handle.ended.clone();
        let kept = Arc::clone(&store);
        let engine = Engine { core, store, file_system, root, proposals, stop };
        std::thread::Builder::new().name("controller".to_owned()).spawn(move || {
            let _ended = ended.drop_guard();
            runtime.block_on(engine.run());
            runtime.shutdown_timeout(LAST_WRITES);
            drop(kept);
        })?;
        Ok(handle)
    }

    /// The last image that is decided and known here.
    pub(crate) fn image(&self) -> Arc<ClusterImage> {
        self.core.image()
    }

    /// Changes whenever there is a new image.
    pub(crate) fn versions(&self) -> watch::Receiver<u64> {
        self.core.shown.versions()
    }

    /// Carries a command out, or, with `validate_only`, says what would come of it.
    ///
    /// The change is on stable storage of a majority of the voters, and in the image here, when this returns. It goes to
    /// the controller wherever that is, for up to 10 s. Dropping the future does not take the proposal back.
    pub(crate) async fn propose(&self, command: Command, validate_only: bool) -> Result<Reply, ApiError> {
        if validate_only {
            return self.core.try_out(&command).0.map_err(|refusal| refused(&refusal));
        }
        self.on_thread(|core| async move { core.propose(command).await }).await
    }

    /// Waits until the image has all that was decided before: to be asked before something is said not to exist.
    ///
    /// # Errors
    /// `NoController`: the controller could not be asked.
    pub(crate) async fn catch_up(&self) -> Result<(), ApiError> {
        self.on_thread(|core| async move { core.catch_up().await }).await
    }

    /// Our registration; `None`: not, or not any more, registered.
    pub(crate) fn registration(&self) -> watch::Receiver<Option<BrokerEpoch>> {
        self.core.registration.subscribe()
    }

    /// The last image, if it is at least as new as our registration: before that what it lacks may be there all the same.
    ///
    /// # Errors
    /// `NoController`: this broker is starting, or cut off; another one may be asked.
    pub(crate) fn current_image(&self) -> Result<Arc<ClusterImage>, ApiError> {
        let (image, registered) = (self.image(), *self.core.registration.borrow());
        let known = image.broker(self.node_id()).map(|broker| broker.broker_epoch);
        if registered.is_some() && registered <= known {
            return Ok(image);
        }
        let why = self.core.waits_for.lock().as_ref().map_or_else(String::new, |why| format!(": {why}"));
        Err(ApiError::new(
            ErrorCode::NoController,
            format!("broker {} is starting and does not know the topics yet{why}", self.node_id()),
        ))
    }

    /// Who the controller is, if it is known.
    #[allow(dead_code, reason = "what describes the cluster and links replicas asks for it")]
    pub(crate) fn controller(&self) -> Option<NodeId> {
        self.core.view.borrow().controller
    }

    /// Who votes on metadata.
    #[allow(dead_code, reason = "what describes the cluster and links replicas asks for it")]
    pub(crate) fn voters(&self) -> Vec<NodeId> {
        self.core.view.borrow().voters.clone()
    }

    /// This broker.
    pub(crate) fn node_id(&self) -> NodeId {
        self.core.setup.node_id
    }

    /// Its data directory.
    pub(crate) fn directory_id(&self) -> DirectoryId {
        self.core.setup.directory_id
    }

    /// What this broker says about itself to other brokers.
    #[allow(dead_code, reason = "what describes the cluster and links replicas asks for it")]
    pub(crate) fn identity(&self) -> BrokerIdentity {
        self.core.identity()
    }

    /// What the brokers of the cluster share.
    pub(crate) fn secret(&self) -> &str {
        &self.core.setup.secret
    }

    /// The logs are open: the controller may let this broker lead.
    pub(crate) fn set_ready(&self) {
        self.core.own.send_if_modified(|own| !std::mem::replace(&mut own.ready, true));
    }

    /// Asks the controller to hand over what this broker leads, and waits until it has, or until there is nobody to ask.
    /// The caller bounds the time.
    pub(crate) async fn stop_leading(&self) {
        if self.core.registration.borrow().is_none() {
            return;
        }
        self.core.own.send_modify(|own| own.stopping = true);
        let mut own = self.core.own.subscribe();
        let mut registration = self.core.registration.subscribe();
        tokio::select! {
            _ = own.wait_for(|own| own.may_stop) => {}
            _ = registration.wait_for(Option::is_none) => {}
            () = self.ended.cancelled() => {}
        }
    }

    /// Whether another broker could take over what this one leads.
    pub(crate) fn has_company(&self) -> bool {
        self.image()
            .brokers()
            .any(|broker| broker.node_id != self.node_id() && broker.state == BrokerState::Active)
    }

    /// Waits until this broker is registered and active, as the image here has it.
    pub(crate) async fn wait_active(&self) {
        let mut versions = self.versions();
        loop {
            versions.borrow_and_update();
            let epoch = *self.core.registration.borrow();
            let image = self.image();
            let active = image.broker(self.node_id()).is_some_and(|broker| {
                Some(broker.broker_epoch) == epoch && broker.state == BrokerState::Active
            });
            if active || versions.changed().await.is_err() {
                return;
            }
        }
    }

    /// Why this broker may not go on. Waits for as long as it may.
    pub(crate) async fn failed(&self) -> String {
        let mut fatal = self.core.fatal.subscribe();
        let found = fatal.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match found {
            Some(why) => why,
            None => std::future::pending().await,
        }
    }

    /// Waits until the thread has ended: nothing of it touches the data directory any more.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// A connection of a broker has ended.
    pub(crate) fn connection_lost(&self, node: NodeId) {
        if self.core.view.borrow().serves {
            let core = Arc::clone(&self.core);
            self.runtime.spawn(async move { core.connection_lost(node) });
        }
    }

    /// What this broker is, for others that come up.
    pub(crate) fn bootstrap(&self) -> Result<BootstrapReply, ApiError> {
        self.core.bootstrap_reply()
    }

    /// A message of consensus.
    pub(crate) async fn raft(&self, request: RaftRequest) -> Result<RaftReply, ApiError> {
        self.on_thread(|core| async move {
            let to = request.to_directory.map(DirectoryId::from).unwrap_or_default();
            if to != core.setup.directory_id && !cfg!(hw_mutate = "raft_to_any_directory") {
                let ours = core.setup.directory_id;
                return Err(ApiError::new(
                    ErrorCode::BrokerConflict,
                    format!("the message is for data directory {to}, and this is {ours}"),
                ));
            }
            network::receive(&*core.engine()?, &request).await
        })
        .await
    }

    /// A broker comes. `introduced`: another broker passes the request on.
    pub(crate) async fn register_broker(
        &self,
        request: RegisterBrokerRequest,
        introduced: bool,
    ) -> Result<RegisterBrokerReply, ApiError> {
        self.on_thread(move |core| async move {
            if core.view.borrow().leads || introduced {
                core.register_broker(&request).await
            } else {
                core.introduce_to_controller(&request).await
            }
        })
        .await
    }

    /// A broker is alive.
    pub(crate) async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatReply, ApiError> {
        self.on_thread(move |core| async move { core.heartbeat(&request).await }).await
    }

    /// A broker proposes a change.
    pub(crate) async fn propose_for(&self, request: ProposeRequest) -> Result<ProposeReply, ApiError> {
        self.on_thread(move |core| async move { core.propose_for(&request).await }).await
    }

    /// Runs `job` on the controller's thread. Goes on there when the future is dropped.
    async fn on_thread<T, F>(&self, job: impl FnOnce(Arc<Core>) -> F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.requests).acquire_owned().await;
        let job = job(Arc::clone(&self.core));
        let task = self.runtime.spawn(async move {
            let _permit = permit;
            job.await
        });
        match task.await {
            Ok(result) => result,
            Err(error) => {
                if error.is_panic() {
                    warn!(%error, "a request to the controller has failed");
                }
                Err(stopped())
            }
        }
    }
}
