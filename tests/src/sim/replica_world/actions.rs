//! What happens in the world, one thing at a time.

use std::time::Duration;

use highwater_broker_core::controller::command::{Command, Reply};
use highwater_broker_core::durability::Durability;
use highwater_broker_core::replica::{FetchedBatch, Health, Input, Role, Subscribed};
use highwater_broker_core::time::Wall;
use highwater_protocol::ids::Offset;

use super::links::{Down, Up};
use super::process::{Pending, Process};
use super::{Machine, World};
use crate::sim::batches::{self, Seen};
use crate::sim::disk::FaultKind;
use crate::sim::log_world::{PARTITION, contents, read, stamped};

/// Bytes of a record's value at the most.
const VALUE_BYTES_MAX: usize = 300;

impl World {
    /// One thing happens.
    ///
    /// # Errors
    /// When something goes wrong that must not.
    pub fn act(&mut self) -> Result<(), String> {
        let index = self.random.index(self.machines.len());
        match self.random.below(1000) {
            0..200 => self.produce(index),
            200..380 => self.complete_rounds(index),
            380..520 => self.with_link(Self::deliver_down),
            520..640 => self.with_link(Self::deliver_up),
            640..760 => {
                let bytes = 1 + self.random.index(16 << 10);
                self.with_link(|world, link| world.push_over(link, bytes))
            }
            760..820 => self.decide(),
            820..880 => self.learn(index, false),
            880..920 => self.pass_some(),
            920..935 => self.consume(index),
            935..950 => self.verify(index),
            950..960 => self.sweep_links(),
            960..966 => self.cut_link(),
            966..969 => self.crash_some(index),
            969..980 => self.start_if_dead(index),
            980..984 => self.fence_some(index),
            984..990 => {
                self.controller.unfence_all();
                Ok(())
            }
            990..993 => self.fail_a_flush(index),
            993..996 => self.change_durability(),
            996..998 => self.lose_power_soon(index),
            _ => {
                self.controller.elect_damaged();
                Ok(())
            }
        }
    }

    /// A producer sends batches to a broker that believes that it leads.
    ///
    /// # Errors
    /// When something goes wrong that must not.
    pub fn produce(&mut self, index: usize) -> Result<(), String> {
        let now = self.now;
        let wall = Wall(i64::try_from(now.0 / 1000).unwrap_or(i64::MAX));
        let Machine { disk, process: Some(process), .. } = &mut self.machines[index] else { return Ok(()) };
        if process.replica.role() != Role::Leader || !process.replica.has_quorum() {
            return Ok(());
        }
        let mut stamper = process.replica.stamper(wall);
        let (mut appended, mut pending) = (Vec::new(), Vec::new());
        for _ in 0..1 + self.random.below(3) {
            let count = 1 + self.random.below(5);
            let ids = self.next_record..self.next_record + count;
            self.next_record = ids.end;
            let sent = batches::produced(
                PARTITION,
                ids.clone(),
                VALUE_BYTES_MAX,
                wall.as_millis(),
                &mut self.random,
            );
            let Some(stamp) = stamper.next(count) else { return Err("no offsets are left".to_owned()) };
            appended.push(stamped(&sent, stamp));
            let records = (stamp.base_offset.get()..)
                .zip(ids)
                .map(|(offset, id)| Seen { offset, epoch: stamp.leader_epoch.get(), id })
                .collect();
            pending.push(Pending { end: Offset(stamp.base_offset.get() + count), records });
        }
        match process.log.append(&appended) {
            Ok(()) => {
                process.pending.append(&mut pending);
                let (log_end, append_time) = (stamper.end(), stamper.append_time());
                self.step(index, Input::Appended { log_end, append_time })
            }
            // Nothing of it is there, or it is not known: a broker that cannot tell ends.
            Err(_) if disk.has_power() => self.crash(&[index]),
            Err(_) => self.execute(index),
        }
    }

