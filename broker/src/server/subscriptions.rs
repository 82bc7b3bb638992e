//! The subscriptions of a connection: the machine that decides, and what it decides about.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use highwater_broker_core::subscription::{Input, Output as Decision, Subscriptions};
use highwater_broker_core::time::Mono;
use highwater_protocol::api::ApiKey;
use highwater_protocol::batch::{BatchHeader, PRODUCER_HEADER_LENGTH};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::{FLAG_ONE_WAY, encode_frame_head};
use highwater_protocol::ids::{CorrelationId, Offset, SubscriptionId};
use highwater_protocol::limits::HEADER_LENGTH_MAX;
use highwater_protocol::messages::{
    CorruptRange, Credit, Ended, Isolation, Push, ReplicaAck, SubscribeRequest,
};
use tracing::{debug, warn};

use super::Node;
use super::outbox::{Outbox, SubscriptionEvent};
use super::output::{Kind, Output};
use crate::api::ApiError;
use crate::partition::handle::{Ask, Offer, PartitionHandle};
use crate::partition::reads::read_error;
use crate::partition::sessions::{Answer, Grant, SessionGuard};
use crate::storage::error::ReadError;

/// Pushes are taken while fewer bytes than this wait for the socket.
const OUTPUT_BYTES_LOW: usize = 256 << 10;

/// The live subscriptions of one connection.
#[derive(Debug)]
pub(crate) struct Feeds {
    node: Arc<Node>,
    outbox: Arc<Outbox>,
    machine: Subscriptions,
    feeds: HashMap<SubscriptionId, Feed>,
    /// Requests that their partitions have not answered.
    pending: usize,
    decisions: Vec<Decision>,
}

#[derive(Debug)]
struct Feed {
    handle: PartitionHandle,
    isolation: Isolation,
    offered: Option<Offered>,
    /// Set for followers.
    session: Option<SessionGuard>,
}

#[derive(Debug)]
enum Offered {
    /// Not read yet.
    Plan(Offer),
    /// Read on an I/O thread.
    Read(ReadOutcome),
}

/// An offer whose batches have been read.
#[derive(Debug)]
pub(crate) struct ReadOutcome {
    offer: Offer,
    batches: Result<Vec<Bytes>, ReadError>,
}

impl Feeds {
    pub(crate) fn new(node: Arc<Node>, outbox: Arc<Outbox>) -> Self {
        Self {
            node,
            outbox,
            machine: Subscriptions::default(),
            feeds: HashMap::new(),
            pending: 0,
            decisions: Vec::new(),
        }
    }

    /// Notes that a subscription with this id was asked for.
    pub(crate) fn reserve(&mut self, id: SubscriptionId, is_replica: bool) -> Result<(), ApiError> {
        if !self.machine.may_open(id) {
            return Err(ApiError::new(
                ErrorCode::DuplicateSubscription,
                format!(
                    "subscription id {id} was used on this connection, or a greater one was: ids have to grow"
                ),
            ));
        }
        // A broker follows whatever it was assigned.
        let max = self.node.limits.subscriptions_max;
        if self.machine.count() + self.pending >= max && !is_replica {
            return Err(ApiError::new(
                ErrorCode::TooManySubscriptions,
                format!("a connection has at most {max} subscriptions"),
            ));
        }
        self.machine.reserve(id);
        self.pending += 1;
        Ok(())
    }

    /// The partition has answered: the subscription is opened, or its subscriber is told why not.
    fn answered(&mut self, answer: Answer) {
        let Answer { id, correlation_id, reply, grant } = answer;
        self.pending -= 1;
        match reply {
            Ok(reply) => {
                self.outbox.reply::<SubscribeRequest>(correlation_id, &reply);
                if let Some(grant) = grant {
                    self.open(id, grant, Offset(reply.high_watermark));
                }
            }
            Err(error) => {
                self.machine.release(id);
                self.node.metrics.count_error(ApiKey::SUBSCRIBE, error.code);
                self.outbox.reply_error(ApiKey::SUBSCRIBE, correlation_id, &error);
            }
        }
    }

