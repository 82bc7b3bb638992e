//! This program under callgrind.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::path::Path;
use crate::sample::median;

/// What the counts depend on apart from the code.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MadeWith {
    /// `rustc --version`.
    pub rustc: String,
    /// `valgrind --version`.
    pub valgrind: String,
    /// `ldd --version`, its first line: the C library.
    pub libc: String,
    /// The processor that programs under valgrind find: AVX2 or not.
    pub processor: String,
}

impl MadeWith {
    /// That of this machine.
    ///
    /// # Errors
    /// When a program is missing.
    pub fn here() -> Result<Self> {
        let flags = std::fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
        let wide = flags.split_whitespace().any(|flag| flag == "avx2");
        Ok(Self {
            rustc: first_line("rustc")?,
            valgrind: first_line("valgrind")?,
            libc: first_line("ldd")?,
            processor: format!("{}{}", std::env::consts::ARCH, if wide { " with AVX2" } else { "" }),
        })
    }

    /// What differs from `other`, for people.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let pairs = [
            ("compiler", &self.rustc, &other.rustc),
            ("valgrind", &self.valgrind, &other.valgrind),
            ("C library", &self.libc, &other.libc),
            ("processor", &self.processor, &other.processor),
        ];
        let differ = pairs.into_iter().filter(|(_, ours, theirs)| ours != theirs);
        differ.map(|(what, ours, theirs)| format!("{what}: {ours} here, {theirs} there")).collect()
    }
}

fn first_line(program: &str) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("run {program} --version: is it installed?"))?;
    ensure!(output.status.success(), "{program} --version ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned())
}

/// In how many parts the repetitions of a path are counted. The median of them counts: what a broker does now and then by
/// the clock falls into few of the parts, however slowly everything goes.
pub const PARTS: u64 = 25;

/// Instructions of one repetition of `path`.
///
/// # Errors
/// When valgrind is missing, or the path does not work.
pub fn count(path: Path) -> Result<f64> {
    let scratch = tempfile::tempdir().context("make a directory for callgrind")?;
    let out = scratch.path().join("callgrind.out");
    // Under the same pattern as the one that counts it would be passed over.
    run(path, &out, &["--dump-after=highwater_benches::path::count_these"])?;
    let mut counts = Vec::new();
    for entry in std::fs::read_dir(scratch.path())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("callgrind.out.") {
            let text = std::fs::read_to_string(entry.path())?;
            counts.extend(collected(&text).filter(|count| *count > 0));
        }
    }
    ensure!(!counts.is_empty(), "nothing was counted of {}: the marks are not in this program", path.name);
    let (times, counted) = (path.count.div_ceil(PARTS), counts.len() as u64);
    ensure!(counted == path.count / times, "{counted} parts of {} were counted", path.name);
    Ok(median(&counts.iter().map(|count| *count as f64 / times as f64).collect::<Vec<_>>()))
}

/// Counts `path` and leaves what callgrind knows in `out`, for `callgrind_annotate`.
///
/// # Errors
/// When valgrind is missing, or the path does not work.
pub fn profile(path: Path, out: &std::path::Path) -> Result<()> {
    run(path, out, &[])
}

fn run(path: Path, out: &std::path::Path, more: &[&str]) -> Result<()> {
    let program = std::env::current_exe().context("find the running program")?;
    let directory = tempfile::tempdir().context("make a directory for the path")?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*count_these*", "--toggle-collect=*leave_out*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .args(more)
        .arg(&program)
        .args(["run", path.name, &path.count.to_string()])
        // Logs of the path too are removed with it.
        .env("TMPDIR", directory.path())
        .output()
        .context("run valgrind: is it installed?")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} ended with {}: {said}", path.name, output.status);
    Ok(())
}

/// What callgrind has written that it counted.
fn collected(written: &str) -> Option<u64> {
    let totals = written.lines().find_map(|line| line.strip_prefix("totals: "))?;
    totals.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_from_what_callgrind_writes() {
        let written = "version: 1\nevents: Ir\nfn=(1) main\n16 4000\n\ntotals: 4711\n";
        assert_eq!(collected(written), Some(4711));
        assert_eq!(collected("events: Ir\n"), None);
    }

    #[test]
    fn another_compiler_is_a_difference() {
        let text = |text: &str| text.to_owned();
        let here = MadeWith { rustc: text("1"), valgrind: text("2"), libc: text("3"), processor: text("4") };
        assert_eq!(here.differences(&here), [""; 0]);
        let there = MadeWith { rustc: text("9"), ..here.clone() };
        assert_eq!(here.differences(&there), ["compiler: 1 here, 9 there"]);
    }
}