    /// Flush rounds end, in any order.
    pub(super) fn complete_rounds(&mut self, index: usize) -> Result<(), String> {
        let disk = self.machines[index].disk.clone();
        for _ in 0..3 {
            let pending = disk.rounds_pending();
            if pending == 0 {
                break;
            }
            disk.complete_round(self.random.index(pending));
        }
        let now = self.now;
        if let Some(process) = &mut self.machines[index].process {
            process.take_outcomes(now);
        }
        self.execute(index)
    }

    pub(super) fn request_flush(&mut self, index: usize) {
        if let Some(process) = &mut self.machines[index].process {
            process.log.request_flush();
        }
    }

    /// A suspect log is verified past the page cache.
    pub(super) fn verify(&mut self, index: usize) -> Result<(), String> {
        let Machine { process: Some(process), .. } = &mut self.machines[index] else { return Ok(()) };
        if !process.suspect || process.replica.health() != Health::Suspect {
            return Ok(());
        }
        let verified = process.log.mark_suspect().and_then(|()| process.log.verify_suspect().map(drop));
        if verified.is_err() {
            // It is tried again.
            return self.execute(index);
        }
        process.suspect = false;
        let (log_generation, log_end) = (process.log.log_generation(), process.log.log_end());
        self.step(index, Input::Verified { log_generation, log_end })
    }

    fn with_link(&mut self, act: impl FnOnce(&mut Self, usize) -> Result<(), String>) -> Result<(), String> {
        if self.links.is_empty() {
            return Ok(());
        }
        let link = self.random.index(self.links.len());
        act(self, link)
    }

    /// The next message of a link arrives at the follower.
    pub(super) fn deliver_down(&mut self, link: usize) -> Result<(), String> {
        let link = &mut self.links[link];
        let Some(message) = link.down.pop_front() else { return Ok(()) };
        let (node, incarnation) = link.follower;
        if link.left {
            return Ok(());
        }
        if matches!(message, Down::Over | Down::Diverged { .. } | Down::Reset { .. }) {
            link.left = true;
        }
        let Some(index) = self.process_of(node, incarnation) else { return Ok(()) };
        let input = match message {
            Down::Live { leader_epoch, high_watermark } => Input::Following { leader_epoch, high_watermark },
            Down::Diverged { epoch, end_offset } => Input::Diverged { epoch, end_offset },
            Down::Reset { log_start } => Input::ResetOffered { log_start },
            Down::Over => Input::LinkLost,
            Down::Push { leader_epoch, high_watermark, batches } => {
                let fetched = Process::parse(&batches)?;
                let of = |batch: &highwater_broker::storage::log::StampedBatch| FetchedBatch {
                    base_offset: batch.header.leader.base_offset,
                    end_offset: batch.header.end_offset(),
                    epoch: batch.header.leader.leader_epoch,
                    append_time: batch.header.leader.append_time,
                };
                let batches = fetched.iter().map(of).collect();
                if let Some(process) = &mut self.machines[index].process {
                    process.fetched = fetched;
                }
                Input::Fetched { batches, leader_epoch, high_watermark }
            }
        };
        self.step(index, input)
    }

    /// The next message of a link arrives at the leader, which may be none any more.
    pub(super) fn deliver_up(&mut self, link: usize) -> Result<(), String> {
        let link = &mut self.links[link];
        let Some(message) = link.up.pop_front() else { return Ok(()) };
        let ((node, incarnation), (follower, _), session) = (link.leader, link.follower, link.id);
        if link.closed {
            return Ok(());
        }
        let Some(index) = self.machines.iter().position(|machine| {
            machine.id == node
                && machine.process.as_ref().is_some_and(|process| process.incarnation == incarnation)
        }) else {
            return Ok(());
        };
        let Some(process) = &mut self.machines[index].process else { return Ok(()) };
        match message {
            Up::Ack { leader_epoch, broker_epoch, ends } => {
                self.step(index, Input::Acked { session, leader_epoch, broker_epoch, ends })
            }
            Up::Subscribe(check) => match process.replica.check_subscribe(&check) {
                Ok(Subscribed::Live) => {
                    link.next = Some(check.offset);
                    link.down.push_back(Down::Live {
                        leader_epoch: process.replica.epoch(),
                        high_watermark: process.replica.high_watermark(),
                    });
                    let broker_epoch = check.replica.map(|replica| replica.broker_epoch).unwrap_or_default();
                    let log_end = check.offset;
                    self.step(index, Input::SessionOpened { session, node: follower, broker_epoch, log_end })
                }
                Ok(Subscribed::Diverged { epoch, end_offset }) => {
                    link.down.push_back(Down::Diverged { epoch, end_offset });
                    Ok(())
                }
                Ok(Subscribed::Reset { log_start }) => {
                    link.down.push_back(Down::Reset { log_start });
                    Ok(())
                }
                Err(_) => {
                    link.down.push_back(Down::Over);
                    Ok(())
                }
            },
        }
    }

