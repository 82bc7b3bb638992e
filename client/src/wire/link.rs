//! The two halves of a byte stream to a broker, and how they come to be.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A stream of bytes in both directions.
pub struct Link {
    pub(super) reader: Box<dyn AsyncRead + Send + Unpin>,
    pub(super) writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Link {
    /// A link of two halves.
    #[must_use]
    pub fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self { reader: Box::new(reader), writer: Box::new(writer) }
    }

    /// A link over any stream, such as one end of `tokio::io::duplex`.
    #[must_use]
    pub fn from_stream(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self::new(reader, writer)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

/// What [`Connector::connect`] returns.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<Link>> + Send + 'a>>;

/// How links are made: TCP, or in memory in tests.
pub trait Connector: Send + Sync + fmt::Debug {
    /// Opens a link to `address` (`host:port`). The caller bounds the time.
    fn connect<'a>(&'a self, address: &'a str) -> Connecting<'a>;
}

/// Connects over TCP, trying every address that the host name has.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    fn connect<'a>(&'a self, address: &'a str) -> Connecting<'a> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            // Frames are written whole: waiting for more bytes would only add latency.
            stream.set_nodelay(true)?;
            let (reader, writer) = stream.into_split();
            Ok(Link::new(reader, writer))
        })
    }
}
