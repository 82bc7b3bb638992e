//! What time does to groups: sessions end, assignments become due, positions expire.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::decision::{Decision, Event, FenceReason, Now, Reply};
use super::draft::Draft;
use super::timers::{Timer, assign_after};
use super::{Group, GroupShard};

/// Groups that one tick looks at.
const TICK_GROUPS_MAX: usize = 64;

/// Timers that one tick looks at.
const TICK_TIMERS_MAX: usize = 4096;

/// What is due in a group.
#[derive(Default)]
struct Due {
    assignment: bool,
    members: Vec<Arc<str>>,
}

impl GroupShard {
    /// Decides what is due. Bounded: if there is more, the next deadline is due already.
    ///
    /// Only timers change here, which are no part of the state; the records are for [`GroupShard::accept`].
    pub fn tick(&mut self, now: Now) -> Decision {
        let mut decision = Decision::reply(Reply::Done);
        let mut due: BTreeMap<Arc<str>, Due> = BTreeMap::new();
        let mut looked_at = 0;
        while due.len() < TICK_GROUPS_MAX && looked_at < TICK_TIMERS_MAX {
            let Some((at, timer)) = self.timers.pop(now.mono) else { break };
            looked_at += 1;
            match timer {
                Timer::Expiry => {
                    decision.records.append(&mut self.expire_some(now));
                }
                Timer::Group(name) => {
                    let timer = self.groups.get_mut(&name).map(|group| &mut group.timer);
                    if timer.is_some_and(|timer| timer.take_if(|set| *set == at).is_some()) {
                        due.entry(name).or_default().assignment = true;
                    }
                }
                Timer::Member(name, id) => {
                    if self.is_overdue(now, at, &name, &id) {
                        due.entry(name).or_default().members.push(id);
                    }
                }
            }
        }
        for (name, due) in due {
            self.decide_due(now, &name, &due, &mut decision);
        }
        decision
    }

    /// Whether the member's time is up. If not, its timer is set anew.
    fn is_overdue(&mut self, now: Now, at: crate::time::Mono, name: &Arc<str>, id: &Arc<str>) -> bool {
        let Some(group) = self.groups.get_mut(name) else { return false };
        let Some((_, profile, member)) = group.membership.member(id) else { return false };
        if member.timer != Some(at) {
            return false;
        }
        let deadline = member.deadline(profile);
        let overdue = deadline <= now.mono;
        let look = member.next_look(&self.config, profile, now.mono);
        if !overdue {
            self.timers.set(look, Timer::Member(Arc::clone(name), Arc::clone(id)));
        }
        if let Some(member) = group.membership.member_mut(id) {
            member.timer = (!overdue).then_some(look);
        }
        if !overdue && look == deadline {
            group.membership.suspect(deadline, now.mono);
        }
        overdue
    }

    fn decide_due(&mut self, now: Now, name: &Arc<str>, due: &Due, decision: &mut Decision) {
        let Some(Group { membership, timer, .. }) = self.groups.get_mut(name) else { return };
        let mut draft = Draft::new(name, membership.clone(), now);
        for id in &due.members {
            let Some((_, profile, member)) = membership.member(id) else { continue };
            let session = std::time::Duration::from_millis(profile.session_timeout_ms.into());
            let silent = member.heard.after(session) <= now.mono;
            let reason = if silent { FenceReason::Session } else { FenceReason::Rebalance };
            draft.remove(id);
            draft.events.push(Event::Fenced { group: Arc::clone(name), member: Arc::clone(id), reason });
        }
        if !due.members.is_empty() {
            draft.raise_generation(membership.assignor().unwrap_or(self.config.assignor));
        }
        let not_before = assign_after(&draft.membership);
        if not_before <= now.mono {
            draft.assign(&self.topics);
        } else if due.assignment {
            self.timers.move_group(name, timer, not_before);
        }
        if !due.members.is_empty() {
            draft.membership.find_suspect(&self.config, now.mono);
            membership.suspect = draft.membership.suspect;
        }
        decision.records.append(&mut draft.records);
        decision.events.append(&mut draft.events);
    }
}
