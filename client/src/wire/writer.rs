//! The task that writes a connection.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connection::{Outgoing, Shared};
use crate::error::ErrorKind;

/// Slices that one system call takes.
const SLICES: usize = 64;
/// Bytes that are gathered for one system call, unless one frame has more.
const GATHER_BYTES: usize = 1 << 20;

/// Writes what is queued until the connection ends; then tells everyone who still waits for a reply.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut link: Box<dyn AsyncWrite + Send + Unpin>,
    mut queue: mpsc::Receiver<Outgoing>,
) {
    let mut pending = Pending::default();
    let timer = tokio::time::sleep_until(Instant::now() + shared.keep_alive);
    tokio::pin!(timer);
    let mut written_at = Instant::now();
    loop {
        if pending.is_empty() {
            tokio::select! {
                biased;
                () = shared.cancel.cancelled() => break,
                next = queue.recv() => match next {
                    Some(frame) => pending.push(frame),
                    None => break,
                },
                () = &mut timer => {
                    let silent_since = written_at.min(shared.received_at());
                    if silent_since.elapsed() >= shared.keep_alive {
                        pending.extend(shared.ping());
                        timer.as_mut().reset(Instant::now() + shared.keep_alive);
                    } else {
                        timer.as_mut().reset(silent_since + shared.keep_alive);
                    }
                }
            }
        }
        while pending.has_room() {
            match queue.try_recv() {
                Ok(frame) => pending.push(frame),
                Err(_) => break,
            }
        }
        if pending.is_empty() {
            continue;
        }
        let result = tokio::select! {
            biased;
            () = shared.cancel.cancelled() => break,
            result = pending.write(&mut link) => result,
        };
        match result {
            Ok(sent) => {
                written_at = Instant::now();
                if !sent.is_empty() {
                    shared.mark_sent(&sent);
                }
            }
            Err(error) => {
                let text = format!("connection lost: {error}");
                shared.fail(shared.error(ErrorKind::Connection, text).with_source(error));
                break;
            }
        }
    }
    queue.close();
    shared.resolve_all();
    // Best effort: the peer sees the end of the stream, not a reset, when there is nothing left to send.
    let _ = tokio::time::timeout(Duration::from_secs(1), link.shutdown()).await;
}

/// Frames on their way into the link.
#[derive(Default)]
struct Pending {
    slices: VecDeque<Bytes>,
    bytes: usize,
    frames: VecDeque<Progress>,
}

struct Progress {
    correlation_id: u64,
    started: bool,
    remaining: usize,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    fn has_room(&self) -> bool {
        self.slices.len() < SLICES && self.bytes < GATHER_BYTES
    }

    fn extend(&mut self, frame: Option<Outgoing>) {
        if let Some(frame) = frame {
            self.push(frame);
        }
    }

    fn push(&mut self, frame: Outgoing) {
        let mut length = 0;
        for slice in std::iter::once(frame.head).chain(frame.attachment) {
            length += slice.len();
            if !slice.is_empty() {
                self.slices.push_back(slice);
            }
        }
        self.bytes += length;
        self.frames.push_back(Progress {
            correlation_id: frame.correlation_id,
            started: false,
            remaining: length,
        });
    }

    /// Writes some of the bytes, or flushes when that was the last of them. Returns the requests whose first byte is
    /// out now. Cancel safe: a write that was not done wrote nothing.
    async fn write(&mut self, link: &mut Box<dyn AsyncWrite + Send + Unpin>) -> io::Result<Vec<u64>> {
        let written = poll_fn(|context| {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut count = 0;
            for (slot, bytes) in slices.iter_mut().zip(&self.slices) {
                *slot = IoSlice::new(bytes);
                count += 1;
            }
            Pin::new(&mut *link).poll_write_vectored(context, &slices[..count])
        })
        .await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let sent = self.advance(written);
        if self.is_empty() {
            // Nothing is lost when this is cut off: the bytes are out, and the next write flushes them.
            poll_fn(|context| {
                let _ = Pin::new(&mut *link).poll_flush(context);
                std::task::Poll::Ready(())
            })
            .await;
        }
        Ok(sent)
    }

    fn advance(&mut self, written: usize) -> Vec<u64> {
        self.bytes -= written;
        let mut left = written;
        while let Some(front) = self.slices.front_mut().filter(|_| left > 0) {
            let step = front.len().min(left);
            front.advance(step);
            left -= step;
            if front.is_empty() {
                self.slices.pop_front();
            }
        }
        let mut sent = Vec::new();
        let mut left = written;
        while let Some(frame) = self.frames.front_mut().filter(|_| left > 0) {
            if !frame.started {
                frame.started = true;
                if frame.correlation_id != 0 {
                    sent.push(frame.correlation_id);
                }
            }
            let step = frame.remaining.min(left);
            frame.remaining -= step;
            left -= step;
            if frame.remaining == 0 {
                self.frames.pop_front();
            }
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(correlation_id: u64, head: usize, attachment: &[usize]) -> Outgoing {
        let bytes = |length: &usize| Bytes::from(vec![0; *length]);
        Outgoing { correlation_id, head: bytes(&head), attachment: attachment.iter().map(bytes).collect() }
    }

    #[test]
    fn a_request_counts_as_sent_from_its_first_byte_on() {
        let mut pending = Pending::default();
        pending.push(frame(1, 10, &[100]));
        pending.push(frame(0, 5, &[]));
        pending.push(frame(2, 10, &[0, 50]));
        assert_eq!(pending.advance(1), [1]);
        assert_eq!(pending.advance(109), [] as [u64; 0]);
        assert_eq!(pending.advance(5), [] as [u64; 0], "nobody waits for a one-way message");
        assert_eq!((pending.frames.len(), pending.bytes), (1, 60));
        assert_eq!(pending.advance(60), [2]);
        assert!(pending.is_empty() && pending.frames.is_empty());
    }
}
