//! Starting over: the whole log is replaced by an empty one further on.

use std::collections::VecDeque;
use std::sync::Arc;

use highwater_broker_core::log::cleaning::CleanState;
use highwater_broker_core::log::manifest::{EpochStart, Location, SealedSegment, start_epochs_at};
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_broker_core::producer::{Binding, ProducerTable, encode_file};
use highwater_protocol::ids::Offset;

use super::Log;
use crate::storage::error::Error;
use crate::storage::files;

impl Log {
    /// Replaces the log by an empty one that starts at `log_start`, with the epochs before it (oldest first) and the
    /// producers that were known there (`ProducerTable::encode`; empty: none). Raises the log generation. When it returns
    /// that is on stable storage, and the old files are on their way to the trash; bytes that were handed out stay
    /// readable. Interrupted by a power cut, the log is the old one or the new one. Blocks on the disk.
    ///
    /// # Errors
    /// When `producers` is damaged, nothing has changed. When writing fails the log is suspect, and is the old one until it
    /// was verified.
    pub fn reset(
        &mut self,
        log_start: Offset,
        epochs: Vec<EpochStart>,
        producers: &[u8],
    ) -> Result<(), Error> {
        self.store.check_open()?;
        let partition = self.shared.partition;
        let mut table =
            ProducerTable::decode(producers).map_err(|error| Error::BadSnapshot { partition, error })?;
        table.set_expiry(self.config.producer_expiry);
        // What stands for everything before: a segment without bytes, that has a snapshot of producers.
        let before = SealedSegment {
            name: SegmentName { serial: self.next_serial, base_offset: log_start },
            end_offset: log_start,
            length: 0,
            checksum: crc32fast::hash(producers),
            max_timestamp: i64::MIN,
            first_append_time: table.time(),
            last_append_time: table.time(),
            location: Location::Local,
        };
        let fs = Arc::clone(self.store.file_system());
        let snapshot = encode_file(Binding::from(&before), &table.encode());
        files::write_and_rename(&*fs, &self.shared.directory, &before.name.producers_name(), &snapshot)?;
        self.next_serial += 1;
        // Rounds in flight are void from here on.
        self.shared.flush.lock().stopped = true;
        self.tail.clear();
        let (generation, next_serial) = (self.log_generation + 1, self.next_serial);
        let manifest_epochs = epochs.clone();
        let written = self.shared.structure.change_now(&*fs, partition, &self.shared.directory, |manifest| {
            manifest.log_generation = generation;
            manifest.log_start = log_start;
            manifest.next_serial = next_serial;
            manifest.suspect = false;
            manifest.segments.clear();
            manifest.holes.clear();
            manifest.epochs = manifest_epochs;
            manifest.before = Some(before);
            manifest.producers_from = Offset::ZERO;
            manifest.cleaned = CleanState::default();
        });
        if let Err(error) = written {
            self.suspect = true;
            return Err(error);
        }
        self.start_over(before, epochs, table, generation);
        tracing::warn!(%partition, %log_start, "the log was reset: it starts over where its leader's starts");
        Ok(())
    }

    /// The manifest of the new log is durable.
    fn start_over(
        &mut self,
        before: SealedSegment,
        mut epochs: Vec<EpochStart>,
        table: ProducerTable,
        generation: u64,
    ) {
        let log_start = before.end_offset;
        let active = self.active.take().map(|active| active.file.name);
        let dead: Vec<SegmentName> =
            std::mem::take(&mut self.sealed).iter().map(|segment| segment.entry.name).chain(active).collect();
        let snapshots = dead.iter().copied().chain(self.before.map(|before| before.name));
        let snapshots: Vec<_> = snapshots.map(|name| self.removal(name.producers_name())).collect();
        let removals = dead.iter().flat_map(|name| self.removals(name)).chain(snapshots).collect();
        start_epochs_at(&mut epochs, log_start);
        self.changed_below_end(Offset::ZERO);
        self.looked_upto = Offset::ZERO;
        self.sealed = VecDeque::new();
        self.before = Some(before);
        self.holes.clear();
        self.new_holes.clear();
        self.shared.discovered.lock().clear();
        self.epochs = epochs;
        self.log_start = log_start;
        self.log_end = log_start;
        self.flushed_end = log_start;
        self.durable_end = log_start;
        self.last_append_time = table.time();
        self.producers = table;
        self.log_generation = generation;
        self.suspect = false;
        self.shared.reset(generation, log_start);
        self.shared.structure.change(removals, |_| {});
        self.start_structure_job();
    }
}
