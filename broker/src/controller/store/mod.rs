//! What consensus keeps: log, vote and snapshot, in one database file in the data directory.
//!
//! Every method that may touch the disk runs on a blocking thread of the controller's own runtime.

mod backend;
mod log;
mod machine;
mod offline;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use highwater_protocol::ids::{DirectoryId, NodeId};
use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::consensus::{LogId, StoreFailure};
use crate::storage::file_system::FileSystem;
use backend::Backend;

pub(crate) use log::RaftLog;
pub(crate) use machine::{Machine, Shown};
pub use offline::offline_image;

/// The database file, in the data directory.
pub(crate) const FILE: &str = "controller";
/// What it is called until it is complete.
const TEMPORARY: &str = "controller.tmp";

/// Memory for pages of the database.
const CACHE_BYTES: usize = 1 << 20;

/// Entries by index.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Everything of which there is one.
const STATE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("state");

const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const SNAPSHOT_META: &str = "snapshot_meta";
const SNAPSHOT: &str = "snapshot";
const FORMATTED: &str = "formatted";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Database(#[from] Box<redb::Error>),
    #[error("{what} of the controller's state does not decode: {source}")]
    Decode { what: &'static str, source: rmp_serde::decode::Error },
    #[error("{what} does not encode: {source}")]
    Encode { what: &'static str, source: rmp_serde::encode::Error },
    #[error("a flush has failed: check the disk and start the broker again")]
    FlushFailed,
    #[error("the thread that writes the controller's state ended")]
    Gone,
}

impl StoreError {
    /// Whether opening the store again cannot help.
    pub(crate) const fn is_final(&self) -> bool {
        matches!(self, Self::FlushFailed)
    }
}

macro_rules! from_database {
    ($($error:ty),*) => {
        $(impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        })*
    };
}
from_database!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

/// A listed voter as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct ListedVoter {
    pub(crate) node_id: NodeId,
    pub(crate) address: String,
}

/// What a data directory was formatted for: on stable storage before anybody is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Formatted {
    /// The broker whose directory it is.
    pub(crate) node_id: NodeId,
    /// The directory's id: a copied database is found out.
    pub(crate) directory_id: DirectoryId,
    /// The list of voters, sorted; empty: it joins.
    #[serde(default)]
    pub(crate) voters: Vec<ListedVoter>,
}

/// The database, shared by everything that reads and writes it.
#[derive(Clone)]
pub(crate) struct RaftStore {
    shared: Arc<Shared>,
}

struct Shared {
    database: Database,
    /// Set once and for all by a flush that failed: what was written may be gone although it can still be read.
    flush_failed: Arc<AtomicBool>,
    /// The last position that is known to be committed; written along with the next thing that has to be written.
    committed: Mutex<Option<LogId>>,
}

/// Tells whether a store is still open.
#[derive(Default)]
pub(crate) struct OpenStore(Weak<Shared>);

impl OpenStore {
    pub(crate) fn is_open(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl std::fmt::Debug for RaftStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftStore").finish_non_exhaustive()
    }
}

impl RaftStore {
    /// Opens the database of a data directory, or makes one. `flush_failed` outlives it: a store that failed to flush is
    /// not opened again. Blocks on the disk.
    pub(crate) fn open(
        fs: &dyn FileSystem,
        root: &Path,
        flush_failed: Arc<AtomicBool>,
    ) -> Result<Self, StoreError> {
        if flush_failed.load(Ordering::Acquire) {
            return Err(StoreError::FlushFailed);
        }
        let path = root.join(FILE);
        let database = if fs.exists(&path)? {
            open_database(Backend::open(fs, &path, Arc::clone(&flush_failed))?)?
        } else {
            make_database(fs, root, &flush_failed)?
        };
        let store = Self { shared: Arc::new(Shared { database, flush_failed, committed: Mutex::default() }) };
        *store.shared.committed.lock() = store.get(COMMITTED)?;
        Ok(store)
    }

