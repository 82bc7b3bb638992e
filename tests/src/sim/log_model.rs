//! What a log promised, and whether what is there after a crash keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use highwater_broker_core::producer::ProducerTable;
use highwater_protocol::batch::BatchHeader;

use super::batches::Seen;

/// Everything that can be seen of a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents {
    /// The first offset.
    pub log_start: u64,
    /// The next offset to write.
    pub log_end: u64,
    /// The next offset that is not on stable storage.
    pub flushed_end: u64,
    /// Ranges that cannot be read.
    pub holes: Vec<Range<u64>>,
    /// All records, read one range after another.
    pub records: Vec<Seen>,
    /// The headers of their batches.
    pub batches: Vec<BatchHeader>,
    /// What the log knows about producers.
    pub producers: ProducerTable,
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { log_start, log_end, flushed_end, holes, records, .. } = self;
        write!(
            f,
            "{log_start}..{log_end} (flushed {flushed_end}, holes {holes:?}, {} records, ",
            records.len()
        )?;
        write!(f, "last {:?})", records.last())
    }
}

/// What ended the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// It was killed; the kernel runs on.
    Process,
    /// The power was cut.
    Power,
}

/// A log as its owner knows it, and what it told others.
#[derive(Debug, Clone, Default)]
pub struct LogModel {
    next_id: u64,
    /// The epoch of new batches.
    pub epoch: u32,
    /// The largest log start that retention may have set.
    pub log_start_max: u64,
    /// Who is at each offset, with the epoch: appended, or on the way when the crash came.
    timeline: BTreeMap<u64, (u32, u64)>,
    /// Where batches end.
    batch_ends: BTreeSet<u64>,
    /// The next offset: everything below was appended.
    pub written_end: u64,
    /// Everything below was reported as flushed.
    pub flushed_end: u64,
    /// Everything below was acknowledged: never above the flushed end.
    pub high_watermark: u64,
    /// Records whose append was answered with an error.
    refused: BTreeSet<u64>,
    /// Where records were refused: they may be there after a power cut until a later append is flushed, and with it
    /// what undid them.
    refused_at: Option<u64>,
    /// Records of appends that were not undone: they may be there after a crash.
    stuck: BTreeSet<u64>,
    /// The headers of all batches, those that retention let go included.
    headers: BTreeMap<u64, BatchHeader>,
    /// Whether a flush has failed: what was written after the flushed end may be gone without a power cut.
    pub flush_failed: bool,
}

impl LogModel {
    /// Identities for `count` new records.
    pub fn new_ids(&mut self, count: u64) -> Range<u64> {
        self.next_id += count;
        self.next_id - count..self.next_id
    }

    /// An append of these records begins at the log end.
    pub fn append_begins(&mut self, ids: Range<u64>) {
        for (offset, id) in (self.written_end..).zip(ids) {
            self.timeline.insert(offset, (self.epoch, id));
        }
    }

    /// One of its batches ends here.
    pub fn batch_ends_at(&mut self, end: u64) {
        self.batch_ends.insert(end);
    }

    /// The greatest offset up to `to` at which a batch ends.
    #[must_use]
    pub fn batch_end_before(&self, to: u64) -> u64 {
        self.batch_ends.range(..=to).next_back().copied().unwrap_or(0)
    }

    /// It succeeded.
    pub fn append_succeeded(&mut self, count: u64, headers: impl Iterator<Item = BatchHeader>) {
        self.written_end += count;
        self.headers.extend(headers.map(|header| (header.leader.base_offset.get(), header)));
    }

    /// What is known about producers after all batches below `end`; `batches` are those from `start` on.
    #[must_use]
    pub fn producers(&self, expiry: Duration, start: u64, batches: &[BatchHeader]) -> ProducerTable {
        let mut table = ProducerTable::new(expiry);
        self.headers.range(..start).for_each(|(_, header)| table.apply(header));
        batches
            .iter()
            .filter(|header| header.leader.base_offset.get() >= start)
            .for_each(|header| table.apply(header));
        table
    }

    /// What is known about producers after all batches.
    #[must_use]
    pub fn all_producers(&self, expiry: Duration) -> ProducerTable {
        self.producers(expiry, u64::MAX, &[])
    }

    /// It was answered with an error: nothing of it counts.
    pub fn append_refused(&mut self) {
        let refused = self.forget_unwritten();
        self.refused.extend(refused.values().map(|(_, id)| *id));
        self.refused_at = Some(self.written_end);
    }

    /// It failed in the middle, and it is not known what is left of it.
    pub fn append_stuck(&mut self) {
        let stuck = self.forget_unwritten();
        self.stuck.extend(stuck.values().map(|(_, id)| *id));
    }

