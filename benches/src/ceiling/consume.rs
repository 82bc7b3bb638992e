//! The consuming ceiling: an untouched mapping of a resident file, sent over loopback TCP and checksummed on arrival.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use highwater_broker::storage::file_system::{FileSystem, OpenMode};
use highwater_broker::storage::real::RealFileSystem;

use super::{Run, SEND_BYTES};
use crate::payload::incompressible;

/// Makes a file of `bytes` bytes (rounded down to sends) in `directory`, and moves it `runs` times through a new mapping
/// of it. The file is removed afterwards.
///
/// # Errors
/// When a socket or file fails, or the checksum of what arrived differs.
pub fn run(directory: &Path, bytes: u64, runs: usize) -> Result<Vec<Run>> {
    let path = directory.join("ceiling-consume");
    let sends = bytes / SEND_BYTES as u64;
    let result = write_file(&path, sends)
        .and_then(|checksum| (0..runs).map(|_| run_once(directory, &path, sends, checksum)).collect());
    std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    result
}

/// Fills the file and returns the checksum of all of it.
pub(super) fn write_file(path: &Path, sends: u64) -> Result<u32> {
    let file = File::create_new(path).with_context(|| format!("create {}", path.display()))?;
    let payload = incompressible(SEND_BYTES, 13);
    let mut hasher = crc32fast::Hasher::new();
    for index in 0..sends {
        file.write_all_at(&payload, index * SEND_BYTES as u64)?;
        hasher.update(&payload);
    }
    Ok(hasher.finalize())
}

/// A new mapping that nobody has touched, made as the broker makes its own.
pub(super) fn map(path: &Path, length: u64) -> Result<Bytes> {
    let file = RealFileSystem::default().open(path, OpenMode::Read)?;
    ensure!(file.length()? >= length, "{} is too short", path.display());
    Ok(file.map(length)?.slice(0..length))
}

fn run_once(directory: &Path, path: &Path, sends: u64, checksum: u32) -> Result<Run> {
    let length = sends * SEND_BYTES as u64;
    super::settle(directory, length)?;
    let mapped = map(path, length)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
    let address = listener.local_addr()?;
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            for piece in mapped.chunks(SEND_BYTES) {
                stream.write_all(piece)?;
            }
            Ok(())
        });
        let mut stream = TcpStream::connect(address)?;
        let mut buffer = vec![0; SEND_BYTES];
        let mut hasher = crc32fast::Hasher::new();
        let mut received = 0;
        let start = Instant::now();
        while received < length {
            let count = stream.read(&mut buffer)?;
            ensure!(count > 0, "connection closed after {received} of {length} bytes");
            hasher.update(buffer.get(..count).unwrap_or_default());
            received += count as u64;
        }
        let elapsed = start.elapsed();
        sender.join().map_err(|_| anyhow!("sender panicked"))?.context("send")?;
        ensure!(hasher.finalize() == checksum, "what arrived is not what was sent");
        Ok(Run { bytes: length, elapsed })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_moves_the_whole_file() {
        let directory = tempfile::tempdir().unwrap();
        let runs = run(directory.path(), 5 << 20, 2).unwrap();
        assert_eq!(runs.iter().map(|run| run.bytes).collect::<Vec<_>>(), [5 << 20, 5 << 20]);
        assert_eq!(directory.path().read_dir().unwrap().count(), 0, "the file is removed");
    }
}
