//! How a producer is set up.

use std::sync::Arc;
use std::time::Duration;

use highwater_protocol::compression::Compression;
use highwater_protocol::limits::BATCH_BYTES_MAX;
use highwater_protocol::messages::Acks;

use super::accumulator::Bounds;
use super::sender::Sender;
use super::{Producer, Shared};
use crate::client::Client;

/// Settings of a [`Producer`].
#[derive(Debug, Clone)]
#[must_use = "a producer is made by build()"]
pub struct ProducerBuilder {
    client: Client,
    settings: Settings,
}

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) acks: Acks,
    pub(super) linger: Duration,
    pub(super) batch_bytes: usize,
    pub(super) memory_bytes: usize,
    pub(super) max_in_flight: usize,
    pub(super) delivery_timeout: Duration,
    pub(super) compression: Compression,
    pub(super) idempotent: bool,
}

impl ProducerBuilder {
    pub(crate) const fn new(client: Client) -> Self {
        let settings = Settings {
            acks: Acks::All,
            linger: Duration::ZERO,
            batch_bytes: 256 << 10,
            memory_bytes: 64 << 20,
            max_in_flight: 64,
            delivery_timeout: Duration::from_secs(120),
            compression: Compression::None,
            idempotent: true,
        };
        Self { client, settings }
    }

    /// When the broker acknowledges. Default: [`Acks::All`], when the records are committed; only with it nothing
    /// acknowledged is lost.
    pub const fn acks(mut self, acks: Acks) -> Self {
        self.settings.acks = acks;
        self
    }

    /// How long a batch waits for more records before it is sent. Default: not at all; batches fill while earlier
    /// ones are on their way.
    pub const fn linger(mut self, linger: Duration) -> Self {
        self.settings.linger = linger;
        self
    }

    /// Bytes of records after which a batch is sent; a record that is larger has a batch of its own. Default: 256 KiB.
    pub const fn batch_bytes(mut self, bytes: usize) -> Self {
        self.settings.batch_bytes = bytes;
        self
    }

    /// Bytes of records that may wait for their acknowledgement; beyond it [`Producer::send`] waits. Default: 64 MiB.
    pub const fn memory_bytes(mut self, bytes: usize) -> Self {
        self.settings.memory_bytes = bytes;
        self
    }

    /// Produce requests that may be unanswered at once on a connection; the broker may allow fewer. Default: 64.
    pub const fn max_in_flight(mut self, count: usize) -> Self {
        self.settings.max_in_flight = count;
        self
    }

    /// How long a record may wait from its admission to its acknowledgement, with all retries, and how long
    /// [`Producer::send`] may wait for room. Default: 120 seconds.
    pub const fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.settings.delivery_timeout = timeout;
        self
    }

    /// Whether batches carry an identity and sequences, so that what was sent can be sent again: each record is in the log
    /// once and in order, through lost connections and changes of leaders. Without it, a batch whose outcome is unknown is
    /// reported and not sent again. Holds for [`Acks::All`]; with others a leader that dies may take records with it.
    /// Default: yes.
    pub const fn idempotent(mut self, idempotent: bool) -> Self {
        self.settings.idempotent = idempotent;
        self
    }

    /// How batches are compressed. Default: not at all.
    pub const fn compression(mut self, compression: Compression) -> Self {
        self.settings.compression = compression;
        self
    }

    /// Starts the producer. Connections are made when records need them. Must be called in a tokio runtime.
    ///
    /// ```no_run
    /// # fn example(client: highwater_client::Client) {
    /// use std::time::Duration;
    ///
    /// use highwater_client::{Acks, Compression};
    ///
    /// let producer = client
    ///     .producer()
    ///     .acks(Acks::All)
    ///     .linger(Duration::from_millis(2))
    ///     .batch_bytes(512 << 10)
    ///     .compression(Compression::Lz4)
    ///     .build();
    /// # drop(producer);
    /// # }
    /// ```
    #[must_use]
    pub fn build(self) -> Producer {
        let settings = self.settings;
        let bounds = Bounds {
            batch_bytes: settings.batch_bytes.clamp(1, BATCH_BYTES_MAX),
            memory_bytes: settings.memory_bytes,
            linger: settings.linger,
            compression: settings.compression,
        };
        let shared = Arc::new(Shared::new(self.client, settings, bounds));
        tokio::spawn(Sender::new(Arc::clone(&shared)).run());
        Producer { shared }
    }
}
