//! Connections to brokers that break at random places: in the middle of a request, in the middle of a reply, or after
//! requests whose replies never came back.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use highwater_client::wire::{Connecting, Connector, Link};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;

use crate::sim::random::Random;

/// Bytes between the client and the part that may lose them.
const BUFFER_BYTES: usize = 64 << 10;
/// Bytes that are forwarded at once.
const PIECE_BYTES: usize = 16 << 10;
/// The most bytes that pass in a direction before it breaks.
const BYTES_MAX: u64 = 40_000;
/// The longest time for which requests still arrive while replies are lost.
const LOSING_MAX_MS: u64 = 40;

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    /// After so many bytes of requests.
    Up(u64),
    /// After so many bytes of replies.
    Down(u64),
    /// After so many bytes of replies no more come through, while requests do, and then it is cut.
    Replies(u64, Duration),
    /// When one of the two closes it.
    Never,
}

/// Connects over TCP; the first `breaks` connections break.
#[derive(Debug)]
pub struct Lossy {
    random: Mutex<Random>,
    breaks: u64,
    made: AtomicU64,
}

impl Lossy {
    /// Connections that break as the seed says.
    #[must_use]
    pub const fn new(seed: u64, breaks: u64) -> Self {
        Self { random: Mutex::new(Random::new(seed)), breaks, made: AtomicU64::new(0) }
    }

    /// How many connections were made that had to break.
    pub fn broken(&self) -> u64 {
        self.made.load(Ordering::Relaxed).min(self.breaks)
    }

    fn next(&self) -> Break {
        if self.made.fetch_add(1, Ordering::Relaxed) >= self.breaks {
            return Break::Never;
        }
        let mut random = self.random.lock();
        let bytes = 200 + random.below(BYTES_MAX);
        match random.below(3) {
            0 => Break::Up(bytes),
            1 => Break::Down(bytes / 8),
            _ => Break::Replies(bytes / 8, Duration::from_millis(1 + random.below(LOSING_MAX_MS))),
        }
    }
}

impl Connector for Lossy {
    fn connect<'a>(&'a self, address: &'a str) -> Connecting<'a> {
        Box::pin(async move {
            let address: SocketAddr = address.parse().map_err(std::io::Error::other)?;
            let broker = TcpStream::connect(address).await?;
            broker.set_nodelay(true)?;
            let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
            tokio::spawn(forward(theirs, broker, self.next()));
            Ok(Link::from_stream(ours))
        })
    }
}

/// Forwards both directions until the connection ends; dropping the streams cuts it.
async fn forward(client: DuplexStream, mut broker: TcpStream, how: Break) {
    let (up, down) = match how {
        Break::Up(bytes) => (bytes, u64::MAX),
        Break::Down(bytes) | Break::Replies(bytes, _) => (u64::MAX, bytes),
        Break::Never => (u64::MAX, u64::MAX),
    };
    let (client_read, mut client_write) = tokio::io::split(client);
    let (broker_read, mut broker_write) = broker.split();
    let (mut requests, mut replies) = (client_read.take(up), broker_read.take(down));
    let losing = async {
        let copied = copy(&mut replies, &mut client_write).await;
        if let (Ok(()), Break::Replies(_, time)) = (copied, how) {
            let mut lost = replies.into_inner();
            let mut nowhere = tokio::io::sink();
            let swallow = copy(&mut lost, &mut nowhere);
            let _ = tokio::time::timeout(time, swallow).await;
        }
    };
    tokio::select! {
        _ = copy(&mut requests, &mut broker_write) => {}
        () = losing => {}
    }
}

/// Copies until the end of what comes; each piece goes on at once.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    loop {
        piece.clear();
        if from.take(PIECE_BYTES as u64).read_buf(&mut piece).await? == 0 {
            return Ok(());
        }
        to.write_all(&piece).await?;
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;
    use crate::wait;

    #[tokio::test]
    async fn connections_break_until_enough_have() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        let lossy = Lossy::new(1, 20);
        let mut cut = 0;
        for _ in 0..21 {
            let _link = lossy.connect(&address.to_string()).await.unwrap();
            cut += 1;
        }
        assert_eq!((cut, lossy.broken()), (21, 20));
        for how in [Break::Up(10), Break::Down(10), Break::Replies(10, Duration::from_millis(1))] {
            let (mut ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
            let broker = TcpStream::connect(address).await.unwrap();
            let task = tokio::spawn(forward(theirs, broker, how));
            ours.write_all(&[7; 1000]).await.unwrap();
            let mut echoed = Vec::new();
            let read = wait::within("the end", Duration::from_secs(60), ours.read_to_end(&mut echoed)).await;
            assert!(read.unwrap().unwrap() <= 10, "{how:?}: {} bytes", echoed.len());
            task.await.unwrap();
        }
    }
}
