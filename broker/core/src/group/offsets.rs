//! Positions: committed, asked for, changed by operators.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::group_name::check_group_name;
use highwater_protocol::ids::{LeaderEpoch, Offset, PartitionId, TopicPartition};
use highwater_protocol::limits::{COMMIT_OFFSETS_MAX, OFFSET_METADATA_BYTES_MAX};
use highwater_protocol::messages::{
    AlterGroupOffsetsReply, AlterGroupOffsetsRequest, AlteredOffset, CommitOffset, CommitOffsetsReply,
    CommitOffsetsRequest, CommittedOffset, FetchOffsetsReply, FetchOffsetsRequest, OffsetTarget,
    PartitionResult, Uuid,
};

use super::decision::{Decision, Now, Refusal, Reply};
use super::join::too_many_groups;
use super::membership::Membership;
use super::record::{Change, Current, Position, Record};
use super::{GROUP_POSITIONS_MAX, GROUPS_MAX, Group, GroupShard};

/// Positions are counted over at least this long, for the speed that is shown.
const SPEED_WINDOW_MS: i64 = 10_000;

/// A position that has not moved for this long stands still.
const STANDSTILL_MS: i64 = 60_000;

/// The positions of a group.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    positions: BTreeMap<TopicPartition, Entry>,
}

#[derive(Debug)]
struct Entry {
    position: Position,
    /// Where and when the speed is counted from. Not recorded.
    since: (u64, i64),
    /// Offsets a minute. Not recorded.
    speed: Option<u64>,
}

impl Offsets {
    pub(super) fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.positions.len()
    }

    pub(super) fn get(&self, partition: TopicPartition) -> Option<&Position> {
        self.positions.get(&partition).map(|entry| &entry.position)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&TopicPartition, &Position)> {
        self.positions.iter().map(|(partition, entry)| (partition, &entry.position))
    }

    /// How many offsets a minute the position has moved by lately, if that is known.
    pub(super) fn offsets_per_minute(&self, partition: TopicPartition, now_ms: i64) -> Option<u64> {
        let entry = self.positions.get(&partition)?;
        let idle = now_ms.saturating_sub(entry.position.commit_time_ms) > STANDSTILL_MS;
        entry.speed.map(|speed| if idle { 0 } else { speed })
    }

    pub(super) fn apply(&mut self, partition: TopicPartition, position: Option<&Position>) {
        let Some(position) = position else {
            self.positions.remove(&partition);
            return;
        };
        let here = (position.offset.get(), position.commit_time_ms);
        let Some(entry) = self.positions.get_mut(&partition) else {
            let entry = Entry { position: position.clone(), since: here, speed: None };
            self.positions.insert(partition, entry);
            return;
        };
        entry.position.clone_from(position);
        let took_ms = here.1.saturating_sub(entry.since.1);
        if here.0 < entry.since.0 || took_ms < 0 {
            (entry.since, entry.speed) = (here, None);
        } else if took_ms >= SPEED_WINDOW_MS || (entry.speed.is_none() && took_ms > 0) {
            let minutes = (here.0 - entry.since.0).saturating_mul(60_000);
            entry.speed = Some(minutes / took_ms.unsigned_abs());
            if took_ms >= SPEED_WINDOW_MS {
                entry.since = here;
            }
        }
    }
}

impl GroupShard {
    pub(super) fn commit(&self, now: Now, request: &CommitOffsetsRequest) -> Result<Decision, Refusal> {
        check_name(&request.group)?;
        check_count(request.offsets.len())?;
        let known = self.groups.get_key_value(&*request.group);
        let committer = Committer::of(self, request, known.map(|(_, group)| group))?;
        let name = known.map_or_else(|| Arc::from(request.group.as_str()), |(name, _)| Arc::clone(name));
        let mut room = GROUP_POSITIONS_MAX.saturating_sub(known.map_or(0, |(_, group)| group.offsets.len()));
        let mut records = Vec::with_capacity(request.offsets.len());
        let mut results = Vec::with_capacity(request.offsets.len());
        for offset in &request.offsets {
            let judged = partition_of(offset.topic_id, offset.partition).and_then(|partition| {
                check_metadata(offset)?;
                committer.check(partition)?;
                let is_new = known.is_none_or(|(_, group)| group.offsets.get(partition).is_none());
                if is_new {
                    room = room.checked_sub(1).ok_or_else(too_many_positions)?;
                }
                Ok(partition)
            });
            let refused = judged.as_ref().err();
            results.push(PartitionResult {
                topic_id: offset.topic_id,
                partition: offset.partition,
                error: refused.map_or(0, |refusal| refusal.code.code()),
                message: refused.map_or_else(String::new, |refusal| refusal.message.clone()),
            });
            if let Ok(partition) = judged {
                let position = Position {
                    offset: Offset(offset.offset),
                    leader_epoch: offset.leader_epoch.map(LeaderEpoch),
                    metadata: Arc::from(offset.metadata.as_str()),
                    commit_time_ms: now.wall.as_millis(),
                };
                records.push(Record::new(&name, Change::Position(partition, Some(position))));
            }
        }
        Ok(Decision::reply(Reply::Commit(CommitOffsetsReply { results })).with_records(records))
    }