    fn open(&mut self, id: SubscriptionId, grant: Grant, high_watermark: Offset) {
        let Grant { handle, isolation, offset, credit, session } = grant;
        self.feeds.insert(id, Feed { handle, isolation, offered: None, session });
        self.node.metrics.subscriptions.inc();
        self.step(Input::Opened { id, offset, high_watermark, credit });
    }

    /// Takes in how far a follower is. Dropped unless its session is live.
    pub(crate) fn acknowledge(&self, ack: ReplicaAck) {
        let feed = self.feeds.get(&SubscriptionId(ack.id));
        if let Some(session) = feed.and_then(|feed| feed.session.as_ref()) {
            session.acknowledge(ack);
        }
    }

    /// Raises a credit. One for a subscription that is over is ignored: it was on its way.
    pub(crate) fn credit(&mut self, credit: Credit) {
        self.step(Input::Credit { id: SubscriptionId(credit.id), limit: credit.limit });
    }

    /// Ends a subscription at its subscriber's wish.
    pub(crate) fn unsubscribe(&mut self, id: SubscriptionId) -> Result<(), ApiError> {
        let Some(feed) = self.close(id) else {
            return Err(ApiError::new(
                ErrorCode::UnknownSubscription,
                format!("there is no subscription {id}"),
            ));
        };
        feed.handle.cancel_ask(self.outbox.id(), id);
        Ok(())
    }

    /// Ends all subscriptions without telling anybody: the connection closes.
    pub(crate) fn close_all(&mut self) {
        let ids: Vec<_> = self.feeds.keys().copied().collect();
        for id in ids {
            let _always_there = self.unsubscribe(id);
        }
    }

    /// Takes in what happened elsewhere; what has to be told is added to `output`.
    pub(crate) fn event(&mut self, event: SubscriptionEvent, output: &mut Output) {
        let (id, number, offered) = match event {
            SubscriptionEvent::Offered(id, offer) => (id, offer.number, Offered::Plan(offer)),
            SubscriptionEvent::Read(id, outcome) => (id, outcome.offer.number, Offered::Read(*outcome)),
            SubscriptionEvent::Answered(answer) => return self.answered(*answer),
            SubscriptionEvent::Ended(ended) => {
                if self.close(SubscriptionId(ended.id)).is_some() {
                    send(output, ApiKey::ENDED, &*ended, Vec::new());
                }
                return;
            }
        };
        if !self.machine.expects(id, number) {
            return;
        }
        if let Some(feed) = self.feeds.get_mut(&id) {
            feed.offered = Some(offered);
            self.step(Input::Offered { id, number });
        }
    }

    /// When [`Feeds::tick`] is due.
    pub(crate) fn next_deadline(&self) -> Option<Mono> {
        self.machine.next_deadline()
    }

    /// Lets subscriptions go on that have paused.
    pub(crate) fn tick(&mut self) {
        self.step(Input::Tick);
    }

    /// Takes offers, in turn, while the socket can take more.
    pub(crate) fn pump(&mut self, output: &mut Output) {
        while output.bytes() < OUTPUT_BYTES_LOW {
            let Some(id) = self.machine.take() else { return };
            let offered = self.feeds.get_mut(&id).and_then(|feed| feed.offered.take());
            match offered {
                Some(Offered::Plan(offer)) => self.take_plan(id, offer, output),
                Some(Offered::Read(outcome)) => self.take_read(id, outcome, output),
                None => debug!(%id, "a subscription without an offer was taken"),
            }
        }
    }

    fn take_plan(&mut self, id: SubscriptionId, mut offer: Offer, output: &mut Output) {
        let ready = offer.plan.as_mut().map_or_else(|| Some(Ok(Vec::new())), |plan| plan.ready());
        let Some(batches) = ready else { return self.read_elsewhere(id, offer) };
        self.node.metrics.reads_hot.inc();
        self.take_read(id, ReadOutcome { offer, batches }, output);
    }

