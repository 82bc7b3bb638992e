//! What a broker's shell does with what its machine wants.

use highwater_broker_core::controller::command::{Command, ReplicaProblem};
use highwater_broker_core::durability::Durability;
use highwater_broker_core::replica::{Input, Output, Problem, SubscribeCheck, Subscriber};
use highwater_protocol::ids::Offset;

use super::links::{Down, Link, Up};
use super::{Machine, World};
use crate::sim::log_world::{PARTITION, small_log};

impl World {
    /// Gives an input to the broker of a machine, if it runs, and does everything that follows.
    ///
    /// # Errors
    /// When something follows that must not.
    pub fn step(&mut self, index: usize, input: Input) -> Result<(), String> {
        let now = self.now;
        if let Some(process) = &mut self.machines[index].process {
            process.step(now, input);
        }
        self.execute(index)
    }

    /// Does what the machine wants until it wants nothing more, then gives the acknowledgements that can be given.
    pub(super) fn execute(&mut self, index: usize) -> Result<(), String> {
        loop {
            let Machine { disk, process: Some(process), .. } = &mut self.machines[index] else {
                return Ok(());
            };
            if !disk.has_power() {
                return self.crash(&[index]);
            }
            if process.outputs.is_empty() {
                return self.acknowledge(index);
            }
            let output = process.outputs.remove(0);
            self.carry_out(index, output)?;
        }
    }

    fn carry_out(&mut self, index: usize, output: Output) -> Result<(), String> {
        let Machine { id, process: Some(process), .. } = &mut self.machines[index] else { return Ok(()) };
        let (id, me) = (*id, (*id, process.incarnation));
        match output {
            Output::HighWatermark(_) | Output::FlushedEnd(_) | Output::Resumed { .. } => {}
            Output::RecordDurability(durability) => {
                let leader_epoch = Some(process.replica.epoch());
                let command = Command::RecordDurability { partition: PARTITION, leader_epoch, durability };
                self.controller.propose(command, None);
            }
            Output::FlushBy(durability) => {
                process.log.configure(small_log(durability));
                if durability == Durability::Fsync {
                    process.log.request_flush();
                }
            }
            Output::VerifyLog => {
                self.seen.flushes_failed += 1;
                process.suspect = true;
                process.pending.clear();
            }
            Output::Propose { version, leader_epoch, in_sync } => {
                let command = Command::AlterInSync {
                    partition: PARTITION,
                    node_id: id,
                    broker_epoch: process.broker_epoch,
                    leader_epoch,
                    version,
                    in_sync,
                };
                self.controller.propose(command, Some((id, process.incarnation, version)));
            }
            Output::StartLeading { .. } => self.seen.leaderships += 1,
            Output::EndSession { session } => {
                for link in self.links.iter_mut().filter(|link| link.id == session) {
                    link.next = None;
                    link.down.push_back(Down::Over);
                }
            }
            Output::StopLeading => {
                process.pending.clear();
                for link in self.links.iter_mut().filter(|link| link.leader == me) {
                    link.next = None;
                    link.down.push_back(Down::Over);
                }
            }
            Output::Subscribe { leader, epoch, offset, last_epoch } => {
                let check = SubscribeCheck {
                    replica: Some(Subscriber { node: id, broker_epoch: process.broker_epoch }),
                    current_epoch: Some(epoch),
                    offset,
                    last_epoch,
                };
                self.leave_links(me);
                self.open_link(me, leader, check);
            }
            Output::Unsubscribe => self.leave_links(me),
            Output::Append => self.append_fetched(index),
            Output::Truncate { to } => self.truncate(index, to)?,
            Output::Reset => self.start_over(index)?,
            Output::SendAck { leader_epoch, ends } => {
                let ack = Up::Ack { leader_epoch, broker_epoch: process.broker_epoch, ends };
                if let Some(link) = self.links.iter_mut().find(|link| link.follower == me && !link.left) {
                    link.acknowledge(ack);
                }
            }
            Output::Report(problem) => self.report(index, problem)?,
        }
        Ok(())
    }

