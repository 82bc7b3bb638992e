//! The link to one leader: its connection, and the sessions on it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use highwater_client::wire::{Connection, Error, Events, Lost, ReplySink};
use highwater_protocol::api::{ApiKey, Request};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::Frame;
use highwater_protocol::ids::{LeaderEpoch, NodeId};
use highwater_protocol::messages::{
    BrokerIdentity, Credit, Ended, Isolation, Push, ReplicaAck, ReplicaIdentity, SubscribeRequest,
    UnsubscribeRequest,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::fetched::Fetched;
use super::links::{Follow, FollowEvent, Follower, Shared};
use crate::api::ApiError;

/// Between two attempts to reach a leader: the first pause, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Requests of one link that may be unanswered at once; fewer if the leader says so.
const IN_FLIGHT_MAX: usize = 256;

/// How long a link that nobody needs is kept.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// How often a link looks whether it still speaks for the present registration, and how soon it tries again to send what
/// its queue had no room for.
const LOOK_PERIOD: Duration = Duration::from_millis(250);
const RETRY_PERIOD: Duration = Duration::from_millis(1);

/// The link to one leader.
#[derive(Debug)]
pub(super) struct Link {
    leader: NodeId,
    state: Mutex<State>,
    work: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By key. Keys are the subscription ids on the wire: they grow, and are sent in order.
    entries: HashMap<u64, Entry>,
    /// Sessions that the leader was not asked for yet, in the order of their keys.
    waiting: VecDeque<u64>,
    /// Sessions with a credit or an acknowledgement that the connection had no room for.
    unsent: Vec<u64>,
    /// Subscriptions that nobody wants any more.
    leaving: Vec<u64>,
    connection: Option<Connection>,
    /// Counts connections.
    generation: u64,
}

#[derive(Debug)]
struct Entry {
    follow: Follow,
    follower: Arc<dyn Follower>,
    stage: Stage,
    /// What is to be sent; the latest value wins.
    credit: Option<u64>,
    ack: Option<ReplicaAck>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// Sent on this connection.
    Asked(u64),
    /// Granted on this connection.
    Live(u64),
}

impl Stage {
    const fn generation(self) -> Option<u64> {
        match self {
            Self::Waiting => None,
            Self::Asked(generation) | Self::Live(generation) => Some(generation),
        }
    }
}

impl Link {
    pub(super) fn new(leader: NodeId) -> Self {
        Self { leader, state: Mutex::default(), work: Notify::new() }
    }

    /// A new session, and its number: the next one of `keys`, which all links share.
    pub(super) fn enter(&self, keys: &AtomicU64, follow: Follow, follower: Arc<dyn Follower>) -> u64 {
        let mut state = self.state.lock();
        // Taken under the lock, so that keys grow in the order in which they are sent.
        let key = keys.fetch_add(1, Ordering::Relaxed);
        let entry = Entry { follow, follower, stage: Stage::Waiting, credit: None, ack: None };
        state.entries.insert(key, entry);
        state.waiting.push_back(key);
        drop(state);
        self.work.notify_one();
        key
    }

    /// Takes a session back.
    pub(super) fn leave(&self, key: u64) {
        let mut state = self.state.lock();
        let Some(entry) = state.entries.remove(&key) else { return };
        if entry.stage == Stage::Live(state.generation) {
            state.leaving.push(key);
            drop(state);
            self.work.notify_one();
        }
    }

    /// Raises the bytes that may be pushed to a session in all.
    pub(super) fn credit(&self, key: u64, limit: u64) {
        self.send(key, |entry| entry.credit = Some(limit));
    }

    /// Tells the leader how far the replica of a session is.
    pub(super) fn acknowledge(&self, id: u64, ack: ReplicaAck) {
        self.send(id, |entry| entry.ack = Some(ReplicaAck { id, ..ack }));
    }

    /// Changes what is to be sent for a session, and sends it if the connection has room.
    fn send(&self, key: u64, change: impl FnOnce(&mut Entry)) {
        let mut state = self.state.lock();
        let State { entries, connection, generation, unsent, .. } = &mut *state;
        let Some(entry) = entries.get_mut(&key) else { return };
        change(entry);
        let Some(connection) = connection.as_ref().filter(|_| entry.stage == Stage::Live(*generation)) else {
            return;
        };
        if !entry.send(key, connection) {
            unsent.push(key);
            drop(state);
            self.work.notify_one();
        }
    }

    /// Keeps a connection while there are sessions.
    pub(super) async fn run(self: Arc<Self>, shared: Arc<Shared>) {
        let mut pause = PAUSE_MIN;
        let mut failed = false;
        loop {
            while self.state.lock().entries.is_empty() {
                self.work.notified().await;
            }
            let generation = self.next_generation();
            let events = Arc::new(LinkEvents { link: Arc::clone(&self), generation });
            match shared.connect(self.leader, events).await {
                Ok(connection) => {
                    debug!(leader = %self.leader, "connected to a leader");
                    (pause, failed) = (PAUSE_MIN, false);
                    self.serve(&shared, connection, generation).await;
                    self.fail_all(generation, "the connection to the leader is closed");
                }
                Err(error) => {
                    if !std::mem::replace(&mut failed, true) {
                        info!(leader = %self.leader, error, "a leader cannot be reached; it is tried again");
                    }
                    tokio::time::sleep(shared.jittered(pause)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    fn next_generation(&self) -> u64 {
        let mut state = self.state.lock();
        state.generation += 1;
        state.generation
    }

    /// Serves a connection until it ends, speaks for an old registration, or is needed no more.
    async fn serve(self: &Arc<Self>, shared: &Shared, connection: Connection, generation: u64) {
        let permits = connection.max_in_flight().clamp(2, IN_FLIGHT_MAX * 2) / 2;
        let in_flight = Arc::new(Semaphore::new(permits));
        let sink =
            Arc::new(Replies { link: Arc::clone(self), generation, in_flight: Arc::clone(&in_flight) });
        let identity = shared.peers.identity();
        self.state.lock().connection = Some(connection.clone());
        let mut needed = Instant::now();
        loop {
            let now = Instant::now();
            let is_over = {
                let state = self.state.lock();
                if !state.entries.is_empty() {
                    needed = now;
                }
                state.connection.is_none()
            };
            let is_over = is_over || connection.closed().is_some() || now.duration_since(needed) > IDLE_MAX;
            if is_over || shared.peers.identity() != identity {
                return;
            }
            let Some(identity) = &identity else { return };
            let all_sent =
                self.ask(identity, &connection, &in_flight, &sink).await && self.send_rest(&connection);
            let pause = if all_sent { LOOK_PERIOD } else { RETRY_PERIOD };
            let _time_is_up = tokio::time::timeout(pause, self.work.notified()).await;
        }
    }

    /// Sends every request that waits; false when the connection has no room.
    async fn ask(
        &self,
        identity: &BrokerIdentity,
        connection: &Connection,
        in_flight: &Semaphore,
        sink: &Arc<Replies>,
    ) -> bool {
        loop {
            // All replies come when the connection ends, so this does too. The semaphore is never closed.
            let Ok(permit) = in_flight.acquire().await else { return true };
            let sink = Arc::clone(sink) as Arc<dyn ReplySink>;
            let leaving = self.state.lock().leaving.pop();
            let sent = if let Some(id) = leaving {
                let sent = connection.submit(&UnsubscribeRequest { id }, Vec::new(), sink, id).is_ok();
                if !sent {
                    self.state.lock().leaving.push(id);
                }
                sent
            } else if let Some((key, follow)) = self.next_waiting() {
                let request = request(key, &follow, identity);
                let sent = connection.submit(&request, Vec::new(), sink, key).is_ok();
                if !sent {
                    self.put_back(key);
                }
                sent
            } else {
                return true;
            };
            if !sent {
                return false;
            }
            permit.forget();
        }
    }

    /// The session to be asked for next; it counts as asked for.
    fn next_waiting(&self) -> Option<(u64, Follow)> {
        let mut state = self.state.lock();
        let generation = state.generation;
        while let Some(key) = state.waiting.pop_front() {
            if let Some(entry) = state.entries.get_mut(&key) {
                entry.stage = Stage::Asked(generation);
                return Some((key, entry.follow));
            }
        }
        None
    }

    fn put_back(&self, key: u64) {
        let mut state = self.state.lock();
        if let Some(entry) = state.entries.get_mut(&key) {
            entry.stage = Stage::Waiting;
            state.waiting.push_front(key);
        }
    }

    /// Sends what there was no room for; false if there still is none.
    fn send_rest(&self, connection: &Connection) -> bool {
        let mut state = self.state.lock();
        let State { entries, unsent, .. } = &mut *state;
        unsent.retain(|key| entries.get_mut(key).is_some_and(|entry| !entry.send(*key, connection)));
        unsent.is_empty()
    }

    /// The reply to a request for a session.
    fn replied(&self, generation: u64, key: u64, frame: &Frame) {
        let mut state = self.state.lock();
        let Some(connection) = state.connection.clone().filter(|_| state.generation == generation) else {
            return;
        };
        let reply = connection.read_reply::<SubscribeRequest>(frame);
        let live = reply.as_ref().is_ok_and(|(reply, _)| reply.divergence.is_none() && !reply.reset);
        let follower = if let (true, Some(entry)) = (live, state.entries.get_mut(&key)) {
            entry.stage = Stage::Live(generation);
            let follower = Arc::clone(&entry.follower);
            if !entry.send(key, &connection) {
                state.unsent.push(key);
            }
            Some(follower)
        } else if live {
            // Left meanwhile.
            state.leaving.push(key);
            None
        } else {
            state.entries.remove(&key).map(|entry| entry.follower)
        };
        drop(state);
        self.work.notify_one();
        let event = match reply {
            Ok((reply, _)) => FollowEvent::Subscribed(reply),
            Err(error) => {
                let code = error.code().unwrap_or(ErrorCode::Internal);
                FollowEvent::Refused(ApiError::new(code, error.to_string()))
            }
        };
        if let Some(follower) = follower {
            follower.happened(key, event);
        }
    }

    fn pushed(&self, generation: u64, push: &Push, frame: &Frame) {
        let found = {
            let state = self.state.lock();
            let entry = state.entries.get(&push.id);
            entry
                .filter(|entry| entry.stage.generation() == Some(generation))
                .map(|entry| (Arc::clone(&entry.follower), entry.follow.partition))
        };
        // On its way when the session was left.
        let Some((follower, partition)) = found else { return };
        match Fetched::read(push, frame.attachment.clone(), partition) {
            Ok(fetched) => follower.happened(push.id, FollowEvent::Pushed(fetched)),
            Err(error) => {
                warn!(leader = %self.leader, %partition, %error, "a leader pushed what is no good batch");
                self.state.lock().entries.remove(&push.id);
                let text = format!("broker {} pushed what is no good batch: {error}", self.leader);
                follower.happened(push.id, FollowEvent::Lost(text));
                self.unsubscribe(generation, push.id);
            }
        }
    }

    fn unsubscribe(&self, generation: u64, key: u64) {
        let mut state = self.state.lock();
        if state.generation == generation {
            state.leaving.push(key);
            drop(state);
            self.work.notify_one();
        }
    }

    fn ended(&self, generation: u64, ended: Ended) {
        let mut state = self.state.lock();
        let here =
            state.entries.get(&ended.id).is_some_and(|entry| entry.stage.generation() == Some(generation));
        let entry = if here { state.entries.remove(&ended.id) } else { None };
        drop(state);
        if let Some(entry) = entry {
            entry.follower.happened(ended.id, FollowEvent::Ended(Box::new(ended)));
        }
    }

    /// A connection is over: whoever had a session on it is told.
    fn fail_all(&self, generation: u64, why: &str) {
        let mut lost = Vec::new();
        let mut state = self.state.lock();
        if state.generation == generation {
            state.connection = None;
            state.leaving.clear();
            state.unsent.clear();
        }
        let keys: Vec<u64> = state
            .entries
            .iter()
            .filter(|(_, entry)| entry.stage.generation() == Some(generation))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            lost.extend(state.entries.remove(&key).map(|entry| (key, entry.follower)));
        }
        drop(state);
        self.work.notify_one();
        for (key, follower) in lost {
            follower.happened(key, FollowEvent::Lost(why.to_owned()));
        }
    }
}

impl Entry {
    /// Sends what is to be sent; false when the connection has no room for all of it.
    fn send(&mut self, key: u64, connection: &Connection) -> bool {
        if self.ack.is_some_and(|ack| connection.try_one_way(&ack)) {
            self.ack = None;
        }
        if self.credit.is_some_and(|limit| connection.try_one_way(&Credit { id: key, limit })) {
            self.credit = None;
        }
        self.ack.is_none() && self.credit.is_none()
    }
}

fn request(id: u64, follow: &Follow, identity: &BrokerIdentity) -> SubscribeRequest {
    SubscribeRequest {
        id,
        topic_id: Some(follow.partition.topic_id.into()),
        partition: follow.partition.partition.get(),
        current_epoch: Some(follow.epoch.get()),
        offset: follow.offset.get(),
        last_epoch: follow.last_epoch.map(LeaderEpoch::get),
        credit: follow.credit,
        isolation: Isolation::LogEnd.into(),
        replica: Some(ReplicaIdentity {
            node_id: identity.node_id,
            directory_id: identity.directory_id,
            broker_epoch: identity.broker_epoch,
        }),
    }
}

/// Takes the replies of one connection.
#[derive(Debug)]
struct Replies {
    link: Arc<Link>,
    generation: u64,
    in_flight: Arc<Semaphore>,
}

impl ReplySink for Replies {
    fn reply(&self, tag: u64, reply: Result<Frame, Lost>) {
        self.in_flight.add_permits(1);
        // Without a reply the connection is over, which everybody on it is told at once.
        if let Ok(frame) = reply
            && frame.header.api == SubscribeRequest::API
        {
            self.link.replied(self.generation, tag, &frame);
        }
    }
}

/// Takes what one connection tells.
#[derive(Debug)]
struct LinkEvents {
    link: Arc<Link>,
    generation: u64,
}

impl Events for LinkEvents {
    fn one_way(&self, frame: Frame) {
        let decoded = match frame.header.api {
            ApiKey::PUSH => frame.decode_body().map(|push| self.link.pushed(self.generation, &push, &frame)),
            ApiKey::ENDED => frame.decode_body().map(|ended| self.link.ended(self.generation, ended)),
            // A newer leader may tell what means nothing here.
            _ => return,
        };
        if let Err(error) = decoded {
            warn!(leader = %self.link.leader, %error, "a leader's message does not decode");
            self.link.fail_all(self.generation, "the leader's message does not decode");
        }
    }

    fn closed(&self, error: &Error) {
        debug!(leader = %self.link.leader, %error, "the connection to a leader is over");
        self.link.fail_all(self.generation, &error.to_string());
    }
}
