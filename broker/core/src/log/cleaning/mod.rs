//! Compaction: of every key the last record stays. What to clean, when, and what becomes of each record.
//!
//! A pass learns the keys of what is new (the *dirty* range), and then goes over everything up to its end: a record whose
//! key comes again in the dirty range goes, and so does a deletion (a *tombstone*: a key without a value) once its grace
//! period is over. Records keep their offsets, and batches cover all offsets as before ([`merge`]), so that a missing
//! batch is still a corrupt range. Nothing at or after the high watermark is touched, and nothing that is not sealed.
//!
//! A pass may be interrupted anywhere: what goes is repeated at a higher offset that stays, so that any mixture of cleaned
//! and other segments says the same. Only its end is noted, in [`CleanState`].

pub mod key_map;
pub mod merge;

use std::ops::Range;
use std::time::Duration;

use bytes::BufMut;
use highwater_protocol::ids::Offset;

use super::envelope::{Fields, FormatError};
use crate::time::Wall;

/// How a log is compacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compaction {
    /// How long a tombstone stays after the pass that has first gone over it.
    pub tombstone_grace: Duration,
    /// The part of the log, in percent, that has to be dirty.
    pub dirty_percent_min: u32,
}

/// How far a log is compacted, and since when: a part of its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CleanState {
    /// Below, every key has one record, but for corrupt ranges that were filled since.
    pub upto: Offset,
    /// Where passes ended that left tombstones behind, oldest first.
    passes: Vec<Pass>,
}

/// One or a few passes, as far as tombstones are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pass {
    /// Where the last of them ended.
    end: Offset,
    /// When the first and the last of them were complete, in microseconds since the Unix epoch.
    first: i64,
    last: i64,
}

/// Passes that are noted apart from each other, within one grace period. Those in between count as if they had come
/// later, so that no tombstone goes too early and none stays longer than the grace period and this part of it.
const PASSES_PER_GRACE: u32 = 16;

/// Passes that are noted at the most, whatever becomes of settings and clocks.
const PASSES_MAX: usize = 64;

/// What matters about a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its offsets.
    pub start: Offset,
    /// The offset after its last batch.
    pub end: Offset,
    /// Its bytes.
    pub bytes: u64,
}

/// What a pass is about to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// How many segments, from the first on, are gone over.
    pub segments: usize,
    /// Whose keys are learnt, as many of them as there is room for.
    pub dirty: Range<Offset>,
    /// Tombstones below go.
    pub tombstones_below: Offset,
}

/// What a pass has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// The keys of everything below were learnt.
    pub upto: Offset,
    /// Tombstones below are gone.
    pub tombstones_below: Offset,
    /// Others are left below `upto`.
    pub tombstones_left: bool,
}

impl CleanState {
    /// Whether there is something to clean. `segments`: those that are durably listed, by offset. `first_hole`: where the
    /// first corrupt range starts: what is fetched again for it may be older than a tombstone above, which has to be there
    /// then.
    #[must_use]
    pub fn task(
        &self,
        segments: &[Segment],
        high_watermark: Offset,
        first_hole: Option<Offset>,
        settings: Compaction,
        now: Wall,
    ) -> Option<Task> {
        let count = segments.iter().take_while(|segment| segment.end <= high_watermark).count();
        let segments = segments.get(..count)?;
        let (first, last) = (segments.first()?, segments.last()?);
        let total: u64 = segments.iter().map(|segment| segment.bytes).sum();
        let dirty: u64 =
            segments.iter().filter(|segment| segment.end > self.upto).map(|segment| segment.bytes).sum();
        let enough = dirty > 0 && dirty * 100 >= total * u64::from(settings.dirty_percent_min);
        let is_over = |pass: &&Pass| pass.is_over(settings.tombstone_grace, now);
        let gone = self.passes.iter().filter(is_over).map(|pass| pass.end).max().unwrap_or_default();
        let tombstones_below = first_hole.map_or(gone, |hole| hole.min(gone));
        let tombstones = self.passes.iter().any(|pass| pass.end <= tombstones_below);
        (enough || tombstones).then(|| Task {
            segments: count,
            dirty: self.upto.clamp(first.start, last.end)..last.end,
            tombstones_below,
        })
    }

