//! What one small append that must reach the disk costs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::payload::incompressible;
use crate::sample::Spread;

/// Appends `count` times `bytes` bytes to a new file in `directory`, each followed by `fdatasync`.
///
/// # Errors
/// When the file fails.
pub fn append_and_sync(directory: &Path, count: usize, bytes: usize) -> Result<Spread> {
    let path = directory.join("ceiling-latency");
    super::settle(directory, (count * bytes) as u64)?;
    let file = File::create_new(&path).with_context(|| format!("create {}", path.display()))?;
    let payload = incompressible(bytes, 11);
    let mut durations = Vec::with_capacity(count);
    for index in 0..count {
        let start = Instant::now();
        file.write_all_at(&payload, (index * bytes) as u64)?;
        file.sync_data()?;
        durations.push(start.elapsed());
    }
    drop(file);
    std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    Ok(Spread::of(&mut durations))
}
