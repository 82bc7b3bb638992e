//! A member says that it is alive, and is told what it may own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::group_name::{check_group_name, check_instance_id, check_member_id};
use highwater_protocol::ids::{PartitionId, TopicPartition};
use highwater_protocol::messages::{
    GroupAction, GroupAssignment, GroupHeartbeatReply, GroupHeartbeatRequest, GroupPartitions,
};

use super::GroupShard;
use super::decision::{Decision, Now, Refusal, Reply};
use super::draft::{Draft, reconciled};
use super::join::subscription_of;
use super::membership::{Member, Membership};
use super::record::{Change, Current, Profile};
use crate::time::Mono;

impl GroupShard {
    pub(super) fn heartbeat(
        &self,
        now: Now,
        request: &GroupHeartbeatRequest,
        host: &Arc<str>,
    ) -> Result<Decision, Refusal> {
        check_names(request)?;
        let action = GroupAction::try_from(request.action).map_err(|_| {
            let message = format!("a heartbeat has no action {}: upgrade the broker", request.action);
            Refusal::new(ErrorCode::InvalidRequest, message)
        })?;
        match action {
            GroupAction::Alive if request.generation == 0 => self.join(now, request, host),
            GroupAction::Alive => self.alive(now, request),
            GroupAction::Leave => self.leave(now, request),
            GroupAction::LeaveForRestart => self.leave_for_restart(request),
        }
    }

    fn alive(&self, now: Now, request: &GroupHeartbeatRequest) -> Result<Decision, Refusal> {
        let (name, group) =
            self.groups.get_key_value(&*request.group).ok_or_else(|| unknown_member(request))?;
        let membership = &group.membership;
        let (id, profile, member) = known_member(membership, request)?;
        let current = check_generation(request, profile, member)?;
        let owned = request.owned.as_ref().map(partitions_of).transpose()?;
        let seen = owned.as_ref().map(|owned| (request.generation, owned));
        let wanted = request.subscription.as_ref().map(subscription_of).transpose()?;
        // What was said under an earlier generation, or before the member was told what came of an earlier change, may
        // have been on its way for long. The member says it again after the reply.
        let timely = (request.generation == current.generation
            && member.valid_target(membership.assigned()).is_some())
            || cfg!(hw_mutate = "group_subscription_of_an_old_heartbeat");
        let wanted = wanted.filter(|subscription| timely && *subscription != profile.subscription);
        if let Some(subscription) = wanted {
            let mut draft = Draft::new(name, membership.clone(), now);
            let subscribed = membership.generation() + 1;
            let profile = Profile { subscription, subscribed, ..(**profile).clone() };
            draft.push(Change::Member(Arc::clone(id), Some(Arc::new(profile))));
            draft.raise_generation(membership.assignor().unwrap_or(self.config.assignor));
            draft.assign_if_due(&self.topics);
            draft.reconcile(id, seen);
            let reply = self.reply(now.mono, &draft.membership, id, request, owned.as_ref(), true);
            return Ok(Decision::reply(Reply::Heartbeat(reply)).heard(name, id).with(draft));
        }
        let settled = member.is_settled(membership.assigned()) && request.generation == current.generation;
        let next = if settled { None } else { reconciled(membership, id, member, seen) };
        let Some(next) = next else {
            let reply = self.reply(now.mono, membership, id, request, owned.as_ref(), false);
            return Ok(Decision::reply(Reply::Heartbeat(reply)).heard(name, id));
        };
        let mut draft = Draft::new(name, membership.clone(), now);
        draft.push(Change::Current(Arc::clone(id), Some(next)));
        let reply = self.reply(now.mono, &draft.membership, id, request, owned.as_ref(), true);
        Ok(Decision::reply(Reply::Heartbeat(reply)).heard(name, id).with(draft))
    }

    /// What the member is told. Everything that it may own is named when it is not what it was told last, or not what
    /// it says.
    pub(super) fn reply(
        &self,
        now: Mono,
        membership: &Membership,
        id: &str,
        request: &GroupHeartbeatRequest,
        owned: Option<&BTreeSet<TopicPartition>>,
        changed: bool,
    ) -> GroupHeartbeatReply {
        let Some((_, profile, member)) = membership.member(id) else { return GroupHeartbeatReply::default() };
        let nothing = Current::default();
        let current = member.current.as_ref().unwrap_or(&nothing);
        let differs = owned.is_some_and(|owned| !current.assigned.keys().eq(owned));
        let told = changed || differs || request.generation != current.generation;
        let interval = self.interval(now, membership, profile, member);
        GroupHeartbeatReply {
            generation: current.generation,
            heartbeat_interval_ms: u32::try_from(interval.as_millis()).unwrap_or(u32::MAX),
            assignment: told.then(|| assignment_of(current.assigned.keys())),
            unmatched_topics: if told { self.topics.unmatched(&profile.subscription) } else { Vec::new() },
        }
    }

