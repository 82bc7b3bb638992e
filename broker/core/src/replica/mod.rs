//! One replica of a partition as a machine: whom it leads or follows, what may be acknowledged, what may be read, and
//! what elections, restarts, flushes, failed flushes and a changed durability do to all of it.
//!
//! The chain that holds at all times: accepted ≤ written ≤ flushed for each batch; for the replica
//! `flushed end <= log end` and `high watermark <= log end`. The high watermark never moves back while the log keeps
//! what it has.
//!
//! The rules, each with a test that fails without it:
//! 1. Where a follower's log is cut is decided by the history of epochs, never by a high watermark; nothing below the
//!    high watermark is cut, unless the records were lost by a durability that allows it or by an operator's decision.
//! 2. Everything between a leader and a follower names the epoch, in both directions; what names another one is dropped.
//!    Acknowledgements name the session and the registration too.
//! 3. The high watermark is the least end over the *maximal* in-sync set: decided, and proposed to be added. It stands
//!    still while fewer than `min_in_sync` are decided.
//! 4. A follower joins when its end that counts has reached the high watermark and the start of the epoch. It leaves
//!    when the controller decided so, not before.
//! 5. A process leads only what was given to its present registration, and never twice in an epoch.
//! 6. A leader is ready when the high watermark has reached the start of its epoch.

mod durability_change;
mod epochs;
mod follower;
mod in_sync;
mod leader;
mod stamper;
mod subscribe;
mod types;

use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, NodeId, Offset};
use highwater_protocol::messages::Stage;

use crate::durability::Durability;
use crate::time::Mono;

use durability_change::DurabilityChange;
use epochs::EpochHistory;
use follower::{FETCH_PAUSE, Follower, REFUSED_PAUSE};
pub use in_sync::{Ends, InSyncSet, REPLICA_LAG_MAX};
use leader::Leader;
pub use leader::PROPOSAL_PAUSE;
pub use stamper::Stamper;
pub use subscribe::{SubscribeCheck, SubscribeRefusal, Subscribed, Subscriber};
pub use types::{
    Assignment, Condition, FetchedBatch, Health, Input, Opened, Output, Problem, Reached, ReplicaProgress,
    Role,
};

/// A replica of a partition.
#[derive(Debug, Clone)]
pub struct Replica {
    node: NodeId,
    /// The registration that this broker runs under.
    own_epoch: BrokerEpoch,
    assignment: Option<Assignment>,
    log_start: Offset,
    ends: Ends,
    log_generation: u64,
    append_time: i64,
    epochs: EpochHistory,
    high_watermark: Offset,
    durability: DurabilityChange,
    health: Health,
    /// The log is being cut or replaced.
    cutting: bool,
    /// It must not lead in this epoch or an earlier one again: its log may have lost what it wrote in it.
    spoilt_epoch: Option<LeaderEpoch>,
    /// Verification made the log shorter, and what is missing has not been fetched again.
    short: bool,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Idle,
    Leader(Leader),
    Follower(Follower),
}

/// What the assignment wants of this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    Nothing,
    Lead(LeaderEpoch),
    Follow(NodeId, LeaderEpoch),
}

impl Replica {
    /// The replica of a log that has been opened. It does nothing until it is assigned.
    #[must_use]
    pub fn open(opened: Opened) -> Self {
        let replica = Self {
            node: opened.node,
            own_epoch: BrokerEpoch(0),
            assignment: None,
            log_start: opened.log_start,
            ends: Ends { log_end: opened.log_end, flushed_end: opened.flushed_end },
            log_generation: opened.log_generation,
            append_time: opened.append_time,
            epochs: EpochHistory::new(opened.epochs),
            high_watermark: opened.high_watermark.min(opened.log_end),
            durability: DurabilityChange::new(opened.durability_wanted, opened.durability_effective),
            health: Health::Online,
            cutting: false,
            spoilt_epoch: None,
            short: false,
            state: State::Idle,
        };
        replica.check_invariants();
        replica
    }

