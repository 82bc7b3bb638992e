//! What was measured over time, for spreadsheets.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;

use super::report::Report;

/// Writes one line for each window of each run.
pub(super) fn write(path: &Path, runs: &[Report]) -> anyhow::Result<()> {
    std::fs::write(path, text(runs)?).with_context(|| format!("write the CSV report {}", path.display()))
}

fn text(runs: &[Report]) -> anyhow::Result<String> {
    let mut text = String::from(
        "bench,run,seconds,records_per_second,megabytes_per_second,latency_us_p50,latency_us_p99,latency_us_max\n",
    );
    for (number, run) in (1..).zip(runs) {
        let size = run.bytes as f64 / run.records.max(1) as f64;
        for point in run.measured.series.points(run.elapsed) {
            let [p50, p99, max] = point
                .latency_us
                .map_or_else(Default::default, |us| [us.p50, us.p99, us.max].map(|us| us.to_string()));
            let rate = point.records_per_second;
            writeln!(
                text,
                "{},{number},{:.3},{rate:.1},{:.3},{p50},{p99},{max}",
                run.bench,
                point.seconds,
                rate * size / 1e6
            )?;
        }
    }
    Ok(text)
}
