//! A consumer that never goes away: what it saw is one pass of the history.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use highwater_client::{Client, PartitionId, StartAt};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::note;
use crate::oracle::Pass;

/// Reads a partition from its start, through whatever happens to the brokers, until it is stopped.
#[derive(Debug)]
pub struct Watcher {
    task: JoinHandle<Result<Seen>>,
    stop: watch::Sender<bool>,
}

/// What a watcher saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// In order of offsets, as far as it came.
    pub pass: Pass,
    /// When each batch came.
    pub times: Vec<Instant>,
}

impl Seen {
    /// The longest time without a batch that ended between two moments.
    #[must_use]
    pub fn longest_pause(&self, from: Instant, to: Instant) -> Duration {
        let pairs = self.times.iter().zip(self.times.iter().skip(1));
        let within = pairs.filter(|(_, next)| **next >= from && **next <= to);
        within.map(|(time, next)| next.duration_since(*time)).max().unwrap_or_default()
    }
}

impl Watcher {
    /// Starts to read. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the subscription cannot be made.
    pub async fn start(client: &Client, topic: &str, partition: PartitionId) -> Result<Self> {
        let builder = client.consumer(topic).from(StartAt::Earliest).partitions([partition]);
        let mut consumer = builder.build().await.context("subscribe")?;
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut seen = Seen::default();
            loop {
                tokio::select! {
                    batch = consumer.next_batch() => {
                        let batch = batch.context("the stream ended")?.context("watch")?;
                        note(&batch, &mut seen.pass)?;
                        seen.times.push(Instant::now());
                    }
                    _ = stopped.wait_for(|stop| *stop) => return Ok(seen),
                }
            }
        });
        Ok(Self { task, stop })
    }

    /// Stops reading.
    ///
    /// # Errors
    /// What kept it from reading before: it goes on by itself after everything that passes by itself.
    pub async fn stop(self) -> Result<Seen> {
        self.stop.send_replace(true);
        self.task.await?
    }
}