    pub(super) fn fetch(&self, request: &FetchOffsetsRequest) -> Result<Decision, Refusal> {
        check_name(&request.group)?;
        let group = self.groups.get(&*request.group);
        if !request.member_id.is_empty() {
            member_in_generation(group, &request.group, &request.member_id, request.generation)?;
        }
        let mut offsets = Vec::new();
        if request.partitions.is_empty() {
            let all = group.into_iter().flat_map(|group| group.offsets.iter());
            offsets.extend(all.map(|(partition, position)| committed(*partition, Some(position))));
        }
        check_count(request.partitions.iter().map(|topic| topic.partitions.len()).sum())?;
        for topic in &request.partitions {
            for number in &topic.partitions {
                let partition = partition_of(topic.topic_id, *number)?;
                let position = group.and_then(|group| group.offsets.get(partition));
                offsets.push(committed(partition, position));
            }
        }
        Ok(Decision::reply(Reply::Fetch(FetchOffsetsReply { offsets })))
    }

    pub(super) fn alter(&self, now: Now, request: &AlterGroupOffsetsRequest) -> Result<Decision, Refusal> {
        check_name(&request.group)?;
        check_count(request.targets.len())?;
        let known = self.groups.get_key_value(&*request.group);
        if known.is_none() && self.groups.len() >= GROUPS_MAX {
            return Err(too_many_groups(&request.group));
        }
        let name = known.map_or_else(|| Arc::from(request.group.as_str()), |(name, _)| Arc::clone(name));
        let group = known.map(|(_, group)| group);
        let mut room = GROUP_POSITIONS_MAX.saturating_sub(group.map_or(0, |group| group.offsets.len()));
        let (mut records, mut results) = (Vec::new(), Vec::new());
        for target in &request.targets {
            let partition = partition_of(target.topic_id, target.partition);
            let before = partition.as_ref().ok().and_then(|partition| group?.offsets.get(*partition));
            let judged = partition
                .and_then(|partition| self.check_target(group, target, partition))
                .and_then(|partition| {
                    if before.is_none() && target.offset.is_some() {
                        room = room.checked_sub(1).ok_or_else(too_many_positions)?;
                    }
                    Ok(partition)
                });
            let refused = judged.as_ref().err();
            let before = before.map(|position| position.offset.get());
            results.push(AlteredOffset {
                topic_id: target.topic_id,
                partition: target.partition,
                error: refused.map_or(0, |refusal| refusal.code.code()),
                message: refused.map_or_else(String::new, |refusal| refusal.message.clone()),
                before,
                after: if refused.is_some() { before } else { target.offset },
            });
            let Ok(partition) = judged else { continue };
            if !request.dry_run && (before.is_some() || target.offset.is_some()) {
                let position = target.offset.map(|offset| Position {
                    offset: Offset(offset),
                    leader_epoch: None,
                    metadata: Arc::from(""),
                    commit_time_ms: now.wall.as_millis(),
                });
                records.push(Record::new(&name, Change::Position(partition, position)));
            }
        }
        Ok(Decision::reply(Reply::Alter(AlterGroupOffsetsReply { results })).with_records(records))
    }

    fn check_target(
        &self,
        group: Option<&Group>,
        target: &OffsetTarget,
        partition: TopicPartition,
    ) -> Result<TopicPartition, Refusal> {
        if let Some(owner) = group.and_then(|group| group.membership.owner(partition)) {
            let message = format!("member {owner} owns {}", self.name_of(partition));
            return Err(Refusal::new(ErrorCode::GroupNotEmpty, message));
        }
        // A position may be removed when the topic is gone.
        if target.offset.is_some() {
            self.check_exists(partition)?;
        }
        Ok(partition)
    }

    fn check_exists(&self, partition: TopicPartition) -> Result<(), Refusal> {
        let Some(topic) = self.topics.get(partition.topic_id) else {
            let message = format!("there is no topic {} (any more)", partition.topic_id);
            return Err(Refusal::new(ErrorCode::UnknownTopic, message));
        };
        if partition.partition.get() >= topic.partitions {
            let message = format!("{} has {} partitions, from 0", topic.name, topic.partitions);
            return Err(Refusal::new(ErrorCode::UnknownPartition, message));
        }
        Ok(())
    }

    /// The partition as people write it.
    pub(super) fn name_of(&self, partition: TopicPartition) -> String {
        self.topics
            .get(partition.topic_id)
            .map_or_else(|| partition.to_string(), |topic| format!("{}/{}", topic.name, partition.partition))
    }
}

