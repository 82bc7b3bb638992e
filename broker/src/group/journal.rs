//! What a shard has decided, on its way into the log: several decisions are one batch, and nobody is answered before
//! everything that the answer has seen is committed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use highwater_protocol::batch::BatchBuilder;
use highwater_protocol::compression::Compression;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::LeaderEpoch;
use highwater_protocol::messages::ProduceResult;
use tokio::sync::oneshot;

use super::question::Answer;
use crate::api::ApiError;
use crate::env::Clock;
use crate::partition::handle::{Lane, PartitionHandle};

/// Bytes after which a batch is closed. A decision that is larger goes in several: a coordinator can go on from any
/// beginning of it.
const BATCH_BYTES: usize = 1 << 20;
/// Batches that may be on their way at once. While there are as many, the shard takes nothing up, and what comes gathers
/// for the next batch.
const BATCHES_IN_FLIGHT_MAX: usize = 4;
/// How long a batch may take to be committed. After that its shard starts over from the log.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// The key of a record that says nothing: once it is committed, everything before it is, and no other broker has led
/// since. No key of a group begins like this.
const BARRIER_KEY: [u8; 1] = [0];

/// A record that says nothing, and is soon cleaned away.
pub(super) fn barrier() -> Entry {
    (BARRIER_KEY.to_vec(), None)
}

/// Whether this is the key of a record that says nothing.
pub(super) fn is_barrier(key: &[u8]) -> bool {
    key == BARRIER_KEY
}

/// A key with its value, or without: as the topic has it.
pub(super) type Entry = (Vec<u8>, Option<Vec<u8>>);

/// The end of the log that a shard writes, at one leader epoch.
#[derive(Debug)]
pub(super) struct Journal {
    handle: PartitionHandle,
    clock: Arc<dyn Clock>,
    epoch: LeaderEpoch,
    /// A batch that was refused keeps those after it out: they were decided from a state that never came to be.
    lane: Arc<Lane>,
    next: u64,
    /// What is decided and not yet on its way.
    open: Open,
    open_answers: Vec<Answer>,
    /// Records that were sent since somebody asked.
    sent: u64,
    in_flight: VecDeque<InFlight>,
}

/// Entries of a batch that is not closed yet.
#[derive(Debug, Default)]
struct Open {
    entries: Vec<Entry>,
    /// The most that they take.
    bytes: usize,
}

impl Open {
    /// Adds an entry; what was there before, if that is enough for a batch.
    fn add(&mut self, entry: Entry) -> Option<Self> {
        let full = self.is_full().then(|| std::mem::take(self));
        let length = entry.1.as_ref().map_or(0, Vec::len);
        self.bytes += BatchBuilder::record_length_max(entry.0.len(), length, 0, 0);
        self.entries.push(entry);
        full
    }

    const fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES
    }
}

/// A batch on its way, and who waits for it.
#[derive(Debug)]
struct InFlight {
    outcome: oneshot::Receiver<ProduceResult>,
    answers: Vec<Answer>,
}

impl Journal {
    pub(super) fn new(handle: PartitionHandle, clock: Arc<dyn Clock>, epoch: LeaderEpoch) -> Self {
        Self {
            handle,
            clock,
            epoch,
            lane: Arc::default(),
            next: 0,
            open: Open::default(),
            open_answers: Vec::new(),
            sent: 0,
            in_flight: VecDeque::new(),
        }
    }

    /// Takes a decision: its records, and who is answered when they, and everything before them, are committed. Without
    /// records and with nothing on its way it is answered at once.
    pub(super) fn take(&mut self, records: Vec<Entry>, answer: Option<Answer>) {
        if records.is_empty() && self.open.entries.is_empty() {
            match (self.in_flight.back_mut(), answer) {
                (Some(last), Some(answer)) => last.answers.push(answer),
                (None, Some(answer)) => answer.give(),
                (_, None) => {}
            }
            return;
        }
        for entry in records {
            if let Some(full) = self.open.add(entry) {
                self.send_batch(full);
            }
        }
        // The last record, at least, is still here: the answer waits for all of them.
        self.open_answers.extend(answer);
        if self.open.is_full() {
            self.send_open();
        }
    }

