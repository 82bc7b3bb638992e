//! This program under callgrind.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::path::Path;

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

/// Instructions of one repetition of `path`. `keep`: where callgrind leaves what it knows, for `callgrind_annotate`.
///
/// # Errors
/// When valgrind is missing, or the path does not work.
pub fn count(path: Path, keep: Option<&std::path::Path>) -> Result<f64> {
    let program = std::env::current_exe().context("find the running program")?;
    let scratch = tempfile::tempdir().context("make a directory for callgrind")?;
    let kept = keep.map_or_else(|| scratch.path().join("callgrind.out"), std::path::Path::to_path_buf);
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*count_these*", "--toggle-collect=*leave_out*"])
        .arg(format!("--callgrind-out-file={}", kept.display()))
        .arg(&program)
        .args(["run", path.name, &path.count.to_string()])
        .output()
        .context("run valgrind: is it installed?")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} ended with {}: {said}", path.name, output.status);
    let collected =
        collected(&said).with_context(|| format!("callgrind has not said what it counted: {said}"))?;
    ensure!(
        collected > 0,
        "nothing was counted of {}: the marks were not found in {}",
        path.name,
        program.display()
    );
    Ok(collected as f64 / path.count as f64)
}

/// What callgrind says at its end.
fn collected(said: &str) -> Option<u64> {
    let (_, count) = said.lines().find_map(|line| line.split_once("Collected : "))?;
    count.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_from_what_callgrind_says() {
        let said = "==7== Events    : Ir\n==7== Collected : 4711\n==7== \n==7== I   refs:      4,711\n";
        assert_eq!(collected(said), Some(4711));
        assert_eq!(collected("==7== nothing"), None);
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
