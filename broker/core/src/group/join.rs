//! A member joins: a new one, one that starts over, or one that takes the place of a static member.

use std::sync::Arc;
use std::time::Duration;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::limits::{
    GROUP_MEMBERS_MAX, GROUP_PATTERN_BYTES_MAX, GROUP_TOPICS_MAX, NAME_BYTES_MAX, TOPIC_NAME_BYTES_MAX,
};
use highwater_protocol::messages::{GroupHeartbeatRequest, GroupSubscription};

use super::assignor::Assignor;
use super::decision::{Decision, Event, Now, Refusal, Reply};
use super::draft::Draft;
use super::membership::Membership;
use super::record::{Change, Current, Profile, Subscription, Target};
use super::{GROUPS_MAX, GroupShard, pattern};

impl GroupShard {
    pub(super) fn join(
        &self,
        now: Now,
        request: &GroupHeartbeatRequest,
        host: &Arc<str>,
    ) -> Result<Decision, Refusal> {
        let known = self.groups.get_key_value(&*request.group);
        let name = known.map_or_else(|| Arc::from(request.group.as_str()), |(name, _)| Arc::clone(name));
        let membership = known.map(|(_, group)| group.membership.clone()).unwrap_or_default();
        let assignor = self.assignor_of(request, &membership)?;
        let profile = self.profile_of(request, host, membership.generation() + 1)?;
        let instead_of = self.whose_place(now, request, &membership)?;
        let id: Arc<str> = Arc::from(request.member_id.as_str());
        let is_there =
            membership.member(&id).map(|(_, profile, member)| !profile.away && member.current.is_some());
        if is_there.is_none() && instead_of.is_none() {
            self.check_room(request, &membership, known.is_some())?;
        }
        let mut draft = Draft::new(&name, membership, now);
        if is_there == Some(true) && !cfg!(hw_mutate = "group_join_starts_over") {
            return Ok(self.join_again(draft, &id, request));
        }
        enter(&mut draft, &id, profile, instead_of.as_ref(), assignor);
        draft.assign_if_due(&self.topics);
        draft.reconcile(&id, None);
        draft.events.push(Event::Joined { group: Arc::clone(&name), member: Arc::clone(&id), instead_of });
        let reply = self.reply(now.mono, &draft.membership, &id, request, None, true);
        Ok(Decision::reply(Reply::Heartbeat(reply)).heard(&name, &id).with(draft))
    }

    /// The member is there already: the answer to its join was lost, or this is a join that was on its way for long. In
    /// neither case may it cost the member what it has been given since.
    fn join_again(&self, mut draft: Draft, id: &Arc<str>, request: &GroupHeartbeatRequest) -> Decision {
        let name = Arc::clone(draft.group());
        draft.reconcile(id, None);
        let reply = self.reply(draft.now.mono, &draft.membership, id, request, None, true);
        Decision::reply(Reply::Heartbeat(reply)).heard(&name, id).with(draft)
    }

    fn assignor_of(
        &self,
        request: &GroupHeartbeatRequest,
        membership: &Membership,
    ) -> Result<Assignor, Refusal> {
        let Some(wanted) = request.assignor.as_deref() else {
            return Ok(membership.assignor().unwrap_or(self.config.assignor));
        };
        Assignor::from_name(wanted).ok_or_else(|| {
            let names = Assignor::ALL.map(Assignor::name).join(", ");
            let message = format!("'{}' is no assignor: use one of {names}", wanted.escape_default());
            Refusal::new(ErrorCode::InvalidGroup, message)
        })
    }

    fn profile_of(
        &self,
        request: &GroupHeartbeatRequest,
        host: &Arc<str>,
        joined: u32,
    ) -> Result<Profile, Refusal> {
        let subscription =
            request.subscription.as_ref().ok_or_else(|| invalid("a member joins with a subscription"))?;
        let rack = request.rack.as_deref().filter(|rack| !rack.is_empty());
        for (what, text) in [("client", request.client.as_str()), ("rack", rack.unwrap_or_default())] {
            if text.len() > NAME_BYTES_MAX {
                return Err(invalid(&format!(
                    "the name of the {what} has {} bytes and may have {NAME_BYTES_MAX}",
                    text.len()
                )));
            }
        }
        let config = &self.config;
        Ok(Profile {
            instance_id: request.instance_id.as_deref().map(Arc::from),
            rack: rack.map(Arc::from),
            client: Arc::from(request.client.as_str()),
            host: Arc::clone(host),
            session_timeout_ms: timeout(
                "session",
                request.session_timeout_ms,
                config.session_timeout,
                (config.session_timeout_min, config.session_timeout_max),
            )?,
            rebalance_timeout_ms: timeout(
                "rebalance",
                request.rebalance_timeout_ms,
                config.rebalance_timeout,
                (Duration::from_millis(1), config.rebalance_timeout_max),
            )?,
            subscription: subscription_of(subscription)?,
            joined,
            subscribed: joined,
            away: false,
        })
    }

