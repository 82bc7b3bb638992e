//! Where the leaders are, and the connections to them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::super::accumulator::LaneIndex;
use super::super::links::{Link, Peer, PeerState};
use super::super::now;
use super::super::sequencer::{Done, LinkId};
use super::{DOUBT_AFTER, Event, METADATA_AGE_MAX, Sender, Sending};
use crate::admin::TopicMetadata;
use crate::error::{Error, ErrorKind};

impl Sender {
    /// The leader of a partition, if it is known; asks for it otherwise, and connects to it.
    pub(super) fn leader_of(&mut self, index: LaneIndex, now: Instant) -> Option<usize> {
        let peer = match self.partitions[index].peer {
            Some(peer) => peer,
            None => {
                let peer = self.find_leader(index, now)?;
                self.partitions[index].peer = Some(peer);
                peer
            }
        };
        if let PeerState::Down { not_before } = self.peers[peer].state
            && not_before.is_none_or(|not_before| not_before <= now)
        {
            self.peers[peer].state = PeerState::Connecting;
            let shared = Arc::clone(&self.shared);
            let address = Arc::clone(&self.peers[peer].address);
            self.tasks.spawn(async move {
                let inbox = Arc::clone(&shared.inbox);
                Event::Connected(peer, shared.client.pool().connect(&address, inbox).await)
            });
        }
        Some(peer)
    }

    pub(super) fn find_leader(&mut self, index: LaneIndex, now: Instant) -> Option<usize> {
        let partition = &self.partitions[index];
        let metadata = self.shared.client.metadata();
        let current = metadata.topic(&partition.topic.name);
        let current = current.filter(|topic| topic.topic_id == partition.place.topic_id);
        let address =
            current.and_then(|topic| metadata.leader_address(&topic, partition.place.partition).ok());
        let Some(address) = address else {
            self.refresh(index, now);
            return None;
        };
        // Only now: a topic whose partition has no leader is asked about less and less often.
        self.refresh_backoff.remove(&partition.topic.name);
        let place = partition.place;
        let leadership = metadata.leadership(&partition.topic.name, place.topic_id, place.partition);
        let led_in = leadership.map_or(partition.led_in, |(epoch, _)| epoch.max(partition.led_in));
        self.partitions[index].led_in = led_in;
        if let Some(peer) = self.peers.iter().position(|peer| *peer.address == *address) {
            return Some(peer);
        }
        self.peers.push(Peer {
            address: Arc::from(address),
            state: PeerState::Down { not_before: None },
            backoff: self.shared.client.backoff(),
            last_error: None,
        });
        Some(self.peers.len() - 1)
    }

    /// Turns to new leaders, as soon as metadata tells of them. What an idempotent producer has sent to the old ones goes to
    /// the new ones at once: an old leader may never answer.
    pub(super) fn follow_leaders(&mut self) {
        let now = now();
        let shared = Arc::clone(&self.shared);
        let metadata = shared.client.metadata();
        for index in 0..self.partitions.len() {
            let partition = &mut self.partitions[index];
            let place = partition.place;
            let leadership = metadata.leadership(&partition.topic.name, place.topic_id, place.partition);
            // What is not news must not end a pause: there would be no pauses.
            let Some((epoch, address)) = leadership.filter(|(epoch, _)| *epoch > partition.led_in) else {
                continue;
            };
            partition.led_in = epoch;
            partition.lane.hurry();
            if partition.peer.is_none_or(|peer| *self.peers[peer].address != *address) {
                partition.peer = None;
                let text = format!("its leader is the broker at {address} now");
                let moved = Error::new(ErrorKind::NotReady, text);
                let moved = moved.with_partition(&partition.topic.name, place.partition);
                partition.lane.recall(&moved, now, &mut self.done);
            }
            // The new leader is alive by all that is known: it is tried at once.
            if let Some(peer) = self.peers.iter_mut().find(|peer| *peer.address == *address)
                && let PeerState::Down { not_before } = &mut peer.state
            {
                *not_before = None;
                shared.client.pool().encourage(&address);
            }
            if self.partitions[index].lane.has_again() {
                self.list(index);
            }
        }
    }

    /// Asks for the metadata of all topics again when it has become old.
    pub(super) fn refresh_all(&mut self, now: Instant) {
        if now < self.refresh_at {
            return;
        }
        self.refresh_at = now + METADATA_AGE_MAX;
        let mut seen = HashSet::new();
        for index in 0..self.partitions.len() {
            if seen.insert(self.partitions[index].topic.name.clone()) {
                self.refresh(index, now);
            }
        }
    }

