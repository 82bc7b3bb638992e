//! Finding offsets by time.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use highwater_broker_core::log::index::batch_max_timestamp;
use highwater_protocol::batch::{BatchHeader, Records};
use highwater_protocol::ids::Offset;

use super::error::{Error, ReadError};
use super::read_plan::{Walk, Window};
use super::segment::SegmentFile;
use super::shared::LogShared;
use super::store::Store;
use super::verify;

/// A search that does not need its log any more.
#[derive(Debug)]
pub struct TimePlan {
    pub(super) store: Arc<Store>,
    pub(super) log: Arc<LogShared>,
    pub(super) map_bytes: u64,
    pub(super) suspect: bool,
    pub(super) timestamp: i64,
    pub(super) upto: Offset,
    /// Segments that may have such a record, oldest first.
    pub(super) searches: Vec<TimeSearch>,
}

/// A segment to search.
#[derive(Debug)]
pub(super) struct TimeSearch {
    pub(super) file: Arc<SegmentFile>,
    pub(super) window: Window,
}

/// The first record at or after a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundRecord {
    /// Its offset.
    pub offset: Offset,
    /// Its timestamp in milliseconds since the Unix epoch.
    pub timestamp: i64,
}

impl TimePlan {
    /// Searches. May wait for the disk. Records in corrupt ranges are passed over.
    ///
    /// # Errors
    /// When reading fails.
    pub fn execute(&self) -> Result<Option<FoundRecord>, ReadError> {
        if self.suspect {
            return Err(ReadError::Suspect);
        }
        for search in &self.searches {
            if let Some(found) = self.search(search)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Like `execute`, on an I/O thread. Dropping the future leaves the search to itself.
    pub fn run(self) -> impl Future<Output = Result<Option<FoundRecord>, ReadError>> + Send {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let store = Arc::clone(&self.store);
        store.file_system().spawn_io(Box::new(move || {
            // The caller may be gone; its answer goes with it.
            drop(sender.send(self.execute()));
        }));
        async move { receiver.await.unwrap_or(Err(ReadError::Io(Error::Closed))) }
    }

    fn search(&self, search: &TimeSearch) -> Result<Option<FoundRecord>, ReadError> {
        let io = |error| ReadError::Io(Error::io("read segment", &search.file.path)(error));
        let (index, start, limit) = match search.window {
            Window::Active { start, limit, .. } => (None, start, limit),
            Window::Sealed(entry) => {
                let index = verify::index_of(&self.store, &self.log, &search.file, &entry)?;
                let start = index.floor_time(self.timestamp).map_or(0, |entry| entry.position);
                (Some((index, entry)), start, entry.length)
            }
        };
        let available = match &index {
            Some(_) => {
                let file = self.store.cache().file(&search.file).map_err(io)?;
                limit.min(file.length().map_err(io)?).max(start)
            }
            None => limit,
        };
        let wanted = if index.is_some() { limit } else { self.map_bytes };
        let mapping = self.store.cache().mapping(&search.file, limit, wanted).map_err(io)?;
        let mut verified_end = start;
        let mut walk = Walk::new(&mapping, &search.file, start, limit);
        loop {
            // Verified piece by piece, ahead of the walk: a bad header must not lead it astray.
            if walk.position >= verified_end && verified_end < limit {
                let piece = walk.position..limit.min(walk.position + PIECE);
                verified_end = piece.end;
                mapping.populate(piece.start..piece.end.min(available).max(piece.start)).map_err(io)?;
                if let Some((index, entry)) = &index {
                    verify::verify(&self.log, &search.file, entry, index, &mapping, piece, available)
                        .map_err(io)?;
                    walk = Walk::new(&mapping, &search.file, walk.position, limit);
                }
            }
            let Some((position, header)) = walk.next_header().map_err(io)? else { return Ok(None) };
            if header.leader.base_offset >= self.upto {
                return Ok(None);
            }
            if batch_max_timestamp(&header) >= self.timestamp {
                let range = position..position + u64::from(header.batch_length);
                mapping.populate(range.clone()).map_err(io)?;
                let batch = Arc::clone(&mapping).slice(range);
                if let Some(found) = self.first_record(header, &batch) {
                    return Ok(Some(found));
                }
            }
        }
    }

    fn first_record(&self, header: BatchHeader, batch: &Bytes) -> Option<FoundRecord> {
        // What a producer compressed badly is a matter between it and its consumers: pass over it.
        let records = Records::open(header, batch).ok()?;
        let record = records
            .iter()
            .map_while(Result::ok)
            .find(|record| record.timestamp >= self.timestamp && record.offset < self.upto)?;
        Some(FoundRecord { offset: record.offset, timestamp: record.timestamp })
    }
}

/// Bytes that are made resident and verified at a time.
const PIECE: u64 = 1 << 20;
