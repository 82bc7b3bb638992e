//! What happens by chance: one event after another, chosen by the seed.

use std::time::Duration;

use highwater_broker_core::controller::command::Command;
use highwater_broker_core::replica::{Input, Role, SubscribeRefusal, Subscribed};
use highwater_broker_core::time::Mono;
use highwater_protocol::ids::{LeaderEpoch, Offset};

use super::controller::{About, Request};
use super::network::{Address, CONTROLLER, Stream, ToFollower};
use super::process::fetched;
use super::store::Flush;
use super::world::World;

/// Batches in one push, at the most.
const PUSH_BATCHES_MAX: u64 = 3;

/// Pushes on their way in one subscription, at the most.
const PUSHES_MAX: usize = 3;

impl World {
    /// One event.
    pub(super) fn event(&mut self) {
        let node = self.random.index(self.nodes.len());
        match self.random.below(1000) {
            0..230 => self.deliver_stream(),
            230..380 => self.push(),
            380..480 => self.produce(node),
            480..600 => self.flush(node),
            600..700 => self.deliver_ack(),
            700..770 => self.deliver_request(),
            770..860 => self.image_arrives(node),
            860..915 => self.time_passes(),
            915..935 => self.come_up(node),
            935..945 => self.close_a_session(),
            945..953 => self.disturb_network(node),
            953..960 => self.network.heal(),
            960..972 => self.fence(node),
            972..980 => self.kill_one(node),
            980..983 => self.cut_power(node),
            983..985 => self.cut_power_of_all(),
            985..988 => self.stop(node),
            988..991 => self.fail_a_flush(node),
            991..994 => self.change_durability(),
            994..997 => self.retain(node),
            _ => self.elect_damaged(),
        }
    }

    /// A node takes one more step towards being active.
    pub(super) fn come_up(&mut self, node: usize) {
        match &self.nodes[node].process {
            None => self.start(node),
            Some(process) if process.broker_epoch.is_none() => self.register(node),
            Some(_) => self.make_ready(node),
        }
    }

    /// A process registers. The answer may be lost.
    pub(super) fn register(&mut self, node: usize) {
        let id = self.nodes[node].id;
        let Some(process) = &self.nodes[node].process else { return };
        if process.broker_epoch.is_some() || !self.network.reaches(node, CONTROLLER) {
            return;
        }
        let (number, boot) = (process.id, process.boot);
        match self.controller.register(id, number, boot) {
            Ok((broker_epoch, version)) => {
                self.trace(|| format!("node {node} is registered, {boot:?}, {broker_epoch:?}"));
                if !self.network.reaches(CONTROLLER, node) || self.random.percent(5) {
                    return;
                }
                if let Some(process) = &mut self.nodes[node].process {
                    process.broker_epoch = Some(broker_epoch);
                    process.seen = version;
                }
                self.nodes[node].store.boot_reported();
            }
            Err(refusal) => self.oracle.wrong(format!("node {node} is not welcome: {refusal}")),
        }
    }

    /// A registered process says that it is there.
    pub(super) fn make_ready(&mut self, node: usize) {
        let node_id = self.nodes[node].id;
        let Some(process) = &self.nodes[node].process else { return };
        let Some(broker_epoch) = process.broker_epoch else { return };
        let waits = self.controller.awaits_ready(node_id, broker_epoch);
        if waits && self.network.reaches(node, CONTROLLER) {
            let _refused = self.controller.apply(&Command::BrokerReady { node_id, broker_epoch });
        }
    }

    /// Something arrives in one of the subscriptions.
    pub(super) fn deliver_stream(&mut self) {
        let busy = |stream: &Stream| stream.question.is_some() || !stream.answers.is_empty();
        let busy = self.network.streams.iter().filter(|(_, stream)| busy(stream)).map(|(id, _)| *id);
        let busy: Vec<u64> = busy.collect();
        let Some(session) = self.random.pick(&busy).copied() else { return };
        let Some(stream) = self.network.streams.get(&session) else { return };
        let (follower, leader) = (stream.follower, stream.leader);
        if stream.question.is_some() {
            if self.network.reaches(follower.node, leader) {
                self.ask_leader(session);
            } else {
                self.break_stream(session);
            }
        } else if self.network.reaches(leader, follower.node) {
            let answer = self.network.streams.get_mut(&session).and_then(|stream| stream.answers.pop_front());
            if let Some(answer) = answer {
                self.answer_follower(session, follower, answer);
            }
        } else {
            self.break_stream(session);
        }
    }