    /// Asks for a topic's metadata, unless that is being done or was done a moment ago.
    pub(super) fn refresh(&mut self, index: LaneIndex, now: Instant) {
        let topic = Arc::clone(&self.partitions[index].topic);
        let client = self.shared.client.clone();
        let fresh = || (client.backoff(), now);
        let (backoff, not_before) = self.refresh_backoff.entry(topic.name.clone()).or_insert_with(fresh);
        if *not_before > now || !self.refreshing.insert(topic.name.clone()) {
            return;
        }
        *not_before = now + backoff.next(client.random());
        self.tasks.spawn(async move {
            let result = client.refresh_topic(&topic.name, client.deadline()).await;
            Event::Topic(topic, result)
        });
    }

    pub(super) fn take_event(&mut self, event: Event) {
        match event {
            Event::Connected(peer, Ok(connection)) => {
                let id = LinkId(self.next_link);
                self.next_link += 1;
                let link = Link::new(id, connection, self.shared.settings.max_in_flight);
                self.peers[peer].state = PeerState::Up(link);
            }
            Event::Connected(peer, Err(error)) => self.peer_down(peer, error),
            Event::Topic(before, result) => self.take_topic(&before, result),
            Event::Identified(result) => self.take_identity(result),
        }
    }

    pub(super) fn peer_down(&mut self, index: usize, error: Error) {
        let random = self.shared.client.random();
        let peer = &mut self.peers[index];
        tracing::debug!(address = %peer.address, %error, "a broker is not reached");
        peer.state = PeerState::Down { not_before: Some(now() + peer.backoff.next(random)) };
        peer.last_error = Some(error);
        // The leader may be another one by now.
        for partition in self.partitions.iter_mut().filter(|partition| partition.peer == Some(index)) {
            self.shared.client.metadata().forget(&partition.topic.name);
        }
    }

    /// Asks whether brokers still lead that have not answered for a while.
    pub(super) fn note_silence(&mut self, now: Instant) {
        let mut doubted = Vec::new();
        for request in self.requests.values_mut().filter(|request| request.doubt_at <= now) {
            request.doubt_at = now + DOUBT_AFTER;
            doubted.extend(request.entries.first().map(|(index, _)| *index));
        }
        for index in doubted {
            self.refresh(index, now);
        }
    }

    /// Connections that ended, and replies that are too late.
    pub(super) fn note_lost_links(&mut self, now: Instant) {
        for request in self.requests.values().filter(|request| request.deadline <= now) {
            if let PeerState::Up(link) = &self.peers[request.peer].state {
                let text = "the broker did not answer a produce request in time";
                link.connection
                    .close(Error::new(ErrorKind::TimedOut, text).with_address(link.connection.address()));
            }
        }
        for index in 0..self.peers.len() {
            let PeerState::Up(link) = &self.peers[index].state else { continue };
            // Requests without a reply are told one by one, before or after this.
            if link.in_flight == 0
                && let Some(error) = link.connection.closed()
            {
                self.peer_down(index, error);
                for partition in self.partitions.iter_mut().filter(|partition| partition.peer == Some(index))
                {
                    partition.peer = None;
                }
            }
        }
    }

    pub(super) fn take_topic(&mut self, before: &TopicMetadata, result: Result<Arc<TopicMetadata>, Error>) {
        self.refreshing.remove(&before.name);
        let shared = Arc::clone(&self.shared);
        let mut accumulator = shared.accumulator.lock();
        let gone = match result {
            Ok(topic) => {
                let current = topic.topic_id;
                accumulator.set_topic(topic);
                let text = "the topic was deleted, and created again as another one";
                Some((Some(current), Error::new(ErrorKind::UnknownTopic, text)))
            }
            Err(error) if error.kind() == ErrorKind::UnknownTopic => {
                accumulator.forget_topic(&before.name);
                Some((None, error))
            }
            Err(error) => {
                tracing::debug!(topic = %before.name, %error, "metadata is not refreshed");
                None
            }
        };
        let Some((current, error)) = gone else { return };
        let error = error.with_topic(&before.name);
        for index in accumulator.lanes_of(&before.name) {
            let Some(partition) = self.partitions.get_mut(index) else { continue };
            if Some(partition.place.topic_id) == current {
                partition.peer = None;
                continue;
            }
            let error = error.clone().with_partition(&before.name, partition.place.partition);
            partition.lane.fail_again(&error, &mut self.done);
            for batch in accumulator.drain(index) {
                self.done.push(Done { batch: Sending::unsent(batch), outcome: Err(error.clone()) });
            }
        }
    }
}
