//! Structured logs: text for people, JSON for programs.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::controller::CONSENSUS_LOGS;

/// How log lines look.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error(
        "log filter {filter:?} does not parse: {source}; write a level (info) or targets (highwater_broker=debug)"
    )]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody else has set it up.
    #[error("logging is set up already: {0}")]
    AlreadySet(#[from] tracing_subscriber::util::TryInitError),
}

/// Sends log lines to standard error for the rest of the process. Called by binaries, never by the library: the
/// subscriber is the one thing that a process has only once.
///
/// # Errors
/// When `filter` does not parse or a subscriber is there already.
pub fn init(format: LogFormat, filter: &str) -> Result<(), LogError> {
    // What matters of it is told in this broker's own words; whoever looks for more names it.
    let quiet =
        if filter.contains(CONSENSUS_LOGS) { String::new() } else { format!("{CONSENSUS_LOGS}=off,") };
    let filter = EnvFilter::try_new(format!("{quiet}{filter}"))
        .map_err(|source| LogError::Filter { filter: filter.to_owned(), source })?;
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => {
            let terminal = io::IsTerminal::is_terminal(&io::stderr());
            let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(terminal);
            registry.with(layer).try_init()?;
        }
        LogFormat::Json => {
            let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(io::stderr);
            registry.with(layer).try_init()?;
        }
    }
    Ok(())
}
