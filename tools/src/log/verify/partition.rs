//! Verifying one partition: sealed segments against its manifest, the unsealed tail against what is known of its end.

use std::ops::Range;

use highwater_broker_core::log::directory;
use highwater_broker_core::log::index::SparseIndex;
use highwater_broker_core::log::manifest::{Manifest, SealedSegment};
use highwater_broker_core::log::recovery::{self, Gap, Known, Piece, Run, Verdict};
use highwater_broker_core::log::scan::{Depth, Found, Scanner};
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_broker_core::producer::decode_file;
use highwater_protocol::batch::BatchHeader;
use highwater_protocol::ids::{LeaderEpoch, Offset};

use super::super::{FileBytes, PartitionPath, list, read_small};
use super::{Fault, Findings, Witnesses};
use crate::output::Progress;

/// Verifies a partition, or one segment of it.
pub(super) fn check(
    path: &PartitionPath,
    only: Option<SegmentName>,
    witnesses: &Witnesses,
    findings: &mut Findings,
    progress: &Progress,
) -> anyhow::Result<()> {
    findings.partitions += 1;
    let names = path.segments()?;
    let topic = witnesses.names.0.get(&path.partition.topic_id).cloned();
    let mut checking =
        Checking { path, topic, findings, progress, manifest: Manifest::default(), epoch: LeaderEpoch(0) };
    checking.read_manifest()?;
    let manifest = checking.manifest.clone();
    let wanted = |name: SegmentName| only.is_none_or(|only| only == name);
    let mut end = manifest.log_start;
    for sealed in &manifest.segments {
        if wanted(sealed.name) {
            if only.is_none() {
                checking.continuous(sealed, end);
            }
            checking.sealed(sealed, names.contains(&sealed.name))?;
        }
        end = end.max(sealed.end_offset);
    }
    let unsealed: Vec<SegmentName> =
        names.iter().copied().filter(|name| manifest.is_tail(*name) && wanted(*name)).collect();
    let mut sorted = unsealed;
    sorted.sort_by_key(|name| name.serial);
    let start = match only {
        Some(name) => name.base_offset,
        None => manifest.end_offset(),
    };
    let known = checking.known(witnesses);
    let log_end = checking.unsealed(&sorted, start, known)?;
    if only.is_none() {
        checking.producers()?;
        checking.ends(log_end, known);
        let quarantine = list(&path.path.join(directory::QUARANTINE))?;
        checking.findings.quarantined_files += quarantine.len() as u64;
    }
    Ok(())
}

struct Checking<'a> {
    path: &'a PartitionPath,
    topic: Option<String>,
    findings: &'a mut Findings,
    progress: &'a Progress,
    manifest: Manifest,
    /// Of the last good batch.
    epoch: LeaderEpoch,
}

