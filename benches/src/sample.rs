//! Medians and percentiles of small samples.

use std::time::Duration;

use serde::Serialize;

/// The middle value; of two middle ones the mean. Zero for an empty sample.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted.get(middle).copied().unwrap_or_default(),
        _ => sorted.iter().skip(middle - 1).take(2).sum::<f64>() / 2.0,
    }
}

/// How a sample of durations is spread, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// How many values.
    pub count: usize,
    /// Half are no longer than this.
    pub p50: f64,
    /// 99 in 100 are no longer than this.
    pub p99: f64,
    /// 999 in 1000 are no longer than this.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Spread {
    /// The spread of `durations`, which are put in order.
    pub fn of(durations: &mut [Duration]) -> Self {
        durations.sort_unstable();
        Self {
            count: durations.len(),
            p50: at(durations, 500),
            p99: at(durations, 990),
            p999: at(durations, 999),
            max: at(durations, 1000),
        }
    }
}

/// The smallest value that `per_mille` thousandths of the sorted values do not exceed.
fn at(sorted: &[Duration], per_mille: usize) -> f64 {
    let rank = (sorted.len() * per_mille).div_ceil(1000).max(1);
    sorted.get(rank - 1).map_or(0.0, |value| value.as_nanos() as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_sample_is_between_the_middle_values() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn percentiles_are_values_of_the_sample() {
        let mut durations: Vec<_> = (1..=1000).rev().map(Duration::from_micros).collect();
        let spread = Spread::of(&mut durations);
        assert_eq!((spread.p50, spread.p99, spread.p999, spread.max), (500.0, 990.0, 999.0, 1000.0));
        assert_eq!(Spread::of(&mut []), Spread::default());
        assert_eq!(Spread::of(&mut [Duration::from_micros(7)]).p50, 7.0);
    }
}
