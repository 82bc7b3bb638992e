//! What a partition knows about idempotent producers: which of their batches it has, so that one that comes again is
//! recognised and one that comes out of turn is refused.
//!
//! Deciding and changing are two functions: a leader asks [`ProducerTable::handle`] (through a [`Preparation`], which
//! knows what goes into the same write), and every replica gives each batch of its log to [`ProducerTable::apply`]. Time
//! is that of the log (`append_time`), so that all replicas forget the same producers at the same batch.

mod preparation;
mod snapshot;

#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use highwater_protocol::batch::BatchHeader;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{Offset, ProducerId};
use highwater_protocol::limits::PRODUCER_BATCHES_IN_FLIGHT_MAX;

pub use preparation::{Judged, Preparation};
pub use snapshot::{Binding, decode_file, encode_file};

/// How long a producer is remembered after its last batch when nothing else is set.
pub const PRODUCER_EXPIRY_DEFAULT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Producers that one partition remembers. With the batches of each this is at most some 15 MB of memory, and a
/// snapshot that fits one frame.
///
/// When one more comes, those that have been quiet for longest are forgotten, but none that wrote within
/// [`PRODUCER_KEPT_MIN`]; if there is none to forget, the new one has to wait.
pub const PRODUCERS_MAX: usize = 16 << 10;

/// A producer that has written this recently is never forgotten to make room: longer than any client retries a batch
/// unless it is told to.
pub const PRODUCER_KEPT_MIN: Duration = Duration::from_secs(15 * 60);

/// The part of [`PRODUCERS_MAX`] that is forgotten at a time, so that looking for them costs little in the long run.
const FORGOTTEN_PART: usize = 16;

/// Sequences wrap here, as Kafka's do.
const SEQUENCES: u64 = 1 << 31;

/// What a partition knows about idempotent producers.
#[derive(Debug, Clone)]
pub struct ProducerTable {
    producers: BTreeMap<ProducerId, Producer>,
    /// The greatest append time of all batches so far.
    time: i64,
    /// In microseconds.
    expiry: i64,
    /// How many producers there may be before those that have expired are dropped.
    sweep_at: usize,
}

/// How far a producer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    epoch: u16,
    /// How many sequences it has used in this epoch: the next one is this many, wrapped.
    sequences: u64,
}

/// One producer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Producer {
    standing: Standing,
    last_append_time: i64,
    /// Its last batches of this epoch, by offset.
    batches: VecDeque<Remembered>,
}

/// A batch that was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Remembered {
    first_sequence: u32,
    count: u32,
    base_offset: Offset,
    append_time: i64,
}

/// Who sent a batch, and which sequences it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sequenced {
    id: ProducerId,
    epoch: u16,
    first: u32,
    count: u32,
}

/// Where a batch is that came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstResult {
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The offset after its last record.
    pub end_offset: Offset,
    /// When it was appended, in microseconds since the Unix epoch.
    pub append_time: i64,
}

/// What to do with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the next one of its producer, or its producer is not idempotent.
    Append,
    /// It is there already: it gets the result of the first one, once that has what the retry asks for.
    Duplicate(FirstResult),
    /// Nothing of it may be appended.
    Refuse(Refusal),
}

