//! What a replica does while it follows: subscribe, copy, acknowledge, and cut what the leader does not have.

use std::time::Duration;

use highwater_protocol::ids::{LeaderEpoch, NodeId, Offset};

use super::in_sync::Ends;
use super::subscribe::NO_EPOCH;
use super::{FetchedBatch, Output, Problem, Replica, State};
use crate::log::manifest::EpochStart;
use crate::time::Mono;

/// Between a subscription that failed and the next attempt.
pub(super) const FETCH_PAUSE: Duration = Duration::from_millis(50);

/// Between two attempts while what the leader wants is refused.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// A time of following one leader in one epoch.
#[derive(Debug, Clone)]
pub(super) struct Follower {
    pub(super) leader: NodeId,
    pub(super) epoch: LeaderEpoch,
    phase: Phase,
    /// The leader's high watermark.
    leader_watermark: Offset,
    /// The epochs of the batches that are being appended.
    pending: Vec<EpochStart>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Subscribing,
    /// Everything up to the log end is the leader's too.
    Live,
    /// Subscribes again then.
    Pause(Mono),
    /// The log is being cut or replaced.
    Cutting,
}

impl Follower {
    pub(super) const fn next_deadline(&self) -> Option<Mono> {
        match self.phase {
            Phase::Pause(until) => Some(until),
            _ => None,
        }
    }

    /// Whether a log that counts up to `end` has all that the leader had committed when it was subscribed to.
    pub(super) fn has_committed(&self, end: Offset) -> bool {
        self.phase == Phase::Live && end >= self.leader_watermark
    }

    /// The epochs of what was just appended.
    pub(super) fn appended(&mut self) -> Vec<EpochStart> {
        std::mem::take(&mut self.pending)
    }
}

impl Replica {
    pub(super) fn start_following(&mut self, leader: NodeId, epoch: LeaderEpoch, out: &mut Vec<Output>) {
        self.state = State::Follower(Follower {
            leader,
            epoch,
            phase: Phase::Subscribing,
            leader_watermark: Offset::ZERO,
            pending: Vec::new(),
        });
        if cfg!(hw_mutate = "h1_cut_to_watermark") && self.high_watermark < self.ends.log_end {
            return self.cut(Output::Truncate { to: self.high_watermark }, out);
        }
        self.subscribe(out);
    }

    /// What may have become possible by any input.
    pub(super) fn follow_on(&mut self, now: Mono, out: &mut Vec<Output>) {
        if let State::Follower(follower) = &self.state
            && follower.next_deadline().is_some_and(|until| until <= now)
        {
            self.subscribe(out);
        }
    }

    pub(super) fn following(
        &mut self,
        now: Mono,
        leader_epoch: LeaderEpoch,
        high_watermark: Offset,
        out: &mut Vec<Output>,
    ) {
        let State::Follower(follower) = &mut self.state else { return };
        if follower.phase != Phase::Subscribing {
            return;
        }
        if leader_epoch != follower.epoch {
            return self.pause(now, super::FETCH_PAUSE, out);
        }
        follower.phase = Phase::Live;
        follower.leader_watermark = follower.leader_watermark.max(high_watermark);
        self.advance_follower(out);
        self.acknowledge(true, out);
    }

    pub(super) fn fetched(
        &mut self,
        now: Mono,
        batches: &[FetchedBatch],
        leader_epoch: LeaderEpoch,
        high_watermark: Offset,
        out: &mut Vec<Output>,
    ) {
        let State::Follower(follower) = &mut self.state else { return };
        if follower.phase != Phase::Live {
            return;
        }
        let same_epoch = leader_epoch == follower.epoch || cfg!(hw_mutate = "h3_push_of_another_epoch");
        if !same_epoch || !fits(batches, self.ends.log_end, self.epochs.last(), follower.epoch) {
            return self.pause(now, super::FETCH_PAUSE, out);
        }
        follower.leader_watermark = follower.leader_watermark.max(high_watermark);
        if batches.is_empty() {
            return self.advance_follower(out);
        }
        let starts = batches.iter().map(|batch| EpochStart { epoch: batch.epoch, start: batch.base_offset });
        follower.pending = starts.collect();
        out.push(Output::Append);
    }

    /// Cuts the log where it leaves the leader's, as far as this answer tells; the next one tells the rest.
    pub(super) fn diverged(
        &mut self,
        now: Mono,
        epoch: LeaderEpoch,
        end_offset: Offset,
        out: &mut Vec<Output>,
    ) {
        if !self.is_subscribing() {
            return;
        }
        let to = match self.epochs.end_of(epoch, self.ends.log_end) {
            _ if epoch == NO_EPOCH => end_offset,
            Some((own, own_end)) if own == epoch => own_end.min(end_offset),
            // The leader has an epoch that this log has nothing of: it may still share an earlier one.
            Some((_, own_end)) => own_end,
            None => self.log_start,
        };
        let to = to.max(self.log_start);
        if !self.may_lose(to) {
            return self.refuse(now, to, out);
        }
        self.cut(Output::Truncate { to }, out);
    }

