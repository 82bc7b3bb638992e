//! When a member commits.

use std::time::{Duration, Instant};

use highwater_protocol::ids::TopicPartition;

use crate::retry::{Backoff, RetryPolicy};

/// Pauses after commits without a result.
const PAUSES: RetryPolicy =
    RetryPolicy { first: Duration::from_millis(50), max: Duration::from_millis(1000) };

#[derive(Debug)]
pub(super) struct Commits {
    interval: Option<Duration>,
    /// When finished records are committed next by themselves.
    automatic_at: Option<Instant>,
    /// The application waits for one.
    wanted: bool,
    /// The one that is under way, and the partitions that are given up after it.
    under_way: Option<Vec<TopicPartition>>,
    /// None before this: the last one failed.
    not_before: Option<Instant>,
    backoff: Backoff,
}

impl Commits {
    pub(super) const fn new(interval: Option<Duration>) -> Self {
        Self {
            interval,
            automatic_at: None,
            wanted: false,
            under_way: None,
            not_before: None,
            backoff: Backoff::new(PAUSES),
        }
    }

    /// The member is in the group: from now on there is something to commit.
    pub(super) fn begin(&mut self, now: Instant) {
        self.automatic_at = self.interval.map(|interval| now + interval);
    }

    pub(super) const fn want(&mut self) {
        self.wanted = true;
    }

    pub(super) const fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Whether one is under way, or wanted.
    pub(super) const fn is_awaited(&self) -> bool {
        self.under_way.is_some() || self.wanted
    }

    /// When the next one is due; `giving_up`: there are partitions that are given up after it.
    pub(super) fn next_at(&self, giving_up: bool) -> Option<Instant> {
        if self.is_under_way() {
            return None;
        }
        match self.not_before {
            Some(not_before) if self.wanted || giving_up => Some(not_before),
            not_before => self.automatic_at.map(|at| not_before.map_or(at, |not_before| at.max(not_before))),
        }
    }

    /// Whether to commit now: it is time, the application waits for it, or partitions are given up after it.
    pub(super) fn due(&self, now: Instant, giving_up: bool) -> bool {
        let may = !self.is_under_way() && self.not_before.is_none_or(|not_before| now >= not_before);
        let timely = self.automatic_at.is_some_and(|at| now >= at);
        may && (timely || self.wanted || giving_up)
    }

    pub(super) fn start(&mut self, now: Instant, giving_up: Vec<TopicPartition>) {
        self.wanted = false;
        self.not_before = None;
        self.automatic_at = self.interval.map(|interval| now + interval);
        self.under_way = Some(giving_up);
    }

    /// The one under way is over. Returns what can be given up now.
    pub(super) fn ended(&mut self) -> Vec<TopicPartition> {
        self.backoff.reset();
        self.under_way.take().unwrap_or_default()
    }

    /// The one under way has no result. What was to be given up after it is to be given up after the next one.
    pub(super) fn failed(&mut self, now: Instant, random: u64) {
        self.under_way = None;
        self.not_before = Some(now + self.backoff.next(random));
    }
}
