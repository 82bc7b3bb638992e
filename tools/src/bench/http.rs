//! What a broker says over HTTP: whether it is ready, and its metrics.

use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long one question may take.
const WITHIN: Duration = Duration::from_secs(5);

/// The most bytes of an answer.
const ANSWER_MAX: u64 = 64 << 20;

/// Asks for a path, and returns the status and the body.
///
/// # Errors
/// When nobody answers there, or not within five seconds, or not HTTP.
pub(super) async fn get(address: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let asked = tokio::time::timeout(WITHIN, ask(address, path)).await;
    asked
        .with_context(|| format!("http://{address}{path} did not answer within {WITHIN:?}"))?
        .with_context(|| format!("ask http://{address}{path}"))
}

async fn ask(address: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    parse(&answer).context("the answer is not HTTP")
}

/// Status and body. The body may come in chunks, whose lines of lengths are left in: what is looked for in it are lines.
fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// The metrics of a broker at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metrics(String);

impl Metrics {
    /// Asks for them.
    ///
    /// # Errors
    /// When they cannot be had; says which flag of the broker makes them.
    pub(super) async fn of(address: &str) -> anyhow::Result<Self> {
        let (status, body) = get(address, "/metrics")
            .await
            .context("--metrics takes the address of a broker's HTTP port, which its flag --http says")?;
        anyhow::ensure!(status == 200, "http://{address}/metrics answered with status {status}");
        Ok(Self(body))
    }

    /// A counter: all lines of this name whose labels have `label` in them, together. `None` when there is no such line.
    pub(super) fn counter(&self, name: &str, label: &str) -> Option<f64> {
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (labels, number) = rest.rsplit_once(' ')?;
            let is_it = labels.is_empty() || labels.starts_with('{');
            (is_it && labels.contains(label)).then(|| number.trim().parse::<f64>().ok())?
        };
        let found: Vec<f64> = self.0.lines().filter_map(value).collect();
        (!found.is_empty()).then(|| found.iter().sum())
    }

    /// By how much a counter grew until a later moment.
    pub(super) fn grown(&self, later: &Self, name: &str, label: &str) -> Option<u64> {
        // What was never counted has no line yet.
        let now = later.counter(name, label)?;
        Some((now - self.counter(name, label).unwrap_or(0.0)).max(0.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_a_status_and_a_body() {
        let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nno\n";
        assert_eq!(parse(answer), Some((503, "no\n".to_owned())));
        assert_eq!(parse(b"SSH-2.0"), None);
    }

    #[test]
    fn counters_are_found_by_name_and_label() {
        let metrics = Metrics(
            "# HELP a_total x\na_total 3\na_total_b 9\nr_total{api=\"x\",e=\"1\"} 2\nr_total{api=\"x\",e=\"2\"} 5\n\
             r_total{api=\"y\"} 100\n"
                .to_owned(),
        );
        assert_eq!(metrics.counter("a_total", ""), Some(3.0));
        assert_eq!(metrics.counter("r_total", "api=\"x\""), Some(7.0));
        assert_eq!(metrics.counter("r_total", "api=\"z\""), None);
        let later = Metrics("a_total 10\nr_total{api=\"z\"} 4\n".to_owned());
        assert_eq!(metrics.grown(&later, "a_total", ""), Some(7));
        assert_eq!(metrics.grown(&later, "r_total", "api=\"z\""), Some(4));
        assert_eq!(metrics.grown(&later, "none", ""), None);
    }
}
