//! Waiting for acknowledgements beside the sending, so that neither holds up the other's clock.

use std::ops::Range;
use std::time::Instant;

use highwater_client::{BatchDelivery, Delivery, Error, ErrorKind, Receipt, Stage};
use tokio::sync::mpsc;

use super::schedule::Schedule;
use super::series::Measured;
use super::sizes::Sizes;

/// Groups that wait for their acknowledgement. The producer's memory is the real bound.
const GROUPS_AHEAD: usize = 64 << 10;

/// Records that were handed to the producer at about the same time.
#[derive(Debug)]
pub(crate) struct Group {
    /// From when their latency counts.
    pub(crate) since: Since,
    /// The sequence number of the first; the others follow.
    pub(crate) first: u64,
    pub(crate) deliveries: Deliveries,
}

/// From when latency counts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Since {
    /// From the call.
    Call(Instant),
    /// From when each record was due; the index of the first.
    Due(Schedule, u64),
}

/// What is awaited.
#[derive(Debug)]
pub(crate) enum Deliveries {
    /// One call for all.
    Batch(BatchDelivery, u64),
    /// One call each.
    Each(Vec<Delivery>),
}

/// What became of the records.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) acknowledged: u64,
    /// Bytes of values of those that were acknowledged.
    pub(crate) bytes: u64,
    pub(crate) unknown: u64,
    pub(crate) failed: u64,
    /// The least of all that were acknowledged.
    pub(crate) stage: Option<Stage>,
    pub(crate) measured: Measured,
    /// When the last one was known.
    pub(crate) last: Option<Instant>,
    pub(crate) first_error: Option<Error>,
    /// Records of a schedule below this number are not in the latencies.
    warm_up: u64,
    sizes: Sizes,
}

/// The ends of the channel from the sender to [`Outcome::collect`].
pub(crate) fn channel() -> (mpsc::Sender<Group>, mpsc::Receiver<Group>) {
    mpsc::channel(GROUPS_AHEAD)
}

impl Outcome {
    /// Nothing yet; time counts from `start`. Latencies of the first `warm_up` records of a schedule are left out.
    pub(crate) fn new(start: Instant, warm_up: u64, sizes: Sizes) -> anyhow::Result<Self> {
        Ok(Self {
            acknowledged: 0,
            bytes: 0,
            unknown: 0,
            failed: 0,
            stage: None,
            measured: Measured::new(start)?,
            last: None,
            first_error: None,
            warm_up,
            sizes,
        })
    }

    /// Waits for everything that comes, in the order in which it was sent, until the sender is gone.
    pub(crate) async fn collect(&mut self, mut groups: mpsc::Receiver<Group>) -> anyhow::Result<()> {
        while let Some(group) = groups.recv().await {
            let acknowledged = match group.deliveries {
                Deliveries::Batch(delivery, count) => {
                    let receipt = delivery.await;
                    let before = self.acknowledged;
                    for run in receipt.runs() {
                        let records = run.records.start as u64..run.records.end as u64;
                        self.add(&run.result, group.first, records);
                    }
                    let told = receipt.runs().last().map_or(0, |run| run.records.end as u64);
                    self.failed += count.saturating_sub(told);
                    self.acknowledged - before
                }
                Deliveries::Each(deliveries) => {
                    let before = self.acknowledged;
                    for (place, delivery) in (0..).zip(deliveries) {
                        let result = delivery.await;
                        self.add(&result, group.first, place..place + 1);
                    }
                    self.acknowledged - before
                }
            };
            let now = Instant::now();
            self.last = Some(now);
            self.measure(group.since, acknowledged, now)?;
        }
        Ok(())
    }

    fn measure(&mut self, since: Since, acknowledged: u64, now: Instant) -> anyhow::Result<()> {
        match since {
            Since::Call(at) => self.measured.add(now, now - at, acknowledged),
            Since::Due(schedule, first) => {
                let is_measured = |index: &u64| schedule.number(*index) >= self.warm_up;
                for index in (first..first + acknowledged).filter(is_measured) {
                    self.measured.add(now, now.saturating_duration_since(schedule.due(index)), 1)?;
                }
                Ok(())
            }
        }
    }

    /// What became of these records of those from sequence number `first` on.
    fn add(&mut self, result: &Result<Receipt, Error>, first: u64, records: Range<u64>) {
        let count = records.end - records.start;
        match result {
            Ok(receipt) => {
                self.acknowledged += count;
                self.bytes += self.sizes.total(first + records.start..first + records.end);
                self.stage = Some(self.stage.map_or(receipt.stage, |stage| stage.min(receipt.stage)));
            }
            Err(error) => {
                match error.kind() {
                    ErrorKind::OutcomeUnknown => self.unknown += count,
                    _ => self.failed += count,
                }
                self.first_error.get_or_insert_with(|| error.clone());
            }
        }
    }

    /// Adds what became of the records of another producer, whose time counts from the same start.
    pub(crate) fn absorb(&mut self, other: Self) -> anyhow::Result<()> {
        self.acknowledged += other.acknowledged;
        self.bytes += other.bytes;
        self.unknown += other.unknown;
        self.failed += other.failed;
        self.stage = [self.stage, other.stage].into_iter().flatten().min();
        self.last = self.last.max(other.last);
        self.first_error = self.first_error.take().or(other.first_error);
        self.measured.absorb(other.measured)
    }

    /// Says on standard error what was not acknowledged, and whether everything was.
    pub(crate) fn is_good(&self) -> bool {
        if let Some(error) = &self.first_error {
            crate::output::note(format!(
                "{} of unknown outcome, {} not appended; the first: {error}",
                crate::output::plural(self.unknown, "record", "records"),
                crate::output::count(self.failed),
            ));
        }
        self.unknown + self.failed == 0
    }
}
