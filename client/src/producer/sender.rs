//! The task that takes batches out of the accumulator, sends them and hears what became of them.

mod identity;
mod leaders;
mod replies;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use highwater_protocol::batch::restamp_producer;
use highwater_protocol::ids::{LeaderEpoch, PartitionId, TopicPartition};
use highwater_protocol::limits::PRODUCE_BATCHES_MAX;
use highwater_protocol::messages::{ProduceBatch, ProduceRequest};
use tokio::task::JoinSet;

use self::identity::Identification;
use super::accumulator::{Accumulator, BatchId, Collected, LaneIndex};
use super::delivery::{Acknowledged, BatchAck};
use super::links::{Peer, PeerState};
use super::sequencer::{Done, Identity, Lane, Stamp, Ticket, timed_out};
use super::{Shared, now};
use crate::admin::TopicMetadata;
use crate::error::{Error, ErrorKind};
use crate::retry::{Backoff, RetryPolicy};
use crate::wire::{Connection, Lost};

/// Batches that are not full wait while so many of their partition are on their way: they fill meanwhile.
const UNFILLED_IN_FLIGHT_MAX: usize = 4;
/// Bytes of batches after which a request takes no further one.
const REQUEST_BYTES: usize = 1 << 20;
/// How old what is known of a topic may become: partitions may have been added.
const METADATA_AGE_MAX: Duration = Duration::from_secs(60);
/// How long a reply may be late, after the time that the broker was given.
const REPLY_GRACE: Duration = Duration::from_secs(5);
/// How long a broker has for an attempt of an idempotent producer, which asks again afterwards.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// A leader that has not answered for so long may have hung, and another one may lead.
const DOUBT_AFTER: Duration = Duration::from_secs(1);
/// How long a partition waits after a failure: short, because a leader change takes less than a second.
const RETRY: RetryPolicy = RetryPolicy { first: Duration::from_millis(10), max: Duration::from_millis(250) };

/// A batch with its checksums.
#[derive(Debug)]
struct Sending {
    id: BatchId,
    bytes: Bytes,
    /// What is written in `bytes`, if the producer is idempotent.
    stamp: Option<Stamp>,
    ack: Arc<BatchAck>,
    charged: usize,
    record_count: u32,
}

/// A partition as the sender sees it.
#[derive(Debug)]
struct Partition {
    lane: Lane<Sending>,
    topic: Arc<TopicMetadata>,
    place: TopicPartition,
    /// Its leader, an index of `peers`, while it is thought to be known.
    peer: Option<usize>,
    /// The latest leader epoch that the sender has turned to.
    led_in: LeaderEpoch,
    /// Whether it is in `listed`.
    listed: bool,
}

#[derive(Debug)]
struct InFlight {
    peer: usize,
    entries: Vec<(LaneIndex, u64)>,
    deadline: Instant,
    /// When to ask whether the broker still leads, because it has not answered.
    doubt_at: Instant,
}

/// What the sender's helpers found.
enum Event {
    Connected(usize, Result<Connection, Error>),
    Topic(Arc<TopicMetadata>, Result<Arc<TopicMetadata>, Error>),
    Identified(Result<Identity, Error>),
}

/// What goes into one request.
#[derive(Default)]
struct Parcel {
    bytes: usize,
    batches: Vec<(LaneIndex, Picked)>,
}

enum Picked {
    New(Collected),
    Again(Sending, Ticket),
}

pub(super) struct Sender {
    shared: Arc<Shared>,
    partitions: Vec<Partition>,
    /// Partitions with something to send, in the order in which they are looked at.
    listed: VecDeque<LaneIndex>,
    peers: Vec<Peer>,
    requests: HashMap<u64, InFlight>,
    next_tag: u64,
    next_link: u64,
    identification: Identification,
    refreshing: HashSet<String>,
    /// When to ask for the metadata of every topic again.
    refresh_at: Instant,
    refresh_backoff: HashMap<String, (Backoff, Instant)>,
    tasks: JoinSet<Event>,
    done: Vec<Done<Sending, Acknowledged>>,
}