    pub(super) fn reset_offered(&mut self, now: Mono, log_start: Offset, out: &mut Vec<Output>) {
        if !self.is_subscribing() {
            return;
        }
        let member = self.assignment.as_ref().is_some_and(|assignment| assignment.is_member(self.node));
        if member && !cfg!(hw_mutate = "h15_reset_of_a_member") {
            // Who leads knows better, or this replica will see that it is none any more.
            return self.pause(now, super::REFUSED_PAUSE, out);
        }
        if !self.may_lose(log_start) {
            return self.refuse(now, log_start, out);
        }
        self.cut(Output::Reset, out);
    }

    pub(super) fn truncated(&mut self, now: Mono, log_generation: u64, ends: Ends, out: &mut Vec<Output>) {
        assert!(ends.log_end <= self.ends.log_end, "a cut made the log longer");
        self.ends = ends;
        self.log_generation = log_generation;
        self.epochs.truncate(ends.log_end);
        self.high_watermark = self.high_watermark.min(ends.log_end);
        self.was_cut(now, out);
    }

    pub(super) fn was_reset(
        &mut self,
        now: Mono,
        log_generation: u64,
        log_start: Offset,
        epochs: Vec<EpochStart>,
        out: &mut Vec<Output>,
    ) {
        self.ends = Ends { log_end: log_start, flushed_end: log_start };
        self.log_start = log_start;
        self.log_generation = log_generation;
        self.epochs = super::EpochHistory::new(epochs);
        // Retention never passes the high watermark, so what is not there any more was committed.
        self.high_watermark = log_start;
        self.was_cut(now, out);
    }

    pub(super) fn link_lost(&mut self, now: Mono, out: &mut Vec<Output>) {
        let cut_failed = std::mem::take(&mut self.cutting);
        if let State::Follower(_) = &self.state {
            self.pause(now, super::FETCH_PAUSE, out);
        } else if cut_failed {
            self.settle(now, out);
        }
    }

    /// The follower's high watermark: the leader's, as far as its own log goes.
    pub(super) fn advance_follower(&mut self, out: &mut Vec<Output>) {
        let State::Follower(follower) = &self.state else { return };
        let candidate = follower.leader_watermark.min(self.ends.log_end);
        if candidate > self.high_watermark {
            self.high_watermark = candidate;
            out.push(Output::HighWatermark(candidate));
        }
    }

    /// Tells the leader how far this replica is, if `news` and if the leader wants to know.
    pub(super) fn acknowledge(&self, news: bool, out: &mut Vec<Output>) {
        if let State::Follower(follower) = &self.state
            && follower.phase == Phase::Live
            && news
        {
            out.push(Output::SendAck { leader_epoch: follower.epoch, ends: self.ends });
        }
    }

    fn subscribe(&mut self, out: &mut Vec<Output>) {
        let State::Follower(follower) = &mut self.state else { return };
        follower.phase = Phase::Subscribing;
        follower.pending.clear();
        out.push(Output::Subscribe {
            leader: follower.leader,
            epoch: follower.epoch,
            offset: self.ends.log_end,
            last_epoch: self.epochs.last(),
        });
    }

    fn pause(&mut self, now: Mono, pause: Duration, out: &mut Vec<Output>) {
        let State::Follower(follower) = &mut self.state else { return };
        follower.phase = Phase::Pause(now.after(pause));
        follower.pending.clear();
        out.push(Output::Unsubscribe);
    }

    fn refuse(&mut self, now: Mono, to: Offset, out: &mut Vec<Output>) {
        out.push(Output::Report(Problem::Refused { to, high_watermark: self.high_watermark }));
        self.pause(now, super::REFUSED_PAUSE, out);
    }

    fn cut(&mut self, how: Output, out: &mut Vec<Output>) {
        let State::Follower(follower) = &mut self.state else { return };
        follower.phase = Phase::Cutting;
        self.cutting = true;
        out.push(how);
    }

    fn was_cut(&mut self, now: Mono, out: &mut Vec<Output>) {
        self.cutting = false;
        let State::Follower(follower) = &self.state else { return self.settle(now, out) };
        if follower.phase == Phase::Cutting {
            self.subscribe(out);
        }
    }

    fn is_subscribing(&self) -> bool {
        matches!(&self.state, State::Follower(follower) if follower.phase == Phase::Subscribing)
    }

    /// Whether the log may end at `to`: nothing committed is above, or it is known to be lost.
    fn may_lose(&self, to: Offset) -> bool {
        let unclean = self.assignment.as_ref().and_then(|assignment| assignment.unclean_epoch);
        to >= self.high_watermark
            || !self.durability.effective().waits_for_flush()
            || unclean > self.epochs.last()
            || cfg!(hw_mutate = "cut_below_committed")
    }
}

/// Whether the batches go on where the log ends, each of an epoch that is not below the one before and not above the
/// leader's.
fn fits(batches: &[FetchedBatch], log_end: Offset, last: Option<LeaderEpoch>, epoch: LeaderEpoch) -> bool {
    let (mut end, mut last) = (log_end, last);
    batches.iter().all(|batch| {
        let good = batch.base_offset == end
            && batch.end_offset > batch.base_offset
            && last <= Some(batch.epoch)
            && batch.epoch <= epoch;
        end = batch.end_offset;
        last = Some(batch.epoch);
        good
    })
}
