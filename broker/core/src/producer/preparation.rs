//! Verdicts about the batches of one write, before any of them is in the log.

use std::collections::BTreeMap;

use highwater_protocol::batch::BatchHeader;
use highwater_protocol::ids::ProducerId;

use super::{FirstResult, Producer, ProducerTable, Remembered, Sequenced, Verdict};

/// What is going into the log with one write, by producer. Cleared and used again for the next write.
#[derive(Debug, Default)]
pub struct Preparation {
    heads: BTreeMap<ProducerId, Head>,
    batches: Vec<Pending>,
    /// Producers among them that the table does not know.
    new_producers: usize,
}

/// A producer as it will be after the batches of the write so far.
#[derive(Debug)]
struct Head {
    producer: Producer,
    /// Its last batch in the write.
    last: usize,
}

#[derive(Debug)]
struct Pending {
    batch: Remembered,
    epoch: u16,
    /// The batch of the same producer before this one in the write.
    before: Option<usize>,
}

/// A verdict, and what it depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// Whatever becomes of the write.
    Settled(Verdict),
    /// The batch is a duplicate of one in the same write: if the write fails, neither is there.
    InThisWrite(FirstResult),
}

impl Preparation {
    /// Starts the next write.
    pub fn clear(&mut self) {
        self.heads.clear();
        self.batches.clear();
        self.new_producers = 0;
    }

    /// Decides about a batch that would be appended at `append_time`, after everything that was noted.
    #[must_use]
    pub fn handle(&self, table: &ProducerTable, header: &BatchHeader, append_time: i64) -> Judged {
        let Some(batch) = Sequenced::of(header) else { return Judged::Settled(Verdict::Append) };
        let now = table.time.max(append_time);
        let head = if self.heads.is_empty() { None } else { self.heads.get(&batch.id) };
        let Some(head) = head else {
            return Judged::Settled(match table.find(batch.id, now) {
                Some(known) => known.judge(batch, |batch| known.remembered(batch)),
                None => table.judge_unknown(batch, now, self.new_producers),
            });
        };
        let mut here = None;
        let verdict = head.producer.judge(batch, |batch| {
            here = self.find(head.last, batch);
            here.or_else(|| {
                let known = table.find(batch.id, now).filter(|known| known.epoch == batch.epoch)?;
                known.remembered(batch)
            })
        });
        match here {
            Some(first) => Judged::InThisWrite(first),
            None => Judged::Settled(verdict),
        }
    }

    /// Notes that a batch goes into the write, at the offset that it was stamped with.
    pub fn note(&mut self, table: &ProducerTable, header: &BatchHeader) {
        let Some(batch) = Sequenced::of(header) else { return };
        let remembered = Remembered {
            first_sequence: batch.first,
            count: batch.count,
            base_offset: header.leader.base_offset,
            append_time: header.leader.append_time,
        };
        let number = self.batches.len();
        let mut before = None;
        if let Some(head) = self.heads.get_mut(&batch.id) {
            before = Some(head.last);
            head.producer.go_on(batch);
            head.last = number;
        } else {
            let now = table.time.max(remembered.append_time);
            let known = table.find(batch.id, now);
            self.new_producers += usize::from(known.is_none());
            let mut producer = known.map_or_else(|| Producer::bare(batch.epoch), Producer::without_batches);
            producer.go_on(batch);
            self.heads.insert(batch.id, Head { producer, last: number });
        }
        self.batches.push(Pending { batch: remembered, epoch: batch.epoch, before });
    }

    fn find(&self, last: usize, batch: Sequenced) -> Option<FirstResult> {
        let mut at = Some(last);
        while let Some(pending) = at.and_then(|number| self.batches.get(number)) {
            let known = &pending.batch;
            if pending.epoch == batch.epoch
                && known.first_sequence == batch.first
                && known.count == batch.count
            {
                return Some(known.result());
            }
            at = pending.before;
        }
        None
    }
}

impl Producer {
    const fn bare(epoch: u16) -> Self {
        Self { epoch, sequences: 0, last_append_time: i64::MIN, batches: std::collections::VecDeque::new() }
    }

    /// Everything but the batches; allocates nothing.
    fn without_batches(&self) -> Self {
        Self { sequences: self.sequences, ..Self::bare(self.epoch) }
    }

    /// The batch is the next one.
    const fn go_on(&mut self, batch: Sequenced) {
        if batch.epoch != self.epoch {
            self.epoch = batch.epoch;
            self.sequences = 0;
        }
        self.sequences += batch.count as u64;
    }
}
