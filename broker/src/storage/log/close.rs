//! Closing a log: everything on stable storage, and the proof for the clean marker.

use highwater_protocol::ids::{Offset, TopicPartition};

use super::Log;
use crate::storage::error::Error;

/// A log that was closed with everything on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Whose log it was.
    pub partition: TopicPartition,
    /// Its generation.
    pub log_generation: u64,
    /// Where it ended.
    pub log_end: Offset,
}

impl Log {
    /// Flushes everything and ends the log. Blocks on the disk.
    ///
    /// # Errors
    /// When flushing fails or has failed: the log is not named in the clean marker then, and is recovered at the next
    /// start as after a crash.
    pub fn close(mut self) -> Result<Closed, Error> {
        self.sync_all()?;
        self.take_in_discovered();
        self.shared.structure.finish(
            &**self.store.file_system(),
            self.shared.partition,
            &self.shared.directory,
        )?;
        Ok(Closed {
            partition: self.shared.partition,
            log_generation: self.log_generation,
            log_end: self.log_end,
        })
    }

    /// Takes the log out of flush rounds and flushes its files here. What a round in flight reports is still true, but
    /// void.
    pub(super) fn sync_all(&mut self) -> Result<(), Error> {
        if self.suspect {
            return Err(Error::Suspect(self.shared.partition));
        }
        let unsynced = {
            let mut state = self.shared.flush.lock();
            if state.stopped {
                return Err(Error::Suspect(self.shared.partition));
            }
            state.stopped = true;
            state.files.clone()
        };
        for file in &unsynced {
            file.file.sync().map_err(Error::io("sync segment", &file.segment.path))?;
            if let Some(sealing) = &file.sealing {
                self.shared.structure.list(sealing);
            }
        }
        Ok(())
    }
}
