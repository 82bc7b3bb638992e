//! The history checker: what producers were told against what consumers saw.
//!
//! A producer numbers its records per partition, so that a record is known by (producer, number). The rules, each with a
//! test in which it fails:
//!
//! - O1 every acknowledged record is there, at the offset that the acknowledgement named;
//! - O2 no two records were ever seen or acknowledged at one offset, before and after any crash;
//! - O3 no record is there twice;
//! - O4 the records of a producer are in the order in which it numbered them;
//! - O5 offsets have no gaps;
//! - O6 nothing is there that nobody sent, or that was refused;
//! - O7 what any pass has read, the last one reads too.
//!
//! A record whose outcome is unknown may be there or not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A record, as its producer knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record {
    /// Who sent it.
    pub producer: u32,
    /// Its place among the records of that producer for that partition.
    pub number: u64,
}

/// What a producer was told about a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged, at this offset.
    Acknowledged(u64),
    /// It may be in the log or not.
    Unknown,
    /// Certainly not in the log.
    Refused,
}

/// One reading of a partition, from some offset upwards.
pub type Pass = Vec<(u64, Record)>;

/// Everything that happened to one partition.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Each record that was ever handed to a producer.
    pub sent: BTreeMap<Record, Outcome>,
    /// What was read, in the order of the readings. The last one must have been started at the log start after all
    /// producers had ended, and must have reached the log end.
    pub passes: Vec<Pass>,
}

/// A promise that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// O1: an acknowledged record is not at its offset in the last pass.
    Lost { record: Record, offset: u64 },
    /// O2: two records at one offset.
    OffsetReused { offset: u64, first: Record, second: Record },
    /// O3: one record at two offsets.
    Duplicate { record: Record, first: u64, second: u64 },
    /// O3: a pass saw an offset again.
    OffsetRepeated { offset: u64 },
    /// O4: a producer's record after one that it sent later.
    Reordered { offset: u64, earlier: Record, later: Record },
    /// O5: offsets without a record between records.
    Gap { after: u64, next: u64 },
    /// O6: a record that nobody sent.
    NeverSent { offset: u64, record: Record },
    /// O6: a record that its producer was told is not there.
    WasRefused { offset: u64, record: Record },
    /// O7: read once, and not by the last pass.
    Vanished { offset: u64, record: Record },
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// What a history without violations held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Records that were acknowledged, all of them there.
    pub acknowledged: usize,
    /// Records of unknown outcome that are there.
    pub unknown_there: usize,
    /// Records of unknown outcome that are not there.
    pub unknown_gone: usize,
    /// Records that were refused.
    pub refused: usize,
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.unknown_there += other.unknown_there;
        self.unknown_gone += other.unknown_gone;
        self.refused += other.refused;
    }
}

/// Checks a history.
///
/// # Errors
/// All violations, in no particular order.
pub fn check(history: &History) -> Result<Summary, Vec<Violation>> {
    let mut violations = Vec::new();
    let mut places = Places::default();
    for pass in &history.passes {
        check_pass(history, pass, &mut violations);
        for &(offset, record) in pass {
            places.see(offset, record, &mut violations);
        }
    }
    for (&record, &outcome) in &history.sent {
        if let Outcome::Acknowledged(offset) = outcome {
            places.see(offset, record, &mut violations);
        }
    }
    check_vanished(history, &mut violations);
    let summary = check_acknowledged(history, &mut violations);
    if violations.is_empty() { Ok(summary) } else { Err(violations) }
}

/// Which record is where, over all passes and acknowledgements.
#[derive(Debug, Default)]
struct Places {
    by_offset: BTreeMap<u64, Record>,
    by_record: BTreeMap<Record, u64>,
}

impl Places {
    fn see(&mut self, offset: u64, record: Record, violations: &mut Vec<Violation>) {
        let first = *self.by_offset.entry(offset).or_insert(record);
        if first != record {
            violations.push(Violation::OffsetReused { offset, first, second: record });
        }
        let earlier = *self.by_record.entry(record).or_insert(offset);
        if earlier != offset {
            violations.push(Violation::Duplicate { record, first: earlier, second: offset });
        }
    }
}

/// O3 to O6 within one pass.
fn check_pass(history: &History, pass: &Pass, violations: &mut Vec<Violation>) {
    let mut latest: BTreeMap<u32, Record> = BTreeMap::new();
    let mut previous = None;
    for &(offset, record) in pass {
        match previous {
            Some(before) if offset <= before => violations.push(Violation::OffsetRepeated { offset }),
            Some(before) if offset > before + 1 => {
                violations.push(Violation::Gap { after: before, next: offset })
            }
            _ => {}
        }
        previous = Some(offset);
        match history.sent.get(&record) {
            None => violations.push(Violation::NeverSent { offset, record }),
            Some(Outcome::Refused) => violations.push(Violation::WasRefused { offset, record }),
            Some(Outcome::Acknowledged(_) | Outcome::Unknown) => {}
        }
        match latest.insert(record.producer, record) {
            Some(later) if record.number < later.number => {
                violations.push(Violation::Reordered { offset, earlier: record, later });
            }
            _ => {}
        }
    }
}

/// O7: the last pass has what any earlier one saw.
fn check_vanished(history: &History, violations: &mut Vec<Violation>) {
    let Some((last, earlier)) = history.passes.split_last() else { return };
    let there: BTreeSet<_> = last.iter().copied().collect();
    let mut reported = BTreeSet::new();
    for &(offset, record) in earlier.iter().flatten() {
        if !there.contains(&(offset, record)) && reported.insert((offset, record)) {
            violations.push(Violation::Vanished { offset, record });
        }
    }
}

