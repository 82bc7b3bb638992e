//! Three replicas of one partition: the shipping machines over the shipping logs on three simulated disks, with the
//! shipping metadata, under crashes, power cuts, failing flushes, cut links and late news.
//!
//! What is simulated is the world around them: messages that wait, links that end, processes that die. Metadata is
//! decided by one controller that never loses anything; consensus has tests of its own.

mod actions;
mod controller;
mod execute;
pub mod links;
pub mod process;
pub mod truth;

use std::path::Path;
use std::time::Duration;

use highwater_broker_core::durability::Durability;
use highwater_broker_core::replica::{Input, Role};
use highwater_broker_core::time::Mono;
use highwater_protocol::ids::NodeId;

use super::disk::{Flushes, SimDisk};
use super::log_world::{ROOT, contents};
use super::random::Random;
use controller::Controller;
use links::Link;
use process::{Process, Started};
use truth::Truth;

/// How many replicas there are.
pub const REPLICAS: u32 = 3;

/// Steps in which a cluster whose faults are over has to serve again.
const HEALING_STEPS: u32 = 3000;

/// What may go wrong in a history.
#[derive(Debug, Clone, Copy)]
pub struct Dangers {
    /// Crashes are power cuts, of one or of all; else kills.
    pub power_cuts: bool,
    /// Flushes fail.
    pub failing_flushes: bool,
    /// The durability that the topic begins with.
    pub durability: Durability,
    /// It is changed now and then.
    pub durability_changes: bool,
}

/// One machine with its disk, and the broker on it while it runs.
#[derive(Debug)]
pub struct Machine {
    /// Its broker.
    pub id: NodeId,
    /// Its disk.
    pub disk: SimDisk,
    /// The broker.
    pub process: Option<Process>,
}

/// What a history has seen, so that tame ones are noticed.
#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Processes that died.
    pub crashes: u64,
    /// Times that all died at once.
    pub crashes_of_all: u64,
    /// Leaderships.
    pub leaderships: u64,
    /// Logs that were cut by their leader's word.
    pub truncations: u64,
    /// Flushes that failed.
    pub flushes_failed: u64,
    /// Proposals that were refused.
    pub refused: u64,
    /// Logs that had lost what others had told them was flushed.
    pub repaired: u64,
    /// Changes of the durability that were recorded.
    pub recorded: u64,
}

/// The whole world.
#[derive(Debug)]
pub struct World {
    /// Decides everything.
    pub random: Random,
    /// What may go wrong.
    pub dangers: Dangers,
    /// The machines.
    pub machines: Vec<Machine>,
    /// What clients know.
    pub truth: Truth,
    /// What happened.
    pub seen: Seen,
    controller: Controller,
    links: Vec<Link>,
    now: Mono,
    next_record: u64,
    next_process: u64,
    next_link: u64,
}

impl World {
    /// Three running brokers with an empty partition.
    ///
    /// # Errors
    /// When they do not start.
    pub fn new(seed: u64, dangers: Dangers) -> Result<Self, String> {
        let mut random = Random::new(seed);
        let machines = (1..=REPLICAS).map(|id| Machine::new(NodeId(id), random.next_u64())).collect();
        let mut world = Self {
            random,
            dangers,
            machines,
            truth: Truth::default(),
            seen: Seen::default(),
            controller: Controller::new(REPLICAS, dangers.durability)?,
            links: Vec::new(),
            now: Mono(1_000_000_000),
            next_record: 0,
            next_process: 0,
            next_link: 0,
        };
        for index in 0..world.machines.len() {
            world.start(index)?;
        }
        Ok(world)
    }

    /// Starts the broker of a machine, which registers. Power may be lost meanwhile.
    ///
    /// # Errors
    /// When it does not start although nothing is broken.
    pub fn start(&mut self, index: usize) -> Result<(), String> {
        let durability = self.controller.durability_gate();
        let machine = &mut self.machines[index];
        let started = match Started::open(&machine.disk, durability) {
            Ok(started) => started,
            Err(error) if machine.disk.has_power() && !self.dangers.failing_flushes => {
                return Err(format!("broker {} does not start: {error}", machine.id));
            }
            Err(_) => return self.crash(&[index]),
        };
        let mut started = started;
        if started.damaged {
            // What a batch says about its predecessors is true of the members of the sets; whoever is in neither may have
            // lost some of them, and fetches them again.
            if self.controller.is_member(machine.id) {
                return Err(format!("broker {}, a member, has lost what was flushed", machine.id));
            }
            self.seen.repaired += 1;
            if started.cut_at_damage().is_err() {
                return self.crash(&[index]);
            }
        }
        self.next_process += 1;
        let registration = self.controller.register(machine.id, self.next_process, started.boot)?;
        let process = started.registered(self.next_process, machine.id, registration, durability);
        if process.store.boot_reported().is_err() {
            machine.process = Some(process);
            return self.crash(&[index]);
        }
        self.controller.ready(machine.id, process.broker_epoch);
        machine.process = Some(process);
        Ok(())
    }

