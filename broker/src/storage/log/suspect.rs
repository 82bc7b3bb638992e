//! After a failed flush: what can be read may not be on the disk.

use highwater_protocol::ids::Offset;

use super::Log;
use super::scan_files::scan_files;
use crate::storage::error::Error;

/// What verification past the page cache found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Where the log ends now, all of it on the disk.
    pub log_end: Offset,
    /// How many offsets were lost at its end. None of them was reported as flushed.
    pub offsets_lost: u64,
}

impl Log {
    /// Refuses reads and appends until the log has been verified, and notes that on the disk, so that a restart verifies
    /// it too. Blocks on the disk.
    ///
    /// # Errors
    /// When the note cannot be written; the log refuses all the same.
    pub fn mark_suspect(&mut self) -> Result<(), Error> {
        self.suspect = true;
        self.tail.clear();
        self.shared.flush.lock().stopped = true;
        tracing::error!(
            partition = %self.shared.partition,
            "a flush failed: the log is verified from the disk before it serves again"
        );
        self.store.change_record(|record| record.flush_failed = true)?;
        let fs = self.store.file_system();
        self.shared.structure.change_now(&**fs, self.shared.partition, &self.shared.directory, |manifest| {
            manifest.suspect = true
        })
    }

    /// Reads from the disk itself, past the page cache, what was written since the last flush, and cuts the log to what
    /// is there. Then it serves again, in a new generation and a new file. The failed flush is not repeated. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// When the disk cannot be read or written: the log stays suspect; try again later.
    pub fn verify_suspect(&mut self) -> Result<Verified, Error> {
        if !self.suspect {
            return Ok(Verified { log_end: self.log_end, offsets_lost: 0 });
        }
        let unsynced: Vec<_> =
            self.shared.flush.lock().files.iter().map(|file| std::sync::Arc::clone(&file.segment)).collect();
        let end = match unsynced.first() {
            None => self.log_end,
            Some(first) => {
                let start = first.name.base_offset;
                let mut epochs = self.epochs.clone();
                highwater_broker_core::log::manifest::truncate_epochs(&mut epochs, start);
                let scan = scan_files(&self.store, &unsynced, start, &epochs, None, true)?;
                scan.good_end(start).min(self.log_end)
            }
        };
        let offsets_lost = self.log_end.count_since(end);
        let log_end = self.cut_at(end, true)?;
        tracing::warn!(
            partition = %self.shared.partition,
            %log_end,
            offsets_lost,
            "the log was verified from the disk and serves again"
        );
        Ok(Verified { log_end, offsets_lost })
    }
}
