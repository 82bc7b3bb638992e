//! Waiting until replicas have moved, with progress.

use std::fmt;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use highwater_client::{Admin, ClusterDetails};

use super::state::{describe, is_copying};
use crate::args::WaitArgs;
use crate::output::{self, Progress, Unit};

/// How often the cluster is asked.
const LOOK: Duration = Duration::from_millis(500);

/// What is still to be moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Moving {
    /// Partitions whose replicas are on the move, those that wait for their turn included.
    pub(crate) partitions: u64,
    /// Those that wait for their turn.
    planned: u64,
    /// Offsets that new replicas still lack, as far as it is known.
    lag: u64,
}

impl Moving {
    /// What a cluster still has to move.
    pub(crate) fn of(state: &ClusterDetails) -> Self {
        Self {
            partitions: state.moves.len() as u64,
            planned: state.moves.iter().filter(|change| !is_copying(change)).count() as u64,
            lag: state.moves.iter().filter_map(|change| change.lag).sum(),
        }
    }

    /// Whether nothing is left.
    pub(crate) const fn is_done(self) -> bool {
        self.partitions == 0
    }
}

impl fmt::Display for Moving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} left, {} of them waiting for their turn, lag {}",
            output::plural(self.partitions, "partition", "partitions"),
            output::count(self.planned),
            output::count(self.lag)
        )
    }
}

/// Whether to wait: as asked, else when somebody watches.
pub(super) fn is_wanted(args: &WaitArgs) -> bool {
    args.wait || !args.no_wait && io::stdout().is_terminal() && io::stderr().is_terminal()
}

/// Waits until nothing moves any more, seen twice because the broker that is asked may be a little behind, and `done` holds, and returns whether that came within `args.wait_max`. Says on
/// standard error how far it is: as a line that changes on a terminal, else as a line for each change.
///
/// Cancel safe: the moves go on by themselves.
///
/// # Errors
/// When no broker answers within `--timeout`.
pub(super) async fn wait(
    admin: &Admin,
    args: &WaitArgs,
    done: impl Fn(&ClusterDetails) -> bool,
) -> anyhow::Result<bool> {
    let deadline = Instant::now() + args.wait_max;
    let is_terminal = io::stderr().is_terminal();
    let mut bar: Option<Progress> = None;
    let (mut total, mut shown, mut quiet) = (0, None, false);
    loop {
        let state = describe(admin).await?;
        let moving = Moving::of(&state);
        let is_done = moving.is_done() && done(&state);
        if is_done && quiet {
            return Ok(true);
        }
        quiet = is_done;
        if moving.partitions > total {
            total = moving.partitions;
            bar = Some(Progress::new(Some(total), Unit::Partitions));
        }
        if let Some(bar) = &bar {
            bar.set(total - moving.partitions);
            bar.say(moving.to_string());
        }
        if !is_terminal && !quiet && shown != Some(moving) {
            output::note(format!("moving: {moving}"));
            shown = Some(moving);
        }
        if Instant::now() >= deadline {
            output::note(format!(
                "not done after {}: {moving}; it goes on, see: highwater cluster status",
                humantime::format_duration(args.wait_max)
            ));
            return Ok(false);
        }
        tokio::time::sleep(LOOK.min(deadline.saturating_duration_since(Instant::now()))).await;
    }
}

#[cfg(test)]
mod tests {
    use highwater_client::PartitionMove;

    use super::*;

    #[test]
    fn what_is_left_is_counted() {
        let one = |state: &str, lag| {
            let mut change = PartitionMove::default();
            change.state = state.to_owned();
            change.lag = lag;
            change
        };
        let mut state = ClusterDetails::default();
        state.moves = vec![one("copying", Some(1200)), one("copying", None), one("planned", None)];
        let moving = Moving::of(&state);
        assert_eq!(moving.to_string(), "3 partitions left, 1 of them waiting for their turn, lag 1,200");
        assert!(!moving.is_done() && Moving::default().is_done());
    }
}