    /// The brokers of these machines die at the same moment.
    ///
    /// # Errors
    /// Never; for the callers' convenience.
    pub fn crash(&mut self, indices: &[usize]) -> Result<(), String> {
        if self.dangers.power_cuts && !self.controller.all_flushed() {
            // What was acknowledged was in page caches.
            self.truth.forget();
        }
        for index in indices {
            let machine = &mut self.machines[*index];
            let process = machine.process.take();
            if self.dangers.power_cuts {
                machine.disk.power_cut(self.random.next_u64());
            } else {
                machine.disk.process_crash();
            }
            if let Some(process) = process {
                self.seen.crashes += 1;
                let dead = (machine.id, process.incarnation);
                for link in &mut self.links {
                    if link.follower == dead || link.leader == dead {
                        link.cut = true;
                        link.left |= link.follower == dead;
                        link.closed |= link.leader == dead;
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends all faults and lets the cluster heal by itself, then holds everything against what clients were told.
    ///
    /// # Errors
    /// When it does not serve again, or something is lost.
    pub fn heal_and_check(&mut self) -> Result<(), String> {
        self.dangers.failing_flushes = false;
        for machine in &self.machines {
            machine.disk.heal();
            machine.disk.cut_never();
        }
        for index in 0..self.machines.len() {
            if !self.machines[index].disk.has_power() {
                self.crash(&[index])?;
            }
        }
        let mut steps = 0;
        while !self.is_whole() {
            steps += 1;
            if steps > HEALING_STEPS {
                return Err(format!("the cluster does not serve again: {}", self.describe()));
            }
            self.healing_step()?;
        }
        self.produce_one_more()?;
        self.check_logs()
    }

    /// Everybody runs and is in sync, and everything is committed everywhere.
    fn is_whole(&self) -> bool {
        let all: Vec<&Process> =
            self.machines.iter().filter_map(|machine| machine.process.as_ref()).collect();
        let Some(leader) = all.iter().find(|process| self.leads_now(process)) else { return false };
        let end = leader.replica.ends().log_end;
        all.len() == self.machines.len()
            && leader.replica.in_sync_count() == REPLICAS
            && leader.replica.is_ready()
            && all.iter().all(|process| process.replica.high_watermark() == end)
            && all.iter().all(|process| process.replica.ends().log_end == end)
    }

    fn leads_now(&self, process: &Process) -> bool {
        process.replica.role() == Role::Leader && process.replica.epoch() == self.controller.epoch()
    }

    /// One round in which everything that can go on does.
    fn healing_step(&mut self) -> Result<(), String> {
        for index in 0..self.machines.len() {
            if self.machines[index].process.is_none() {
                self.start(index)?;
            }
        }
        self.controller.unfence_all();
        self.controller.elect_damaged();
        while self.controller.waits() {
            self.decide()?;
        }
        for index in 0..self.machines.len() {
            self.learn(index, true)?;
            self.complete_rounds(index)?;
            self.verify(index)?;
            self.request_flush(index);
        }
        for index in 0..self.links.len() {
            self.push_over(index, 1 << 20)?;
        }
        for _ in 0..4 {
            for index in 0..self.links.len() {
                self.deliver_up(index)?;
                self.deliver_down(index)?;
            }
        }
        self.sweep_links()?;
        self.pass(Duration::from_millis(50))
    }

    fn produce_one_more(&mut self) -> Result<(), String> {
        let leader = self
            .machines
            .iter()
            .position(|machine| machine.process.as_ref().is_some_and(|process| self.leads_now(process)));
        let leader = leader.ok_or("nobody leads")?;
        let before = self.seen.acknowledged;
        self.produce(leader)?;
        for _ in 0..HEALING_STEPS {
            if self.seen.acknowledged > before && self.is_whole() {
                return Ok(());
            }
            self.healing_step()?;
        }
        Err(format!("a record is not acknowledged after everything was whole: {}", self.describe()))
    }

    /// All logs are the same and have what was acknowledged.
    fn check_logs(&mut self) -> Result<(), String> {
        let mut first = None;
        for machine in &mut self.machines {
            let process = machine.process.as_mut().ok_or("a broker does not run")?;
            let there = contents(&mut process.log)?;
            if !there.holes.is_empty() {
                return Err(format!("broker {} has holes that no power cut makes: {there:?}", machine.id));
            }
            self.truth
                .check_log(&there.records)
                .map_err(|error| format!("broker {}: {error}", machine.id))?;
            let records = first.get_or_insert_with(|| there.records.clone());
            if *records != there.records {
                return Err(format!("the log of broker {} is another one: {there:?}", machine.id));
            }
        }
        Ok(())
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// When something goes wrong that must not.
    pub fn pass(&mut self, time: Duration) -> Result<(), String> {
        self.now = self.now.after(time);
        for index in 0..self.machines.len() {
            self.step(index, Input::Tick)?;
        }
        Ok(())
    }

    /// The state of everybody, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        let of = |machine: &Machine| match &machine.process {
            None => format!("\n  broker {} is dead", machine.id),
            Some(process) => format!(
                "\n  broker {} (registration {}, image {}): {:?} in epoch {}, {:?}, watermark {}, {:?}, links {:?}, {:?}",
                machine.id,
                process.broker_epoch,
                process.version,
                process.replica.role(),
                process.replica.epoch(),
                process.replica.ends(),
                process.replica.high_watermark(),
                process.replica.health(),
                self.links
                    .iter()
                    .filter(|link| link.follower == (machine.id, process.incarnation) && !link.left)
                    .map(|link| (link.leader, link.next, link.down.len(), link.up.len()))
                    .collect::<Vec<_>>(),
                process.replica.in_sync(),
            ),
        };
        let machines: String = self.machines.iter().map(of).collect();
        format!("{}{machines}", self.controller.describe())
    }
}

impl Machine {
    fn new(id: NodeId, seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        if let Err(error) = disk.mount().create_directory(Path::new(ROOT)) {
            panic!("make the data directory: {error}");
        }
        disk.sync_all();
        disk.set_flushes(Flushes::Manual);
        Self { id, disk, process: None }
    }
}
