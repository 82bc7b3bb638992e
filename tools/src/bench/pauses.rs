//! The times in which nothing came that should have come evenly.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::output;

/// Pauses that are remembered one by one.
const PAUSES_MAX: usize = 1000;

/// Watches something that happens evenly.
#[derive(Debug)]
pub(crate) struct Pauses {
    start: Instant,
    /// What counts as a pause.
    least: Duration,
    last: Option<Instant>,
    longest: Duration,
    /// When each began, counted from the start, and how long it was.
    found: Vec<(Duration, Duration)>,
    count: u64,
}

impl Pauses {
    /// Nothing has happened yet. Pauses shorter than `least` are none.
    pub(crate) const fn new(start: Instant, least: Duration) -> Self {
        Self { start, least, last: None, longest: Duration::ZERO, found: Vec::new(), count: 0 }
    }

    /// It has happened. Times do not go back.
    pub(crate) fn happened(&mut self, now: Instant) {
        let since = self.last.replace(now).unwrap_or(now);
        let pause = now.saturating_duration_since(since);
        self.longest = self.longest.max(pause);
        if pause >= self.least {
            self.count += 1;
            if self.found.len() < PAUSES_MAX {
                self.found.push((since.saturating_duration_since(self.start), pause));
            }
        }
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let one = |(at, pause): &(Duration, Duration)| json!({ "at_seconds": output::seconds(*at), "milliseconds": milliseconds(*pause) });
        json!({
            "longest_milliseconds": milliseconds(self.longest),
            "count": self.count,
            "pauses": self.found.iter().map(one).collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{} of {:?} or more, the longest {} ms",
            output::plural(self.count, "pause", "pauses"),
            self.least,
            milliseconds(self.longest)
        );
        for (at, pause) in self.found.iter().take(20) {
            text.push_str(&format!("\n  after {:.1} s: {} ms", at.as_secs_f64(), milliseconds(*pause)));
        }
        text
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_told_from_an_even_flow() {
        let start = Instant::now();
        let mut pauses = Pauses::new(start, Duration::from_millis(100));
        for at in [50, 60, 70, 400, 410, 420, 520, 530] {
            pauses.happened(start + Duration::from_millis(at));
        }
        assert_eq!(
            pauses.json(),
            json!({
                "longest_milliseconds": 330,
                "count": 2,
                "pauses": [
                    { "at_seconds": 0.07, "milliseconds": 330 },
                    { "at_seconds": 0.42, "milliseconds": 100 },
                ],
            })
        );
        assert!(pauses.text().starts_with("2 pauses of 100ms or more, the longest 330 ms\n  after 0.1 s"));
    }
}
