//! Other brokers of the distribution, as far as a comparison needs them: started with stated settings, and spoken to by
//! clients that do nothing but what is measured: one connection, as much in flight as is asked for.

mod link;
mod nats;
mod redis;
mod server;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::payload::incompressible;

/// How long a server may take to answer its first question.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A server with certain settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// NATS JetStream with a stream on files, as it is configured by default: synced every two minutes.
    Nats,
    /// The same, synced before each acknowledgement. Older versions do not know that.
    NatsSync,
    /// Redis streams with an append-only file that is synced every second.
    Redis,
    /// The same, synced before each answer.
    RedisSync,
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// How many records.
    pub records: u64,
    /// Bytes of each.
    pub size: usize,
    /// Records that may be unacknowledged.
    pub in_flight: u64,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Until the last record was acknowledged.
    pub produced: Duration,
    /// Until the last record was read.
    pub consumed: Duration,
}

/// A client's two abilities.
trait Client {
    fn produce(&mut self, load: Load, payload: &[u8]) -> Result<()>;
    /// Reads from the first record on and returns how many bytes of values came.
    fn consume(&mut self, load: Load) -> Result<u64>;
}

impl Peer {
    /// Every one, those that belong together in turn.
    pub const ALL: [Self; 4] = [Self::Nats, Self::NatsSync, Self::Redis, Self::RedisSync];

    /// For people, with when an acknowledgement comes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nats => "NATS JetStream, file store, synced every 2 minutes (default)",
            Self::NatsSync => "NATS JetStream, file store, sync_interval: always",
            Self::Redis => "Redis streams, appendonly, appendfsync everysec (default)",
            Self::RedisSync => "Redis streams, appendonly, appendfsync always",
        }
    }

    /// Whether an acknowledged record is on stable storage.
    #[must_use]
    pub const fn is_synced(self) -> bool {
        matches!(self, Self::NatsSync | Self::RedisSync)
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Nats | Self::NatsSync => "nats-server",
            Self::Redis | Self::RedisSync => "redis-server",
        }
    }

    /// What `--version` of the program says.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn version(self) -> Result<String> {
        server::version(self.program())
    }

    /// Whether the installed version can be run with these settings.
    ///
    /// # Errors
    /// When the program is not installed.
    pub fn is_possible(self, directory: &Path) -> Result<bool> {
        match self {
            Self::Nats | Self::NatsSync => server::nats_accepts(directory, self.is_synced()),
            Self::Redis | Self::RedisSync => self.version().map(|_| true),
        }
    }

    /// Runs a fresh server with its data below `directory`, produces into it and consumes from it.
    ///
    /// # Errors
    /// When the server does not start, refuses something, or gives back other bytes than it took.
    pub fn run(self, directory: &Path, load: Load) -> Result<Times> {
        let directory = tempfile::Builder::new().prefix("peer-").tempdir_in(directory)?;
        crate::ceiling::settle(directory.path(), load.records * load.size as u64 * 2)?;
        let server = match self {
            Self::Nats | Self::NatsSync => server::start_nats(directory.path(), self.is_synced())?,
            Self::Redis | Self::RedisSync => server::start_redis(directory.path(), self.is_synced())?,
        };
        let mut client: Box<dyn Client> = match self {
            Self::Nats | Self::NatsSync => Box::new(nats::Nats::connect(server.address)?),
            Self::Redis | Self::RedisSync => Box::new(redis::Redis::connect(server.address)?),
        };
        let payload = incompressible(load.size, 17);
        let start = Instant::now();
        client.produce(load, &payload)?;
        let produced = start.elapsed();
        let start = Instant::now();
        let bytes = client.consume(load)?;
        let consumed = start.elapsed();
        let expected = load.records * load.size as u64;
        anyhow::ensure!(bytes == expected, "{} gave {bytes} of {expected} bytes back", self.name());
        Ok(Times { produced, consumed })
    }
}
