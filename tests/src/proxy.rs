//! A link that can fail: TCP connections forwarded to a broker, paused or cut at will.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes that are forwarded at once.
const PIECE_BYTES: usize = 64 << 10;

/// What happens to bytes on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// They are forwarded.
    Open,
    /// Nothing is read from either side: the peers see each other as silent, and their buffers fill.
    Paused,
}

#[derive(Debug, Clone, Copy)]
struct State {
    flow: Flow,
    /// Connections made before it was raised are closed.
    cuts: u64,
}

/// Forwards connections to another address until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    accepted: Arc<AtomicU64>,
    acceptor: JoinHandle<()>,
}

impl Proxy {
    /// Starts to listen on a port of its own, and forwards what comes there to `target`. Must be called in a tokio
    /// runtime.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listen on loopback")?;
        let address = listener.local_addr()?;
        let (state, watched) = watch::channel(State { flow: Flow::Open, cuts: 0 });
        let accepted = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&accepted);
        let acceptor = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(forward(client, target, watched.clone()));
            }
        });
        Ok(Self { address, state, accepted, acceptor })
    }

    /// Where to connect to.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were made so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Stops to forward, without closing anything.
    pub fn pause(&self) {
        self.state.send_modify(|state| state.flow = Flow::Paused);
    }

    /// Forwards again after a pause.
    pub fn resume(&self) {
        self.state.send_modify(|state| state.flow = Flow::Open);
    }

    /// Closes all connections in both directions; bytes in flight are lost. New ones can be made.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.acceptor.abort();
    }
}

/// One connection, until either side closes it or it is cut.
async fn forward(client: TcpStream, target: SocketAddr, mut state: watch::Receiver<State>) {
    let born = state.borrow().cuts;
    let Ok(broker) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), broker.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (broker_read, broker_write) = broker.into_split();
    let cut = state.clone();
    tokio::select! {
        _ = state.wait_for(|state| state.cuts > born) => {}
        () = async { let _ = tokio::join!(
            copy(client_read, broker_write, cut.clone()),
            copy(broker_read, client_write, cut),
        ); } => {}
    }
}

/// Copies one direction while the flow is open, and passes the end of the stream on.
async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
) -> std::io::Result<()> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    loop {
        if state.wait_for(|state| state.flow == Flow::Open).await.is_err() {
            return Ok(());
        }
        piece.clear();
        if (&mut from).take(PIECE_BYTES as u64).read_buf(&mut piece).await? == 0 {
            return to.shutdown().await;
        }
        if state.wait_for(|state| state.flow == Flow::Open).await.is_err() {
            return Ok(());
        }
        to.write_all(&piece).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wait;

    const LIMIT: Duration = Duration::from_secs(60);

    /// A server that sends back what it gets.
    async fn echo() -> SocketAddr {
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
        address
    }

    #[tokio::test]
    async fn bytes_pass_and_a_pause_holds_them_back() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        let mut answer = [0; 4];
        stream.write_all(b"ping").await.unwrap();
        wait::within("an echo", LIMIT, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        proxy.pause();
        stream.write_all(b"pong").await.unwrap();
        let held = tokio::time::timeout(Duration::from_millis(50), stream.read_exact(&mut answer)).await;
        assert!(held.is_err(), "nothing passes a pause");
        proxy.resume();
        wait::within("an echo", LIMIT, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"pong");
        assert_eq!(proxy.accepted(), 1);
    }

    #[tokio::test]
    async fn a_cut_ends_connections_and_new_ones_can_be_made() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        for connections in 1..=2 {
            let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
            let mut answer = [0; 4];
            stream.write_all(b"ping").await.unwrap();
            wait::within("an echo", LIMIT, stream.read_exact(&mut answer)).await.unwrap().unwrap();
            proxy.cut();
            let end = wait::within("the end", LIMIT, stream.read_exact(&mut answer)).await.unwrap();
            assert!(end.is_err(), "the stream ends");
            assert_eq!(proxy.accepted(), connections);
        }
    }
}
