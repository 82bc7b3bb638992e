//! Which records of a partition the application has finished, when it finishes them in any order. Pure.

use std::collections::VecDeque;

use highwater_protocol::ids::{LeaderEpoch, Offset};

/// What was handed out and is not finished, in order.
#[derive(Debug)]
pub(super) struct Tracker {
    /// Everything below is finished.
    finished: Offset,
    epoch: LeaderEpoch,
    open: VecDeque<Handed>,
}

/// Records that were handed out together.
#[derive(Debug, Clone, Copy)]
struct Handed {
    first: Offset,
    end: Offset,
    epoch: LeaderEpoch,
    /// One record only: it is finished as a whole.
    is_record: bool,
    done: bool,
}

impl Tracker {
    /// Nothing is handed out below `position`.
    pub(super) const fn new(position: Offset) -> Self {
        Self { finished: position, epoch: LeaderEpoch(0), open: VecDeque::new() }
    }

    /// Everything below is finished, and the epoch of the last record of it (0: not known).
    pub(super) const fn finished(&self) -> (Offset, LeaderEpoch) {
        (self.finished, self.epoch)
    }

    /// How many records or batches are handed out and not finished.
    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    /// A record, or a batch, was handed out: from `first` to before `end`. What lies before and was never handed out, such
    /// as what was compacted away, is finished with it.
    pub(super) fn handed_out(&mut self, first: Offset, end: Offset, epoch: LeaderEpoch) {
        let is_record = end == first.next();
        self.open.push_back(Handed { first, end, epoch, is_record, done: false });
    }

    /// The record at `offset` is finished. Returns whether it was handed out.
    pub(super) fn finish(&mut self, offset: Offset) -> bool {
        let at = self.open.partition_point(|handed| handed.end <= offset);
        match self.open.get_mut(at).filter(|handed| handed.first <= offset) {
            Some(handed) if handed.is_record || handed.first == offset && handed.end == offset.next() => {
                handed.done = true;
            }
            // Of a batch the records are finished from the first one on.
            Some(handed) if handed.first == offset => handed.first = offset.next(),
            _ => return false,
        }
        self.advance();
        true
    }

    /// Everything below `offset` that was handed out is finished.
    pub(super) fn finish_before(&mut self, offset: Offset) {
        for handed in &mut self.open {
            if handed.end <= offset {
                handed.done = true;
            } else {
                handed.first = handed.first.max(offset);
                break;
            }
        }
        self.advance();
    }

    fn advance(&mut self) {
        while let Some(handed) = self.open.pop_front_if(|handed| handed.done) {
            (self.finished, self.epoch) = (handed.end, handed.epoch);
        }
        // A batch that is finished in part.
        if let Some(handed) = self.open.front()
            && !handed.is_record
            && handed.first > self.finished
        {
            (self.finished, self.epoch) = (handed.first, handed.epoch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: LeaderEpoch = LeaderEpoch(3);

    fn with(offsets: &[u64]) -> Tracker {
        let mut tracker = Tracker::new(Offset(10));
        for offset in offsets {
            tracker.handed_out(Offset(*offset), Offset(offset + 1), EPOCH);
        }
        tracker
    }

    #[test]
    fn what_is_finished_out_of_order_counts_when_everything_before_is() {
        // Some offsets were compacted away.
        let mut tracker = with(&[10, 12, 13, 20]);
        for (offset, finished) in [(13, 10), (20, 10), (10, 11), (12, 21)] {
            assert!(tracker.finish(Offset(offset)));
            assert_eq!(tracker.finished().0, Offset(finished), "after {offset}");
        }
        assert_eq!((tracker.finished().1, tracker.open_count()), (EPOCH, 0));
    }

    #[test]
    fn what_was_not_handed_out_or_is_finished_already_is_not_finished() {
        let mut tracker = with(&[10, 12]);
        for offset in [9, 11, 13] {
            assert!(!tracker.finish(Offset(offset)), "{offset}");
        }
        assert!(tracker.finish(Offset(10)));
        assert!(!tracker.finish(Offset(10)));
        assert_eq!(tracker.finished().0, Offset(11));
    }

    #[test]
    fn everything_below_is_finished_at_once_and_batches_in_part() {
        let mut tracker = Tracker::new(Offset(0));
        tracker.handed_out(Offset(0), Offset(100), EPOCH);
        tracker.handed_out(Offset(100), Offset(200), LeaderEpoch(4));
        tracker.finish_before(Offset(40));
        assert_eq!(tracker.finished(), (Offset(40), EPOCH));
        tracker.finish_before(Offset(150));
        assert_eq!(tracker.finished(), (Offset(150), LeaderEpoch(4)));
        tracker.finish_before(Offset(30));
        assert_eq!(tracker.finished().0, Offset(150), "never back");
        assert!(tracker.finish(Offset(150)) && !tracker.finish(Offset(170)));
        assert_eq!(tracker.finished().0, Offset(151));
        tracker.finish_before(Offset(199));
        assert_eq!(tracker.finished().0, Offset(199), "all but one");
        tracker.finish_before(Offset(9999));
        assert_eq!((tracker.finished().0, tracker.open_count()), (Offset(200), 0));
    }
}
