//! The task that keeps a consumer subscribed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use highwater_protocol::ids::{LeaderEpoch, Offset, PartitionId};
use highwater_protocol::messages::{
    Credit, Isolation, ReplicaChecksumRequest, SubscribeReply, SubscribeRequest, UnsubscribeRequest,
};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::StartAt;
use super::feed::{End, LinkId, Lookup, PartIndex, Scope, Subscribing, Topic};
use super::shared::{Inbox, Shared, now};
use super::turn::Turn;
use crate::admin::TopicMetadata;
use crate::error::{Error, ErrorKind};
use crate::wire::Connection;

/// What the driver's helpers found.
enum Event {
    Connected(Arc<str>, Result<(LinkId, Connection), Error>),
    Found(PartIndex, u64, Result<Found, Error>),
    Subscribed(u64, Result<SubscribeReply, Error>),
    Refreshed(Arc<str>, Result<Arc<TopicMetadata>, Error>),
    Nothing,
}

/// What was looked up.
enum Found {
    Position(Offset),
    Range(Range<Offset>),
}

/// The driver's own state.
pub(super) struct Driver {
    shared: Arc<Shared>,
    tasks: JoinSet<Event>,
    /// Connections by address, and partitions that wait for one being made.
    links: HashMap<Arc<str>, LinkId>,
    connecting: HashMap<Arc<str>, Vec<PartIndex>>,
    /// Partitions that wait for metadata, by topic; it is being asked for.
    without_leader: BTreeMap<Arc<str>, BTreeSet<PartIndex>>,
    /// By partition: the latest leader epoch that was turned to.
    led_in: BTreeMap<PartIndex, LeaderEpoch>,
    /// By link: ends when the last subscribe or unsubscribe request is on its way.
    sent: HashMap<LinkId, Option<oneshot::Receiver<()>>>,
    next_link: u64,
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            tasks: JoinSet::new(),
            links: HashMap::new(),
            connecting: HashMap::new(),
            without_leader: BTreeMap::new(),
            led_in: BTreeMap::new(),
            sent: HashMap::new(),
            next_link: 0,
        }
    }

    /// Runs until the consumer is dropped.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut moves = shared.client.metadata().changes();
        loop {
            let wake_at = self.work().unwrap_or_else(|| now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                () = shared.cancel.cancelled() => return self.end().await,
                () = shared.work.notified() => {}
                Ok(()) = moves.changed() => self.follow_leaders(),
                Some(first) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    // All that are there at once: each round looks at every partition.
                    let mut next = Some(first);
                    while let Some(event) = next {
                        // A helper that panicked is a defect; its partition is looked after again when it is sought.
                        if let Ok(event) = event {
                            self.take_event(event);
                        }
                        next = self.tasks.try_join_next();
                    }
                }
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
    }

    /// Starts whatever is to be started. Returns when to look again.
    fn work(&mut self) -> Option<Instant> {
        let mut due = Vec::new();
        let (wake_at, outdated, unwanted, grants, damaged) = self.shared.with(|state| {
            let wake_at = state.feed.take_due(now(), &mut due);
            let unwanted = std::mem::take(&mut state.unwanted);
            let (grants, damaged) = (std::mem::take(&mut state.grants), std::mem::take(&mut state.damaged));
            (wake_at, std::mem::take(&mut state.outdated), unwanted, grants, damaged)
        });
        for (topic, partition, offset) in damaged {
            self.have_verified(topic, partition, offset);
        }
        for (link, id) in unwanted {
            self.unsubscribe(link, id);
        }
        let mut held_up = false;
        for grant in grants {
            let connection = self.shared.with(|state| state.links.get(&grant.link).cloned());
            let Some(connection) = connection else { continue };
            if !connection.try_one_way(&Credit { id: grant.id, limit: grant.limit }) {
                self.shared.with(|state| state.grants.push(grant));
                held_up = true;
            }
        }
        for topic in outdated {
            self.shared.client.metadata().forget(&topic);
        }
        for index in due {
            self.prepare(index);
        }
        let soon = held_up.then(|| now() + Duration::from_millis(5));
        match (wake_at, soon) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Has a leader look at what it has where a damaged batch came from, so that it finds the damage and repairs it.
    fn have_verified(&mut self, topic: Topic, partition: PartitionId, offset: Offset) {
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            let request = |topic: &TopicMetadata| ReplicaChecksumRequest {
                topic_id: Some(topic.topic_id.into()),
                partition: partition.get(),
                start: offset.get(),
                end: 0,
                bytes_max: 1,
                key_slices: 0,
                key_slice: 0,
            };
            let deadline = shared.client.deadline();
            // Whether it was found is seen when the partition is read again.
            let _told = shared.client.ask_leader(&topic.name, partition, deadline, request).await;
            Event::Nothing
        });
    }

    /// Brings a partition as far as it goes now: position, leader, connection, subscription.
    fn prepare(&mut self, index: PartIndex) {
        let lookup = self.shared.with(|state| Some((state.feed.lookup(index)?, state.feed.place(index)?)));
        let Some(((lookup, generation), (topic, partition))) = lookup else { return self.find_leader(index) };
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            let admin = shared.client.admin();
            let look_up = async |start| {
                let listed = admin.list_offsets(&topic.name, &[partition], start).await?;
                Ok::<_, Error>(listed.first().map_or(Offset::ZERO, |listed| listed.offset))
            };
            let found = async {
                Ok(match lookup {
                    Lookup::Start(start) => Found::Position(look_up(start).await?),
                    Lookup::Range => {
                        let start = look_up(StartAt::Earliest).await?;
                        Found::Range(start..look_up(StartAt::Latest).await?)
                    }
                })
            };
            Event::Found(index, generation, found.await)
        });
    }

    fn find_leader(&mut self, index: PartIndex) {
        let Some((topic, partition)) = self.shared.with(|state| state.feed.place(index)) else { return };
        let metadata = self.shared.client.metadata();
        let current = metadata.topic(&topic.name).filter(|current| current.topic_id == topic.id);
        let Some(current) = current else { return self.refresh(topic.name, index) };
        match metadata.leader_address(&current, partition) {
            Ok(address) => self.connect(index, Arc::from(address)),
            Err(error) if error.is_retriable() => {
                metadata.forget(&topic.name);
                self.postpone(index);
            }
            Err(error) => self.held_up(index, error),
        }
    }

    /// Turns to new leaders as soon as metadata tells of them: an old one that hangs would never end a subscription.
    fn follow_leaders(&mut self) {
        let places = self.shared.with(|state| state.feed.places());
        let metadata = self.shared.client.metadata();
        self.led_in.retain(|known, _| places.binary_search_by_key(known, |(index, ..)| *index).is_ok());
        for (index, topic, partition) in places {
            let led_in = self.led_in.entry(index).or_default();
            let leadership = metadata.leadership(&topic.name, topic.id, partition);
            let Some((epoch, address)) = leadership.filter(|(epoch, _)| epoch > led_in) else { continue };
            *led_in = epoch;
            self.shared.client.pool().encourage(&address);
            let link = self.links.get(&*address).copied();
            let old = self.shared.with(|state| state.feed.moved(index, link));
            self.shared.unsubscribe(old);
        }
    }

    fn connect(&mut self, index: PartIndex, address: Arc<str>) {
        if let Some(link) = self.links.get(&address) {
            let connection = self.shared.with(|state| state.links.get(link).cloned());
            if let Some(connection) = connection.filter(|connection| connection.closed().is_none()) {
                return self.subscribe(index, *link, connection);
            }
        }
        let waiting = self.connecting.entry(Arc::clone(&address)).or_default();
        waiting.push(index);
        if waiting.len() > 1 {
            return;
        }
        let link = LinkId(self.next_link);
        self.next_link += 1;
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            let inbox = Arc::new(Inbox { shared: Arc::clone(&shared), link });
            let connected = shared.client.pool().connect(&address, inbox).await;
            Event::Connected(address, connected.map(|connection| (link, connection)))
        });
    }

    fn subscribe(&mut self, index: PartIndex, link: LinkId, connection: Connection) {
        let Some(subscribing) = self.shared.with(|state| state.feed.subscribe(index, link)) else { return };
        let Subscribing { id, topic, partition, offset, credit } = subscribing;
        let request = SubscribeRequest {
            id,
            topic_id: Some(topic.id.into()),
            partition: partition.get(),
            current_epoch: None,
            offset: offset.get(),
            last_epoch: None,
            credit,
            isolation: Isolation::Committed.into(),
            replica: None,
        };
        let deadline = self.shared.client.deadline();
        let turn = self.turn(link);
        self.tasks.spawn(async move {
            let reply = match turn.send(&connection, &request, deadline).await {
                Ok(sent) => sent.reply(deadline).await,
                Err(error) => Err(error),
            };
            if let Err(error) = &reply
                && error.kind() == ErrorKind::TimedOut
            {
                // It may become live yet, and take credit that nobody gives back.
                connection.close(error.clone());
            }
            Event::Subscribed(id, reply.map(|(reply, _)| reply))
        });
    }

    fn unsubscribe(&mut self, link: LinkId, id: u64) {
        let Some(connection) = self.shared.with(|state| state.links.get(&link).cloned()) else { return };
        let deadline = self.shared.client.deadline();
        let turn = self.turn(link);
        self.tasks.spawn(async move {
            if let Ok(sent) = turn.send(&connection, &UnsubscribeRequest { id }, deadline).await {
                // What still comes for it is dropped, whatever the answer is.
                let _ = sent.reply(deadline).await;
            }
            Event::Nothing
        });
    }

    /// The place of the next request in the order of what this driver sends over a link.
    fn turn(&mut self, link: LinkId) -> Turn {
        self.shared.with(|state| self.sent.retain(|known, _| state.links.contains_key(known)));
        Turn::after(self.sent.entry(link).or_default())
    }

    /// Asks for a topic's metadata, once for all of its partitions that wait for it.
    fn refresh(&mut self, topic: Arc<str>, index: PartIndex) {
        let waiting = self.without_leader.entry(Arc::clone(&topic)).or_default();
        waiting.insert(index);
        if waiting.len() > 1 {
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            let deadline = shared.client.deadline();
            let refreshed = shared.client.refresh_topic(&topic, deadline).await;
            Event::Refreshed(topic, refreshed)
        });
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Connected(address, result) => self.take_connection(address, result),
            Event::Found(index, generation, Ok(Found::Position(offset))) => {
                self.shared.with(|state| state.feed.found(index, generation, offset));
                self.find_leader(index);
            }
            Event::Found(index, generation, Ok(Found::Range(range))) => {
                let random = self.shared.client.random();
                self.shared.tell(|state| {
                    state.feed.found_range(index, generation, range, (now(), random));
                    true
                });
                self.shared.work.notify_one();
            }
            Event::Found(index, _, Err(error)) => self.held_up(index, error),
            Event::Subscribed(id, Ok(reply)) => {
                self.shared.with(|state| state.feed.subscribed(id, Offset(reply.high_watermark)));
            }
            Event::Subscribed(id, Err(error)) => {
                self.shared.subscription_ended(id, End { error, corrupt: None, log_range: None });
            }
            Event::Refreshed(topic, result) => self.take_topic(&topic, result),
            Event::Nothing => {}
        }
    }

    fn take_connection(&mut self, address: Arc<str>, result: Result<(LinkId, Connection), Error>) {
        let waiting = self.connecting.remove(&address).unwrap_or_default();
        match result {
            Ok((link, connection)) => {
                self.shared.with(|state| state.links.insert(link, connection.clone()));
                self.links.insert(address, link);
                for index in waiting {
                    self.subscribe(index, link, connection.clone());
                }
                if connection.closed().is_some() {
                    // It ended before it was listed: its end was told to nobody.
                    let random = self.shared.client.random();
                    self.shared.with(|state| {
                        state.links.remove(&link);
                        let lost = state.feed.link_lost(link, now(), random);
                        state.outdated.extend(lost);
                    });
                    self.shared.work.notify_one();
                }
            }
            Err(error) => {
                for index in waiting {
                    if let Some((topic, _)) = self.shared.with(|state| state.feed.place(index)) {
                        self.shared.client.metadata().forget(&topic.name);
                    }
                    self.held_up(index, error.clone());
                }
            }
        }
    }

    fn take_topic(&mut self, name: &str, result: Result<Arc<TopicMetadata>, Error>) {
        for index in self.without_leader.remove(name).unwrap_or_default() {
            let Some((topic, _)) = self.shared.with(|state| state.feed.place(index)) else { continue };
            match &result {
                Ok(current) if current.topic_id == topic.id => self.find_leader(index),
                Ok(_) => {
                    let text = "the topic was deleted, and created again as another one";
                    self.held_up(index, Error::new(ErrorKind::UnknownTopic, text).with_topic(name));
                }
                Err(error) => self.held_up(index, error.clone()),
            }
        }
    }

    /// Tries again later, or gives the topic up if that cannot help.
    fn held_up(&mut self, index: PartIndex, error: Error) {
        let found = self.shared.with(|state| Some((state.feed.place(index)?, state.feed.scope())));
        let Some(((topic, partition), scope)) = found else { return };
        // A member is told by its coordinator when a topic is no longer its own.
        let gone = matches!(error.kind(), ErrorKind::UnknownTopic | ErrorKind::UnknownPartition);
        if error.is_retriable() || scope == Scope::Group && gone {
            tracing::debug!(topic = %topic.name, %partition, %error, "a partition is not subscribed yet");
            self.postpone(index);
        } else {
            self.shared.tell(|state| {
                state.feed.fail(&topic.name, error);
                true
            });
        }
    }

    fn postpone(&mut self, index: PartIndex) {
        let random = self.shared.client.random();
        self.shared.with(|state| state.feed.postpone(index, now(), random));
        self.shared.work.notify_one();
    }

    /// Lets go of the connections, which the state holds as well as the tasks.
    async fn end(mut self) {
        self.tasks.shutdown().await;
        self.shared.with(|state| state.links.clear());
    }
}