    /// A leader pushes what a live session lacks, whatever the watermark is.
    pub(super) fn push_over(&mut self, link: usize, bytes_max: usize) -> Result<(), String> {
        let link = &mut self.links[link];
        let (Some(next), false, false) = (link.next, link.cut, link.closed) else { return Ok(()) };
        let leader = link.leader;
        let Some(process) =
            self.machines.iter_mut().filter(|machine| machine.id == leader.0).find_map(|machine| {
                machine.process.as_mut().filter(|process| process.incarnation == leader.1)
            })
        else {
            return Ok(());
        };
        let (leader_epoch, high_watermark) = (process.replica.epoch(), process.replica.high_watermark());
        let log_end = process.log.log_end();
        let mut batches = Vec::new();
        if next < log_end {
            let plan = process.log.plan_read(next, log_end, bytes_max);
            let Ok(mut plan) = plan else { return Ok(()) };
            let Ok(read) = plan.ready().unwrap_or_else(|| plan.execute()) else { return Ok(()) };
            batches = read;
            let parsed = Process::parse(&batches)?;
            link.next = parsed.last().map(|batch| batch.header.end_offset()).or(link.next);
        } else if link.pushed_watermark == high_watermark {
            return Ok(());
        }
        link.pushed_watermark = high_watermark;
        link.down.push_back(Down::Push { leader_epoch, high_watermark, batches });
        Ok(())
    }

    /// The controller decides about a proposal.
    pub(super) fn decide(&mut self) -> Result<(), String> {
        let Some((proposal, outcome)) = self.controller.decide(&mut self.random) else { return Ok(()) };
        match outcome {
            Ok(Reply::Recorded) if matches!(proposal.command, Command::RecordDurability { .. }) => {
                self.seen.recorded += 1;
            }
            Ok(_) => {}
            Err(_) => {
                self.seen.refused += 1;
                if let Some((node, incarnation, version)) = proposal.told
                    && let Some(index) = self.process_of(node, incarnation)
                {
                    return self.step(index, Input::ProposalRefused { version });
                }
            }
        }
        Ok(())
    }

    /// A broker learns of an image, maybe not of the last one.
    pub(super) fn learn(&mut self, index: usize, last: bool) -> Result<(), String> {
        let now = self.now;
        let Machine { id, process: Some(process), .. } = &mut self.machines[index] else { return Ok(()) };
        let last = last || self.random.percent(70);
        if let Some(image) = self.controller.image_after(process.version, &mut self.random, last) {
            process.follow(now, &image);
        }
        if self.controller.wants_ends_of(*id) && process.version >= process.registered_at {
            self.controller.report(
                *id,
                process,
                highwater_broker_core::controller::command::ReplicaProblem::Ends,
            );
        }
        self.execute(index)
    }

    fn pass_some(&mut self) -> Result<(), String> {
        let most = if self.random.percent(10) { 4000 } else { 100 };
        let millis = 1 + self.random.below(most);
        self.pass(Duration::from_millis(millis))
    }