impl Sender {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            partitions: Vec::new(),
            listed: VecDeque::new(),
            peers: Vec::new(),
            requests: HashMap::new(),
            next_tag: 0,
            next_link: 0,
            identification: Identification::default(),
            refreshing: HashSet::new(),
            refresh_at: now() + METADATA_AGE_MAX,
            refresh_backoff: HashMap::new(),
            tasks: JoinSet::new(),
            done: Vec::new(),
        }
    }

    /// Runs until the producer is closed and everything is done, or until it is dropped.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut moves = shared.client.metadata().changes();
        while !shared.is_aborted() {
            for (tag, reply) in shared.inbox.take() {
                self.take_reply(tag, reply);
            }
            let wake_at = self.dispatch();
            self.finish_done();
            if shared.is_stopping() && shared.accumulator.lock().unfinished_records() == 0 {
                break;
            }
            let wake_at = wake_at.unwrap_or_else(|| now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                () = shared.inbox.work.notified() => {}
                Ok(()) = moves.changed() => self.follow_leaders(),
                Some(event) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    // A helper that panicked is a defect; what waits for it ends at its deadline.
                    if let Ok(event) = event {
                        self.take_event(event);
                    }
                }
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
    }

    /// Sends what can be sent. Returns when to look again if nothing happens before.
    fn dispatch(&mut self) -> Option<Instant> {
        let now = now();
        self.note_lost_links(now);
        self.note_silence(now);
        self.refresh_all(now);
        let shared = Arc::clone(&self.shared);
        loop {
            let mut parcels: HashMap<usize, Parcel> = HashMap::new();
            let mut wake_at = None;
            {
                let mut accumulator = shared.accumulator.lock();
                accumulator.tick(now);
                self.take_listed(&mut accumulator);
                for _ in 0..self.listed.len() {
                    let Some(lane) = self.listed.pop_front() else { break };
                    let blocked_until = self.pick(lane, now, &mut accumulator, &mut parcels);
                    if self.partitions[lane].lane.has_again() || accumulator.keep_listed(lane) {
                        self.listed.push_back(lane);
                    } else {
                        self.partitions[lane].listed = false;
                    }
                    wake_at = earliest(wake_at, blocked_until);
                }
                wake_at = earliest(wake_at, accumulator.next_deadline());
            }
            if parcels.is_empty() {
                let replies = self.requests.values().map(|r| r.deadline.min(r.doubt_at)).min();
                return earliest(earliest(wake_at, replies), Some(self.refresh_at));
            }
            for (peer, parcel) in parcels {
                self.send(peer, parcel, now);
            }
        }
    }

    fn take_listed(&mut self, accumulator: &mut Accumulator) {
        for index in self.partitions.len()..accumulator.lane_count() {
            let (topic, place) = accumulator.place(index);
            let lane = Lane::new(self.shared.settings.idempotent, RETRY);
            self.partitions.push(Partition {
                lane,
                topic,
                place,
                peer: None,
                led_in: LeaderEpoch(0),
                listed: false,
            });
        }
        let mut fresh = VecDeque::new();
        accumulator.take_eligible(&mut fresh);
        for index in fresh {
            self.list(index);
        }
    }

    fn list(&mut self, index: LaneIndex) {
        if !std::mem::replace(&mut self.partitions[index].listed, true) {
            self.listed.push_back(index);
        }
    }

    /// Takes at most one batch of a partition for its leader. Returns when to look again if it cannot go now.
    fn pick(
        &mut self,
        index: LaneIndex,
        now: Instant,
        accumulator: &mut Accumulator,
        parcels: &mut HashMap<usize, Parcel>,
    ) -> Option<Instant> {
        let peer = self.leader_of(index, now);
        self.identify(index, now);
        let partition = &mut self.partitions[index];
        let link = peer.and_then(|peer| match &self.peers[peer].state {
            PeerState::Up(link) => Some((peer, link)),
            _ => None,
        });
        let mut sent = false;
        if let Some((peer, link)) = link.filter(|(_, link)| partition.lane.can_send(link.id, now)) {
            let parcel = parcels.get(&peer);
            let bytes = parcel.map_or(0, |parcel| parcel.bytes);
            let count = parcel.map_or(0, |parcel| parcel.batches.len());
            if link.has_room(bytes as u64) && bytes < REQUEST_BYTES && count < PRODUCE_BATCHES_MAX {
                let picked = match partition.lane.take_again() {
                    Some((batch, ticket)) => Some(Picked::Again(batch, ticket)),
                    None => {
                        let open_too = partition.lane.in_flight_count() < UNFILLED_IN_FLIGHT_MAX;
                        accumulator.collect(index, open_too).map(Picked::New)
                    }
                };
                if let Some(picked) = picked {
                    let parcel = parcels.entry(peer).or_default();
                    parcel.bytes += picked.length();
                    parcel.batches.push((index, picked));
                    sent = true;
                }
            }
        }
        // What is left goes when a reply or the window comes, or not at all.
        if sent { None } else { self.expire(index, peer, now, accumulator) }
    }

    /// Ends batches of a partition that cannot be sent and waited too long. Returns when the next one does.
    fn expire(
        &mut self,
        index: LaneIndex,
        peer: Option<usize>,
        now: Instant,
        accumulator: &mut Accumulator,
    ) -> Option<Instant> {
        let timeout = self.shared.settings.delivery_timeout;
        let partition = &mut self.partitions[index];
        partition.lane.expire(now, &mut self.done);
        // New batches stand behind those that go again.
        if !partition.lane.has_again()
            && let Some(limit) = now.checked_sub(timeout)
        {
            while let Some(batch) = accumulator.collect_expired(index, limit) {
                let of_peer = || peer.and_then(|peer| self.peers[peer].last_error.clone());
                let cause = self.identification.last_error().or_else(of_peer).unwrap_or_else(|| {
                    Error::new(ErrorKind::NotReady, "the leader of the partition could not take it yet")
                });
                let error =
                    timed_out(&cause).with_partition(&partition.topic.name, partition.place.partition);
                self.done.push(Done { batch: Sending::unsent(batch), outcome: Err(error) });
            }
        }
        let mut wake_at = earliest(partition.lane.again_deadline(), partition.lane.not_before());
        wake_at = earliest(wake_at, accumulator.oldest(index).map(|opened| opened + timeout));
        let retry_at = match peer.map(|peer| &self.peers[peer].state) {
            Some(PeerState::Down { not_before }) => *not_before,
            Some(_) => None,
            None => self.refresh_backoff.get(&partition.topic.name).map(|(_, not_before)| *not_before),
        };
        let retry_at = earliest(retry_at.filter(|at| *at > now), self.identification.not_before());
        earliest(wake_at.filter(|at| *at > now), retry_at.filter(|at| *at > now))
    }

    /// Builds a request and hands it to the connection.
    fn send(&mut self, peer: usize, parcel: Parcel, now: Instant) {
        let PeerState::Up(link) = &mut self.peers[peer].state else { return };
        let link_id = link.id;
        let mut entries = Vec::with_capacity(parcel.batches.len());
        let mut batches = Vec::with_capacity(parcel.batches.len());
        let mut attachment = Vec::with_capacity(parcel.batches.len());
        let mut last_deadline = now;
        for (index, picked) in parcel.batches {
            let partition = &mut self.partitions[index];
            let (sending, ticket) = match picked {
                Picked::Again(sending, ticket) => (sending.restamped(ticket.stamp, partition.place), ticket),
                Picked::New(collected) => {
                    let deadline = collected.opened_at + self.shared.settings.delivery_timeout;
                    let ticket = partition.lane.ticket(deadline, collected.builder.record_count());
                    match build(collected, ticket.stamp, partition, &self.shared) {
                        Ok(sending) => (sending, ticket),
                        Err(done) => {
                            self.done.push(*done);
                            continue;
                        }
                    }
                }
            };
            last_deadline = last_deadline.max(ticket.deadline);
            attachment.push(sending.bytes.clone());
            let length = sending.bytes.len() as u32;
            link.produced += u64::from(length);
            let number = partition.lane.send(link_id, sending, ticket);
            entries.push((index, number));
            batches.push(ProduceBatch {
                topic_id: Some(partition.place.topic_id.into()),
                partition: partition.place.partition.get(),
                // Sequences take the place of numbers.
                number: if ticket.stamp.is_some() { 0 } else { number },
                length,
            });
        }
        if entries.is_empty() {
            return;
        }
        let mut time = last_deadline.saturating_duration_since(now);
        if self.shared.settings.idempotent {
            time = time.min(ATTEMPT_MAX);
        }
        let timeout_ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1);
        let request = ProduceRequest { acks: self.shared.settings.acks.into(), timeout_ms, batches };
        let tag = self.next_tag;
        self.next_tag += 1;
        let sink = Arc::clone(&self.shared.inbox);
        link.in_flight += 1;
        let submitted = link.connection.submit(&request, attachment, sink, tag);
        let (deadline, doubt_at) = (now + time + REPLY_GRACE, now + DOUBT_AFTER);
        self.requests.insert(tag, InFlight { peer, entries, deadline, doubt_at });
        if let Err(error) = submitted {
            self.take_reply(tag, Err(Lost { sent: false, error }));
        }
    }

    /// Tells deliveries and frees memory.
    fn finish_done(&mut self) {
        if self.done.is_empty() {
            return;
        }
        let done: Vec<_> = self.done.drain(..).collect();
        let finished: Vec<_> = done
            .iter()
            .map(|done| {
                let batch = &done.batch;
                (batch.id, batch.charged, batch.record_count, done.outcome.as_ref().err().cloned())
            })
            .collect();
        for Done { batch, outcome } in done {
            batch.ack.complete(outcome);
        }
        self.shared.finish(finished);
    }

    /// Ends everything: nobody will send it any more.
    fn abandon(&mut self) {
        let error =
            Error::new(ErrorKind::Closed, "the producer was dropped before the record was acknowledged");
        let shared = Arc::clone(&self.shared);
        {
            let mut accumulator = shared.accumulator.lock();
            accumulator.close();
            self.take_listed(&mut accumulator);
            for (index, partition) in self.partitions.iter_mut().enumerate() {
                partition.lane.abandon(&error, &mut self.done);
                for batch in accumulator.drain(index) {
                    self.done.push(Done { batch: Sending::unsent(batch), outcome: Err(error.clone()) });
                }
            }
        }
        self.finish_done();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.abandon();
        self.shared.stopped.cancel();
    }
}

