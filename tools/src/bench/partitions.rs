//! `bench partitions`: what many partitions cost, as a share of the speed of one in the same run.

use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Client, ErrorKind, NewTopic, StartAt};
use serde_json::{Map, Value, json};

use super::connections;
use super::consume::{Checks, next_batch};
use super::load::{Hand, Load, Sent, Settings, Upto};
use super::machine::Generator;
use super::report::Spread;
use super::shape::Shape;
use super::tabular::{Column, Shown, Tabular, column, publish};
use super::topic::{self, TopicFacts};
use crate::args::{BenchPartitionsArgs, Global};
use crate::interrupt;
use crate::output::{Answer, Progress, Unit};

/// Bytes that may be on their way to the consumer.
const CONSUMER_BYTES: usize = 16 << 20;

const COLUMNS: &[Column] = &[
    column("partitions", "PARTITIONS", Shown::Count),
    column("create_us", "CREATE", Shown::Microseconds),
    column("open_us", "FIRST RECORDS", Shown::Microseconds),
    column("produce_megabytes_per_second", "PRODUCE MB/S", Shown::Number),
    column("produce_share", "OF ONE", Shown::Percent),
    column("acknowledged_us_p99", "ACK P99", Shown::Microseconds),
    column("consume_megabytes_per_second", "CONSUME MB/S", Shown::Number),
    column("consume_share", "OF ONE'S", Shown::Percent),
    column("first_batch_us", "FIRST BATCH", Shown::Microseconds),
    column("delete_us", "DELETE", Shown::Microseconds),
    column("consumed_records", "CHECKED", Shown::Count),
];

/// What one topic showed.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Step {
    partitions: u32,
    create: Duration,
    /// Until one record in each partition was acknowledged.
    open: Duration,
    produce: f64,
    acknowledged_us_p99: u64,
    consume: f64,
    /// From the start of the consumer.
    first_batch: Duration,
    delete: Duration,
    /// Those that opened partitions included.
    consumed_records: u64,
}

/// Runs the bench: all counts once, and again as often as asked.
pub(crate) async fn run(
    global: &Global,
    client: &Client,
    args: BenchPartitionsArgs,
) -> anyhow::Result<Answer> {
    let shape = Shape::new(&args.size, &args.load)?;
    let mut counts = args.counts.clone();
    counts.push(1);
    counts.sort_unstable();
    counts.dedup();
    let most = u64::from(counts.last().copied().unwrap_or(1));
    let batches = args.records / shape.that_fill(0, args.records, args.batch_bytes).max(1);
    anyhow::ensure!(
        shape.has_keys() || batches >= most,
        "{} records are about {batches} batches of {} bytes, too few for {most} partitions to get one each: more --records, \
         smaller --batch-bytes, or fewer --counts",
        args.records,
        args.batch_bytes,
    );
    let clients = connections::make(global, args.load.connections).await?;
    let bench = Bench { global, client, args: &args, shape: &shape, clients: &clients };
    let interrupted = interrupt::watch()?;
    let generator = Generator::start();
    let mut passes: Vec<Vec<Step>> = Vec::new();
    let mut replication = 0;
    for _pass in 0..args.repeat {
        let mut steps = Vec::new();
        for &count in &counts {
            let name = format!("{}-{count}", args.topic);
            let (facts, create) = bench.create(&name, count).await?;
            replication = facts.replication;
            let measured = tokio::select! {
                measured = bench.measure(&facts) => measured,
                () = interrupted.notified() => Err(anyhow::anyhow!("interrupted")),
            };
            // Whatever happened, nothing is left behind.
            let asked = Instant::now();
            let deleted = client.admin().delete_topic(&name).await;
            let delete = asked.elapsed();
            let step = measured?;
            deleted.with_context(|| format!("delete topic {name}"))?;
            steps.push(Step { create, delete, ..step });
        }
        passes.push(steps);
    }
    let mut more = Map::new();
    more.insert("records".to_owned(), json!(args.records));
    shape.tell(&args.load, &mut more);
    more.insert("batch_bytes".to_owned(), json!(args.batch_bytes));
    more.insert("in_flight_bytes".to_owned(), json!(args.in_flight));
    more.insert("replication".to_owned(), json!(replication));
    more.insert("durability".to_owned(), json!(args.durability));
    more.insert("repeat".to_owned(), json!(args.repeat));
    let all = passes.iter().map(|steps| steps.iter().map(Step::json).collect::<Vec<_>>());
    more.insert("runs".to_owned(), json!(all.collect::<Vec<_>>()));
    let table = Tabular {
        bench: "partitions",
        promises: String::new(),
        more,
        columns: COLUMNS,
        rows: rows(&passes),
        lines: spreads(&passes),
        effort: Some(generator.effort()),
    };
    publish(global, &args.report, &table)?;
    Ok(Answer::Yes)
}

