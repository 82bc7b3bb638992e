//! What a connection has yet to write.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

/// Slices given to one system call.
const SLICES_MAX: usize = 64;

/// Bytes on their way to the socket, in order. Batches are slices of what they were read from.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pieces: VecDeque<Piece>,
    bytes: usize,
    /// Bytes that are not batches of pushes: they are memory of this broker.
    reply_bytes: usize,
}

#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    kind: Kind,
}

/// What a piece counts for once it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The end of this many replies.
    Replies(u32),
    /// Anything else.
    Other,
}

impl Output {
    /// Bytes that wait.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of replies that wait.
    pub(crate) const fn reply_bytes(&self) -> usize {
        self.reply_bytes
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Adds a piece at the end.
    pub(crate) fn push(&mut self, bytes: Bytes, kind: Kind) {
        if bytes.is_empty() && kind == Kind::Other {
            return;
        }
        self.bytes += bytes.len();
        if kind != Kind::Other {
            self.reply_bytes += bytes.len();
        }
        self.pieces.push_back(Piece { bytes, kind });
    }

    /// Writes as much as the writer takes at once, and returns how many bytes that were and how many replies ended in
    /// them. Waits while the writer takes nothing. Cancel-safe.
    ///
    /// # Errors
    /// When the writer fails or takes nothing although it is ready.
    pub(crate) async fn write_some(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<Written> {
        let written = poll_fn(|context| {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                *slice = IoSlice::new(&piece.bytes);
                count += 1;
            }
            Pin::new(&mut *writer).poll_write_vectored(context, &slices[..count])
        })
        .await?;
        if written == 0 && self.bytes > 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let replies = self.advance(written);
        Ok(Written { bytes: written, replies })
    }

    fn advance(&mut self, mut written: usize) -> u32 {
        self.bytes -= written;
        let mut replies = 0;
        while let Some(front) = self.pieces.front_mut() {
            let taken = front.bytes.len().min(written);
            front.bytes.advance(taken);
            written -= taken;
            if let Kind::Replies(count) = front.kind {
                self.reply_bytes -= taken;
                if front.bytes.is_empty() {
                    replies += count;
                }
            }
            if !front.bytes.is_empty() {
                break;
            }
            self.pieces.pop_front();
        }
        replies
    }
}

/// What one write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) bytes: usize,
    pub(crate) replies: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn pieces_are_written_in_order_and_replies_counted_when_they_are_whole() {
        let (mut writer, mut reader) = tokio::io::duplex(5);
        let mut output = Output::default();
        output.push(Bytes::from_static(b"abc"), Kind::Replies(2));
        output.push(Bytes::from_static(b"defg"), Kind::Other);
        output.push(Bytes::new(), Kind::Other);
        output.push(Bytes::from_static(b"hi"), Kind::Replies(1));
        let (mut replies, mut all) = (Vec::new(), Vec::new());
        while !output.is_empty() {
            let written = output.write_some(&mut writer).await.unwrap();
            replies.push(written.replies);
            let mut chunk = vec![0; written.bytes];
            reader.read_exact(&mut chunk).await.unwrap();
            all.extend(chunk);
        }
        assert_eq!(all, b"abcdefghi");
        assert_eq!(replies.iter().sum::<u32>(), 3);
        assert_eq!((output.bytes(), output.reply_bytes()), (0, 0));
    }
}