/// O1, and the counts.
fn check_acknowledged(history: &History, violations: &mut Vec<Violation>) -> Summary {
    let there: BTreeSet<(Record, u64)> =
        history.passes.last().into_iter().flatten().map(|&(offset, record)| (record, offset)).collect();
    let mut summary = Summary::default();
    for (&record, &outcome) in &history.sent {
        let is_anywhere = there.range((record, 0)..=(record, u64::MAX)).next().is_some();
        match outcome {
            Outcome::Acknowledged(offset) => {
                summary.acknowledged += 1;
                if !there.contains(&(record, offset)) {
                    violations.push(Violation::Lost { record, offset });
                }
            }
            Outcome::Unknown if is_anywhere => summary.unknown_there += 1,
            Outcome::Unknown => summary.unknown_gone += 1,
            Outcome::Refused => summary.refused += 1,
        }
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn record(producer: u32, number: u64) -> Record {
        Record { producer, number }
    }

    /// Two producers, an unknown record that is there, one that is not, a refused one, and a pass in the middle.
    fn good() -> History {
        History {
            sent: BTreeMap::from([
                (record(1, 0), Outcome::Acknowledged(0)),
                (record(2, 0), Outcome::Acknowledged(1)),
                (record(1, 1), Outcome::Unknown),
                (record(1, 2), Outcome::Unknown),
                (record(1, 3), Outcome::Acknowledged(3)),
                (record(2, 1), Outcome::Refused),
            ]),
            passes: vec![
                vec![(0, record(1, 0)), (1, record(2, 0))],
                vec![(0, record(1, 0)), (1, record(2, 0)), (2, record(1, 1)), (3, record(1, 3))],
            ],
        }
    }

    fn violations(change: impl FnOnce(&mut History)) -> Vec<Violation> {
        let mut history = good();
        change(&mut history);
        check(&history).unwrap_err()
    }

    #[test]
    fn a_good_history_is_counted() {
        let summary = Summary { acknowledged: 3, unknown_there: 1, unknown_gone: 1, refused: 1 };
        assert_eq!(check(&good()), Ok(summary));
    }

    #[test]
    fn o1_an_acknowledged_record_that_is_gone_is_found() {
        let found = violations(|history| {
            history.passes[1].pop();
        });
        assert_eq!(found, [Violation::Lost { record: record(1, 3), offset: 3 }]);
    }

    #[test]
    fn o1_an_acknowledged_record_at_another_offset_is_found() {
        let found = violations(|history| {
            history.sent.insert(record(1, 3), Outcome::Acknowledged(9));
        });
        assert!(found.contains(&Violation::Lost { record: record(1, 3), offset: 9 }), "{found:?}");
    }

    #[test]
    fn o1_without_any_pass_everything_is_lost() {
        assert_eq!(violations(|history| history.passes.clear()).len(), 3);
    }

    #[test]
    fn o2_an_offset_given_to_another_record_after_a_crash_is_found() {
        let found = violations(|history| {
            history.sent.insert(record(2, 0), Outcome::Unknown);
            history.passes[1][1] = (1, record(1, 1));
            history.passes[1][2] = (2, record(1, 2));
        });
        let reused = Violation::OffsetReused { offset: 1, first: record(2, 0), second: record(1, 1) };
        assert!(found.contains(&reused), "{found:?}");
    }

    #[test]
    fn o2_two_acknowledgements_of_one_offset_are_found() {
        let found = violations(|history| {
            history.sent.insert(record(1, 2), Outcome::Acknowledged(3));
        });
        let reused = Violation::OffsetReused { offset: 3, first: record(1, 3), second: record(1, 2) };
        assert!(found.contains(&reused), "{found:?}");
    }

    #[test]
    fn o3_a_record_that_is_there_twice_is_found() {
        let found = violations(|history| history.passes[1].push((4, record(1, 3))));
        assert_eq!(found, [Violation::Duplicate { record: record(1, 3), first: 3, second: 4 }]);
    }

    #[test]
    fn o3_an_offset_that_is_read_twice_is_found() {
        let found = violations(|history| history.passes[1].push((3, record(1, 3))));
        assert_eq!(found, [Violation::OffsetRepeated { offset: 3 }]);
    }

    #[test]
    fn o4_records_of_a_producer_in_another_order_are_found() {
        let found = violations(|history| {
            history.sent.insert(record(1, 3), Outcome::Acknowledged(2));
            history.passes[1][2] = (2, record(1, 3));
            history.passes[1][3] = (3, record(1, 1));
        });
        let reordered = Violation::Reordered { offset: 3, earlier: record(1, 1), later: record(1, 3) };
        assert_eq!(found, [reordered]);
    }

    #[test]
    fn o5_a_gap_is_found() {
        let found = violations(|history| {
            history.sent.insert(record(1, 3), Outcome::Acknowledged(4));
            history.passes[1][3] = (4, record(1, 3));
        });
        assert_eq!(found, [Violation::Gap { after: 2, next: 4 }]);
    }

    #[test]
    fn o6_a_record_from_nowhere_is_found() {
        let found = violations(|history| history.passes[1].push((4, record(7, 7))));
        assert_eq!(found, [Violation::NeverSent { offset: 4, record: record(7, 7) }]);
    }

    #[test]
    fn o6_a_refused_record_that_is_there_is_found() {
        let found = violations(|history| history.passes[1].push((4, record(2, 1))));
        assert_eq!(found, [Violation::WasRefused { offset: 4, record: record(2, 1) }]);
    }

    #[test]
    fn o7_a_record_that_was_read_and_then_vanished_is_found() {
        let found = violations(|history| history.passes[0].push((2, record(1, 2))));
        assert!(found.contains(&Violation::Vanished { offset: 2, record: record(1, 2) }), "{found:?}");
    }
}