    /// The log reported everything below `end` as flushed.
    pub fn flushed(&mut self, end: u64) {
        self.flushed_end = self.flushed_end.max(end);
        if self.refused_at.is_some_and(|at| at < end) {
            self.refused_at = None;
        }
    }

    /// What the owner acknowledges and commits: whole batches that are flushed.
    pub fn commit(&mut self, end: u64) {
        let end = self.batch_end_before(end.min(self.flushed_end));
        self.high_watermark = self.high_watermark.max(end);
    }

    /// The log was truncated: offsets from `to` on are free for other records.
    pub fn truncated(&mut self, to: u64) {
        self.timeline.split_off(&to);
        self.headers.split_off(&to);
        self.batch_ends.split_off(&(to + 1));
        self.written_end = self.written_end.min(to);
        self.flushed_end = self.flushed_end.min(to);
        self.epoch += 1;
    }

    /// Truncating was answered with an error: it may have happened or not.
    pub fn truncation_unknown(&mut self, to: u64) {
        self.flushed_end = self.flushed_end.min(to);
        self.flush_failed = true;
    }

    /// Whether `seen` is what a reader of `range` must get while the log runs.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_read(&self, range: Range<u64>, seen: &[Seen]) -> Result<(), String> {
        let inside: Vec<&Seen> = seen.iter().filter(|seen| range.contains(&seen.offset)).collect();
        if let Some(first) = inside.first()
            && first.offset != range.start
        {
            return Err(format!("read of {range:?} starts at {}", first.offset));
        }
        for (expected, seen) in (range.start..).zip(inside) {
            if seen.offset != expected {
                return Err(format!("read of {range:?} has {} where {expected} should be", seen.offset));
            }
            self.check_record(seen, false)?;
        }
        Ok(())
    }

    /// Whether a log that was opened after a crash holds what was promised.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_recovered(&self, there: &Contents, crash: Crash) -> Result<(), String> {
        let written_end = if self.flush_failed { self.flushed_end } else { self.written_end };
        let end_min = if crash == Crash::Power { self.flushed_end } else { written_end };
        if there.log_end < end_min {
            return Err(format!(
                "log end {} after a {crash:?} crash, at least {end_min} was promised",
                there.log_end
            ));
        }
        if there.log_start > self.log_start_max {
            return Err(format!(
                "log start {} is past {}, which was retained",
                there.log_start, self.log_start_max
            ));
        }
        if there.flushed_end != there.log_end {
            return Err(format!("flushed end {} after recovery to {}", there.flushed_end, there.log_end));
        }
        if !there.holes.is_empty() {
            return Err(format!("holes {:?} although nothing was damaged", there.holes));
        }
        let mut expected = there.log_start;
        for seen in &there.records {
            if seen.offset != expected {
                return Err(format!("offset {} where {expected} should be", seen.offset));
            }
            self.check_record(seen, crash == Crash::Power && self.refused_at.is_some())?;
            expected += 1;
        }
        if expected != there.log_end {
            return Err(format!("records end at {expected}, the log at {}", there.log_end));
        }
        Ok(())
    }

    /// Goes on with a log that was checked, in a new epoch.
    pub fn adopt(&mut self, there: &Contents) {
        self.headers.split_off(&there.log_start);
        self.headers.extend(there.batches.iter().map(|header| (header.leader.base_offset.get(), *header)));
        self.timeline = there.records.iter().map(|seen| (seen.offset, (seen.epoch, seen.id))).collect();
        self.written_end = there.log_end;
        self.batch_ends.split_off(&(there.log_end + 1));
        self.flushed_end = there.log_end;
        self.log_start_max = self.log_start_max.min(there.log_end);
        self.epoch += 1;
        self.refused_at = None;
        for (_, id) in self.timeline.values() {
            self.refused.remove(id);
            self.stuck.remove(id);
        }
        self.flush_failed = false;
    }

    fn forget_unwritten(&mut self) -> BTreeMap<u64, (u32, u64)> {
        self.batch_ends.split_off(&(self.written_end + 1));
        self.timeline.split_off(&self.written_end)
    }

    fn check_record(&self, seen: &Seen, refused_allowed: bool) -> Result<(), String> {
        match self.timeline.get(&seen.offset) {
            Some(&(epoch, id)) if epoch == seen.epoch && id == seen.id => Ok(()),
            _ if self.stuck.contains(&seen.id) && seen.offset >= self.flushed_end => Ok(()),
            _ if refused_allowed && self.refused.contains(&seen.id) && seen.offset >= self.flushed_end => {
                Ok(())
            }
            _ if self.refused.contains(&seen.id) => {
                Err(format!("record {} at {} was refused and is there", seen.id, seen.offset))
            }
            Some(expected) => {
                Err(format!("offset {} has {seen:?}, not (epoch, id) {expected:?}", seen.offset))
            }
            None => Err(format!("offset {} has {seen:?}, which is not in the log", seen.offset)),
        }
    }
}
