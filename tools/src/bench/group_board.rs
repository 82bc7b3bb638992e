//! What the members of groups report: who has which partition, what was delivered, and how long nothing was.
//!
//! Pure: the time of everything is its caller's.

use std::time::{Duration, Instant};

use super::report::{Latencies, Spread};

/// A group has passed over records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "group {group} was given offset {offset} of partition {partition} where {expected} was next: records were passed over"
)]
pub(super) struct Skipped {
    group: usize,
    partition: usize,
    expected: u64,
    offset: u64,
}

/// One record that a member was given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivered {
    pub(super) partition: usize,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    /// Since it was due to be sent.
    pub(super) latency: Duration,
}

/// Everything that groups reported.
#[derive(Debug)]
pub(super) struct Board {
    groups: Vec<Group>,
    phases: Vec<Phase>,
}

#[derive(Debug)]
struct Group {
    /// By partition, the member that has it.
    owners: Vec<Option<u32>>,
    /// By partition, the offset that comes next.
    next: Vec<u64>,
    /// By partition, when the last record came.
    last: Vec<Option<Instant>>,
    /// By partition, whether it left its owner in this phase.
    moved: Vec<bool>,
    last_change: Option<Instant>,
    delivered: u64,
    duplicates: u64,
}

/// What happened in a part of the run.
#[derive(Debug)]
pub(super) struct Phase {
    pub(super) name: &'static str,
    began: Instant,
    /// How long it was, once it has ended.
    pub(super) length: Duration,
    pub(super) delivered: u64,
    pub(super) bytes: u64,
    pub(super) latencies: Latencies,
    pub(super) commits: Latencies,
    /// Until the last partition changed hands; of each group in which one did.
    pub(super) settled: Vec<Duration>,
    /// Partitions that changed hands, in all groups.
    pub(super) moved: u64,
    /// The longest time without a record, of partitions that stayed and of those that moved.
    pub(super) gap_stayed: Duration,
    pub(super) gap_moved: Duration,
    /// Partitions that were lost instead of given up.
    pub(super) lost: u64,
}

impl Phase {
    /// The median and the longest time until a group was settled, in microseconds.
    pub(super) fn settled_us(&self) -> Option<Spread> {
        Spread::of(self.settled.iter().map(|settled| settled.as_micros() as f64))
    }
}

impl Board {
    /// Nobody has anything. The first phase begins.
    pub(super) fn new(
        groups: usize,
        partitions: usize,
        name: &'static str,
        now: Instant,
    ) -> anyhow::Result<Self> {
        let group = || Group {
            owners: vec![None; partitions],
            next: vec![0; partitions],
            last: vec![None; partitions],
            moved: vec![false; partitions],
            last_change: None,
            delivered: 0,
            duplicates: 0,
        };
        let mut board = Self { groups: (0..groups).map(|_| group()).collect(), phases: Vec::new() };
        board.begin(name, now)?;
        Ok(board)
    }

    /// The phase before ends, another begins.
    pub(super) fn begin(&mut self, name: &'static str, now: Instant) -> anyhow::Result<()> {
        self.end(now);
        for group in &mut self.groups {
            group.moved.fill(false);
            group.last_change = None;
        }
        self.phases.push(Phase {
            name,
            began: now,
            length: Duration::ZERO,
            delivered: 0,
            bytes: 0,
            latencies: Latencies::new()?,
            commits: Latencies::new()?,
            settled: Vec::new(),
            moved: 0,
            gap_stayed: Duration::ZERO,
            gap_moved: Duration::ZERO,
            lost: 0,
        });
        Ok(())
    }

    /// The last phase ends.
    pub(super) fn end(&mut self, now: Instant) {
        let Some(phase) = self.phases.last_mut() else { return };
        phase.length = now.saturating_duration_since(phase.began);
        for group in &self.groups {
            phase.moved += group.moved.iter().filter(|moved| **moved).count() as u64;
            let settled = group.last_change.map(|last| last.saturating_duration_since(phase.began));
            phase.settled.extend(settled);
        }
    }

    /// A member has a partition.
    pub(super) fn assigned(&mut self, group: usize, member: u32, partition: usize, now: Instant) {
        let group = &mut self.groups[group];
        group.owners[partition] = Some(member);
        group.moved[partition] = true;
        group.last_change = Some(now);
    }

    /// A member has a partition no longer.
    pub(super) fn gone(&mut self, group: usize, member: u32, partition: usize, now: Instant) {
        let group = &mut self.groups[group];
        // Another one may have it already.
        if group.owners[partition] == Some(member) {
            group.owners[partition] = None;
        }
        group.moved[partition] = true;
        group.last_change = Some(now);
    }

    /// A member has lost a partition, without having been asked to give it up.
    pub(super) fn lost(&mut self, group: usize, member: u32, partition: usize, now: Instant) {
        self.gone(group, member, partition, now);
        if let Some(phase) = self.phases.last_mut() {
            phase.lost += 1;
        }
    }