    /// Takes one input and appends what follows from it to `out`.
    ///
    /// # Panics
    /// When an input about the log contradicts what the log said before: a defect of the shell.
    pub fn step(&mut self, now: Mono, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Assigned { assignment, own_epoch } => self.assigned(now, assignment, own_epoch, out),
            Input::Appended { log_end, append_time } => self.appended(now, log_end, append_time, out),
            Input::Flushed { log_generation, upto } => self.flushed(now, log_generation, upto, out),
            Input::FlushFailed { log_generation } => self.flush_failed(now, log_generation, out),
            Input::Verified { log_generation, log_end } => self.verified(now, log_generation, log_end, out),
            Input::LogStart { log_start } => self.log_start_moved(log_start),
            Input::DurabilityWanted(wanted) => self.durability.want(wanted, out),
            Input::DurabilityRecorded(recorded) => self.durability.recorded(recorded, out),
            Input::MinInSync(count) => {
                if let Some(assignment) = &mut self.assignment {
                    assignment.min_in_sync = count;
                }
            }
            Input::SessionOpened { session, node, broker_epoch, log_end } => {
                self.session_opened(now, session, (node, broker_epoch), log_end, out);
            }
            Input::Acked { session, leader_epoch, broker_epoch, ends } => {
                self.acked(now, session, leader_epoch, broker_epoch, ends);
            }
            Input::SessionClosed { session } => self.session_closed(now, session),
            Input::ProposalRefused { version } => self.proposal_refused(now, version),
            Input::Following { leader_epoch, high_watermark } => {
                self.following(now, leader_epoch, high_watermark, out);
            }
            Input::Fetched { batches, leader_epoch, high_watermark } => {
                self.fetched(now, &batches, leader_epoch, high_watermark, out);
            }
            Input::Diverged { epoch, end_offset } => self.diverged(now, epoch, end_offset, out),
            Input::ResetOffered { log_start } => self.reset_offered(now, log_start, out),
            Input::Truncated { log_generation, log_end, flushed_end } => {
                self.truncated(now, log_generation, Ends { log_end, flushed_end }, out);
            }
            Input::WasReset { log_generation, log_start, epochs } => {
                self.was_reset(now, log_generation, log_start, epochs, out);
            }
            Input::LinkLost => self.link_lost(now, out),
            Input::Tick => {}
        }
        self.go_on(now, out);
        self.check_invariants();
    }

    /// When [`Replica::step`] has to be called with `Tick` although nothing happened.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        match &self.state {
            State::Idle => None,
            State::Leader(leader) => leader.next_deadline(self.durability.gate()),
            State::Follower(follower) => follower.next_deadline(),
        }
    }

    /// The gate that every acknowledgement goes through: what may be said about `condition` now, or `None` while it is
    /// not reached, or while this replica does not lead.
    #[must_use]
    pub fn reached(&self, condition: Condition) -> Option<Reached> {
        let State::Leader(leader) = &self.state else { return None };
        match condition {
            Condition::Committed(end) => self.is_committed(end).then(|| Reached {
                stage: stage_of(leader.set.least_flushed(), end),
                replicas_counted: leader.set.written_count(end),
                replicas_total: self.replication(),
            }),
            Condition::LeaderStage(end) => {
                let reached = end <= self.ends.counted(self.durability.gate())
                    || cfg!(hw_mutate = "h26_ack_without_gate");
                reached.then(|| Reached {
                    stage: stage_of(self.ends.flushed_end, end),
                    replicas_counted: 1,
                    replicas_total: self.replication(),
                })
            }
        }
    }

    /// Whether everything below `end` is committed. A batch that was there before its producer sent it again has the same
    /// condition as every other one.
    fn is_committed(&self, end: Offset) -> bool {
        end <= self.high_watermark || (cfg!(hw_mutate = "answered_before_commit") && end <= self.ends.log_end)
    }

    /// What it does for its partition.
    #[must_use]
    pub const fn role(&self) -> Role {
        match self.state {
            State::Idle => Role::Idle,
            State::Leader(_) => Role::Leader,
            State::Follower(_) => Role::Follower,
        }
    }

    /// Who leads, as far as this replica knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.assignment.as_ref().and_then(|assignment| assignment.leader)
    }

    /// The epoch that the partition is in, as far as this replica knows; the one that it leads in if it leads.
    #[must_use]
    pub fn epoch(&self) -> LeaderEpoch {
        let assigned = self.assignment.as_ref().map(|assignment| assignment.epoch);
        assigned.or(self.epochs.last()).unwrap_or_default()
    }

    /// The partition as it was decided, if that is known.
    #[must_use]
    pub const fn assignment(&self) -> Option<&Assignment> {
        self.assignment.as_ref()
    }

    /// Next offset that is not known to be committed.
    #[must_use]
    pub const fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// How many replicas the partition has.
    #[must_use]
    pub fn replication(&self) -> u32 {
        // Far fewer than there are brokers, whose ids are u32.
        self.assignment.as_ref().map_or(1, |assignment| assignment.replicas.len() as u32)
    }

    /// Its own ends.
    #[must_use]
    pub const fn ends(&self) -> Ends {
        self.ends
    }

    /// First offset of its log.
    #[must_use]
    pub const fn log_start(&self) -> Offset {
        self.log_start
    }

    /// The log generation that flush completions must name.
    #[must_use]
    pub const fn log_generation(&self) -> u64 {
        self.log_generation
    }

    /// Whether the log can be relied on.
    #[must_use]
    pub const fn health(&self) -> Health {
        self.health
    }

    /// The durability that is recorded as holding.
    #[must_use]
    pub const fn durability_effective(&self) -> Durability {
        self.durability.effective()
    }

    /// The durability that flushes and the high watermark go by: the stricter of wanted and effective.
    #[must_use]
    pub fn durability_gate(&self) -> Durability {
        self.durability.gate()
    }

    /// Who is in sync, as its leader knows it; `None` if it does not lead.
    #[must_use]
    pub const fn in_sync(&self) -> Option<&InSyncSet> {
        match &self.state {
            State::Leader(leader) => Some(&leader.set),
            _ => None,
        }
    }

    /// How many replicas are in sync, as decided.
    #[must_use]
    pub fn in_sync_count(&self) -> u32 {
        self.assignment.as_ref().map_or(0, |assignment| assignment.in_sync.len() as u32)
    }

    /// How far every replica is, as its leader knows it; nothing if it does not lead.
    pub fn progress(&self) -> impl Iterator<Item = ReplicaProgress> + '_ {
        let leading = self.in_sync().zip(self.assignment.as_ref());
        leading.into_iter().flat_map(|(set, assignment)| {
            assignment.replicas.iter().map(|node| ReplicaProgress {
                node: *node,
                ends: set.ends(*node),
                in_sync: set.contains(*node),
                connected: set.is_connected(*node),
            })
        })
    }

    /// Whether it leads and requests that need the end can be answered: the high watermark has reached the start of the
    /// epoch, so that everything committed before is known to be.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match &self.state {
            State::Leader(leader) => {
                self.high_watermark >= leader.epoch_start || cfg!(hw_mutate = "h8_ready_at_once")
            }
            _ => false,
        }
    }

    /// Whether it leads and enough replicas are in sync for anything to be committed.
    #[must_use]
    pub fn has_quorum(&self) -> bool {
        match (&self.state, &self.assignment) {
            (State::Leader(leader), Some(assignment)) => {
                leader.set.count() >= assignment.min_in_sync
                    || cfg!(hw_mutate = "h4_commit_below_min_in_sync")
            }
            _ => false,
        }
    }

    /// Checks what must always hold.
    ///
    /// # Panics
    /// When it does not: a defect.
    pub fn check_invariants(&self) {
        assert!(self.ends.flushed_end <= self.ends.log_end, "flushed end past log end: {self:?}");
        assert!(self.high_watermark <= self.ends.log_end, "high watermark past log end: {self:?}");
        assert!(self.log_start <= self.ends.log_end, "log start past log end: {self:?}");
        self.epochs.check_invariants();
        if let State::Leader(leader) = &self.state {
            assert!(self.health == Health::Online, "a suspect replica leads: {self:?}");
            assert!(!leader.set.decided().is_empty(), "empty in-sync set: {self:?}");
            leader.set.check_invariants();
        }
    }

    /// A decision of the controller. An older one than is known changes nothing.
    fn assigned(&mut self, now: Mono, new: Assignment, own_epoch: BrokerEpoch, out: &mut Vec<Output>) {
        let known = self.assignment.as_ref().map(|known| (known.epoch, known.version));
        if known.is_some_and(|known| known > (new.epoch, new.version)) {
            return;
        }
        self.own_epoch = own_epoch;
        self.durability.want(new.durability_wanted, out);
        self.durability.recorded(new.durability_effective, out);
        if let State::Leader(leader) = &mut self.state
            && leader.epoch == new.epoch
        {
            leader.decide(new.version, new.in_sync.clone(), now);
        }
        self.assignment = Some(new);
        self.settle(now, out);
    }

    /// What it has to do by the assignment.
    fn duty(&self) -> Duty {
        let Some(assignment) = &self.assignment else { return Duty::Nothing };
        if self.health != Health::Online || !assignment.replicas.contains(&self.node) {
            return Duty::Nothing;
        }
        match assignment.leader {
            Some(leader) if leader == self.node => {
                // The in-sync set names registrations: one that names another than ours was decided for a process that
                // is no more.
                let given_to_us = assignment.in_sync.contains(&(self.node, self.own_epoch))
                    || cfg!(hw_mutate = "lead_by_an_old_registration");
                if given_to_us && self.may_lead(assignment.epoch) {
                    Duty::Lead(assignment.epoch)
                } else {
                    Duty::Nothing
                }
            }
            // Who has records of a later epoch knows more than this assignment does.
            Some(leader) if self.epochs.last() <= Some(assignment.epoch) => {
                Duty::Follow(leader, assignment.epoch)
            }
            _ => Duty::Nothing,
        }
    }

    fn may_lead(&self, epoch: LeaderEpoch) -> bool {
        if let State::Leader(leader) = &self.state
            && leader.epoch == epoch
        {
            return true;
        }
        // Two batches with the same offset and epoch could never be told apart.
        let unused = self.epochs.last() < Some(epoch) && self.spoilt_epoch < Some(epoch);
        unused || cfg!(hw_mutate = "lead_twice_in_an_epoch")
    }

    /// Becomes what the assignment wants. While the log is being cut that waits.
    fn settle(&mut self, now: Mono, out: &mut Vec<Output>) {
        let duty = self.duty();
        let is = match &self.state {
            State::Idle => Duty::Nothing,
            State::Leader(leader) => Duty::Lead(leader.epoch),
            State::Follower(follower) => Duty::Follow(follower.leader, follower.epoch),
        };
        if duty == is {
            return;
        }
        match &self.state {
            State::Idle => {}
            State::Leader(_) => {
                self.durability.forget_recording();
                out.push(Output::StopLeading);
            }
            State::Follower(_) => out.push(Output::Unsubscribe),
        }
        self.state = State::Idle;
        if self.cutting {
            return;
        }
        match duty {
            Duty::Nothing => {}
            Duty::Lead(epoch) => self.start_leading(now, epoch, out),
            Duty::Follow(leader, epoch) => self.start_following(leader, epoch, out),
        }
    }

    /// What may have become possible by any input.
    fn go_on(&mut self, now: Mono, out: &mut Vec<Output>) {
        match self.state {
            State::Idle => {}
            State::Leader(_) => self.lead_on(now, out),
            State::Follower(_) => self.follow_on(now, out),
        }
        if self.short && self.is_whole_again() {
            self.short = false;
            out.push(Output::Report(Problem::Recovered));
        }
    }

    /// Whether it has all that is committed, as far as anybody knows.
    fn is_whole_again(&self) -> bool {
        match &self.state {
            State::Idle => false,
            State::Leader(_) => true,
            State::Follower(follower) => follower.has_committed(self.ends.counted(self.durability.gate())),
        }
    }

    fn appended(&mut self, now: Mono, log_end: Offset, append_time: i64, out: &mut Vec<Output>) {
        assert!(self.health == Health::Online, "appended while suspect");
        assert!(log_end >= self.ends.log_end, "log end moved back by an append");
        let before = self.ends.log_end;
        let gate = self.durability.gate();
        self.ends.log_end = log_end;
        match &mut self.state {
            State::Leader(leader) => {
                assert!(append_time >= self.append_time, "append time moved back");
                if log_end > before {
                    self.epochs.note(leader.epoch, before);
                }
                leader.set.update_own(self.ends, now, gate);
            }
            State::Follower(follower) => {
                for start in follower.appended() {
                    self.epochs.note(start.epoch, start.start);
                }
                self.advance_follower(out);
                self.acknowledge(!gate.waits_for_flush(), out);
            }
            State::Idle => assert!(log_end == before, "appended without a duty"),
        }
        self.append_time = append_time;
    }

    fn flushed(&mut self, now: Mono, log_generation: u64, upto: Offset, out: &mut Vec<Output>) {
        // A completion from before a truncation says nothing about the log that is there now.
        let stale = log_generation != self.log_generation && !cfg!(hw_mutate = "stale_flush_counts");
        if stale || self.health != Health::Online {
            return;
        }
        let upto = if cfg!(hw_mutate = "stale_flush_counts") { upto.min(self.ends.log_end) } else { upto };
        assert!(upto <= self.ends.log_end, "flushed past the log end");
        if upto <= self.ends.flushed_end {
            return;
        }
        self.ends.flushed_end = upto;
        out.push(Output::FlushedEnd(upto));
        match &mut self.state {
            State::Leader(leader) => leader.set.update_own(self.ends, now, self.durability.gate()),
            State::Follower(_) => self.acknowledge(true, out),
            State::Idle => {}
        }
    }

    fn flush_failed(&mut self, now: Mono, log_generation: u64, out: &mut Vec<Output>) {
        if log_generation != self.log_generation || self.health != Health::Online {
            return;
        }
        self.health = Health::Suspect;
        if let State::Leader(leader) = &self.state {
            // Others may have copied what is gone: only a new epoch tells the two apart.
            self.spoilt_epoch = self.spoilt_epoch.max(Some(leader.epoch));
        }
        out.push(Output::VerifyLog);
        out.push(Output::Report(Problem::Suspect));
        self.settle(now, out);
    }

    fn verified(&mut self, now: Mono, log_generation: u64, log_end: Offset, out: &mut Vec<Output>) {
        assert!(log_end <= self.ends.log_end, "verification made the log longer");
        // Whoever has lost something is not as good as the others until it has it again.
        self.short |= log_end < self.ends.log_end && !cfg!(hw_mutate = "recovered_while_short");
        self.health = Health::Online;
        self.log_generation = log_generation;
        self.ends = Ends { log_end, flushed_end: log_end };
        // Others may have copied what is gone now: only a later epoch tells the two apart.
        self.spoilt_epoch = self.spoilt_epoch.max(self.epochs.last());
        self.epochs.truncate(log_end);
        // Under `fsync` nothing below the high watermark was unflushed, so this changes nothing then.
        self.high_watermark = self.high_watermark.min(log_end);
        out.push(Output::Resumed { log_end });
        if !self.short {
            out.push(Output::Report(Problem::Recovered));
        }
        self.settle(now, out);
    }

    fn log_start_moved(&mut self, log_start: Offset) {
        assert!(log_start <= self.high_watermark, "retention passed the high watermark");
        self.log_start = self.log_start.max(log_start);
        self.epochs.start_at(self.log_start);
    }
}

fn stage_of(flushed_end: Offset, end: Offset) -> Stage {
    if flushed_end >= end { Stage::Flushed } else { Stage::Written }
}

#[cfg(test)]
mod tests;
