//! Where the `highwater` program of this build is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;
use std::{env, fs};

use anyhow::{Context, Result, anyhow, ensure};

/// Packages whose sources are in the program.
const SOURCES: [&str; 4] = ["broker", "client", "protocol", "tools"];

/// The path of the `highwater` program in the target directory of the running test or bench. It is built by cargo, once
/// a process, when it is missing or older than its sources: `cargo test -p` builds only what one package needs, and a
/// test of an old program would prove nothing. `HIGHWATER_PROGRAM` names another one.
///
/// # Errors
/// When the build fails.
pub fn highwater() -> Result<PathBuf> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| find().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

fn find() -> Result<PathBuf> {
    if let Some(program) = env::var_os("HIGHWATER_PROGRAM") {
        return Ok(PathBuf::from(program));
    }
    let running = env::current_exe().context("find the running program")?;
    // Tests run in `target/PROFILE/deps`, benches in `target/PROFILE`.
    let profile_directory = running
        .ancestors()
        .skip(1)
        .find(|directory| directory.file_name().is_some_and(|name| name != "deps"))
        .with_context(|| format!("{} is not in a target directory", running.display()))?;
    let program = profile_directory.join("highwater");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("find the workspace")?;
    if !is_current(&program, workspace) {
        build(profile_directory, workspace)?;
    }
    ensure!(program.exists(), "cargo did not make {}", program.display());
    Ok(program)
}

/// Whether the program is there and no source of it is newer.
fn is_current(program: &Path, workspace: &Path) -> bool {
    let Ok(built) = fs::metadata(program).and_then(|metadata| metadata.modified()) else { return false };
    SOURCES.iter().all(|package| newest(&workspace.join(package)).is_some_and(|changed| changed <= built))
}

/// When a source file below `directory` was last changed.
fn newest(directory: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    let times = entries.filter_map(|entry| {
        let path = entry.path();
        if entry.file_type().ok()?.is_dir() {
            let is_source = !matches!(path.file_name()?.to_str()?, "tests" | "target" | "fuzz" | "benches");
            return is_source.then(|| newest(&path)).flatten();
        }
        let is_source = path.extension().is_some_and(|extension| extension == "rs" || extension == "toml");
        is_source.then(|| entry.metadata().ok()?.modified().ok()).flatten()
    });
    times.max()
}

fn build(profile_directory: &Path, workspace: &Path) -> Result<()> {
    let target = profile_directory.parent().context("find the target directory")?;
    let profile = match profile_directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--package", "highwater", "--bin", "highwater", "--profile", profile, "--target-dir"])
        .arg(target)
        .current_dir(workspace)
        .output()
        .context("run cargo")?;
    ensure!(output.status.success(), "cargo build failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
