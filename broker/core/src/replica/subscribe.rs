//! What a leader says to somebody who wants to subscribe, follower or consumer.

use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, NodeId, Offset};

use super::{Replica, State};

/// In [`Subscribed::Diverged`]: no epoch is shared, and everything from the end offset on is another's. Epochs count
/// from 1.
pub(super) const NO_EPOCH: LeaderEpoch = LeaderEpoch(0);

/// Who subscribes as a follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscriber {
    /// Its broker.
    pub node: NodeId,
    /// The registration that it runs under.
    pub broker_epoch: BrokerEpoch,
}

/// What a subscriber says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscribeCheck {
    /// Set for followers.
    pub replica: Option<Subscriber>,
    /// The epoch that it knows; `None`: it does not care. Followers must.
    pub current_epoch: Option<LeaderEpoch>,
    /// The first offset wanted.
    pub offset: Offset,
    /// The epoch of the record before, if it has it.
    pub last_epoch: Option<LeaderEpoch>,
}

/// What a subscriber that is welcome has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscribed {
    /// Nothing: what it has is a prefix of the log.
    Live,
    /// Cut its log, then subscribe again.
    Diverged {
        /// The largest epoch of the leader that is not above the subscriber's last one.
        epoch: LeaderEpoch,
        /// Where that ends.
        end_offset: Offset,
    },
    /// Followers: start over from the leader's log start.
    Reset {
        /// First offset of the leader's log.
        log_start: Offset,
    },
}

/// Why a subscriber is not welcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeRefusal {
    /// Another broker leads, or none.
    #[error("this broker does not lead the partition in epoch {epoch}{}", leads(*.leader))]
    NotLeader {
        /// Who does.
        leader: Option<NodeId>,
        /// The epoch that this broker knows.
        epoch: LeaderEpoch,
    },
    /// The subscriber knows an older epoch.
    #[error("the partition is in leader epoch {current}, not {asked} any more: refresh the metadata")]
    FencedEpoch {
        /// This leader's.
        current: LeaderEpoch,
        /// The subscriber's.
        asked: LeaderEpoch,
    },
    /// The subscriber knows a newer epoch.
    #[error("this broker leads in epoch {current} and has not heard of {asked} yet: try again")]
    UnknownEpoch {
        /// This leader's.
        current: LeaderEpoch,
        /// The subscriber's.
        asked: LeaderEpoch,
    },
    /// There is nothing at that offset.
    #[error("offset {offset} is not in the log, which goes from {log_start} to {log_end}")]
    OutOfRange {
        /// As asked.
        offset: Offset,
        /// First offset of the log.
        log_start: Offset,
        /// Next offset of the log.
        log_end: Offset,
    },
    /// The broker holds no replica of the partition.
    #[error("broker {node} is no replica of the partition")]
    NotAReplica {
        /// Which one.
        node: NodeId,
    },
    /// The broker has registered anew since.
    #[error("broker {node} has registered anew since its epoch {asked}: the registration is over")]
    StaleRegistration {
        /// Which one.
        node: NodeId,
        /// Under which it asked.
        asked: BrokerEpoch,
    },
    /// A replica that is in sync or eligible never starts over: it waits until it is in neither set.
    #[error(
        "broker {node} ends at {offset}, below the log start {log_start}, but still counts as a member: try again"
    )]
    MemberBelowLogStart {
        /// Which one.
        node: NodeId,
        /// Where it ends.
        offset: Offset,
        /// First offset of the log.
        log_start: Offset,
    },
}

fn leads(leader: Option<NodeId>) -> String {
    leader.map_or_else(String::new, |leader| format!("; broker {leader} does"))
}

