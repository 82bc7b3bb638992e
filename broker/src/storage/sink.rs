//! How a log's owner learns what has been flushed.

use std::io;
use std::sync::Arc;

use highwater_protocol::ids::Offset;

/// Takes completions of flush rounds for one log.
pub trait FlushSink: Send + Sync + 'static {
    /// Called on any thread, also within `Log::append`; must not block. The owner passes `Flushed` to `Log::flushed` and
    /// answers `Failed` with `Log::mark_suspect`.
    fn flush_done(&self, outcome: FlushOutcome);
}

impl FlushOutcome {
    /// The generation of the log when the round began.
    #[must_use]
    pub const fn log_generation(&self) -> u64 {
        match self {
            Self::Flushed { log_generation, .. } | Self::Failed { log_generation, .. } => *log_generation,
        }
    }
}

/// What became of a log's part of a flush round.
#[derive(Debug, Clone)]
pub enum FlushOutcome {
    /// Everything below `upto` is on stable storage, the names of its files included.
    Flushed {
        /// The generation of the log when the round began: another one now makes this void.
        log_generation: u64,
        /// The log end when the round began.
        upto: Offset,
    },
    /// What was written since the last flush may be lost although it can still be read. The log takes part in no further
    /// round until it has been verified.
    Failed {
        /// The generation of the log when the round began.
        log_generation: u64,
        /// The system's answer.
        error: Arc<io::Error>,
    },
}
