//! Where the quickstart's records come from.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::{mpsc, oneshot};

use super::telemetry;
use crate::lines::{self, Piece};

/// How often this host is looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(25);
/// A small file is sent slowly enough that this much time can be watched.
const SPREAD_OVER: Duration = Duration::from_secs(8);
/// Files larger than this are sent as fast as they go.
const SPREAD_BYTES_MAX: u64 = 32 << 20;
/// A line of a file that is longer cannot be a record.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Pieces of a file that are read ahead.
const PIECES_AHEAD: usize = 4;

/// A record to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Vec<u8>,
}

/// Real input.
#[derive(Debug)]
pub(crate) enum Source {
    /// This host, looked at again and again, on a thread: reading `/proc` must not hold up what is measured.
    Telemetry { ask: mpsc::Sender<oneshot::Sender<io::Result<Vec<Line>>>>, next: Instant },
    /// A file, a record a line.
    File(FileSource),
}

/// A file that is read ahead, and handed out at a rate if it is small.
#[derive(Debug)]
pub(crate) struct FileSource {
    pieces: mpsc::Receiver<Piece>,
    /// Lines that have been read and not handed out.
    ahead: VecDeque<Line>,
    bytes: u64,
    taken: u64,
    /// Bytes a second.
    rate: Option<u64>,
    start: Option<Instant>,
}

impl Source {
    /// Telemetry of this host.
    pub(crate) fn telemetry() -> anyhow::Result<Self> {
        telemetry::sample().context("read /proc; without it, send a file: --file PATH")?;
        let (ask, mut asked) = mpsc::channel::<oneshot::Sender<io::Result<Vec<Line>>>>(1);
        std::thread::Builder::new()
            .name("telemetry".to_owned())
            .spawn(move || {
                while let Some(answer) = asked.blocking_recv() {
                    // Whoever asked may have gone.
                    let _ = answer.send(telemetry::sample());
                }
            })
            .context("start the telemetry thread")?;
        Ok(Self::Telemetry { ask, next: Instant::now() })
    }

    /// The lines of a file.
    pub(crate) fn file(path: &Path) -> anyhow::Result<Self> {
        let open = || format!("open {}", path.display());
        let file = File::open(path).with_context(open)?;
        let metadata = file.metadata().with_context(open)?;
        anyhow::ensure!(metadata.is_file(), "{} is not a file", path.display());
        anyhow::ensure!(metadata.len() > 0, "{} is empty: there is nothing to send", path.display());
        let bytes = metadata.len();
        let rate = (bytes <= SPREAD_BYTES_MAX).then(|| (bytes / SPREAD_OVER.as_secs()).max(1));
        let pieces = lines::read(file, LINE_BYTES_MAX, PIECES_AHEAD).context("start the input thread")?;
        let ahead = VecDeque::new();
        Ok(Self::File(FileSource { pieces, ahead, bytes, taken: 0, rate, start: None }))
    }

    /// Whether more than half of a file has been taken.
    pub(crate) const fn is_half_taken(&self) -> bool {
        match self {
            Self::Telemetry { .. } => false,
            Self::File(file) => file.taken * 2 > file.bytes,
        }
    }

    /// The next lines, when it is time for them; `None` at the end of a file.
    ///
    /// Not cancel safe: lines may be lost.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<Line>>> {
        match self {
            Self::Telemetry { ask, next } => {
                tokio::time::sleep_until((*next).into()).await;
                *next = (*next + SAMPLE_EVERY).max(Instant::now());
                let (answer, answered) = oneshot::channel();
                ask.send(answer).await.ok().context("the telemetry thread ended")?;
                let lines = answered.await.context("the telemetry thread ended")?.context("read /proc")?;
                Ok(Some(lines))
            }
            Self::File(file) => file.next().await,
        }
    }
}

impl FileSource {
    async fn next(&mut self) -> anyhow::Result<Option<Vec<Line>>> {
        if self.ahead.is_empty() && !self.read().await? {
            return Ok(None);
        }
        let start = *self.start.get_or_insert_with(Instant::now);
        let mut lines = Vec::new();
        match self.rate {
            None => lines.extend(self.ahead.drain(..)),
            Some(rate) => {
                let due = start + Duration::from_secs_f64(self.taken as f64 / rate as f64);
                tokio::time::sleep_until(due.into()).await;
                let due_bytes = (start.elapsed().as_secs_f64() * rate as f64) as u64;
                let mut taken = self.taken;
                while taken <= due_bytes
                    && let Some(line) = self.ahead.pop_front()
                {
                    taken += line.value.len() as u64 + 1;
                    lines.push(line);
                }
            }
        }
        self.taken += lines.iter().map(|line| line.value.len() as u64 + 1).sum::<u64>();
        Ok(Some(lines))
    }

    /// Reads ahead; false at the end of the file.
    async fn read(&mut self) -> anyhow::Result<bool> {
        match self.pieces.recv().await {
            None => return Ok(false),
            Some(Piece::Failed(error)) => return Err(error).context("read the file"),
            Some(Piece::TooLong(bytes)) => {
                self.taken += bytes;
                crate::output::note(format!(
                    "a line of {bytes} bytes is left out: it is too long for a record"
                ));
            }
            Some(Piece::Lines(bytes)) => {
                let line = |line: &[u8]| Line { key: None, value: line.to_vec() };
                self.ahead.extend(lines::lines(&bytes).map(line));
            }
        }
        Ok(true)
    }
}
