//! What must hold in every history of replicas, numbered as in `docs/replication.md`:
//!
//! - I1: what is below the high watermark of a leader is never lost and never changes.
//! - I2: logs agree below their high watermarks.
//! - I3: an epoch has one leader, and that leader has everything that was committed before.
//! - I4: while a process lives, its high watermark moves back only where its own log lost something.
//! - I5: what is acknowledged is committed.
//! - I6: what a leader's stamp calls durable is on the disk of every in-sync replica.
//! - I7: when everything works again, the partition is served without an operator, and its logs are the same.
//!
//! A durability below `fsync` gives up I1 to a power cut or a failed flush; then it is noted that records may be lost,
//! and everything else still holds.

use std::collections::BTreeMap;

use super::store::Batch;

/// A record that nobody has any more.
const GONE: (u32, u64) = (u32::MAX, u64::MAX);

/// What is known to be committed, and who said so.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    /// Every record that was committed, by offset: epoch and identity.
    committed: Vec<(u32, u64)>,
    /// The leader of each epoch: node and process.
    leaders: BTreeMap<u32, (u32, u64)>,
    /// Records that were acknowledged as committed, by identity: their offset.
    acknowledged: BTreeMap<u64, u64>,
    /// Why records may be gone.
    may_lose: Option<String>,
    /// What is wrong.
    pub violations: Vec<String>,
    /// Records that were committed and are gone, where that is allowed.
    pub lost: u64,
}

impl Oracle {
    /// From here on records may be lost, but nothing else may go wrong.
    pub(super) fn allow_loss(&mut self, why: &str) {
        self.may_lose.get_or_insert_with(|| why.to_owned());
    }

    /// Whether records may be gone.
    #[must_use]
    pub(super) const fn allows_loss(&self) -> bool {
        self.may_lose.is_some()
    }

    /// How many records are committed.
    #[must_use]
    pub(super) fn committed(&self) -> u64 {
        self.committed.len() as u64
    }

    /// How many records are acknowledged.
    #[must_use]
    pub(super) fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// Something is wrong.
    pub(super) fn wrong(&mut self, what: String) {
        self.violations.push(what);
    }

    /// A replica starts to lead with this log. Returns how many committed records it has, if
    /// records may have been lost.
    pub(super) fn leads(
        &mut self,
        epoch: u32,
        (node, process): (u32, u64),
        log_start: u64,
        log: &[Batch],
    ) -> Option<u64> {
        if let Some(other) = self.leaders.insert(epoch, (node, process)) {
            self.wrong(format!("I3: {other:?} and {:?} both lead epoch {epoch}", (node, process)));
        }
        let common = self.common(log_start, log);
        if common < self.committed() {
            if self.may_lose.is_some() {
                self.lose_from(common);
                return Some(common);
            }
            let committed = self.committed();
            self.wrong(format!(
                "I1: node {node} leads epoch {epoch} with only {common} of {committed} committed records"
            ));
        }
        if self.may_lose.is_some() && log_start > self.committed() {
            // What was there is gone for good: retention has taken it here, and others have lost it.
            self.committed.resize(log_start as usize, GONE);
        }
        self.may_lose.as_ref().map(|_| common)
    }

    /// A replica's high watermark is at `end`; `log` has what is below from `from` on.
    pub(super) fn watermark(&mut self, node: u32, is_leader: bool, from: u64, end: u64, log: &[Batch]) {
        for (offset, record) in records(log) {
            if offset < from || offset >= end {
                continue;
            }
            match self.committed.get(offset as usize) {
                Some(known) if *known == record => {}
                Some(_) if self.may_lose.is_some() && !is_leader => {}
                Some(known) => {
                    self.wrong(format!(
                        "I2: node {node} has {record:?} committed at {offset}, not {known:?}"
                    ));
                }
                None if is_leader && offset == self.committed() => self.committed.push(record),
                None if self.may_lose.is_some() => {}
                None => self.wrong(format!("I2: node {node} has {offset} committed, which no leader has")),
            }
        }
    }

    /// A producer was told that its record is committed.
    pub(super) fn acknowledged_at(&mut self, id: u64, offset: u64) {
        match self.committed.get(offset as usize) {
            Some((_, known)) if *known == id => {
                let before = self.acknowledged.insert(id, offset);
                if before.is_some_and(|before| before != offset) && self.may_lose.is_none() {
                    self.wrong(format!("I5: record {id} is acknowledged at {before:?} and at {offset}"));
                }
            }
            known => self.wrong(format!("I5: record {id} is acknowledged at {offset}, where {known:?} is")),
        }
    }

    /// Holds a log at the end against everything that was acknowledged.
    pub(super) fn check_final(&mut self, node: u32, log_start: u64, log: &[Batch]) {
        let common = self.common(log_start, log);
        if common < self.committed() {
            let committed = self.committed();
            self.wrong(format!("I1: in the end node {node} has {common} of {committed} committed records"));
        }
        for (id, offset) in std::mem::take(&mut self.acknowledged) {
            if self.committed.get(offset as usize).is_none_or(|(_, known)| *known != id) {
                self.wrong(format!("I1: the acknowledged record {id} is not at {offset} in the end"));
            }
        }
    }

    /// Where `log` leaves what is committed; what is below its start counts as there.
    fn common(&self, log_start: u64, log: &[Batch]) -> u64 {
        let mut end = log_start.min(self.committed());
        for (offset, record) in records(log) {
            if offset == end && self.committed.get(offset as usize) == Some(&record) {
                end += 1;
            }
        }
        end
    }

    fn lose_from(&mut self, end: u64) {
        self.lost += self.committed() - end;
        self.committed.truncate(end as usize);
        self.acknowledged.retain(|_, offset| *offset < end);
    }
}

fn records(log: &[Batch]) -> impl Iterator<Item = (u64, (u32, u64))> + '_ {
    log.iter().flat_map(|batch| {
        let offsets = batch.offsets.clone();
        offsets.zip(batch.first_id..).map(|(offset, id)| (offset, (batch.epoch, id)))
    })
}