/// Why a batch of an idempotent producer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A newer incarnation has written.
    #[error(
        "producer {id} has written with epoch {current}, this batch is of epoch {epoch}: another instance took its \
         identity over; stop this one"
    )]
    Fenced {
        /// The producer.
        id: ProducerId,
        /// Of the batch.
        epoch: u16,
        /// Of the last batch that was appended.
        current: u16,
    },
    /// Batches are missing before it, or it overlaps with those that are there.
    #[error(
        "producer {id} sent sequence {found} where {expected} is next: a batch before it is missing; \
         start over with a new producer epoch"
    )]
    Gap {
        /// The producer.
        id: ProducerId,
        /// The first sequence of the batch.
        found: u32,
        /// The next one.
        expected: u32,
    },
    /// Nothing is known of its producer, and it is not its first batch.
    #[error(
        "producer {id} is not known here (any more), and sequence {found} is not its first: what came before may have \
         been forgotten; start over with a new producer epoch"
    )]
    Unknown {
        /// The producer.
        id: ProducerId,
        /// The first sequence of the batch.
        found: u32,
    },
    /// All its records were appended, so long ago that their offsets are not remembered.
    #[error(
        "the batch of producer {id} with sequence {found} was appended before, and where is not remembered: only the \
         last {PRODUCER_BATCHES_IN_FLIGHT_MAX} batches are"
    )]
    AlreadyApplied {
        /// The producer.
        id: ProducerId,
        /// The first sequence of the batch.
        found: u32,
    },
    /// There is no room for another producer.
    #[error(
        "the partition remembers {PRODUCERS_MAX} producers, all of which have written within {} minutes; \
         send from fewer producers, or wait", PRODUCER_KEPT_MIN.as_secs() / 60
    )]
    TooMany,
}

impl Refusal {
    /// What the producer is told.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Fenced { .. } => ErrorCode::ProducerFenced,
            Self::Gap { .. } => ErrorCode::SequenceGap,
            Self::Unknown { .. } => ErrorCode::UnknownProducer,
            Self::AlreadyApplied { .. } => ErrorCode::AlreadyApplied,
            Self::TooMany => ErrorCode::Busy,
        }
    }
}

impl Default for ProducerTable {
    fn default() -> Self {
        Self::new(PRODUCER_EXPIRY_DEFAULT)
    }
}

impl PartialEq for ProducerTable {
    /// Whether both know the same: those that have expired do not count, whether dropped yet or not.
    fn eq(&self, other: &Self) -> bool {
        let live = |table: &Self| table.live().count();
        self.time == other.time
            && live(self) == live(other)
            && self.live().all(|(id, producer)| other.find(*id, other.time) == Some(producer))
    }
}

impl Eq for ProducerTable {}

impl ProducerTable {
    /// A table that knows nobody.
    #[must_use]
    pub fn new(expiry: Duration) -> Self {
        let mut table =
            Self { producers: BTreeMap::new(), time: i64::MIN, expiry: 0, sweep_at: SWEEP_PRODUCERS_MIN };
        table.set_expiry(expiry);
        table
    }

    /// Changes after how long a quiet producer is forgotten. All replicas of a partition have to be told the same.
    pub fn set_expiry(&mut self, expiry: Duration) {
        self.expiry = i64::try_from(expiry.as_micros()).unwrap_or(i64::MAX);
    }

    /// How many producers are known.
    #[must_use]
    pub fn count(&self) -> usize {
        self.live().count()
    }

    /// The greatest append time of all batches so far, in microseconds since the Unix epoch.
    #[must_use]
    pub const fn time(&self) -> i64 {
        self.time
    }

    /// Where the batches start that would be recognised if they came again.
    pub fn remembered_offsets(&self) -> impl Iterator<Item = Offset> {
        self.live().flat_map(|(_, known)| known.batches.iter().map(|batch| batch.base_offset))
    }

    /// Decides about a batch that would be appended at `append_time`.
    #[must_use]
    pub fn handle(&self, header: &BatchHeader, append_time: i64) -> Verdict {
        match Sequenced::of(header) {
            None => Verdict::Append,
            Some(batch) => self.judge(batch, self.time.max(append_time)),
        }
    }

    fn judge(&self, batch: Sequenced, now: i64) -> Verdict {
        match self.find(batch.id, now) {
            Some(known) => known.standing.judge(batch, |batch| known.remembered(batch)),
            None => self.judge_unknown(batch, now, 0),
        }
    }

    /// `more`: producers that come with the same write.
    fn judge_unknown(&self, batch: Sequenced, now: i64, more: usize) -> Verdict {
        if batch.first != 0 && !cfg!(hw_mutate = "unknown_producer_accepted") {
            return Verdict::Refuse(Refusal::Unknown { id: batch.id, found: batch.first });
        }
        if self.producers.len() + more >= PRODUCERS_MAX && self.leaving(now) <= more {
            return Verdict::Refuse(Refusal::TooMany);
        }
        Verdict::Append
    }