    fn interval(&self, now: Mono, membership: &Membership, profile: &Profile, member: &Member) -> Duration {
        let regular = self.config.regular_interval(profile.session_timeout_ms);
        if member.is_settled(membership.assigned()) && !membership.is_assignment_due() {
            // If another one is about to be fenced, this one hears of its share soon after.
            let step = self.config.hand_over_interval;
            let suspect = membership.suspect.filter(|deadline| deadline.after(step * 2) > now);
            return suspect.map_or(regular, |deadline| regular.min(deadline.since(now) + step));
        }
        let members = u64::try_from(membership.member_count()).unwrap_or(u64::MAX);
        regular.min(self.config.hand_over_interval.max(Duration::from_millis(members)))
    }
}

fn check_names(request: &GroupHeartbeatRequest) -> Result<(), Refusal> {
    check_group_name(&request.group)
        .and_then(|()| check_member_id(&request.member_id))
        .and_then(|()| request.instance_id.as_deref().map_or(Ok(()), check_instance_id))
        .map_err(|error| Refusal::new(ErrorCode::InvalidGroup, error.to_string()))
}

pub(super) fn unknown_member(request: &GroupHeartbeatRequest) -> Refusal {
    let GroupHeartbeatRequest { group, member_id, .. } = request;
    let message = format!(
        "group {group} has no member {member_id} (any more): it owns nothing, and may join again under another id"
    );
    Refusal::new(ErrorCode::UnknownMember, message)
}

/// The member that speaks, unless another one has its place by now.
pub(super) fn known_member<'a>(
    membership: &'a Membership,
    request: &GroupHeartbeatRequest,
) -> Result<(&'a Arc<str>, &'a Arc<Profile>, &'a Member), Refusal> {
    let instance = request.instance_id.as_deref().and_then(|instance| membership.instance(instance));
    if let Some((id, _, _)) = instance.filter(|(id, _, _)| ***id != *request.member_id) {
        let message = format!(
            "in group {}, member {id} has the instance id {}: this one was replaced, or has to take over",
            request.group,
            request.instance_id.as_deref().unwrap_or_default(),
        );
        return Err(Refusal::new(ErrorCode::InstanceInUse, message));
    }
    let known = membership.member(&request.member_id).filter(|(_, profile, _)| !profile.away);
    known.ok_or_else(|| unknown_member(request))
}

/// What the member may own, if it speaks of a generation in which it was a member.
pub(super) fn check_generation<'a>(
    request: &GroupHeartbeatRequest,
    profile: &Profile,
    member: &'a Member,
) -> Result<&'a Current, Refusal> {
    let current = member.current.as_ref();
    let known = |current: &&Current| (profile.joined..=current.generation).contains(&request.generation);
    current.filter(known).ok_or_else(|| {
        let message = format!(
            "member {} of group {} is in generation {}, not in {}: it has to join again",
            request.member_id,
            request.group,
            current.map_or(0, |current| current.generation),
            request.generation,
        );
        Refusal::new(ErrorCode::FencedGeneration, message)
    })
}

pub(super) fn partitions_of(assignment: &GroupAssignment) -> Result<BTreeSet<TopicPartition>, Refusal> {
    let mut partitions = BTreeSet::new();
    for GroupPartitions { topic_id, partitions: numbers } in &assignment.topics {
        let Some(topic_id) = *topic_id else {
            let message = "partitions without a topic id".to_owned();
            return Err(Refusal::new(ErrorCode::InvalidRequest, message));
        };
        partitions
            .extend(numbers.iter().map(|number| TopicPartition::new(topic_id.into(), PartitionId(*number))));
    }
    Ok(partitions)
}

/// Sorted partitions by topic.
pub(super) fn assignment_of<'a>(partitions: impl Iterator<Item = &'a TopicPartition>) -> GroupAssignment {
    let mut topics: Vec<GroupPartitions> = Vec::new();
    for partition in partitions {
        let topic_id = Some(partition.topic_id.into());
        match topics.last_mut() {
            Some(last) if last.topic_id == topic_id => last.partitions.push(partition.partition.get()),
            _ => topics.push(GroupPartitions { topic_id, partitions: vec![partition.partition.get()] }),
        }
    }
    GroupAssignment { topics }
}
