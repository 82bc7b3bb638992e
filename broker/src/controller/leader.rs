//! What the controller does beyond writing its log: it introduces and registers brokers, judges who is alive, keeps the
//! voters an odd number, and carries planned moves on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use highwater_broker_core::controller::command::{Command, FEATURE_LEVEL_MAX, Reply};
use highwater_broker_core::controller::image::{BrokerState, ClusterImage};
use highwater_broker_core::controller::{reassignment, topics_file};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{BrokerEpoch, ClusterId, DirectoryId, NodeId};
use highwater_protocol::messages::{
    HeartbeatReply, HeartbeatRequest, RegisterBrokerReply, RegisterBrokerRequest,
};
use openraft::error::{ClientWriteError, RaftError};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use super::bootstrap::other_directory;
use super::consensus::Member;
use super::core::Core;
use super::import::OldTopics;
use super::membership;
use super::proposals::{PROPOSE_TIMEOUT, refused};
use crate::api::ApiError;
use crate::storage::file_system::FileSystem;

/// How often leases are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often the controller looks for what it should do by itself.
const DUTY_PERIOD: Duration = Duration::from_secs(1);
/// How long a broker is gone before its replicas are made anew elsewhere: longer than it takes to start a machine again.
const LOST_AFTER: Duration = Duration::from_secs(30 * 60);
/// How long a majority may take to confirm that we are still the controller.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(500);
/// Before a controller that could not begin tries again.
const BEGIN_PAUSE: Duration = Duration::from_millis(200);

/// Leads whenever consensus says so, for as long as the controller's thread runs.
pub(super) async fn run(core: Arc<Core>, old: Option<OldTopics>, file_system: Arc<dyn FileSystem>) {
    let mut view = core.view.subscribe();
    let mut old = old;
    loop {
        let Ok(term) = view.wait_for(|view| view.leads).await.map(|view| view.term) else { return };
        let over = {
            let mut view = core.view.subscribe();
            async move {
                let _closed = view.wait_for(|view| !view.leads || view.term != term).await;
            }
        };
        let lead = async {
            while let Err(error) = begin(&core, &mut old, &file_system).await {
                warn!(%error, "the controller cannot begin yet");
                tokio::time::sleep(BEGIN_PAUSE).await;
            }
            core.begin_judging();
            info!(term, "this broker is the controller");
            serve(&core).await;
        };
        tokio::select! {
            () = over => {}
            () = lead => {}
        }
        core.end_judging();
        info!(term, "this broker is not the controller any more");
    }
}

/// Learns what earlier controllers have decided, and makes the cluster if this is the first.
async fn begin(
    core: &Arc<Core>,
    old: &mut Option<OldTopics>,
    file_system: &Arc<dyn FileSystem>,
) -> Result<(), ApiError> {
    core.confirm().await?;
    let defaults = core.setup.defaults.clone();
    if core.image().cluster_id.is_absent() {
        let found = old.as_ref().map(|old| topics_file::decode(&old.snapshot, &defaults)).transpose();
        let found = found.map_err(|error| {
            let text =
                format!("{error}; restore the file 'topics' in the directory 'state' of the data directory");
            core.give_up(text.clone());
            ApiError::new(ErrorCode::StorageError, text)
        })?;
        let cluster_id =
            found.map_or_else(|| ClusterId(core.setup.random.next_u128()), |found| found.cluster_id);
        let init = Command::Init { cluster_id, defaults, feature_level: FEATURE_LEVEL_MAX };
        core.decide(init).await?;
        info!(%cluster_id, "a new cluster");
    } else if core.image().defaults != defaults {
        // A setting that some topic contradicts must not keep the cluster from having a controller.
        if let Err(error) = core.decide(Command::SetDefaults { defaults }).await {
            warn!(%error, "the defaults of this broker's settings are not taken over");
        }
    }
    if let Some(found) = old.as_ref() {
        take_over(core, found, file_system).await?;
        *old = None;
    }
    Ok(())
}

/// Takes over the topics of a broker that was on its own. The files that had them stay until that is decided.
async fn take_over(
    core: &Arc<Core>,
    old: &OldTopics,
    file_system: &Arc<dyn FileSystem>,
) -> Result<(), ApiError> {
    // If there are topics, these are they: the files had not been put aside yet.
    if core.image().topics().next().is_none() {
        // The broker has to be known first. It is the same registration when it registers as every broker does.
        let (setup, request) = (&core.setup, core.registration_request());
        core.decide(registration(&request, setup.directory_id, setup.incarnation)).await?;
        let import = Command::ImportTopics { snapshot: old.snapshot.clone(), leader_epoch: old.leader_epoch };
        core.decide(import).await?;
    }
    old.put_aside(file_system)
        .await
        .map_err(|error| ApiError::new(ErrorCode::StorageError, error.to_string()))
}

