//! `highwater log verify`: every byte that a checksum covers, and what the files say about each other.

use std::path::Path;

use anyhow::Context;
use highwater_broker_core::log::boot_record::{self, BootRecord};
use highwater_broker_core::log::clean_marker::CleanMarker;
use highwater_broker_core::log::directory;
use highwater_broker_core::log::slot::{SLOT_BYTES, Slot};
use serde::Serialize;
use serde_json::json;

use super::{CONTROLLER, Lock, Target, TopicNames, list, read_small};
use crate::args::{Global, LogPathArgs, Output};
use crate::output::{self, Answer, Progress, Unit};

mod partition;

/// Faults that are told one by one.
const FAULTS_TOLD: usize = 10_000;

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Fault {
    /// Relative to the data directory.
    file: String,
    /// Where it starts in the file.
    position: u64,
    /// Where it ends.
    position_end: u64,
    /// The first offset concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// The next offset that is good again, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset_end: Option<u64>,
    /// The topic's name, if it is a partition's file and the name is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    /// One word.
    kind: &'static str,
    /// The broker knows of it: it is a hole in the log.
    known: bool,
    /// What is wrong.
    reason: String,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(super) struct Findings {
    partitions: u64,
    segments: u64,
    batches: u64,
    records: u64,
    /// Of batches.
    bytes: u64,
    /// Of reserved room, all zeroes.
    slack_bytes: u64,
    /// Files that recovery has put aside.
    quarantined_files: u64,
    fault_count: u64,
    faults: Vec<Fault>,
}

impl Findings {
    fn add(&mut self, fault: Fault) {
        self.fault_count += 1;
        if self.faults.len() < FAULTS_TOLD {
            self.faults.push(fault);
        }
    }
}

/// What the rest of the directory says about the ends of its logs.
#[derive(Debug, Default)]
pub(super) struct Witnesses {
    slots: Vec<Slot>,
    clean: Option<CleanMarker>,
    /// The kernel of the last broker still runs.
    same_kernel: bool,
    names: TopicNames,
}

/// Runs the command.
pub(super) fn run(global: &Global, args: &LogPathArgs) -> anyhow::Result<Answer> {
    let target = Target::find(&args.path)?;
    let _lock = Lock::take(target.root())?;
    let progress = Progress::new(None, Unit::Bytes);
    let mut findings = Findings::default();
    let witnesses = witnesses(target.root(), &mut findings)?;
    if matches!(target, Target::Directory(_)) {
        check_state(target.root(), &mut findings)?;
    }
    for path in target.partitions()? {
        let only = match &target {
            Target::Segment(_, name) => Some(*name),
            _ => None,
        };
        partition::check(&path, only, &witnesses, &mut findings, &progress)
            .with_context(|| format!("verify {}", path.path.display()))?;
    }
    progress.finish();
    print(global, &findings)?;
    Ok(if findings.fault_count == 0 { Answer::Yes } else { Answer::No })
}

/// Reads what the directory says about the ends of its logs, and finds faults in it.
fn witnesses(root: &Path, findings: &mut Findings) -> anyhow::Result<Witnesses> {
    let mut witnesses = Witnesses { names: TopicNames::read(root)?, ..Witnesses::default() };
    if let Some(bytes) = read_small(&root.join(directory::CLEAN))? {
        match CleanMarker::decode(&bytes) {
            Ok(marker) => witnesses.clean = Some(marker),
            Err(error) => findings.add(file_fault(directory::CLEAN, bytes.len(), error.to_string())),
        }
    }
    if let Some(bytes) = read_small(&root.join(directory::BOOT))? {
        match BootRecord::decode(&bytes) {
            Ok(record) => witnesses.same_kernel = boot_id().is_some_and(|id| id == record.boot_id),
            Err(error) => findings.add(file_fault(directory::BOOT, bytes.len(), error.to_string())),
        }
    }
    if let Some(bytes) = read_small(&root.join(directory::SLOTS))? {
        for (index, chunk) in bytes.chunks(SLOT_BYTES).enumerate() {
            let slot = <&[u8; SLOT_BYTES]>::try_from(chunk).ok().and_then(Slot::decode);
            match slot {
                Some(slot) => witnesses.slots.push(slot),
                None if chunk.iter().all(|byte| *byte == 0) => {}
                None => findings.add(Fault {
                    position: (index * SLOT_BYTES) as u64,
                    position_end: (index * SLOT_BYTES + chunk.len()) as u64,
                    ..file_fault(directory::SLOTS, bytes.len(), format!("slot {index} is damaged"))
                }),
            }
        }
    }
    Ok(witnesses)
}

fn boot_id() -> Option<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
}