    /// Tells when nobody has the database any more: it must not be opened twice.
    pub(crate) fn watch(&self) -> OpenStore {
        OpenStore(Arc::downgrade(&self.shared))
    }

    /// What the directory was formatted for, if it was. Blocks on the disk.
    pub(crate) fn formatted(&self) -> Result<Option<Formatted>, StoreError> {
        self.get(FORMATTED)
    }

    /// Notes what the directory is for. On stable storage when this returns; blocks.
    pub(crate) fn format(&self, formatted: &Formatted) -> Result<(), StoreError> {
        self.write(false, |writing| writing.put(FORMATTED, formatted))
    }

    /// One value of the table of state.
    fn get<T: DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>, StoreError> {
        let table = self.shared.database.begin_read()?.open_table(STATE)?;
        let Some(bytes) = table.get(name)? else { return Ok(None) };
        decode(name, bytes.value()).map(Some)
    }

    fn bytes(&self, name: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        let table = self.shared.database.begin_read()?.open_table(STATE)?;
        Ok(table.get(name)?.map(|bytes| bytes.value().to_vec()))
    }

    /// Writes, and returns when it is on stable storage. `careful`: in two phases, for what must not even be undone by a
    /// crash in the middle of a crash's repair.
    fn write<T>(
        &self,
        careful: bool,
        change: impl FnOnce(&mut Writing<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.shared.flush_failed.load(Ordering::Acquire) {
            return Err(StoreError::FlushFailed);
        }
        let mut transaction = self.shared.database.begin_write()?;
        transaction.set_two_phase_commit(careful);
        let committed = *self.shared.committed.lock();
        let result = {
            let mut writing =
                Writing { state: transaction.open_table(STATE)?, log: transaction.open_table(LOG)? };
            if let Some(committed) = committed {
                writing.put(COMMITTED, &committed)?;
            }
            change(&mut writing)?
        };
        transaction.commit()?;
        Ok(result)
    }

    /// Runs `job` on a blocking thread of the runtime that this is called in.
    async fn blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || job(&store)).await.unwrap_or(Err(StoreError::Gone))
    }
}

/// The tables, while they are written.
struct Writing<'a> {
    state: redb::Table<'a, &'static str, &'static [u8]>,
    log: redb::Table<'a, u64, &'static [u8]>,
}

impl Writing<'_> {
    fn put<T: Serialize>(&mut self, name: &'static str, value: &T) -> Result<(), StoreError> {
        let bytes = encode(name, value)?;
        self.state.insert(name, bytes.as_slice())?;
        Ok(())
    }

    fn get<T: DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.state.get(name)? else { return Ok(None) };
        decode(name, bytes.value()).map(Some)
    }
}

fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, StoreError> {
    rmp_serde::from_slice(bytes).map_err(|source| StoreError::Decode { what, source })
}

fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, StoreError> {
    rmp_serde::to_vec_named(value).map_err(|source| StoreError::Encode { what, source })
}

fn open_database(backend: Backend) -> Result<Database, StoreError> {
    Ok(Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)?)
}

/// A new database gets its name when it is complete: a crash before leaves nothing that has to be understood.
fn make_database(
    fs: &dyn FileSystem,
    root: &Path,
    flush_failed: &Arc<AtomicBool>,
) -> Result<Database, StoreError> {
    let temporary = root.join(TEMPORARY);
    let backend = Backend::create(fs, &temporary, Arc::clone(flush_failed))?;
    let made = backend.made();
    let database = open_database(backend)?;
    let transaction = database.begin_write()?;
    transaction.open_table(LOG)?;
    transaction.open_table(STATE)?;
    transaction.commit()?;
    made.sync()?;
    fs.rename(&temporary, &root.join(FILE))?;
    fs.sync_directory(root)?;
    Ok(database)
}

/// What the engine is told when the store fails.
fn failure(
    make: impl FnOnce(openraft::AnyError) -> openraft::StorageIOError<u64>,
    error: &StoreError,
) -> StoreFailure {
    tracing::error!(%error, "the controller's state cannot be read or written");
    make(openraft::AnyError::new(error)).into()
}
