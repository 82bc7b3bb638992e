//! What the cluster commands ask of a broker.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use highwater_client::Error;
use highwater_client::wire::{Pool, Settings, TcpConnector};
use highwater_protocol::api::Request;
use highwater_protocol::messages::{
    AlterClusterReply, AlterClusterRequest, DescribeClusterReply, DescribeClusterRequest,
};
use tokio::time::Instant;

use crate::args::Global;

/// How long to wait before the next round of addresses.
const PAUSE: Duration = Duration::from_millis(50);

/// The brokers of `--bootstrap`, any of which can answer for the cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    pool: Pool,
    addresses: Vec<String>,
    timeout: Duration,
}

impl Cluster {
    /// Connects to the first that answers.
    pub(crate) async fn connect(global: &Global) -> anyhow::Result<Self> {
        let settings = Settings { client_name: "highwater-cli".to_owned(), ..Settings::default() };
        let pool = Pool::new(Arc::new(TcpConnector), settings);
        let cluster = Self { pool, addresses: global.bootstrap.clone(), timeout: global.timeout };
        let addresses = || format!("connect to {}", cluster.addresses.join(", "));
        cluster.describe().await.with_context(addresses)?;
        Ok(cluster)
    }

    /// The state of the cluster, as the broker that answers knows it.
    pub(crate) async fn describe(&self) -> Result<DescribeClusterReply, Error> {
        self.ask(&DescribeClusterRequest {}, true).await
    }

    /// Changes something. Not sent again when its answer was lost.
    pub(crate) async fn alter(&self, request: &AlterClusterRequest) -> Result<AlterClusterReply, Error> {
        self.ask(request, false).await
    }

    async fn ask<R: Request>(&self, request: &R, again: bool) -> Result<R::Response, Error> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let mut last = None;
            for address in &self.addresses {
                let connection = match tokio::time::timeout_at(deadline, self.pool.get(address)).await {
                    Ok(Ok(connection)) => connection,
                    Ok(Err(error)) => {
                        last = Some(error);
                        continue;
                    }
                    Err(_) => break,
                };
                match connection.request(request, deadline).await {
                    Ok((reply, _)) => return Ok(reply),
                    Err(error) if error.is_retriable() && (again || error.code().is_some()) => {
                        last = Some(error);
                    }
                    Err(error) => return Err(error),
                }
            }
            if let Some(error) = last
                && Instant::now() + PAUSE >= deadline
            {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
