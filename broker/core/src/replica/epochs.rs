//! Where each leader epoch starts in a log, and what two logs share.

use highwater_protocol::ids::{LeaderEpoch, Offset};

use crate::log::manifest::{EpochStart, note_epoch, start_epochs_at, truncate_epochs};

/// The epochs of one log, oldest first, strictly rising.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EpochHistory(Vec<EpochStart>);

impl EpochHistory {
    pub(super) const fn new(epochs: Vec<EpochStart>) -> Self {
        Self(epochs)
    }

    /// The epoch of the last batch.
    pub(super) fn last(&self) -> Option<LeaderEpoch> {
        self.0.last().map(|last| last.epoch)
    }

    /// The largest epoch that is not above `asked`, and where it ends in a log that ends at `log_end`.
    pub(super) fn end_of(&self, asked: LeaderEpoch, log_end: Offset) -> Option<(LeaderEpoch, Offset)> {
        let after = self.0.partition_point(|start| start.epoch <= asked);
        let found = self.0[..after].last()?;
        Some((found.epoch, self.0.get(after).map_or(log_end, |next| next.start)))
    }

    pub(super) fn note(&mut self, epoch: LeaderEpoch, offset: Offset) {
        note_epoch(&mut self.0, epoch, offset);
    }

    pub(super) fn truncate(&mut self, end: Offset) {
        truncate_epochs(&mut self.0, end);
    }

    pub(super) fn start_at(&mut self, log_start: Offset) {
        start_epochs_at(&mut self.0, log_start);
    }

    pub(super) fn check_invariants(&self) {
        let rising = self.0.windows(2).all(|two| two[0].epoch < two[1].epoch && two[0].start <= two[1].start);
        assert!(rising, "epochs do not rise: {self:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(epochs: &[(u32, u64)]) -> EpochHistory {
        EpochHistory::new(
            epochs
                .iter()
                .map(|(epoch, start)| EpochStart { epoch: LeaderEpoch(*epoch), start: Offset(*start) })
                .collect(),
        )
    }

    #[test]
    fn the_largest_epoch_that_is_not_above_and_its_end() {
        let history = history(&[(2, 10), (5, 20), (6, 35)]);
        let end_of =
            |asked| history.end_of(LeaderEpoch(asked), Offset(40)).map(|(epoch, end)| (epoch.0, end.0));
        assert_eq!(end_of(1), None);
        assert_eq!(end_of(2), Some((2, 20)));
        assert_eq!(end_of(4), Some((2, 20)));
        assert_eq!(end_of(5), Some((5, 35)));
        assert_eq!(end_of(6), Some((6, 40)));
        assert_eq!(end_of(9), Some((6, 40)));
    }

    #[test]
    fn a_cut_forgets_epochs_and_retention_moves_the_first() {
        let mut history = history(&[(2, 10), (5, 20), (6, 35)]);
        history.truncate(Offset(35));
        assert_eq!(history.last(), Some(LeaderEpoch(5)));
        history.start_at(Offset(25));
        assert_eq!(history.end_of(LeaderEpoch(4), Offset(35)), None);
        assert_eq!(history.end_of(LeaderEpoch(5), Offset(35)), Some((LeaderEpoch(5), Offset(35))));
        history.note(LeaderEpoch(8), Offset(35));
        assert_eq!(history.last(), Some(LeaderEpoch(8)));
    }
}
