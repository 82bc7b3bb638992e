//! The controller's judgement of who is alive: feeds the pure machine, probes, and fences.

use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::controller::command::Command;
use highwater_broker_core::controller::image::{BrokerState, ClusterImage};
use highwater_broker_core::controller::liveness::{Input, Liveness, Output, Probe};
use highwater_broker_core::time::Mono;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{BrokerEpoch, NodeId};
use tracing::{debug, info, warn};

use super::core::Core;
use super::links::LinkError;

/// The judgement of one time as controller.
#[derive(Debug)]
pub(crate) struct Judgement {
    liveness: Liveness,
    /// The image that it has seen.
    version: u64,
}

impl Judgement {
    fn new(lease: Duration) -> Self {
        Self { liveness: Liveness::new(lease), version: 0 }
    }

    fn see(&mut self, now: Mono, image: &ClusterImage, out: &mut Vec<Output>) {
        if self.version == image.version {
            return;
        }
        self.version = image.version;
        let registrations = image
            .brokers()
            .map(|broker| (broker.node_id, broker.broker_epoch, broker.state == BrokerState::Fenced))
            .collect();
        self.liveness.step(now, Input::Image(registrations), out);
    }
}

impl Core {
    /// Everybody gets a fresh lease, and is probed.
    pub(super) fn begin_judging(self: &Arc<Self>) {
        let mut outputs = Vec::new();
        {
            let now = self.setup.clock.mono();
            let mut judgement = Judgement::new(self.setup.lease);
            judgement.see(now, &self.image(), &mut outputs);
            judgement.liveness.step(now, Input::Leading, &mut outputs);
            *self.judgement.lock() = Some(judgement);
        }
        self.view.send_modify(|view| view.serves = view.leads);
        self.act(outputs);
    }

    /// Nobody is judged any more.
    pub(super) fn end_judging(&self) {
        *self.judgement.lock() = None;
        self.view.send_modify(|view| view.serves = false);
    }

    fn step(self: &Arc<Self>, input: Input) {
        let mut outputs = Vec::new();
        {
            let mut judgement = self.judgement.lock();
            let Some(judgement) = judgement.as_mut() else { return };
            let now = self.setup.clock.mono();
            // Whoever has just registered is known before it is heard of.
            judgement.see(now, &self.image(), &mut outputs);
            judgement.liveness.step(now, input, &mut outputs);
        }
        self.act(outputs);
    }

    /// Time has passed, or the image has changed.
    pub(super) fn judge(self: &Arc<Self>) {
        self.step(Input::Tick);
    }

    /// A sign of life.
    pub(super) fn heard(self: &Arc<Self>, node: NodeId, broker_epoch: BrokerEpoch) {
        self.step(Input::Heartbeat { node, broker_epoch });
    }

    /// A connection of a broker has ended: maybe the broker has, too.
    pub(crate) fn connection_lost(self: &Arc<Self>, node: NodeId) {
        self.step(Input::ConnectionLost { node });
    }

    fn act(self: &Arc<Self>, outputs: Vec<Output>) {
        for output in outputs {
            let core = Arc::clone(self);
            match output {
                Output::Probe { node, broker_epoch, after } => {
                    tokio::spawn(async move {
                        tokio::time::sleep(after).await;
                        let outcome = core.probe(node).await;
                        core.step(Input::Probed { node, broker_epoch, outcome });
                    });
                }
                Output::Fence { node, broker_epoch, why } => {
                    tokio::spawn(async move {
                        // Without a majority nothing was heard of anybody because of us, not because of them. The machine
                        // asks again.
                        if let Err(error) = core.confirm().await {
                            warn!(node_id = node.get(), %error, "a broker seems gone, and this controller cannot tell");
                            return core.renew_judgement();
                        }
                        info!(node_id = node.get(), reason = why.reason(), "broker fenced");
                        if let Err(error) =
                            core.decide(Command::FenceBroker { node_id: node, broker_epoch }).await
                        {
                            // It came again meanwhile: there is nobody to fence.
                            if error.code == ErrorCode::StaleBrokerEpoch {
                                debug!(node_id = node.get(), %error, "the broker is not fenced");
                            } else {
                                warn!(node_id = node.get(), %error, "the broker is not fenced yet");
                            }
                        }
                    });
                }
            }
        }
    }

    /// Starts over: everybody gets a fresh lease.
    fn renew_judgement(self: &Arc<Self>) {
        if self.judgement.lock().is_some() {
            self.begin_judging();
        }
    }

    async fn probe(&self, node: NodeId) -> Probe {
        let Some(broker) = self.image().broker(node).cloned() else { return Probe::Unclear };
        // Whoever judges is there, unless the registration is that of an earlier process.
        if node == self.setup.node_id {
            let ours = broker.incarnation == self.setup.incarnation;
            return Probe::Answered(ours.then_some(broker.broker_epoch));
        }
        match self.links.probe(&broker.address).await {
            Ok(answering) if answering.node_id != node || answering.directory_id != broker.directory_id => {
                Probe::Unclear
            }
            Ok(answering) => Probe::Answered(Some(answering.broker_epoch).filter(|epoch| epoch.get() != 0)),
            Err(LinkError { refused: true, .. }) => Probe::Refused,
            Err(_) => Probe::Unclear,
        }
    }
}
