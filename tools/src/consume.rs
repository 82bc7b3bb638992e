//! `highwater consume`: records out, one a line, and nothing else on standard output.

mod member;
mod output_thread;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Client, ConsumedBatch, Consumer, Error, ErrorKind, Offset, PartitionId, StartAt};

use self::output_thread::{Output, WRITE_BYTES};
use crate::args::{ConsumeArgs, Global};
use crate::connect::connect;
use crate::encode::Encoder;
use crate::interrupt;
use crate::output::{self, Answer};
use crate::parse::From;

/// How long bytes may stay in the buffer when nothing more comes.
const IDLE: Duration = Duration::from_millis(2);

/// Runs the command.
pub(crate) async fn run(global: &Global, args: ConsumeArgs) -> anyhow::Result<Answer> {
    if args.count == Some(0) {
        return Ok(Answer::Yes);
    }
    let client = connect(global).await?;
    if let Some(group) = &args.group {
        return member::run(&client, group, &args).await;
    }
    let partitions: Vec<PartitionId> =
        args.partition.iter().map(|&partition| PartitionId(partition)).collect();
    let ends = match args.exit_at_end {
        true => Some(high_watermarks(&client, &args.topic, &partitions).await?),
        false => None,
    };
    let mut builder = client.consumer(&args.topic).from(start_at(args.from)).partitions(partitions);
    if args.skip_corrupt {
        // Whoever skips does not wait for a repair.
        builder = builder.repair_timeout(Duration::ZERO);
    }
    let consumer = builder.build().await.with_context(|| format!("consume topic {}", args.topic))?;
    let encoder = Encoder::new(args.format, &args.key_separator.0);
    let output = Output::start(encoder)?;
    let mut consuming = Consuming {
        consumer,
        output,
        left: args.count,
        ends,
        skip_corrupt: args.skip_corrupt,
        skipped: 0,
        topic: &args.topic,
        patience: global.timeout,
    };
    let result = consuming.run().await;
    let skipped = consuming.skipped;
    // What was consumed before an error is printed before the error.
    let finished = consuming.output.finish().await;
    result?;
    finished?;
    if skipped > 0 {
        output::note(format!(
            "{} could not be read and were left out",
            output::plural(skipped, "record", "records")
        ));
        return Ok(Answer::No);
    }
    Ok(Answer::Yes)
}

const fn start_at(from: From) -> StartAt {
    match from {
        From::Earliest => StartAt::Earliest,
        From::Latest => StartAt::Latest,
        From::Offset(offset) => StartAt::Offset(Offset(offset)),
        From::Time(milliseconds) => StartAt::Time(milliseconds),
    }
}

/// The high watermarks now. Empty partitions are left out: there is nothing to wait for.
async fn high_watermarks(
    client: &Client,
    topic: &str,
    partitions: &[PartitionId],
) -> anyhow::Result<BTreeMap<PartitionId, Offset>> {
    let listed = client
        .admin()
        .list_offsets(topic, partitions, StartAt::Latest)
        .await
        .with_context(|| format!("look up the high watermarks of topic {topic}"))?;
    Ok(listed.into_iter().map(|listed| (listed.partition, listed.offset)).collect())
}

struct Consuming<'a> {
    consumer: Consumer,
    output: Output,
    /// Records still to be printed.
    left: Option<u64>,
    /// Partitions that have not come to their end yet, and where that is.
    ends: Option<BTreeMap<PartitionId, Offset>>,
    skip_corrupt: bool,
    skipped: u64,
    topic: &'a str,
    /// How long to wait for records that are known to be there.
    patience: Duration,
}

impl Consuming<'_> {
    async fn run(&mut self) -> anyhow::Result<()> {
        if let Some(ends) = &mut self.ends {
            ends.retain(|&partition, end| self.consumer.position(partition).is_some_and(|at| at < *end));
        }
        let interrupt = interrupt::watch()?;
        let mut progressed = Instant::now();
        while !self.is_done() {
            let batch = tokio::select! {
                biased;
                () = interrupt.notified() => return Ok(()),
                batch = self.consumer.next_batch() => batch,
                result = self.output.closed() => return Err(result),
                () = tokio::time::sleep(IDLE), if self.output.has_buffered() => {
                    self.output.write().await?;
                    continue;
                }
                () = tokio::time::sleep_until((progressed + self.patience).into()), if self.ends.is_some() => {
                    anyhow::bail!(
                        "topic {}: nothing came for {:?} although the end is not reached; see whether its broker runs",
                        self.topic,
                        self.patience
                    );
                }
            };
            progressed = Instant::now();
            match batch {
                Some(Ok(batch)) => self.take(&batch).await?,
                Some(Err(error)) => self.recover(error).await?,
                None => anyhow::bail!("topic {}: the broker ended the consumer", self.topic),
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.left == Some(0) || self.ends.as_ref().is_some_and(BTreeMap::is_empty)
    }

    async fn take(&mut self, batch: &ConsumedBatch) -> anyhow::Result<()> {
        let partition = batch.partition();
        let end = match &self.ends {
            None => Offset(u64::MAX),
            Some(ends) => match ends.get(&partition) {
                Some(&end) => end,
                // This partition has come to its end before.
                None => return Ok(()),
            },
        };
        for record in batch {
            let record = record.with_context(|| {
                format!(
                    "topic {}, partition {partition}: a record in the batch at offset {}",
                    self.topic,
                    batch.first_offset()
                )
            })?;
            if record.offset >= end || self.left == Some(0) {
                break;
            }
            self.output.encoder.record(partition, &record, &mut self.output.buffer)?;
            if let Some(left) = &mut self.left {
                *left -= 1;
            }
            if self.output.buffer.len() >= WRITE_BYTES {
                self.output.write().await?;
            }
        }
        self.reached(partition, batch.end_offset());
        Ok(())
    }

    /// Everything of `partition` below `offset` has been seen.
    fn reached(&mut self, partition: PartitionId, offset: Offset) {
        if let Some(ends) = &mut self.ends
            && ends.get(&partition).is_some_and(|&end| offset >= end)
        {
            ends.remove(&partition);
            // What else the broker has is not wanted. Only an unknown partition cannot be paused, and this one is known.
            let _ = self.consumer.pause(partition);
        }
    }

    async fn recover(&mut self, error: Error) -> anyhow::Result<()> {
        let range = error.corrupt_range();
        match (error.kind(), error.partition(), range) {
            (ErrorKind::CorruptRange, Some(partition), Some(range)) if self.skip_corrupt => {
                output::note(error.to_string());
                let from = self.consumer.position(partition).unwrap_or(range.start).max(range.start);
                self.skipped += range.end.count_since(from);
                self.consumer.seek(partition, StartAt::Offset(range.end)).await?;
                self.reached(partition, range.end);
                Ok(())
            }
            (ErrorKind::CorruptRange, ..) => {
                Err(anyhow::Error::new(error).context("--skip-corrupt goes on after what cannot be read"))
            }
            _ => Err(error.into()),
        }
    }
}
