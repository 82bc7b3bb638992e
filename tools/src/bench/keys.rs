//! Which keys the records of a bench have, and how often each comes.

use std::fmt;

use super::random::{mix, unit};
use super::sizes::arguments;

/// Bytes of a key: `key-` and twelve digits.
pub(crate) const KEY_BYTES: usize = 16;

/// The largest exponent of `zipf(S)`: from there on nearly all records have the first key.
const EXPONENT_MOST: f64 = 10.0;

/// What keys are drawn for, apart from other draws of a sequence number.
const PURPOSE: u64 = 0x6b65_7900;

/// How often each key comes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Skew {
    /// All equally often.
    Uniform,
    /// The key of rank `r`, from 1 on, in proportion to `r` to the power of minus this.
    Zipf(f64),
}

impl Skew {
    /// Parses `uniform` or `zipf(S)`.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "uniform" {
            return Ok(Self::Uniform);
        }
        let exponent = arguments(text, "zipf").ok_or("expected uniform, or zipf(S) such as zipf(1.1)")?;
        exponent
            .trim()
            .parse()
            .ok()
            .filter(|exponent: &f64| *exponent > 0.0 && *exponent <= EXPONENT_MOST)
            .map(Self::Zipf)
            .ok_or_else(|| {
                format!("the exponent {exponent:?} is not a number above 0 and up to {EXPONENT_MOST}")
            })
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => formatter.write_str("uniform"),
            Self::Zipf(exponent) => write!(formatter, "zipf({exponent})"),
        }
    }
}

/// Draws a key for each sequence number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keys {
    count: u64,
    skew: Skew,
    zipf: Option<Zipf>,
}

impl Keys {
    /// `count` different keys, at least one.
    pub(crate) fn new(count: u64, skew: Skew) -> Self {
        let zipf = match skew {
            Skew::Uniform => None,
            Skew::Zipf(exponent) => Some(Zipf::new(count, exponent)),
        };
        Self { count, skew, zipf }
    }

    /// How many different keys there are.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// How often each comes.
    pub(crate) const fn skew(&self) -> Skew {
        self.skew
    }

    /// Which key a record has, from 0 on; lower ones come more often.
    pub(crate) fn of(&self, sequence: u64) -> u64 {
        match &self.zipf {
            None => ((unit(sequence, PURPOSE) * self.count as f64) as u64).min(self.count - 1),
            Some(zipf) => zipf.rank(sequence) - 1,
        }
    }

    /// The key of a record.
    pub(crate) fn key(&self, sequence: u64) -> [u8; KEY_BYTES] {
        let mut key = *b"key-000000000000";
        let mut left = self.of(sequence);
        for digit in key[4..].iter_mut().rev() {
            *digit += (left % 10) as u8;
            left /= 10;
        }
        key
    }
}

/// Ranks by Zipf's law, without a table: rejection-inversion. The steps of the law are covered by the curve
/// `x^-s`, a point under the curve is drawn by the inverse of its integral, and drawn again in the rare case that it
/// is above the step it fell on.
#[derive(Debug, Clone, Copy)]
struct Zipf {
    count: f64,
    exponent: f64,
    /// The integral where the draw begins: below it is the whole step of rank 1.
    from: f64,
    /// The integral behind the last rank.
    upto: f64,
    /// A draw that was rounded up by no more than this is good without a closer look.
    surely: f64,
}

