//! What a member of a group does and when: what it asks for, what it gives up and after what, when it commits, when it
//! leaves. Pure: clock and randomness are the caller's, and so is everything that waits for an answer.
//!
//! A partition goes through these states; a partition that stays assigned stays `Active`, whatever happens to the others:
//!
//! ```text
//!  assigned ─► Finding ─► Active ─► Revoking ─► Committing ─► reported as given up
//!               where to   the application   it is asked to   what it has finished
//!               go on?     reads it          let go           is recorded
//! ```

mod commits;
mod heartbeats;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use highwater_protocol::ids::TopicPartition;

use self::commits::Commits;
use self::heartbeats::Heartbeats;
use crate::error::Error;

/// How long the application may take to let go of partitions, of the time that the coordinator gives for it: the rest is
/// for committing and saying so.
const RELEASE_SHARE: (u32, u32) = (3, 4);
/// How long until positions that could not be found are asked for again.
const FIND_AGAIN: Duration = Duration::from_millis(500);

/// The times that a member keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// Without a heartbeat for this long the coordinator takes the member for dead.
    pub(super) session: Duration,
    /// What is revoked has to be given up within this.
    pub(super) rebalance: Duration,
    /// The application may be away for this long.
    pub(super) poll_max: Duration,
    /// Finished records are committed this often by themselves, and when partitions are given up. `None`: only when the
    /// application says so.
    pub(super) commit: Option<Duration>,
}

/// What happened.
#[derive(Debug)]
pub(super) enum Input {
    /// The heartbeat under way was answered.
    Answered(Answer),
    /// It was not, or not with an answer.
    Failed(Failure),
    /// Where to go on was found in these of a search: the application has them.
    Adopted(Ticket, Vec<TopicPartition>),
    /// The search is over. What was not adopted was not found.
    Searched(Ticket),
    /// The application gives out nothing more of these.
    Released(Vec<TopicPartition>),
    /// The application wants what it has finished committed.
    CommitWanted,
    /// The commit under way is over: whatever could be committed is.
    Committed,
    /// It is over without a result, and may be tried again. The random number spreads the attempts.
    CommitFailed(u64),
    /// Since when the application has been away; `None`: it waits for records.
    Application { away_since: Option<Instant> },
    /// The application wants no more. For a restart: what it owns is to wait for its successor.
    Close { for_restart: bool },
}

/// A heartbeat's answer.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) generation: u32,
    pub(super) interval: Duration,
    /// Everything that the member may own; `None`: as before.
    pub(super) assignment: Option<BTreeSet<TopicPartition>>,
}

/// Why a heartbeat has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may have arrived or not. The random number spreads the attempts.
    Lost(u64),
    /// The member is not one any more.
    Fenced,
    /// Another one lives under its instance id.
    InstanceInUse(Error),
    /// Nothing would help.
    Fatal(Error),
}

/// Names one search for positions: answers to an older one are not for the same ownership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// What is to be done.
#[derive(Debug)]
pub(super) enum Output {
    /// Send this. Exactly one input answers it.
    Heartbeat(Heartbeat),
    /// Find out where to go on in these, and give them to the application.
    Find(Ticket, Vec<TopicPartition>),
    /// Ask the application to let go of these.
    Revoke(Vec<TopicPartition>),
    /// The application has not: give it nothing more of these.
    TakeAway(Vec<TopicPartition>),
    /// Others may have these already: give nothing more of them to the application, and tell it.
    Lose(Vec<TopicPartition>, Reason),
    /// Commit what is finished in everything that is held. Exactly one input answers it.
    Commit,
    /// It is over.
    Ended(Option<Error>),
}

/// Why a member has lost what it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The coordinator did not hear of it in time.
    Fenced,
    /// The application was away for too long.
    Away,
    /// It has ended.
    Over,
}

