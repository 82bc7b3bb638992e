//! A simulated broker process: the shell around the replica machine, its real outputs carried out on the store, the
//! network and the controller.

use std::collections::VecDeque;

use highwater_broker_core::controller::command::{Command, ReplicaEnds, ReplicaProblem};
use highwater_broker_core::replica::{
    Condition, Ends, FetchedBatch, Input, Opened, Output, Problem, Replica, Role, SubscribeCheck, Subscriber,
};
use highwater_broker_core::time::Wall;
use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, Offset};

use super::controller::{About, PARTITION, Request, assignment};
use super::network::{Ack, Address, Stream, ToFollower};
use super::store::{Batch, Boot, Store};
use super::world::World;

/// A running process.
#[derive(Debug)]
pub(super) struct Process {
    /// Which one; never used twice.
    pub id: u64,
    /// The machine.
    pub replica: Replica,
    /// What it has to tell about the end of the one before.
    pub boot: Boot,
    /// Its registration, once it has one.
    pub broker_epoch: Option<BrokerEpoch>,
    /// The newest image that it has seen; at least its registration's.
    pub seen: u64,
    /// Its subscription as a follower.
    pub session: Option<u64>,
    /// What was fetched last.
    pub fetched: Vec<Batch>,
    /// Batches whose producers wait.
    pub waiters: Vec<Batch>,
    /// Its log has to be verified.
    pub verify: bool,
    /// Up to where the high watermark has been looked at.
    pub checked: u64,
}

impl World {
    /// Starts a process on a node where none runs.
    pub(super) fn start(&mut self, node: usize) {
        if self.nodes[node].process.is_some() {
            return;
        }
        let image = self.controller.image();
        let wanted = image.topic(PARTITION.topic_id).map(|topic| topic.config.durability).unwrap_or_default();
        let effective = image.partition(PARTITION).map_or(wanted, |partition| partition.durability_effective);
        let boot = self.nodes[node].store.start();
        let facts = self.nodes[node].store.facts();
        let replica = Replica::open(Opened {
            node: self.nodes[node].id,
            log_start: Offset(facts.log_start),
            log_end: Offset(facts.log_end),
            flushed_end: Offset(facts.flushed_end),
            high_watermark: Offset(facts.durable_end.max(facts.log_start)),
            log_generation: facts.generation,
            append_time: facts.append_time,
            epochs: facts.epochs,
            durability_wanted: wanted,
            durability_effective: effective,
        });
        self.next_process += 1;
        let checked = replica.high_watermark().get();
        self.trace(|| format!("node {node} starts as process, {boot:?}, log end {}", facts.log_end));
        self.nodes[node].process = Some(Process {
            id: self.next_process,
            replica,
            boot,
            broker_epoch: None,
            seen: 0,
            session: None,
            fetched: Vec::new(),
            waiters: Vec::new(),
            verify: false,
            checked,
        });
    }

    /// The process of a node that is no more: what it had is let go.
    pub(super) fn bury(&mut self, node: usize) {
        let Some(process) = self.nodes[node].process.take() else { return };
        let address = Address { node, process: process.id };
        if let Some(session) = process.session {
            self.drop_stream(session);
        }
        self.end_streams_of(address);
    }

