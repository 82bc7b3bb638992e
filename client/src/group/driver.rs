//! The task that keeps a consumer a member of its group: carries out what the [`Member`] says.

mod committing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{Offset, PartitionId, TopicId, TopicPartition};
use highwater_protocol::messages::{
    GroupAction, GroupAssignment, GroupHeartbeatReply, GroupHeartbeatRequest, GroupPartitions,
    GroupSubscription,
};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::committing::Settled;
use super::coordinator::{Coordinator, may_pass};
use super::member::{Action, Answer, Failure, Heartbeat, Input, Member, Output, Reason, Ticket, Timing};
use super::positions::{self, Found};
use super::session::{Adopted, Change, Done, Explicit, Finished, Presence, Request, Session};
use crate::client::Client;
use crate::consumer::{PartIndex, StartAt, Topic, now};
use crate::error::{Error, ErrorKind};

/// How long one heartbeat may take, as a share of the session: there must be time for others.
const HEARTBEAT_SHARE: u32 = 4;
const HEARTBEAT_MIN: Duration = Duration::from_millis(250);
const HEARTBEAT_MAX: Duration = Duration::from_secs(3);
/// The longest time between two looks at whether the application is still there.
const LOOK: Duration = Duration::from_secs(1);

/// Who the member is, and what it wants.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) subscription: GroupSubscription,
    pub(super) instance_id: Option<String>,
    pub(super) rack: Option<String>,
    pub(super) assignor: Option<String>,
    pub(super) take_over: bool,
    /// Where to begin in a partition without a committed position.
    pub(super) start: StartAt,
}

/// What the driver's helpers found.
enum Event {
    Beaten(Result<GroupHeartbeatReply, Error>),
    Found(Ticket, Vec<Found>),
    Settled(Settled),
}

/// A partition while it is the member's own.
#[derive(Debug)]
struct Tenure {
    index: PartIndex,
    topic: Topic,
    finished: Arc<Finished>,
    /// What the coordinator has; `None`: nothing.
    committed: Option<Offset>,
}

pub(super) struct Driver {
    client: Client,
    session: Arc<Session>,
    identity: Identity,
    timing: Timing,
    coordinator: Arc<Coordinator>,
    member: Member,
    member_id: Arc<str>,
    tenures: BTreeMap<TopicPartition, Tenure>,
    tasks: JoinSet<Event>,
    inputs: VecDeque<Input>,
    presence: Presence,
    /// Commits that the application waits for: not begun yet, and under way.
    wanted: Vec<(Vec<Explicit>, Done)>,
    waiting: Vec<Done>,
    /// Told once the member has joined, or cannot.
    joined: Option<Done>,
    closing: Option<Done>,
    over: bool,
}

impl Driver {
    pub(super) fn new(
        client: Client,
        session: Arc<Session>,
        identity: Identity,
        timing: Timing,
        joined: Done,
    ) -> Self {
        let coordinator = Arc::new(Coordinator::new(client.clone(), &session.group));
        Self {
            client,
            session,
            identity,
            timing,
            coordinator,
            member: Member::new(timing, now()),
            member_id: Arc::from(""),
            tenures: BTreeMap::new(),
            tasks: JoinSet::new(),
            inputs: VecDeque::new(),
            presence: Presence::default(),
            wanted: Vec::new(),
            waiting: Vec::new(),
            joined: Some(joined),
            closing: None,
            over: false,
        }
    }