    /// The bytes are not in memory: an I/O thread reads them, and nobody waits for it.
    fn read_elsewhere(&self, id: SubscriptionId, mut offer: Offer) {
        let Some(plan) = offer.plan.take() else { return };
        self.node.metrics.reads_cold.inc();
        // A follower that catches up does not wait behind consumers, nor they behind it.
        let is_follower = self.feeds.get(&id).is_some_and(|feed| feed.session.is_some());
        let permits = if is_follower { &self.node.replica_reads } else { &self.node.cold_reads };
        let (outbox, permits) = (Arc::clone(&self.outbox), Arc::clone(permits));
        self.node.tasks.spawn(async move {
            // The semaphore is never closed.
            let _permit = permits.acquire_owned().await;
            let batches = plan.run().await;
            outbox.event(SubscriptionEvent::Read(id, Box::new(ReadOutcome { offer, batches })));
        });
    }

    fn take_read(&mut self, id: SubscriptionId, outcome: ReadOutcome, output: &mut Output) {
        let ReadOutcome { offer, batches } = outcome;
        let batches = match batches {
            Ok(batches) => batches,
            Err(error) => return self.end_for_error(id, &offer, &error, output),
        };
        let bytes: usize = batches.iter().map(Bytes::len).sum();
        let Some(next) = end_of(&batches, offer.from) else {
            warn!(%id, "a read returned bytes that are no batches");
            let error = ReadError::CorruptRange { start: offer.from, end: offer.from.next() };
            return self.end_for_error(id, &offer, &error, output);
        };
        let push = Push {
            id: id.get(),
            leader_epoch: offer.leader_epoch.get(),
            high_watermark: offer.high_watermark.get(),
            last_stable: offer.high_watermark.get(),
            log_start: offer.log_start.get(),
            aborted: Vec::new(),
        };
        send(output, ApiKey::PUSH, &push, batches);
        self.node.metrics.pushed_bytes.inc_by(bytes as u64);
        self.step(Input::Pushed { id, bytes, next, high_watermark: offer.high_watermark });
    }

    fn end_for_error(&mut self, id: SubscriptionId, offer: &Offer, error: &ReadError, output: &mut Output) {
        let corrupt = match error {
            ReadError::CorruptRange { start, end } => {
                Some(CorruptRange { start: start.get(), end: end.get() })
            }
            _ => None,
        };
        let error = read_error(error);
        let ended = Ended {
            id: id.get(),
            code: error.code.code(),
            message: error.message,
            leader: self.node.node_id.get(),
            log_start: offer.log_start.get(),
            log_end: offer.log_end.get(),
            divergence: None,
            corrupt,
        };
        self.close(id);
        send(output, ApiKey::ENDED, &ended, Vec::new());
    }

    fn close(&mut self, id: SubscriptionId) -> Option<Feed> {
        let feed = self.feeds.remove(&id)?;
        self.node.metrics.subscriptions.dec();
        self.step(Input::Closed { id });
        Some(feed)
    }

    fn step(&mut self, input: Input) {
        let now = self.node.clock.mono();
        self.machine.step(now, input, &mut self.decisions);
        let decisions = std::mem::take(&mut self.decisions);
        for decision in &decisions {
            self.ask(decision);
        }
        self.decisions = decisions;
        self.decisions.clear();
    }

    fn ask(&self, decision: &Decision) {
        let &Decision::Ask { id, number, from, bytes_max, seen_watermark } = decision;
        let Some(feed) = self.feeds.get(&id) else { return };
        let outbox = Arc::clone(&self.outbox);
        let isolation = feed.isolation;
        let ask = Ask { outbox, id, number, from, bytes_max, seen_watermark, isolation };
        if let Err(why) = feed.handle.ask(ask) {
            let error = why.error(feed.handle.partition());
            let ended =
                Ended { id: id.get(), code: error.code.code(), message: error.message, ..Ended::default() };
            self.outbox.event(SubscriptionEvent::Ended(Box::new(ended)));
        }
    }
}

