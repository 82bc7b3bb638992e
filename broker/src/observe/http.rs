//! The HTTP port: `/health/live`, `/health/ready` and `/metrics`.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::health::Health;
use super::metrics::Metrics;

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
    axum::serve(listener, routes(health, metrics)).with_graceful_shutdown(shutdown.cancelled_owned()).await
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
}