    /// Runs until the member has left or cannot go on.
    pub(super) async fn run(mut self) {
        let session = Arc::clone(&self.session);
        while !self.over {
            self.take_requests();
            let away_since = self.presence.away_since(&session, now());
            self.inputs.push_back(Input::Application { away_since });
            self.step();
            if self.over {
                break;
            }
            let look = now() + LOOK;
            let wake_at = self.member.next_deadline().map_or(look, |deadline| deadline.min(look));
            tokio::select! {
                biased;
                () = session.work.notified() => {}
                Some(event) = self.tasks.join_next(), if !self.tasks.is_empty() => match event {
                    Ok(event) => self.take_event(event),
                    Err(error) => {
                        self.over(Some(Error::new(ErrorKind::Internal, format!("the consumer failed: {error}"))));
                    }
                },
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
        self.tasks.shutdown().await;
    }

    /// Hands all inputs to the member, those too that come of what it says.
    fn step(&mut self) {
        let mut out = Vec::new();
        let mut next = self.inputs.pop_front();
        loop {
            let now = now();
            self.member.step(now, next, &mut out);
            for output in out.drain(..) {
                self.execute(output);
            }
            self.tenures.retain(|partition, _| self.member.holds(partition));
            self.session.set_lease(self.member.lease_until(), now);
            next = self.inputs.pop_front();
            if next.is_none() {
                return;
            }
        }
    }

    fn execute(&mut self, output: Output) {
        match output {
            Output::Heartbeat(heartbeat) => self.beat(heartbeat),
            Output::Find(ticket, partitions) => self.find(ticket, partitions),
            Output::Revoke(partitions) => {
                let indices = self.indices(&partitions);
                tracing::info!(group = %self.session.group, partitions = %self.names(&partitions), "partitions are given up");
                self.session.tell(Change::Revoke(indices));
            }
            Output::TakeAway(partitions) => {
                for index in self.indices(&partitions) {
                    self.session.supply.remove(index);
                }
            }
            Output::Lose(partitions, reason) => {
                let indices = self.indices(&partitions);
                if reason != Reason::Over {
                    let names = self.names(&partitions);
                    tracing::warn!(group = %self.session.group, partitions = %names, ?reason, "partitions are lost");
                }
                for index in &indices {
                    self.session.supply.remove(*index);
                }
                self.session.tell(Change::Lost(indices, reason));
            }
            Output::Commit => self.commit(),
            Output::Ended(error) => self.over(error),
        }
    }

    fn indices(&self, partitions: &[TopicPartition]) -> Vec<PartIndex> {
        partitions.iter().filter_map(|partition| Some(self.tenures.get(partition)?.index)).collect()
    }

    /// The partitions for logs.
    fn names(&self, partitions: &[TopicPartition]) -> String {
        let name = |at: &TopicPartition| match self.tenures.get(at) {
            Some(tenure) => format!("{}/{}", tenure.topic.name, at.partition),
            None => at.to_string(),
        };
        partitions.iter().map(name).collect::<Vec<_>>().join(", ")
    }

    fn take_requests(&mut self) {
        for request in self.session.take_requests() {
            match request {
                Request::Released(indices) => {
                    let own = |(at, tenure): (&TopicPartition, &Tenure)| {
                        indices.contains(&tenure.index).then_some(*at)
                    };
                    let released = self.tenures.iter().filter_map(own).collect();
                    self.inputs.push_back(Input::Released(released));
                }
                Request::Commit(explicit, done) => {
                    if self.member.generation().is_some() {
                        self.wanted.push((explicit, done));
                        self.inputs.push_back(Input::CommitWanted);
                    } else {
                        let text = "the consumer is not in the group at the moment";
                        let error = Error::new(ErrorKind::NotMember, text).with_group(&self.session.group);
                        let _ = done.send(Err(error));
                    }
                }
                Request::Close { for_restart, done } => {
                    self.closing = Some(done);
                    self.inputs.push_back(Input::Close { for_restart });
                }
                Request::Dropped => self.inputs.push_back(Input::Close { for_restart: false }),
            }
        }
    }

    fn beat(&mut self, heartbeat: Heartbeat) {
        if heartbeat.new_id {
            let id = (u128::from(self.client.random()) << 64) | u128::from(self.client.random());
            self.member_id = format!("{id:032x}").into();
        }
        let identity = &self.identity;
        let joins = heartbeat.generation == 0;
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let request = GroupHeartbeatRequest {
            group: self.session.group.as_ref().to_owned(),
            member_id: self.member_id.as_ref().to_owned(),
            generation: heartbeat.generation,
            action: match heartbeat.action {
                Action::Alive => GroupAction::Alive,
                Action::Leave => GroupAction::Leave,
                Action::LeaveForRestart => GroupAction::LeaveForRestart,
            }
            .into(),
            instance_id: identity.instance_id.clone(),
            rack: identity.rack.clone(),
            client: self.client.pool().client_name().to_owned(),
            session_timeout_ms: millis(self.timing.session),
            rebalance_timeout_ms: millis(self.timing.rebalance),
            subscription: heartbeat.in_full.then(|| identity.subscription.clone()),
            owned: heartbeat.owned.map(|owned| GroupAssignment { topics: by_topic(&owned) }),
            assignor: identity.assignor.clone().filter(|_| joins),
            take_over: identity.take_over && joins,
        };
        let time = (self.timing.session / HEARTBEAT_SHARE).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX);
        let coordinator = Arc::clone(&self.coordinator);
        self.tasks.spawn(async move {
            let deadline = Instant::now() + time;
            Event::Beaten(coordinator.ask_once(&request, deadline).await)
        });
    }

    fn find(&mut self, ticket: Ticket, partitions: Vec<TopicPartition>) {
        let (client, coordinator) = (self.client.clone(), Arc::clone(&self.coordinator));
        let asking = positions::Asking {
            group: Arc::clone(&self.session.group),
            member_id: Arc::clone(&self.member_id),
            generation: self.member.generation().unwrap_or_default(),
            start: self.identity.start,
        };
        self.tasks.spawn(async move {
            let found = positions::find(&client, &coordinator, &asking, partitions).await;
            let found = found.unwrap_or_else(|error| {
                tracing::warn!(%error, "where to go on could not be found; it is asked for again");
                Vec::new()
            });
            Event::Found(ticket, found)
        });
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Beaten(result) => self.beaten(result),
            Event::Found(ticket, found) => self.adopt(ticket, found),
            Event::Settled(settled) => self.settled(settled),
        }
    }

