//! `highwater quickstart`: three brokers, real input, a leader killed in the middle, and the proof that nothing was lost.

mod child;
mod claim;
mod flow;
mod ledger;
mod report;
mod source;
mod telemetry;
mod tour;
mod trio;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Global, Output, QuickstartArgs};
use crate::output::{self, Answer, OutputClosed};
use child::Launcher;
use source::Source;
use tour::Tour;
use trio::Trio;

/// How long all of it may take with `--exit`.
const TOTAL: Duration = Duration::from_secs(240);

/// Runs the command. Whatever happens, the brokers and the temporary directory are gone when it returns.
pub(crate) async fn run(global: &Global, args: QuickstartArgs) -> anyhow::Result<Answer> {
    let mut terminated = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let exit = args.exit;
    let place = Place::new(args.dir.as_deref())?;
    let source = match &args.file {
        Some(path) => Source::file(path)?,
        None => Source::telemetry()?,
    };
    let brokers = Trio::new(Launcher::new(place.path())?);
    let mut tour = Tour::new(global.output == Output::Table, brokers, source, args.file.is_some());
    let result = tokio::select! {
        result = tour.run(exit) => result,
        () = tokio::time::sleep(TOTAL), if exit => {
            Err(anyhow::anyhow!("not done after {TOTAL:?}, while: {}", tour.doing()))
        }
        _ = tokio::signal::ctrl_c() => Ok(false),
        _ = terminated.recv() => Ok(false),
    };
    let stopped = tour.stop().await;
    let failed = match (&result, &stopped) {
        (Err(error), _) => !error.is::<OutputClosed>(),
        (_, Err(_)) => true,
        _ => false,
    };
    if failed {
        output::note(format!("What the brokers logged last:\n{}\n", tour.log_ends()));
    }
    let verified = result?;
    stopped?;
    if let Some(kept) = place.kept() {
        tour.line(&format!("\nThe brokers have ended; their data is in {}", kept.display()))?;
    } else {
        tour.line("\nThe brokers have ended and their temporary directory is gone.")?;
    }
    // Interrupted before everything was verified: with --exit that was the question.
    Ok(if exit && !verified { Answer::No } else { Answer::Yes })
}

/// Where the brokers keep their data.
enum Place {
    Temporary(TempDir),
    Given(PathBuf),
}

impl Place {
    fn new(given: Option<&Path>) -> anyhow::Result<Self> {
        match given {
            None => {
                let directory = tempfile::Builder::new().prefix("highwater-quickstart-").tempdir();
                Ok(Self::Temporary(
                    directory.context("make a temporary directory; --dir DIR names another place")?,
                ))
            }
            Some(path) => {
                std::fs::create_dir_all(path)
                    .with_context(|| format!("make directory {}", path.display()))?;
                // The brokers' working directory is another one some day.
                let path =
                    path.canonicalize().with_context(|| format!("find directory {}", path.display()))?;
                Ok(Self::Given(path))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(directory) => directory.path(),
            Self::Given(path) => path,
        }
    }

    fn kept(&self) -> Option<&Path> {
        match self {
            Self::Temporary(_) => None,
            Self::Given(path) => Some(path),
        }
    }
}