impl Checking<'_> {
    fn file(&self, name: &str) -> String {
        format!("{}/{name}", directory::partition_directory(self.path.partition))
    }

    fn fault(&self, name: &str, positions: Range<u64>, kind: &'static str, reason: String) -> Fault {
        Fault {
            file: self.file(name),
            position: positions.start,
            position_end: positions.end,
            offset: None,
            offset_end: None,
            topic: self.topic.clone(),
            kind,
            known: false,
            reason,
        }
    }

    fn read_manifest(&mut self) -> anyhow::Result<()> {
        let Some(bytes) = read_small(&self.path.path.join(directory::MANIFEST))? else { return Ok(()) };
        match Manifest::decode(&bytes) {
            Ok(manifest) => self.manifest = manifest,
            Err(error) => {
                let positions = 0..bytes.len() as u64;
                let fault = self.fault(directory::MANIFEST, positions, "damaged", error.to_string());
                self.findings.add(fault);
            }
        }
        if self.manifest.suspect {
            let reason =
                "a flush failed: the broker verifies the log past the page cache when it starts".to_owned();
            let fault = self.fault(directory::MANIFEST, 0..0, "suspect", reason);
            self.findings.add(Fault { known: true, ..fault });
        }
        Ok(())
    }

    /// What is known from elsewhere about the end of this log.
    fn known(&self, witnesses: &Witnesses) -> Known {
        let generation = self.manifest.log_generation;
        let slots = witnesses
            .slots
            .iter()
            .filter(|slot| slot.partition == self.path.partition && slot.log_generation == generation);
        let clean = witnesses.clean.as_ref().and_then(|marker| marker.logs.get(&self.path.partition));
        Known {
            same_kernel: witnesses.same_kernel,
            flushed_end: slots.map(|slot| slot.flushed_end).max(),
            clean_end: clean.filter(|end| end.log_generation == generation).map(|end| end.log_end),
        }
    }

    /// Whether the broker knows that these offsets cannot be read.
    fn is_hole(&self, offsets: &Range<Offset>) -> bool {
        self.manifest.holes.iter().any(|hole| hole.start <= offsets.start && offsets.end <= hole.end)
    }

    /// A sealed segment goes on where the last one ended, or after a hole.
    fn continuous(&mut self, sealed: &SealedSegment, end: Offset) {
        let missing = end..sealed.name.base_offset;
        if missing.start < missing.end {
            let reason = "no segment has these offsets".to_owned();
            let fault = self.fault(directory::MANIFEST, 0..0, "missing", reason);
            let known = self.is_hole(&missing);
            self.findings.add(Fault {
                offset: Some(missing.start.0),
                offset_end: Some(missing.end.0),
                known,
                ..fault
            });
        }
    }

    fn sealed(&mut self, sealed: &SealedSegment, there: bool) -> anyhow::Result<()> {
        self.findings.segments += 1;
        let name = sealed.name.to_string();
        let offsets = (Some(sealed.name.base_offset.0), Some(sealed.end_offset.0));
        if !there {
            let fault =
                self.fault(&name, 0..0, "missing", "the manifest lists it, the file is not there".to_owned());
            self.findings.add(Fault { offset: offsets.0, offset_end: offsets.1, ..fault });
            return Ok(());
        }
        let bytes = FileBytes::open(&self.path.path.join(&name))?;
        let file_length = bytes.length;
        if file_length < sealed.length {
            let reason = format!("the file has {file_length} bytes, the manifest says {}", sealed.length);
            let fault = self.fault(&name, file_length..sealed.length, "cut short", reason);
            self.findings.add(Fault { offset_end: offsets.1, ..fault });
        }
        // What is behind the end is reserved room or was truncated away: nothing reads it.
        self.findings.slack_bytes += file_length.saturating_sub(sealed.length);
        let mut scanner =
            Scanner::new(bytes, self.path.partition, Depth::Full, sealed.name.base_offset, self.epoch)
                .within(0..sealed.length);
        let mut headers = crc32fast::Hasher::new();
        let mut index = SparseIndex::default();
        let mut faults = 0;
        loop {
            let expected = scanner.expected();
            let Some(found) = scanner.next_found()? else { break };
            match found {
                Found::Batch { position, header } => {
                    faults += self.gap_before(&name, position, expected, &header);
                    index.note(&header, position);
                    headers.update(&header.header_crc.to_le_bytes());
                    self.count(&header);
                }
                Found::Bad { positions, reason, .. } => {
                    faults += 1;
                    index.break_here();
                    self.bad(&name, positions, expected, "corrupt", &reason.to_string());
                }
                // The last bytes of a damaged batch may be zeroes too.
                Found::Slack { positions } if self.goes_on(&name, &positions) => {}
                Found::Slack { positions } => {
                    faults += 1;
                    self.bad(&name, positions, expected, "corrupt", "zeroes where batches should be");
                }
            }
        }
        self.epoch = scanner.epoch();
        if faults > 0 {
            self.explains(&name, sealed.length, &(scanner.expected()..sealed.end_offset));
            return Ok(());
        }
        let (end, checksum) = (scanner.expected(), headers.finalize());
        if end != sealed.end_offset || checksum != sealed.checksum {
            let reason = format!(
                "it ends at offset {end} with checksum {checksum:#010x}, the manifest says offset {} and {:#010x}",
                sealed.end_offset, sealed.checksum
            );
            let fault = self.fault(&name, 0..sealed.length, "differs", reason);
            self.findings.add(Fault { offset: offsets.0, offset_end: offsets.1, ..fault });
        }
        self.index(sealed, &index)
    }

    /// The index is rebuilt from the segment when it is not what it should be, so it costs time, not records.
    fn index(&mut self, sealed: &SealedSegment, rebuilt: &SparseIndex) -> anyhow::Result<()> {
        let name = sealed.name.index_name();
        let Some(bytes) = read_small(&self.path.path.join(&name))? else { return Ok(()) };
        let reason = match SparseIndex::decode(&bytes, sealed.length, sealed.checksum) {
            Err(error) => error.to_string(),
            Ok(index) if index.entries().iter().any(|entry| !rebuilt.entries().contains(entry)) => {
                "it is not the index of its segment".to_owned()
            }
            Ok(_) => return Ok(()),
        };
        let fault =
            self.fault(&name, 0..bytes.len() as u64, "index", format!("{reason}; the broker rebuilds it"));
        self.findings.add(fault);
        Ok(())
    }

    /// The snapshots of producers beside the segments.
    fn producers(&mut self) -> anyhow::Result<()> {
        for name in list(&self.path.path)? {
            if SegmentName::parse_producers(&name).is_none() {
                continue;
            }
            if let Some(bytes) = read_small(&self.path.path.join(&name))?
                && let Err(error) = decode_file(&bytes)
            {
                let reason = format!("{error}; the broker rebuilds what it knows of producers");
                let fault = self.fault(&name, 0..bytes.len() as u64, "producers", reason);
                self.findings.add(fault);
            }
        }
        Ok(())
    }

    /// Offsets that are missing before a batch, where no bad bytes explain them.
    fn gap_before(&mut self, name: &str, position: u64, expected: Offset, header: &BatchHeader) -> u64 {
        let missing = expected..header.leader.base_offset;
        if missing.start >= missing.end || self.explains(name, position, &missing) {
            return 0;
        }
        let fault = self.fault(name, position..position, "missing", "these offsets are not there".to_owned());
        let known = self.is_hole(&missing);
        self.findings.add(Fault {
            offset: Some(missing.start.0),
            offset_end: Some(missing.end.0),
            known,
            ..fault
        });
        1
    }

    /// Whether the last fault ends where this batch starts: then the missing offsets are its.
    fn explains(&mut self, name: &str, position: u64, missing: &Range<Offset>) -> bool {
        let (file, known) = (self.file(name), self.is_hole(missing));
        match self.findings.faults.last_mut() {
            Some(last) if last.file == file && last.position_end == position => {
                last.offset_end = Some(missing.end.0);
                last.known = known;
                true
            }
            _ => false,
        }
    }

    /// Whether these bytes follow those of the last fault: then they belong to it.
    fn goes_on(&mut self, name: &str, positions: &Range<u64>) -> bool {
        let file = self.file(name);
        match self.findings.faults.last_mut() {
            Some(last) if last.file == file && last.position_end == positions.start => {
                last.position_end = positions.end;
                true
            }
            _ => false,
        }
    }

    fn bad(&mut self, name: &str, positions: Range<u64>, expected: Offset, kind: &'static str, reason: &str) {
        let fault = self.fault(name, positions, kind, reason.to_owned());
        self.findings.add(Fault { offset: Some(expected.0), ..fault });
    }

    fn count(&mut self, header: &BatchHeader) {
        self.findings.batches += 1;
        self.findings.records += u64::from(header.producer.record_count);
        self.findings.bytes += u64::from(header.batch_length);
        self.progress.set(self.findings.bytes);
    }

    /// Scans the files that nothing is sealed in, and gives the verdict that recovery would. Returns the log end.
    fn unsealed(&mut self, names: &[SegmentName], start: Offset, known: Known) -> anyhow::Result<Offset> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut reasons: Vec<(usize, String)> = Vec::new();
        let mut end = start;
        for (file, name) in names.iter().enumerate() {
            self.findings.segments += 1;
            let bytes = FileBytes::open(&self.path.path.join(name.to_string()))?;
            let mut scanner = Scanner::new(bytes, self.path.partition, Depth::Full, end, self.epoch);
            loop {
                let expected = scanner.expected();
                let Some(found) = scanner.next_found()? else { break };
                match found {
                    Found::Batch { position, header } => {
                        self.count(&header);
                        note_batch(&mut pieces, file, position, expected, &header);
                    }
                    Found::Bad { positions, reason, whole } => {
                        reasons.push((pieces.len(), reason.to_string()));
                        pieces.push(Piece::Gap(Gap { file, start: expected, positions, whole }));
                    }
                    Found::Slack { positions } => {
                        self.findings.slack_bytes += positions.end - positions.start
                    }
                }
            }
            (end, self.epoch) = (scanner.expected(), scanner.epoch());
        }
        for (number, piece) in pieces.iter().enumerate() {
            let Piece::Gap(gap) = piece else { continue };
            let after = &pieces[number + 1..];
            let reason = reasons
                .iter()
                .find(|(of, _)| *of == number)
                .map_or("these offsets are not there", |(_, r)| r);
            self.unsealed_gap(names, gap, after, known, reason);
        }
        Ok(end)
    }

    fn unsealed_gap(
        &mut self,
        names: &[SegmentName],
        gap: &Gap,
        after: &[Piece],
        known: Known,
        reason: &str,
    ) {
        let next = after.iter().find_map(|piece| match piece {
            Piece::Run(run) => Some(run.offsets.start),
            Piece::Gap(_) => None,
        });
        if next.is_some_and(|next| self.is_hole(&(gap.start..next))) {
            return self.gap(names, gap, next, "corrupt", true, reason);
        }
        let verdict = recovery::verdict(gap, after, known);
        let reason = match verdict {
            Verdict::Corrupt => reason.to_owned(),
            Verdict::Torn => {
                format!("{reason}; a crash cut it off before it was flushed, the broker drops it")
            }
            Verdict::Undecided => {
                format!(
                    "{reason}; nothing says that it was flushed, the broker cuts it off and keeps the bytes"
                )
            }
        };
        self.gap(names, gap, next, verdict.name(), false, &reason);
    }

    fn gap(
        &mut self,
        names: &[SegmentName],
        gap: &Gap,
        next: Option<Offset>,
        kind: &'static str,
        known: bool,
        reason: &str,
    ) {
        let name = names.get(gap.file).map(ToString::to_string).unwrap_or_default();
        let fault = self.fault(&name, gap.positions.clone(), kind, reason.to_owned());
        let offset_end = next.map(|next| next.0);
        self.findings.add(Fault { offset: Some(gap.start.0), offset_end, known, ..fault });
    }

    /// The log ends where other files say that it does, or later.
    fn ends(&mut self, log_end: Offset, known: Known) {
        let log_end = log_end.max(self.manifest.end_offset());
        let witnesses = [
            (known.flushed_end, "a flush round covered records up to offset"),
            (known.clean_end, "the last shutdown was clean and left records up to offset"),
        ];
        for (end, says) in witnesses.into_iter().filter_map(|(end, says)| end.map(|end| (end, says))) {
            if end > log_end {
                let reason = format!("{says} {end}, the log ends at {log_end}");
                let fault = self.fault(directory::MANIFEST, 0..0, "lost", reason);
                self.findings.add(Fault { offset: Some(log_end.0), offset_end: Some(end.0), ..fault });
            }
        }
    }
}

/// Adds a good batch to the pieces: to the last run if it goes on there, else after a gap where offsets are missing.
fn note_batch(pieces: &mut Vec<Piece>, file: usize, position: u64, expected: Offset, header: &BatchHeader) {
    let offsets = header.leader.base_offset..header.end_offset();
    let positions = position..position + u64::from(header.batch_length);
    if let Some(Piece::Run(run)) = pieces.last_mut()
        && run.file == file
        && run.offsets.end == offsets.start
        && run.positions.end == position
    {
        run.offsets.end = offsets.end;
        run.positions.end = positions.end;
        run.durable_end = run.durable_end.max(header.leader.durable_end);
        return;
    }
    if offsets.start > expected && !matches!(pieces.last(), Some(Piece::Gap(_))) {
        pieces.push(Piece::Gap(Gap { file, start: expected, positions: position..position, whole: false }));
    }
    pieces.push(Piece::Run(Run { file, offsets, positions, durable_end: header.leader.durable_end }));
}
