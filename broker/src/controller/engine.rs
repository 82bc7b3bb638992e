//! The controller's thread: opens the store, comes up, runs the engine, and starts it again if its disk was full.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use openraft::storage::{RaftLogStorage, RaftStateMachine, StorageHelper};
use openraft::{Config, SnapshotPolicy};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::consensus::{Raft, StoreFailure};
use super::core::{Core, View};
use super::network::Network;
use super::proposals::{self, Proposal};
use super::store::{Machine, OpenStore, RaftLog, RaftStore, StoreError};
use super::{bootstrap, import, leader, membership, registration};
use crate::storage::file_system::FileSystem;
use crate::storage::store::Store;

/// How often a leader is heard.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// Silence after which a voter lets others be elected, and a random part of as much again after which it stands itself:
/// 0.8 to 1.1 s in all, of the second that a fail-over has.
const ELECTION_MIN: Duration = Duration::from_millis(300);
const ELECTION_MAX: Duration = Duration::from_millis(550);
/// Entries after which a snapshot is made and what is before it is let go.
const ENTRIES_A_SNAPSHOT: u64 = 1000;
/// Entries that are kept before a snapshot, for members that are a little behind.
const ENTRIES_KEPT: u64 = 500;
/// Bytes of one piece of a snapshot on its way to a member.
const SNAPSHOT_PIECE_BYTES: u64 = 1 << 20;
/// How long a piece may take.
const SNAPSHOT_PIECE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks whether the last engine has closed its store.
const CLOSE_PAUSE: Duration = Duration::from_millis(20);
/// Before an engine that has failed is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// What the thread works with.
pub(super) struct Engine {
    pub(super) core: Arc<Core>,
    /// Keeps the data directory locked until nothing is written any more.
    pub(super) store: Arc<Store>,
    pub(super) file_system: Arc<dyn FileSystem>,
    pub(super) root: PathBuf,
    pub(super) proposals: mpsc::Receiver<Proposal>,
    pub(super) stop: CancellationToken,
}

impl Engine {
    /// Runs until `stop` is cancelled, or until this broker may not go on.
    pub(super) async fn run(self) {
        let stop = self.stop.clone();
        let tasks = TaskTracker::new();
        let work = async {
            tasks.spawn(proposals::run(Arc::clone(&self.core), self.proposals));
            let flush_failed = Arc::new(AtomicBool::new(false));
            let path = self.root.join(super::store::FILE);
            let (mut first, mut last) = (true, OpenStore::default());
            loop {
                let session = Session {
                    core: &self.core,
                    store: &self.store,
                    file_system: &self.file_system,
                    root: &self.root,
                    tasks: &tasks,
                };
                match session.run(&flush_failed, first, &mut last).await {
                    Ok(()) if self.core.has_come_up() => {}
                    Ok(()) => {
                        self.core.give_up(format!(
                            "the controller's state in {} could not be read or written: check the disk and start again",
                            path.display()
                        ));
                        return std::future::pending().await;
                    }
                    Err(Stopped::Never(why)) => {
                        self.core.give_up(why);
                        return std::future::pending().await;
                    }
                    // Nobody waits for a broker that does not come up; and one that does not see changes any more must
                    // not go on with what it knew.
                    Err(Stopped::Store(error)) if !self.core.has_come_up() || error.is_final() => {
                        self.core.give_up(format!("the controller's state in {}: {error}", path.display()));
                        return std::future::pending().await;
                    }
                    Err(Stopped::Store(error)) => {
                        warn!(%error, "the controller's state cannot be opened again yet")
                    }
                }
                first = false;
                tokio::time::sleep(RESTART_PAUSE).await;
                while last.is_open() {
                    tokio::time::sleep(CLOSE_PAUSE).await;
                }
            }
        };
        stop.run_until_cancelled(work).await;
        if let Some(raft) = self.core.raft.swap(None)
            && let Err(error) = raft.shutdown().await
        {
            warn!(%error, "consensus did not stop in order");
        }
    }
}

/// Why a session of the engine is over.
enum Stopped {
    /// This broker may not go on.
    Never(String),
    Store(StoreError),
}

impl From<StoreError> for Stopped {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// One life of the engine.
struct Session<'a> {
    core: &'a Arc<Core>,
    store: &'a Arc<Store>,
    file_system: &'a Arc<dyn FileSystem>,
    root: &'a PathBuf,
    tasks: &'a TaskTracker,
}