    /// A pass is complete.
    pub fn passed(&mut self, passed: Passed, grace: Duration, now: Wall) {
        self.upto = self.upto.max(passed.upto);
        self.passes.retain(|pass| pass.end > passed.tombstones_below);
        if !passed.tombstones_left {
            self.passes.clear();
            return;
        }
        let apart = i64::try_from((grace / PASSES_PER_GRACE).as_micros()).unwrap_or(i64::MAX);
        let full = self.passes.len() >= PASSES_MAX;
        match self.passes.last_mut() {
            Some(last) if full || now.0.saturating_sub(last.first) < apart => {
                last.end = last.end.max(passed.upto);
                last.last = last.last.max(now.0);
            }
            _ => self.passes.push(Pass { end: self.upto, first: now.0, last: now.0 }),
        }
    }

    /// The log was cut at `end`, or what is there from `end` on has changed.
    pub fn cut(&mut self, end: Offset) {
        self.upto = self.upto.min(end);
        let shorter = self.passes.iter().take_while(|pass| pass.end < end).count();
        self.passes.truncate(shorter + 1);
        if let Some(last) = self.passes.last_mut() {
            last.end = last.end.min(end);
        }
    }

    /// The bytes in a manifest.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.upto.0);
        out.put_u32_le(self.passes.len() as u32);
        for pass in &self.passes {
            out.put_u64_le(pass.end.0);
            out.put_i64_le(pass.first);
            out.put_i64_le(pass.last);
        }
    }

    /// From those bytes.
    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        let mut state = Self { upto: Offset(fields.u64()?), passes: Vec::new() };
        for _ in 0..fields.count(24)? {
            state.passes.push(Pass { end: Offset(fields.u64()?), first: fields.i64()?, last: fields.i64()? });
        }
        let sorted = state.passes.is_sorted_by(|a, b| a.end <= b.end);
        if !sorted || state.passes.len() > PASSES_MAX {
            return Err(FormatError::Field("passes"));
        }
        Ok(state)
    }
}

