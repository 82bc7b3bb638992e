//! The connection of a command to its cluster.

use std::time::Duration;

use anyhow::Context;
use highwater_client::Client;

use crate::args::{AcksArg, CompressionArg, Global};

/// Connects to the brokers of `--bootstrap`.
pub(crate) async fn connect(global: &Global) -> anyhow::Result<Client> {
    connect_to(&global.bootstrap, global.timeout).await
}

/// Connects to one of `addresses` within `timeout`, which also bounds every request.
pub(crate) async fn connect_to(addresses: &[String], timeout: Duration) -> anyhow::Result<Client> {
    Client::builder(addresses)
        .name("highwater-cli")
        .connect_timeout(timeout)
        .request_timeout(timeout)
        .connect()
        .await
        .with_context(|| format!("connect to {}", addresses.join(", ")))
}

/// A runtime for a command: one thread, which is fastest for one connection and leaves the other cores to the broker.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")
}

impl From<AcksArg> for highwater_client::Acks {
    fn from(acks: AcksArg) -> Self {
        match acks {
            AcksArg::All => Self::All,
            AcksArg::Leader => Self::Leader,
            AcksArg::None => Self::None,
        }
    }
}

/// A runtime for a thousand connections: one thread too, which goes on with what it has woken last. So what a connection
/// has read is taken and let go before the next one reads, into the same memory.
pub(crate) fn runtime_for_many() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().context("start the runtime")
}

/// The compression of `--compression`, if this build has it.
pub(crate) fn compression(chosen: CompressionArg) -> anyhow::Result<highwater_client::Compression> {
    match chosen {
        CompressionArg::None => Ok(highwater_client::Compression::None),
        CompressionArg::Lz4 => Ok(highwater_client::Compression::Lz4),
        CompressionArg::Zstd if cfg!(feature = "zstd") => Ok(highwater_client::Compression::Zstd),
        CompressionArg::Zstd => {
            anyhow::bail!(
                "this build has no zstd: use lz4, or build with: cargo build --release --features zstd"
            )
        }
    }
}

/// The name of a stage, as documents and JSON have it.
pub(crate) const fn stage_name(stage: highwater_client::Stage) -> &'static str {
    match stage {
        highwater_client::Stage::Accepted => "accepted",
        highwater_client::Stage::Written => "written",
        highwater_client::Stage::Flushed => "flushed",
    }
}
