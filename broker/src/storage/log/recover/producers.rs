//! What recovery finds out about producers, and what it does with files that belong to a damaged manifest.

use std::collections::BTreeSet;

use highwater_broker_core::log::manifest::{Location, SealedSegment};
use highwater_broker_core::log::recovery::{Decision, Piece};
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_broker_core::producer::{ProducerTable, decode_file};

use super::Recovery;
use crate::storage::error::Error;
use crate::storage::files;
use crate::storage::log::producers::replay;
use crate::storage::log::quarantine;
use crate::storage::log::scan_files::FilesScan;

impl Recovery<'_> {
    /// What is known about producers at the end of the sealed segments. `leave`: leaves a snapshot there if there is none.
    pub(super) fn sealed_producers(&self, leave: bool) -> Result<ProducerTable, Error> {
        let manifest = &self.manifest;
        let place = self.place();
        let rebuilt = place.rebuild(&manifest.segments, manifest.before.as_ref(), manifest.producers_from)?;
        let table = rebuilt.table;
        if let Some(last) = manifest.segments.last().filter(|_| leave && rebuilt.replayed) {
            place.leave(last, &table);
        }
        Ok(table)
    }

    /// What is known about producers at the end of what is kept.
    pub(super) fn kept_producers(
        &self,
        scan: &mut FilesScan,
        decision: &Decision,
    ) -> Result<ProducerTable, Error> {
        let cut = scan.pieces[decision.kept..].iter().any(|piece| matches!(piece, Piece::Run(_)));
        if let Some(table) = scan.producers.take().filter(|_| !cut) {
            return Ok(table);
        }
        // Good batches are cut off, so what they say about producers goes as well.
        let mut table = self.sealed_producers(false)?;
        for piece in &scan.pieces[..decision.kept] {
            let Piece::Run(run) = piece else { continue };
            let Some(file) = scan.files.get(run.file) else { continue };
            let apply = |header: &_| table.apply(header);
            let positions = run.positions.clone();
            let past_cache = self.manifest.suspect;
            replay(&*file.file, self.partition, positions, run.offsets.start, past_cache, apply)
                .map_err(Error::io("read segment", &file.segment.path))?;
        }
        Ok(table)
    }

    /// In a log whose manifest is damaged, gives repaired segments back the places of those that they stand for, so that
    /// they are scanned where they belong. One without a place is kept in quarantine.
    pub(super) fn adopt_repaired(
        &mut self,
        names: &BTreeSet<SegmentName>,
    ) -> Result<BTreeSet<SegmentName>, Error> {
        let mut repaired: Vec<SegmentName> = names.iter().copied().filter(SegmentName::is_repaired).collect();
        // In the order of the log. Of two that start at the same offset the older one is whole for sure.
        repaired.sort_by_key(|name| (name.base_offset, name.serial));
        let mut tail: BTreeSet<SegmentName> =
            names.iter().copied().filter(|name| !name.is_repaired()).collect();
        for name in repaired {
            let path = self.directory.join(name.to_string());
            let below = tail.iter().filter(|other| other.base_offset <= name.base_offset);
            let serial = below.map(|other| other.serial + 1).max().unwrap_or(0);
            let fits = tail.iter().all(|other| {
                other.base_offset < name.base_offset
                    || (other.base_offset > name.base_offset && other.serial > serial)
            });
            if !fits {
                quarantine::keep(self.fs, &self.directory, &path, &name.to_string())?;
                continue;
            }
            let as_tail = SegmentName { serial, ..name };
            self.fs
                .rename(&path, &self.directory.join(as_tail.to_string()))
                .map_err(Error::io("rename segment in", &self.directory))?;
            tail.insert(as_tail);
        }
        Ok(tail)
    }

    /// The snapshot at the log start, of a log whose manifest is damaged.
    pub(super) fn find_before(&self) -> Option<SealedSegment> {
        let mut found: Option<SealedSegment> = None;
        for name in &self.snapshots {
            let Some(segment) = SegmentName::parse_producers(name) else { continue };
            let Ok(Some(bytes)) = files::read(self.fs, &self.directory.join(name)) else { continue };
            let Ok((binding, table)) = decode_file(&bytes) else { continue };
            let newer = found.is_none_or(|before| before.name.serial < segment.serial);
            if binding.end_offset == self.manifest.log_start && newer {
                found = Some(SealedSegment {
                    name: segment,
                    end_offset: binding.end_offset,
                    length: binding.length,
                    checksum: binding.checksum,
                    max_timestamp: i64::MIN,
                    first_append_time: table.time(),
                    last_append_time: table.time(),
                    location: Location::Local,
                });
            }
        }
        found
    }

    /// Snapshots of producers that stand beside nothing.
    pub(super) fn dead_snapshots(&self) -> impl Iterator<Item = String> {
        let manifest = &self.manifest;
        let known: BTreeSet<SegmentName> =
            manifest.segments.iter().chain(&manifest.before).map(|segment| segment.name).collect();
        self.snapshots.iter().filter_map(move |file| {
            let name = SegmentName::parse_producers(file)?;
            (!known.contains(&name) && !manifest.is_tail(name)).then(|| file.clone())
        })
    }
}
