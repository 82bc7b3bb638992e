//! How many bytes the values of a bench have: all the same, or as a distribution says.

use std::f64::consts::TAU;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::payload::HEAD;
use super::random::unit;
use crate::parse;

/// The least bytes of a value: what it takes to check one.
pub(crate) const SIZE_LEAST: u32 = HEAD as u32;

/// The most bytes of a value: what fits into a batch.
pub(crate) const SIZE_MOST: u32 = 8 << 20;

/// Sizes that a log-normal distribution is made of.
const DRAWN: usize = 1 << 16;

/// The largest factor of `lognormal(MEDIAN,FACTOR)`.
const FACTOR_MOST: f64 = 10.0;

/// The most entries of a table of sizes.
const TABLE_MOST: usize = 64;

/// What sizes are drawn for, apart from other draws of a sequence number.
const PURPOSE: u64 = 0x7369_7a65;

/// Sizes in bytes. The size of a record follows from its sequence number.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sizes {
    /// As it was given.
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Fixed(u32),
    /// Both are included.
    Uniform {
        least: u32,
        most: u32,
    },
    /// As many draws as [`DRAWN`].
    Lognormal(Arc<[u32]>),
    /// Each size and the weights up to it, its own included; weights add up to 1.
    Table(Arc<[(u32, f64)]>),
}