    fn ask_leader(&mut self, session: u64) {
        let Some(stream) = self.network.streams.get_mut(&session) else { return };
        let leader = stream.leader;
        let Some(process) = &self.nodes[leader].process else { return self.break_stream(session) };
        let Some(check) = stream.question.take() else { return };
        stream.leader_process = Some(process.id);
        let answer = process.replica.check_subscribe(&check);
        stream.answers.push_back(match answer {
            Ok(Subscribed::Live) => {
                stream.next = Some(check.offset.get());
                ToFollower::Following {
                    epoch: process.replica.epoch().get(),
                    high_watermark: process.replica.high_watermark().get(),
                }
            }
            Ok(Subscribed::Diverged { epoch, end_offset }) => {
                ToFollower::Diverged { epoch: epoch.get(), end_offset: end_offset.get() }
            }
            Ok(Subscribed::Reset { log_start }) => ToFollower::ResetOffered { log_start: log_start.get() },
            Err(_) => ToFollower::Refused,
        });
        self.trace(|| format!("session {session}: {check:?}: {answer:?}"));
        if let Err(refusal @ SubscribeRefusal::OutOfRange { .. }) = answer {
            self.oracle.wrong(format!("a follower is told: {refusal}"));
        }
        if let (Ok(Subscribed::Live), Some(replica)) = (answer, check.replica) {
            let (node, broker_epoch) = (replica.node, replica.broker_epoch);
            self.step(leader, Input::SessionOpened { session, node, broker_epoch, log_end: check.offset });
        }
    }

    fn answer_follower(&mut self, session: u64, follower: Address, answer: ToFollower) {
        let current = self.nodes[follower.node]
            .process
            .as_mut()
            .filter(|process| process.id == follower.process && process.session == Some(session));
        let Some(process) = current else { return self.drop_stream(session) };
        let over = !matches!(answer, ToFollower::Following { .. } | ToFollower::Push { .. });
        if over {
            process.session = None;
        }
        let input = match answer {
            ToFollower::Following { epoch, high_watermark } => {
                Input::Following { leader_epoch: LeaderEpoch(epoch), high_watermark: Offset(high_watermark) }
            }
            ToFollower::Diverged { epoch, end_offset } => {
                Input::Diverged { epoch: LeaderEpoch(epoch), end_offset: Offset(end_offset) }
            }
            ToFollower::ResetOffered { log_start } => Input::ResetOffered { log_start: Offset(log_start) },
            ToFollower::Refused => Input::LinkLost,
            ToFollower::Push { batches, epoch, high_watermark } => {
                let described = fetched(&batches);
                process.fetched = batches;
                Input::Fetched {
                    batches: described,
                    leader_epoch: LeaderEpoch(epoch),
                    high_watermark: Offset(high_watermark),
                }
            }
        };
        if over {
            self.network.streams.remove(&session);
        }
        self.step(follower.node, input);
    }

    /// A connection breaks. Its two ends notice one after the other.
    fn break_stream(&mut self, session: u64) {
        let Some(stream) = self.network.streams.get(&session) else { return };
        let follower = stream.follower;
        self.drop_stream(session);
        if let Some(process) = &mut self.nodes[follower.node].process
            && process.id == follower.process
            && process.session == Some(session)
        {
            process.session = None;
            self.step(follower.node, Input::LinkLost);
        }
    }

    /// A leader sends what a follower does not have yet.
    pub(super) fn push(&mut self) {
        let live = self.network.streams.iter();
        let live = live.filter(|(_, stream)| stream.next.is_some() && stream.answers.len() < PUSHES_MAX);
        let live: Vec<u64> = live.map(|(session, _)| *session).collect();
        let Some(session) = self.random.pick(&live).copied() else { return };
        let count = 1 + self.random.below(PUSH_BATCHES_MAX) as usize;
        let Some(stream) = self.network.streams.get_mut(&session) else { return };
        let (leader, Some(next)) = (stream.leader, stream.next) else { return };
        let node = &mut self.nodes[leader];
        let Some(process) = &node.process else { return };
        let high_watermark = process.replica.high_watermark().get();
        let facts = node.store.facts();
        if next >= facts.log_end && stream.told >= high_watermark {
            return;
        }
        if next < facts.log_start {
            return self.break_stream(session);
        }
        let batches = node.store.read(next, count);
        stream.next = Some(batches.last().map_or(next, |last| last.offsets.end));
        stream.told = high_watermark;
        let epoch = process.replica.epoch().get();
        stream.answers.push_back(ToFollower::Push { batches, epoch, high_watermark });
    }