impl Session<'_> {
    /// Returns when the engine has failed.
    async fn run(
        &self,
        flush_failed: &Arc<AtomicBool>,
        first: bool,
        open: &mut OpenStore,
    ) -> Result<(), Stopped> {
        let (fs, root) = (Arc::clone(self.file_system), self.root.clone());
        let flush_failed = Arc::clone(flush_failed);
        let opened = tokio::task::spawn_blocking(move || RaftStore::open(&*fs, &root, flush_failed)).await;
        let store = opened.unwrap_or(Err(StoreError::Gone))?;
        *open = store.watch();
        let present = {
            let store = store.clone();
            tokio::task::spawn_blocking(move || store.formatted()).await.unwrap_or(Err(StoreError::Gone))?
        };
        let mut machine = Machine::open(store.clone(), self.core.shown.clone()).await?;
        let mut log = RaftLog::new(store.clone());
        let initialised = self.replay(&mut log, &mut machine).await?;
        let old = import::find(self.store, self.file_system).await?;
        let formatted =
            bootstrap::plan_format(&self.core.setup, present.as_ref(), initialised, old.is_some())
                .map_err(Stopped::Never)?;
        if present.as_ref() != Some(&formatted) {
            let (store, formatted) = (store.clone(), formatted.clone());
            let written = tokio::task::spawn_blocking(move || store.format(&formatted)).await;
            written.unwrap_or(Err(StoreError::Gone))?;
        }
        drop(store);
        // Before anything is answered or sent: two processes with the same vote are one too many.
        if first && initialised {
            let (_, membership) = machine.applied_state().await.map_err(engine_failure)?;
            bootstrap::check_not_started_twice(self.core, &membership).await.map_err(Stopped::Never)?;
            bootstrap::check_same_cluster(self.core, &formatted).await.map_err(Stopped::Never)?;
        }
        let raft = self.start(log, machine).await.map_err(Stopped::Never)?;
        self.core.formatted.store(Some(Arc::new(formatted.clone())));
        self.core.raft.store(Some(Arc::new(raft.clone())));
        let failed = self.follow_metrics(&raft);
        if first {
            self.start_tasks(old);
        }
        let came_up = async {
            if !initialised {
                bootstrap::come_up(self.core, &raft, &formatted).await.map_err(Stopped::Never)?;
            }
            std::future::pending().await
        };
        let result = tokio::select! {
            result = came_up => result,
            () = failed.cancelled() => Ok(()),
        };
        self.core.raft.store(None);
        let _stops = raft.shutdown().await;
        result
    }

    /// Brings the image up to what is known to be committed. Whether this member has taken part in consensus.
    async fn replay(&self, log: &mut RaftLog, machine: &mut Machine) -> Result<bool, Stopped> {
        let last = log.get_log_state().await.map_err(engine_failure)?.last_log_id;
        let vote = log.read_vote().await.map_err(engine_failure)?;
        StorageHelper::new(log, machine).get_initial_state().await.map_err(engine_failure)?;
        Ok(last.is_some() || vote.is_some_and(|vote| vote.leader_id.term > 0))
    }

    async fn start(&self, log: RaftLog, machine: Machine) -> Result<Raft, String> {
        let config = Config {
            cluster_name: "highwater".to_owned(),
            heartbeat_interval: millis(HEARTBEAT),
            election_timeout_min: millis(ELECTION_MIN),
            election_timeout_max: millis(ELECTION_MAX),
            install_snapshot_timeout: millis(SNAPSHOT_PIECE_TIMEOUT),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(ENTRIES_A_SNAPSHOT),
            max_in_snapshot_log_to_keep: ENTRIES_KEPT,
            replication_lag_threshold: ENTRIES_A_SNAPSHOT * 2,
            snapshot_max_chunk_size: SNAPSHOT_PIECE_BYTES,
            ..Config::default()
        };
        let config = config.validate().map_err(|error| format!("the settings of consensus: {error}"))?;
        let network = Network { links: self.core.links.clone(), addresses: self.core.addresses() };
        let id = u64::from(self.core.setup.node_id.get());
        Raft::new(id, Arc::new(config), network, log, machine)
            .await
            .map_err(|error| format!("the controller's state cannot be used: {error}"))
    }

    /// Shows what the engine tells. The token is cancelled when the engine has failed.
    fn follow_metrics(&self, raft: &Raft) -> CancellationToken {
        let (core, mut metrics) = (Arc::clone(self.core), raft.metrics());
        let failed = CancellationToken::new();
        let ended = failed.clone();
        self.tasks.spawn(async move {
            let _ends = ended.drop_guard();
            loop {
                let mut view = View::of(core.setup.node_id, &metrics.borrow_and_update());
                let over = view.failed;
                core.view.send_if_modified(|last| {
                    view.serves = last.serves && view.leads && view.term == last.term;
                    let changed = *last != view;
                    if changed && last.controller != view.controller {
                        info!(controller = ?view.controller.map(|node| node.get()), term = view.term, "controller");
                    }
                    *last = view;
                    changed
                });
                if over || metrics.changed().await.is_err() {
                    core.view.send_modify(|view| {
                        view.leads = false;
                        view.serves = false;
                        view.controller = None;
                    });
                    return;
                }
            }
        });
        failed
    }

    fn start_tasks(&self, old: Option<import::OldTopics>) {
        self.tasks.spawn(leader::run(Arc::clone(self.core), old, Arc::clone(self.file_system)));
        self.tasks.spawn(membership::watch_removed(Arc::clone(self.core)));
        self.tasks.spawn(registration::run(Arc::clone(self.core)));
    }
}

fn engine_failure(error: StoreFailure) -> Stopped {
    Stopped::Store(StoreError::Io(std::io::Error::other(error.to_string())))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