    /// Takes in a batch of the log, whatever it is: it was decided about when it was appended. In the order of the log,
    /// but for batches that fill a hole.
    pub fn apply(&mut self, header: &BatchHeader) {
        let append_time = header.leader.append_time;
        self.time = self.time.max(append_time);
        let Some(batch) = Sequenced::of(header) else { return };
        let (now, expiry) = (self.time, self.expiry);
        let remembered = Remembered {
            first_sequence: batch.first,
            count: batch.count,
            base_offset: header.leader.base_offset,
            append_time,
        };
        match self.producers.entry(batch.id) {
            Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                let epoch = known.standing.epoch;
                if has_expired(known.last_append_time, now, expiry) || batch.epoch > epoch {
                    *known = Producer::starting(batch, remembered);
                } else if batch.epoch == epoch {
                    known.take(batch, remembered);
                }
            }
            Entry::Vacant(entry) => {
                entry.insert(Producer::starting(batch, remembered));
                if self.producers.len() >= self.sweep_at {
                    self.sweep(batch.id);
                }
            }
        }
    }

    /// Takes note that the log has come to `append_time`.
    pub fn note_time(&mut self, append_time: i64) {
        self.time = self.time.max(append_time);
    }

    /// The producer, unless it has expired at `now`.
    fn find(&self, id: ProducerId, now: i64) -> Option<&Producer> {
        let known = self.producers.get(&id)?;
        (!has_expired(known.last_append_time, now, self.expiry)).then_some(known)
    }

    fn live(&self) -> impl Iterator<Item = (&ProducerId, &Producer)> {
        let (now, expiry) = (self.time, self.expiry);
        self.producers.iter().filter(move |(_, known)| !has_expired(known.last_append_time, now, expiry))
    }

    /// How many producers would be forgotten to make room at `now`.
    fn leaving(&self, now: i64) -> usize {
        self.producers.values().filter(|known| is_quiet(known.last_append_time, now, self.expiry)).count()
    }

    /// Drops those that have expired, and if there are too many still, those that have been quiet for longest. `new` is
    /// the one that has just come.
    fn sweep(&mut self, new: ProducerId) {
        let (now, expiry) = (self.time, self.expiry);
        self.producers.retain(|id, known| *id == new || !has_expired(known.last_append_time, now, expiry));
        if self.producers.len() > PRODUCERS_MAX {
            let quiet = self
                .producers
                .iter()
                .filter(|(id, known)| **id != new && is_quiet(known.last_append_time, now, expiry));
            let mut quiet: Vec<(i64, ProducerId)> =
                quiet.map(|(id, known)| (known.last_append_time, *id)).collect();
            quiet.sort_unstable();
            for (_, id) in quiet.into_iter().take(PRODUCERS_MAX / FORGOTTEN_PART) {
                self.producers.remove(&id);
            }
        }
        self.sweep_at = (self.producers.len() * 2).clamp(SWEEP_PRODUCERS_MIN, PRODUCERS_MAX + 1);
    }
}

/// Producers before which none are dropped.
const SWEEP_PRODUCERS_MIN: usize = 64;

const fn has_expired(last_append_time: i64, now: i64, expiry: i64) -> bool {
    now.saturating_sub(last_append_time) >= expiry
}

/// Whether it may be forgotten to make room.
const fn is_quiet(last_append_time: i64, now: i64, expiry: i64) -> bool {
    let age = now.saturating_sub(last_append_time);
    age >= expiry || age >= PRODUCER_KEPT_MIN.as_micros() as i64
}

