//! `bench consume`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Client, ConsumedBatch, PartitionId, StartAt};
use serde_json::{Map, json};

use super::machine::Generator;
use super::payload::{Payloads, producer_and_index};
use super::report::{Report, publish};
use super::series::Measured;
use super::sizes::Sizes;
use super::topic::{self, TopicFacts, records_there};
use crate::args::{BenchConsumeArgs, Global};
use crate::output::{Answer, Progress, Unit};

/// Runs the bench, as often as asked.
pub(crate) async fn run(global: &Global, client: &Client, args: BenchConsumeArgs) -> anyhow::Result<Answer> {
    let facts = topic::ask(client, &args.topic).await?;
    let there = records_there(client, &args.topic).await?;
    let wanted = args.records.unwrap_or(there);
    anyhow::ensure!(
        there >= wanted,
        "topic {} has {there} records, not {wanted}; write more with: highwater bench produce",
        args.topic
    );
    let mut runs = Vec::new();
    for _run in 0..args.repeat {
        runs.push(once(global, client, &args, &facts, wanted).await?);
    }
    publish(global, &args.report, &runs)?;
    Ok(Answer::Yes)
}

async fn once(
    global: &Global,
    client: &Client,
    args: &BenchConsumeArgs,
    facts: &TopicFacts,
    wanted: u64,
) -> anyhow::Result<Report> {
    let mut checks = (!args.no_check).then(|| Checks::new(args.size.clone(), facts.partitions));
    let progress = Progress::new(Some(wanted), Unit::Records);
    let (mut records, mut bytes) = (0, 0);
    let generator = Generator::start();
    let start = Instant::now();
    let mut measured = Measured::new(start)?;
    let mut consumer = client
        .consumer(&args.topic)
        .from(StartAt::Earliest)
        .memory_bytes(usize::try_from(args.in_flight)?)
        .build()
        .await?;
    while records < wanted {
        let asked = Instant::now();
        let batch = next_batch(&mut consumer, global.timeout, records).await?;
        let now = Instant::now();
        measured.wait(now, now - asked, 1)?;
        let (count, length) = match &mut checks {
            Some(checks) => checks.take(&batch, wanted - records)?,
            None => measure(&batch, wanted - records)?,
        };
        measured.series.count(now, count)?;
        records += count;
        bytes += length;
        progress.set(records);
    }
    let elapsed = start.elapsed();
    progress.finish();
    let mut more = Map::new();
    more.insert("checked".to_owned(), json!(!args.no_check));
    more.insert("size".to_owned(), json!(args.size.as_ref().map(ToString::to_string)));
    more.insert("in_flight_bytes".to_owned(), json!(args.in_flight));
    more.insert("runs".to_owned(), json!(checks.as_ref().map(|checks| checks.runs)));
    Ok(Report {
        bench: "consume",
        topic: facts.clone(),
        records,
        bytes,
        elapsed,
        latency_of: "waiting for the next batch",
        measured,
        acks: None,
        effort: generator.effort(),
        more,
        lines: Vec::new(),
    })
}

/// The next batch, within `timeout`; `records` came before it.
pub(super) async fn next_batch(
    consumer: &mut highwater_client::Consumer,
    timeout: Duration,
    records: u64,
) -> anyhow::Result<ConsumedBatch> {
    let batch = tokio::time::timeout(timeout, consumer.next_batch())
        .await
        .with_context(|| format!("nothing came for {timeout:?} after {records} records"))?
        .with_context(|| format!("the consumer ended after {records} records"))?;
    Ok(batch?)
}

/// Counts records and bytes of values, `limit` records at the most.
pub(super) fn measure(batch: &ConsumedBatch, limit: u64) -> anyhow::Result<(u64, u64)> {
    let (mut records, mut bytes) = (0, 0);
    for record in batch.iter().take(usize::try_from(limit).unwrap_or(usize::MAX)) {
        records += 1;
        bytes += record?.value.map_or(0, <[u8]>::len) as u64;
    }
    Ok((records, bytes))
}

/// Checks every byte, and that nothing is missing, twice there or out of order.
pub(super) struct Checks {
    payloads: Payloads,
    /// `None`: any.
    sizes: Option<Sizes>,
    /// Whether the records of a producer follow each other without a gap: they do when there is one partition.
    consecutive: bool,
    /// Of each partition and producer, the last record.
    last: BTreeMap<(PartitionId, u64), u64>,
    /// How many times a producer began anew.
    runs: u64,
}

impl Checks {
    /// Nothing was seen yet of a topic.
    pub(super) fn new(sizes: Option<Sizes>, partitions: u32) -> Self {
        let last = BTreeMap::new();
        Self { payloads: Payloads::default(), sizes, consecutive: partitions == 1, last, runs: 0 }
    }

    /// Checks records of a batch, `limit` at the most, and counts them and the bytes of their values.
    pub(super) fn take(&mut self, batch: &ConsumedBatch, limit: u64) -> anyhow::Result<(u64, u64)> {
        let partition = batch.partition();
        // Looked up again only when the producer changes.
        let mut known: Option<(u64, u64)> = None;
        let (mut records, mut bytes) = (0, 0);
        for record in batch.iter().take(usize::try_from(limit).unwrap_or(usize::MAX)) {
            let record = record?;
            let value = record.value.unwrap_or_default();
            let place = || format!("partition {partition}, offset {}", record.offset);
            let sequence = self.payloads.check(value).with_context(place)?;
            if let Some(expected) = self.sizes.as_ref().map(|sizes| sizes.at(sequence)) {
                anyhow::ensure!(
                    value.len() == expected as usize,
                    "{}: a value of {} bytes, not {expected}",
                    place(),
                    value.len(),
                );
            }
            let (producer, index) = producer_and_index(sequence);
            let last = match known.filter(|(known, _)| *known == producer) {
                Some((_, last)) => Some(last),
                None => {
                    self.remember(partition, known);
                    self.last.get(&(partition, producer)).copied()
                }
            };
            match last {
                Some(last) if index == last + 1 || (!self.consecutive && index > last) => {}
                None => self.runs += 1,
                Some(last) => {
                    anyhow::ensure!(
                        !self.consecutive || index == 0,
                        "{}: payload {index} of producer {producer} follows {last}",
                        place()
                    );
                    self.runs += 1;
                }
            }
            known = Some((producer, index));
            records += 1;
            bytes += value.len() as u64;
        }
        self.remember(partition, known);
        Ok((records, bytes))
    }

    fn remember(&mut self, partition: PartitionId, known: Option<(u64, u64)>) {
        if let Some((producer, index)) = known {
            self.last.insert((partition, producer), index);
        }
    }
}