    /// An acknowledgement arrives, perhaps late, perhaps twice, and perhaps not if its session is over.
    pub(super) fn deliver_ack(&mut self) {
        if self.network.acks.is_empty() {
            return;
        }
        let index = self.random.index(self.network.acks.len());
        let ack = self.network.acks[index];
        if !self.random.percent(15) {
            self.network.acks.swap_remove(index);
        }
        let process = self.nodes[ack.to.node].process.as_ref().map(|process| process.id);
        // A connection that lives loses nothing.
        let over = !self.network.streams.contains_key(&ack.session);
        if process == Some(ack.to.process) && !(over && self.random.percent(30)) {
            let (leader_epoch, broker_epoch) = (ack.epoch, ack.broker_epoch);
            let session = ack.session;
            self.step(ack.to.node, Input::Acked { session, leader_epoch, broker_epoch, ends: ack.ends });
        }
    }

    /// A leader notices that a session is over.
    pub(super) fn close_a_session(&mut self) {
        if self.closings.is_empty() {
            return;
        }
        let index = self.random.index(self.closings.len());
        let (leader, session) = self.closings.swap_remove(index);
        let process = self.nodes[leader.node].process.as_ref().map(|process| process.id);
        if process == Some(leader.process) {
            self.step(leader.node, Input::SessionClosed { session });
        }
    }

    /// The controller gets a request. The request, the answer or both may be lost, and a copy may come again.
    pub(super) fn deliver_request(&mut self) {
        if self.controller.requests.is_empty() {
            return;
        }
        let index = self.random.index(self.controller.requests.len());
        let request = self.controller.requests.swap_remove(index);
        let arrives = self.network.reaches(request.from.node, CONTROLLER) && !self.random.percent(3);
        let mut outcome = None;
        if arrives {
            outcome = Some(self.controller.apply(&request.command));
            self.trace(|| format!("controller: {:?}: {outcome:?}", request.command));
        }
        let answered = arrives && self.network.reaches(CONTROLLER, request.from.node);
        if arrives && self.random.percent(10) {
            let copy = Request { from: Address { node: request.from.node, process: 0 }, ..request.clone() };
            self.controller.requests.push(copy);
        }
        let process = self.nodes[request.from.node].process.as_ref().map(|process| process.id);
        if process != Some(request.from.process) {
            return;
        }
        let accepted = outcome.is_some_and(|outcome| outcome.is_ok());
        match request.about {
            // Whoever asks goes on asking until there is an answer.
            About::Durability(_) | About::Report if !answered => self.controller.requests.push(request),
            About::Durability(durability) if accepted => {
                self.step(request.from.node, Input::DurabilityRecorded(durability));
            }
            About::InSync(version) if !answered || !accepted => {
                self.step(request.from.node, Input::ProposalRefused { version });
            }
            About::InSync(_) | About::Durability(_) | About::Report => {}
        }
    }

    fn image_arrives(&mut self, node: usize) {
        if self.network.reaches(CONTROLLER, node) {
            let newest = self.random.percent(70);
            self.show_image(node, newest);
        }
    }

    fn time_passes(&mut self) {
        let most = if self.random.percent(5) { 4_000 } else { 150 };
        let passed = Duration::from_millis(1 + self.random.below(most));
        self.pass(passed);
    }

    /// Lets time pass, and tells who has waited for it.
    pub(super) fn pass(&mut self, passed: Duration) {
        self.now = self.now.after(passed);
        self.wall += passed.as_micros() as i64;
        for node in 0..self.nodes.len() {
            let due = |deadline: Mono| deadline <= self.now;
            let process = self.nodes[node].process.as_ref();
            if process.and_then(|process| process.replica.next_deadline()).is_some_and(due) {
                self.step(node, Input::Tick);
            }
        }
    }

    /// A flush begins, or one that has begun is over.
    pub(super) fn flush(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else { return };
        if process.verify {
            return self.verify(node);
        }
        if self.random.percent(40) || process.replica.durability_gate().waits_for_flush() {
            self.nodes[node].store.request_flush();
        }
        if self.random.percent(30) {
            return;
        }
        // The durability may be another one than when the fault was planned.
        if self.nodes[node].store.forgive() && self.may_lose("a failed flush") {
            self.nodes[node].store.fail_a_flush();
        }
        let random = &mut self.random;
        match self.nodes[node].store.complete_flush(random) {
            Some(Flush::Done { generation, upto }) => {
                let upto = Offset(upto);
                self.step(node, Input::Flushed { log_generation: generation, upto });
            }
            Some(Flush::Failed { generation }) => {
                self.counts.flushes_failed += 1;
                self.step(node, Input::FlushFailed { log_generation: generation });
            }
            None => {}
        }
    }