/// A heartbeat to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heartbeat {
    /// 0: it joins.
    pub(super) generation: u32,
    pub(super) action: Action,
    /// Under an id that was never used before.
    pub(super) new_id: bool,
    /// Everything is said: it joins, an answer was lost, or it has a new assignment since.
    pub(super) in_full: bool,
    /// What the member owns, if it has to be said.
    pub(super) owned: Option<BTreeSet<TopicPartition>>,
}

/// What the member does with a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Alive,
    Leave,
    LeaveForRestart,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Finding { ticket: Ticket, again_at: Option<Instant> },
    Active,
    Revoking { since: Instant },
    Committing { since: Instant },
}

/// Where the member is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Not in the group: the next heartbeat joins.
    Outside,
    /// In the group, in this generation.
    Inside(u32),
    /// It commits what it has finished and leaves.
    Leaving {
        generation: u32,
        why: Why,
        since: Instant,
    },
    /// It has left because the application was away since then, and joins again when it is back.
    Away(Instant),
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Closed { for_restart: bool },
    Away(Instant),
}

/// A member of a group.
#[derive(Debug)]
pub(super) struct Member {
    timing: Timing,
    standing: Standing,
    held: BTreeMap<TopicPartition, Held>,
    /// What the coordinator last said that it may own.
    target: BTreeSet<TopicPartition>,
    beats: Heartbeats,
    commits: Commits,
    away_since: Option<Instant>,
    next_ticket: u64,
}

impl Member {
    /// A member that joins at its first step.
    pub(super) fn new(timing: Timing, now: Instant) -> Self {
        Self {
            timing,
            standing: Standing::Outside,
            held: BTreeMap::new(),
            target: BTreeSet::new(),
            beats: Heartbeats::new(now),
            commits: Commits::new(timing.commit),
            away_since: None,
            next_ticket: 0,
        }
    }

    /// Takes in what happened, and says what is to be done.
    pub(super) fn step(&mut self, now: Instant, input: Option<Input>, out: &mut Vec<Output>) {
        match input {
            Some(Input::Answered(answer)) => self.answered(now, answer, out),
            Some(Input::Failed(failure)) => self.failed(now, failure, out),
            Some(Input::Adopted(ticket, partitions)) => {
                self.found(
                    ticket,
                    |partition, held| {
                        if partitions.contains(partition) { Held::Active } else { held }
                    },
                );
            }
            Some(Input::Searched(ticket)) => {
                let again_at = Some(now + FIND_AGAIN);
                self.found(ticket, |_, _| Held::Finding { ticket, again_at });
            }
            Some(Input::Released(partitions)) => self.released(now, &partitions),
            Some(Input::CommitWanted) => self.commits.want(),
            Some(Input::Committed) => {
                let is_given_up = |held: &Held| matches!(held, Held::Committing { .. });
                for partition in self.commits.ended() {
                    if self.held.get(&partition).is_some_and(is_given_up) {
                        self.held.remove(&partition);
                    }
                }
            }
            Some(Input::CommitFailed(random)) => self.commits.failed(now, random),
            Some(Input::Application { away_since }) => self.application(away_since),
            Some(Input::Close { for_restart }) => self.leave(now, Why::Closed { for_restart }, out),
            None => {}
        }
        self.proceed(now, out);
        self.check_invariants();
    }

