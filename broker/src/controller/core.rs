//! What the parts of the controller share: who we are, what is known of the cluster, and the engine while it runs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use highwater_broker_core::controller::image::{BrokerState, ClusterImage, Defaults};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{BrokerEpoch, ClusterId, DirectoryId, NodeId};
use highwater_protocol::messages::BrokerIdentity;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::consensus::{Member, Raft, RaftMetrics};
use super::judge::Judgement;
use super::links::{Identity, Links};
use super::network::AddressBook;
use super::proposals::Proposal;
use super::store::{Formatted, ListedVoter, Shown};
use crate::api::ApiError;
use crate::env::{Clock, Random};

/// What a controller is started with.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) node_id: NodeId,
    pub(crate) directory_id: DirectoryId,
    /// Made at the start of the process.
    pub(crate) incarnation: u128,
    /// `host:port` for clients and brokers.
    pub(crate) address: String,
    pub(crate) rack: String,
    /// Sorted; empty: it joins, or is a cluster of one.
    pub(crate) voters: Vec<ListedVoter>,
    /// A broker of the cluster that it is to join.
    pub(crate) join: Option<String>,
    /// What the brokers of a cluster share; empty: nothing.
    pub(crate) secret: String,
    /// How long a broker that is not heard of is waited for.
    pub(crate) lease: Duration,
    pub(crate) defaults: Defaults,
    /// What the data directory has to report of this and earlier starts.
    pub(crate) boot: BootReport,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
}

/// How the last broker on the data directory ended, as a registration reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct BootReport {
    pub(crate) unclean: bool,
    pub(crate) other_kernel: bool,
    pub(crate) flush_failed: bool,
}

/// What consensus is like at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Who leads consensus: the controller.
    pub(crate) controller: Option<NodeId>,
    /// Whether that is us.
    pub(crate) leads: bool,
    pub(crate) term: u64,
    /// Whether we lead and know everything that earlier controllers have decided.
    pub(crate) serves: bool,
    /// Whether we take part at all.
    pub(crate) initialised: bool,
    pub(crate) voters: Vec<NodeId>,
    pub(crate) members: BTreeMap<NodeId, Member>,
    /// The engine has failed.
    pub(crate) failed: bool,
}

impl View {
    pub(crate) fn of(me: NodeId, metrics: &RaftMetrics) -> Self {
        let node = |id: u64| NodeId(u32::try_from(id).unwrap_or_default());
        let membership = metrics.membership_config.membership();
        let controller = metrics.current_leader.map(node);
        Self {
            controller,
            leads: controller == Some(me) && metrics.state.is_leader(),
            term: metrics.current_term,
            serves: false,
            initialised: metrics.last_log_index.is_some() || metrics.last_applied.is_some(),
            voters: membership.voter_ids().map(node).collect(),
            members: membership.nodes().map(|(id, member)| (node(*id), member.clone())).collect(),
            failed: metrics.running_state.is_err(),
        }
    }
}

/// What the broker wants the controller to know with the next heartbeat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OwnState {
    /// It has opened its logs and can lead.
    pub(crate) ready: bool,
    /// It is about to stop.
    pub(crate) stopping: bool,
    /// The controller has said that it may.
    pub(crate) may_stop: bool,
}

/// See the module.
pub(crate) struct Core {
    pub(crate) setup: Setup,
    pub(crate) shown: Shown,
    pub(crate) links: Links,
    known: Arc<Known>,
    /// The engine, while it runs.
    pub(crate) raft: ArcSwapOption<Raft>,
    /// What the data directory is formatted for, once that is on stable storage.
    pub(crate) formatted: ArcSwapOption<Formatted>,
    pub(crate) view: watch::Sender<View>,
    pub(crate) registration: watch::Sender<Option<BrokerEpoch>>,
    pub(crate) own: watch::Sender<OwnState>,
    /// Why this broker may not go on.
    pub(crate) fatal: watch::Sender<Option<String>>,
    pub(crate) proposals: mpsc::Sender<Proposal>,
    /// While we serve as the controller.
    pub(crate) judgement: Mutex<Option<Judgement>>,
    /// Brokers that were removed while this process ran.
    pub(crate) removed: Mutex<BTreeSet<NodeId>>,
    /// What this broker waits for before it takes part, as last found out.
    pub(crate) waits_for: Mutex<Option<String>>,
    /// When the last question began by which this broker knew all that was decided; held while one is asked.
    pub(crate) caught_up: tokio::sync::Mutex<Option<Instant>>,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("setup", &self.setup).finish_non_exhaustive()
    }
}

