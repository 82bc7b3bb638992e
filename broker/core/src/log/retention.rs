//! When to roll the active segment, and which segments to let go.

use std::time::Duration;

use highwater_protocol::ids::Offset;

use crate::time::Wall;

/// How large and how old segments and the log may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a segment before it is rolled.
    pub segment_bytes: u64,
    /// Age of a segment's first batch before it is rolled.
    pub segment_age: Duration,
    /// Bytes of the log: whole segments go while at least this much stays.
    pub retention_bytes: Option<u64>,
    /// Age after which a batch may go.
    pub retention_age: Option<Duration>,
}

/// What matters about a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The offset after its last batch.
    pub end_offset: Offset,
    /// Its bytes.
    pub bytes: u64,
    /// Append time of its first batch, in microseconds since the Unix epoch.
    pub first_append_time: i64,
    /// Append time of its last batch, in microseconds since the Unix epoch.
    pub last_append_time: i64,
}

/// How much of the retention age the active segment may span: a batch goes at the latest this part later than it may.
const AGE_PARTS: u32 = 4;

impl Limits {
    /// Whether the active segment has to be rolled before it is full: by its age, or so that retention can be honoured.
    #[must_use]
    pub fn must_roll(&self, active: &Facts, now: Wall) -> bool {
        if active.bytes == 0 {
            return false;
        }
        let age_max = match self.retention_age {
            Some(retention) => self.segment_age.min(retention / AGE_PARTS),
            None => self.segment_age,
        };
        age(active.first_append_time, now) >= age_max
            || self.retention_bytes.is_some_and(|bytes| active.bytes >= bytes)
    }

    /// How many of the `sealed` segments, oldest first, may go. Nothing at or after the high watermark goes.
    #[must_use]
    pub fn expired_count(
        &self,
        sealed: &[Facts],
        active_bytes: u64,
        now: Wall,
        high_watermark: Offset,
    ) -> usize {
        let mut bytes = sealed.iter().map(|segment| segment.bytes).sum::<u64>() + active_bytes;
        let expired = sealed.iter().take_while(|segment| {
            let left = bytes - segment.bytes;
            let too_old =
                self.retention_age.is_some_and(|age_max| age(segment.last_append_time, now) >= age_max);
            let too_much = self.retention_bytes.is_some_and(|bytes_max| left >= bytes_max);
            bytes = left;
            segment.end_offset <= high_watermark && (too_old || too_much)
        });
        expired.count()
    }
}

/// How long ago; zero if the clock went back.
fn age(micros: i64, now: Wall) -> Duration {
    Duration::from_micros(now.0.saturating_sub(micros).max(0).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn limits() -> Limits {
        Limits {
            segment_bytes: 1000,
            segment_age: Duration::from_secs(100),
            retention_bytes: None,
            retention_age: None,
        }
    }

    fn segment(end: u64, bytes: u64, first: i64, last: i64) -> Facts {
        Facts {
            end_offset: Offset(end),
            bytes,
            first_append_time: first * SECOND,
            last_append_time: last * SECOND,
        }
    }

    #[test]
    fn rolled_by_age_and_for_retention() {
        let active = segment(10, 500, 0, 50);
        assert!(!limits().must_roll(&active, Wall(99 * SECOND)));
        assert!(limits().must_roll(&active, Wall(100 * SECOND)));
        assert!(!limits().must_roll(&segment(0, 0, 0, 0), Wall(100 * SECOND)));
        let aged = Limits { retention_age: Some(Duration::from_secs(40)), ..limits() };
        assert!(!aged.must_roll(&active, Wall(9 * SECOND)) && aged.must_roll(&active, Wall(10 * SECOND)));
        let sized = Limits { retention_bytes: Some(500), ..limits() };
        assert!(sized.must_roll(&active, Wall(0)));
        // A clock that went back does not roll.
        assert!(!limits().must_roll(&active, Wall(-100 * SECOND)));
    }

    #[test]
    fn expired_by_bytes_and_age_but_never_past_the_high_watermark() {
        let sealed = [segment(10, 400, 0, 10), segment(20, 400, 10, 20), segment(30, 400, 20, 30)];
        let sized = Limits { retention_bytes: Some(800), ..limits() };
        assert_eq!(sized.expired_count(&sealed, 0, Wall(0), Offset(30)), 1);
        assert_eq!(sized.expired_count(&sealed, 400, Wall(0), Offset(30)), 2);
        assert_eq!(sized.expired_count(&sealed, 400, Wall(0), Offset(19)), 1);
        let aged = Limits { retention_age: Some(Duration::from_secs(5)), ..limits() };
        assert_eq!(aged.expired_count(&sealed, 0, Wall(25 * SECOND), Offset(30)), 2);
        assert_eq!(aged.expired_count(&sealed, 0, Wall(25 * SECOND), Offset(9)), 0);
        assert_eq!(limits().expired_count(&sealed, 0, Wall(i64::MAX), Offset(30)), 0);
    }
}
