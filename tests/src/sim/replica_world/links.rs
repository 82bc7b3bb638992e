//! Subscriptions of followers as they are on the wire: in order while they last, cut at any moment.

use std::collections::VecDeque;

use bytes::Bytes;
use highwater_broker_core::replica::{Ends, SubscribeCheck};
use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, NodeId, Offset};

/// From the follower.
#[derive(Debug, Clone)]
pub enum Up {
    /// The first message.
    Subscribe(SubscribeCheck),
    /// How far it is.
    Ack {
        /// The epoch that it follows.
        leader_epoch: LeaderEpoch,
        /// Its registration.
        broker_epoch: BrokerEpoch,
        /// How far it is.
        ends: Ends,
    },
}

/// From the leader.
#[derive(Debug, Clone)]
pub enum Down {
    /// The subscription is live.
    Live {
        /// The leader's epoch.
        leader_epoch: LeaderEpoch,
        /// Its high watermark.
        high_watermark: Offset,
    },
    /// The follower cuts its log.
    Diverged {
        /// The epoch that both have.
        epoch: LeaderEpoch,
        /// Where it ends at the leader.
        end_offset: Offset,
    },
    /// The follower starts over.
    Reset {
        /// Where.
        log_start: Offset,
    },
    /// It is not welcome, or the subscription is over.
    Over,
    /// Batches, or a watermark alone.
    Push {
        /// The leader's epoch.
        leader_epoch: LeaderEpoch,
        /// Its high watermark.
        high_watermark: Offset,
        /// Whole batches.
        batches: Vec<Bytes>,
    },
}

/// One subscription, between two processes.
#[derive(Debug)]
pub struct Link {
    /// Its number in the whole history.
    pub id: u64,
    /// Who follows, and which process of that broker.
    pub follower: (NodeId, u64),
    /// Who leads, and which process of that broker.
    pub leader: (NodeId, u64),
    /// Set while the leader has a session for it.
    pub next: Option<Offset>,
    /// The watermark that was pushed last.
    pub pushed_watermark: Offset,
    /// On their way to the follower.
    pub down: VecDeque<Down>,
    /// On their way to the leader.
    pub up: VecDeque<Up>,
    /// Nothing is added any more: what is on its way may arrive, then each side is told.
    pub cut: bool,
    /// The follower has given it up, or was told that it is over.
    pub left: bool,
    /// The leader was told that it is over.
    pub closed: bool,
}

impl Link {
    /// A subscription that asks.
    #[must_use]
    pub fn open(id: u64, follower: (NodeId, u64), leader: (NodeId, u64), check: SubscribeCheck) -> Self {
        Self {
            id,
            follower,
            leader,
            next: None,
            pushed_watermark: Offset::ZERO,
            down: VecDeque::new(),
            up: VecDeque::from([Up::Subscribe(check)]),
            cut: false,
            left: false,
            closed: false,
        }
    }

    /// Tells the leader how far the follower is: of several on their way the last one counts.
    pub fn acknowledge(&mut self, ack: Up) {
        if self.cut {
            return;
        }
        if matches!(self.up.back(), Some(Up::Ack { .. })) && self.up.len() > 2 {
            self.up.pop_back();
        }
        self.up.push_back(ack);
    }
}
