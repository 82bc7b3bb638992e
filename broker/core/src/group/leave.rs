//! A member leaves, for good or for a restart.

use std::sync::Arc;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::{GroupAssignment, GroupHeartbeatReply, GroupHeartbeatRequest};

use super::GroupShard;
use super::decision::{Decision, Event, Now, Refusal, Reply};
use super::draft::Draft;
use super::heartbeat::{check_generation, known_member};
use super::record::{Change, Profile, Record};

impl GroupShard {
    /// What the member owned is free at once. Leaving twice is the same as leaving once.
    pub(super) fn leave(&self, now: Now, request: &GroupHeartbeatRequest) -> Result<Decision, Refusal> {
        let Some((name, group)) = self.groups.get_key_value(&*request.group) else { return Ok(left()) };
        let membership = &group.membership;
        let Some((id, profile, member)) = membership.member(&request.member_id) else { return Ok(left()) };
        if request.generation != 0 {
            check_generation(request, profile, member)?;
        }
        let mut draft = Draft::new(name, membership.clone(), now);
        draft.remove(id);
        draft.raise_generation(membership.assignor().unwrap_or(self.config.assignor));
        draft.assign_if_due(&self.topics);
        draft.events.push(Event::Left { group: Arc::clone(name), member: Arc::clone(id) });
        Ok(left().with(draft))
    }

    /// What the static member owned waits for the next one with its instance id, for a session time-out from now on.
    pub(super) fn leave_for_restart(&self, request: &GroupHeartbeatRequest) -> Result<Decision, Refusal> {
        if request.instance_id.is_none() {
            let message = "only a member with an instance id leaves for a restart: leave for good".to_owned();
            return Err(Refusal::new(ErrorCode::InvalidRequest, message));
        }
        let Some((name, group)) = self.groups.get_key_value(&*request.group) else { return Ok(left()) };
        let (id, profile, member) = known_member(&group.membership, request)?;
        check_generation(request, profile, member)?;
        let profile = Profile { away: true, ..(**profile).clone() };
        let record = Record::new(name, Change::Member(Arc::clone(id), Some(Arc::new(profile))));
        Ok(left().with_records(vec![record]))
    }
}

fn left() -> Decision {
    Decision::reply(Reply::Heartbeat(GroupHeartbeatReply {
        generation: 0,
        heartbeat_interval_ms: 0,
        assignment: Some(GroupAssignment::default()),
        unmatched_topics: Vec::new(),
    }))
}
