//! The producing ceiling: loopback TCP, checksum, write into the page cache; with or without `fdatasync` before the
//! acknowledgement.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};

use super::{IN_FLIGHT_BYTES, PIECE_BYTES, Run};
use crate::payload::incompressible;

/// Bytes that the receiver takes from the socket at most in one call: larger buffers were no faster.
const RECEIVE_BYTES: usize = 1 << 20;

/// When the receiver acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledge {
    /// When the bytes are in the page cache.
    Written,
    /// When `fdatasync`, called by a second thread for all that has come since its last call, has covered them.
    Flushed,
}

/// Moves `bytes` (rounded down to pieces) into a new file in `directory`, which is removed afterwards.
///
/// # Errors
/// When a socket or file fails, or a checksum differs.
pub fn run(directory: &Path, bytes: u64, acknowledge: Acknowledge) -> Result<Run> {
    let pieces = bytes / PIECE_BYTES as u64;
    let path = directory.join("ceiling-produce");
    super::settle(directory, bytes)?;
    let file = File::create_new(&path).with_context(|| format!("create {}", path.display()))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
    let address = listener.local_addr()?;
    let result = thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&listener, &file, pieces, acknowledge));
        let elapsed = send(TcpStream::connect(address)?, pieces).context("send")?;
        receiver.join().map_err(|_| anyhow!("receiver panicked"))?.context("receive")?;
        Ok(Run { bytes: pieces * PIECE_BYTES as u64, elapsed })
    });
    std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    result
}

/// Sends pieces within the window until all are acknowledged.
pub(super) fn send(mut stream: TcpStream, pieces: u64) -> Result<std::time::Duration> {
    stream.set_nodelay(true)?;
    let payload = incompressible(PIECE_BYTES, 7);
    let total = pieces * PIECE_BYTES as u64;
    let mut acknowledgements = Acknowledgements::default();
    let (mut sent, mut acknowledged) = (0, 0);
    let start = Instant::now();
    while acknowledged < total {
        if sent < total && sent - acknowledged + PIECE_BYTES as u64 <= IN_FLIGHT_BYTES {
            stream.write_all(&payload)?;
            sent += PIECE_BYTES as u64;
        } else {
            acknowledged = acknowledgements.latest(&mut stream)?;
        }
    }
    Ok(start.elapsed())
}

/// Acknowledgements as they come: eight bytes each, the latest counts.
#[derive(Debug, Default)]
pub(super) struct Acknowledgements {
    bytes: Vec<u8>,
}

impl Acknowledgements {
    /// Waits for one at least, and returns the last of all that have come.
    pub(super) fn latest(&mut self, stream: &mut impl Read) -> Result<u64> {
        let mut buffer = [0; 4096];
        loop {
            let count = stream.read(&mut buffer)?;
            ensure!(count > 0, "connection closed before everything was acknowledged");
            self.bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
            let whole = self.bytes.len() - self.bytes.len() % 8;
            if let Some(last) = self.bytes.get(..whole).and_then(|bytes| bytes.last_chunk()) {
                let latest = u64::from_le_bytes(*last);
                self.bytes.drain(..whole);
                return Ok(latest);
            }
        }
    }
}

/// Receives, checks and appends all pieces.
pub(super) fn receive(
    listener: &TcpListener,
    file: &File,
    pieces: u64,
    acknowledge: Acknowledge,
) -> Result<()> {
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let total = pieces * PIECE_BYTES as u64;
    match acknowledge {
        Acknowledge::Written => append(&stream, file, total, |_, written| {
            (&stream).write_all(&u64::to_le_bytes(written))?;
            Ok(())
        }),
        Acknowledge::Flushed => {
            let progress = Arc::new(Progress::default());
            thread::scope(|scope| {
                let flusher = scope.spawn(|| flush(&progress, &stream, file, total));
                let appended = append(&stream, file, total, |_, written| {
                    progress.advance(written);
                    Ok(())
                });
                if appended.is_err() {
                    progress.advance(total);
                }
                flusher.join().map_err(|_| anyhow!("flusher panicked"))??;
                appended
            })
        }
    }
}

/// Receives into one buffer, checksums and writes every whole piece in it, and says what it has written and how far
/// that is.
pub(super) fn append(
    mut stream: &TcpStream,
    file: &File,
    total: u64,
    mut written_to: impl FnMut(&[u8], u64) -> Result<()>,
) -> Result<()> {
    let expected = crc32fast::hash(&incompressible(PIECE_BYTES, 7));
    let mut buffer = vec![0; RECEIVE_BYTES];
    let (mut filled, mut written) = (0, 0_u64);
    while written < total {
        let count = stream.read(buffer.get_mut(filled..).unwrap_or_default())?;
        ensure!(count > 0, "connection closed after {written} of {total} bytes");
        filled += count;
        let whole = filled - filled % PIECE_BYTES;
        let pieces = buffer.get(..whole).unwrap_or_default();
        for piece in pieces.chunks_exact(PIECE_BYTES) {
            ensure!(crc32fast::hash(piece) == expected, "checksum differs at {written}");
            file.write_all_at(piece, written)?;
            written += PIECE_BYTES as u64;
        }
        if whole > 0 {
            written_to(pieces, written)?;
            buffer.copy_within(whole..filled, 0);
            filled -= whole;
        }
    }
    Ok(())
}

/// Syncs whatever has been written since the last sync, and acknowledges it.
fn flush(progress: &Progress, mut stream: &TcpStream, file: &File, total: u64) -> Result<()> {
    let mut flushed = 0;
    while flushed < total {
        flushed = progress.beyond(flushed);
        file.sync_data()?;
        stream.write_all(&u64::to_le_bytes(flushed))?;
    }
    Ok(())
}

/// The written end, shared by the thread that writes and the one that syncs.
#[derive(Debug, Default)]
pub(super) struct Progress {
    written: Mutex<u64>,
    changed: Condvar,
}

impl Progress {
    pub(super) fn advance(&self, written: u64) {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) = written;
        self.changed.notify_one();
    }

    /// Waits until more than `known` is written, and returns how much.
    pub(super) fn beyond(&self, known: u64) -> u64 {
        let guard = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        *self.changed.wait_while(guard, |written| *written <= known).unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_acknowledging_move_all_bytes() {
        let directory = tempfile::tempdir().unwrap();
        for acknowledge in [Acknowledge::Written, Acknowledge::Flushed] {
            let run = run(directory.path(), 9 << 20, acknowledge).unwrap();
            assert_eq!(run.bytes, 9 << 20);
            assert!(run.megabytes_per_second() > 0.0);
            assert_eq!(directory.path().read_dir().unwrap().count(), 0, "the file is removed");
        }
    }
}
