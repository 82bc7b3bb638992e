//! What is on its way between simulated replicas: subscriptions, each in order until its connection breaks, and
//! acknowledgements, which may be late, lost, doubled or overtaken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use highwater_broker_core::replica::{Ends, SubscribeCheck};
use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch};

use super::store::Batch;

/// One process of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Address {
    /// The node, by its place.
    pub node: usize,
    /// Which of its processes.
    pub process: u64,
}

/// What a leader sends to a follower.
#[derive(Debug, Clone)]
pub(super) enum ToFollower {
    /// The subscription is live.
    Following {
        /// The leader's epoch.
        epoch: u32,
        /// Its high watermark.
        high_watermark: u64,
    },
    /// The logs differ.
    Diverged {
        /// The epoch that they share at the most.
        epoch: u32,
        /// Its end.
        end_offset: u64,
    },
    /// The follower's log ends too early.
    ResetOffered {
        /// Where the leader's starts.
        log_start: u64,
    },
    /// No.
    Refused,
    /// Batches.
    Push {
        /// The batches.
        batches: Vec<Batch>,
        /// The leader's epoch.
        epoch: u32,
        /// Its high watermark.
        high_watermark: u64,
    },
}

/// One subscription.
#[derive(Debug, Clone)]
pub(super) struct Stream {
    /// Who subscribes.
    pub follower: Address,
    /// At whom; the process is known once it has answered.
    pub leader: usize,
    /// The leader's process.
    pub leader_process: Option<u64>,
    /// The question, until it has arrived.
    pub question: Option<SubscribeCheck>,
    /// Answers and pushes on their way.
    pub answers: VecDeque<ToFollower>,
    /// Where the next push starts, while it is live.
    pub next: Option<u64>,
    /// The high watermark that was pushed last.
    pub told: u64,
}

/// An acknowledgement on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ack {
    /// To which process.
    pub to: Address,
    /// Over which session.
    pub session: u64,
    /// In which epoch.
    pub epoch: LeaderEpoch,
    /// Of which registration.
    pub broker_epoch: BrokerEpoch,
    /// How far.
    pub ends: Ends,
}

/// Everything on its way.
#[derive(Debug, Default)]
pub(super) struct Network {
    /// Subscriptions by session.
    pub streams: BTreeMap<u64, Stream>,
    /// Acknowledgements.
    pub acks: Vec<Ack>,
    next_session: u64,
    /// Pairs of nodes that do not reach each other; the controller is node `usize::MAX`.
    cut: BTreeSet<(usize, usize)>,
}

/// The place of the controller in the network.
pub(super) const CONTROLLER: usize = usize::MAX;

impl Network {
    /// A number that no session had before.
    pub(super) const fn session(&mut self) -> u64 {
        self.next_session += 1;
        self.next_session
    }

    /// Whether what `from` sends reaches `to`.
    #[must_use]
    pub(super) fn reaches(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Cuts one direction.
    pub(super) fn cut(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    /// Everybody reaches everybody.
    pub(super) fn heal(&mut self) {
        self.cut.clear();
    }
}