/// The controller's daily work.
async fn serve(core: &Arc<Core>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut versions = core.shown.versions();
    let mut duties = Duties::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = versions.changed() => {
                versions.borrow_and_update();
            }
        }
        core.judge();
        duties.look(core);
        membership::settle(core).await;
    }
}

/// What the controller proposes by itself from time to time.
#[derive(Default)]
struct Duties {
    looked_at: Option<Instant>,
    /// Since when partitions wait for a clean replica.
    waiting_since: Option<Instant>,
    /// Since when each broker has been fenced.
    fenced_since: BTreeMap<NodeId, Instant>,
    /// The image, and the brokers given up by then, for which there was nothing to do.
    settled: Option<(u64, Vec<NodeId>)>,
    /// The last step is being decided.
    under_way: Arc<AtomicBool>,
}

impl Duties {
    fn look(&mut self, core: &Arc<Core>) {
        if self.looked_at.is_some_and(|at| at.elapsed() < DUTY_PERIOD)
            || self.under_way.load(Ordering::Acquire)
        {
            return;
        }
        let now = Instant::now();
        self.looked_at = Some(now);
        let image = core.image();
        let Some(command) = self.next(core.setup.lease, now, &image) else { return };
        let (core, under_way) = (Arc::clone(core), Arc::clone(&self.under_way));
        under_way.store(true, Ordering::Release);
        tokio::spawn(async move {
            if let Err(error) = core.decide(command).await {
                warn!(%error, "a step of the controller was not decided; it looks again");
            }
            under_way.store(false, Ordering::Release);
        });
    }

    fn next(&mut self, lease: Duration, now: Instant, image: &ClusterImage) -> Option<Command> {
        let fenced = image.brokers().filter(|broker| broker.state == BrokerState::Fenced);
        self.fenced_since = fenced
            .map(|broker| (broker.node_id, *self.fenced_since.get(&broker.node_id).unwrap_or(&now)))
            .collect();
        if image.waits_for_clean_replicas() {
            if now.duration_since(*self.waiting_since.get_or_insert(now)) >= lease {
                self.waiting_since = None;
                return Some(Command::ElectDamaged {});
            }
        } else {
            self.waiting_since = None;
        }
        let lost = self.fenced_since.iter().filter(|(_, since)| now.duration_since(**since) >= LOST_AFTER);
        let lost: Vec<NodeId> = lost.map(|(node, _)| *node).collect();
        // Looking through every partition for nothing is not done twice.
        if self.settled.as_ref().is_some_and(|(version, then)| *version == image.version && *then == lost) {
            return None;
        }
        let step = reassignment::next_step(image, &lost);
        self.settled = step.is_none().then_some((image.version, lost));
        step
    }
}

impl Core {
    /// Whether a majority still takes us for the controller; and everything that is committed is applied here then.
    pub(super) async fn confirm(&self) -> Result<(), ApiError> {
        let raft = self.engine()?;
        let lost = |why: String| ApiError::new(ErrorCode::NoController, why);
        match tokio::time::timeout(CONFIRM_TIMEOUT, raft.ensure_linearizable()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(lost(format!("the controller is not confirmed: {error}"))),
            Err(_) => Err(lost("the controller does not reach a majority of the voters".to_owned())),
        }
    }

    /// A command of the controller's own.
    pub(super) async fn decide(&self, command: Command) -> Result<Reply, ApiError> {
        let (outcome, _) = self.propose_here(command, Instant::now() + PROPOSE_TIMEOUT).await?;
        outcome.map_err(|refusal| refused(&refusal))
    }

