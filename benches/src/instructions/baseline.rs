//! Counts that were recorded, and what new ones are beside them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::callgrind::MadeWith;

/// More than this part above its record fails the check.
pub const REGRESSION: f64 = 0.05;

/// What `benches/instructions.toml` has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// What the counts were made with.
    pub made_with: MadeWith,
    /// Instructions of one repetition, by path.
    pub instructions: BTreeMap<String, u64>,
}

/// A count beside its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Within the bound.
    Holds,
    /// Further below its record than the bound: a new record would keep it there.
    Better,
    /// Above the bound.
    Worse,
    /// There is no record of it.
    Unknown,
}

impl Baseline {
    /// Reads it.
    ///
    /// # Errors
    /// When the file is not there or is another thing.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("understand {}", path.display()))
    }

    /// Writes it, with what it is.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = format!(
            "# Instructions of the hot paths, one repetition each. Checked and recorded by benches/instructions.sh; comparable\n\
             # only where everything under made_with is the same.\n\n{}",
            toml::to_string(self)?
        );
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }

    /// How `count` of `path` is beside its record, and the part by which it is above.
    #[must_use]
    pub fn judge(&self, path: &str, count: f64) -> (Verdict, f64) {
        let Some(recorded) = self.instructions.get(path) else { return (Verdict::Unknown, 0.0) };
        let recorded = *recorded as f64;
        let verdict = match count {
            _ if count > recorded * (1.0 + REGRESSION) => Verdict::Worse,
            _ if count < recorded * (1.0 - REGRESSION) => Verdict::Better,
            _ => Verdict::Holds,
        };
        (verdict, count / recorded - 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline() -> Baseline {
        let made_with = MadeWith {
            rustc: "rustc 1".to_owned(),
            valgrind: "valgrind 3".to_owned(),
            libc: "libc 2".to_owned(),
            processor: "x".to_owned(),
        };
        Baseline { made_with, instructions: BTreeMap::from([("encode".to_owned(), 1000)]) }
    }

    #[test]
    fn a_count_fails_when_it_is_more_than_the_bound_above_its_record() {
        let baseline = baseline();
        assert_eq!(baseline.judge("encode", 1050.0).0, Verdict::Holds);
        assert_eq!(baseline.judge("encode", 1051.0).0, Verdict::Worse);
        assert_eq!(baseline.judge("encode", 950.0).0, Verdict::Holds);
        assert_eq!(baseline.judge("encode", 949.0).0, Verdict::Better);
        assert_eq!(baseline.judge("decode", 1.0).0, Verdict::Unknown);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("baseline.toml");
        baseline().write(&path).unwrap();
        assert_eq!(Baseline::read(&path).unwrap(), baseline());
        std::fs::write(&path, "[made_with]\n").unwrap();
        let error = format!("{:#}", Baseline::read(&path).unwrap_err());
        assert!(error.contains("understand") && error.contains("rustc"), "{error}");
    }

    #[test]
    fn the_recorded_baseline_has_every_path() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.toml");
        let recorded = Baseline::read(&path).unwrap();
        let names: Vec<&str> = recorded.instructions.keys().map(String::as_str).collect();
        let mut paths: Vec<&str> = crate::path::ALL.iter().map(|path| path.name).collect();
        paths.sort_unstable();
        assert_eq!(names, paths, "record it anew: benches/instructions.sh record");
    }
}
