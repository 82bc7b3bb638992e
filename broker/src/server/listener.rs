//! Accepts connections, up to a limit.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use highwater_protocol::error_code::ErrorCode;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::Node;
use super::connection::{say_goodbye, serve};
use super::dispatch::Fault;
use super::output::Output;

/// How long a connection that is turned away has to take the reason.
const TURN_AWAY: Duration = Duration::from_secs(1);
/// Connections that are being turned away at once; more are just closed.
const TURNING_AWAY_MAX: usize = 64;
/// How often the operator is told that connections are turned away.
const TELL_PERIOD: Duration = Duration::from_secs(10);
/// A pause after an error that will not go away at once, like no file descriptor being left.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// A socket that is listened on, and its address.
pub(crate) type Listener = (TcpListener, SocketAddr);

/// Listens on an address; port 0 takes a free one.
pub(crate) async fn bind(address: &str) -> io::Result<Listener> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    if let Err(error) = send_unpaced(&listener, bound) {
        debug!(%error, %bound, "set TCP_CONGESTION");
    }
    Ok((listener, bound))
}

/// Accepts until `stop` is cancelled. Connections go on in `tasks`.
pub(crate) async fn listen(
    node: Arc<Node>,
    listener: TcpListener,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(node.limits.connections_max));
    let turning_away = Arc::new(Semaphore::new(TURNING_AWAY_MAX));
    let mut told: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, %peer, "set TCP_NODELAY");
        }
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                let node = Arc::clone(&node);
                tasks.spawn(async move {
                    let (reader, writer) = stream.into_split();
                    serve(node, reader, writer, peer.to_string()).await;
                    drop(place);
                });
            }
            Err(_full) => {
                node.metrics.connections_refused.inc();
                debug!(%peer, "connection turned away: the limit is reached");
                if told.is_none_or(|at| at.elapsed() >= TELL_PERIOD) {
                    told = Some(Instant::now());
                    warn!(
                        %peer, connections_max = node.limits.connections_max,
                        "connections are turned away: there are as many as connections_max allows; a client may have several"
                    );
                }
                if let Ok(permit) = Arc::clone(&turning_away).try_acquire_owned() {
                    let limit = node.limits.connections_max;
                    tasks.spawn(async move {
                        let _late = tokio::time::timeout(TURN_AWAY, turn_away(stream, limit)).await;
                        drop(permit);
                    });
                }
            }
        }
    }
}

/// Has the connections of a listener on loopback send as fast as the other side takes: there is no congestion within a machine, and
/// an algorithm that paces, which may be the default (BBR), sets a timer for every few packets. All kernels have Reno, which
/// does not. Connections take it from their listener; one that began with BBR would be paced with any other one too.
#[cfg(target_os = "linux")]
fn send_unpaced(listener: &TcpListener, bound: SocketAddr) -> io::Result<()> {
    if bound.ip().is_loopback() {
        rustix::net::sockopt::set_tcp_congestion(listener, "reno")?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn send_unpaced(_listener: &TcpListener, _bound: SocketAddr) -> io::Result<()> {
    Ok(())
}

async fn turn_away(mut stream: TcpStream, limit: usize) -> io::Result<()> {
    let mut output = Output::default();
    let fault = Fault::new(
        ErrorCode::TooManyConnections,
        format!("the broker accepts {limit} connections; try again later"),
    );
    say_goodbye(&mut output, &fault);
    while !output.is_empty() {
        output.write_some(&mut stream).await?;
    }
    stream.shutdown().await
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::net::sockopt::tcp_congestion;

    use super::*;

    #[tokio::test]
    async fn only_connections_on_loopback_leave_the_algorithm_of_the_system() {
        let (listener, address) = bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let ((stream, _), client) = (accepted.unwrap(), client.unwrap());
        assert_eq!(tcp_congestion(&stream).unwrap(), "reno");
        let (everywhere, _) = bind("0.0.0.0:0").await.unwrap();
        assert_eq!(tcp_congestion(&everywhere).unwrap(), tcp_congestion(&client).unwrap());
    }
}