impl Sizes {
    /// Parses `1KiB`, `100..2000`, `lognormal(1KiB,2.0)` or `100:9,10KiB:1`.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        let kind = if let Some(inner) = arguments(trimmed, "lognormal") {
            let (median, factor) =
                inner.split_once(',').ok_or("expected a median and a factor, such as lognormal(1KiB,2.0)")?;
            lognormal(size(median)?, factor.trim())?
        } else if let Some((least, most)) = trimmed.split_once("..") {
            let (least, most) = (size(least)?, size(most)?);
            if least > most {
                return Err(format!("{least} is more than {most}: the smaller size comes first"));
            }
            Kind::Uniform { least, most }
        } else if trimmed.contains(':') {
            table(trimmed)?
        } else {
            Kind::Fixed(size(trimmed)?)
        };
        Ok(Self { text: trimmed.to_owned(), kind })
    }

    /// The size of a record.
    #[inline]
    pub(crate) fn at(&self, sequence: u64) -> u32 {
        let draw = || unit(sequence, PURPOSE);
        match &self.kind {
            Kind::Fixed(size) => *size,
            Kind::Uniform { least, most } => least + (draw() * f64::from(most - least + 1)) as u32,
            Kind::Lognormal(drawn) => drawn[(draw() * DRAWN as f64) as usize],
            Kind::Table(rows) => {
                let at = draw();
                let row = rows.partition_point(|(_, upto)| *upto <= at).min(rows.len() - 1);
                rows[row].0
            }
        }
    }

    /// The bytes of several records.
    pub(crate) fn total(&self, sequences: Range<u64>) -> u64 {
        match &self.kind {
            Kind::Fixed(size) => u64::from(*size) * (sequences.end - sequences.start),
            _ => sequences.map(|sequence| u64::from(self.at(sequence))).sum(),
        }
    }

    /// The size on average.
    pub(crate) fn mean(&self) -> f64 {
        match &self.kind {
            Kind::Fixed(size) => f64::from(*size),
            Kind::Uniform { least, most } => f64::midpoint(f64::from(*least), f64::from(*most)),
            Kind::Lognormal(drawn) => drawn.iter().map(|size| f64::from(*size)).sum::<f64>() / DRAWN as f64,
            Kind::Table(rows) => {
                let mut before = 0.0;
                let mut mean = 0.0;
                for (size, upto) in rows.iter() {
                    mean += f64::from(*size) * (upto - before);
                    before = *upto;
                }
                mean
            }
        }
    }

    /// The size, when all are the same.
    pub(crate) const fn fixed(&self) -> Option<u32> {
        match self.kind {
            Kind::Fixed(size) => Some(size),
            _ => None,
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// What is between the parentheses of `name(…)`.
pub(super) fn arguments<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.strip_prefix(name)?.trim_start().strip_prefix('(')?.strip_suffix(')')
}

fn size(text: &str) -> Result<u32, String> {
    const SYNTAX: &str = "expected bytes of a value such as 1024 or 1KiB; 100..2000; lognormal(1KiB,2.0); or size:weight,…, \
                          such as 100:9,10KiB:1";
    let bytes = parse::bytes(text.trim()).map_err(|_| format!("{text:?} is not a size: {SYNTAX}"))?;
    u32::try_from(bytes).ok().filter(|size| (SIZE_LEAST..=SIZE_MOST).contains(size)).ok_or_else(|| {
        format!("a value has {SIZE_LEAST} bytes at least, to be checked, and {SIZE_MOST} at most; {bytes} is outside")
    })
}

/// Draws from a log-normal distribution: `factor` is e to the standard deviation of the logarithm.
fn lognormal(median: u32, factor: &str) -> Result<Kind, String> {
    let factor =
        factor.parse::<f64>().ok().filter(|factor| *factor > 1.0 && *factor <= FACTOR_MOST).ok_or_else(
            || format!("the factor {factor:?} is not a number above 1 and up to {FACTOR_MOST}"),
        )?;
    let deviation = factor.ln();
    let draw = |index: usize| {
        // Two even draws make one normal one (Box and Muller). The first must not be 0.
        let (one, other) = (1.0 - unit(index as u64, PURPOSE + 1), unit(index as u64, PURPOSE + 2));
        let normal = (-2.0 * one.ln()).sqrt() * (TAU * other).cos();
        let size = f64::from(median) * (deviation * normal).exp();
        size.round().clamp(f64::from(SIZE_LEAST), f64::from(SIZE_MOST)) as u32
    };
    Ok(Kind::Lognormal((0..DRAWN).map(draw).collect()))
}

fn table(text: &str) -> Result<Kind, String> {
    let mut rows = Vec::new();
    let mut sum = 0.0;
    for entry in text.split(',') {
        let (bytes, weight) =
            entry.split_once(':').ok_or_else(|| format!("{entry:?} has no weight: expected size:weight"))?;
        let weight = weight
            .trim()
            .parse::<f64>()
            .ok()
            .filter(|weight| *weight > 0.0 && weight.is_finite())
            .ok_or_else(|| format!("the weight {weight:?} is not a number above 0"))?;
        sum += weight;
        rows.push((size(bytes)?, sum));
    }
    if rows.len() > TABLE_MOST {
        return Err(format!("{} sizes are more than {TABLE_MOST}", rows.len()));
    }
    Ok(Kind::Table(rows.into_iter().map(|(size, upto)| (size, upto / sum)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: u64 = 200_000;

    fn drawn(text: &str) -> (Sizes, Vec<u32>) {
        let sizes = Sizes::parse(text).unwrap();
        let mut drawn: Vec<u32> = (0..COUNT).map(|sequence| sizes.at(sequence)).collect();
        let mean = drawn.iter().map(|size| f64::from(*size)).sum::<f64>() / COUNT as f64;
        assert!((mean / sizes.mean() - 1.0).abs() < 0.02, "{text}: {mean}, not {}", sizes.mean());
        assert_eq!(sizes.total(0..COUNT), drawn.iter().map(|size| u64::from(*size)).sum::<u64>());
        assert_eq!(sizes.to_string(), text);
        drawn.sort_unstable();
        (sizes, drawn)
    }

    fn share(drawn: &[u32], range: std::ops::RangeInclusive<u32>) -> f64 {
        drawn.iter().filter(|size| range.contains(size)).count() as f64 / drawn.len() as f64
    }

    #[test]
    fn a_fixed_size_and_its_bounds() {
        let (sizes, all) = drawn("1KiB");
        assert_eq!((sizes.fixed(), all[0], all[all.len() - 1]), (Some(1024), 1024, 1024));
        assert!(
            Sizes::parse(&SIZE_LEAST.to_string()).is_ok() && Sizes::parse(&SIZE_MOST.to_string()).is_ok()
        );
        assert!(Sizes::parse(&(SIZE_LEAST - 1).to_string()).is_err());
        assert!(Sizes::parse(&(SIZE_MOST + 1).to_string()).is_err());
    }

    #[test]
    fn an_even_range_has_both_ends_and_nothing_beyond() {
        let (sizes, all) = drawn("100..119");
        assert_eq!((all[0], all[all.len() - 1], sizes.fixed()), (100, 119, None));
        for size in 100..120 {
            assert!((share(&all, size..=size) - 0.05).abs() < 0.005, "{size}");
        }
        assert_eq!(drawn("500..500").1[7], 500);
    }

    #[test]
    fn two_thirds_of_a_log_normal_are_within_the_factor_and_half_below_the_median() {
        let (_, all) = drawn("lognormal(1KiB,2.0)");
        assert!((all[all.len() / 2]).abs_diff(1024) < 25, "{}", all[all.len() / 2]);
        assert!((share(&all, 512..=2048) - 0.6827).abs() < 0.01);
        assert!((share(&all, 256..=4096) - 0.9545).abs() < 0.01);
        let (_, wide) = drawn("lognormal(20,10)");
        assert_eq!(wide[0], SIZE_LEAST, "what would be smaller is as large as it has to be");
    }

    #[test]
    fn a_table_gives_each_size_its_weight() {
        let (_, all) = drawn("100:90,10KiB:9,1MiB:1");
        for (size, weight) in [(100, 0.9), (10 << 10, 0.09), (1 << 20, 0.01)] {
            assert!((share(&all, size..=size) - weight).abs() < 0.005, "{size}");
        }
        let most: Vec<String> = (0..=TABLE_MOST).map(|row| format!("{}:1", 100 + row)).collect();
        assert!(Sizes::parse(&most[1..].join(",")).is_ok());
        assert!(Sizes::parse(&most.join(",")).unwrap_err().contains("65 sizes are more than 64"));
    }

    #[test]
    fn what_is_no_size_is_said() {
        for (wrong, hint) in [
            ("", "lognormal(1KiB,2.0)"),
            ("1KB", "1KiB"),
            ("15", "16 bytes at least"),
            ("9MiB", "8388608 at most"),
            ("2000..100", "the smaller size comes first"),
            ("100..", "not a size"),
            ("lognormal(1KiB)", "a median and a factor"),
            ("lognormal(1KiB,1.0)", "above 1 and up to 10"),
            ("lognormal(1KiB,11)", "above 1 and up to 10"),
            ("lognormal(1KiB,NaN)", "above 1 and up to 10"),
            ("100:9,200", "has no weight"),
            ("100:0", "above 0"),
            ("100:-1", "above 0"),
            ("100:inf", "above 0"),
        ] {
            let error = Sizes::parse(wrong).unwrap_err();
            assert!(error.contains(hint), "{wrong}: {hint} is not in: {error}");
        }
    }
}
