//! What a replica does while it leads: sessions, acknowledgements, the high watermark, proposals.

use std::time::Duration;

use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, NodeId, Offset};

use super::in_sync::{Ends, InSyncSet};
use super::{Output, Replica, State};
use crate::durability::Durability;
use crate::time::Mono;

/// Between two proposals that build on the same decision.
pub const PROPOSAL_PAUSE: Duration = Duration::from_millis(200);

/// A proposal that nothing was heard of for this long is made again.
const PROPOSAL_PATIENCE: Duration = Duration::from_secs(15);

/// A leadership.
#[derive(Debug, Clone)]
pub(super) struct Leader {
    pub(super) epoch: LeaderEpoch,
    /// The log end when this epoch began.
    pub(super) epoch_start: Offset,
    pub(super) set: InSyncSet,
    /// One proposal is on its way: when it is given up.
    proposed: Option<Mono>,
    /// No proposal before this.
    pause: Option<Mono>,
    /// Which durability is wanted, and what was committed when this leader first saw that.
    wanted_at: Option<(Durability, Offset)>,
}

impl Leader {
    /// A decision about the epoch that it leads in.
    pub(super) fn decide(&mut self, version: u64, in_sync: Vec<(NodeId, BrokerEpoch)>, now: Mono) {
        if self.set.decide(version, in_sync, now) {
            self.proposed = None;
            self.pause = None;
        }
    }

    /// When it has to propose, or to propose again.
    pub(super) fn next_deadline(&self, durability: Durability) -> Option<Mono> {
        match (self.proposed, self.pause) {
            (Some(given_up), _) => Some(given_up),
            (None, Some(pause)) => Some(pause),
            (None, None) => self.set.lag_deadline(durability),
        }
    }

    fn may_propose(&mut self, now: Mono) -> bool {
        self.proposed = self.proposed.filter(|given_up| *given_up > now);
        self.pause = self.pause.filter(|until| *until > now);
        self.proposed.is_none() && self.pause.is_none()
    }
}

impl Replica {
    pub(super) fn start_leading(&mut self, now: Mono, epoch: LeaderEpoch, out: &mut Vec<Output>) {
        let Some(assignment) = &self.assignment else { return };
        let own = (self.node, self.own_epoch);
        let set = InSyncSet::new(own, self.ends, assignment.version, assignment.in_sync.clone(), now);
        self.state = State::Leader(Leader {
            epoch,
            epoch_start: self.ends.log_end,
            set,
            proposed: None,
            pause: None,
            wanted_at: None,
        });
        out.push(Output::StartLeading { epoch });
    }

    /// What may have become possible by any input.
    pub(super) fn lead_on(&mut self, now: Mono, out: &mut Vec<Output>) {
        // The watermark moves first: whoever has just been left behind by it must not join again at once.
        self.advance(out);
        self.propose(now, out);
        self.note_wanted();
        let flushed = self.is_flushed_to_watermark();
        self.durability.progressed(flushed, out);
    }

    pub(super) fn session_opened(
        &mut self,
        now: Mono,
        session: u64,
        follower: (NodeId, BrokerEpoch),
        log_end: Offset,
        out: &mut Vec<Output>,
    ) {
        let is_replica =
            self.assignment.as_ref().is_some_and(|assignment| assignment.replicas.contains(&follower.0));
        if let State::Leader(leader) = &mut self.state
            && is_replica
        {
            let before = leader.set.session_of(follower.0);
            leader.set.open_session(session, follower, log_end, now);
            // A subscription from an older connection may arrive late: which one is the last only the follower knows.
            let after = leader.set.session_of(follower.0);
            out.extend(before.filter(|_| before != after).map(|session| Output::EndSession { session }));
        }
    }

    /// Dropped unless it is of this epoch, of a live session, and of the registration that opened it.
    pub(super) fn acked(
        &mut self,
        now: Mono,
        session: u64,
        leader_epoch: LeaderEpoch,
        broker_epoch: BrokerEpoch,
        ends: Ends,
    ) {
        let gate = self.durability.gate();
        if let State::Leader(leader) = &mut self.state
            && (leader.epoch == leader_epoch || cfg!(hw_mutate = "h7_ack_of_another_epoch"))
        {
            leader.set.ack(session, broker_epoch, ends, now, gate);
        }
    }

