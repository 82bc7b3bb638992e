//! What a topic demands of the disk before a record counts as committed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When written records are brought to stable storage, and whether the high watermark waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Durability {
    /// Flushed at once; the high watermark is made of flushed ends. Survives a power cut of every broker at once.
    #[default]
    Fsync,
    /// Flushed within this time; the high watermark is made of log ends. A power cut may lose that much time.
    Interval(Duration),
    /// Flushed when the operating system likes; the high watermark is made of log ends.
    Os,
}

/// The shortest and longest flush interval that a topic may ask for.
const INTERVAL_MIN: Duration = Duration::from_millis(1);
const INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// A durability that is none of the three.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDurability {
    /// Not one of the three words.
    #[error("'{0}' is not a durability: use fsync, interval(100ms) or os")]
    Unknown(String),
    /// The time in `interval(…)` does not parse.
    #[error("'{0}' is not a time: write it like interval(100ms)")]
    Time(String),
    /// The time in `interval(…)` is out of range.
    #[error("a flush interval is from 1ms to 1h, not {0}")]
    Range(String),
}

impl Durability {
    /// Whether the high watermark waits for flushed ends.
    #[must_use]
    pub const fn waits_for_flush(self) -> bool {
        matches!(self, Self::Fsync)
    }

    /// Whether less may be lost under `self` than under `other`.
    #[must_use]
    pub fn is_stricter_than(self, other: Self) -> bool {
        self.time_at_risk() < other.time_at_risk()
    }

    /// The one under which less may be lost.
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        if other.is_stricter_than(self) { other } else { self }
    }

    /// How much time a power cut may cost.
    fn time_at_risk(self) -> Duration {
        match self {
            Self::Fsync => Duration::ZERO,
            Self::Interval(interval) => interval,
            Self::Os => Duration::MAX,
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fsync => f.write_str("fsync"),
            Self::Interval(interval) => write!(f, "interval({})", humantime::format_duration(*interval)),
            Self::Os => f.write_str("os"),
        }
    }
}

/// Recorded as the text that people write: a later form of it stays readable.
impl From<Durability> for String {
    fn from(durability: Durability) -> Self {
        durability.to_string()
    }
}

impl TryFrom<String> for Durability {
    type Error = InvalidDurability;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Durability {
    type Err = InvalidDurability;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "fsync" => Ok(Self::Fsync),
            "os" => Ok(Self::Os),
            other => {
                let inner = other
                    .strip_prefix("interval(")
                    .and_then(|rest| rest.strip_suffix(')'))
                    .ok_or_else(|| InvalidDurability::Unknown(text.to_owned()))?;
                let interval = humantime::parse_duration(inner)
                    .map_err(|_| InvalidDurability::Time(inner.to_owned()))?;
                if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) {
                    return Err(InvalidDurability::Range(inner.to_owned()));
                }
                Ok(Self::Interval(interval))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in ["fsync", "os", "interval(100ms)", "interval(1s 500ms)", "interval(1h)"] {
            assert_eq!(text.parse::<Durability>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!("sync".parse::<Durability>(), Err(InvalidDurability::Unknown("sync".into())));
        assert_eq!("interval(x)".parse::<Durability>(), Err(InvalidDurability::Time("x".into())));
        assert_eq!("interval(0s)".parse::<Durability>(), Err(InvalidDurability::Range("0s".into())));
        assert_eq!("interval(2h)".parse::<Durability>(), Err(InvalidDurability::Range("2h".into())));
    }

    #[test]
    fn strictness_is_by_what_may_be_lost() {
        let second = Durability::Interval(Duration::from_secs(1));
        let minute = Durability::Interval(Duration::from_secs(60));
        assert!(Durability::Fsync.is_stricter_than(second));
        assert!(second.is_stricter_than(minute));
        assert!(minute.is_stricter_than(Durability::Os));
        assert!(!Durability::Os.is_stricter_than(Durability::Os));
        assert_eq!(minute.stricter(second), second);
    }
}
