//! What commands print: tables for people, JSON for programs, progress on a terminal, and the exit code.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::object::Columns;
use tabled::settings::{Alignment, Padding, Style};

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Done: exit code 0.
    Yes,
    /// The answer is no, and the command has said why: exit code 1.
    No,
}

impl From<Answer> for ExitCode {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Yes => Self::SUCCESS,
            Answer::No => Self::from(1),
        }
    }
}

/// The exit code of a command that failed.
pub(crate) const FAILED: u8 = 2;

/// Whoever read standard output has gone: there is nobody left to tell anything, so the command ends quietly.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub(crate) struct OutputClosed;

/// Tells a closed standard output from other failures of writing to it.
pub(crate) fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("write to standard output")),
    }
}

/// Prints a line to standard output.
pub(crate) fn line(text: impl AsRef<str>) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    written(writeln!(stdout, "{}", text.as_ref()).and_then(|()| stdout.flush()))
}

/// Says something on standard error. When that is closed there is nobody to tell.
pub(crate) fn note(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
}

/// Prints one JSON document to standard output, on a line.
pub(crate) fn json<T: Serialize>(document: &T) -> anyhow::Result<()> {
    line(serde_json::to_string(document)?)
}

/// Rows below a head, in columns as wide as they need to be. Columns named in `numbers` are aligned to the right.
pub(crate) fn table(head: &[&str], numbers: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut builder = Builder::with_capacity(rows.len() + 1, head.len());
    builder.push_record(head.iter().map(|name| (*name).to_owned()));
    for row in rows {
        builder.push_record(row);
    }
    let mut table = builder.build();
    table.with(Style::blank()).with(Padding::new(0, 1, 0, 0));
    for (index, name) in head.iter().enumerate() {
        if numbers.contains(name) {
            table.modify(Columns::one(index), Alignment::right());
        }
    }
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// Bytes as people read them.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A number with separators between thousands.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Microseconds as people read them.
pub(crate) fn microseconds(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// `1 record`, `2 records`.
pub(crate) fn plural(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// Numbers as ranges for people: `3, 7-9`. At most `most` of them are named.
pub(crate) fn ranges(ranges: &[(u64, u64)], most: usize) -> String {
    let name = |&(first, last): &(u64, u64)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    let mut names: Vec<String> = ranges.iter().take(most).map(name).collect();
    if ranges.len() > most {
        names.push(format!("and {} more ranges", ranges.len() - most));
    }
    names.join(", ")
}

/// Progress of long work, on standard error, and only when that is a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Progress towards `total`, or without an end. `unit` is what is counted.
    pub(crate) fn new(total: Option<u64>, unit: Unit) -> Self {
        if !io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden() };
        }
        let amount = match (unit, total.is_some()) {
            (Unit::Records, true) => "{human_pos} of {human_len} records, {per_sec}, {eta} left",
            (Unit::Records, false) => "{human_pos} records, {per_sec}",
            (Unit::Bytes, true) => {
                "{binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left"
            }
            (Unit::Bytes, false) => "{binary_bytes}, {binary_bytes_per_sec}",
            (Unit::Partitions, true) => "{human_pos} of {human_len} partitions moved,",
            (Unit::Partitions, false) => "{human_pos} partitions",
        };
        let bar = if total.is_some() { "{bar:30} " } else { "{spinner} " };
        let style = ProgressStyle::with_template(&format!("{bar}{amount} {{msg}}"))
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar =
            ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(8)).with_style(style);
        Self { bar }
    }

    /// Where the work is now.
    pub(crate) fn set(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// What else there is to say.
    pub(crate) fn say(&self, message: impl Into<String>) {
        if !self.bar.is_hidden() {
            self.bar.set_message(message.into());
        }
    }

    /// Removes it from the terminal.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What progress counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Records.
    Records,
    /// Bytes.
    Bytes,
    /// Partitions.
    Partitions,
}

/// Seconds with three digits, as JSON shows them.
pub(crate) fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(microseconds(1_500), "1.5 ms");
        assert_eq!(ranges(&[(3, 3), (7, 9), (12, 12)], 2), "3, 7-9, and 1 more ranges");
        assert_eq!(plural(1, "record", "records"), "1 record");
    }

    #[test]
    fn tables_have_no_trailing_blanks() {
        let text =
            table(&["NAME", "N"], &["N"], vec![vec!["a".into(), "10".into()], vec!["bb".into(), "5".into()]]);
        assert_eq!(text, "NAME   N\na     10\nbb     5");
    }
}