    /// The static member whose place is taken, if there is one with this instance id and it is gone.
    fn whose_place(
        &self,
        now: Now,
        request: &GroupHeartbeatRequest,
        membership: &Membership,
    ) -> Result<Option<Arc<str>>, Refusal> {
        let instance = request.instance_id.as_deref();
        let Some((id, profile, member)) = instance.and_then(|instance| membership.instance(instance)) else {
            return Ok(None);
        };
        if **id == *request.member_id {
            return Ok(None);
        }
        let silence = self.config.suspicion(profile.session_timeout_ms);
        if profile.away || request.take_over || now.mono.since(member.heard) > silence {
            return Ok(Some(Arc::clone(id)));
        }
        let message = format!(
            "member {id} of group {} has the instance id {} and was heard of {} ms ago: stop it, or take over",
            request.group,
            instance.unwrap_or_default(),
            now.mono.since(member.heard).as_millis(),
        );
        Err(Refusal::new(ErrorCode::InstanceInUse, message))
    }

    fn check_room(
        &self,
        request: &GroupHeartbeatRequest,
        membership: &Membership,
        known: bool,
    ) -> Result<(), Refusal> {
        if membership.member_count() >= GROUP_MEMBERS_MAX {
            let message =
                format!("group {} has {GROUP_MEMBERS_MAX} members, as many as it may", request.group);
            return Err(Refusal::new(ErrorCode::GroupFull, message));
        }
        if !known && self.groups.len() >= GROUPS_MAX {
            return Err(too_many_groups(&request.group));
        }
        Ok(())
    }
}

pub(super) fn too_many_groups(group: &str) -> Refusal {
    let message =
        format!("the coordinator of group {group} has {GROUPS_MAX} groups, as many as it may: delete some");
    Refusal::new(ErrorCode::GroupFull, message)
}

/// The member is in the group, under a new generation. If it (or the one whose place it takes) is to have the same as
/// before, no assignment is due: nothing moves.
fn enter(
    draft: &mut Draft,
    id: &Arc<str>,
    profile: Profile,
    instead_of: Option<&Arc<str>>,
    assignor: Assignor,
) {
    let was_due = draft.membership.is_assignment_due();
    let before = draft.membership.member(instead_of.unwrap_or(id));
    let inherited = before.and_then(|(_, was, member)| {
        let alike = was.subscription == profile.subscription
            && was.rack == profile.rack
            && was.instance_id == profile.instance_id;
        member.target.clone().map(|target| (target, alike))
    });
    let same_assignor = draft.membership.assignor() == Some(assignor);
    if let Some(other) = instead_of {
        draft.remove(other);
    }
    draft.push(Change::Member(Arc::clone(id), Some(Arc::new(profile))));
    draft.raise_generation(assignor);
    let generation = draft.membership.generation();
    // What it may own is nothing before it has a target of this generation: then it gets that as new.
    draft.push(Change::Current(Arc::clone(id), Some(Current { generation, ..Current::default() })));
    if let Some((target, alike)) = inherited {
        // Otherwise an assignment of this very generation follows: what was inherited is where it starts from, and not
        // yet the member's, or the two could not be told apart.
        let is_final = alike && same_assignor && !was_due;
        let generation = if is_final { generation } else { target.generation };
        draft.push(Change::Target(Arc::clone(id), Some(Target { generation, ..target })));
        if is_final {
            draft.set_assigned();
        }
    }
}

fn invalid(message: &str) -> Refusal {
    Refusal::new(ErrorCode::InvalidRequest, message.to_owned())
}

fn timeout(
    what: &str,
    asked_ms: u32,
    default: Duration,
    (min, max): (Duration, Duration),
) -> Result<u32, Refusal> {
    let asked = if asked_ms == 0 { default } else { Duration::from_millis(asked_ms.into()) };
    if asked < min || asked > max {
        return Err(invalid(&format!(
            "a {what} time-out of {} ms is not between {} ms and {} ms",
            asked.as_millis(),
            min.as_millis(),
            max.as_millis()
        )));
    }
    Ok(u32::try_from(asked.as_millis()).unwrap_or(u32::MAX))
}

pub(super) fn subscription_of(asked: &GroupSubscription) -> Result<Subscription, Refusal> {
    if asked.topics.len() > GROUP_TOPICS_MAX {
        return Err(invalid(&format!(
            "a subscription names {} topics and may name {GROUP_TOPICS_MAX}: use a pattern",
            asked.topics.len()
        )));
    }
    if let Some(name) = asked.topics.iter().find(|name| name.is_empty() || name.len() > TOPIC_NAME_BYTES_MAX)
    {
        return Err(invalid(&format!("no topic can have a name of {} bytes", name.len())));
    }
    let pattern = asked.pattern.as_deref().filter(|pattern| !pattern::is_empty(pattern));
    if let Some(pattern) = pattern.filter(|pattern| pattern.len() > GROUP_PATTERN_BYTES_MAX) {
        return Err(Refusal::new(
            ErrorCode::InvalidGroup,
            format!("the pattern has {} bytes and may have {GROUP_PATTERN_BYTES_MAX}", pattern.len()),
        ));
    }
    let mut topics: Vec<Arc<str>> = asked.topics.iter().map(|name| Arc::from(name.as_str())).collect();
    topics.sort_unstable();
    topics.dedup();
    if topics.is_empty() && pattern.is_none() {
        return Err(invalid("a subscription names topics, or a pattern, or both"));
    }
    Ok(Subscription { topics, pattern: pattern.map(Arc::from) })
}