/// What connections to other brokers need to know.
#[derive(Debug)]
struct Known {
    node_id: NodeId,
    directory_id: DirectoryId,
    secret: String,
    voters: Vec<ListedVoter>,
    shown: Shown,
    registration: watch::Receiver<Option<BrokerEpoch>>,
    /// Which of a member's addresses is tried next. Bounded by the members.
    attempts: Mutex<HashMap<NodeId, AtomicUsize>>,
}

impl Core {
    pub(crate) fn new(setup: Setup, proposals: mpsc::Sender<Proposal>) -> Arc<Self> {
        let shown = Shown::new();
        let (registration, registered) = watch::channel(None);
        let known = Arc::new(Known {
            node_id: setup.node_id,
            directory_id: setup.directory_id,
            secret: setup.secret.clone(),
            voters: setup.voters.clone(),
            shown: shown.clone(),
            registration: registered,
            attempts: Mutex::default(),
        });
        Arc::new(Self {
            setup,
            shown,
            links: Links::new(Arc::<Known>::clone(&known)),
            known,
            raft: ArcSwapOption::empty(),
            formatted: ArcSwapOption::empty(),
            view: watch::channel(View::default()).0,
            registration,
            own: watch::channel(OwnState::default()).0,
            fatal: watch::channel(None).0,
            proposals,
            judgement: Mutex::new(None),
            removed: Mutex::default(),
            waits_for: Mutex::default(),
            caught_up: tokio::sync::Mutex::default(),
        })
    }

    pub(crate) fn image(&self) -> Arc<ClusterImage> {
        self.shown.image().load_full()
    }

    pub(crate) fn identity(&self) -> BrokerIdentity {
        self.known.identity()
    }

    pub(crate) fn addresses(&self) -> Arc<dyn AddressBook> {
        Arc::<Known>::clone(&self.known)
    }

    /// The engine, if it runs.
    pub(crate) fn engine(&self) -> Result<Arc<Raft>, ApiError> {
        self.raft.load_full().ok_or_else(|| {
            ApiError::new(
                ErrorCode::NoController,
                "this broker does not take part in consensus at the moment",
            )
        })
    }

    /// Where the controller is, if it is another broker and known.
    pub(crate) fn controller_address(&self) -> Option<String> {
        let view = self.view.borrow();
        let controller = view.controller.filter(|_| !view.leads)?;
        let member = view.members.get(&controller)?;
        Some(self.known.address_of(controller, member))
    }

    /// Whether this broker has a place in the cluster and has been ready in it. One that is registered and no more serves
    /// nobody yet.
    pub(crate) fn has_come_up(&self) -> bool {
        let Some(epoch) = *self.registration.borrow() else { return false };
        let image = self.image();
        let known = image.broker(self.setup.node_id).filter(|broker| broker.broker_epoch == epoch);
        known.is_some_and(|broker| broker.state != BrokerState::Starting)
    }

    /// This broker may not go on.
    pub(crate) fn give_up(&self, why: String) {
        tracing::error!("{why}");
        self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            fatal.get_or_insert(why);
            first
        });
    }
}

impl Identity for Known {
    fn identity(&self) -> BrokerIdentity {
        BrokerIdentity {
            node_id: self.node_id.get(),
            directory_id: Some(self.directory_id.into()),
            broker_epoch: self.registration.borrow().map_or(0, BrokerEpoch::get),
            secret: self.secret.clone(),
        }
    }

    fn cluster_id(&self) -> Option<ClusterId> {
        Some(self.shown.image().load().cluster_id).filter(|id| !id.is_absent())
    }
}

impl AddressBook for Known {
    /// In turn: as this broker was told at its start, as the broker registered last, as it was when it became a member.
    fn address_of(&self, node: NodeId, member: &Member) -> String {
        let image = self.shown.image().load();
        let listed = self.voters.iter().find(|voter| voter.node_id == node).map(|voter| &voter.address);
        let registered = image
            .broker(node)
            .filter(|broker| broker.directory_id == member.directory_id)
            .map(|broker| &broker.address);
        let mut candidates: Vec<&String> = Vec::with_capacity(3);
        for address in registered.into_iter().chain(listed).chain([&member.address]) {
            if !candidates.contains(&address) {
                candidates.push(address);
            }
        }
        let attempts = self.attempts.lock().get(&node).map_or(0, |count| count.load(Ordering::Relaxed));
        candidates
            .get(attempts % candidates.len().max(1))
            .map_or_else(String::new, |&address| address.clone())
    }

    fn not_there(&self, node: NodeId) {
        self.attempts.lock().entry(node).or_default().fetch_add(1, Ordering::Relaxed);
    }
}