    /// Gives an input to a node's machine and does what follows from it.
    pub(super) fn step(&mut self, node: usize, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let now = self.now;
            let Some(process) = &mut self.nodes[node].process else { return };
            let mut out = Vec::new();
            process.replica.step(now, input, &mut out);
            for output in out {
                self.execute(node, output, &mut inputs);
            }
        }
        self.look_at(node);
    }

    fn execute(&mut self, node: usize, output: Output, inputs: &mut VecDeque<Input>) {
        self.trace(|| format!("node {node}: {output:?}"));
        let Some(process) = &mut self.nodes[node].process else { return };
        let address = Address { node, process: process.id };
        match output {
            Output::HighWatermark(_) | Output::FlushedEnd(_) | Output::Resumed { .. } => {}
            Output::FlushBy(_) => self.nodes[node].store.request_flush(),
            Output::VerifyLog => {
                process.verify = true;
                process.waiters.clear();
            }
            Output::RecordDurability(durability) => {
                let leader_epoch = Some(process.replica.epoch());
                let command = Command::RecordDurability { partition: PARTITION, leader_epoch, durability };
                self.controller.requests.push(Request {
                    from: address,
                    about: About::Durability(durability),
                    command,
                });
            }
            Output::Propose { version, leader_epoch, in_sync } => {
                let broker_epoch = process.broker_epoch.unwrap_or_default();
                let node_id = self.nodes[node].id;
                let partition = PARTITION;
                let command =
                    Command::AlterInSync { partition, node_id, broker_epoch, leader_epoch, version, in_sync };
                self.controller.requests.push(Request {
                    from: address,
                    about: About::InSync(version),
                    command,
                });
            }
            Output::StartLeading { epoch } => self.begins_to_lead(node, address, epoch),
            Output::StopLeading => {
                process.waiters.clear();
                self.end_streams_of(address);
            }
            Output::Subscribe { leader, epoch, offset, last_epoch } => {
                let broker_epoch = process.broker_epoch.unwrap_or_default();
                let check = SubscribeCheck {
                    replica: Some(Subscriber { node: self.nodes[node].id, broker_epoch }),
                    current_epoch: Some(epoch),
                    offset,
                    last_epoch,
                };
                self.subscribe(node, (leader.get() - 1) as usize, check);
            }
            Output::EndSession { session } => {
                if let Some(stream) = self.network.streams.get_mut(&session) {
                    stream.next = None;
                    stream.answers.push_back(ToFollower::Refused);
                }
            }
            Output::Unsubscribe => {
                if let Some(session) = process.session.take() {
                    self.drop_stream(session);
                }
            }
            Output::Append => inputs.push_back(self.append_fetched(node)),
            Output::Truncate { to } => inputs.push_back(self.truncate(node, to)),
            Output::Reset => inputs.push_back(self.reset(node)),
            Output::SendAck { leader_epoch, ends } => self.send_ack(node, leader_epoch, ends),
            Output::Report(problem) => self.report(node, address, problem),
        }
    }

    fn send_ack(&mut self, node: usize, epoch: LeaderEpoch, ends: Ends) {
        if let Some(process) = &self.nodes[node].process
            && let Some(session) = process.session
            && let Some(stream) = self.network.streams.get(&session)
            && let Some(leader_process) = stream.leader_process
        {
            let to = Address { node: stream.leader, process: leader_process };
            let broker_epoch = process.broker_epoch.unwrap_or_default();
            self.network.acks.push(Ack { to, session, epoch, broker_epoch, ends });
        }
    }

    fn begins_to_lead(&mut self, node: usize, address: Address, epoch: LeaderEpoch) {
        let facts = self.nodes[node].store.facts();
        let log = self.nodes[node].store.read(facts.log_start, usize::MAX);
        let who = (self.nodes[node].id.get(), address.process);
        let kept = self.oracle.leads(epoch.get(), who, facts.log_start, &log);
        if let (Some(kept), Some(process)) = (kept, &mut self.nodes[node].process) {
            process.checked = process.checked.min(kept);
        }
        self.counts.elections += 1;
    }

    fn report(&mut self, node: usize, from: Address, problem: Problem) {
        let problem = match problem {
            Problem::Suspect => ReplicaProblem::Suspect,
            Problem::Recovered => ReplicaProblem::Recovered,
            Problem::Refused { to, high_watermark } => {
                let text = format!("node {node} was to cut its log to {to}, below {high_watermark}");
                return self.oracle.wrong(format!("I1: {text}"));
            }
        };
        let command = Command::ReportReplica {
            partition: PARTITION,
            node_id: self.nodes[node].id,
            broker_epoch: self.broker_epoch(node),
            problem,
            ends: None,
        };
        self.controller.requests.push(Request { from, about: About::Report, command });
    }

    /// The newest image that reaches a node, or an older one that it has not seen.
    pub(super) fn show_image(&mut self, node: usize, newest: bool) {
        let latest = self.controller.image().version;
        let Some(process) = &mut self.nodes[node].process else { return };
        let Some(own_epoch) = process.broker_epoch else { return };
        let seen = process.seen;
        let version = if newest { latest } else { self.random.within(seen..latest + 1) };
        process.seen = version;
        let image = self.controller.image_at(version);
        let Some(assignment) = assignment(image) else { return };
        let partition = image.partition(PARTITION);
        let told = |node_id| {
            partition.is_some_and(|known| {
                known.reports.iter().any(|told| told.node_id == node_id && told.broker_epoch == own_epoch)
            })
        };
        let nobody =
            assignment.leader.is_none() && assignment.in_sync.is_empty() && assignment.eligible.is_empty();
        if nobody && !told(self.nodes[node].id) {
            self.report_ends(node, own_epoch);
        }
        self.step(node, Input::Assigned { assignment, own_epoch });
    }

    fn report_ends(&mut self, node: usize, broker_epoch: BrokerEpoch) {
        let facts = self.nodes[node].store.facts();
        let last_epoch = facts.epochs.last().map_or(LeaderEpoch(0), |last| last.epoch);
        let ends = Some(ReplicaEnds { last_epoch, log_end: Offset(facts.log_end) });
        let Some(process) = &self.nodes[node].process else { return };
        if process.verify {
            return;
        }
        let from = Address { node, process: process.id };
        let (partition, node_id) = (PARTITION, self.nodes[node].id);
        let problem = ReplicaProblem::Ends;
        let command = Command::ReportReplica { partition, node_id, broker_epoch, problem, ends };
        self.controller.requests.push(Request { from, about: About::Report, command });
    }

    fn subscribe(&mut self, node: usize, leader: usize, question: SubscribeCheck) {
        let session = self.network.session();
        let Some(process) = &mut self.nodes[node].process else { return };
        let follower = Address { node, process: process.id };
        if let Some(before) = process.session.replace(session) {
            self.drop_stream(before);
        }
        let stream = Stream {
            follower,
            leader,
            leader_process: None,
            question: Some(question),
            answers: VecDeque::new(),
            next: None,
            told: 0,
        };
        self.network.streams.insert(session, stream);
    }

    fn append_fetched(&mut self, node: usize) -> Input {
        let node = &mut self.nodes[node];
        let fetched = node.process.as_mut().map(|process| std::mem::take(&mut process.fetched));
        node.store.append(&fetched.unwrap_or_default());
        let facts = node.store.facts();
        Input::Appended { log_end: Offset(facts.log_end), append_time: facts.append_time }
    }

    fn truncate(&mut self, node: usize, to: Offset) -> Input {
        self.counts.truncations += 1;
        let store = &mut self.nodes[node].store;
        store.truncate(to.get());
        let facts = store.facts();
        Input::Truncated {
            log_generation: facts.generation,
            log_end: Offset(facts.log_end),
            flushed_end: Offset(facts.flushed_end),
        }
    }

    /// Asks the leader for its log start and starts over there.
    fn reset(&mut self, node: usize) -> Input {
        let leader = self.nodes[node].process.as_ref().and_then(|process| process.replica.leader());
        let leader = leader.map(|leader| (leader.get() - 1) as usize);
        let Some(leader) = leader.filter(|leader| self.network.reaches(*leader, node)) else {
            return Input::LinkLost;
        };
        let leads = |process: &Process| process.replica.role() == Role::Leader;
        if !self.nodes[leader].process.as_ref().is_some_and(leads) {
            return Input::LinkLost;
        }
        let facts = self.nodes[leader].store.facts();
        let epochs: Vec<_> =
            facts.epochs.into_iter().filter(|epoch| epoch.start.get() <= facts.log_start).collect();
        let store = &mut self.nodes[node].store;
        self.counts.resets += 1;
        store.reset(facts.log_start, &epochs);
        let log_generation = store.facts().generation;
        Input::WasReset { log_generation, log_start: Offset(facts.log_start), epochs }
    }

    /// A producer sends to a node that thinks it leads.
    pub(super) fn produce(&mut self, node: usize) {
        let wall = Wall(self.wall);
        let Some(process) = &self.nodes[node].process else { return };
        if process.replica.role() != Role::Leader || !process.replica.has_quorum() {
            return;
        }
        let mut stamper = process.replica.stamper(wall);
        let mut batches = Vec::new();
        for _ in 0..1 + self.random.below(2) {
            let count = 1 + self.random.below(3);
            let Some(stamp) = stamper.next(count) else { return };
            let ids = self.next_id..self.next_id + count;
            self.next_id = ids.end;
            self.check_durable(node, stamp.durable_end.get());
            batches.push(Store::batch(stamp, ids));
        }
        let store = &mut self.nodes[node].store;
        store.append(&batches);
        let facts = store.facts();
        if let Some(process) = &mut self.nodes[node].process {
            process.waiters.extend(batches);
        }
        self.step(node, Input::Appended { log_end: Offset(facts.log_end), append_time: facts.append_time });
    }

    /// I6.
    fn check_durable(&mut self, node: usize, durable_end: u64) {
        let Some(process) = &self.nodes[node].process else { return };
        let Some(set) = process.replica.in_sync() else { return };
        let members: Vec<_> = set.decided().iter().map(|(member, _)| (member.get() - 1) as usize).collect();
        for member in members {
            let Some(_running) = &self.nodes[member].process else { continue };
            let flushed = self.nodes[member].store.facts().flushed_end;
            if flushed < durable_end && !self.oracle.allows_loss() {
                self.oracle.wrong(format!(
                    "I6: node {node} stamps {durable_end} as durable, node {member} has flushed {flushed}"
                ));
            }
        }
    }

    /// Holds the machine against the oracle, and answers producers.
    fn look_at(&mut self, node: usize) {
        let id = self.nodes[node].id.get();
        let Some(process) = &mut self.nodes[node].process else { return };
        let watermark = process.replica.high_watermark().get();
        let from = process.checked;
        process.checked = watermark;
        let is_leader = process.replica.role() == Role::Leader;
        let reached = |batch: &Batch| {
            process.replica.reached(Condition::Committed(Offset(batch.offsets.end))).is_some()
        };
        let (done, wait): (Vec<_>, Vec<_>) =
            std::mem::take(&mut process.waiters).into_iter().partition(reached);
        process.waiters = wait;
        if watermark < from && !self.oracle.allows_loss() {
            self.oracle.wrong(format!("I4: the high watermark of node {id} goes from {from} to {watermark}"));
        }
        if watermark > from {
            let store = &mut self.nodes[node].store;
            let start = from.max(store.facts().log_start);
            let log = store.read(start, usize::MAX);
            self.oracle.watermark(id, is_leader, from, watermark, &log);
        }
        for batch in done {
            for (offset, record) in batch.offsets.clone().zip(batch.first_id..) {
                self.oracle.acknowledged_at(record, offset);
            }
        }
    }

    fn broker_epoch(&self, node: usize) -> BrokerEpoch {
        self.nodes[node].process.as_ref().and_then(|process| process.broker_epoch).unwrap_or_default()
    }
}

/// What a push says about its batches.
#[must_use]
pub(super) fn fetched(batches: &[Batch]) -> Vec<FetchedBatch> {
    let of = |batch: &Batch| FetchedBatch {
        base_offset: Offset(batch.offsets.start),
        end_offset: Offset(batch.offsets.end),
        epoch: LeaderEpoch(batch.epoch),
        append_time: batch.append_time,
    };
    batches.iter().map(of).collect()
}
