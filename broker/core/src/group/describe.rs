//! What people are told about groups, and removing a group.

use std::collections::BTreeSet;
use std::sync::Arc;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{LeaderEpoch, TopicPartition};
use highwater_protocol::messages::{DescribedGroup, GroupLag, GroupMember, ListedGroup};

use super::decision::{Decision, Now, Refusal, Reply};
use super::heartbeat::assignment_of;
use super::membership::{Member, Membership};
use super::record::{Change, Profile, Record};
use super::{Group, GroupShard};

impl GroupShard {
    pub(super) fn list(&self) -> Decision {
        let listed = self.groups.iter().map(|(name, group)| ListedGroup {
            group: name.to_string(),
            state: state_name(&group.membership).to_owned(),
            members: u32::try_from(group.membership.member_count()).unwrap_or(u32::MAX),
            assignor: self.assignor_name(&group.membership),
        });
        Decision::reply(Reply::List(listed.collect()))
    }

    pub(super) fn describe(&self, now: Now, name: &str) -> Result<Decision, Refusal> {
        let group = self.groups.get(name).ok_or_else(|| unknown_group(name))?;
        let membership = &group.membership;
        let mut partitions: BTreeSet<TopicPartition> =
            group.offsets.iter().map(|(partition, _)| *partition).collect();
        partitions.extend(membership.owned().map(|(partition, _)| *partition));
        let described = DescribedGroup {
            group: name.to_owned(),
            error: 0,
            message: String::new(),
            state: state_name(membership).to_owned(),
            generation: membership.generation(),
            assignor: self.assignor_name(membership),
            coordinator: 0,
            members: membership
                .members()
                .map(|(id, profile, member)| described_member(now, membership, id, profile, member))
                .collect(),
            offsets: partitions.into_iter().map(|partition| self.lag(now, group, partition)).collect(),
        };
        Ok(Decision::reply(Reply::Describe(Box::new(described))))
    }

    /// Removes a group without members: its positions first, so that what is left after half of it is still a group.
    pub(super) fn delete(&self, name: &str) -> Result<Decision, Refusal> {
        let (name, group) = self.groups.get_key_value(name).ok_or_else(|| unknown_group(name))?;
        let members = group.membership.member_count();
        if members > 0 {
            let message = format!("group {name} has {members} members");
            return Err(Refusal::new(ErrorCode::GroupNotEmpty, message));
        }
        let positions = group.offsets.iter().map(|(partition, _)| Change::Position(*partition, None));
        let epochs = group.membership.epochs.map(|_| Change::Group(None));
        let records = positions.chain(epochs).map(|change| Record::new(name, change)).collect();
        Ok(Decision::reply(Reply::Done).with_records(records))
    }

    fn assignor_name(&self, membership: &Membership) -> String {
        membership.assignor().unwrap_or(self.config.assignor).name().to_owned()
    }

    fn lag(&self, now: Now, group: &Group, partition: TopicPartition) -> GroupLag {
        let position = group.offsets.get(partition);
        let topic = self.topics.get(partition.topic_id);
        GroupLag {
            topic_id: Some(partition.topic_id.into()),
            topic: topic.map_or_else(String::new, |topic| topic.name.to_string()),
            partition: partition.partition.get(),
            committed: position.map(|position| position.offset.get()),
            log_start: None,
            high_watermark: None,
            lag: None,
            member_id: group.membership.owner(partition).map(ToString::to_string),
            metadata: position.map_or_else(String::new, |position| position.metadata.to_string()),
            commit_time_ms: position.map_or(0, |position| position.commit_time_ms),
            leader_epoch: position.and_then(|position| position.leader_epoch).map(LeaderEpoch::get),
            offsets_per_minute: group.offsets.offsets_per_minute(partition, now.wall.as_millis()),
        }
    }
}

fn unknown_group(name: &str) -> Refusal {
    Refusal::new(ErrorCode::UnknownGroup, format!("there is no group {name}"))
}

fn state_name(membership: &Membership) -> &'static str {
    if membership.member_count() == 0 {
        "empty"
    } else if membership.is_assignment_due() {
        "assigning"
    } else if membership.members().all(|(_, _, member)| member.is_settled(membership.assigned())) {
        "stable"
    } else {
        "moving"
    }
}

fn described_member(
    now: Now,
    membership: &Membership,
    id: &Arc<str>,
    profile: &Profile,
    member: &Member,
) -> GroupMember {
    let current = member.current.clone().unwrap_or_default();
    let state = if profile.away {
        "away"
    } else if member.is_settled(membership.assigned()) {
        "stable"
    } else if current.revoking.is_empty() {
        "waiting"
    } else {
        "revoking"
    };
    let mut assigned = current.assigned;
    assigned.extend(current.revoking);
    let heard = now.mono.since(member.heard);
    GroupMember {
        member_id: id.to_string(),
        instance_id: profile.instance_id.as_deref().map(ToOwned::to_owned),
        rack: profile.rack.as_deref().map(ToOwned::to_owned),
        client: profile.client.to_string(),
        host: profile.host.to_string(),
        generation: current.generation,
        state: state.to_owned(),
        assigned: Some(assignment_of(assigned.keys())),
        target: member.target.as_ref().map(|target| assignment_of(target.partitions.iter())),
        topics: profile.subscription.topics.iter().map(ToString::to_string).collect(),
        pattern: profile.subscription.pattern.as_deref().map(ToOwned::to_owned),
        heard_ms_ago: u64::try_from(heard.as_millis()).unwrap_or(u64::MAX),
        session_timeout_ms: profile.session_timeout_ms,
    }
}
