//! What this machine can do at best with the bytes that a broker moves.

pub mod consume;
pub mod fanout;
pub mod latency;
pub mod produce;
pub mod replicate;
pub mod scheduled;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// Bytes of the pieces that are sent, checksummed and appended one by one.
pub const PIECE_BYTES: usize = 64 << 10;
/// Bytes that may be on their way without an acknowledgement.
pub const IN_FLIGHT_BYTES: u64 = 4 << 20;
/// Bytes of one send or read of the consuming ceiling.
pub const SEND_BYTES: usize = 1 << 20;

/// One run of a ceiling.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Bytes moved.
    pub bytes: u64,
    /// From the first byte sent to the last one acknowledged or received.
    pub elapsed: Duration,
}

impl Run {
    /// 10^6 bytes a second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a speed needs no more than 53 bits")]
    pub fn megabytes_per_second(self) -> f64 {
        self.bytes as f64 / 1e6 / self.elapsed.as_secs_f64()
    }
}

/// Makes runs comparable: waits until no page of the machine is dirty, then touches as much memory as the run will use.
///
/// The second half matters in virtual machines that give free memory back to their host: the first write to such a page
/// is a fault in the host, and a run that starts on idle memory writes at a tenth of the speed of one that does not
/// (0.43 against 5.5 GB/s into the page cache where this was found).
///
/// # Errors
/// When the scratch file in `directory` fails.
pub fn settle(directory: &Path, bytes: u64) -> Result<()> {
    rustix::fs::sync();
    let path = directory.join("ceiling-scratch");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let zeroes = vec![0; PIECE_BYTES];
    for piece in 0..bytes / PIECE_BYTES as u64 {
        file.write_all_at(&zeroes, piece * PIECE_BYTES as u64)?;
    }
    drop(file);
    std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
}
