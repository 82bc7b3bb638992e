//! `highwater produce`: lines in, records out, and a word about every line.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{
    BatchDelivery, BatchReceipt, Client, ErrorKind, PartitionId, Producer, ProducerRecord, Stage,
};
use highwater_protocol::limits::BATCH_BYTES_MAX;
use serde_json::json;

use crate::args::{Global, Output, ProduceArgs};
use crate::connect::{compression, connect, stage_name};
use crate::interrupt;
use crate::lines::{self, Piece};
use crate::output::{self, Answer, Progress, Unit};
use crate::ranges::LineRanges;

/// Pieces of input that wait while the producer is busy.
const PIECES_AHEAD: usize = 4;
/// Bytes of lines that may wait for their acknowledgement: twice what a broker lets one connection send by default.
const MEMORY_BYTES: usize = 16 << 20;
/// Calls whose acknowledgements are awaited at once. The producer's memory is the real bound.
const CALLS_MAX: usize = 1024;
/// How long acknowledgements are awaited after Ctrl-C.
const FAREWELL: Duration = Duration::from_secs(5);
/// Ranges of lines that are named for people; JSON has them all.
const RANGES_NAMED: usize = 20;

/// Runs the command.
pub(crate) async fn run(global: &Global, args: ProduceArgs) -> anyhow::Result<Answer> {
    let compression = compression(args.compression)?;
    let client = connect(global).await?;
    let line_bytes_max = line_bytes_max(&client, &args).await?;
    let input = open_input(&args)?;
    let producer = client
        .producer()
        .acks(args.acks.into())
        .linger(args.linger)
        .compression(compression)
        .memory_bytes(MEMORY_BYTES)
        .build();
    let started = Instant::now();
    let mut sending = Sending {
        args: &args,
        producer: &producer,
        line_bytes_max,
        read: 0,
        bytes: 0,
        waiting: VecDeque::new(),
        report: Report::default(),
    };
    let progress = Progress::new(input.bytes, Unit::Bytes);
    sending.run(input, &progress).await?;
    let report = sending.report;
    progress.finish();
    report.print(global, started.elapsed())?;
    Ok(if report.is_good() { Answer::Yes } else { Answer::No })
}

/// How long a line may be: a record must fit a batch of its topic, however it is encoded.
async fn line_bytes_max(client: &Client, args: &ProduceArgs) -> anyhow::Result<usize> {
    let metadata = client
        .admin()
        .metadata(&[&args.topic])
        .await
        .with_context(|| format!("look up topic {}", args.topic))?;
    let Some(topic) = metadata.topics.first() else {
        anyhow::bail!(
            "there is no topic {topic}; make it with: highwater topic create {topic}",
            topic = args.topic
        );
    };
    if let Some(partition) = args.partition.filter(|&partition| partition as usize >= topic.partitions.len())
    {
        anyhow::bail!("topic {} has no partition {partition}: it has {}", args.topic, topic.partitions.len());
    }
    /// Headers of a batch and of a record.
    const AROUND: usize = 256;
    Ok((topic.batch_bytes_max as usize).min(BATCH_BYTES_MAX).saturating_sub(AROUND))
}

struct Input {
    pieces: tokio::sync::mpsc::Receiver<Piece>,
    /// How long it is, if that is known.
    bytes: Option<u64>,
}

fn open_input(args: &ProduceArgs) -> anyhow::Result<Input> {
    let (source, bytes): (Box<dyn io::Read + Send>, _) = match &args.file {
        Some(path) => {
            let open = || format!("open {}", path.display());
            let file = File::open(path).with_context(open)?;
            let metadata = file.metadata().with_context(open)?;
            anyhow::ensure!(!metadata.is_dir(), "{} is a directory; give a file", path.display());
            (Box::new(file), metadata.is_file().then_some(metadata.len()))
        }
        None => {
            if io::stdin().is_terminal() {
                output::note("one record a line; Ctrl-D ends");
            }
            (Box::new(io::stdin()), None)
        }
    };
    let pieces = lines::read(source, BATCH_BYTES_MAX, PIECES_AHEAD).context("start the input thread")?;
    Ok(Input { pieces, bytes })
}

/// A call whose outcome is awaited.
struct Waiting {
    /// The number of its first line, from 1.
    first_line: u64,
    count: u64,
    delivery: BatchDelivery,
}

struct Sending<'a> {
    args: &'a ProduceArgs,
    producer: &'a Producer,
    line_bytes_max: usize,
    /// Lines read so far.
    read: u64,
    /// Bytes read so far.
    bytes: u64,
    /// Oldest first.
    waiting: VecDeque<Waiting>,
    report: Report,
}