    /// Refuses what only a controller that knows everything can do.
    fn check_serves(&self) -> Result<(), ApiError> {
        self.check_leads()?;
        if self.view.borrow().serves {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::NoController,
            "the controller has just been elected; try again in a moment",
        ))
    }

    /// A broker comes.
    pub(crate) async fn register_broker(
        self: &Arc<Self>,
        request: &RegisterBrokerRequest,
    ) -> Result<RegisterBrokerReply, ApiError> {
        self.check_serves()?;
        let node_id = NodeId(request.node_id);
        let missing = |what: &str| ApiError::invalid(format!("{what} is missing"));
        let directory_id =
            request.directory_id.map(DirectoryId::from).ok_or_else(|| missing("directory_id"))?;
        let incarnation = request.incarnation.map(u128::from).ok_or_else(|| missing("incarnation"))?;
        self.check_not_twice(node_id, directory_id, incarnation, &request.address).await?;
        let command = registration(request, directory_id, incarnation);
        // Said before it becomes a member: whoever is refused does not get the image either.
        self.try_out(&command).0.map_err(|refusal| refused(&refusal))?;
        self.introduce(node_id, Member { address: request.address.clone(), directory_id }).await?;
        let reply = self.decide(command).await?;
        let Reply::Registered { broker_epoch, version } = reply else {
            return Err(ApiError::new(ErrorCode::Internal, "a registration has another outcome"));
        };
        info!(
            node_id = node_id.get(),
            broker_epoch = broker_epoch.get(),
            address = request.address,
            "broker registered"
        );
        let lease_ms = u64::try_from(self.setup.lease.as_millis()).unwrap_or(u64::MAX);
        self.heard(node_id, broker_epoch);
        Ok(RegisterBrokerReply { broker_epoch: broker_epoch.get(), version, lease_ms })
    }

    /// Refuses a second process with a copy of a directory while the first one runs.
    async fn check_not_twice(
        &self,
        node_id: NodeId,
        directory_id: DirectoryId,
        incarnation: u128,
        address: &str,
    ) -> Result<(), ApiError> {
        if let Some(member) = self.view.borrow().members.get(&node_id)
            && member.directory_id != directory_id
        {
            let cluster = format!("cluster {}", self.image().cluster_id);
            let text = other_directory(node_id, &cluster, member.directory_id, directory_id);
            return Err(ApiError::new(ErrorCode::BrokerConflict, text));
        }
        // A cluster of its own: there is nobody whom a copy could disturb, and nobody to be waited for.
        if node_id == self.setup.node_id && self.view.borrow().members.len() <= 1 {
            return Ok(());
        }
        let image = self.image();
        let Some(known) = image.broker(node_id) else { return Ok(()) };
        if known.incarnation == incarnation || known.directory_id != directory_id || known.address == address
        {
            return Ok(());
        }
        match self.links.probe(&known.address).await {
            Ok(answering)
                if answering.node_id == node_id
                    && answering.directory_id == directory_id
                    && answering.broker_epoch == known.broker_epoch =>
            {
                Err(ApiError::new(
                    ErrorCode::BrokerConflict,
                    format!(
                        "broker {node_id} is running already at {}, and this one at {address} has a copy of its data directory: \
                         stop that one first, or start this one with an empty --data-dir, a new --node-id and --join",
                        known.address
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Makes a broker a learner, so that it gets the image.
    async fn introduce(&self, node_id: NodeId, member: Member) -> Result<(), ApiError> {
        if self.view.borrow().members.contains_key(&node_id) {
            return Ok(());
        }
        let raft = self.engine()?;
        let added = raft.add_learner(u64::from(node_id.get()), member, false);
        match tokio::time::timeout(PROPOSE_TIMEOUT, added).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(membership_error(&error)),
            Err(_) => Err(ApiError::new(ErrorCode::NoController, "the new member is not confirmed in time")),
        }
    }

    /// A broker is alive.
    pub(crate) async fn heartbeat(
        self: &Arc<Self>,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatReply, ApiError> {
        self.check_serves()?;
        let (node_id, epoch) = (NodeId(request.node_id), BrokerEpoch(request.broker_epoch));
        let mut image = self.image();
        let state = registered(&image, node_id, epoch)?;
        self.heard(node_id, epoch);
        let command = match state {
            BrokerState::Starting | BrokerState::Fenced if request.ready => {
                Some(Command::BrokerReady { node_id, broker_epoch: epoch })
            }
            BrokerState::Active | BrokerState::Starting if request.stopping => {
                Some(Command::StopBroker { node_id, broker_epoch: epoch })
            }
            _ => None,
        };
        if let Some(command) = command {
            self.decide(command).await?;
            image = self.image();
        }
        let lease_ms = u64::try_from(self.setup.lease.as_millis()).unwrap_or(u64::MAX);
        Ok(HeartbeatReply {
            lease_ms,
            fenced: registered(&image, node_id, epoch)? == BrokerState::Fenced,
            may_stop: request.stopping && image.may_stop(node_id, epoch),
        })
    }
}

fn registration(request: &RegisterBrokerRequest, directory_id: DirectoryId, incarnation: u128) -> Command {
    Command::RegisterBroker {
        node_id: NodeId(request.node_id),
        directory_id,
        incarnation,
        address: request.address.clone(),
        rack: request.rack.clone(),
        feature_min: request.feature_min,
        feature_max: request.feature_max,
        unclean: request.unclean,
        other_kernel: request.other_kernel,
        flush_failed: request.flush_failed,
    }
}

fn registered(image: &ClusterImage, node_id: NodeId, epoch: BrokerEpoch) -> Result<BrokerState, ApiError> {
    match image.broker(node_id) {
        Some(broker) if broker.broker_epoch == epoch => Ok(broker.state),
        Some(broker) => Err(ApiError::new(
            ErrorCode::StaleBrokerEpoch,
            format!("broker {node_id} is registered with epoch {}, not {epoch}", broker.broker_epoch),
        )),
        None => Err(ApiError::new(
            ErrorCode::StaleBrokerEpoch,
            format!("broker {node_id} is not registered: it was removed from the cluster"),
        )),
    }
}

/// What a change of the members that did not come about is for others.
pub(super) fn membership_error(error: &RaftError<u64, ClientWriteError<u64, Member>>) -> ApiError {
    let code = match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => ErrorCode::NotController,
        _ => ErrorCode::NoController,
    };
    ApiError::new(code, format!("the members cannot be changed now: {error}"))
}
