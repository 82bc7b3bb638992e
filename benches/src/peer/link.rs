//! A connection whose answers are taken apart as they come.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;

use anyhow::{Context, Result, ensure};

/// Bytes that are asked of the socket at once.
const READ_BYTES: usize = 1 << 20;

/// A blocking connection with what has come and was not taken yet.
pub(super) struct Link {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What of the buffer has come and was not taken.
    here: Range<usize>,
}

impl Link {
    pub(super) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 2 * READ_BYTES], here: 0..0 })
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("send")
    }

    /// What `parse` makes of the bytes that have come, once they are enough for it; it says how many it took.
    pub(super) fn next<T>(
        &mut self,
        mut parse: impl FnMut(&[u8]) -> Result<Option<(T, usize)>>,
    ) -> Result<T> {
        loop {
            if let Some(value) = self.next_here(&mut parse)? {
                return Ok(value);
            }
            self.receive()?;
        }
    }

    /// The same, if it has come already.
    pub(super) fn next_here<T>(
        &mut self,
        mut parse: impl FnMut(&[u8]) -> Result<Option<(T, usize)>>,
    ) -> Result<Option<T>> {
        let parsed = parse(self.buffer.get(self.here.clone()).unwrap_or_default())?;
        Ok(parsed.map(|(value, length)| {
            self.here.start += length;
            value
        }))
    }

    fn receive(&mut self) -> Result<()> {
        if self.buffer.len() - self.here.end < READ_BYTES {
            self.buffer.copy_within(self.here.clone(), 0);
            self.here = 0..self.here.len();
            // Only a reply that is larger than the buffer makes it grow.
            self.buffer.resize(self.buffer.len().max(self.here.end + READ_BYTES), 0);
        }
        let room = self.buffer.get_mut(self.here.end..).unwrap_or_default();
        let count = self.stream.read(room).context("receive")?;
        ensure!(count > 0, "the server closed the connection");
        self.here.end += count;
        Ok(())
    }
}

/// The first line of `bytes` and how long it is with its end, if it has come as a whole.
pub(super) fn line(bytes: &[u8]) -> Result<Option<(&str, usize)>> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let line = std::str::from_utf8(bytes.get(..end).unwrap_or_default()).context("understand the server")?;
    Ok(Some((line, end + 2)))
}
