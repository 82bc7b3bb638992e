//! A file system of its own, small enough to be filled: needs the right to mount.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// Which file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// In memory.
    Tmpfs,
    /// On a file, through a loop device.
    Ext4,
}

/// A mounted file system. It is unmounted and removed when this is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    mount: PathBuf,
    _directory: TempDir,
}

impl SmallDisk {
    /// Makes and mounts one of `bytes` bytes.
    ///
    /// # Errors
    /// When this process may not mount, or a program that it takes is not there.
    pub fn mount(kind: Kind, bytes: u64) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("highwater-disk-").tempdir().context("make a directory")?;
        let mount = directory.path().join("mount");
        fs::create_dir(&mount).context("make the mount point")?;
        match kind {
            Kind::Tmpfs => {
                let size = format!("size={bytes}");
                run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(&mount))?;
            }
            Kind::Ext4 => {
                let image = directory.path().join("image");
                File::create(&image).and_then(|file| file.set_len(bytes)).context("make the image")?;
                run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
                run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount))?;
            }
        }
        Ok(Self { mount, _directory: directory })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Bytes that are left on it.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn available(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.mount).context("ask for the space left")?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Takes space away: writes a file of `bytes` bytes, or as many as fit, and returns it.
    ///
    /// # Errors
    /// When the file cannot be made, or writing fails for another reason than a full disk.
    pub fn take(&self, bytes: u64) -> Result<Ballast> {
        let path = self.mount.join("ballast");
        let file = File::create_new(&path).context("make the ballast")?;
        let piece = vec![1; 64 << 10];
        let mut taken = 0;
        while taken < bytes {
            match file.write_at(&piece, taken) {
                Ok(count) => taken += count as u64,
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error).context("write the ballast"),
            }
        }
        Ok(Ballast { path, bytes: taken })
    }
}

/// Space that is taken until this is dropped.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
    bytes: u64,
}

impl Ballast {
    /// How much.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        // At worst the space stays taken, and the test that waits for it says so.
        drop(fs::remove_file(&self.path));
    }
}

impl Drop for SmallDisk {
    #[expect(clippy::print_stderr, reason = "a mount that is left behind must be told")]
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(&self.mount)) {
            eprintln!("{} is left mounted: {error:#}", self.mount.display());
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {errors}", output.status);
    Ok(())
}