impl Sending<'_> {
    /// Sends everything and waits for every outcome, or until a line failed for good, or Ctrl-C.
    async fn run(&mut self, mut input: Input, progress: &Progress) -> anyhow::Result<()> {
        let interrupt = interrupt::watch()?;
        let mut open = true;
        while open || !self.waiting.is_empty() {
            let room = self.waiting.len() < CALLS_MAX;
            tokio::select! {
                piece = input.pieces.recv(), if open && room => match piece {
                    Some(piece) => {
                        self.take(piece).await?;
                        progress.set(self.bytes);
                    }
                    None => open = false,
                },
                Some((oldest, receipt)) = oldest(&mut self.waiting) => {
                    self.report.add(&oldest, &receipt);
                    if open && self.report.stop.is_some() {
                        open = false;
                        input.pieces.close();
                    }
                }
                () = interrupt.notified(), if open => {
                    output::note("interrupted: waiting for what has been sent; Ctrl-C again ends at once");
                    open = false;
                    input.pieces.close();
                    self.report.interrupted = true;
                    // Whatever is not known by then is reported as unknown.
                    let _ = tokio::time::timeout(FAREWELL, self.producer.flush()).await;
                    self.abandon().await;
                }
            }
        }
        self.report.read = self.read;
        Ok(())
    }

    /// Takes the outcomes that are there and calls the others unknown.
    async fn abandon(&mut self) {
        while !self.waiting.is_empty() {
            let moment = Duration::from_millis(50);
            match tokio::time::timeout(moment, oldest(&mut self.waiting)).await {
                Ok(Some((oldest, receipt))) => self.report.add(&oldest, &receipt),
                _ => {
                    for waiting in self.waiting.drain(..) {
                        self.report.unknown.add(waiting.first_line, waiting.count);
                    }
                }
            }
        }
    }

    async fn take(&mut self, piece: Piece) -> anyhow::Result<()> {
        match piece {
            Piece::Lines(bytes) => {
                self.bytes += bytes.len() as u64;
                let mut start = 0;
                for line in lines::lines(&bytes) {
                    if line.len() <= self.line_bytes_max {
                        continue;
                    }
                    let at = line.as_ptr() as usize - bytes.as_ptr() as usize;
                    self.send(&bytes[start..at]).await;
                    self.refuse_long(line.len() as u64);
                    start = (at + line.len() + 1).min(bytes.len());
                }
                self.send(&bytes[start..]).await;
            }
            Piece::TooLong(bytes) => {
                self.bytes += bytes;
                self.refuse_long(bytes);
            }
            Piece::Failed(error) => {
                self.report.stop =
                    Some(format!("the input cannot be read after line {}: {error}", self.read));
            }
        }
        Ok(())
    }

    /// A line that no batch can hold. The outcomes of earlier lines are still to come.
    fn refuse_long(&mut self, bytes: u64) {
        self.read += 1;
        self.report.too_long.add(self.read, 1);
        output::note(format!(
            "line {} has {bytes} bytes, more than the {} that topic {} takes; it is left out",
            self.read, self.line_bytes_max, self.args.topic
        ));
    }

    /// Sends whole lines in one call.
    async fn send(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let topic = self.args.topic.as_str();
        let separator = self.args.key_separator.as_ref().map(|separator| separator.0.as_slice());
        // Counted apart from the call, which may stop at a line that it refuses.
        let count = lines::lines(bytes).count() as u64;
        let records = lines::lines(bytes).map(|line| record(topic, line, separator));
        let sent = self.producer.send_batch(topic, self.args.partition.map(PartitionId), records).await;
        let first_line = self.read + 1;
        self.read += count;
        match sent {
            Ok(delivery) => self.waiting.push_back(Waiting { first_line, count, delivery }),
            Err(error) => self.report.fail(first_line, count, &error),
        }
    }
}

/// The record of a line.
fn record<'a>(topic: &'a str, line: &'a [u8], separator: Option<&[u8]>) -> ProducerRecord<'a> {
    let record = ProducerRecord::new(topic);
    let split = separator.and_then(|separator| find(line, separator).map(|at| (at, at + separator.len())));
    match split {
        Some((key_end, value_start)) => record.key(&line[..key_end]).value(&line[value_start..]),
        None => record.value(line),
    }
}

/// Where `needle`, which is not empty, first is in `line`.
fn find(line: &[u8], needle: &[u8]) -> Option<usize> {
    line.windows(needle.len()).position(|window| window == needle)
}

