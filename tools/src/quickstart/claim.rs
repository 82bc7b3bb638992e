//! Which quickstart has which ports.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// A set of ports that no other quickstart takes while this value lives, however the process ends.
///
/// Ports alone do not say so: while one quickstart has a broker killed, nobody listens on that one's, and a broker of
/// another quickstart could take its place.
#[derive(Debug)]
pub(super) struct Claim {
    path: PathBuf,
    _locked: File,
}

impl Claim {
    /// Claims the set that begins with `first_port`.
    ///
    /// # Errors
    /// When another process has it, or the file that says so cannot be made.
    pub(super) fn new(first_port: u16) -> anyhow::Result<Self> {
        Self::in_directory(&std::env::temp_dir(), first_port)
    }

    fn in_directory(directory: &Path, first_port: u16) -> anyhow::Result<Self> {
        let path = directory.join(format!("highwater-quickstart-{first_port}.lock"));
        loop {
            // One of another user can be locked without being written to.
            let file = File::open(&path)
                .or_else(|_| File::options().create(true).append(true).open(&path))
                .with_context(|| format!("open {}", path.display()))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    anyhow::bail!(
                        "another quickstart has ports {first_port} and up (it holds {})",
                        path.display()
                    );
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("lock {}", path.display()));
                }
            }
            // Whoever had it removes it at the end: then this one is locked, and nobody finds it.
            let here = fs::metadata(&path).is_ok_and(|there| {
                file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (there.dev(), there.ino()))
            });
            if here {
                return Ok(Self { path, _locked: file });
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A file that is left behind is locked by nobody, and is used again.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_ports_belongs_to_one_at_a_time_and_nothing_is_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let claim = Claim::in_directory(directory.path(), 9470).unwrap();
        let refused = Claim::in_directory(directory.path(), 9470).unwrap_err().to_string();
        assert!(refused.contains("another quickstart has ports 9470 and up"), "{refused}");
        let other = Claim::in_directory(directory.path(), 20_000).unwrap();
        drop(claim);
        drop(Claim::in_directory(directory.path(), 9470).unwrap());
        drop(other);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_a_killed_process_left_behind_does_not_keep_its_ports() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("highwater-quickstart-9470.lock"), "").unwrap();
        Claim::in_directory(directory.path(), 9470).unwrap();
    }
}
