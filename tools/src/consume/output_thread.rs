//! Standard output behind a thread of its own.

use std::io::{self, Write};

use anyhow::Context;
use tokio::sync::{mpsc, oneshot};

use crate::encode::Encoder;
use crate::output::{self, OutputClosed};

/// Bytes that are written to standard output at once.
pub(super) const WRITE_BYTES: usize = 256 << 10;
/// Writes that wait while whoever reads is busy.
const WRITES_AHEAD: usize = 4;

/// Standard output behind a thread, so that a slow reader holds up the consumer and not its connection.
pub(super) struct Output {
    pub(super) encoder: Encoder,
    pub(super) buffer: Vec<u8>,
    writes: Option<mpsc::Sender<Vec<u8>>>,
    /// Buffers that have been written, to be used again.
    spare: mpsc::Receiver<Vec<u8>>,
    end: oneshot::Receiver<io::Result<()>>,
    /// The error of `end` has been told.
    has_failed: bool,
}

impl Output {
    pub(super) fn start(encoder: Encoder) -> anyhow::Result<Self> {
        let (writes, receiver) = mpsc::channel(WRITES_AHEAD);
        let (give_back, spare) = mpsc::channel(WRITES_AHEAD + 1);
        let (ended, end) = oneshot::channel();
        std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                // Nobody waits for the end any more only when the command is over.
                let _ = ended.send(write_all(receiver, &give_back));
            })
            .context("start the output thread")?;
        let buffer = Vec::with_capacity(WRITE_BYTES * 2);
        Ok(Self { encoder, buffer, writes: Some(writes), spare, end, has_failed: false })
    }

    pub(super) const fn has_buffered(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Hands what is buffered to the thread. Waits while the thread has enough to do.
    pub(super) async fn write(&mut self) -> anyhow::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let empty = self.spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(WRITE_BYTES * 2));
        let full = std::mem::replace(&mut self.buffer, empty);
        match &self.writes {
            Some(writes) if writes.send(full).await.is_ok() => Ok(()),
            _ => Err(self.closed().await),
        }
    }

    /// Writes what is buffered, and waits until it is written.
    pub(super) async fn write_through(&mut self) -> anyhow::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.write().await?;
        // Every other buffer is back already.
        match self.spare.recv().await {
            Some(written) => {
                self.buffer = written;
                Ok(())
            }
            None => Err(self.closed().await),
        }
    }

    /// Waits until standard output fails.
    pub(super) async fn closed(&mut self) -> anyhow::Error {
        let end = (&mut self.end).await;
        self.has_failed = true;
        match end {
            Ok(Err(error)) => output::written(Err(error)).err().unwrap_or_else(|| OutputClosed.into()),
            _ => OutputClosed.into(),
        }
    }

    /// Writes everything and ends the thread, unless it has failed before.
    pub(super) async fn finish(mut self) -> anyhow::Result<()> {
        if self.has_failed {
            return Ok(());
        }
        self.write().await?;
        drop(self.writes.take());
        output::written(self.end.await.unwrap_or(Ok(())))
    }
}

fn write_all(mut buffers: mpsc::Receiver<Vec<u8>>, give_back: &mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    // Locked and unbuffered: buffers come as large as they should be written.
    let mut stdout = io::stdout().lock();
    while let Some(mut buffer) = buffers.blocking_recv() {
        stdout.write_all(&buffer)?;
        stdout.flush()?;
        buffer.clear();
        // A buffer more than fits is just freed.
        let _ = give_back.try_send(buffer);
    }
    Ok(())
}
