//! A broker that coordinates a group and leads the partitions of a topic, all as the test says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use highwater_client::{Client, GroupConsumerBuilder};
use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::Frame;
use highwater_protocol::messages::{
    CommitOffsetsReply, CommitOffsetsRequest, CommittedOffset, Coordinator, Ended, FetchOffsetsReply,
    FetchOffsetsRequest, FindCoordinatorReply, FindCoordinatorRequest, GroupAssignment, GroupHeartbeatReply,
    GroupHeartbeatRequest, GroupPartitions, PartitionResult, Push, SubscribeReply, SubscribeRequest,
    UnsubscribeReply, UnsubscribeRequest,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::scripted::{ADDRESS, Behaviour, Broker, Incoming, TOPIC, TOPIC_ID, Wire, batch};

/// How the broker answers, and what it was asked.
#[derive(Debug, Default)]
pub struct State {
    /// What the member may own, and whether it was told.
    pub target: BTreeSet<u32>,
    told: Option<BTreeSet<u32>>,
    pub generation: u32,
    /// Answers to the next heartbeats, before those that are fine.
    pub heartbeat_errors: VecDeque<ErrorCode>,
    /// Whether heartbeats are answered.
    pub silent: bool,
    pub heartbeats: Vec<GroupHeartbeatRequest>,
    pub committed: BTreeMap<u32, (u64, String)>,
    /// Every position in each commit.
    pub commits: Vec<BTreeMap<u32, u64>>,
    /// Answers to positions of these partitions.
    pub commit_errors: BTreeMap<u32, ErrorCode>,
    /// Whether commits are answered.
    pub holds_commits: bool,
    held_commits: Vec<(Wire, Frame)>,
    /// How often the coordinator was looked for.
    pub lookups: usize,
    pub subscribes: Vec<(u32, u64)>,
    pub unsubscribes: usize,
    live: BTreeMap<u32, (Wire, u64)>,
    /// What happened, in order.
    pub story: Vec<String>,
}

impl State {
    pub fn assign(&mut self, partitions: &[u32]) {
        self.target = partitions.iter().copied().collect();
        self.generation += 1;
    }

    /// What the member last said that it owns.
    pub fn owned(&self) -> Option<Vec<u32>> {
        let owned = self.heartbeats.iter().rev().find_map(|heartbeat| heartbeat.owned.as_ref())?;
        Some(owned.topics.iter().flat_map(|topic| topic.partitions.clone()).collect())
    }

    pub fn committed(&self, partition: u32) -> Option<u64> {
        self.committed.get(&partition).map(|(offset, _)| *offset)
    }
}

/// The broker, and a client of it.
pub struct World {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    pub client: Client,
}

impl World {
    /// A topic with this many partitions, of which the only member is given some.
    pub async fn new(partitions: u32, assigned: &[u32]) -> Self {
        let broker = Broker::new(Behaviour { partitions, ..Behaviour::default() });
        let client = broker.client().await;
        let mut state = State::default();
        state.assign(assigned);
        let (state, changed) = (Arc::new(Mutex::new(state)), Arc::new(Notify::new()));
        tokio::spawn(serve(broker, Arc::clone(&state), Arc::clone(&changed)));
        Self { state, changed, client }
    }

    pub fn builder(&self) -> GroupConsumerBuilder {
        self.client.group_consumer("billing").topics([TOPIC])
    }

    pub fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock())
    }

    /// Waits until this is so.
    pub async fn until(&self, what: &str, is_so: impl Fn(&State) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if self.with(|state| is_so(state)) {
                    return;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(200), waiting).await;
        assert!(waited.is_ok(), "waited in vain: {what}; {:#?}", self.with(|state| state.story.clone()));
    }

    /// Waits until the partition is subscribed, and sends a batch of it.
    pub async fn push(&self, partition: u32, base_offset: u64, values: &[&str]) {
        self.until("a subscription", |state| state.live.contains_key(&partition)).await;
        let (wire, id) = self.with(|state| state.live[&partition].clone());
        let push = Push { id, high_watermark: base_offset + values.len() as u64, ..Push::default() };
        wire.one_way(&push, &batch(partition, base_offset, values)).await;
    }

    /// Ends the subscription of a partition.
    pub async fn end(&self, partition: u32, change: impl FnOnce(&mut Ended)) {
        self.until("a subscription", |state| state.live.contains_key(&partition)).await;
        let (wire, id) = self.with(|state| state.live.remove(&partition)).unwrap();
        let mut ended = Ended { id, ..Ended::default() };
        change(&mut ended);
        wire.one_way(&ended, &[]).await;
    }

    /// Answers the commits that were held back.
    pub async fn answer_commits(&self, code: ErrorCode) {
        let held = self.with(|state| {
            state.holds_commits = false;
            std::mem::take(&mut state.held_commits)
        });
        for (wire, frame) in held {
            if code.is_none() {
                let reply = self.with(|state| commit(state, &frame));
                wire.reply::<CommitOffsetsRequest>(&frame, &reply).await;
            } else {
                wire.reply_error(&frame, code, "says the script").await;
            }
        }
    }
}

async fn serve(mut broker: Broker, state: Arc<Mutex<State>>, changed: Arc<Notify>) {
    // The broker ends with the test, and so does this.
    loop {
        let Incoming { wire, frame } = broker.next_unhurried().await;
        answer(&wire, &frame, &state).await;
        changed.notify_waiters();
    }
}