impl Sequenced {
    /// `None`: it has no idempotent producer, or no sequences.
    const fn of(header: &BatchHeader) -> Option<Self> {
        let producer = &header.producer;
        if producer.producer_id.0 == ProducerId::NONE.0 || header.is_control() {
            return None;
        }
        Some(Self {
            id: producer.producer_id,
            epoch: producer.producer_epoch,
            first: producer.first_sequence & (SEQUENCES - 1) as u32,
            count: producer.last_offset_delta + 1,
        })
    }
}

impl Producer {
    fn starting(batch: Sequenced, remembered: Remembered) -> Self {
        let mut batches = VecDeque::with_capacity(1);
        batches.push_back(remembered);
        let sequences = u64::from(batch.first) + u64::from(batch.count);
        let standing = Standing { epoch: batch.epoch, sequences };
        Self { standing, last_append_time: remembered.append_time, batches }
    }

    fn remembered(&self, batch: Sequenced) -> Option<FirstResult> {
        let same = |known: &&Remembered| known.first_sequence == batch.first && known.count == batch.count;
        self.batches.iter().rev().find(same).map(Remembered::result)
    }

    /// Takes in a batch of the same epoch.
    fn take(&mut self, batch: Sequenced, remembered: Remembered) {
        let end = u64::from(batch.first) + u64::from(batch.count);
        let ahead = (SEQUENCES + end % SEQUENCES - u64::from(self.standing.next_sequence())) % SEQUENCES;
        if ahead < SEQUENCES / 2 {
            self.standing.sequences += ahead;
        }
        self.last_append_time = self.last_append_time.max(remembered.append_time);
        if self.batches.back().is_none_or(|last| last.base_offset < remembered.base_offset) {
            if self.batches.len() >= PRODUCER_BATCHES_IN_FLIGHT_MAX {
                self.batches.pop_front();
            }
            return self.batches.push_back(remembered);
        }
        // One that fills a hole.
        let place = self.batches.iter().rposition(|known| known.base_offset <= remembered.base_offset);
        match place {
            Some(at) if self.batches[at].base_offset == remembered.base_offset => {}
            Some(at) => self.batches.insert(at + 1, remembered),
            None => self.batches.push_front(remembered),
        }
        if self.batches.len() > PRODUCER_BATCHES_IN_FLIGHT_MAX {
            self.batches.pop_front();
        }
    }
}

impl Standing {
    const fn next_sequence(self) -> u32 {
        (self.sequences % SEQUENCES) as u32
    }

    fn judge(self, batch: Sequenced, find: impl FnOnce(Sequenced) -> Option<FirstResult>) -> Verdict {
        let Sequenced { id, epoch, first, count } = batch;
        if epoch < self.epoch && !cfg!(hw_mutate = "h13_zombie_producer") {
            return Verdict::Refuse(Refusal::Fenced { id, epoch, current: self.epoch });
        }
        let expected = if epoch > self.epoch { 0 } else { self.next_sequence() };
        if first == expected {
            return Verdict::Append;
        }
        let gap = Verdict::Refuse(Refusal::Gap { id, found: first, expected });
        if epoch > self.epoch {
            return gap;
        }
        // How far behind the next sequence it starts, if all of it was there before.
        let behind = (SEQUENCES + u64::from(expected) - u64::from(first)) % SEQUENCES;
        let is_behind = behind <= SEQUENCES / 2 && behind <= self.sequences && u64::from(count) <= behind;
        if !is_behind {
            return gap;
        }
        match find(batch) {
            Some(result) => Verdict::Duplicate(result),
            None => Verdict::Refuse(Refusal::AlreadyApplied { id, found: first }),
        }
    }

    /// The batch is the next one.
    const fn go_on(&mut self, batch: Sequenced) {
        if batch.epoch != self.epoch {
            *self = Self { epoch: batch.epoch, sequences: 0 };
        }
        self.sequences += batch.count as u64;
    }
}

impl Remembered {
    const fn result(&self) -> FirstResult {
        FirstResult {
            base_offset: self.base_offset,
            end_offset: Offset(self.base_offset.0 + self.count as u64),
            append_time: self.append_time,
        }
    }
}
