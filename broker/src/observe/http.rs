//! The HTTP port: `/health/live`, `/health/ready` and `/metrics`.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::health::Health;
use super::metrics::Metrics;

/// Connections at once; more wait to be accepted. A probe and a few scrapers need one each.
const CONNECTIONS_MAX: usize = 64;

/// How long a connection lives. Whoever wants more makes another one, and whoever says nothing keeps nobody out for long.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(30);

/// A pause after an error that will not go away at once, like no file descriptor being left.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// What Prometheus and OpenMetrics scrapers expect.
const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone)]
struct Observed {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

/// Answers until `shutdown` is cancelled; requests under way are finished.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let listener =
        Bounded { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)), age_max: CONNECTION_AGE_MAX };
    axum::serve(listener, routes(health, metrics)).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

/// Accepts so many connections at once, each for so long.
struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    age_max: Duration,
}

impl Listener for Bounded {
    type Io = Aging;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Aging, SocketAddr) {
        // The semaphore is never closed.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let end = Box::pin(tokio::time::sleep(self.age_max));
                    return (Aging { stream, end, _place: place }, peer);
                }
                Err(error) => {
                    tracing::warn!(%error, "an HTTP connection could not be accepted");
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when its time is up.
struct Aging {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Aging {
    fn check_age(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Aging {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_age(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Aging {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_age(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_age(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_age(context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn routes(health: Arc<Health>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(scrape))
        .with_state(Observed { health, metrics })
}

async fn live() -> &'static str {
    "live\n"
}

/// 200 when ready, 503 with a line for each obstacle when not.
async fn ready(State(observed): State<Observed>) -> impl IntoResponse {
    let obstacles = observed.health.obstacles();
    if obstacles.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let lines = obstacles.iter().map(|(name, explanation)| format!("{name}: {explanation}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines)
}

async fn scrape(State(observed): State<Observed>) -> impl IntoResponse {
    match observed.metrics.encode() {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], text),
        Err(error) => {
            let text = format!("metrics could not be written: {error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn fetch(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn readiness_follows_the_obstacles_and_metrics_are_served() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (health, metrics) = (Arc::new(Health::starting()), Arc::new(Metrics::new()));
        let shutdown = CancellationToken::new();
        let server =
            tokio::spawn(serve(listener, Arc::clone(&health), Arc::clone(&metrics), shutdown.clone()));

        assert!(fetch(address, "/health/live").await.starts_with("HTTP/1.1 200"));
        let not_ready = fetch(address, "/health/ready").await;
        assert!(not_ready.starts_with("HTTP/1.1 503") && not_ready.contains("starting: "), "{not_ready}");
        health.clear(Health::STARTING);
        assert!(fetch(address, "/health/ready").await.starts_with("HTTP/1.1 200"));

        metrics.connections_total.inc();
        let scraped = fetch(address, "/metrics").await;
        assert!(scraped.contains("highwater_connections_accepted_total 1\n"), "{scraped}");
        assert!(scraped.ends_with("# EOF\n"), "{scraped}");

        shutdown.cancel();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn silent_connections_keep_nobody_out_for_long() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let age_max = Duration::from_millis(300);
        let listener = Bounded { listener, places: Arc::new(Semaphore::new(2)), age_max };
        let routes = routes(Arc::new(Health::starting()), Arc::new(Metrics::new()));
        let server = tokio::spawn(async move { axum::serve(listener, routes).await });
        let mut silent = Vec::new();
        for _ in 0..6 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let answer = tokio::time::timeout(Duration::from_secs(30), fetch(address, "/health/live")).await;
        assert!(answer.unwrap().starts_with("HTTP/1.1 200"));
        let mut byte = [0];
        assert!(silent[0].read_exact(&mut byte).await.is_err(), "its time was up");
        server.abort();
    }
}