impl Replica {
    /// What a subscriber has to do before its subscription is live. The history of epochs decides, never a watermark.
    ///
    /// # Errors
    /// When it is not welcome.
    pub fn check_subscribe(&self, check: &SubscribeCheck) -> Result<Subscribed, SubscribeRefusal> {
        let State::Leader(leader) = &self.state else {
            return Err(SubscribeRefusal::NotLeader { leader: self.leader(), epoch: self.epoch() });
        };
        let current = leader.epoch;
        // A record of an epoch that this leader has not heard of means that another one leads by now.
        for asked in [check.current_epoch, check.last_epoch].into_iter().flatten() {
            if asked > current {
                return Err(SubscribeRefusal::UnknownEpoch { current, asked });
            }
        }
        if let Some(asked) = check.current_epoch
            && asked < current
            && !cfg!(hw_mutate = "h3_subscribe_in_another_epoch")
        {
            return Err(SubscribeRefusal::FencedEpoch { current, asked });
        }
        if let Some(replica) = check.replica {
            self.check_replica(replica)?;
        }
        self.compare(check)
    }

    fn check_replica(&self, replica: Subscriber) -> Result<(), SubscribeRefusal> {
        let Subscriber { node, broker_epoch } = replica;
        let assigned = self.assignment.as_ref().is_some_and(|known| known.replicas.contains(&node));
        if !assigned || node == self.node {
            return Err(SubscribeRefusal::NotAReplica { node });
        }
        if self.in_sync().is_some_and(|set| set.is_stale(node, broker_epoch))
            && !cfg!(hw_mutate = "h5_session_of_an_old_registration")
        {
            return Err(SubscribeRefusal::StaleRegistration { node, asked: broker_epoch });
        }
        Ok(())
    }

    fn compare(&self, check: &SubscribeCheck) -> Result<Subscribed, SubscribeRefusal> {
        let (log_start, log_end) = (self.log_start, self.ends.log_end);
        let offset = check.offset;
        if offset < log_start {
            return self.below_log_start(check);
        }
        let shared = check.last_epoch.map(|last| (last, self.epochs.end_of(last, log_end)));
        match shared {
            Some((last, Some((epoch, end_offset)))) => {
                let same = epoch == last || cfg!(hw_mutate = "h2_unknown_epoch_agrees");
                if !same || end_offset < offset {
                    return Ok(Subscribed::Diverged { epoch, end_offset });
                }
            }
            // The leader has no record of the subscriber's epochs, or has none any more.
            Some((_, None)) if let Some(replica) = check.replica => {
                return self.nothing_shared(check, replica);
            }
            Some((last, None)) if offset > log_start => {
                return Ok(Subscribed::Diverged { epoch: last, end_offset: log_start });
            }
            _ => {}
        }
        if offset <= log_end {
            return Ok(Subscribed::Live);
        }
        match check.replica {
            // It has nothing, so nothing tells where it left: it starts over.
            Some(_) => self.below_log_start(check),
            None => Err(SubscribeRefusal::OutOfRange { offset, log_start, log_end }),
        }
    }

    /// What a member has below the log start was committed, and so is the leader's; while nothing was ever removed there
    /// is nothing below. What is above was never committed. Of anybody else's log nothing is known.
    fn nothing_shared(
        &self,
        check: &SubscribeCheck,
        replica: Subscriber,
    ) -> Result<Subscribed, SubscribeRefusal> {
        let member = self.assignment.as_ref().is_some_and(|known| known.is_member(replica.node));
        let log_start = self.log_start;
        if !member && log_start > Offset::ZERO {
            return self.below_log_start(check);
        }
        if check.offset == log_start {
            return Ok(Subscribed::Live);
        }
        Ok(Subscribed::Diverged { epoch: NO_EPOCH, end_offset: log_start })
    }

    fn below_log_start(&self, check: &SubscribeCheck) -> Result<Subscribed, SubscribeRefusal> {
        let (log_start, log_end, offset) = (self.log_start, self.ends.log_end, check.offset);
        let Some(Subscriber { node, .. }) = check.replica else {
            return Err(SubscribeRefusal::OutOfRange { offset, log_start, log_end });
        };
        let member = self.assignment.as_ref().is_some_and(|known| known.is_member(node));
        if member && !cfg!(hw_mutate = "h15_reset_of_a_member") {
            return Err(SubscribeRefusal::MemberBelowLogStart { node, offset, log_start });
        }
        Ok(Subscribed::Reset { log_start })
    }
}
