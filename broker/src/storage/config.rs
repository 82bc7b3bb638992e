//! Settings of the storage of a broker and of one log.

use std::time::Duration;

use highwater_broker_core::durability::Durability;
use highwater_broker_core::log::cleaning::Compaction;
use highwater_broker_core::log::retention::Limits;
use highwater_broker_core::producer::PRODUCER_EXPIRY_DEFAULT;

/// Settings of a whole data directory.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Files that are open and mapped at the most, those with unflushed bytes not counted.
    pub open_files_max: usize,
    /// Bytes that stay free on the file system: below, the broker is read-only. At most a tenth of the file system.
    pub disk_reserve_bytes: u64,
    /// Bytes of the memory tails of all logs together.
    pub tail_bytes_max: u64,
    /// Bytes of the memory tail of one log.
    pub log_tail_bytes_max: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            open_files_max: 1024,
            disk_reserve_bytes: 1 << 30,
            tail_bytes_max: 64 << 20,
            log_tail_bytes_max: 4 << 20,
        }
    }
}

/// Settings of one log; they may change while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// When segments are rolled and let go.
    pub limits: Limits,
    /// `Fsync`: every append starts a flush round. `Interval`: the owner asks for one (`Log::request_flush`). `Os`: only
    /// sealed segments are flushed. In every mode a flush may come earlier.
    pub durability: Durability,
    /// How the log is compacted, if it is.
    pub compaction: Option<Compaction>,
    /// How long an idempotent producer is remembered after its last batch, by the append times in the log.
    pub producer_expiry: Duration,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            limits: Limits {
                segment_bytes: 256 << 20,
                segment_age: Duration::from_secs(7 * 24 * 3600),
                retention_bytes: None,
                retention_age: None,
            },
            durability: Durability::Fsync,
            compaction: None,
            producer_expiry: PRODUCER_EXPIRY_DEFAULT,
        }
    }
}