    /// A consumer reads what a leader shows it; a leader that says that it is ready has everything.
    fn consume(&mut self, index: usize) -> Result<(), String> {
        let Machine { id, process: Some(process), .. } = &mut self.machines[index] else { return Ok(()) };
        if !process.replica.is_ready() {
            return Ok(());
        }
        let watermark = process.replica.high_watermark().get();
        if watermark == 0 {
            return Ok(());
        }
        let from = self.random.below(watermark);
        if let Ok(seen) = read(&mut process.log, from, watermark, 8 << 10) {
            for seen in seen.into_iter().filter(|seen| (from..watermark).contains(&seen.offset)) {
                self.truth.show(seen).map_err(|error| format!("broker {id} shows: {error}"))?;
            }
        }
        if process.replica.epoch().get() >= self.truth.last_epoch && self.random.percent(20) {
            let there = contents(&mut process.log)?;
            self.truth.check_log(&there.records).map_err(|error| format!("broker {id} is ready: {error}"))?;
        }
        Ok(())
    }

    /// Both sides of cut links learn of it once what was on its way has arrived; what is over goes.
    pub(super) fn sweep_links(&mut self) -> Result<(), String> {
        for link in 0..self.links.len() {
            let Some(link) = self.links.get_mut(link) else { break };
            if !link.cut {
                continue;
            }
            let ((leader, leads), (follower, follows), session) = (link.leader, link.follower, link.id);
            let close = !link.closed && link.up.is_empty();
            link.closed |= close;
            let leave = !link.left && link.down.is_empty();
            link.left |= leave;
            if close && let Some(index) = self.process_of(leader, leads) {
                self.step(index, Input::SessionClosed { session })?;
            }
            if leave && let Some(index) = self.process_of(follower, follows) {
                self.step(index, Input::LinkLost)?;
            }
        }
        self.links.retain(|link| !(link.left && link.closed));
        Ok(())
    }

    fn cut_link(&mut self) -> Result<(), String> {
        if self.links.is_empty() {
            return Ok(());
        }
        let link = self.random.index(self.links.len());
        let (down, up) = (self.random.index(4), self.random.index(4));
        let link = &mut self.links[link];
        link.cut = true;
        link.down.truncate(down);
        link.up.truncate(up);
        Ok(())
    }

    /// One broker dies, or two, or all at the same moment.
    fn crash_some(&mut self, index: usize) -> Result<(), String> {
        if self.random.percent(35) {
            self.seen.crashes_of_all += 1;
            let all: Vec<usize> = (0..self.machines.len()).collect();
            return self.crash(&all);
        }
        let other = (index + 1) % self.machines.len();
        if self.random.percent(25) { self.crash(&[index, other]) } else { self.crash(&[index]) }
    }

    fn start_if_dead(&mut self, index: usize) -> Result<(), String> {
        if self.machines[index].process.is_some() {
            return Ok(());
        }
        self.start(index)
    }

    /// A dead broker is found to be dead; now and then one that is not.
    fn fence_some(&mut self, index: usize) -> Result<(), String> {
        let machine = &self.machines[index];
        if machine.process.is_none() || self.random.percent(20) {
            self.controller.fence(machine.id);
        }
        Ok(())
    }

    fn fail_a_flush(&mut self, index: usize) -> Result<(), String> {
        if self.dangers.failing_flushes {
            self.machines[index].disk.fail(FaultKind::SyncFails, "", 1);
        }
        Ok(())
    }

    fn change_durability(&mut self) -> Result<(), String> {
        if self.dangers.durability_changes {
            let durability = if self.random.percent(50) { Durability::Fsync } else { Durability::Os };
            self.controller.want_durability(durability);
        }
        Ok(())
    }

    /// The power goes off in the middle of something.
    fn lose_power_soon(&mut self, index: usize) -> Result<(), String> {
        let operations = self.random.below(40);
        self.machines[index].disk.cut_after(operations);
        Ok(())
    }

    fn process_of(&self, node: highwater_protocol::ids::NodeId, incarnation: u64) -> Option<usize> {
        self.machines.iter().position(|machine| {
            machine.id == node
                && machine.process.as_ref().is_some_and(|process| process.incarnation == incarnation)
        })
    }
}
