//! `highwater log dump`: batches or records as they are on the disk.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use bytes::Bytes;
use highwater_broker_core::log::scan::{Depth, Found, Scanner, SegmentBytes};
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_protocol::batch::{BatchHeader, Records};
use highwater_protocol::ids::{LeaderEpoch, Offset};
use serde_json::json;

use super::{FileBytes, PartitionPath, Target, TopicNames};
use crate::args::{Format, Global, LogDumpArgs, Output};
use crate::encode::Encoder;
use crate::output::{self, Answer};

/// Characters of a key or value that a table shows.
const SHOWN: usize = 60;

/// Runs the command.
pub(super) fn run(global: &Global, args: &LogDumpArgs) -> anyhow::Result<Answer> {
    let target = Target::find(&args.path.path)?;
    let mut dump = Dump {
        args,
        names: TopicNames::read(target.root())?,
        json: global.output == Output::Json,
        left: args.count.unwrap_or(u64::MAX),
        encoder: Encoder::new(Format::Json, b""),
        out: BufWriter::with_capacity(64 << 10, io::stdout().lock()),
        bad: false,
    };
    for path in target.partitions()? {
        for name in path.segments()? {
            let wanted = match &target {
                Target::Segment(_, only) => *only == name,
                _ => true,
            };
            if wanted && dump.left > 0 {
                dump.segment(&path, name)
                    .with_context(|| format!("dump {}", path.path.join(name.to_string()).display()))?;
            }
        }
    }
    output::written(dump.out.flush())?;
    if dump.bad {
        output::note("some bytes are not batches; highwater log verify says more");
    }
    Ok(if dump.bad { Answer::No } else { Answer::Yes })
}

struct Dump<'a> {
    args: &'a LogDumpArgs,
    names: TopicNames,
    json: bool,
    left: u64,
    encoder: Encoder,
    out: BufWriter<io::StdoutLock<'a>>,
    bad: bool,
}

impl Dump<'_> {
    fn print(&mut self, text: &str) -> anyhow::Result<()> {
        output::written(writeln!(self.out, "{text}"))
    }

    fn segment(&mut self, path: &PartitionPath, name: SegmentName) -> anyhow::Result<()> {
        let file = path.path.join(name.to_string());
        // Batches below what was sealed elsewhere do not count, so every segment is read by itself.
        let open = || FileBytes::open(&file);
        let mut scanner = Scanner::new(open()?, path.partition, Depth::Full, Offset::ZERO, LeaderEpoch(0));
        let mut bodies = open()?;
        if !self.json {
            self.print(&format!("{} ({})", file.display(), self.names.of(path.partition)))?;
        }
        while self.left > 0
            && let Some(found) = scanner.next_found()?
        {
            match found {
                Found::Batch { header, .. } if header.end_offset().0 <= self.args.from => {}
                Found::Batch { position, header } if self.args.records => {
                    let batch = Bytes::copy_from_slice(bodies.view(position, header.length())?);
                    self.records(path, header, &batch)?;
                }
                Found::Batch { position, header } => {
                    self.left -= 1;
                    self.batch(path, name, position, &header)?;
                }
                Found::Bad { positions, reason, .. } => {
                    self.bad = true;
                    match self.json {
                        true => self.print(&json!({
                            "file": name.to_string(), "position": positions.start, "position_end": positions.end,
                            "bad": reason.to_string(),
                        }).to_string())?,
                        false => self.print(&format!(
                            "  {:>10}  bad bytes up to {}: {reason}",
                            positions.start, positions.end
                        ))?,
                    }
                }
                Found::Slack { positions } if !self.json => self.print(&format!(
                    "  {:>10}  {} of reserved room",
                    positions.start,
                    output::bytes(positions.end - positions.start)
                ))?,
                Found::Slack { .. } => {}
            }
        }
        Ok(())
    }

    fn batch(
        &mut self,
        path: &PartitionPath,
        name: SegmentName,
        position: u64,
        header: &BatchHeader,
    ) -> anyhow::Result<()> {
        let compression = format!("{:?}", header.compression()?).to_lowercase();
        let (leader, producer) = (&header.leader, &header.producer);
        if self.json {
            return self.print(
                &json!({
                    "topic_id": path.partition.topic_id.to_string(),
                    "partition": path.partition.partition.get(),
                    "file": name.to_string(),
                    "position": position,
                    "bytes": header.batch_length,
                    "base_offset": leader.base_offset.get(),
                    "end_offset": header.end_offset().get(),
                    "records": producer.record_count,
                    "leader_epoch": leader.leader_epoch.get(),
                    "append_time_us": leader.append_time,
                    "durable_end": leader.durable_end.get(),
                    "first_timestamp": producer.first_timestamp,
                    "max_timestamp": producer.max_timestamp,
                    "compression": compression,
                    "control": header.is_control(),
                })
                .to_string(),
            );
        }
        self.print(&format!(
            "  {position:>10}  offsets {} to {} ({} records, {}, {compression}), epoch {}, appended {}, durable below {}",
            leader.base_offset,
            header.end_offset().get() - 1,
            producer.record_count,
            output::bytes(u64::from(header.batch_length)),
            leader.leader_epoch,
            time(leader.append_time),
            leader.durable_end,
        ))
    }

    fn records(&mut self, path: &PartitionPath, header: BatchHeader, batch: &Bytes) -> anyhow::Result<()> {
        let records = Records::open(header, batch)?;
        for record in &records {
            let record = record?;
            if record.offset.0 < self.args.from {
                continue;
            }
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            let mut line = Vec::new();
            if self.json {
                self.encoder.record(path.partition.partition, &record, &mut line)?;
                output::written(self.out.write_all(&line))?;
                continue;
            }
            self.print(&format!(
                "  {:>10}  {}  {}  {}",
                record.offset,
                time(record.timestamp.saturating_mul(1000)),
                shown(record.key),
                shown(record.value),
            ))?;
        }
        Ok(())
    }
}

/// Microseconds since the Unix epoch as a time.
fn time(us: i64) -> String {
    let since_epoch = Duration::from_micros(u64::try_from(us).unwrap_or(0));
    humantime::format_rfc3339_micros(UNIX_EPOCH + since_epoch).to_string()
}

/// The first characters of a key or value, with everything that would disturb a terminal escaped.
fn shown(bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else { return "-".to_owned() };
    let mut text = String::with_capacity(SHOWN + 4);
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character.is_control() {
                true => text.extend(character.escape_default()),
                false => text.push(character),
            }
            if text.len() >= SHOWN {
                text.push('…');
                return text;
            }
        }
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_shown_disturbs_a_terminal() {
        assert_eq!(shown(None), "-");
        assert_eq!(shown(Some(b"a\x1b[2J\n\xff")), "a\\u{1b}[2J\\n\\xff");
        assert!(shown(Some(&[b'x'; 1000])).len() < 70);
    }
}
