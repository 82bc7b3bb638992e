//! What the application's side of a group consumer and its driver have in common. What is looked at for every record is
//! atomic; everything else is behind a lock that is taken when something has changed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use highwater_protocol::ids::{LeaderEpoch, Offset, PartitionId, TopicPartition};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::member::Reason;
use crate::consumer::{PartIndex, Supply, Topic};
use crate::error::Error;

/// Stands for "the application waits for records".
const WAITING: u64 = u64::MAX;

/// How far the application is with one partition: written by it, read when positions are committed.
#[derive(Debug)]
pub(super) struct Finished {
    offset: AtomicU64,
    /// 0: not known.
    epoch: AtomicU32,
}

impl Finished {
    pub(super) const fn new(offset: Offset) -> Self {
        Self { offset: AtomicU64::new(offset.get()), epoch: AtomicU32::new(0) }
    }

    /// Everything below `offset` is done; the last record of it is from this epoch, if that is known.
    pub(super) fn set(&self, offset: Offset, epoch: LeaderEpoch) {
        // In this order: an epoch that is newer than its offset only says that the log had come that far.
        self.epoch.store(epoch.get(), Ordering::Release);
        self.offset.store(offset.get(), Ordering::Release);
    }

    pub(super) fn get(&self) -> (Offset, Option<LeaderEpoch>) {
        let offset = Offset(self.offset.load(Ordering::Acquire));
        let epoch = self.epoch.load(Ordering::Acquire);
        (offset, (epoch > 0).then_some(LeaderEpoch(epoch)))
    }
}

/// Something for the application to take in before it is given anything more.
#[derive(Debug)]
pub(super) enum Change {
    Assigned(Vec<Adopted>),
    /// To be let go: [`Request::Released`] answers.
    Revoke(Vec<PartIndex>),
    Lost(Vec<PartIndex>, Reason),
    /// The end, with an error if it was not asked for.
    Over(Option<Error>),
}

/// A partition that the application gets.
#[derive(Debug, Clone)]
pub(super) struct Adopted {
    pub(super) index: PartIndex,
    pub(super) topic: Topic,
    pub(super) partition: PartitionId,
    pub(super) position: Offset,
    /// What was committed with the position; `None`: no position was.
    pub(super) metadata: Option<String>,
    pub(super) finished: Arc<Finished>,
}

/// Something that the application wants.
#[derive(Debug)]
pub(super) enum Request {
    /// Nothing more of these is given out.
    Released(Vec<PartIndex>),
    Commit(Vec<Explicit>, Done),
    Close {
        for_restart: bool,
        done: Done,
    },
    /// The consumer was dropped.
    Dropped,
}

/// A position that the application commits itself.
#[derive(Debug, Clone)]
pub(super) struct Explicit {
    pub(super) at: TopicPartition,
    pub(super) offset: Offset,
    pub(super) metadata: String,
}

/// Where the end of a request is told.
pub(super) type Done = oneshot::Sender<Result<(), Error>>;

#[derive(Debug)]
pub(super) struct Session {
    pub(super) group: Arc<str>,
    pub(super) supply: Supply,
    /// There are changes.
    attention: AtomicBool,
    /// Microseconds after `started` until which the partitions are certainly the member's own; 0: not at all.
    lease_until: AtomicU64,
    /// Microseconds after `started` since which the application is away, or [`WAITING`].
    away_since: AtomicU64,
    /// How often the application has asked.
    polls: AtomicU64,
    started: Instant,
    changes: Mutex<VecDeque<Change>>,
    requests: Mutex<Vec<Request>>,
    /// The driver has something to do.
    pub(super) work: Notify,
}

impl Session {
    pub(super) fn new(group: Arc<str>, supply: Supply, now: Instant) -> Self {
        Self {
            group,
            supply,
            attention: AtomicBool::new(false),
            lease_until: AtomicU64::new(0),
            away_since: AtomicU64::new(0),
            polls: AtomicU64::new(0),
            started: now,
            changes: Mutex::default(),
            requests: Mutex::default(),
            work: Notify::new(),
        }
    }

    /// Has the application take this in.
    pub(super) fn tell(&self, change: Change) {
        self.changes.lock().push_back(change);
        self.attention.store(true, Ordering::Release);
        self.supply.wake();
    }

    /// Whether there is something to take in. Asked again after the waker was registered: see [`Session::tell`].
    pub(super) fn wants_attention(&self) -> bool {
        self.attention.load(Ordering::Acquire)
    }

    pub(super) fn take_changes(&self) -> VecDeque<Change> {
        let mut changes = self.changes.lock();
        self.attention.store(false, Ordering::Release);
        std::mem::take(&mut changes)
    }

    pub(super) fn request(&self, request: Request) {
        self.requests.lock().push(request);
        self.work.notify_one();
    }

    pub(super) fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock())
    }

    /// Notes until when records may be given out. Wakes an application that may have been waiting for that.
    pub(super) fn set_lease(&self, until: Option<Instant>, now: Instant) {
        let until = until.map_or(0, |until| self.micros(until));
        let before = self.lease_until.swap(until, Ordering::AcqRel);
        if before <= self.micros(now) && self.micros(now) < until {
            self.supply.wake();
        }
    }

    /// Whether records may be given out now: afterwards somebody else may have the partitions.
    pub(super) fn has_lease(&self, now: Instant) -> bool {
        self.micros(now) < self.lease_until.load(Ordering::Acquire)
    }

    /// The application asks for more.
    pub(super) fn asked(&self) {
        // Only the application writes it.
        self.polls.store(self.polls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The application has been given something at this moment, and is busy with it.
    pub(super) fn given(&self, now: Instant) {
        self.away_since.store(self.micros(now), Ordering::Release);
    }

    /// The application waits for records.
    pub(super) fn waits(&self) {
        self.away_since.store(WAITING, Ordering::Release);
    }

    fn micros(&self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.started).as_micros()).unwrap_or(WAITING - 1)
    }
}

/// Sees since when the application has been away: since it was given something, or since it was woken and did not come.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// How often it had asked when it was first seen woken, and when that was.
    woken: Option<(u64, Instant)>,
}

impl Presence {
    pub(super) fn away_since(&mut self, session: &Session, now: Instant) -> Option<Instant> {
        let polls = session.polls.load(Ordering::Relaxed);
        let away_since = session.away_since.load(Ordering::Acquire);
        if away_since != WAITING {
            self.woken = None;
            return Some(session.started + Duration::from_micros(away_since));
        }
        if session.supply.is_awaited() {
            self.woken = None;
            return None;
        }
        match self.woken {
            Some((at, since)) if at == polls => Some(since),
            _ => {
                self.woken = Some((polls, now));
                Some(now)
            }
        }
    }
}