struct Bench<'a> {
    global: &'a Global,
    client: &'a Client,
    args: &'a BenchPartitionsArgs,
    shape: &'a Shape,
    clients: &'a [Client],
}

impl Bench<'_> {
    async fn create(&self, name: &str, partitions: u32) -> anyhow::Result<(TopicFacts, Duration)> {
        let topic = NewTopic::new(name)
            .partitions(partitions)
            .replication(self.args.replication.unwrap_or(0))
            .config("durability", &self.args.durability);
        let start = Instant::now();
        match self.client.admin().create_topic(topic).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::TopicExists => anyhow::bail!(
                "topic {name} exists: this bench deletes what it made, so delete it yourself or choose another --topic"
            ),
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "create topic {name}; many partitions may take longer than --timeout {:?}",
                        self.global.timeout
                    )
                });
            }
        }
        let create = start.elapsed();
        Ok((topic::ask(self.client, name).await?, create))
    }

    /// Produces and consumes. What is not measured here is zero.
    async fn measure(&self, facts: &TopicFacts) -> anyhow::Result<Step> {
        let settings = Settings {
            batch_bytes: usize::try_from(self.args.batch_bytes)?,
            in_flight: usize::try_from(self.args.in_flight)?,
            idempotent: true,
        };
        let partitions = u64::from(facts.partitions);
        let open = {
            // Batches of one record, one for each partition.
            let load = &self.args.load;
            let mut one = Load::new(&self.clients[..1], load, settings, self.shape, facts, Hand::Batch(1));
            let start = Instant::now();
            let sent = Sent::new(Progress::new(Some(partitions), Unit::Records));
            let part = one.run(start, Upto::Records(partitions), None, 0, &sent).await?;
            anyhow::ensure!(part.outcome.is_good(), "not every partition of {} took a record", facts.name);
            start.elapsed()
        };
        let hand = Hand::Batch(self.args.batch_bytes);
        let mut load = Load::new(self.clients, &self.args.load, settings, self.shape, facts, hand);
        let start = Instant::now();
        let sent = Sent::new(Progress::new(Some(self.args.records), Unit::Records));
        let outcome = load.run(start, Upto::Records(self.args.records), None, 0, &sent).await?.outcome;
        anyhow::ensure!(outcome.is_good(), "not everything that was sent to {} was acknowledged", facts.name);
        let produced = outcome.last.unwrap_or(start) - start;
        let wanted = partitions + self.args.records;
        let (consumed_records, consume, first_batch) = self.consume(facts, wanted).await?;
        Ok(Step {
            partitions: facts.partitions,
            create: Duration::ZERO,
            open,
            produce: megabytes_per_second(outcome.bytes, produced),
            acknowledged_us_p99: outcome.measured.latencies.at(0.99),
            consume,
            first_batch,
            delete: Duration::ZERO,
            consumed_records,
        })
    }

    async fn consume(&self, facts: &TopicFacts, wanted: u64) -> anyhow::Result<(u64, f64, Duration)> {
        let mut checks = Checks::new(Some(self.shape.sizes().clone()), facts.partitions);
        let progress = Progress::new(Some(wanted), Unit::Records);
        let start = Instant::now();
        let consumer = self.client.consumer(&facts.name).from(StartAt::Earliest);
        let mut consumer = consumer.memory_bytes(CONSUMER_BYTES).build().await?;
        let (mut records, mut bytes, mut first_batch) = (0, 0, None);
        while records < wanted {
            let batch = next_batch(&mut consumer, self.global.timeout, records).await?;
            first_batch.get_or_insert_with(|| start.elapsed());
            // Without a limit: what comes twice is not overlooked.
            let (count, length) = checks.take(&batch, u64::MAX)?;
            records += count;
            bytes += length;
            progress.set(records);
        }
        let elapsed = start.elapsed();
        anyhow::ensure!(records == wanted, "topic {} had {records} records, not {wanted}", facts.name);
        Ok((records, megabytes_per_second(bytes, elapsed), first_batch.unwrap_or_default()))
    }
}