/// Checks the small files that belong to no partition.
fn check_state(root: &Path, findings: &mut Findings) -> anyhow::Result<()> {
    match read_small(&root.join(directory::DIRECTORY))? {
        None => findings.add(file_fault(directory::DIRECTORY, 0, "the file is missing".to_owned())),
        Some(bytes) => {
            if let Err(error) = boot_record::decode_directory(&bytes) {
                findings.add(file_fault(directory::DIRECTORY, bytes.len(), error.to_string()));
            }
        }
    }
    if let Some(bytes) = read_small(&root.join(CONTROLLER))?
        && let Err(error) = highwater_broker::offline_image(&bytes)
    {
        findings.add(file_fault(CONTROLLER, bytes.len(), error.to_string()));
    }
    for name in list(&root.join(directory::STATE))? {
        if name.ends_with(directory::TEMPORARY_SUFFIX) {
            continue;
        }
        let file = format!("{}/{name}", directory::STATE);
        if let Some(bytes) = read_small(&root.join(&file))?
            && !ends_in_its_checksum(&bytes)
        {
            let reason = "the checksum at the end is not that of the bytes before it".to_owned();
            findings.add(file_fault(&file, bytes.len(), reason));
        }
    }
    Ok(())
}

/// Every state file ends in the CRC-32 of what is before, little-endian.
fn ends_in_its_checksum(bytes: &[u8]) -> bool {
    bytes
        .split_last_chunk::<4>()
        .is_some_and(|(rest, stored)| crc32fast::hash(rest) == u32::from_le_bytes(*stored))
}

fn file_fault(file: &str, length: usize, reason: String) -> Fault {
    Fault {
        file: file.to_owned(),
        position: 0,
        position_end: length as u64,
        offset: None,
        offset_end: None,
        topic: None,
        kind: "damaged",
        known: false,
        reason,
    }
}

fn print(global: &Global, findings: &Findings) -> anyhow::Result<()> {
    if global.output == Output::Json {
        let mut document = json!({ "ok": findings.fault_count == 0 });
        if let (serde_json::Value::Object(all), serde_json::Value::Object(found)) =
            (&mut document, serde_json::to_value(findings)?)
        {
            all.extend(found);
        }
        return output::json(&document);
    }
    for fault in &findings.faults {
        let offsets = match (fault.offset, fault.offset_end) {
            (Some(start), Some(end)) if end > start + 1 => format!(", offsets {start} to {}", end - 1),
            (Some(start), _) => format!(", offset {start}"),
            _ => String::new(),
        };
        let bytes = match fault.position_end.saturating_sub(fault.position) {
            0 => String::new(),
            count => format!(" ({})", output::plural(count, "byte", "bytes")),
        };
        let known = if fault.known { " (the broker knows)" } else { "" };
        let topic = fault.topic.as_ref().map_or_else(String::new, |name| format!("topic {name}: "));
        output::line(format!(
            "{topic}{}: position {}{bytes}{offsets}: {}{known}: {}",
            fault.file, fault.position, fault.kind, fault.reason
        ))?;
    }
    let told = findings.faults.len() as u64;
    if findings.fault_count > told {
        output::line(format!("and {}", output::plural(findings.fault_count - told, "fault", "more faults")))?;
    }
    output::line(format!(
        "{}, {}, {}, {}: {} verified, {} of reserved room, {}",
        output::plural(findings.partitions, "partition", "partitions"),
        output::plural(findings.segments, "segment", "segments"),
        output::plural(findings.batches, "batch", "batches"),
        output::plural(findings.records, "record", "records"),
        output::bytes(findings.bytes),
        output::bytes(findings.slack_bytes),
        match findings.quarantined_files {
            0 => "nothing in quarantine".to_owned(),
            count => format!("{} in quarantine", output::plural(count, "file", "files")),
        },
    ))?;
    output::line(match findings.fault_count {
        0 => "no faults".to_owned(),
        count => output::plural(count, "fault", "faults"),
    })
}
