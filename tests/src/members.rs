//! Members of consumer groups with bare hands: they speak the messages of groups over connections that many share, so that
//! a thousand of them fit a test, and they keep no rule that a test wants broken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use highwater_client::wire::{Connection, Error, Pool, Settings, TcpConnector};
use highwater_protocol::api::Request;
use highwater_protocol::error_code::{Duty, ErrorCode};
use highwater_protocol::ids::TopicId;
use highwater_protocol::messages::{
    CommitOffset, CommitOffsetsReply, CommitOffsetsRequest, DescribeGroupsRequest, DescribedGroup,
    FetchOffsetsReply, FetchOffsetsRequest, FindCoordinatorRequest, GroupAction, GroupAssignment,
    GroupHeartbeatReply, GroupHeartbeatRequest, GroupPartitions, GroupSubscription,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::wait;

/// How long one answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// A partition of a topic.
pub type Owned = BTreeSet<(TopicId, u32)>;

/// Finds coordinators and asks them, over one connection to each broker.
#[derive(Debug)]
pub struct Coordinators {
    bootstrap: Vec<String>,
    pool: Pool,
    known: Mutex<BTreeMap<String, String>>,
}

/// Why a coordinator did not do what was asked.
#[derive(Debug)]
pub struct Refused {
    /// What it said; `None`: nothing in time.
    pub code: Option<ErrorCode>,
    /// For people.
    pub message: String,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { code: error.code(), message: error.to_string() }
    }
}

impl Refused {
    /// Whether asking again, maybe elsewhere, may help.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        let duty = self.code.map(ErrorCode::duty);
        matches!(duty, None | Some(Duty::Retry | Duty::RefreshMetadata | Duty::Reconnect))
    }
}

impl Coordinators {
    /// For a cluster of which some addresses are known.
    #[must_use]
    pub fn new(bootstrap: Vec<String>) -> Arc<Self> {
        let second = Duration::from_secs(1);
        let settings = Settings {
            client_name: "members".to_owned(),
            connect_timeout: second,
            handshake_timeout: second,
            keep_alive: second,
            silence_max: second,
            ..Settings::default()
        };
        let pool = Pool::new(Arc::new(TcpConnector), settings);
        Arc::new(Self { bootstrap, pool, known: Mutex::default() })
    }

    /// Asks the group's coordinator until it answers, wherever it goes meanwhile.
    ///
    /// # Errors
    /// When the answer is one that does not pass, or there is none in time.
    pub async fn ask<R: Request>(
        &self,
        group: &str,
        request: &R,
        limit: Duration,
    ) -> Result<R::Response, Refused> {
        let deadline = Instant::now() + limit;
        loop {
            match self.ask_once(group, request).await {
                Err(refused) if refused.may_pass() && Instant::now() < deadline => {
                    self.known.lock().remove(group);
                    wait::for_so_long(PAUSE).await;
                }
                answer => return answer,
            }
        }
    }

    /// Asks the group's coordinator once.
    ///
    /// # Errors
    /// When it refuses, or does not answer in time.
    pub async fn ask_once<R: Request>(&self, group: &str, request: &R) -> Result<R::Response, Refused> {
        let connection = self.connection(group).await?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        Ok(connection.request(request, deadline).await.map(|(reply, _)| reply)?)
    }

    /// The connection to the group's coordinator.
    ///
    /// # Errors
    /// When nobody says who that is, or it cannot be reached.
    pub async fn connection(&self, group: &str) -> Result<Connection, Refused> {
        let known = self.known.lock().get(group).cloned();
        let address = match known {
            Some(address) => address,
            None => self.find(group).await?,
        };
        Ok(self.pool.get(&address).await?)
    }

