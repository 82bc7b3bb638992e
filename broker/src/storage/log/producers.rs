//! What a log knows about idempotent producers: kept with every append, found again when it is opened or cut.
//!
//! Beside each sealed segment stands a snapshot of what was known at its end. The newest usable one and the batches after
//! it are the whole truth; where a snapshot is missing or damaged an earlier one does, at the price of reading more.

use std::path::Path;
use std::time::Duration;

use highwater_broker_core::log::manifest::SealedSegment;
use highwater_broker_core::log::scan::{Depth, Found, Scanner};
use highwater_broker_core::producer::{Binding, ProducerTable, decode_file, encode_file};
use highwater_protocol::batch::BatchHeader;
use highwater_protocol::ids::{LeaderEpoch, Offset, TopicPartition};

use super::Log;
use crate::storage::error::Error;
use crate::storage::file_system::{File, FileSystem, OpenMode};
use crate::storage::files::{self, FileBytes};

/// Bytes read at a time.
const READ_AHEAD: usize = 2 << 20;

/// Where a log's segments are, and which there are.
pub(in crate::storage) struct Place<'a> {
    pub(in crate::storage) fs: &'a dyn FileSystem,
    pub(in crate::storage) directory: &'a Path,
    pub(in crate::storage) partition: TopicPartition,
    /// When producers are forgotten.
    pub(in crate::storage) expiry: Duration,
}

/// A table as of the end of the last of some segments.
pub(in crate::storage) struct Rebuilt {
    pub(in crate::storage) table: ProducerTable,
    /// Segments were read for it: the last one has no usable snapshot.
    pub(in crate::storage) replayed: bool,
}

impl Log {
    /// What is known about the producers of this log. Forgets by the time of the log alone.
    #[must_use]
    pub const fn producers(&self) -> &ProducerTable {
        &self.producers
    }

    /// What was known about producers at the log start, for a replica that starts over there. Blocks on the disk.
    ///
    /// # Errors
    /// When the snapshot cannot be read. A damaged one is as good as none, which is told in the broker's log.
    pub fn producers_at_start(&self) -> Result<Vec<u8>, Error> {
        let place = self.place();
        let table = match &self.before {
            Some(before) => place.load(before)?,
            None => None,
        };
        Ok(table.unwrap_or_default().encode())
    }

    pub(super) fn place(&self) -> Place<'_> {
        Place {
            fs: &**self.store.file_system(),
            directory: &self.shared.directory,
            partition: self.shared.partition,
            expiry: self.config.producer_expiry,
        }
    }

    /// The bytes of the snapshot file of a segment at the end of the log as it is.
    pub(super) fn snapshot(&self, entry: &SealedSegment) -> Vec<u8> {
        encode_file(Binding::from(entry), &self.producers.encode())
    }
}

impl Place<'_> {
    /// What was known at the end of the last of `entries`. `before` and `from`: as in the manifest.
    pub(in crate::storage) fn rebuild(
        &self,
        entries: &[SealedSegment],
        before: Option<&SealedSegment>,
        from: Offset,
    ) -> Result<Rebuilt, Error> {
        let mut table = None;
        let mut first = 0;
        for (number, entry) in entries.iter().enumerate().rev() {
            // Below there are no producers, so there is nothing to look for.
            if entry.end_offset <= from {
                break;
            }
            table = self.load(entry)?;
            if table.is_some() {
                first = number + 1;
                break;
            }
        }
        if let (None, Some(before)) = (&table, before) {
            table = self.load(before)?;
        }
        let mut table = table.unwrap_or_else(|| ProducerTable::new(self.expiry));
        let mut replayed = false;
        for entry in &entries[first..] {
            if entry.end_offset > from {
                replayed = true;
                self.replay_segment(entry, &mut table)?;
            }
            table.note_time(entry.last_append_time);
        }
        Ok(Rebuilt { table, replayed })
    }

    /// The snapshot at the end of a segment, if there is a usable one.
    pub(super) fn load(&self, entry: &SealedSegment) -> Result<Option<ProducerTable>, Error> {
        let path = self.directory.join(entry.name.producers_name());
        let Some(bytes) = files::read(self.fs, &path)? else { return Ok(None) };
        match decode_file(&bytes) {
            Ok((binding, mut table)) if binding == Binding::from(entry) => {
                table.set_expiry(self.expiry);
                Ok(Some(table))
            }
            // Of the segment as it was before it was cut.
            Ok(_) => Ok(None),
            Err(error) => {
                tracing::warn!(
                    partition = %self.partition, path = %path.display(), %error,
                    "a snapshot of producers is damaged: an earlier one and the batches after it are read instead"
                );
                Ok(None)
            }
        }
    }

    /// Sees to a snapshot at the end of the last of the segments that retention lets go: from then on it is all that is
    /// left of what they say about producers. `before` and `from`: as in the manifest that still lists them.
    pub(in crate::storage) fn keep_last(
        &self,
        gone: &[SealedSegment],
        before: Option<&SealedSegment>,
        from: Offset,
    ) -> Result<(), Error> {
        let Some(last) = gone.last() else { return Ok(()) };
        let rebuilt = self.rebuild(gone, before, from)?;
        let there = !rebuilt.replayed && last.end_offset > from && self.load(last)?.is_some();
        if there {
            return Ok(());
        }
        let bytes = encode_file(Binding::from(last), &rebuilt.table.encode());
        files::write_and_rename(self.fs, self.directory, &last.name.producers_name(), &bytes)
    }

    /// Leaves a snapshot beside a segment, for the next start. Without it that start reads more.
    pub(super) fn leave(&self, entry: &SealedSegment, table: &ProducerTable) {
        let bytes = encode_file(Binding::from(entry), &table.encode());
        let written = files::write_and_rename(self.fs, self.directory, &entry.name.producers_name(), &bytes);
        if let Err(error) = written {
            tracing::info!(partition = %self.partition, %error, "no snapshot of producers: more is read at the next start");
        }
    }

    fn replay_segment(&self, entry: &SealedSegment, table: &mut ProducerTable) -> Result<(), Error> {
        let path = self.directory.join(entry.name.to_string());
        let file = match self.fs.open(&path, OpenMode::Read) {
            Ok(file) => file,
            // A missing segment is a hole, which was reported.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("open segment", &path)(error)),
        };
        let length = file.length().map_err(Error::io("measure segment", &path))?.min(entry.length);
        let apply = |header: &BatchHeader| table.apply(header);
        replay(&*file, self.partition, 0..length, entry.name.base_offset, false, apply)
            .map_err(Error::io("read segment", &path))
    }
}

/// Goes over the good batches in a stretch of a segment. `start`: the offset that is expected first.
pub(super) fn replay(
    file: &dyn File,
    partition: TopicPartition,
    positions: std::ops::Range<u64>,
    start: Offset,
    past_cache: bool,
    mut apply: impl FnMut(&BatchHeader),
) -> std::io::Result<()> {
    let source = FileBytes::new(file, positions.end, past_cache, READ_AHEAD);
    // Who sent a batch is in the producer's part of its header, which the second checksum covers.
    let mut scanner = Scanner::new(source, partition, Depth::Full, start, LeaderEpoch(0)).within(positions);
    while let Some(found) = scanner.next_found()? {
        if let Found::Batch { header, .. } = found {
            apply(&header);
        }
    }
    Ok(())
}