impl Step {
    fn json(&self) -> Value {
        json!({
            "partitions": self.partitions,
            "create_us": us(self.create),
            "open_us": us(self.open),
            "produce_megabytes_per_second": self.produce,
            "acknowledged_us_p99": self.acknowledged_us_p99,
            "consume_megabytes_per_second": self.consume,
            "first_batch_us": us(self.first_batch),
            "delete_us": us(self.delete),
            "consumed_records": self.consumed_records,
        })
    }
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn megabytes_per_second(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 / elapsed.as_secs_f64().max(1e-9) / 1e6
}

/// Of every count a figure of each pass; the first count is one partition.
fn of_passes(passes: &[Vec<Step>], index: usize, figure: impl Fn(&Step, &Step) -> f64) -> Option<Spread> {
    Spread::of(passes.iter().filter_map(|steps| Some(figure(steps.get(index)?, steps.first()?))))
}

/// A row for each count, of medians. Shares are those of a pass with its own one partition.
fn rows(passes: &[Vec<Step>]) -> Vec<Vec<Value>> {
    let counts = passes.first().map_or(0, Vec::len);
    let row = |index: usize| {
        let median = |figure: fn(&Step, &Step) -> f64| {
            of_passes(passes, index, figure).map_or(Value::Null, |spread| json!(spread.median))
        };
        let whole = |figure: fn(&Step, &Step) -> f64| {
            of_passes(passes, index, figure).map_or(Value::Null, |spread| json!(spread.median as u64))
        };
        vec![
            whole(|step, _| f64::from(step.partitions)),
            whole(|step, _| us(step.create) as f64),
            whole(|step, _| us(step.open) as f64),
            median(|step, _| step.produce),
            median(|step, one| step.produce / one.produce),
            whole(|step, _| step.acknowledged_us_p99 as f64),
            median(|step, _| step.consume),
            median(|step, one| step.consume / one.consume),
            whole(|step, _| us(step.first_batch) as f64),
            whole(|step, _| us(step.delete) as f64),
            whole(|step, _| step.consumed_records as f64),
        ]
    };
    (0..counts).map(row).collect()
}

/// How far apart the shares of several passes are.
fn spreads(passes: &[Vec<Step>]) -> Vec<String> {
    if passes.len() < 2 {
        return Vec::new();
    }
    let line = |index: usize| {
        let produce = of_passes(passes, index, |step, one| step.produce / one.produce * 100.0)?;
        let consume = of_passes(passes, index, |step, one| step.consume / one.consume * 100.0)?;
        let partitions = passes.first()?.get(index)?.partitions;
        Some(format!(
            "{partitions} partitions: produce {:.0} % of one ({:.0} to {:.0}), consume {:.0} % ({:.0} to {:.0})",
            produce.median, produce.least, produce.most, consume.median, consume.least, consume.most
        ))
    };
    (1..passes.first().map_or(0, Vec::len)).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(partitions: u32, produce: f64, consume: f64) -> Step {
        Step {
            partitions,
            create: Duration::from_micros(u64::from(partitions)),
            open: Duration::from_millis(1),
            produce,
            acknowledged_us_p99: 10,
            consume,
            first_batch: Duration::ZERO,
            delete: Duration::ZERO,
            consumed_records: 7,
        }
    }

    #[test]
    fn shares_are_of_the_same_pass_and_medians_of_all() {
        // The second pass was twice as fast in everything: the shares do not change.
        let passes = vec![
            vec![step(1, 100.0, 400.0), step(10, 80.0, 200.0)],
            vec![step(1, 200.0, 800.0), step(10, 160.0, 400.0)],
            vec![step(1, 100.0, 400.0), step(10, 60.0, 300.0)],
        ];
        let rows = rows(&passes);
        let at = |row: usize, name: &str| {
            rows[row][COLUMNS.iter().position(|column| column.name == name).unwrap()].clone()
        };
        assert_eq!((at(0, "produce_share"), at(0, "consume_share")), (json!(1.0), json!(1.0)));
        assert_eq!((at(1, "produce_share"), at(1, "consume_share")), (json!(0.8), json!(0.5)));
        assert_eq!(at(1, "produce_megabytes_per_second"), json!(80.0));
        assert_eq!((at(1, "partitions"), at(1, "create_us")), (json!(10), json!(10)));
        let lines = spreads(&passes);
        assert_eq!(lines, ["10 partitions: produce 80 % of one (60 to 80), consume 50 % (50 to 75)"]);
    }
}
