//! What a bench measured, for people and programs.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::topic::TopicFacts;
use crate::args::{Global, Output};
use crate::output;

/// The longest latency that is told apart: ten minutes.
const LATENCY_US_MAX: u64 = 600_000_000;

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

    /// The latency that `quantile` of all do not exceed.
    pub(crate) fn at(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile)
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

/// What a bench reports.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    /// `produce`, `consume` or `latency`.
    pub(crate) bench: &'static str,
    pub(crate) topic: &'a TopicFacts,
    pub(crate) records: u64,
    /// Bytes of values.
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    /// What the latencies are from and to.
    pub(crate) latency_of: &'static str,
    pub(crate) latencies: &'a Latencies,
    /// `all`, `leader`, `none`; `null` where nothing is produced.
    pub(crate) acks: Option<&'static str>,
    /// What else there is to say.
    pub(crate) more: Map<String, Value>,
}

impl Report<'_> {
    /// Prints it to standard output.
    pub(crate) fn print(&self, global: &Global) -> anyhow::Result<()> {
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        let records_per_second = self.records as f64 / seconds;
        let megabytes_per_second = self.bytes as f64 / seconds / 1e6;
        if global.output == Output::Json {
            let mut document = json!({
                "bench": self.bench,
                "topic": self.topic.name,
                "partitions": self.topic.partitions,
                "replication": self.topic.replication,
                "durability": self.topic.durability,
                "acks": self.acks,
                "records": self.records,
                "bytes": self.bytes,
                "seconds": seconds,
                "records_per_second": records_per_second,
                "megabytes_per_second": megabytes_per_second,
                "latency_of": self.latency_of,
                "latency_us": self.latencies.json(),
            });
            if let Value::Object(fields) = &mut document {
                fields.extend(self.more.clone());
            }
            return output::json(&document);
        }
        output::line(format!(
            "{}: {} in {seconds:.2} s, {} a second, {megabytes_per_second:.1} MB/s",
            self.bench,
            output::plural(self.records, "record", "records"),
            output::count(records_per_second as u64),
        ))?;
        output::line(format!("latency ({}): {}", self.latency_of, self.latencies.text()))?;
        let acks = self.acks.map_or_else(String::new, |acks| format!(", acks {acks}"));
        output::line(format!(
            "topic {}: durability {}, replication {}, {}{acks}",
            self.topic.name,
            self.topic.durability,
            self.topic.replication,
            output::plural(u64::from(self.topic.partitions), "partition", "partitions"),
        ))?;
        let more: Vec<String> =
            self.more.iter().filter_map(|(name, value)| for_people(name, value)).collect();
        if more.is_empty() { Ok(()) } else { output::line(more.join(", ")) }
    }
}

/// `send each`, `batch bytes 262144`; what has no value is left out.
fn for_people(name: &str, value: &Value) -> Option<String> {
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