impl Picked {
    fn length(&self) -> usize {
        match self {
            Self::New(collected) => collected.builder.length(),
            Self::Again(sending, _) => sending.bytes.len(),
        }
    }
}

impl Sending {
    /// A batch that ends before it was built.
    fn unsent(batch: Collected) -> Self {
        let record_count = batch.builder.record_count();
        Self {
            id: batch.id,
            bytes: Bytes::new(),
            stamp: None,
            ack: batch.ack,
            charged: batch.charged,
            record_count,
        }
    }

    /// The batch under another identity, if it goes under another one now.
    fn restamped(mut self, stamp: Option<Stamp>, place: TopicPartition) -> Self {
        if let Some(new) = stamp.filter(|_| stamp != self.stamp) {
            let Stamp { identity, first_sequence } = new;
            self.bytes = restamp_producer(&self.bytes, place, identity.id, identity.epoch, first_sequence);
            self.stamp = stamp;
        }
        self
    }
}

/// Compresses a batch and writes its headers and checksums.
fn build(
    collected: Collected,
    stamp: Option<Stamp>,
    partition: &Partition,
    shared: &Shared,
) -> Result<Sending, Box<Done<Sending, Acknowledged>>> {
    let Collected { id, mut builder, ack, charged, .. } = collected;
    let record_count = builder.record_count();
    if let Some(Stamp { identity, first_sequence }) = stamp {
        builder.set_producer(identity.id, identity.epoch, first_sequence);
    }
    match builder.build(partition.place, shared.settings.compression) {
        Ok(bytes) => Ok(Sending { id, bytes, stamp, ack, charged, record_count }),
        Err(error) => {
            let outcome = Error::new(ErrorKind::Unsupported, error.to_string()).with_source(error);
            let outcome = outcome.with_partition(&partition.topic.name, partition_number(partition));
            let batch = Sending { id, bytes: Bytes::new(), stamp: None, ack, charged, record_count };
            Err(Box::new(Done { batch, outcome: Err(outcome) }))
        }
    }
}

const fn partition_number(partition: &Partition) -> PartitionId {
    partition.place.partition
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
