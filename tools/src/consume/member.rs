//! `consume --group`: a member of a group, which commits what it has printed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use highwater_client::{Client, Error, ErrorKind, GroupBatch, GroupConsumer, Offset, PartitionId, StartAt};
use tokio::time::Instant;

use super::output_thread::Output;
use super::{high_watermarks, start_at};
use crate::args::ConsumeArgs;
use crate::encode::Encoder;
use crate::interrupt;
use crate::output::{self, Answer};

/// How often a member that stops at the end looks how far the others are.
const LOOK: Duration = Duration::from_millis(250);

/// Runs the command.
pub(super) async fn run(client: &Client, group: &str, args: &ConsumeArgs) -> anyhow::Result<Answer> {
    // A group may wait for its topic; a person has mistyped its name.
    let ends = high_watermarks(client, &args.topic, &[]).await?;
    let mut builder = client
        .group_consumer(group)
        .topics([&args.topic])
        .from(start_at(args.from))
        .session_timeout(args.session_timeout)
        .finish_explicitly();
    if args.skip_corrupt {
        builder = builder.repair_timeout(Duration::ZERO);
    }
    let consumer = builder.build().await.with_context(|| format!("join group {group}"))?;
    let mut member = Member {
        client,
        consumer,
        output: Output::start(Encoder::new(args.format, &args.key_separator.0))?,
        left: args.count,
        ends: args.exit_at_end.then_some(ends),
        skip_corrupt: args.skip_corrupt,
        skipped: 0,
        topic: &args.topic,
    };
    let result = member.run().await;
    let Member { consumer, output, skipped, .. } = member;
    let finished = output.finish().await;
    // What was printed is committed, also before an error.
    let closed = consumer.close().await.with_context(|| format!("leave group {group}"));
    result?;
    finished?;
    closed?;
    if skipped > 0 {
        let records = output::plural(skipped, "record", "records");
        output::note(format!("{records} could not be read and were left out"));
        return Ok(Answer::No);
    }
    Ok(Answer::Yes)
}

struct Member<'a> {
    client: &'a Client,
    consumer: GroupConsumer,
    output: Output,
    /// Records still to be printed.
    left: Option<u64>,
    /// Partitions of which the group has something before it, and up to where.
    ends: Option<BTreeMap<PartitionId, Offset>>,
    skip_corrupt: bool,
    skipped: u64,
    topic: &'a str,
}

impl Member<'_> {
    async fn run(&mut self) -> anyhow::Result<()> {
        let interrupt = interrupt::watch()?;
        let mut look_at = Instant::now();
        while self.left != Some(0) {
            let batch = tokio::select! {
                biased;
                () = interrupt.notified() => return Ok(()),
                batch = self.consumer.next_batch() => batch,
                result = self.output.closed() => return Err(result),
                () = tokio::time::sleep_until(look_at), if self.ends.is_some() => {
                    if self.is_at_end().await? {
                        return Ok(());
                    }
                    look_at = Instant::now() + LOOK;
                    continue;
                }
            };
            match batch {
                Some(Ok(batch)) => self.take(&batch).await?,
                Some(Err(error)) => self.recover(error).await?,
                None => anyhow::bail!("topic {}: the consumer has ended", self.topic),
            }
        }
        Ok(())
    }

    /// Prints a batch, and has finished with it once that is out.
    async fn take(&mut self, batch: &GroupBatch) -> anyhow::Result<()> {
        let partition = batch.partition();
        let mut finished = batch.end_offset();
        for record in batch.iter() {
            let record = record.with_context(|| {
                let first = batch.first_offset();
                format!("topic {}, partition {partition}: a record in the batch at {first}", self.topic)
            })?;
            if self.left == Some(0) {
                finished = record.offset;
                break;
            }
            self.output.encoder.record(partition, &record, &mut self.output.buffer)?;
            if let Some(left) = &mut self.left {
                *left -= 1;
            }
        }
        self.output.write_through().await?;
        self.consumer.finish_before(batch.topic(), partition, finished);
        Ok(())
    }

    /// Whether the group has committed everything that was there at the start. Its other members commit every second.
    async fn is_at_end(&mut self) -> anyhow::Result<bool> {
        let Some(ends) = &mut self.ends else { return Ok(false) };
        ends.retain(|&partition, end| {
            end.get() > 0 && self.consumer.position(self.topic, partition).is_none_or(|at| at < *end)
        });
        if ends.is_empty() {
            return Ok(true);
        }
        let described = match self.client.admin().describe_group(self.consumer.group()).await {
            Ok(described) => described,
            // It is asked again.
            Err(error) if error.is_retriable() => return Ok(false),
            Err(error) => return Err(error).context("ask how far the group is"),
        };
        for position in &described.positions {
            let partition = position.partition.partition;
            let end = ends.get(&partition).filter(|_| &*position.partition.topic == self.topic);
            if end.is_some_and(|end| position.committed.is_some_and(|committed| committed >= *end)) {
                ends.remove(&partition);
            }
        }
        Ok(ends.is_empty())
    }

    async fn recover(&mut self, error: Error) -> anyhow::Result<()> {
        match (error.kind(), error.partition(), error.corrupt_range()) {
            (ErrorKind::CorruptRange, Some(partition), Some(range)) if self.skip_corrupt => {
                output::note(error.to_string());
                let at = self.consumer.position(self.topic, partition).unwrap_or(range.start);
                self.skipped += range.end.count_since(at.max(range.start));
                self.consumer.seek(self.topic, partition, StartAt::Offset(range.end)).await?;
                Ok(())
            }
            (ErrorKind::CorruptRange, ..) => {
                Err(anyhow::Error::new(error).context("--skip-corrupt goes on after what cannot be read"))
            }
            _ => Err(error.into()),
        }
    }
}