/// Waits for the outcome of the oldest call. Cancel safe: it stays in the queue until its outcome is there.
async fn oldest(waiting: &mut VecDeque<Waiting>) -> Option<(Waiting, BatchReceipt)> {
    let receipt = (&mut waiting.front_mut()?.delivery).await;
    waiting.pop_front().map(|oldest| (oldest, receipt))
}

/// What became of the lines.
#[derive(Debug, Default)]
struct Report {
    read: u64,
    acknowledged: u64,
    /// The least stage of what was acknowledged.
    stage: Option<Stage>,
    unknown: LineRanges,
    failed: LineRanges,
    too_long: LineRanges,
    /// The first reasons, for people.
    unknown_why: Option<String>,
    /// Why no further lines were read.
    stop: Option<String>,
    interrupted: bool,
}

impl Report {
    /// Adds the outcome of a call. Calls come in the order of their lines.
    fn add(&mut self, call: &Waiting, receipt: &BatchReceipt) {
        for run in receipt.runs() {
            let Range { start, end } = run.records.clone();
            let end = (end as u64).min(call.count);
            let first = call.first_line + start as u64;
            let count = end.saturating_sub(start as u64);
            match &run.result {
                Ok(receipt) => {
                    self.acknowledged += count;
                    self.stage = Some(self.stage.map_or(receipt.stage, |stage| stage.min(receipt.stage)));
                }
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                    self.unknown.add(first, count);
                    self.unknown_why.get_or_insert_with(|| error.to_string());
                }
                Err(error) => self.fail(first, count, error),
            }
        }
        // Lines that the call did not get to.
        let told = receipt.runs().last().map_or(0, |run| run.records.end as u64);
        if let Some(missing) = call.count.checked_sub(told).filter(|&missing| missing > 0) {
            self.failed.add(call.first_line + told, missing);
        }
    }

    fn fail(&mut self, first: u64, count: u64, error: &highwater_client::Error) {
        self.failed.add(first, count);
        self.stop.get_or_insert_with(|| format!("line {first} was refused: {error}"));
    }

    fn is_good(&self) -> bool {
        self.stop.is_none() && self.unknown.count() + self.failed.count() + self.too_long.count() == 0
    }

    fn print(&self, global: &Global, elapsed: Duration) -> anyhow::Result<()> {
        let stage = self.stage.map(stage_name);
        if let Some(why) = &self.stop {
            output::note(format!("stopped: {why}"));
        }
        if global.output == Output::Json {
            return output::json(&json!({
                "lines": self.read,
                "acknowledged": self.acknowledged,
                "unknown": self.unknown.count(),
                "failed": self.failed.count() + self.too_long.count(),
                "stage": stage,
                "seconds": output::seconds(elapsed),
                "unknown_lines": self.unknown.ranges(),
                "failed_lines": self.failed.ranges(),
                "too_long_lines": self.too_long.ranges(),
                "stopped": self.stop,
                "interrupted": self.interrupted,
            }));
        }
        let durably = match self.stage {
            Some(Stage::Flushed) => "flushed: they survive a power cut",
            Some(Stage::Written) => "written: they survive a crash of the broker, not a power cut",
            Some(Stage::Accepted) => "accepted: nothing is promised about them",
            None => "nothing to say about durability",
        };
        output::line(format!(
            "{} acknowledged, {durably} ({:.2} s)",
            output::plural(self.acknowledged, "record", "records"),
            elapsed.as_secs_f64()
        ))?;
        let named = [
            (&self.unknown, "have an unknown outcome: they may be in the topic or not"),
            (&self.failed, "are not in the topic"),
            (&self.too_long, "are not in the topic, they are too long"),
        ];
        for (lines, what) in named.into_iter().filter(|(lines, _)| lines.count() > 0) {
            output::note(format!(
                "{} {what}: {}",
                output::plural(lines.count(), "line", "lines"),
                output::ranges(&lines.ranges(), RANGES_NAMED)
            ));
        }
        if let Some(why) = &self.unknown_why {
            output::note(format!("the first of unknown outcome: {why}"));
        }
        if self.stop.is_some() || self.interrupted {
            output::note(format!("lines after {}, if there are any, were not read", self.read));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_separator_ends_the_key() {
        assert_eq!(find(b"k::v::w", b"::"), Some(1));
        assert_eq!(find(b"::v", b"::"), Some(0));
        assert_eq!(find(b"k:v", b"::"), None);
        assert_eq!(find(b"", b"\t"), None);
    }
}