async fn answer(wire: &Wire, frame: &Frame, state: &Mutex<State>) {
    match frame.header.api {
        ApiKey::FIND_COORDINATOR => {
            let request: FindCoordinatorRequest = frame.decode_body().unwrap();
            let coordinator = |group: &String| Coordinator {
                group: group.clone(),
                node_id: 1,
                address: ADDRESS.to_owned(),
                ..Coordinator::default()
            };
            state.lock().lookups += 1;
            let reply =
                FindCoordinatorReply { coordinators: request.groups.iter().map(coordinator).collect() };
            wire.reply::<FindCoordinatorRequest>(frame, &reply).await;
        }
        ApiKey::GROUP_HEARTBEAT => {
            let reply = heartbeat(&mut state.lock(), frame);
            match reply {
                None => {}
                Some(Ok(reply)) => wire.reply::<GroupHeartbeatRequest>(frame, &reply).await,
                Some(Err(code)) => wire.reply_error(frame, code, "says the script").await,
            }
        }
        ApiKey::COMMIT_OFFSETS => {
            let reply = {
                let mut state = state.lock();
                if state.holds_commits {
                    state.held_commits.push((wire.clone(), frame.clone()));
                    return;
                }
                commit(&mut state, frame)
            };
            wire.reply::<CommitOffsetsRequest>(frame, &reply).await;
        }
        ApiKey::FETCH_OFFSETS => {
            let reply = fetch(&state.lock(), frame);
            wire.reply::<FetchOffsetsRequest>(frame, &reply).await;
        }
        ApiKey::SUBSCRIBE => {
            let request: SubscribeRequest = frame.decode_body().unwrap();
            {
                let mut state = state.lock();
                state.subscribes.push((request.partition, request.offset));
                state.live.insert(request.partition, (wire.clone(), request.id));
            }
            wire.reply::<SubscribeRequest>(frame, &SubscribeReply::default()).await;
        }
        ApiKey::UNSUBSCRIBE => {
            let request: UnsubscribeRequest = frame.decode_body().unwrap();
            {
                let mut state = state.lock();
                state.unsubscribes += 1;
                state.live.retain(|_, (_, id)| *id != request.id);
            }
            wire.reply::<UnsubscribeRequest>(frame, &UnsubscribeReply {}).await;
        }
        ApiKey::CREDIT => {}
        other => panic!("{} was not expected", other.name()),
    }
}

fn heartbeat(state: &mut State, frame: &Frame) -> Option<Result<GroupHeartbeatReply, ErrorCode>> {
    let request: GroupHeartbeatRequest = frame.decode_body().unwrap();
    let owned = request
        .owned
        .as_ref()
        .map(|owned| owned.topics.iter().flat_map(|topic| topic.partitions.clone()).collect::<Vec<_>>());
    state.story.push(format!("heartbeat {} {owned:?}", request.generation));
    let (joins, leaves) = (request.generation == 0, request.action != 0);
    state.heartbeats.push(request);
    if state.silent {
        return None;
    }
    if let Some(code) = state.heartbeat_errors.pop_front() {
        return Some(Err(code));
    }
    if joins {
        state.told = None;
    }
    let news = state.told.as_ref() != Some(&state.target);
    state.told = Some(state.target.clone());
    let partitions = state.target.iter().copied().collect();
    let topics = vec![GroupPartitions { topic_id: Some(TOPIC_ID.into()), partitions }];
    Some(Ok(GroupHeartbeatReply {
        generation: if leaves { 0 } else { state.generation },
        heartbeat_interval_ms: 1000,
        assignment: (news && !leaves).then_some(GroupAssignment { topics }),
        unmatched_topics: Vec::new(),
    }))
}

fn commit(state: &mut State, frame: &Frame) -> CommitOffsetsReply {
    let request: CommitOffsetsRequest = frame.decode_body().unwrap();
    let mut results = Vec::new();
    let mut positions = BTreeMap::new();
    for offset in request.offsets {
        let code = state.commit_errors.get(&offset.partition).copied().unwrap_or(ErrorCode::None);
        if code.is_none() {
            positions.insert(offset.partition, offset.offset);
            state.committed.insert(offset.partition, (offset.offset, offset.metadata));
        }
        results.push(PartitionResult {
            topic_id: offset.topic_id,
            partition: offset.partition,
            error: code.code(),
            message: String::from("says the script"),
        });
    }
    state.story.push(format!("commit {positions:?}"));
    state.commits.push(positions);
    CommitOffsetsReply { results }
}

fn fetch(state: &State, frame: &Frame) -> FetchOffsetsReply {
    let request: FetchOffsetsRequest = frame.decode_body().unwrap();
    let committed = |partition: &u32| {
        let known = state.committed.get(partition);
        CommittedOffset {
            topic_id: Some(TOPIC_ID.into()),
            partition: *partition,
            offset: known.map(|(offset, _)| *offset),
            metadata: known.map(|(_, metadata)| metadata.clone()).unwrap_or_default(),
            ..CommittedOffset::default()
        }
    };
    FetchOffsetsReply {
        offsets: request.partitions.iter().flat_map(|topic| &topic.partitions).map(committed).collect(),
    }
}
