//! A report as one HTML file that needs nothing else.

use std::path::Path;

use anyhow::Context;

use super::chart::{Axis, Line, chart, escaped};
use super::machine::Machine;
use super::report::{Report, Spread, median_run};
use crate::output;

/// Percentiles of the chart, and how they are called.
const PERCENTILES: [(f64, &str); 7] = [
    (0.0, "0 %"),
    (0.5, "50 %"),
    (0.9, "90 %"),
    (0.99, "99 %"),
    (0.999, "99.9 %"),
    (0.9999, "99.99 %"),
    (0.99999, "99.999 %"),
];

/// Points of each line of the chart of percentiles.
const PERCENTILE_POINTS: u32 = 200;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#1c2128}\
h1{font-size:1.5em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse}td,th{padding:.2em .9em;text-align:right;\
border-bottom:1px solid #d8dee4}td:first-child,th:first-child{text-align:left}.grid{stroke:#e4e8ec;stroke-width:1}\
.tick{font-size:11px;fill:#57606a}.axis{font-size:12px;fill:#57606a}svg{width:100%;height:auto}.limit{color:#b3261e}";

/// Writes the report of all runs.
pub(super) fn write(path: &Path, machine: &Machine, runs: &[Report]) -> anyhow::Result<()> {
    let Some(typical) = median_run(runs).map(|index| &runs[index]) else { return Ok(()) };
    std::fs::write(path, page(machine, runs, typical))
        .with_context(|| format!("write the HTML report {}", path.display()))
}

fn page(machine: &Machine, runs: &[Report], typical: &Report) -> String {
    let mut body = String::new();
    let mut paragraph = |text: &str, class: &str| {
        body.push_str(&format!("<p{class}>{}</p>\n", escaped(text)));
    };
    paragraph(&typical.promises(), "");
    paragraph(&typical.settings().join(", "), "");
    paragraph(&machine.text(), "");
    let class = if typical.effort.is_the_limit() { " class=\"limit\"" } else { "" };
    paragraph(&typical.effort.text(), class);
    body.push_str(&table(runs));
    body.push_str(&format!("<h2>Latency ({}), percentiles of every run</h2>\n", escaped(typical.latency_of)));
    body.push_str(&percentiles(runs));
    let which = if runs.len() > 1 { ", the run with the median throughput" } else { "" };
    body.push_str(&format!("<h2>Records a second{which}</h2>\n"));
    body.push_str(&throughput(typical));
    body.push_str(&format!("<h2>Latency over time{which}</h2>\n"));
    body.push_str(&over_time(typical));
    document(typical.bench, &body)
}

/// A page about a bench, around its body.
pub(super) fn document(bench: &str, body: &str) -> String {
    let title = format!("highwater bench {bench}");
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n{body}</body></html>\n"
    )
}

/// A paragraph for each line.
pub(super) fn paragraphs(lines: &[String]) -> String {
    lines.iter().map(|line| format!("<p>{}</p>\n", escaped(line))).collect()
}

fn table(runs: &[Report]) -> String {
    let mut text = String::from(
        "<table><tr><th>run</th><th>records</th><th>seconds</th><th>records/s</th><th>MB/s</th><th>p50</th><th>p99</th>\
         <th>p99.9</th><th>max</th></tr>\n",
    );
    for (number, run) in (1..).zip(runs) {
        let latencies = &run.measured.latencies;
        let us = |at: u64| if latencies.count() == 0 { String::new() } else { output::microseconds(at) };
        text.push_str(&format!(
            "<tr><td>{number}</td><td>{}</td><td>{:.2}</td><td>{}</td><td>{:.1}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td></tr>\n",
            output::count(run.records),
            run.elapsed.as_secs_f64(),
            output::count(run.records_per_second() as u64),
            run.megabytes_per_second(),
            us(latencies.at(0.5)),
            us(latencies.at(0.99)),
            us(latencies.at(0.999)),
            us(latencies.max()),
        ));
    }
    if let (true, Some(rate)) = (runs.len() > 1, Spread::of(runs.iter().map(Report::megabytes_per_second))) {
        text.push_str(&format!(
            "<tr><td>median</td><td></td><td></td><td></td><td>{:.1} ({:.1} to {:.1})</td><td></td><td></td><td></td>\
             <td></td></tr>\n",
            rate.median, rate.least, rate.most
        ));
    }
    text + "</table>\n"
}

/// Where a quantile is on the chart: every nine more is as far again.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

fn microseconds_tick(us: f64) -> String {
    match us {
        ..1e3 => format!("{us:.0} µs"),
        ..1e6 => format!("{:.0} ms", us / 1e3),
        _ => format!("{:.0} s", us / 1e6),
    }
}

fn latency_axis(values: impl Iterator<Item = f64> + Clone) -> Axis {
    let least = values.clone().fold(f64::INFINITY, f64::min);
    let most = values.fold(1.0, f64::max);
    Axis::logarithmic("latency", least.min(most), most, microseconds_tick)
}

fn percentiles(runs: &[Report]) -> String {
    let last = nines(PERCENTILES[PERCENTILES.len() - 1].0);
    let ticks = PERCENTILES.iter().map(|(quantile, name)| (nines(*quantile), (*name).to_owned())).collect();
    let lines: Vec<Line> = (1..)
        .zip(runs)
        .map(|(number, run): (u32, _)| {
            let latencies = &run.measured.latencies;
            let point = |step: u32| {
                let at = last * f64::from(step) / f64::from(PERCENTILE_POINTS);
                let quantile = 1.0 - 10_f64.powf(-at);
                // Beyond the last record there is nothing.
                let is_there = (1.0 - quantile) * latencies.count() as f64 >= 1.0;
                is_there.then(|| (at, latencies.at(quantile) as f64))
            };
            Line { name: format!("run {number}"), points: (0..=PERCENTILE_POINTS).map(point).collect() }
        })
        .collect();
    let values = lines.iter().flat_map(|line| line.points.iter().flatten()).map(|(_, value)| *value);
    chart(&Axis::with_ticks("of all records", last, ticks), &latency_axis(values), &lines)
}

fn seconds_axis(run: &Report) -> Axis {
    Axis::linear("seconds", run.elapsed.as_secs_f64())
}

fn throughput(run: &Report) -> String {
    let points = run.measured.series.points(run.elapsed);
    let most = points.iter().map(|point| point.records_per_second).fold(0.0, f64::max);
    let points = points.iter().map(|point| Some((point.seconds, point.records_per_second))).collect();
    let line = Line { name: "records a second".to_owned(), points };
    chart(&seconds_axis(run), &Axis::linear("records a second", most), &[line])
}

fn over_time(run: &Report) -> String {
    let points = run.measured.series.points(run.elapsed);
    let line = |name: &str, pick: fn(super::series::PointLatency) -> u64| Line {
        name: name.to_owned(),
        points: points.iter().map(|point| Some((point.seconds, pick(point.latency_us?) as f64))).collect(),
    };
    let lines = [line("p50", |us| us.p50), line("p99", |us| us.p99), line("max", |us| us.max)];
    let values = lines.iter().flat_map(|line| line.points.iter().flatten()).map(|(_, value)| *value);
    chart(&seconds_axis(run), &latency_axis(values), &lines)
}
