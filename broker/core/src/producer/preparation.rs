//! Verdicts about the batches of one write, before any of them is in the log.

use highwater_protocol::batch::BatchHeader;
use highwater_protocol::ids::ProducerId;

use super::{FirstResult, ProducerTable, Remembered, Sequenced, Standing, Verdict};

/// What is going into the log with one write, by producer. Cleared and used again for the next write.
#[derive(Debug, Default)]
pub struct Preparation {
    /// Sorted by producer.
    heads: Vec<Head>,
    batches: Vec<Pending>,
    /// Producers among them that the table does not know.
    new_producers: usize,
}

/// A producer as it will be after the batches of the write so far.
#[derive(Debug)]
struct Head {
    id: ProducerId,
    standing: Standing,
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
        let Ok(place) = self.place(batch.id) else {
            return Judged::Settled(match table.find(batch.id, now) {
                Some(known) => known.standing.judge(batch, |batch| known.remembered(batch)),
                None => table.judge_unknown(batch, now, self.new_producers),
            });
        };
        let head = &self.heads[place];
        let mut here = None;
        let verdict = head.standing.judge(batch, |batch| {
            here = self.find(head.last, batch);
            here.or_else(|| {
                let known = table.find(batch.id, now).filter(|known| known.standing.epoch == batch.epoch)?;
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
        match self.place(batch.id) {
            Ok(place) => {
                let head = &mut self.heads[place];
                before = Some(head.last);
                head.standing.go_on(batch);
                head.last = number;
            }
            Err(place) => {
                let known = table.find(batch.id, table.time.max(remembered.append_time));
                self.new_producers += usize::from(known.is_none());
                let unknown = Standing { epoch: batch.epoch, sequences: 0 };
                let mut standing = known.map_or(unknown, |known| known.standing);
                standing.go_on(batch);
                self.heads.insert(place, Head { id: batch.id, standing, last: number });
            }
        }
        self.batches.push(Pending { batch: remembered, epoch: batch.epoch, before });
    }

    /// Where the producer is among the heads, or belongs.
    fn place(&self, id: ProducerId) -> Result<usize, usize> {
        self.heads.binary_search_by_key(&id, |head| head.id)
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
