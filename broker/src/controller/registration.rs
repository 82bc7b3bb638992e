//! This broker's place in the cluster: it registers, keeps its lease by heartbeats, and registers again when it is told
//! that it is not known.

use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::controller::command::{FEATURE_LEVEL_MAX, FEATURE_LEVEL_MIN};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::BrokerEpoch;
use highwater_protocol::messages::{
    HeartbeatReply, HeartbeatRequest, RegisterBrokerReply, RegisterBrokerRequest,
};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use super::core::Core;
use crate::api::ApiError;

/// How often the lease is renewed.
const HEARTBEAT_PERIOD: Duration = Duration::from_millis(200);
/// How long a heartbeat may take; a later one is as good.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(600);
/// How long one attempt to register may take.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two attempts, unless the controller changes earlier.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How often an operator is told that the broker is still not registered.
const REPORT_PERIOD: Duration = Duration::from_secs(5);

/// Registers and keeps the registration, for as long as the controller's thread runs.
pub(super) async fn run(core: Arc<Core>) {
    let mut reported: Option<Instant> = None;
    let mut before = false;
    loop {
        let mut view = core.view.subscribe();
        view.borrow_and_update();
        match register(&core).await {
            Ok(epoch) => {
                before = true;
                reported = None;
                *core.waits_for.lock() = None;
                info!(broker_epoch = epoch.get(), "registered");
                core.registration.send_replace(Some(epoch));
                let why = keep(&core, epoch).await;
                core.registration.send_replace(None);
                *core.waits_for.lock() = Some(why.message.clone());
                warn!(%why, "the registration is gone; registering again");
                continue;
            }
            Err(error) if !before && is_final(error.code) => {
                core.give_up(error.message);
                return;
            }
            Err(error) => {
                if core.view.borrow().initialised {
                    *core.waits_for.lock() = Some(error.message.clone());
                }
                if reported.is_none_or(|at| at.elapsed() >= REPORT_PERIOD) {
                    if reported.is_some() || error.code == ErrorCode::BrokerConflict {
                        warn!(%error, "not registered yet");
                    }
                    reported = Some(Instant::now());
                }
            }
        }
        let _changed_or_not = tokio::time::timeout(RETRY_PAUSE, view.changed()).await;
    }
}

/// Whether a broker that has never been registered should not go on trying.
fn is_final(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::BrokerConflict | ErrorCode::NotAuthorized | ErrorCode::WrongCluster)
}

/// Registers, and waits until the image here has the registration.
async fn register(core: &Arc<Core>) -> Result<BrokerEpoch, ApiError> {
    let (setup, request) = (&core.setup, core.registration_request());
    let deadline = Instant::now() + REGISTER_TIMEOUT;
    let reply: RegisterBrokerReply = if core.view.borrow().leads {
        core.register_broker(&request).await?
    } else {
        // Whoever is in no cluster yet is introduced by the broker that it was told to join.
        let address = core.controller_address().or_else(|| setup.join.clone()).ok_or_else(|| {
            ApiError::new(
                ErrorCode::NoController,
                "there is no controller: too few of the voters run or reach each other",
            )
        })?;
        core.links.request(&address, &request, deadline).await.map_err(|error| error.into_api())?
    };
    core.wait_for_version(reply.version, deadline.max(Instant::now() + REGISTER_TIMEOUT)).await?;
    Ok(BrokerEpoch(reply.broker_epoch))
}

/// Keeps the lease until the registration is gone, and says why it is.
async fn keep(core: &Arc<Core>, epoch: BrokerEpoch) -> ApiError {
    let mut ticks = tokio::time::interval(HEARTBEAT_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut own, mut view) = (core.own.subscribe(), core.view.subscribe());
    loop {
        // What the controller has to know goes at once; so does the first sign of life to a new one.
        tokio::select! {
            _ = ticks.tick() => {}
            _ = own.changed() => {}
            _ = view.changed() => {}
        }
        own.borrow_and_update();
        view.borrow_and_update();
        match heartbeat(core, epoch).await {
            Ok(reply) => {
                if reply.may_stop {
                    core.own.send_if_modified(|own| {
                        let first = own.stopping && !own.may_stop;
                        own.may_stop |= first;
                        first
                    });
                }
            }
            Err(error) if error.code == ErrorCode::StaleBrokerEpoch => return error,
            // No controller at the moment, or none that is ready: the next heartbeat may find one.
            Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
        }
    }
}

async fn heartbeat(core: &Arc<Core>, epoch: BrokerEpoch) -> Result<HeartbeatReply, ApiError> {
    let own = *core.own.borrow();
    let request = HeartbeatRequest {
        node_id: core.setup.node_id.get(),
        broker_epoch: epoch.get(),
        version: core.image().version,
        ready: own.ready && !own.stopping,
        stopping: own.stopping,
    };
    if core.view.borrow().leads {
        return core.heartbeat(&request).await;
    }
    let address = core
        .controller_address()
        .ok_or_else(|| ApiError::new(ErrorCode::NoController, "there is no controller at the moment"))?;
    let deadline = Instant::now() + HEARTBEAT_TIMEOUT;
    core.links.request(&address, &request, deadline).await.map_err(|error| error.into_api())
}

impl Core {
    /// What this broker registers with.
    pub(super) fn registration_request(&self) -> RegisterBrokerRequest {
        let setup = &self.setup;
        RegisterBrokerRequest {
            node_id: setup.node_id.get(),
            directory_id: Some(setup.directory_id.into()),
            incarnation: Some(setup.incarnation.into()),
            address: setup.address.clone(),
            rack: setup.rack.clone(),
            feature_min: FEATURE_LEVEL_MIN,
            feature_max: FEATURE_LEVEL_MAX,
            unclean: setup.boot.unclean,
            other_kernel: setup.boot.other_kernel,
            flush_failed: setup.boot.flush_failed,
        }
    }

    /// Passes the registration of a broker that knows only us on to the controller.
    pub(crate) async fn introduce_to_controller(
        &self,
        request: &RegisterBrokerRequest,
    ) -> Result<RegisterBrokerReply, ApiError> {
        let address = self
            .controller_address()
            .ok_or_else(|| ApiError::new(ErrorCode::NoController, "there is no controller at the moment"))?;
        let reply = self.links.request(&address, request, Instant::now() + REGISTER_TIMEOUT).await;
        reply.map_err(|error| error.into_api())
    }
}
