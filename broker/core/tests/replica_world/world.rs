//! Replicas of one partition and their controller as one deterministic world: the replica machines and the cluster image
//! that run in production, over logs in memory, with a network that cuts, loses and
//! delays, processes that are killed and machines whose power is cut, alone or all at once.

use std::collections::VecDeque;
use std::fmt::Write as _;

use highwater_broker_core::durability::Durability;
use highwater_broker_core::time::Mono;
use highwater_protocol::ids::NodeId;

use super::controller::Controller;
use super::network::{Address, Network, Stream, ToFollower};
use super::oracle::Oracle;
use super::process::Process;
use super::random::Random;
use super::store::Store;

/// What may happen in a history.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    /// Replicas, from 1.
    pub replicas: u32,
    /// How many events before everything works again.
    pub events: u32,
    /// The durability at first.
    pub durability: Durability,
    /// It changes now and then.
    pub durability_changes: bool,
    /// Power cuts and failed flushes happen while the durability is below `fsync` too, so that records may be lost.
    pub loss: bool,
    /// Retention, and followers that start over.
    pub retention: bool,
    /// Flushes fail.
    pub failing_flushes: bool,
}

impl Options {
    /// Three replicas with default settings.
    #[must_use]
    pub(super) const fn new(durability: Durability) -> Self {
        Self {
            replicas: 3,
            events: 400,
            durability,
            durability_changes: false,
            loss: false,
            retention: true,
            failing_flushes: true,
        }
    }
}

/// What has happened, so that histories that have become tame are noticed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    /// Processes killed.
    pub kills: u64,
    /// Machines whose power was cut.
    pub power_cuts: u64,
    /// Times that the power of all was cut at once.
    pub all_cut: u64,
    /// Replicas that began to lead.
    pub elections: u64,
    /// Logs cut.
    pub truncations: u64,
    /// Logs replaced.
    pub resets: u64,
    /// Flushes that failed.
    pub flushes_failed: u64,
    /// Records committed.
    pub committed: u64,
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Records lost where that is allowed.
    pub lost: u64,
}

impl Counts {
    /// Adds another history's.
    pub(super) const fn add(&mut self, other: &Self) {
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
        self.all_cut += other.all_cut;
        self.elections += other.elections;
        self.truncations += other.truncations;
        self.resets += other.resets;
        self.flushes_failed += other.flushes_failed;
        self.committed += other.committed;
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
    }
}

/// A machine.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) store: Store,
    pub(super) process: Option<Process>,
}

/// Events kept for the report of a history that failed.
const TRACE_EVENTS: usize = 4000;

/// The world.
#[derive(Debug)]
pub(super) struct World {
    pub(super) options: Options,
    pub(super) random: Random,
    pub(super) now: Mono,
    /// Microseconds.
    pub(super) wall: i64,
    pub(super) nodes: Vec<Node>,
    pub(super) network: Network,
    pub(super) controller: Controller,
    pub(super) oracle: Oracle,
    /// Sessions that are over without their leader having noticed.
    pub(super) closings: Vec<(Address, u64)>,
    pub(super) next_process: u64,
    pub(super) next_id: u64,
    pub(super) counts: Counts,
    pub(super) traced: bool,
    pub(super) trace: VecDeque<String>,
}

/// Runs one history.
///
/// # Errors
/// What is wrong, with the last events if `traced`.
pub(super) fn run(seed: u64, options: Options, traced: bool) -> Result<Counts, String> {
    let mut world = World::new(seed, options, traced);
    world.begin();
    for _ in 0..options.events {
        world.event();
        if world.has_failed() {
            return Err(world.failure(seed));
        }
    }
    world.settle();
    if world.has_failed() {
        return Err(world.failure(seed));
    }
    let mut counts = world.counts;
    counts.committed = world.oracle.committed();
    counts.acknowledged = world.oracle.acknowledged() as u64;
    counts.lost = world.oracle.lost;
    world.check_end();
    if world.has_failed() {
        return Err(world.failure(seed));
    }
    Ok(counts)
}

impl World {
    fn new(seed: u64, options: Options, traced: bool) -> Self {
        let mut random = Random::new(seed);
        let node = |id| Node { id: NodeId(id), store: Store::default(), process: None };
        let nodes = (1..=options.replicas).map(node).collect();
        Self {
            options,
            now: Mono(1_000_000_000 + random.below(1_000_000)),
            random,
            wall: 1_790_000_000_000_000,
            nodes,
            network: Network::default(),
            controller: Controller::new(),
            oracle: Oracle::default(),
            closings: Vec::new(),
            next_process: 0,
            next_id: 1,
            counts: Counts::default(),
            traced,
            trace: VecDeque::new(),
        }
    }

    /// Every node is started and registered, and the topic is made.
    fn begin(&mut self) {
        let active = |world: &Self| {
            world.controller.image().brokers().filter(|broker| broker.takes_replicas()).count()
        };
        while active(self) < self.nodes.len() {
            for node in 0..self.nodes.len() {
                self.come_up(node);
            }
        }
        self.controller.create_topic(self.options.replicas, self.options.durability);
        for node in 0..self.nodes.len() {
            self.show_image(node, true);
        }
    }

    pub(super) fn has_failed(&mut self) -> bool {
        self.oracle.violations.append(&mut self.controller.violations);
        !self.oracle.violations.is_empty()
    }

    fn failure(&self, seed: u64) -> String {
        let mut text = format!("seed {seed}: {}", self.oracle.violations.join("; "));
        for event in &self.trace {
            let _written = write!(text, "\n  {event}");
        }
        if let Some(partition) = self.controller.partition() {
            let _written = write!(text, "\n  {partition:?}");
        }
        for node in &self.nodes {
            let _written = write!(text, "\n  {:?}", node.process.as_ref().map(|process| &process.replica));
        }
        text
    }

    pub(super) fn trace(&mut self, event: impl FnOnce() -> String) {
        if self.traced {
            if self.trace.len() == TRACE_EVENTS {
                self.trace.pop_front();
            }
            self.trace.push_back(event());
        }
    }

    /// A subscription that its follower has given up. Its leader notices later.
    pub(super) fn drop_stream(&mut self, session: u64) {
        if let Some(stream) = self.network.streams.remove(&session)
            && let (Some(process), Some(_live)) = (stream.leader_process, stream.next)
        {
            self.closings.push((Address { node: stream.leader, process }, session));
        }
    }

    /// The subscriptions at a leader that is none any more. What it has sent still arrives.
    pub(super) fn end_streams_of(&mut self, leader: Address) {
        let of_leader = |stream: &&mut Stream| {
            stream.leader == leader.node && stream.leader_process == Some(leader.process)
        };
        for stream in self.network.streams.values_mut().filter(of_leader) {
            stream.next = None;
            stream.answers.push_back(ToFollower::Refused);
        }
    }
}
