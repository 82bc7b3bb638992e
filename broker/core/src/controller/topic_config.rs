//! The settings of a topic: names, values, defaults and what is allowed.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use highwater_protocol::limits::BATCH_BYTES_MAX;
use serde::{Deserialize, Serialize};

use crate::durability::{Durability, InvalidDurability};

/// The smallest batch bound that a topic may set: one small record must fit.
pub const BATCH_BYTES_MAX_MIN: u64 = 1 << 10;
/// The smallest segment that a topic may ask for.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// The largest segment: positions in a segment's index are 32 bits.
pub const SEGMENT_BYTES_MAX: u64 = 2 << 30;
/// The shortest time after which a segment is rolled.
pub const SEGMENT_AGE_MIN: Duration = Duration::from_secs(1);

/// The settings that came with compaction: brokers of before refuse them.
pub const COMPACTION_SETTINGS: [&str; 3] = ["cleanup", "tombstone_grace", "dirty_percent_min"];

/// How long a deletion is kept after compaction has first passed it, when nothing else is set.
pub const TOMBSTONE_GRACE_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// The part of a log that has to be new before it is compacted, when nothing else is set.
pub const DIRTY_PERCENT_MIN_DEFAULT: u32 = 50;

/// What becomes of old records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Cleanup {
    /// Whole segments go by age and size.
    #[default]
    Delete,
    /// Of every key the last record stays, whatever its age; `retention_bytes` and `retention_age` do not apply.
    Compact,
    /// Of every key the last record stays, until its segment goes by age or size.
    CompactDelete,
}

impl Cleanup {
    /// Whether only the last record of a key stays.
    #[must_use]
    pub const fn compacts(self) -> bool {
        matches!(self, Self::Compact | Self::CompactDelete)
    }

    /// Whether segments go by age and size.
    #[must_use]
    pub const fn deletes(self) -> bool {
        matches!(self, Self::Delete | Self::CompactDelete)
    }
}

impl fmt::Display for Cleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delete => "delete",
            Self::Compact => "compact",
            Self::CompactDelete => "compact,delete",
        })
    }
}

impl FromStr for Cleanup {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        let words: Vec<&str> = text.split(',').map(str::trim).collect();
        match words[..] {
            ["delete"] => Ok(Self::Delete),
            ["compact"] => Ok(Self::Compact),
            ["compact", "delete"] | ["delete", "compact"] => Ok(Self::CompactDelete),
            _ => Err(InvalidSetting::Value {
                name: "cleanup",
                value: text.to_owned(),
                expected: "delete, compact or compact,delete",
            }),
        }
    }
}

/// Every setting with its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TopicConfig {
    /// When records are flushed and what the high watermark waits for.
    pub durability: Durability,
    /// Bytes of log that a partition keeps; the oldest segments go first. `None`: all.
    pub retention_bytes: Option<u64>,
    /// How long records are kept at least before their segment may go. `None`: for ever.
    pub retention_age: Option<Duration>,
    /// Bytes after which a new segment is begun. A larger batch gets a segment of its own.
    pub segment_bytes: u64,
    /// Age after which a new segment is begun.
    pub segment_age: Duration,
    /// Bytes that one batch may have.
    pub batch_bytes_max: u32,
    /// In-sync replicas without which nothing is committed. `None`: the majority of the replicas.
    pub min_in_sync: Option<u32>,
    /// What becomes of old records.
    pub cleanup: Cleanup,
    /// How long a record without a value is kept after compaction has first passed it, so that whoever reads the log
    /// meanwhile learns that its key is gone.
    pub tombstone_grace: Duration,
    /// The part of the log, in percent, that has to be new since the last compaction before there is another one.
    pub dirty_percent_min: u32,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            durability: Durability::Fsync,
            retention_bytes: None,
            retention_age: None,
            segment_bytes: 256 << 20,
            segment_age: Duration::from_secs(7 * 24 * 3600),
            batch_bytes_max: 4 << 20,
            min_in_sync: None,
            cleanup: Cleanup::Delete,
            tombstone_grace: TOMBSTONE_GRACE_DEFAULT,
            dirty_percent_min: DIRTY_PERCENT_MIN_DEFAULT,
        }
    }
}

/// Why a setting is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSetting {
    /// No setting has this name.
    #[error("topic setting '{name}' is not known{}; there are {}", hint(.name), TopicConfig::NAMES.join(", "))]
    Unknown {
        /// As given.
        name: String,
    },
    /// The value does not parse.
    #[error("topic setting '{name}': '{value}' is not {expected}")]
    Value {
        /// The setting.
        name: &'static str,
        /// As given.
        value: String,
        /// What a value looks like.
        expected: &'static str,
    },
    /// The value is out of range.
    #[error("topic setting '{name}': {value} is out of range: {range}")]
    Range {
        /// The setting.
        name: &'static str,
        /// As given.
        value: String,
        /// What is allowed.
        range: String,
    },
    /// The durability does not parse.
    #[error("topic setting 'durability': {0}")]
    Durability(#[from] InvalidDurability),
    /// Two settings contradict each other.
    #[error("topic settings contradict each other: {0}")]
    Contradiction(String),
}

