//! What a bench measured, for people and programs.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::machine::{Effort, Machine};
use super::series::Measured;
use super::topic::TopicFacts;
use super::{csv, html};
use crate::args::{BenchReportArgs, Global, Output};
use crate::output;

/// The longest latency that is told apart: ten minutes.
pub(super) const LATENCY_US_MAX: u64 = 600_000_000;

/// Latencies in microseconds, to three digits.
#[derive(Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// No latencies.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?))
    }

    /// Adds `count` times the same latency.
    pub(crate) fn add(&mut self, latency: Duration, count: u64) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record_n(us.max(1), count);
    }

    /// Adds those of somebody else.
    pub(crate) fn absorb(&mut self, other: &Self) -> anyhow::Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    /// The latency that `quantile` of all do not exceed.
    pub(crate) fn at(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile)
    }

    /// The longest.
    pub(crate) fn max(&self) -> u64 {
        self.0.max()
    }

    /// How many.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The figures of a report.
    pub(crate) fn json(&self) -> Value {
        json!({
            "p50": self.at(0.5),
            "p90": self.at(0.9),
            "p99": self.at(0.99),
            "p999": self.at(0.999),
            "max": self.0.max(),
        })
    }

    /// The figures for people.
    pub(crate) fn text(&self) -> String {
        if self.count() == 0 {
            return "none measured".to_owned();
        }
        format!(
            "p50 {}, p99 {}, p99.9 {}, max {}",
            output::microseconds(self.at(0.5)),
            output::microseconds(self.at(0.99)),
            output::microseconds(self.at(0.999)),
            output::microseconds(self.0.max()),
        )
    }
}

/// What one run of a bench reports.
#[derive(Debug)]
pub(crate) struct Report {
    /// `produce`, `consume` or `latency`.
    pub(crate) bench: &'static str,
    pub(crate) topic: TopicFacts,
    pub(crate) records: u64,
    /// Bytes of values.
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    /// What the latencies are from and to.
    pub(crate) latency_of: &'static str,
    pub(crate) measured: Measured,
    /// `all`, `leader`, `none`; `null` where nothing is produced.
    pub(crate) acks: Option<&'static str>,
    pub(crate) effort: Effort,
    /// What else there is to say.
    pub(crate) more: Map<String, Value>,
    /// More lines for people.
    pub(crate) lines: Vec<String>,
}

impl Report {
    pub(super) fn records_per_second(&self) -> f64 {
        self.records as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub(super) fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64().max(1e-9) / 1e6
    }

    fn document(&self) -> Map<String, Value> {
        let mut document = Map::new();
        let mut insert = |name: &str, value: Value| document.insert(name.to_owned(), value);
        insert("bench", json!(self.bench));
        insert("topic", json!(self.topic.name));
        insert("partitions", json!(self.topic.partitions));
        insert("replication", json!(self.topic.replication));
        insert("durability", json!(self.topic.durability));
        insert("acks", json!(self.acks));
        insert("records", json!(self.records));
        insert("bytes", json!(self.bytes));
        insert("seconds", json!(self.elapsed.as_secs_f64().max(1e-9)));
        insert("records_per_second", json!(self.records_per_second()));
        insert("megabytes_per_second", json!(self.megabytes_per_second()));
        insert("latency_of", json!(self.latency_of));
        insert("latency_us", self.measured.latencies.json());
        insert("generator", self.effort.json());
        document.extend(self.more.clone());
        document
    }

    /// One line for people.
    pub(super) fn summary(&self) -> String {
        format!(
            "{}: {} in {:.2} s, {} a second, {:.1} MB/s",
            self.bench,
            output::plural(self.records, "record", "records"),
            self.elapsed.as_secs_f64(),
            output::count(self.records_per_second() as u64),
            self.megabytes_per_second()
        )
    }

    /// What was promised to whom while it was measured, on a line.
    pub(super) fn promises(&self) -> String {
        let acks = self.acks.map_or_else(String::new, |acks| format!(", acks {acks}"));
        format!(
            "topic {}: durability {}, replication {}, {}{acks}",
            self.topic.name,
            self.topic.durability,
            self.topic.replication,
            output::plural(u64::from(self.topic.partitions), "partition", "partitions"),
        )
    }