    fn append_fetched(&mut self, index: usize) {
        let now = self.now;
        let Machine { process: Some(process), .. } = &mut self.machines[index] else { return };
        let batches = std::mem::take(&mut process.fetched);
        let appended = match process.log.append(&batches) {
            Ok(()) => Input::Appended {
                log_end: process.log.log_end(),
                append_time: process.log.last_append_time(),
            },
            Err(_) => Input::LinkLost,
        };
        process.step(now, appended);
    }

    fn report(&mut self, index: usize, problem: Problem) -> Result<(), String> {
        let Machine { id, process: Some(process), .. } = &self.machines[index] else { return Ok(()) };
        match problem {
            Problem::Suspect => self.controller.report(*id, process, ReplicaProblem::Suspect),
            Problem::Recovered => self.controller.report(*id, process, ReplicaProblem::Recovered),
            Problem::Refused { .. } if self.may_lose() => {}
            Problem::Refused { to, high_watermark } => {
                return Err(format!(
                    "broker {id} is to cut its log to {to}, below its watermark {high_watermark}: {}",
                    self.describe()
                ));
            }
        }
        Ok(())
    }

    /// Whether records may be lost that were acknowledged.
    pub(super) fn may_lose(&self) -> bool {
        self.dangers.power_cuts
            && (self.dangers.durability_changes || self.dangers.durability != Durability::Fsync)
    }

    /// A follower whose leader has nothing in common with it. Nothing is ever removed here, so the leader has lost all.
    fn start_over(&mut self, index: usize) -> Result<(), String> {
        let now = self.now;
        if !self.may_lose() {
            return Err(format!("a follower is to start over: {}", self.describe()));
        }
        let Machine { process: Some(process), .. } = &mut self.machines[index] else { return Ok(()) };
        if process.log.truncate(Offset::ZERO).is_err() {
            return self.crash(&[index]);
        }
        let (log_generation, log_start) = (process.log.log_generation(), Offset::ZERO);
        process.step(now, Input::WasReset { log_generation, log_start, epochs: Vec::new() });
        Ok(())
    }

    fn truncate(&mut self, index: usize, to: Offset) -> Result<(), String> {
        let now = self.now;
        let Machine { process: Some(process), .. } = &mut self.machines[index] else { return Ok(()) };
        self.seen.truncations += 1;
        match process.log.truncate(to) {
            Ok(log_end) => {
                let (log_generation, flushed_end) = (process.log.log_generation(), process.log.flushed_end());
                process.step(now, Input::Truncated { log_generation, log_end, flushed_end });
                Ok(())
            }
            // What is on the disk is not known: the process ends, and recovery tells.
            Err(_) => self.crash(&[index]),
        }
    }

    fn leave_links(&mut self, me: (highwater_protocol::ids::NodeId, u64)) {
        for link in self.links.iter_mut().filter(|link| link.follower == me) {
            link.left = true;
            link.cut = true;
        }
    }

    fn open_link(
        &mut self,
        me: (highwater_protocol::ids::NodeId, u64),
        leader: highwater_protocol::ids::NodeId,
        check: SubscribeCheck,
    ) {
        let there = self.machines.iter().find(|machine| machine.id == leader);
        let process = there.and_then(|machine| machine.process.as_ref()).map(|process| process.incarnation);
        self.next_link += 1;
        let mut link = Link::open(self.next_link, me, (leader, process.unwrap_or(0)), check);
        if process.is_none() {
            link.cut = true;
            link.closed = true;
            link.up.clear();
        }
        self.links.push(link);
    }

    fn acknowledge(&mut self, index: usize) -> Result<(), String> {
        let Machine { process: Some(process), .. } = &mut self.machines[index] else { return Ok(()) };
        for (pending, epoch) in process.take_acknowledged() {
            for record in pending.records {
                self.seen.acknowledged += 1;
                self.truth.acknowledge(record, epoch)?;
            }
        }
        Ok(())
    }
}