    /// A member was given a record.
    ///
    /// # Errors
    /// When it is not the next one of its partition, and did not come before either.
    pub(super) fn record(
        &mut self,
        group_number: usize,
        record: Delivered,
        now: Instant,
    ) -> Result<(), Skipped> {
        let Delivered { partition, offset, bytes, latency } = record;
        let group = &mut self.groups[group_number];
        let expected = group.next[partition];
        if offset > expected {
            return Err(Skipped { group: group_number, partition, expected, offset });
        }
        if offset < expected {
            group.duplicates += 1;
            return Ok(());
        }
        group.next[partition] = offset + 1;
        group.delivered += 1;
        let gap = group.last[partition].replace(now).map(|last| now.saturating_duration_since(last));
        if let Some(phase) = self.phases.last_mut() {
            let longest = if group.moved[partition] { &mut phase.gap_moved } else { &mut phase.gap_stayed };
            *longest = (*longest).max(gap.unwrap_or_default());
            phase.delivered += 1;
            phase.bytes += bytes;
            phase.latencies.add(latency, 1);
        }
        Ok(())
    }

    /// A commit was acknowledged.
    pub(super) fn committed(&mut self, took: Duration) {
        if let Some(phase) = self.phases.last_mut() {
            phase.commits.add(took, 1);
        }
    }

    /// Whether every partition of every group has an owner.
    pub(super) fn is_all_owned(&self) -> bool {
        self.groups.iter().all(|group| group.owners.iter().all(Option::is_some))
    }

    /// Groups in which this member has nothing.
    pub(super) fn groups_without(&self, member: u32) -> usize {
        self.groups.iter().filter(|group| !group.owners.contains(&Some(member))).count()
    }

    /// The least that a group was given, each record counted once.
    pub(super) fn least_delivered(&self) -> u64 {
        self.groups.iter().map(|group| group.delivered).min().unwrap_or(0)
    }

    /// Records that came again, in all groups.
    pub(super) fn duplicates(&self) -> u64 {
        self.groups.iter().map(|group| group.duplicates).sum()
    }

    /// All phases so far.
    pub(super) fn phases(&self) -> &[Phase] {
        &self.phases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(partition: usize, offset: u64) -> Delivered {
        Delivered { partition, offset, bytes: 10, latency: Duration::from_millis(1) }
    }

    #[test]
    fn gaps_are_those_of_partitions_that_moved_or_stayed() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut board = Board::new(1, 2, "join", start).unwrap();
        assert!(!board.is_all_owned());
        board.assigned(0, 1, 0, at(5));
        board.assigned(0, 1, 1, at(8));
        assert!(board.is_all_owned());
        assert_eq!((board.groups_without(1), board.groups_without(2)), (0, 1));
        board.begin("steady", at(100)).unwrap();
        board.record(0, record(0, 0), at(110)).unwrap();
        board.record(0, record(1, 0), at(120)).unwrap();
        board.record(0, record(0, 1), at(140)).unwrap();
        board.begin("more", at(200)).unwrap();
        board.gone(0, 1, 1, at(210));
        board.assigned(0, 2, 1, at(230));
        // Late news of the one that had it before.
        board.gone(0, 1, 1, at(231));
        board.record(0, record(0, 2), at(240)).unwrap();
        board.record(0, record(1, 1), at(250)).unwrap();
        assert!(board.is_all_owned(), "the new owner is still one");
        board.end(at(300));
        let [join, steady, more] = board.phases() else { panic!("three phases") };
        let ms = Duration::from_millis;
        assert_eq!((join.settled.as_slice(), join.moved), ([ms(8)].as_slice(), 2));
        assert_eq!((steady.settled.len(), steady.moved, steady.gap_stayed), (0, 0, ms(30)));
        assert_eq!((steady.delivered, steady.bytes, steady.length), (3, 30, ms(100)));
        assert_eq!((more.settled.as_slice(), more.moved), ([ms(31)].as_slice(), 1));
        assert_eq!((more.gap_stayed, more.gap_moved), (ms(100), ms(130)));
    }

    #[test]
    fn what_comes_twice_is_counted_and_what_is_passed_over_is_an_error() {
        let start = Instant::now();
        let mut board = Board::new(2, 1, "steady", start).unwrap();
        for offset in [0, 1, 0, 1, 2] {
            board.record(1, record(0, offset), start).unwrap();
        }
        assert_eq!((board.duplicates(), board.least_delivered()), (2, 0));
        board.record(0, record(0, 0), start).unwrap();
        assert_eq!(board.least_delivered(), 1);
        let skipped = board.record(1, record(0, 4), start).unwrap_err();
        assert_eq!(skipped, Skipped { group: 1, partition: 0, expected: 3, offset: 4 });
        assert!(skipped.to_string().contains("offset 4 of partition 0 where 3 was next"));
        board.lost(1, 7, 0, start);
        assert_eq!(board.phases()[0].lost, 1);
    }
}
