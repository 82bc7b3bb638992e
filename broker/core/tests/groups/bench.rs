//! A coordinator on a bench: time stands still unless it is moved, and what is decided is carried out at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::group::config::GroupConfig;
use highwater_broker_core::group::record::Record;
use highwater_broker_core::group::topics::{Topic, Topics};
use highwater_broker_core::group::{Decision, Event, GroupShard, Now, Refusal, Reply, Request};
use highwater_broker_core::time::{Mono, Wall};
use highwater_protocol::ids::{PartitionId, TopicId, TopicPartition};
use highwater_protocol::messages::{
    CommitOffset, CommitOffsetsReply, CommitOffsetsRequest, DescribedGroup, GroupAction, GroupAssignment,
    GroupHeartbeatReply, GroupHeartbeatRequest, GroupPartitions, GroupSubscription,
};

/// When every bench starts, so that durations can be taken from it.
const START_MS: u64 = 1_000_000;

/// The wall clock at the start, in milliseconds.
pub(crate) const START_WALL_MS: i64 = 1_790_000_000_000;

pub(crate) struct Bench {
    pub(crate) shard: GroupShard,
    pub(crate) config: GroupConfig,
    pub(crate) topics: Topics,
    /// Everything that was ever recorded.
    pub(crate) log: Vec<Record>,
    pub(crate) events: Vec<Event>,
    /// Check the invariants after every decision: not where time is measured.
    pub(crate) checks: bool,
    ms: u64,
}

impl Bench {
    pub(crate) fn new(topics: &[(&str, u32)]) -> Self {
        Self::with_config(GroupConfig::default(), topics)
    }

    pub(crate) fn with_config(config: GroupConfig, topics: &[(&str, u32)]) -> Self {
        let mut all = Topics::default();
        for (name, partitions) in topics {
            all.insert(topic(name, *partitions));
        }
        let mut shard = GroupShard::new(config.clone(), Arc::new(all.clone()));
        shard.start(Mono(START_MS * 1_000_000));
        Self { shard, config, topics: all, log: Vec::new(), events: Vec::new(), checks: true, ms: START_MS }
    }

    pub(crate) fn now(&self) -> Now {
        let wall_ms = START_WALL_MS + (self.ms - START_MS) as i64;
        Now { mono: Mono(self.ms * 1_000_000), wall: Wall(wall_ms * 1000) }
    }