    /// The address of the group's coordinator.
    ///
    /// # Errors
    /// When nobody says who that is.
    pub async fn find(&self, group: &str) -> Result<String, Refused> {
        let mut last = Refused { code: None, message: "no address to ask".to_owned() };
        for address in &self.bootstrap {
            let request = FindCoordinatorRequest { groups: vec![group.to_owned()] };
            let deadline = Instant::now() + ANSWER_LIMIT;
            let asked = async { self.pool.get(address).await?.request(&request, deadline).await };
            match asked.await {
                Ok((reply, _)) => match reply.coordinators.into_iter().next() {
                    Some(found) if found.error == ErrorCode::None.code() => {
                        self.known.lock().insert(group.to_owned(), found.address.clone());
                        return Ok(found.address);
                    }
                    Some(found) => {
                        let code = Some(ErrorCode::from_code(found.error));
                        last = Refused { code, message: found.message };
                    }
                    None => {}
                },
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// What there is to know about a group.
    ///
    /// # Errors
    /// When its coordinator does not say in time.
    pub async fn describe(&self, group: &str, limit: Duration) -> Result<DescribedGroup> {
        let request = DescribeGroupsRequest { groups: vec![group.to_owned()] };
        let deadline = Instant::now() + limit;
        loop {
            let reply = self.ask(group, &request, limit).await;
            let reply = reply.map_err(|refused| anyhow!("describe {group}: {refused:?}"))?;
            let described = reply.groups.into_iter().next().context("no group in the reply")?;
            let code = ErrorCode::from_code(described.error);
            let passes = matches!(code.duty(), Duty::Retry | Duty::RefreshMetadata);
            if !passes || Instant::now() >= deadline {
                return Ok(described);
            }
            self.known.lock().remove(group);
            wait::for_so_long(PAUSE).await;
        }
    }
}

/// A member of a group.
#[derive(Debug)]
pub struct Member {
    coordinators: Arc<Coordinators>,
    /// Its group.
    pub group: String,
    /// Its id, another one after each time that it was not known any more.
    pub id: String,
    /// Of its last reply.
    pub generation: u32,
    /// What it owns.
    pub owned: Owned,
    /// When the last reply wants to hear of it again.
    pub interval: Duration,
    /// How often it was not known any more.
    pub fenced_count: u64,
    topics: Vec<String>,
    session_timeout: Duration,
    joins: u64,
    /// Whether the coordinator has been told what it owns.
    told: bool,
}

impl Member {
    /// A member that has not joined yet.
    #[must_use]
    pub fn new(
        coordinators: &Arc<Coordinators>,
        group: &str,
        name: &str,
        topics: &[&str],
        session_timeout: Duration,
    ) -> Self {
        Self {
            coordinators: Arc::clone(coordinators),
            group: group.to_owned(),
            id: format!("{name}-0"),
            generation: 0,
            owned: Owned::new(),
            interval: Duration::ZERO,
            fenced_count: 0,
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            session_timeout,
            joins: 0,
            told: false,
        }
    }

    /// The next heartbeat as it would be sent.
    #[must_use]
    pub fn heartbeat_request(&self, action: GroupAction) -> GroupHeartbeatRequest {
        // In full at first, after what was given has changed, and after a lost answer.
        let in_full = self.generation == 0 || !self.told;
        GroupHeartbeatRequest {
            group: self.group.clone(),
            member_id: self.id.clone(),
            generation: self.generation,
            action: action.into(),
            client: "members".to_owned(),
            session_timeout_ms: u32::try_from(self.session_timeout.as_millis()).unwrap_or(u32::MAX),
            rebalance_timeout_ms: 60_000,
            subscription: in_full.then(|| GroupSubscription { topics: self.topics.clone(), pattern: None }),
            owned: in_full.then(|| assignment(&self.owned)),
            ..GroupHeartbeatRequest::default()
        }
    }

    /// Joins or is heard of, wherever the coordinator goes meanwhile; takes over what the reply says. A member that is not
    /// known any more joins again under another id.
    ///
    /// # Errors
    /// When it is refused otherwise, or not answered in time.
    pub async fn heartbeat(&mut self, limit: Duration) -> Result<(), Refused> {
        let deadline = Instant::now() + limit;
        loop {
            let request = self.heartbeat_request(GroupAction::Alive);
            match self.coordinators.ask(&self.group, &request, limit).await {
                Ok(reply) => {
                    let changed = self.take(&reply);
                    // What is given up is said at once.
                    if !changed || Instant::now() >= deadline {
                        return Ok(());
                    }
                }
                Err(refused) => match refused.code {
                    Some(ErrorCode::UnknownMember | ErrorCode::FencedGeneration)
                        if Instant::now() < deadline =>
                    {
                        self.start_over();
                    }
                    // An answer may have been lost: it is told again.
                    _ => {
                        self.told = false;
                        return Err(refused);
                    }
                },
            }
        }
    }

    /// Leaves the group.
    ///
    /// # Errors
    /// When it is refused, or not answered in time.
    pub async fn leave(&mut self, limit: Duration) -> Result<(), Refused> {
        let request = self.heartbeat_request(GroupAction::Leave);
        self.coordinators.ask(&self.group, &request, limit).await.map(drop)
    }

    /// Takes over what a reply says; whether there is something to say in turn.
    pub fn take(&mut self, reply: &GroupHeartbeatReply) -> bool {
        self.generation = reply.generation;
        self.interval = Duration::from_millis(u64::from(reply.heartbeat_interval_ms));
        self.told = true;
        let Some(given) = &reply.assignment else { return false };
        let given = owned(given);
        let gives_up = self.owned.iter().any(|partition| !given.contains(partition));
        self.told = false;
        self.owned = given;
        gives_up
    }

    /// Nobody knows it any more: another one joins in its place.
    pub fn start_over(&mut self) {
        self.fenced_count += 1;
        self.joins += 1;
        let name = self.id.rsplit_once('-').map_or("", |(name, _)| name).to_owned();
        self.id = format!("{name}-{}", self.joins);
        self.generation = 0;
        self.owned.clear();
        self.told = false;
    }

    /// Commits positions, wherever the coordinator goes meanwhile.
    ///
    /// # Errors
    /// When it is refused as a whole, or not answered in time.
    pub async fn commit(
        &self,
        positions: &[((TopicId, u32), u64)],
        limit: Duration,
    ) -> Result<CommitOffsetsReply, Refused> {
        let request = commit_request(&self.group, &self.id, self.generation, positions);
        self.coordinators.ask(&self.group, &request, limit).await
    }

    /// Where the group goes on in these partitions; in all that are committed if there are none.
    ///
    /// # Errors
    /// When it is refused as a whole, or not answered in time.
    pub async fn fetch(&self, partitions: &Owned, limit: Duration) -> Result<FetchOffsetsReply, Refused> {
        let request = FetchOffsetsRequest {
            group: self.group.clone(),
            member_id: self.id.clone(),
            generation: self.generation,
            partitions: assignment(partitions).topics,
        };
        self.coordinators.ask(&self.group, &request, limit).await
    }
}

/// A commit.
#[must_use]
pub fn commit_request(
    group: &str,
    member_id: &str,
    generation: u32,
    positions: &[((TopicId, u32), u64)],
) -> CommitOffsetsRequest {
    let offset = |((topic, partition), offset): &((TopicId, u32), u64)| CommitOffset {
        topic_id: Some((*topic).into()),
        partition: *partition,
        offset: *offset,
        ..CommitOffset::default()
    };
    CommitOffsetsRequest {
        group: group.to_owned(),
        member_id: member_id.to_owned(),
        generation,
        offsets: positions.iter().map(offset).collect(),
    }
}

/// Partitions as messages have them.
#[must_use]
pub fn assignment(owned: &Owned) -> GroupAssignment {
    let mut topics: BTreeMap<TopicId, Vec<u32>> = BTreeMap::new();
    for (topic, partition) in owned {
        topics.entry(*topic).or_default().push(*partition);
    }
    let entry = |(topic, partitions): (TopicId, Vec<u32>)| GroupPartitions {
        topic_id: Some(topic.into()),
        partitions,
    };
    GroupAssignment { topics: topics.into_iter().map(entry).collect() }
}

/// Partitions out of a message.
#[must_use]
pub fn owned(assignment: &GroupAssignment) -> Owned {
    let of = |entry: &GroupPartitions| {
        let topic: TopicId = entry.topic_id.map(TopicId::from).unwrap_or_default();
        entry.partitions.iter().map(move |partition| (topic, *partition)).collect::<Vec<_>>()
    };
    assignment.topics.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_come_back_as_they_were() {
        let all: Owned = [(TopicId(2), 1), (TopicId(1), 0), (TopicId(1), 3)].into();
        assert_eq!(owned(&assignment(&all)), all);
        assert_eq!(assignment(&all).topics.len(), 2);
    }
}
