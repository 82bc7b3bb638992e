//! Line numbers that belong together, kept as ranges.

/// Numbers as ranges; memory grows with the gaps, not with the numbers.
#[derive(Debug, Default)]
pub(crate) struct LineRanges {
    /// First and last, in the order in which they came, neighbours joined.
    ranges: Vec<(u64, u64)>,
    count: u64,
}

impl LineRanges {
    /// Adds `count` numbers from `first` on. No number is added twice.
    pub(crate) fn add(&mut self, first: u64, count: u64) {
        if count == 0 {
            return;
        }
        let last = first + count - 1;
        self.count += count;
        match self.ranges.last_mut() {
            Some(range) if range.1 + 1 == first => range.1 = last,
            _ => self.ranges.push((first, last)),
        }
    }

    /// How many numbers.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// First and last of each range, in order.
    pub(crate) fn ranges(&self) -> Vec<(u64, u64)> {
        let mut sorted = self.ranges.clone();
        sorted.sort_unstable();
        sorted.dedup_by(|next, range| {
            let joined = range.1 + 1 == next.0;
            if joined {
                range.1 = next.1;
            }
            joined
        });
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_range_in_whatever_order_they_come() {
        let mut lines = LineRanges::default();
        for (first, count) in [(1, 2), (7, 3), (5, 0), (3, 1), (12, 1), (10, 2)] {
            lines.add(first, count);
        }
        assert_eq!(lines.ranges(), [(1, 3), (7, 12)]);
        assert_eq!(lines.count(), 9);
    }
}
