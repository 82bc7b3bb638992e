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
