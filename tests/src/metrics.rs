//! What a broker says of itself over HTTP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The value of a metric without labels, as `/metrics` has it.
///
/// # Errors
/// When the broker does not answer or has no such metric.
pub fn value(address: SocketAddr, name: &str) -> Result<f64> {
    let mut stream = TcpStream::connect(address).context("connect for metrics")?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read metrics")?;
    let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.with_context(|| format!("there is no metric {name}"))?.trim().parse().context("a number")
}