    /// Sends what is decided on its way; how many records that is, with those that were sent before because they were many.
    pub(super) fn send(&mut self) -> u64 {
        self.send_open();
        std::mem::take(&mut self.sent)
    }

    fn send_open(&mut self) {
        let open = std::mem::take(&mut self.open);
        if !open.entries.is_empty() {
            self.send_batch(open);
        }
    }

    fn send_batch(&mut self, Open { entries, bytes }: Open) {
        self.sent += entries.len() as u64;
        let now = self.clock.wall().as_millis();
        let mut builder = BatchBuilder::with_capacity(bytes + 128);
        for (key, value) in &entries {
            builder.push(now, Some(key), value.as_deref(), &[]);
        }
        let outcome = match builder.build(self.handle.partition(), Compression::None) {
            Ok(batch) => {
                let deadline = self.clock.mono().after(COMMIT_TIMEOUT);
                let number = (&self.lane, self.next);
                self.next += 1;
                self.handle.append_own(batch, number, self.epoch, deadline)
            }
            // Every build can leave batches uncompressed. The outcome that never comes says that it failed.
            Err(_) => oneshot::channel().1,
        };
        let answers = std::mem::take(&mut self.open_answers);
        self.in_flight.push_back(InFlight { outcome, answers });
    }

    /// Whether as much is on its way as may be.
    pub(super) fn is_full(&self) -> bool {
        self.in_flight.len() >= BATCHES_IN_FLIGHT_MAX
    }

    /// Whether nothing is on its way.
    pub(super) fn is_settled(&self) -> bool {
        self.open.entries.is_empty() && self.in_flight.is_empty()
    }

    /// Waits until the next batch is committed, and answers who waited for it: where the batch is in the log. Never returns
    /// while nothing is on its way. Cancel-safe.
    ///
    /// # Errors
    /// When it is not known to be committed: whatever was decided since the last one that is, does not count here.
    pub(super) async fn committed(&mut self) -> Result<u64, ApiError> {
        let Some(next) = self.in_flight.front_mut() else { return std::future::pending().await };
        let result = (&mut next.outcome).await.map_err(|_| stopped())?;
        let code = ErrorCode::from_code(result.error);
        if code != ErrorCode::None {
            return Err(ApiError::new(code, result.message));
        }
        let done = self.in_flight.pop_front();
        for answer in done.into_iter().flat_map(|done| done.answers) {
            answer.give();
        }
        Ok(result.base_offset)
    }

    /// Refuses whoever waits: what was decided may be in the log, or not.
    pub(super) fn abandon(self, error: &ApiError) {
        let waiting = self.in_flight.into_iter().flat_map(|batch| batch.answers).chain(self.open_answers);
        for answer in waiting {
            answer.refuse(error.clone());
        }
    }
}

fn stopped() -> ApiError {
    ApiError::new(
        ErrorCode::ShuttingDown,
        "the broker stopped before it was known whether a batch is committed",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_that_is_larger_than_a_batch_goes_in_several_in_order() {
        // The positions of the largest group, with the longest name: more than any batch may have.
        const RECORDS: usize = 100_000;
        let entry = |number: usize| (format!("{number:0>300}").into_bytes(), None);
        let largest = BatchBuilder::record_length_max(300, 0, 0, 0);
        assert!(RECORDS * largest > highwater_protocol::limits::BATCH_BYTES_MAX);
        let (mut open, mut batches) = (Open::default(), Vec::new());
        for number in 0..RECORDS {
            batches.extend(open.add(entry(number)));
        }
        assert!(!open.entries.is_empty(), "the answer goes with the last of them");
        batches.push(open);
        for batch in &batches {
            assert!(batch.bytes < BATCH_BYTES + largest, "{}", batch.bytes);
        }
        let all: Vec<Entry> = batches.into_iter().flat_map(|batch| batch.entries).collect();
        assert_eq!(all, (0..RECORDS).map(entry).collect::<Vec<_>>());
    }
}