    /// When to step without an input at the latest; `None`: only an input goes on.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let timing = &self.timing;
        let of = |held: &Held| match held {
            Held::Finding { again_at, .. } => *again_at,
            Held::Active => None,
            Held::Revoking { since } => Some(*since + timing.release()),
            Held::Committing { since } => Some(*since + timing.rebalance),
        };
        let inside = matches!(self.standing, Standing::Inside(_));
        let committing = self.generation().is_some();
        let silent = matches!(self.standing, Standing::Away(_) | Standing::Over);
        self.held
            .values()
            .filter_map(of)
            .chain(self.beats.next_at().filter(|_| !silent))
            .chain(self.commits.next_at(!self.committing().is_empty()).filter(|_| committing))
            .chain(self.away_since.filter(|_| inside).map(|since| since + timing.poll_max))
            .min()
    }

    /// Until when the application may be given records without another answer of the coordinator: then others may have
    /// its partitions. `None`: it has none.
    pub(super) fn lease_until(&self) -> Option<Instant> {
        if self.held.is_empty() { None } else { self.beats.heard_since().map(|at| at + self.timing.session) }
    }

    /// The generation for commits and questions; `None` outside of the group.
    pub(super) const fn generation(&self) -> Option<u32> {
        match self.standing {
            Standing::Inside(generation) | Standing::Leaving { generation: generation @ 1.., .. } => {
                Some(generation)
            }
            _ => None,
        }
    }

    /// The partitions that this search was for and that are still looked for.
    pub(super) fn looked_for(&self, ticket: Ticket) -> Vec<TopicPartition> {
        let is_it =
            |held: &Held| matches!(held, Held::Finding { ticket: of, again_at: None } if *of == ticket);
        self.held.iter().filter(|(_, held)| is_it(held)).map(|(partition, _)| *partition).collect()
    }

    /// Whether the partition is the member's own, in whatever state.
    pub(super) fn holds(&self, partition: &TopicPartition) -> bool {
        self.held.contains_key(partition)
    }

    /// Panics when the state contradicts itself.
    fn check_invariants(&self) {
        if self.generation().is_none() {
            assert!(self.held.is_empty(), "only who is in the group owns anything");
        }
        let active = |held: &Held| matches!(held, Held::Active | Held::Finding { .. });
        for (partition, _) in self.held.iter().filter(|(_, held)| active(held)) {
            assert!(self.target.contains(partition), "{partition} is read without being assigned");
        }
        if matches!(self.standing, Standing::Leaving { .. }) {
            assert!(!self.held.values().any(active), "whoever leaves reads nothing");
        }
    }

    /// Changes what a search is still for.
    fn found(&mut self, ticket: Ticket, change: impl Fn(&TopicPartition, Held) -> Held) {
        for (partition, held) in &mut self.held {
            if matches!(held, Held::Finding { ticket: of, again_at: None } if *of == ticket) {
                *held = change(partition, *held);
            }
        }
    }

    fn answered(&mut self, now: Instant, answer: Answer, out: &mut Vec<Output>) {
        self.beats.answered(now, answer.interval, answer.assignment.is_some());
        match &mut self.standing {
            Standing::Outside => {
                self.standing = Standing::Inside(answer.generation);
                self.commits.begin(now);
            }
            Standing::Inside(generation) | Standing::Leaving { generation, .. } if answer.generation != 0 => {
                *generation = answer.generation;
            }
            _ => {}
        }
        if let Some(assignment) = answer.assignment {
            self.target = assignment;
        }
        match self.standing {
            Standing::Inside(_) => self.reconcile(now, out),
            Standing::Leaving { why, .. } if self.beats.has_left() => self.left(now, why, out),
            _ => {}
        }
    }

    /// Gives up what is not assigned any more and takes on what is newly assigned. All else is left alone.
    fn reconcile(&mut self, now: Instant, out: &mut Vec<Output>) {
        let mut revoked = Vec::new();
        let target = &self.target;
        self.held.retain(|partition, held| {
            if target.contains(partition) {
                return true;
            }
            if *held == Held::Active {
                *held = Held::Revoking { since: now };
                revoked.push(*partition);
            }
            // Nobody has read anything of what was still looked for.
            !matches!(held, Held::Finding { .. })
        });
        if !revoked.is_empty() {
            out.push(Output::Revoke(revoked));
        }
        let fresh: Vec<_> =
            self.target.iter().copied().filter(|partition| !self.held.contains_key(partition)).collect();
        self.find(fresh, out);
    }

    fn find(&mut self, partitions: Vec<TopicPartition>, out: &mut Vec<Output>) {
        if partitions.is_empty() {
            return;
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        for partition in &partitions {
            self.held.insert(*partition, Held::Finding { ticket, again_at: None });
        }
        out.push(Output::Find(ticket, partitions));
    }

    fn failed(&mut self, now: Instant, failure: Failure, out: &mut Vec<Output>) {
        let leaving = match self.standing {
            Standing::Leaving { why, .. } => Some(why),
            _ => None,
        };
        match failure {
            Failure::Lost(random) => self.beats.lost(now, random),
            // Whoever leaves and is not known has left.
            Failure::Fenced if leaving.is_some() => {
                self.lose(Reason::Over, out);
                self.left(now, leaving.unwrap_or(Why::Closed { for_restart: false }), out);
            }
            Failure::Fenced => {
                let was_inside = matches!(self.standing, Standing::Inside(_));
                self.lose(Reason::Fenced, out);
                self.standing = Standing::Outside;
                self.beats.join_again(now, was_inside);
            }
            Failure::InstanceInUse(error) => {
                let joining = self.standing == Standing::Outside;
                if !(joining && self.beats.refused(now, self.timing.session)) {
                    self.end(Some(error), out);
                }
            }
            Failure::Fatal(error) => self.end(Some(error), out),
        }
    }

    fn released(&mut self, now: Instant, partitions: &[TopicPartition]) {
        for partition in partitions {
            let Some(held) = self.held.get_mut(partition) else { continue };
            if matches!(held, Held::Revoking { .. }) {
                *held = Held::Committing { since: now };
            }
        }
    }

    fn application(&mut self, away_since: Option<Instant>) {
        self.away_since = away_since;
        if let Standing::Away(since) = self.standing
            && away_since != Some(since)
        {
            self.standing = Standing::Outside;
        }
    }

    /// Commits what is finished and leaves. Nothing is given to the application from here on.
    fn leave(&mut self, now: Instant, why: Why, out: &mut Vec<Output>) {
        match self.standing {
            Standing::Inside(generation) => {
                self.held.retain(|_, held| !matches!(held, Held::Finding { .. }));
                let all: Vec<_> = self.held.keys().copied().collect();
                for held in self.held.values_mut() {
                    *held = Held::Committing { since: now };
                }
                self.target.clear();
                if !all.is_empty() {
                    match why {
                        Why::Away(_) => out.push(Output::Lose(all, Reason::Away)),
                        Why::Closed { .. } => out.push(Output::TakeAway(all)),
                    }
                }
                self.standing = Standing::Leaving { generation, why, since: now };
            }
            Standing::Leaving { generation, since, .. } => {
                self.standing = Standing::Leaving { generation, why, since };
            }
            // It may be a member without knowing it.
            Standing::Outside if self.beats.is_under_way() => {
                self.standing = Standing::Leaving { generation: 0, why, since: now };
            }
            Standing::Outside | Standing::Away(_) => self.end(None, out),
            Standing::Over => {}
        }
    }

    fn left(&mut self, now: Instant, why: Why, out: &mut Vec<Output>) {
        self.held.clear();
        self.target.clear();
        match why {
            Why::Closed { .. } => self.end(None, out),
            Why::Away(since) => {
                self.standing = Standing::Away(since);
                self.beats.start_over(now);
            }
        }
    }

    fn lose(&mut self, reason: Reason, out: &mut Vec<Output>) {
        let lost: Vec<_> = std::mem::take(&mut self.held).into_keys().collect();
        self.target.clear();
        if !lost.is_empty() {
            out.push(Output::Lose(lost, reason));
        }
    }

    fn end(&mut self, error: Option<Error>, out: &mut Vec<Output>) {
        if self.standing != Standing::Over {
            self.lose(Reason::Over, out);
            self.standing = Standing::Over;
            out.push(Output::Ended(error));
        }
    }

    /// Does whatever is due.
    fn proceed(&mut self, now: Instant, out: &mut Vec<Output>) {
        if let (Standing::Inside(_), Some(since)) = (self.standing, self.away_since)
            && now >= since + self.timing.poll_max
        {
            self.leave(now, Why::Away(since), out);
        }
        self.take_away_overdue(now, out);
        self.find_again(now, out);
        let mut giving_up = self.committing();
        if self.timing.commit.is_none() && !self.commits.is_awaited() {
            // Only the application commits, and it has had its chance.
            self.held.retain(|partition, _| !giving_up.contains(partition));
        }
        if self.timing.commit.is_none() {
            giving_up.clear();
        }
        if self.generation().is_some() && self.commits.due(now, !giving_up.is_empty()) {
            self.commits.start(now, giving_up);
            out.push(Output::Commit);
        }
        self.beat(now, out);
    }

    /// What is to be given up after the next commit.
    fn committing(&self) -> Vec<TopicPartition> {
        let is = |held: &Held| matches!(held, Held::Committing { .. });
        self.held.iter().filter(|(_, held)| is(held)).map(|(partition, _)| *partition).collect()
    }

    /// What was not let go in time goes without the application, and what was not committed in time uncommitted: the
    /// coordinator would take everything else too.
    fn take_away_overdue(&mut self, now: Instant, out: &mut Vec<Output>) {
        let timing = self.timing;
        let mut taken = Vec::new();
        self.held.retain(|partition, held| match *held {
            Held::Revoking { since } if now >= since + timing.release() => {
                taken.push(*partition);
                *held = Held::Committing { since };
                now < since + timing.rebalance
            }
            Held::Committing { since } => now < since + timing.rebalance,
            _ => true,
        });
        if !taken.is_empty() {
            out.push(Output::TakeAway(taken));
        }
    }

    fn find_again(&mut self, now: Instant, out: &mut Vec<Output>) {
        let is_due = |held: &Held| matches!(held, Held::Finding { again_at: Some(at), .. } if now >= *at);
        let due: Vec<_> =
            self.held.iter().filter(|(_, held)| is_due(held)).map(|(partition, _)| *partition).collect();
        self.find(due, out);
    }

    /// Sends a heartbeat when one is due: when the time has come, or something was given up that others wait for.
    fn beat(&mut self, now: Instant, out: &mut Vec<Output>) {
        let (generation, action) = match self.standing {
            Standing::Outside => (0, Action::Alive),
            Standing::Inside(generation) => (generation, Action::Alive),
            Standing::Leaving { generation: 0, why, .. } if !self.beats.is_under_way() => {
                return self.left(now, why, out);
            }
            Standing::Leaving { generation, why, .. }
                if self.held.is_empty() && !self.commits.is_under_way() =>
            {
                let for_restart = matches!(why, Why::Closed { for_restart: true });
                (generation, if for_restart { Action::LeaveForRestart } else { Action::Leave })
            }
            // It says that it is alive while it commits.
            Standing::Leaving { generation, .. } => (generation, Action::Alive),
            Standing::Away(_) | Standing::Over => return,
        };
        if let Standing::Leaving { why, since, .. } = self.standing
            && now >= since + self.timing.rebalance
            && !self.beats.is_under_way()
        {
            // Nobody answers: the session will end by itself.
            return self.left(now, why, out);
        }
        let owned: BTreeSet<_> = self.held.keys().copied().collect();
        if let Some(heartbeat) = self.beats.due(now, generation, action, owned) {
            out.push(Output::Heartbeat(heartbeat));
        }
    }
}

impl Timing {
    /// How long the application may take to let go.
    fn release(&self) -> Duration {
        self.rebalance * RELEASE_SHARE.0 / RELEASE_SHARE.1
    }
}

#[cfg(test)]
mod tests;