impl Zipf {
    fn new(count: u64, exponent: f64) -> Self {
        let mut zipf = Self { count: count as f64, exponent, from: 0.0, upto: 0.0, surely: 0.0 };
        zipf.from = zipf.integral(1.5) - 1.0;
        zipf.upto = zipf.integral(zipf.count + 0.5);
        zipf.surely = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.step(2.0));
        zipf
    }

    /// From 1 to the count.
    fn rank(&self, sequence: u64) -> u64 {
        let mut seed = sequence;
        loop {
            let at = self.upto + unit(seed, PURPOSE) * (self.from - self.upto);
            let place = self.inverse(at);
            let rank = place.round().clamp(1.0, self.count);
            if rank - place <= self.surely || at >= self.integral(rank + 0.5) - self.step(rank) {
                return rank as u64;
            }
            seed = mix(seed);
        }
    }

    fn step(&self, rank: f64) -> f64 {
        rank.powf(-self.exponent)
    }

    /// The integral of the curve from 1 to `x`. Exact near an exponent of 1 too, where it becomes the logarithm.
    fn integral(&self, x: f64) -> f64 {
        let power = 1.0 - self.exponent;
        let logarithm = x.ln();
        if (power * logarithm).abs() < 1e-12 { logarithm } else { (power * logarithm).exp_m1() / power }
    }

    fn inverse(&self, integral: f64) -> f64 {
        let power = 1.0 - self.exponent;
        let logarithm =
            if (power * integral).abs() < 1e-12 { integral } else { (power * integral).ln_1p() / power };
        logarithm.exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: u64 = 400_000;

    fn shares(keys: &Keys) -> Vec<f64> {
        let mut counts = vec![0_u64; keys.count() as usize];
        for sequence in 0..COUNT {
            counts[keys.of(sequence) as usize] += 1;
        }
        counts.iter().map(|count| *count as f64 / COUNT as f64).collect()
    }

    #[test]
    fn every_rank_comes_as_often_as_the_law_says() {
        for exponent in [0.3, 0.99, 1.0, 1.1, 2.0, 5.0] {
            for count in [1, 2, 3, 50] {
                let keys = Keys::new(count, Skew::Zipf(exponent));
                let weights: Vec<f64> = (1..=count).map(|rank| (rank as f64).powf(-exponent)).collect();
                let sum: f64 = weights.iter().sum();
                for (rank, (share, weight)) in shares(&keys).iter().zip(&weights).enumerate() {
                    let expected = weight / sum;
                    // Six standard deviations of a fair draw.
                    let tolerance = 6.0 * (expected * (1.0 - expected) / COUNT as f64).sqrt() + 1e-9;
                    assert!(
                        (share - expected).abs() <= tolerance,
                        "zipf({exponent}) of {count}, rank {}: {share}, not {expected}",
                        rank + 1
                    );
                }
            }
        }
    }

    #[test]
    fn uniform_keys_come_equally_often() {
        let shares = shares(&Keys::new(20, Skew::Uniform));
        assert!(shares.iter().all(|share| (share - 0.05).abs() < 0.003), "{shares:?}");
    }

    #[test]
    fn many_keys_need_no_table_and_are_written_with_digits() {
        let keys = Keys::new(1_000_000_000, Skew::Zipf(0.5));
        let most = (0..10_000).map(|sequence| keys.of(sequence)).max().unwrap();
        assert!((900_000_000..1_000_000_000).contains(&most), "{most}");
        let keys = Keys::new(1, Skew::Uniform);
        assert_eq!(&keys.key(5), b"key-000000000000");
        let keys = Keys::new(1000, Skew::Uniform);
        let expected = format!("key-{:012}", keys.of(9));
        assert_eq!(keys.key(9), expected.as_bytes());
    }

    #[test]
    fn skews_are_parsed_and_what_is_none_is_said() {
        assert_eq!(Skew::parse("uniform"), Ok(Skew::Uniform));
        assert_eq!(Skew::parse("zipf(1.1)"), Ok(Skew::Zipf(1.1)));
        assert_eq!(Skew::parse("zipf(10)").unwrap().to_string(), "zipf(10)");
        for wrong in ["", "zipf", "zipf()", "zipf(0)", "zipf(-1)", "zipf(10.1)", "zipf(NaN)", "zip(1)"] {
            let error = Skew::parse(wrong).unwrap_err();
            assert!(
                error.contains("zipf(1.1)") || error.contains("above 0 and up to 10"),
                "{wrong}: {error}"
            );
        }
    }
}
