//! Producing a load: as fast as it goes or by a schedule, over one producer or several.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Client, PartitionId, Producer};

use super::acknowledge::{self, Deliveries, Group, Outcome, Since};
use super::schedule::Schedule;
use super::shape::{Records, Shape, sequences};
use super::timer::Timer;
use super::topic::TopicFacts;
use crate::args::BenchLoadArgs;
use crate::output::Progress;

/// Records that are sent before others of the program get their turn, with one send each.
const TURN: u64 = 64;

/// How records are handed to a producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hand {
    /// One call for a batch of about so many bytes.
    Batch(u64),
    /// One call for each record.
    Each,
}

/// How far a load goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Upto {
    /// So many records more, over all producers.
    Records(u64),
    /// Whatever goes until then.
    Moment(Instant),
}

/// What a producer is like, beside the shape of the load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) batch_bytes: usize,
    /// Bytes that may be on their way, over all producers.
    pub(crate) in_flight: usize,
    pub(crate) idempotent: bool,
}

/// Several producers that share a load.
pub(crate) struct Load<'a> {
    shape: &'a Shape,
    topic: &'a TopicFacts,
    hand: Hand,
    lanes: Vec<Lane>,
}

/// One of the producers.
struct Lane {
    number: u8,
    producer: Producer,
    records: Records,
    /// The index of the next record.
    next: u64,
    /// Turns so far, which say to which partition a batch goes.
    turns: u64,
}

/// What counts records that were sent.
pub(crate) struct Sent {
    progress: Progress,
    count: Cell<u64>,
}

impl Sent {
    /// Shows it as progress.
    pub(crate) const fn new(progress: Progress) -> Self {
        Self { progress, count: Cell::new(0) }
    }

    fn add(&self, records: u64) {
        self.count.set(self.count.get() + records);
        self.progress.set(self.count.get());
    }
}

/// What came of a part of a load.
pub(crate) struct Part {
    pub(crate) outcome: Outcome,
    /// How long the producer with the least time to spare waited for its schedule; `None` without one.
    pub(crate) waited: Option<Duration>,
}

impl<'a> Load<'a> {
    /// One producer on each client, 256 at the most.
    pub(crate) fn new(
        clients: &[Client],
        args: &BenchLoadArgs,
        settings: Settings,
        shape: &'a Shape,
        topic: &'a TopicFacts,
        hand: Hand,
    ) -> Self {
        let lane = |(number, client): (u8, &Client)| Lane {
            number,
            producer: client
                .producer()
                .acks(args.acks.into())
                .linger(args.linger)
                .compression(shape.compression())
                .batch_bytes(settings.batch_bytes)
                .memory_bytes(settings.in_flight.div_ceil(clients.len().max(1)))
                .idempotent(settings.idempotent)
                .build(),
            records: Records::default(),
            next: 0,
            turns: u64::from(number),
        };
        Self { shape, topic, hand, lanes: (0..=u8::MAX).zip(clients).map(lane).collect() }
    }

    /// Sends and waits for all acknowledgements. With a schedule, latency counts from when each record was due; records of it
    /// below the number `warm_up` are not measured. Time counts from `start`.
    ///
    /// # Errors
    /// What kept a producer from taking records.
    pub(crate) async fn run(
        &mut self,
        start: Instant,
        upto: Upto,
        schedule: Option<Schedule>,
        warm_up: u64,
        sent: &Sent,
    ) -> anyhow::Result<Part> {
        let (shape, topic, hand) = (self.shape, self.topic, self.hand);
        let shares = self.lanes.len() as u64;
        let all = self.lanes.iter_mut().map(|lane| async move {
            let share = u64::from(lane.number);
            let upto = match upto {
                // Those with the lower numbers take what is left over.
                Upto::Records(all) => {
                    Upto::Records(lane.next + all / shares + u64::from(share < all % shares))
                }
                moment => moment,
            };
            let schedule = schedule.map(|schedule| schedule.share(share, shares));
            let (groups, receiver) = acknowledge::channel();
            let mut outcome = Outcome::new(start, warm_up, shape.sizes().clone())?;
            let sender = Sender { lane, shape, topic, hand, schedule, sent, waited: Duration::ZERO };
            let (waited, collected) = tokio::join!(sender.run(upto, groups), outcome.collect(receiver));
            collected?;
            anyhow::Ok(Part { outcome, waited: waited.context("send")? })
        });
        let mut parts = futures_util::future::try_join_all(all).await?.into_iter();
        let mut whole = parts.next().context("a load has one producer at least")?;
        for part in parts {
            whole.waited = whole.waited.min(part.waited);
            whole.outcome.absorb(part.outcome)?;
        }
        Ok(whole)
    }
}

struct Sender<'a> {
    lane: &'a mut Lane,
    shape: &'a Shape,
    topic: &'a TopicFacts,
    hand: Hand,
    schedule: Option<Schedule>,
    sent: &'a Sent,
    waited: Duration,
}

impl Sender<'_> {
    /// Returns how long it waited for its schedule, if it has one.
    async fn run(
        mut self,
        upto: Upto,
        groups: tokio::sync::mpsc::Sender<Group>,
    ) -> anyhow::Result<Option<Duration>> {
        let mut timer = Timer::new()?;
        // A schedule begins with the first record of this part.
        let base = self.lane.next;
        let limit = match upto {
            Upto::Records(limit) => limit,
            Upto::Moment(_) => u64::MAX,
        };
        while self.lane.next < limit {
            let next = self.lane.next;
            if let Upto::Moment(end) = upto
                && self.schedule.map_or_else(Instant::now, |schedule| schedule.due(next - base)) >= end
            {
                break;
            }
            let most = match self.hand {
                Hand::Each => TURN.min(limit - next),
                Hand::Batch(bytes) => self.shape.that_fill(next, limit, bytes),
            };
            let (since, end) = match self.schedule {
                None => (Since::Call(Instant::now()), next + most),
                Some(schedule) => {
                    let asked = Instant::now();
                    schedule.wait(next - base, &mut timer).await?;
                    let now = Instant::now();
                    self.waited += now - asked;
                    let due = base + schedule.due_by(now, limit - base);
                    (Since::Due(schedule, next - base), due.clamp(next + 1, next + most))
                }
            };
            let deliveries = self.send(next, end).await?;
            let first = sequences(self.lane.number, next..end).start;
            self.lane.next = end;
            self.lane.turns += 1;
            self.sent.add(end - next);
            // The receiver ends with this sender, so there is always one.
            let _ = groups.send(Group { since, first, deliveries }).await;
            // Connections and acknowledgements get their turn.
            tokio::task::yield_now().await;
        }
        Ok(self.schedule.map(|_| self.waited))
    }

    async fn send(&mut self, first: u64, end: u64) -> Result<Deliveries, highwater_client::Error> {
        let lane = &mut *self.lane;
        lane.records.fill(self.shape, sequences(lane.number, first..end));
        let topic = self.topic.name.as_str();
        let records = lane.records.iter(topic);
        if self.hand == Hand::Each {
            let mut deliveries = Vec::with_capacity((end - first) as usize);
            for record in records {
                deliveries.push(lane.producer.send(record).await?);
            }
            return Ok(Deliveries::Each(deliveries));
        }
        // Keys say themselves to which partition records go.
        let partition = (!self.shape.has_keys())
            .then(|| PartitionId((lane.turns % u64::from(self.topic.partitions.max(1))) as u32));
        let delivery = lane.producer.send_batch(topic, partition, records).await?;
        Ok(Deliveries::Batch(delivery, end - first))
    }
}
