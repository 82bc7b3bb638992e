//! Log and vote.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};

use openraft::storage::{LogFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, StorageIOError};
use redb::{ReadableDatabase, ReadableTable};

use super::{LOG, PURGED, RaftStore, StoreError, VOTE, decode, encode, failure};
use crate::controller::consensus::{Entry, LogId, StoreFailure, Types, Vote};

/// Bytes of entries that are sent to a member at once, unless one alone is larger.
const SEND_BYTES_MAX: usize = 1 << 20;

/// The log of consensus.
#[derive(Debug, Clone)]
pub(crate) struct RaftLog {
    store: RaftStore,
}

impl RaftLog {
    pub(crate) const fn new(store: RaftStore) -> Self {
        Self { store }
    }

    async fn read(
        &self,
        range: (Bound<u64>, Bound<u64>),
        bytes_max: usize,
    ) -> Result<Vec<Entry>, StoreFailure> {
        self.store
            .blocking(move |store| read(store, range, bytes_max))
            .await
            .map_err(|error| failure(StorageIOError::read_logs, &error))
    }
}

pub(super) fn read(
    store: &RaftStore,
    range: (Bound<u64>, Bound<u64>),
    bytes_max: usize,
) -> Result<Vec<Entry>, StoreError> {
    let table = store.shared.database.begin_read()?.open_table(LOG)?;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for found in table.range(range)? {
        let (_, value) = found?;
        bytes += value.value().len();
        if bytes > bytes_max && !entries.is_empty() {
            break;
        }
        entries.push(decode_entry(value.value())?);
    }
    Ok(entries)
}

fn decode_entry(bytes: &[u8]) -> Result<Entry, StoreError> {
    decode("an entry of the log", bytes)
}

impl RaftLogReader<Types> for RaftLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StoreFailure> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        self.read(range, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StoreFailure> {
        self.read((Bound::Included(start), Bound::Excluded(end)), SEND_BYTES_MAX).await
    }
}

impl RaftLogStorage<Types> for RaftLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StoreFailure> {
        let state = self.store.blocking(|store| {
            let purged: Option<LogId> = store.get(PURGED)?;
            let table = store.shared.database.begin_read()?.open_table(LOG)?;
            let last = match table.last()? {
                Some((_, value)) => Some(decode_entry(value.value())?.log_id),
                None => purged,
            };
            Ok(LogState { last_purged_log_id: purged, last_log_id: last })
        });
        state.await.map_err(|error| failure(StorageIOError::read_logs, &error))
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StoreFailure> {
        let vote = *vote;
        let saved = self.store.blocking(move |store| store.write(true, |writing| writing.put(VOTE, &vote)));
        saved.await.map_err(|error| failure(StorageIOError::write_vote, &error))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StoreFailure> {
        let vote = self.store.blocking(|store| store.get(VOTE));
        vote.await.map_err(|error| failure(StorageIOError::read_vote, &error))
    }

    /// Costs nothing: it is written with the next entry or vote, and without it a start only shows an older image until
    /// the leader is heard.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StoreFailure> {
        *self.store.shared.committed.lock() = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StoreFailure> {
        Ok(*self.store.shared.committed.lock())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StoreFailure>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let written = self.store.blocking(move |store| {
            store.write(false, |writing| {
                for entry in &entries {
                    writing
                        .log
                        .insert(entry.log_id.index, encode("an entry of the log", entry)?.as_slice())?;
                }
                Ok(())
            })
        });
        match written.await {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(std::io::Error::other(error.to_string())));
                Err(failure(StorageIOError::write_logs, &error))
            }
        }
    }

    async fn truncate(&mut self, from: LogId) -> Result<(), StoreFailure> {
        let cut = self.store.blocking(move |store| {
            store.write(false, |writing| Ok(writing.log.retain_in(from.index.., |_, _| false)?))
        });
        cut.await.map_err(|error| failure(StorageIOError::write_logs, &error))
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StoreFailure> {
        let purged = self.store.blocking(move |store| {
            store.write(false, |writing| {
                writing.put(PURGED, &upto)?;
                Ok(writing.log.retain_in(..=upto.index, |_, _| false)?)
            })
        });
        purged.await.map_err(|error| failure(StorageIOError::write_logs, &error))
    }
}
