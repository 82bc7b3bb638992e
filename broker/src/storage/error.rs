//! What can go wrong in storage.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use highwater_broker_core::log::envelope::FormatError;
use highwater_protocol::ids::{LeaderEpoch, Offset, TopicPartition};

/// Why an operation on a data directory or a log failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{what} {path}: {error}", path = path.display())]
    Io {
        /// What was tried, present tense.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        error: Arc<io::Error>,
    },
    /// Another process uses the data directory.
    #[error("data directory {path} is in use by another process: stop it, or choose another directory", path = .0.display())]
    Locked(PathBuf),
    /// A file that must be good is not.
    #[error("{path}: {error}; restore it from a copy, or remove the directory to start over as a new broker", path = path.display())]
    BadFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        error: FormatError,
    },
    /// The name of a state file has other characters than a-z, 0-9, - and _.
    #[error("'{0}' cannot be the name of a state file")]
    BadName(String),
    /// The store was closed.
    #[error("the data directory is closed")]
    Closed,
    /// A log of this partition is open.
    #[error("the log of {0} is open")]
    LogOpen(TopicPartition),
    /// What another replica knows of producers came damaged.
    #[error("the snapshot of producers for {partition} is damaged: {error}; ask for it again")]
    BadSnapshot {
        /// Of which partition.
        partition: TopicPartition,
        /// What is wrong.
        error: FormatError,
    },
    /// A flush failed: the log has to be verified past the page cache first.
    #[error("the log of {0} is suspect after a failed flush: it is verified before it serves again")]
    Suspect(TopicPartition),
}

impl Error {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { what, path: path.to_owned(), error: Arc::new(error) }
    }

    /// Whether there is no room on the disk.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { error, .. } if is_full(error))
    }
}

/// Whether an error says that there is no room on the disk.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Why batches were not appended. Nothing of the call counts, unless `Stuck` says otherwise.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// No room, or less than the reserve. Retry when space returns.
    #[error("the disk is full: {path}; free some space, the broker goes on by itself", path = .0.display())]
    Full(PathBuf),
    /// Writing failed; what was written is undone, durably.
    #[error(transparent)]
    Io(Error),
    /// Writing failed, and what was written could not be undone: it may or may not be there after a restart. Appends go
    /// on in a new file.
    #[error("an append to {path} failed in the middle and could not be undone: {error}", path = path.display())]
    Stuck {
        /// The segment.
        path: PathBuf,
        /// The system's answer.
        error: Arc<io::Error>,
    },
    /// A flush failed: the log has to be verified past the page cache first.
    #[error("the log is suspect after a failed flush: it is verified before it serves again")]
    Suspect,
    /// The store was closed.
    #[error("the data directory is closed")]
    Closed,
}

/// Why a corrupt range was not filled.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// No corrupt range starts there (any more).
    #[error("no corrupt range starts at offset {0}")]
    NoHole(Offset),
    /// The batches are others than are missing.
    #[error(
        "a batch at offset {found} of leader epoch {epoch} does not fit where offset {expected} is missing"
    )]
    Unfit {
        /// What is missing.
        expected: Offset,
        /// What came.
        found: Offset,
        /// Its epoch.
        epoch: LeaderEpoch,
    },
    /// There is no whole batch among them that ends in the range.
    #[error("no whole batch came for the corrupt range {start} to {end}")]
    TooLittle {
        /// Where it starts.
        start: Offset,
        /// Where it, or the segment, ends.
        end: Offset,
    },
    /// The segment is not on stable storage yet. Try again in a moment.
    #[error("the segment with the corrupt range is not sealed and flushed yet")]
    Later,
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] Error),
}

/// Why offsets cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Before the log start or after the log end.
    #[error("offset {offset} is out of range: the log holds {log_start} to {log_end}")]
    OutOfRange {
        /// What was asked for.
        offset: Offset,
        /// The first offset.
        log_start: Offset,
        /// The next offset to write.
        log_end: Offset,
    },
    /// Their bytes are corrupt. Reading can go on at `end`.
    #[error("offsets {start} to {end} are corrupt on this replica: go on at {end}")]
    CorruptRange {
        /// The first that cannot be read.
        start: Offset,
        /// The next that may be read.
        end: Offset,
    },
    /// A flush failed: the log has to be verified past the page cache first.
    #[error("the log is suspect after a failed flush: it is verified before it serves again")]
    Suspect,
    /// Reading failed. A later attempt may succeed.
    #[error(transparent)]
    Io(#[from] Error),
}
