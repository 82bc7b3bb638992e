//! The producer's connections: one to each broker that leads partitions it sends to.

use std::sync::Arc;
use std::time::Instant;

use highwater_protocol::frame::Frame;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::sequencer::LinkId;
use crate::error::Error;
use crate::retry::Backoff;
use crate::wire::{Connection, Events, Lost, ReplySink};

/// What comes in from the connections, for the sender to look at.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Bounded by the requests in flight.
    replies: Mutex<Vec<(u64, Result<Frame, Lost>)>>,
    /// The sender has something to do.
    pub(super) work: Notify,
}

impl Inbox {
    pub(super) fn take(&self) -> Vec<(u64, Result<Frame, Lost>)> {
        std::mem::take(&mut *self.replies.lock())
    }
}

impl ReplySink for Inbox {
    fn reply(&self, tag: u64, reply: Result<Frame, Lost>) {
        self.replies.lock().push((tag, reply));
        self.work.notify_one();
    }
}

impl Events for Inbox {
    fn one_way(&self, frame: Frame) {
        tracing::debug!(api = frame.header.api.name(), "a one-way message that a producer does not expect");
    }

    fn window_raised(&self) {
        self.work.notify_one();
    }

    fn closed(&self, _error: &Error) {
        self.work.notify_one();
    }
}

/// A broker that leads partitions.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) address: Arc<str>,
    pub(super) state: PeerState,
    pub(super) backoff: Backoff,
    /// Why the last connection ended or could not be made.
    pub(super) last_error: Option<Error>,
}

#[derive(Debug)]
pub(super) enum PeerState {
    /// No connection; none is made before this.
    Down {
        not_before: Option<Instant>,
    },
    Connecting,
    Up(Link),
}

/// A connection and what is on its way over it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) connection: Connection,
    /// Bytes of batches sent in all.
    pub(super) produced: u64,
    pub(super) in_flight: usize,
    pub(super) in_flight_max: usize,
}

impl Link {
    pub(super) fn new(id: LinkId, connection: Connection, in_flight_max: usize) -> Self {
        // One less than the broker allows: the connection's pings count too.
        let in_flight_max = in_flight_max.clamp(1, connection.max_in_flight().saturating_sub(1).max(1));
        Self { id, connection, produced: 0, in_flight: 0, in_flight_max }
    }

    /// Whether another request may go out after `bytes` more bytes: the window may be overdrawn by one batch.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.in_flight < self.in_flight_max && self.produced + bytes < self.connection.produce_limit()
    }
}