    fn beaten(&mut self, result: Result<GroupHeartbeatReply, Error>) {
        let reply = match result {
            Ok(reply) => reply,
            Err(error) => {
                let failure = self.failure(error);
                return self.inputs.push_back(Input::Failed(failure));
            }
        };
        if !reply.unmatched_topics.is_empty() {
            let (group, topics) = (&self.session.group, reply.unmatched_topics.join(", "));
            tracing::warn!(%group, %topics, "topics that the consumer subscribes to are not there");
        }
        let answer = Answer {
            generation: reply.generation,
            interval: Duration::from_millis(u64::from(reply.heartbeat_interval_ms.max(10))),
            assignment: reply.assignment.map(|assignment| partitions_of(&assignment.topics)),
        };
        self.inputs.push_back(Input::Answered(answer));
        if let Some(joined) = self.joined.take() {
            let _ = joined.send(Ok(()));
        }
    }

    fn failure(&self, error: Error) -> Failure {
        tracing::debug!(%error, "a heartbeat was not answered");
        match error.code() {
            Some(ErrorCode::UnknownMember | ErrorCode::FencedGeneration) => Failure::Fenced,
            Some(ErrorCode::InstanceInUse) => Failure::InstanceInUse(error),
            _ if may_pass(&error) => Failure::Lost(self.client.random()),
            _ => Failure::Fatal(error),
        }
    }

    /// Gives the application what was found and is still wanted.
    fn adopt(&mut self, ticket: Ticket, found: Vec<Found>) {
        let wanted = self.member.looked_for(ticket);
        let mut adopted = Vec::new();
        let mut partitions = Vec::new();
        for Found { at, topic, position, start, committed } in found {
            if !wanted.contains(&at) {
                continue;
            }
            self.client.watch(&topic.name);
            let index = self.session.supply.add(topic.clone(), at.partition, start, position);
            let finished = Arc::new(Finished::new(position));
            let tenure = Tenure {
                index,
                topic: topic.clone(),
                finished: Arc::clone(&finished),
                committed: committed.as_ref().map(|_| position),
            };
            self.tenures.insert(at, tenure);
            partitions.push(at);
            adopted.push(Adopted {
                index,
                topic,
                partition: at.partition,
                position,
                metadata: committed,
                finished,
            });
        }
        if !adopted.is_empty() {
            let (group, names) = (&self.session.group, self.names(&partitions));
            tracing::info!(%group, partitions = %names, "partitions are taken on");
            self.session.tell(Change::Assigned(adopted));
            self.inputs.push_back(Input::Adopted(ticket, partitions));
        }
        self.inputs.push_back(Input::Searched(ticket));
    }

    fn over(&mut self, error: Option<Error>) {
        self.over = true;
        let error = error.map(|error| error.with_group(&self.session.group));
        let outcome = || error.clone().map_or(Ok(()), Err);
        for done in [self.joined.take(), self.closing.take()].into_iter().flatten() {
            let _ = done.send(outcome());
        }
        let closed = Error::new(ErrorKind::Closed, "the consumer was closed").with_group(&self.session.group);
        for done in self.wanted.drain(..).map(|(_, done)| done).chain(self.waiting.drain(..)) {
            let _ = done.send(Err(error.clone().unwrap_or_else(|| closed.clone())));
        }
        self.session.tell(Change::Over(error.clone()));
    }
}

fn by_topic(partitions: &BTreeSet<TopicPartition>) -> Vec<GroupPartitions> {
    let mut topics: Vec<GroupPartitions> = Vec::new();
    for partition in partitions {
        let topic_id = Some(partition.topic_id.into());
        match topics.last_mut().filter(|topic| topic.topic_id == topic_id) {
            Some(topic) => topic.partitions.push(partition.partition.get()),
            None => {
                topics.push(GroupPartitions { topic_id, partitions: vec![partition.partition.get()] });
            }
        }
    }
    topics
}

fn partitions_of(topics: &[GroupPartitions]) -> BTreeSet<TopicPartition> {
    let of = |topic: &GroupPartitions| {
        let topic_id = topic.topic_id.map(TopicId::from).unwrap_or_default();
        let at = move |partition: &u32| TopicPartition::new(topic_id, PartitionId(*partition));
        topic.partitions.iter().map(at).collect::<Vec<_>>()
    };
    topics.iter().flat_map(of).collect()
}