impl Pass {
    /// Whether what it has left may go. A clock that goes back only delays that.
    fn is_over(&self, grace: Duration, now: Wall) -> bool {
        let age = Duration::from_micros(now.0.saturating_sub(self.last).max(0).unsigned_abs());
        age >= grace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(160);
    const SETTINGS: Compaction = Compaction { tombstone_grace: GRACE, dirty_percent_min: 50 };

    fn at(seconds: i64) -> Wall {
        Wall(seconds * 1_000_000)
    }

    fn segments(count: u64) -> Vec<Segment> {
        (0..count)
            .map(|number| Segment { start: Offset(number * 10), end: Offset(number * 10 + 10), bytes: 100 })
            .collect()
    }

    fn passed(upto: u64, tombstones_below: u64, tombstones_left: bool) -> Passed {
        Passed { upto: Offset(upto), tombstones_below: Offset(tombstones_below), tombstones_left }
    }

    #[test]
    fn a_pass_goes_over_what_is_committed_once_enough_is_dirty() {
        let mut state = CleanState::default();
        let task = |state: &CleanState, count, high_watermark| {
            state.task(&segments(count), Offset(high_watermark), None, SETTINGS, at(0))
        };
        assert_eq!(task(&state, 0, 100), None);
        assert_eq!(task(&state, 3, 9), None, "nothing is committed");
        let first = task(&state, 3, 29).unwrap();
        assert_eq!((first.segments, first.dirty), (2, Offset(0)..Offset(20)));
        state.passed(passed(20, 0, false), GRACE, at(0));
        assert_eq!(task(&state, 2, 100), None, "all of it is clean");
        assert_eq!(task(&state, 3, 100), None, "a third is dirty");
        assert_eq!(task(&state, 4, 100).unwrap().dirty, Offset(20)..Offset(40));
        // A pass that had no room for all keys goes on in the middle of a segment.
        state.passed(passed(25, 0, false), GRACE, at(0));
        assert_eq!(task(&state, 4, 100).unwrap().dirty, Offset(25)..Offset(40));
        // Retention has let go of what was clean.
        let rest = &segments(6)[4..];
        assert_eq!(
            state.task(rest, Offset(60), None, SETTINGS, at(0)).unwrap().dirty,
            Offset(40)..Offset(60)
        );
    }

    #[test]
    fn tombstones_go_one_grace_period_after_the_pass_that_first_went_over_them() {
        let mut state = CleanState::default();
        state.passed(passed(20, 0, true), GRACE, at(0));
        let task = |state: &CleanState, now| state.task(&segments(2), Offset(20), None, SETTINGS, at(now));
        assert_eq!(task(&state, 159), None);
        assert_eq!(task(&state, -1000), None, "a clock that went back");
        let due = task(&state, 160).unwrap();
        assert_eq!((due.tombstones_below, due.dirty), (Offset(20), Offset(20)..Offset(20)));
        // Further passes do not put it off, and what they go over first has its own time.
        for second in 1..160 {
            state.passed(passed(20 + second, 0, true), GRACE, at(second as i64));
        }
        assert!(state.passes.len() <= 17, "{:?}", state.passes);
        let mut clear = 0;
        for second in 160..=331 {
            let now = at(second);
            let gone = state.passes.iter().filter(|pass| pass.is_over(GRACE, now)).map(|pass| pass.end).max();
            let gone = gone.map_or(0, Offset::get);
            assert!(gone >= clear, "never less");
            assert!(gone < 20 + 1 + (second as u64 - 160) + 1, "{gone} at {second}: too early");
            assert!(
                second < 171 || gone + 11 > 20 + (second as u64 - 171).min(148),
                "{gone} at {second}: late"
            );
            clear = gone;
        }
        assert_eq!(clear, 20 + 159);
        state.passed(passed(179, 179, false), GRACE, at(400));
        assert_eq!((task(&state, 10_000), state.passes.len()), (None, 0));
    }

    #[test]
    fn tombstones_above_a_corrupt_range_stay_and_nothing_runs_in_circles_for_them() {
        let mut state = CleanState::default();
        state.passed(passed(20, 0, true), GRACE, at(0));
        state.passed(passed(40, 0, true), GRACE, at(20));
        let task = |state: &CleanState, hole| {
            state.task(&segments(4), Offset(40), Some(Offset(hole)), SETTINGS, at(1000))
        };
        assert_eq!(task(&state, 5), None);
        assert_eq!(task(&state, 25).unwrap().tombstones_below, Offset(25));
        state.passed(passed(40, 25, true), GRACE, at(1000));
        assert_eq!(task(&state, 25), None);
    }

    #[test]
    fn what_was_cut_or_filled_is_dirty_again() {
        let mut state = CleanState::default();
        state.passed(passed(20, 0, true), GRACE, at(0));
        state.passed(passed(40, 0, true), GRACE, at(20));
        let mut cut = state.clone();
        cut.cut(Offset(30));
        assert_eq!(cut.upto, Offset(30));
        assert_eq!(cut.passes.iter().map(|pass| pass.end.0).collect::<Vec<_>>(), [20, 30]);
        cut.cut(Offset(10));
        assert_eq!(cut.passes.iter().map(|pass| pass.end.0).collect::<Vec<_>>(), [10]);
        state.cut(Offset(50));
        assert_eq!((state.upto, state.passes.len()), (Offset(40), 2));
    }

    #[test]
    fn the_state_round_trips_and_its_bounds_hold() {
        let mut state = CleanState::default();
        for pass in 0..1000 {
            state.passed(passed(pass, 0, true), Duration::ZERO, at(pass as i64));
        }
        assert_eq!(state.passes.len(), PASSES_MAX);
        let mut bytes = Vec::new();
        state.encode(&mut bytes);
        assert_eq!(CleanState::decode(&mut Fields(&bytes)).unwrap(), state);
        bytes[8] = 65;
        assert!(CleanState::decode(&mut Fields(&bytes)).is_err());
    }
}