    /// The log of a replica that is suspect is verified.
    pub(super) fn verify(&mut self, node: usize) {
        let seed = self.random.next_u64();
        self.nodes[node].store.verify(seed);
        let facts = self.nodes[node].store.facts();
        if let Some(process) = &mut self.nodes[node].process {
            process.verify = false;
            // What was not flushed may be gone, although it was committed: others have it.
            process.checked = process.checked.min(facts.log_end);
        }
        let log_end = Offset(facts.log_end);
        self.step(node, Input::Verified { log_generation: facts.generation, log_end });
    }

    fn disturb_network(&mut self, node: usize) {
        let others: Vec<usize> = (0..self.nodes.len()).chain([CONTROLLER]).filter(|at| *at != node).collect();
        let all = self.random.percent(30);
        let Some(one) = self.random.pick(&others).copied() else { return };
        let both = self.random.percent(60);
        for other in others {
            if all || other == one {
                self.network.cut(node, other);
                if both {
                    self.network.cut(other, node);
                }
            }
        }
    }

    /// The controller gives a node up: more often one that is dead or out of reach than one that is only slow.
    fn fence(&mut self, node: usize) {
        let gone = self.nodes[node].process.is_none() || !self.network.reaches(node, CONTROLLER);
        if gone || self.random.percent(15) {
            self.fence_now(node);
        }
    }

    /// The controller gives a node up.
    pub(super) fn fence_now(&mut self, node: usize) {
        let node_id = self.nodes[node].id;
        let broker_epoch = self.controller.image().broker(node_id).map(|broker| broker.broker_epoch);
        if let Some(broker_epoch) = broker_epoch {
            self.trace(|| format!("node {node} is fenced"));
            let _refused = self.controller.apply(&Command::FenceBroker { node_id, broker_epoch });
        }
    }

    fn elect_damaged(&mut self) {
        if self.controller.image().waits_for_clean_replicas() {
            let _refused = self.controller.apply(&Command::ElectDamaged {});
        }
    }

    fn kill_one(&mut self, node: usize) {
        if self.nodes[node].process.is_some() {
            self.trace(|| format!("node {node} is killed"));
            self.counts.kills += 1;
            self.nodes[node].store.kill();
            self.bury(node);
        }
    }

    /// Whether what a power cut or a failed flush takes may have been acknowledged, and whether that is wanted.
    fn may_lose(&mut self, why: &str) -> bool {
        if self.controller.is_fsync() {
            return true;
        }
        if self.options.loss {
            self.oracle.allow_loss(why);
        }
        self.options.loss
    }

    fn cut_power(&mut self, node: usize) {
        if !self.may_lose("a power cut") {
            return self.kill_one(node);
        }
        self.power_off(node);
    }

    fn power_off(&mut self, node: usize) {
        self.trace(|| format!("node {node} loses its power"));
        self.counts.power_cuts += 1;
        let seed = self.random.next_u64();
        self.nodes[node].store.power_cut(seed);
        self.bury(node);
    }

    fn cut_power_of_all(&mut self) {
        if self.may_lose("a power cut of all") {
            self.counts.all_cut += 1;
            for node in 0..self.nodes.len() {
                self.power_off(node);
            }
        }
    }

    /// A process ends in order.
    fn stop(&mut self, node: usize) {
        let node_id = self.nodes[node].id;
        let Some(process) = &self.nodes[node].process else { return };
        if process.verify {
            return;
        }
        if let Some(broker_epoch) = process.broker_epoch
            && self.network.reaches(node, CONTROLLER)
        {
            let _refused = self.controller.apply(&Command::StopBroker { node_id, broker_epoch });
        }
        self.trace(|| format!("node {node} stops"));
        self.nodes[node].store.stop();
        self.bury(node);
    }

    fn fail_a_flush(&mut self, node: usize) {
        if self.options.failing_flushes && self.may_lose("a failed flush") {
            self.nodes[node].store.fail_a_flush();
        }
    }

    fn change_durability(&mut self) {
        if self.options.durability_changes {
            let value = self.random.pick(&["fsync", "fsync", "os", "interval(20ms)"]).copied();
            self.controller.alter_topic("durability", value.unwrap_or("fsync"));
            self.trace(|| format!("durability {value:?}"));
        }
    }

    fn retain(&mut self, node: usize) {
        if !self.options.retention {
            return;
        }
        let Some(process) = &self.nodes[node].process else { return };
        if process.verify || process.replica.role() == Role::Idle {
            return;
        }
        // Only what is flushed is let go: segments are synced when they are sealed.
        let most = process.replica.high_watermark().min(process.replica.ends().flushed_end);
        let upto = self.random.below(most.get() + 1);
        self.nodes[node].store.retain(upto);
        let log_start = Offset(self.nodes[node].store.facts().log_start);
        self.step(node, Input::LogStart { log_start });
    }
}
