//! Which files are in memory, and getting them out of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use highwater_broker::storage::file_system::{FileSystem, OpenMode};
use highwater_broker::storage::real::RealFileSystem;
use rustix::fs::{Advice, fadvise};

const PAGE_BYTES: u64 = 4096;

/// How much of some files is in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Residency {
    /// Pages in all.
    pub pages: u64,
    /// Pages in memory.
    pub resident: u64,
}

impl Residency {
    /// The part that is in memory, from 0 to 1.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a part needs no more than 53 bits")]
    pub fn part(self) -> f64 {
        if self.pages == 0 { 0.0 } else { self.resident as f64 / self.pages as f64 }
    }
}

/// Writes all dirty pages of the files below `directory` back and asks the kernel to forget them. It keeps those that
/// somebody has mapped and touched: no broker may run on them.
///
/// # Errors
/// When a file cannot be opened or synced.
pub fn forget(directory: &Path) -> Result<()> {
    for path in files(directory)? {
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        file.sync_data().with_context(|| format!("sync {}", path.display()))?;
        fadvise(&file, 0, None, Advice::DontNeed).with_context(|| format!("forget {}", path.display()))?;
    }
    Ok(())
}

/// What is in memory of the files below `directory`, asked page by page and without touching them.
///
/// # Errors
/// When a file cannot be opened or mapped.
pub fn measure(directory: &Path) -> Result<Residency> {
    let file_system = RealFileSystem::default();
    let mut found = Residency::default();
    for path in files(directory)? {
        let file =
            file_system.open(&path, OpenMode::Read).with_context(|| format!("open {}", path.display()))?;
        let length = file.length()?;
        if length == 0 {
            continue;
        }
        let mapping = file.map(length).with_context(|| format!("map {}", path.display()))?;
        for start in (0..length).step_by(4096) {
            found.pages += 1;
            found.resident += u64::from(mapping.is_resident(start..length.min(start + PAGE_BYTES)));
        }
    }
    Ok(found)
}

/// All files below a directory.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_written_is_in_memory_until_it_is_forgotten() {
        // Below the target directory: a temporary directory may be in memory altogether.
        let parent = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        let directory = tempfile::tempdir_in(parent).unwrap();
        let mut file = File::create(directory.path().join("file")).unwrap();
        file.write_all(&vec![1; 1 << 20]).unwrap();
        let written = measure(directory.path()).unwrap();
        assert_eq!(written, Residency { pages: 256, resident: 256 });
        forget(directory.path()).unwrap();
        let forgotten = measure(directory.path()).unwrap();
        assert!(forgotten.part() < 0.1, "{forgotten:?}");
    }
}