impl Drop for Feeds {
    fn drop(&mut self) {
        self.close_all();
    }
}

/// Adds a one-way message with its batches.
pub(crate) fn send(output: &mut Output, api: ApiKey, body: &impl prost::Message, batches: Vec<Bytes>) {
    let length = batches.iter().map(Bytes::len).sum();
    let mut head = BytesMut::with_capacity(128);
    if let Err(error) = encode_frame_head(api, FLAG_ONE_WAY, CorrelationId(0), body, length, &mut head) {
        // Pushes are bounded far below the limits of a frame.
        warn!(%error, api = api.name(), "a message does not fit a frame");
        return;
    }
    output.push(head.freeze(), Kind::Other);
    for batch in batches {
        output.push(batch, Kind::Other);
    }
}

/// The offset after the last batch; `from` if there is none. `None`: the bytes are not batches.
///
/// A large batch of the memory tail comes in two pieces, the leader's header and the rest.
fn end_of(pieces: &[Bytes], from: Offset) -> Option<Offset> {
    let mut end = from;
    // Bytes of the last batch that are in pieces to come.
    let mut left = 0;
    for (index, piece) in pieces.iter().enumerate() {
        let mut at = piece.len().min(left);
        left -= at;
        while at < piece.len() {
            let header = header_at(&pieces[index..], at)?;
            let here = header.length().min(piece.len() - at);
            (end, left) = (header.end_offset(), header.length() - here);
            at += here;
        }
    }
    (left == 0).then_some(end)
}

/// The headers of the batch at `at` in the first piece, which the second one may go on with.
fn header_at(pieces: &[Bytes], at: usize) -> Option<BatchHeader> {
    let (first, rest) = pieces.split_first()?;
    let first = first.get(at..)?;
    let whole = HEADER_LENGTH_MAX + PRODUCER_HEADER_LENGTH;
    match rest.first() {
        Some(next) if first.len() < whole => {
            let joined = [first, &next[..next.len().min(whole)]].concat();
            BatchHeader::decode(&joined).ok()
        }
        _ => BatchHeader::decode(first).ok(),
    }
}

#[cfg(test)]
mod tests {
    use highwater_protocol::batch::{BatchBuilder, HEADER_LENGTH, LeaderStamp};
    use highwater_protocol::compression::Compression;
    use highwater_protocol::ids::{PartitionId, TopicId, TopicPartition};

    use super::*;

    const PARTITION: TopicPartition = TopicPartition::new(TopicId(1), PartitionId(0));

    fn batch(base_offset: u64) -> Bytes {
        let mut builder = BatchBuilder::with_capacity(64);
        builder.push(0, None, Some(b"value"), &[]);
        builder.push(0, None, Some(b"value"), &[]);
        let sent = builder.build(PARTITION, Compression::None).unwrap();
        let stamp = LeaderStamp { base_offset: Offset(base_offset), ..LeaderStamp::default() };
        let head = BatchHeader::decode(&sent).unwrap().stamped(stamp, PARTITION);
        [&head[..], &sent[HEADER_LENGTH..]].concat().into()
    }

    #[test]
    fn the_end_is_found_however_batches_are_cut_into_pieces() {
        let (one, two) = (batch(10), batch(12));
        let both = Bytes::from([&one[..], &two[..]].concat());
        assert_eq!(end_of(&[], Offset(9)), Some(Offset(9)));
        assert_eq!(end_of(std::slice::from_ref(&both), Offset(9)), Some(Offset(14)));
        assert_eq!(end_of(&[one.clone(), two.clone()], Offset(9)), Some(Offset(14)));
        let split = [one.clone(), two.slice(..HEADER_LENGTH), two.slice(HEADER_LENGTH..)];
        assert_eq!(end_of(&split, Offset(9)), Some(Offset(14)));
        assert_eq!(end_of(&split[..2], Offset(9)), None);
        assert_eq!(end_of(&[one, Bytes::from_static(b"nonsense")], Offset(9)), None);
    }
}
