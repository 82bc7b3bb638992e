//! When a coordinator has to look at what.
//!
//! A heartbeat moves no timer: a member is looked at when its session would have ended by what was known when the timer
//! was set, and then again later if it was heard of since.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Group;
use super::config::GroupConfig;
use super::membership::Membership;
use super::record::Change;
use crate::time::Mono;

/// Between two assignments of a group at least this long for each member, so that many that join at once cost one
/// assignment, not one each.
const ASSIGN_PAUSE_PER_MEMBER: Duration = Duration::from_millis(1);

/// The longest pause between two assignments.
const ASSIGN_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// An assignment of a group.
    Group(Arc<str>),
    /// A member of a group.
    Member(Arc<str>, Arc<str>),
    /// Old positions.
    Expiry,
}

/// Timers in the order in which they are due.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeSet<(Mono, Timer)>,
}

impl Timers {
    pub(super) fn first(&self) -> Option<Mono> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes the first timer that is due.
    pub(super) fn pop(&mut self, now: Mono) -> Option<(Mono, Timer)> {
        if self.first()? > now {
            return None;
        }
        self.due.pop_first()
    }

    pub(super) fn set(&mut self, at: Mono, timer: Timer) {
        self.due.insert((at, timer));
    }

    pub(super) fn clear(&mut self, at: Mono, timer: Timer) {
        self.due.remove(&(at, timer));
    }

    /// Sets the group's timer, in place of a later one.
    pub(super) fn move_group(&mut self, name: &Arc<str>, timer: &mut Option<Mono>, at: Mono) {
        if timer.is_some_and(|set| set <= at) {
            return;
        }
        if let Some(set) = timer.replace(at) {
            self.clear(set, Timer::Group(Arc::clone(name)));
        }
        self.set(at, Timer::Group(Arc::clone(name)));
    }

    /// Follows a change that was just applied.
    pub(super) fn follow(
        &mut self,
        config: &GroupConfig,
        now: Mono,
        name: &Arc<str>,
        group: &mut Group,
        change: &Change,
    ) {
        match change {
            Change::Group(_) if group.membership.is_assignment_due() => {
                let at = assign_after(&group.membership).max(now);
                self.move_group(name, &mut group.timer, at);
            }
            Change::Member(id, Some(_)) | Change::Current(id, Some(_)) => {
                let Some((_, profile, member)) = group.membership.member(id) else { return };
                let deadline = member.next_look(config, profile, now);
                if member.timer.is_some_and(|set| set <= deadline) {
                    return;
                }
                let before = member.timer;
                let timer = |at| (at, Timer::Member(Arc::clone(name), Arc::clone(id)));
                if let Some(at) = before {
                    self.due.remove(&timer(at));
                }
                self.due.insert(timer(deadline));
                if let Some(member) = group.membership.member_mut(id) {
                    member.timer = Some(deadline);
                }
            }
            _ => {}
        }
    }
}

/// Before this an assignment waits for others to come.
pub(super) fn assign_after(membership: &Membership) -> Mono {
    let members = u32::try_from(membership.member_count()).unwrap_or(u32::MAX);
    let pause = ASSIGN_PAUSE_PER_MEMBER.saturating_mul(members).min(ASSIGN_PAUSE_MAX);
    membership.assigned_at.map_or(Mono::default(), |at| at.after(pause))
}