fn hint(name: &str) -> String {
    crate::nearest::nearest(name, TopicConfig::NAMES)
        .map(|near| format!(", did you mean '{near}'?"))
        .unwrap_or_default()
}

impl TopicConfig {
    /// The names of all settings, sorted.
    pub const NAMES: &'static [&'static str] = &[
        "batch_bytes_max",
        "cleanup",
        "dirty_percent_min",
        "durability",
        "min_in_sync",
        "retention_age",
        "retention_bytes",
        "segment_age",
        "segment_bytes",
        "tombstone_grace",
    ];

    /// The settings of a topic: `defaults` with `overrides` on top.
    ///
    /// # Errors
    /// Names the setting that is unknown, does not parse, is out of range or contradicts another.
    pub fn with_overrides(
        defaults: &Self,
        overrides: &BTreeMap<String, String>,
        replication: u32,
    ) -> Result<Self, InvalidSetting> {
        let mut config = defaults.clone();
        for (name, value) in overrides {
            config.set(name, value)?;
        }
        config.check(replication)?;
        Ok(config)
    }

    /// Sets one setting from its text.
    ///
    /// # Errors
    /// When there is no such setting or its value is not allowed.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), InvalidSetting> {
        match name {
            "durability" => self.durability = value.parse()?,
            "retention_bytes" => {
                self.retention_bytes = optional(value, |text| bytes("retention_bytes", text))?
            }
            "retention_age" => self.retention_age = optional(value, |text| age("retention_age", text))?,
            "segment_bytes" => {
                let size = bytes("segment_bytes", value)?;
                in_range("segment_bytes", value, size, SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)?;
                self.segment_bytes = size;
            }
            "segment_age" => {
                let age = age("segment_age", value)?;
                if age < SEGMENT_AGE_MIN {
                    return Err(InvalidSetting::Range {
                        name: "segment_age",
                        value: value.to_owned(),
                        range: "at least 1s".to_owned(),
                    });
                }
                self.segment_age = age;
            }
            "batch_bytes_max" => {
                let size = bytes("batch_bytes_max", value)?;
                in_range("batch_bytes_max", value, size, BATCH_BYTES_MAX_MIN, BATCH_BYTES_MAX as u64)?;
                self.batch_bytes_max = size as u32;
            }
            "min_in_sync" => {
                self.min_in_sync = match value {
                    "majority" => None,
                    _ => Some(value.parse().ok().filter(|&count| count > 0).ok_or_else(|| {
                        InvalidSetting::Value {
                            name: "min_in_sync",
                            value: value.to_owned(),
                            expected: "a number from 1, or majority",
                        }
                    })?),
                };
            }
            "cleanup" => self.cleanup = value.parse()?,
            "tombstone_grace" => self.tombstone_grace = age("tombstone_grace", value)?,
            "dirty_percent_min" => self.dirty_percent_min = percent("dirty_percent_min", value)?,
            _ => return Err(InvalidSetting::Unknown { name: name.to_owned() }),
        }
        Ok(())
    }

    /// The text of a setting's value, as [`TopicConfig::set`] takes it, or `None` for an unknown name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        let unlimited = || "unlimited".to_owned();
        Some(match name {
            "durability" => self.durability.to_string(),
            "retention_bytes" => self.retention_bytes.map_or_else(unlimited, |bytes| bytes.to_string()),
            "retention_age" => {
                self.retention_age.map_or_else(unlimited, |age| humantime::format_duration(age).to_string())
            }
            "segment_bytes" => self.segment_bytes.to_string(),
            "segment_age" => humantime::format_duration(self.segment_age).to_string(),
            "batch_bytes_max" => self.batch_bytes_max.to_string(),
            "min_in_sync" => {
                self.min_in_sync.map_or_else(|| "majority".to_owned(), |count| count.to_string())
            }
            "cleanup" => self.cleanup.to_string(),
            "tombstone_grace" => humantime::format_duration(self.tombstone_grace).to_string(),
            "dirty_percent_min" => self.dirty_percent_min.to_string(),
            _ => return None,
        })
    }

    /// Checks settings against each other.
    ///
    /// # Errors
    /// Says which contradict each other.
    pub fn check(&self, replication: u32) -> Result<(), InvalidSetting> {
        if let Some(min) = self.min_in_sync
            && min > replication
        {
            return Err(InvalidSetting::Contradiction(format!(
                "min_in_sync {min} is larger than the replication {replication}: nothing could ever be committed"
            )));
        }
        Ok(())
    }

    /// In-sync replicas without which nothing is committed, of `replication`.
    #[must_use]
    pub fn min_in_sync_of(&self, replication: u32) -> u32 {
        self.min_in_sync.unwrap_or(replication / 2 + 1)
    }
}