    pub(crate) fn take(&mut self, decision: &Decision) {
        self.log.extend(decision.records.iter().cloned());
        self.events.extend(decision.events.iter().cloned());
        self.shard.accept(self.now().mono, decision);
        if self.checks {
            self.shard.check_invariants().unwrap();
        }
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Result<Reply, Refusal> {
        let decision = self.shard.handle(self.now(), request);
        self.take(&decision);
        decision.reply
    }

    /// Lets time pass, and the coordinator look at its timers whenever one is due.
    pub(crate) fn wait(&mut self, duration: Duration) {
        let end = self.ms + duration.as_millis() as u64;
        while let Some(due) = self.shard.deadline() {
            let due_ms = due.0.div_ceil(1_000_000);
            if due_ms > end {
                break;
            }
            self.ms = self.ms.max(due_ms);
            let decision = self.shard.tick(self.now());
            self.take(&decision);
        }
        self.ms = end;
    }

    /// Lets time pass without anybody looking at timers.
    pub(crate) fn pass(&mut self, duration: Duration) {
        self.ms += duration.as_millis() as u64;
    }

    pub(crate) fn set_topic(&mut self, name: &str, partitions: u32) {
        self.topics.insert(topic(name, partitions));
        self.shard.set_topics(self.now().mono, Arc::new(self.topics.clone()));
        self.wait(Duration::ZERO);
    }

    /// Another broker takes over, after reading these records.
    pub(crate) fn fail_over_with(&mut self, log: &[Record]) {
        let mut shard = GroupShard::new(self.config.clone(), Arc::new(self.topics.clone()));
        for record in log {
            shard.replay(&record.key(), record.value().as_deref()).unwrap();
        }
        shard.start(self.now().mono);
        self.shard = shard;
        self.shard.check_invariants().unwrap();
    }

    pub(crate) fn fail_over(&mut self) {
        let log = self.log.clone();
        self.fail_over_with(&log);
    }

    pub(crate) fn heartbeat(
        &mut self,
        request: GroupHeartbeatRequest,
    ) -> Result<GroupHeartbeatReply, Refusal> {
        let request = Request::Heartbeat { request: Box::new(request), host: Arc::from("[::1]:50000") };
        match self.ask(&request)? {
            Reply::Heartbeat(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn commit(
        &mut self,
        member: &str,
        generation: u32,
        partition: TopicPartition,
        offset: u64,
    ) -> Result<u32, Refusal> {
        let request = commit_request("g", member, generation, &[(partition, offset)]);
        match self.ask(&Request::Commit(request))? {
            Reply::Commit(CommitOffsetsReply { results }) => Ok(results[0].error),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn describe(&mut self, group: &str) -> Result<DescribedGroup, Refusal> {
        match self.ask(&Request::Describe(Arc::from(group)))? {
            Reply::Describe(described) => Ok(*described),
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn topic(name: &str, partitions: u32) -> Topic {
    Topic { id: topic_id(name), name: Arc::from(name), partitions, racks: Vec::new(), internal: false }
}

pub(crate) fn topic_id(name: &str) -> TopicId {
    TopicId(name.bytes().fold(1, |id, byte| id << 8 | u128::from(byte)))
}

pub(crate) fn at(name: &str, partition: u32) -> TopicPartition {
    TopicPartition::new(topic_id(name), PartitionId(partition))
}

pub(crate) fn subscription(topics: &[&str]) -> GroupSubscription {
    GroupSubscription { topics: topics.iter().map(ToString::to_string).collect(), pattern: None }
}

pub(crate) fn partitions_of(assignment: &GroupAssignment) -> BTreeSet<TopicPartition> {
    let of_topic = |topic: &GroupPartitions| {
        let id = topic.topic_id.unwrap().into();
        topic.partitions.iter().map(move |p| TopicPartition::new(id, PartitionId(*p))).collect::<Vec<_>>()
    };
    assignment.topics.iter().flat_map(of_topic).collect()
}

pub(crate) fn assignment_of(partitions: &BTreeSet<TopicPartition>) -> GroupAssignment {
    let mut topics: BTreeMap<TopicId, Vec<u32>> = BTreeMap::new();
    for partition in partitions {
        topics.entry(partition.topic_id).or_default().push(partition.partition.get());
    }
    let of_topic =
        |(id, partitions): (TopicId, Vec<u32>)| GroupPartitions { topic_id: Some(id.into()), partitions };
    GroupAssignment { topics: topics.into_iter().map(of_topic).collect() }
}

pub(crate) fn commit_request(
    group: &str,
    member: &str,
    generation: u32,
    offsets: &[(TopicPartition, u64)],
) -> CommitOffsetsRequest {
    let offsets = offsets.iter().map(|(partition, offset)| CommitOffset {
        topic_id: Some(partition.topic_id.into()),
        partition: partition.partition.get(),
        offset: *offset,
        leader_epoch: None,
        metadata: String::new(),
    });
    CommitOffsetsRequest {
        group: group.to_owned(),
        member_id: member.to_owned(),
        generation,
        offsets: offsets.collect(),
    }
}

/// A member that does what clients have to do.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) instance: Option<String>,
    pub(crate) generation: u32,
    pub(crate) subscription: GroupSubscription,
    pub(crate) rack: Option<String>,
    pub(crate) assignor: Option<String>,
    /// What it reads.
    pub(crate) owned: BTreeSet<TopicPartition>,
    pub(crate) interval: Duration,
}

impl Member {
    pub(crate) fn new(id: &str, topics: &[&str]) -> Self {
        Self {
            id: id.to_owned(),
            instance: None,
            generation: 0,
            subscription: subscription(topics),
            rack: None,
            assignor: None,
            owned: BTreeSet::new(),
            interval: Duration::ZERO,
        }
    }

    pub(crate) fn request(&self, action: GroupAction) -> GroupHeartbeatRequest {
        let joins = self.generation == 0;
        GroupHeartbeatRequest {
            group: "g".to_owned(),
            member_id: self.id.clone(),
            generation: self.generation,
            action: action.into(),
            instance_id: self.instance.clone(),
            rack: self.rack.clone(),
            client: "bench".to_owned(),
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 20_000,
            subscription: joins.then(|| self.subscription.clone()),
            owned: (!joins).then(|| assignment_of(&self.owned)),
            assignor: self.assignor.clone(),
            take_over: false,
        }
    }

    /// One heartbeat, and at once another one if something was to be given up.
    pub(crate) fn beat(&mut self, bench: &mut Bench) -> Result<(), Refusal> {
        loop {
            let reply = bench.heartbeat(self.request(GroupAction::Alive))?;
            self.generation = reply.generation;
            self.interval = Duration::from_millis(reply.heartbeat_interval_ms.into());
            let Some(assignment) = &reply.assignment else { return Ok(()) };
            let assigned = partitions_of(assignment);
            let gives_up = !self.owned.is_subset(&assigned);
            self.owned = assigned;
            if !gives_up {
                return Ok(());
            }
        }
    }
}

/// Everybody's heartbeats until nothing changes any more.
pub(crate) fn settle(bench: &mut Bench, members: &mut [&mut Member]) {
    for _ in 0..20 {
        let before: Vec<_> = members.iter().map(|member| (member.generation, member.owned.clone())).collect();
        bench.wait(Duration::from_millis(200));
        for member in members.iter_mut() {
            member.beat(bench).unwrap();
        }
        if before
            .iter()
            .zip(members.iter())
            .all(|(before, now)| *before == (now.generation, now.owned.clone()))
        {
            return;
        }
    }
    panic!("the group does not come to rest");
}
