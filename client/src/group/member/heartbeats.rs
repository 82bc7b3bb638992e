//! When a member's next heartbeat goes out and what it has to say.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use highwater_protocol::ids::TopicPartition;

use super::{Action, Heartbeat};
use crate::retry::{Backoff, RetryPolicy};

/// Pauses after heartbeats without an answer. Whoever sends them has tried all that can be tried at once.
const PAUSES: RetryPolicy =
    RetryPolicy { first: Duration::from_millis(50), max: Duration::from_millis(1000) };
/// How often a member knocks whose instance id is in use.
const KNOCK: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Heartbeats {
    /// When the next one is due at the latest.
    next_at: Instant,
    /// The one that is under way.
    under_way: Option<UnderWay>,
    /// What the coordinator was last told that the member owns; `None`: everything has to be said again.
    told: Option<BTreeSet<TopicPartition>>,
    /// The next one says everything: it is the first after a new assignment, which shows that the coordinator and the
    /// member speak of the same.
    in_full: bool,
    /// When the last heartbeat was sent that has an answer.
    heard_since: Option<Instant>,
    backoff: Backoff,
    new_id: bool,
    /// Nothing but the time makes the next one due: the last one failed.
    pausing: bool,
    /// Since when its instance id is in use by another one.
    refused_since: Option<Instant>,
    has_left: bool,
}

#[derive(Debug)]
struct UnderWay {
    sent_at: Instant,
    owned: Option<BTreeSet<TopicPartition>>,
    action: Action,
}

impl Heartbeats {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            next_at: now,
            under_way: None,
            told: None,
            in_full: false,
            heard_since: None,
            backoff: Backoff::new(PAUSES),
            new_id: true,
            pausing: false,
            refused_since: None,
            has_left: false,
        }
    }

    pub(super) const fn heard_since(&self) -> Option<Instant> {
        self.heard_since
    }

    pub(super) const fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Whether the coordinator has answered that the member has left.
    pub(super) const fn has_left(&self) -> bool {
        self.has_left
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        self.under_way.is_none().then_some(self.next_at)
    }

    pub(super) fn answered(&mut self, now: Instant, interval: Duration, has_assignment: bool) {
        let Some(sent) = self.under_way.take() else { return };
        self.in_full = has_assignment;
        self.heard_since = Some(sent.sent_at);
        if sent.owned.is_some() {
            self.told = sent.owned;
        }
        self.has_left = sent.action != Action::Alive;
        self.pausing = false;
        self.refused_since = None;
        self.backoff.reset();
        self.next_at = now + interval;
    }

    pub(super) fn lost(&mut self, now: Instant, random: u64) {
        self.under_way = None;
        self.told = None;
        self.pausing = true;
        self.next_at = now + self.backoff.next(random);
    }

    /// The member is nobody any more. At once, unless it has never been anybody.
    pub(super) fn join_again(&mut self, now: Instant, at_once: bool) {
        self.start_over(now);
        if !at_once {
            self.next_at = now + KNOCK;
            self.pausing = true;
        }
    }

    pub(super) fn start_over(&mut self, now: Instant) {
        self.next_at = now;
        self.under_way = None;
        self.told = None;
        self.heard_since = None;
        self.new_id = true;
        self.pausing = false;
        self.has_left = false;
    }

    /// Its instance id is in use. `false`: it has been for so long that there is no point in asking again.
    pub(super) fn refused(&mut self, now: Instant, patience: Duration) -> bool {
        self.under_way = None;
        let since = *self.refused_since.get_or_insert(now);
        self.pausing = true;
        self.next_at = now + KNOCK;
        now < since + patience
    }

    /// The heartbeat that is due, if one is.
    pub(super) fn due(
        &mut self,
        now: Instant,
        generation: u32,
        action: Action,
        owned: BTreeSet<TopicPartition>,
    ) -> Option<Heartbeat> {
        if self.under_way.is_some() {
            return None;
        }
        // Somebody waits for what was given up, and nobody for what was taken on.
        let given_up = self.told.as_ref().is_some_and(|told| !told.is_subset(&owned));
        let urgent = !self.pausing && (given_up || action != Action::Alive);
        if !urgent && now < self.next_at {
            return None;
        }
        let in_full = self.in_full || generation == 0 || self.told.is_none();
        let owned = (in_full || self.told.as_ref() != Some(&owned)).then_some(owned);
        self.under_way = Some(UnderWay { sent_at: now, owned: owned.clone(), action });
        let new_id = std::mem::replace(&mut self.new_id, false);
        Some(Heartbeat { generation, action, new_id, in_full, owned })
    }
}
