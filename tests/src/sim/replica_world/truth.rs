//! What the cluster has told its clients, and whether what it shows later agrees.

use std::collections::BTreeMap;

use crate::sim::batches::Seen;

/// Everything that was acknowledged or shown, by offset.
#[derive(Debug, Default)]
pub struct Truth {
    /// Told by an acknowledgement: may never be lost.
    acknowledged: BTreeMap<u64, (u32, u64)>,
    /// Shown to a consumer: may never be another record.
    shown: BTreeMap<u64, (u32, u64)>,
    /// The greatest epoch in which anything was acknowledged.
    pub last_epoch: u32,
}

impl Truth {
    /// How many records were acknowledged.
    #[must_use]
    pub fn acknowledged_count(&self) -> usize {
        self.acknowledged.len()
    }

    /// A producer was told that this record is committed.
    ///
    /// # Errors
    /// When another record was committed there.
    pub fn acknowledge(&mut self, seen: Seen, leader_epoch: u32) -> Result<(), String> {
        self.last_epoch = self.last_epoch.max(leader_epoch);
        self.show(seen)?;
        self.acknowledged.insert(seen.offset, (seen.epoch, seen.id));
        Ok(())
    }

    /// A consumer was shown this record.
    ///
    /// # Errors
    /// When it was shown another one there.
    pub fn show(&mut self, seen: Seen) -> Result<(), String> {
        let record = (seen.epoch, seen.id);
        match self.shown.insert(seen.offset, record) {
            Some(before) if before != record => {
                Err(format!("offset {} was {before:?} (epoch, id) and is {record:?}", seen.offset))
            }
            _ => Ok(()),
        }
    }

    /// Holds a whole log against what was told.
    ///
    /// # Errors
    /// When an acknowledged record is not there, or another one is.
    pub fn check_log(&self, records: &[Seen]) -> Result<(), String> {
        let there: BTreeMap<u64, (u32, u64)> =
            records.iter().map(|seen| (seen.offset, (seen.epoch, seen.id))).collect();
        for (offset, record) in &self.acknowledged {
            match there.get(offset) {
                None => return Err(format!("acknowledged record {record:?} at {offset} is gone")),
                Some(other) if other != record => {
                    return Err(format!("acknowledged record {record:?} at {offset} is {other:?} now"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// What durability allows to be lost by this is not held against anybody any more.
    pub fn forget(&mut self) {
        self.acknowledged.clear();
        self.shown.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(offset: u64, epoch: u32, id: u64) -> Seen {
        Seen { offset, epoch, id }
    }

    #[test]
    fn a_lost_or_changed_record_is_found() {
        let mut truth = Truth::default();
        truth.acknowledge(seen(0, 1, 10), 1).unwrap();
        truth.show(seen(1, 1, 11)).unwrap();
        assert!(truth.check_log(&[seen(0, 1, 10)]).is_ok(), "what was only shown may not be there");
        assert!(truth.check_log(&[seen(1, 1, 11)]).is_err(), "lost");
        assert!(truth.check_log(&[seen(0, 1, 12)]).is_err(), "changed");
        assert!(truth.show(seen(1, 2, 11)).is_err(), "another epoch is another record");
        assert!(truth.acknowledge(seen(1, 3, 15), 3).is_err());
    }
}