/// Who commits: a member, for what it may own, or somebody else, in a group without members.
enum Committer<'a> {
    Member { shard: &'a GroupShard, current: &'a Current, generation: u32, id: &'a str },
    Other { shard: &'a GroupShard },
}

impl<'a> Committer<'a> {
    fn of(
        shard: &'a GroupShard,
        request: &'a CommitOffsetsRequest,
        group: Option<&'a Group>,
    ) -> Result<Self, Refusal> {
        if !request.member_id.is_empty() {
            let (generation, id) = (request.generation, &*request.member_id);
            let current = member_in_generation(group, &request.group, id, generation)?;
            return Ok(Self::Member { shard, current, generation, id });
        }
        let members = group.map_or(0, |group| group.membership.member_count());
        if members > 0 {
            let message = format!(
                "group {} has {members} members: only they commit, each for what it owns",
                request.group
            );
            return Err(Refusal::new(ErrorCode::GroupNotEmpty, message));
        }
        if group.is_none() && shard.groups.len() >= GROUPS_MAX {
            return Err(too_many_groups(&request.group));
        }
        Ok(Self::Other { shard })
    }

    fn check(&self, partition: TopicPartition) -> Result<(), Refusal> {
        match self {
            Self::Other { shard } => shard.check_exists(partition),
            Self::Member { shard, current, generation, id } => {
                let since = current.assigned.get(&partition).or_else(|| current.revoking.get(&partition));
                match since {
                    Some(since)
                        if since <= generation || cfg!(hw_mutate = "group_commit_of_any_generation") =>
                    {
                        Ok(())
                    }
                    Some(since) => {
                        let message = format!(
                            "member {id} has {} since generation {since}, and commits as of {generation}",
                            shard.name_of(partition)
                        );
                        Err(Refusal::new(ErrorCode::FencedGeneration, message))
                    }
                    None => {
                        let message = format!("{} is not assigned to member {id}", shard.name_of(partition));
                        Err(Refusal::new(ErrorCode::NotAssigned, message))
                    }
                }
            }
        }
    }
}

/// What a member may own that is alive and speaks of a generation that it has seen.
fn member_in_generation<'a>(
    group: Option<&'a Group>,
    name: &str,
    id: &str,
    generation: u32,
) -> Result<&'a Current, Refusal> {
    let known = |membership: &'a Membership| membership.member(id);
    let Some((_, profile, member)) = group.and_then(|group| known(&group.membership)) else {
        let message = format!("group {name} has no member {id} (any more): it owns nothing");
        return Err(Refusal::new(ErrorCode::UnknownMember, message));
    };
    let current = member.current.as_ref();
    current.filter(|current| (profile.joined..=current.generation).contains(&generation)).ok_or_else(|| {
        let message = format!(
            "member {id} of group {name} has joined in generation {} and is in {}, not in {generation}",
            profile.joined,
            current.map_or(0, |current| current.generation)
        );
        Refusal::new(ErrorCode::FencedGeneration, message)
    })
}

fn committed(partition: TopicPartition, position: Option<&Position>) -> CommittedOffset {
    CommittedOffset {
        topic_id: Some(partition.topic_id.into()),
        partition: partition.partition.get(),
        error: 0,
        message: String::new(),
        offset: position.map(|position| position.offset.get()),
        leader_epoch: position.and_then(|position| position.leader_epoch).map(LeaderEpoch::get),
        metadata: position.map_or_else(String::new, |position| position.metadata.to_string()),
        commit_time_ms: position.map_or(0, |position| position.commit_time_ms),
    }
}

fn check_name(group: &str) -> Result<(), Refusal> {
    check_group_name(group).map_err(|error| Refusal::new(ErrorCode::InvalidGroup, error.to_string()))
}

fn check_count(count: usize) -> Result<(), Refusal> {
    if count <= COMMIT_OFFSETS_MAX {
        return Ok(());
    }
    let message = format!("a request has {count} positions and may have {COMMIT_OFFSETS_MAX}: split it");
    Err(Refusal::new(ErrorCode::InvalidRequest, message))
}

fn check_metadata(offset: &CommitOffset) -> Result<(), Refusal> {
    if offset.metadata.len() <= OFFSET_METADATA_BYTES_MAX {
        return Ok(());
    }
    let message =
        format!("metadata of {} bytes, and {OFFSET_METADATA_BYTES_MAX} are allowed", offset.metadata.len());
    Err(Refusal::new(ErrorCode::InvalidRequest, message))
}

fn too_many_positions() -> Refusal {
    let message = format!("the group has {GROUP_POSITIONS_MAX} positions, as many as it may");
    Refusal::new(ErrorCode::GroupFull, message)
}

fn partition_of(topic_id: Option<Uuid>, number: u32) -> Result<TopicPartition, Refusal> {
    let Some(topic_id) = topic_id else {
        return Err(Refusal::new(ErrorCode::InvalidRequest, "a partition without a topic id".to_owned()));
    };
    Ok(TopicPartition::new(topic_id.into(), PartitionId(number)))
}