fn optional<T>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, InvalidSetting>,
) -> Result<Option<T>, InvalidSetting> {
    if text.trim() == "unlimited" { Ok(None) } else { parse(text).map(Some) }
}

fn bytes(name: &'static str, text: &str) -> Result<u64, InvalidSetting> {
    parse_bytes(text).ok_or_else(|| InvalidSetting::Value {
        name,
        value: text.to_owned(),
        expected: "a number of bytes like 1048576, 64KiB, 256MiB or 1GiB",
    })
}

fn age(name: &'static str, text: &str) -> Result<Duration, InvalidSetting> {
    humantime::parse_duration(text.trim()).map_err(|_| InvalidSetting::Value {
        name,
        value: text.to_owned(),
        expected: "a time like 90s, 12h or 7d",
    })
}

fn percent(name: &'static str, text: &str) -> Result<u32, InvalidSetting> {
    text.trim().parse().ok().filter(|percent| *percent <= 100).ok_or_else(|| InvalidSetting::Value {
        name,
        value: text.to_owned(),
        expected: "a percentage from 0 to 100",
    })
}

fn in_range(name: &'static str, text: &str, value: u64, min: u64, max: u64) -> Result<(), InvalidSetting> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(InvalidSetting::Range { name, value: text.to_owned(), range: format!("from {min} to {max} bytes") })
}

/// Bytes from text: a number, or one with `KiB`, `MiB`, `GiB` or `TiB` after it.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn overrides_go_on_top_of_defaults_and_print_as_they_parse() {
        let set = overrides(&[
            ("durability", "interval(100ms)"),
            ("retention_bytes", "1GiB"),
            ("retention_age", "7d"),
            ("segment_bytes", "4MiB"),
            ("batch_bytes_max", "1MiB"),
            ("min_in_sync", "2"),
            ("cleanup", "delete, compact"),
            ("tombstone_grace", "1h"),
            ("dirty_percent_min", "20"),
        ]);
        let config = TopicConfig::with_overrides(&TopicConfig::default(), &set, 3).unwrap();
        assert_eq!(config.retention_bytes, Some(1 << 30));
        assert_eq!(config.batch_bytes_max, 1 << 20);
        assert!(config.cleanup.compacts() && config.cleanup.deletes());
        assert_eq!((config.tombstone_grace.as_secs(), config.dirty_percent_min), (3600, 20));
        assert_eq!(config.segment_age, TopicConfig::default().segment_age);
        let printed: BTreeMap<String, String> =
            TopicConfig::NAMES.iter().map(|name| ((*name).to_owned(), config.get(name).unwrap())).collect();
        assert_eq!(TopicConfig::with_overrides(&TopicConfig::default(), &printed, 3).unwrap(), config);
    }

    #[test]
    fn every_name_can_be_read_back() {
        for name in TopicConfig::NAMES {
            assert!(TopicConfig::default().get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn errors_name_the_setting_and_what_is_allowed() {
        let refused = |pairs: &[(&str, &str)]| {
            TopicConfig::with_overrides(&TopicConfig::default(), &overrides(pairs), 1)
                .unwrap_err()
                .to_string()
        };
        assert!(refused(&[("retention_byte", "1")]).contains("did you mean 'retention_bytes'?"));
        assert!(refused(&[("retention_bytes", "1GB")]).contains("'1GB' is not a number of bytes"));
        assert!(refused(&[("segment_bytes", "1KiB")]).contains("from 65536 to"));
        assert!(refused(&[("batch_bytes_max", "17MiB")]).contains("out of range"));
        assert!(refused(&[("durability", "maybe")]).contains("use fsync, interval(100ms) or os"));
        assert!(refused(&[("min_in_sync", "2")]).contains("nothing could ever be committed"));
        assert!(refused(&[("min_in_sync", "0")]).contains("a number from 1"));
        assert!(refused(&[("cleanup", "compress")]).contains("delete, compact or compact,delete"));
        assert!(refused(&[("dirty_percent_min", "101")]).contains("from 0 to 100"));
    }

    #[test]
    fn bytes_do_not_overflow() {
        assert_eq!(parse_bytes("16777216TiB"), None);
        assert_eq!(parse_bytes("18446744073709551615"), Some(u64::MAX));
        assert_eq!(parse_bytes("64 KiB"), Some(65536));
        assert_eq!(parse_bytes(""), None);
        assert_eq!(parse_bytes("-1"), None);
    }

    #[test]
    fn the_majority_is_the_default() {
        let config = TopicConfig::default();
        assert_eq!([1, 2, 3, 5].map(|replication| config.min_in_sync_of(replication)), [1, 2, 2, 3]);
    }
}