    pub(super) fn session_closed(&mut self, now: Mono, session: u64) {
        let gate = self.durability.gate();
        if let State::Leader(leader) = &mut self.state {
            leader.set.close_session(session, now, gate);
        }
    }

    /// What was proposed to be added is waited for all the same: a copy of the proposal may still be on its way.
    pub(super) fn proposal_refused(&mut self, now: Mono, version: u64) {
        if let State::Leader(leader) = &mut self.state
            && leader.set.version() == version
        {
            leader.proposed = None;
            leader.pause = Some(now.after(PROPOSAL_PAUSE));
        }
    }

    /// Proposes another in-sync set if it should be another one. One proposal at a time.
    fn propose(&mut self, now: Mono, out: &mut Vec<Output>) {
        let gate = self.durability.gate();
        let (State::Leader(leader), Some(assignment)) = (&mut self.state, &self.assignment) else { return };
        if !leader.may_propose(now) || leader.set.is_alone(&assignment.replicas) {
            return;
        }
        // Who joins has everything that is committed, including what was before this epoch began: the watermark that this
        // leader knows of may be behind what its predecessor had committed.
        let join_at = match () {
            () if cfg!(hw_mutate = "join_below_watermark") => leader.epoch_start,
            () if cfg!(hw_mutate = "join_below_epoch_start") => self.high_watermark,
            () => self.high_watermark.max(leader.epoch_start),
        };
        let wanted = leader.set.desired(&assignment.replicas, join_at, gate, now);
        if leader.set.propose(&wanted) {
            leader.proposed = Some(now.after(PROPOSAL_PATIENCE));
            out.push(Output::Propose {
                version: leader.set.version(),
                leader_epoch: leader.epoch,
                in_sync: wanted,
            });
        }
    }

    /// Moves the high watermark as far as the in-sync set allows; never back.
    fn advance(&mut self, out: &mut Vec<Output>) {
        if !self.has_quorum() {
            return;
        }
        let State::Leader(leader) = &self.state else { return };
        let candidate = leader.set.least_counted(self.durability.gate());
        if candidate > self.high_watermark {
            self.high_watermark = candidate;
            out.push(Output::HighWatermark(candidate));
        }
    }

    /// Remembers what was committed when the durability that is wanted came to be.
    fn note_wanted(&mut self) {
        let (wanted, watermark) = (self.durability.wanted(), self.high_watermark);
        if let State::Leader(leader) = &mut self.state
            && leader.wanted_at.is_none_or(|(known, _)| known != wanted)
        {
            leader.wanted_at = Some((wanted, watermark.max(leader.epoch_start)));
        }
    }

    /// Whether everything that is committed is flushed wherever the next leader may come from. Its predecessor may have
    /// committed up to the start of the epoch, above the watermark that this leader knows of. Of eligible replicas that are
    /// not in sync nothing is known, so there must be none.
    fn is_flushed_to_watermark(&self) -> bool {
        let State::Leader(leader) = &self.state else { return false };
        let nobody_else = self.assignment.as_ref().is_some_and(|assignment| assignment.eligible.is_empty());
        let committed = if cfg!(hw_mutate = "durability_recorded_before_ready") {
            self.high_watermark
        } else {
            self.high_watermark.max(leader.epoch_start)
        };
        // Without waiting for flushes the watermark is always ahead of them under load: what came since is subject to the
        // wanted durability already.
        let committed = match leader.wanted_at {
            Some((wanted, at)) if !wanted.waits_for_flush() => committed.min(at),
            _ => committed,
        };
        (nobody_else || cfg!(hw_mutate = "durability_recorded_despite_eligible"))
            && leader.set.least_flushed() >= committed
            || cfg!(hw_mutate = "durability_recorded_before_flush")
    }
}