    /// The settings of the bench, by name.
    pub(super) fn settings(&self) -> Vec<String> {
        self.more.iter().filter_map(|(name, value)| for_people(name, value)).collect()
    }

    fn print(&self) -> anyhow::Result<()> {
        output::line(self.summary())?;
        output::line(format!("latency ({}): {}", self.latency_of, self.measured.latencies.text()))?;
        for line in &self.lines {
            output::line(line)?;
        }
        output::line(self.promises())?;
        let settings = self.settings();
        if !settings.is_empty() {
            output::line(settings.join(", "))?;
        }
        output::line(self.effort.text())
    }
}

/// The median of several runs, and how far apart they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) least: f64,
    pub(super) median: f64,
    pub(super) most: f64,
}

impl Spread {
    /// `None` when there is nothing.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let median = *values.get(values.len() / 2)?;
        Some(Self { least: *values.first()?, median, most: *values.last()? })
    }

    fn json(self) -> Value {
        json!({ "min": self.least, "median": self.median, "max": self.most })
    }
}

/// Which run stands for all: the one with the median throughput.
pub(super) fn median_run(runs: &[Report]) -> Option<usize> {
    let mut order: Vec<usize> = (0..runs.len()).collect();
    order.sort_by(|&one, &other| runs[one].records_per_second().total_cmp(&runs[other].records_per_second()));
    order.get(runs.len() / 2).copied()
}

/// Prints the runs of a bench to standard output, and writes the files that were asked for.
pub(crate) fn publish(global: &Global, args: &BenchReportArgs, runs: &[Report]) -> anyhow::Result<()> {
    let machine = Machine::here();
    if let Some(path) = &args.html {
        html::write(path, &machine, runs)?;
    }
    if let Some(path) = &args.csv {
        csv::write(path, runs)?;
    }
    let Some(typical) = median_run(runs).map(|index| &runs[index]) else { return Ok(()) };
    let rates = Spread::of(runs.iter().map(Report::records_per_second));
    let megabytes = Spread::of(runs.iter().map(Report::megabytes_per_second));
    let tail = Spread::of(runs.iter().map(|run| run.measured.latencies.at(0.99) as f64));
    if global.output == Output::Json {
        let mut document = typical.document();
        document.insert("machine".to_owned(), machine.json());
        if let (true, Some(rates), Some(megabytes), Some(tail)) = (runs.len() > 1, rates, megabytes, tail) {
            let spread = json!({
                "records_per_second": rates.json(),
                "megabytes_per_second": megabytes.json(),
                "latency_us_p99": tail.json(),
            });
            document.insert("spread".to_owned(), spread);
            let all: Vec<Value> = runs.iter().map(|run| Value::Object(run.document())).collect();
            document.insert("runs".to_owned(), Value::Array(all));
        }
        return output::json(&document);
    }
    if let (true, Some(megabytes), Some(tail)) = (runs.len() > 1, megabytes, tail) {
        for (number, run) in (1..).zip(runs) {
            output::line(format!("run {number}: {}", run.summary()))?;
        }
        output::line(format!(
            "median {:.1} MB/s ({:.1} to {:.1}), p99 {} ({} to {}); the run with the median:",
            megabytes.median,
            megabytes.least,
            megabytes.most,
            output::microseconds(tail.median as u64),
            output::microseconds(tail.least as u64),
            output::microseconds(tail.most as u64),
        ))?;
    }
    typical.print()?;
    output::line(machine.text())
}

/// `send each`, `batch bytes 262144`; what has no value is left out.
pub(super) fn for_people(name: &str, value: &Value) -> Option<String> {
    let value = match value {
        Value::Null | Value::Object(_) | Value::Array(_) => return None,
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Some(format!("{} {value}", name.replace('_', " ")))
}

/// The name of `--acks` in reports.
pub(crate) const fn acks_name(acks: crate::args::AcksArg) -> &'static str {
    match acks {
        crate::args::AcksArg::All => "all",
        crate::args::AcksArg::Leader => "leader",
        crate::args::AcksArg::None => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_ends_are_told() {
        let spread = Spread::of([5.0, 1.0, 3.0]).unwrap();
        assert_eq!(spread, Spread { least: 1.0, median: 3.0, most: 5.0 });
        assert_eq!(Spread::of([]), None);
    }
}
