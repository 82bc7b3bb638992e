//! The metrics of one broker. Counters and gauges are atomics that the hot paths bump; what can be computed is computed
//! when it is asked for.

use std::fmt;
use std::sync::atomic::AtomicU64;

use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::ErrorCode;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// The label of per-API counters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ApiLabel {
    /// [`ApiKey::name`].
    pub api: &'static str,
}

/// The labels of per-error counters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ErrorLabel {
    /// [`ApiKey::name`].
    pub api: &'static str,
    /// [`ErrorCode::name`].
    pub error: &'static str,
}

/// Everything that a broker counts. Fields are public: whoever does a thing counts it.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<ApiLabel, Counter>,
    errors: Family<ErrorLabel, Counter>,
    /// Connections that are open.
    pub connections: Gauge,
    /// Connections ever accepted.
    pub connections_total: Counter,
    /// Connections turned away or closed by the broker for a reason of its own.
    pub connections_refused: Counter,
    /// Subscriptions that are live.
    pub subscriptions: Gauge,
    /// Bytes read from clients.
    pub received_bytes: Counter,
    /// Bytes written to clients.
    pub sent_bytes: Counter,
    /// Records appended.
    pub appended_records: Counter,
    /// Batches appended.
    pub appended_batches: Counter,
    /// Bytes of batches appended.
    pub appended_bytes: Counter,
    /// Vectored writes that appended them.
    pub append_writes: Counter,
    /// Batches appended that a leader pushed.
    pub fetched_batches: Counter,
    /// Bytes of those.
    pub fetched_bytes: Counter,
    /// Bytes that scrubbing has verified.
    pub scrubbed_bytes: Counter,
    /// Passes of compaction that came to their end.
    pub cleaner_passes: Counter,
    /// Passes that were given up because of an error.
    pub cleaner_failures: Counter,
    /// Bytes that compaction has worked through.
    pub cleaner_bytes: Counter,
    /// Records that compaction has removed.
    pub cleaner_removed_records: Counter,
    /// How long passes took, waits included.
    pub cleaner_seconds: Counter<f64, AtomicU64>,
    /// Bytes of batches pushed to subscribers.
    pub pushed_bytes: Counter,
    /// Reads that were served at once, from memory.
    pub reads_hot: Counter,
    /// Reads that went to an I/O thread first.
    pub reads_cold: Counter,
    /// Flushes that failed: each one makes a replica suspect.
    pub flush_failures: Counter,
    /// From the write of a batch until it is on stable storage.
    pub flush_seconds: Histogram,
    /// Partitions that are open.
    pub partitions: Gauge,
    /// Partitions that this broker leads.
    pub partitions_led: Gauge,
    /// Sessions of followers with partitions that this broker leads.
    pub follower_sessions: Gauge,
    /// Partitions that do not serve because a flush failed.
    pub partitions_suspect: Gauge,
    /// Ranges of offsets that cannot be read because their bytes are corrupt.
    pub corrupt_ranges: Gauge,
    /// Corrupt ranges that were fetched again from another replica.
    pub refilled_ranges: Counter,
    /// Shards of groups that this broker coordinates.
    pub group_shards: Gauge,
    /// Records about groups that were written.
    pub group_records: Counter,
    /// Members that have joined a group.
    pub group_joins: Counter,
    /// Members that have left.
    pub group_leaves: Counter,
    /// Members that were removed because they were silent, or held partitions up.
    pub group_fenced: Counter,
    /// Assignments that were made.
    pub group_assignments: Counter,
    /// Partitions that went from one member to another by that.
    pub group_partitions_moved: Counter,
    /// From the election of a coordinator until it answers: reading the state of its groups.
    pub group_load_seconds: Histogram,
    /// 1 while free disk space is below the reserve.
    pub read_only: Gauge,
    /// Bytes free on the data directory's file system.
    pub disk_available_bytes: Gauge<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// The metrics of a broker that has done nothing yet.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("highwater")),
            requests: Family::default(),
            errors: Family::default(),
            connections: Gauge::default(),
            connections_total: Counter::default(),
            connections_refused: Counter::default(),
            subscriptions: Gauge::default(),
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            appended_records: Counter::default(),
            appended_batches: Counter::default(),
            appended_bytes: Counter::default(),
            append_writes: Counter::default(),
            fetched_batches: Counter::default(),
            fetched_bytes: Counter::default(),
            scrubbed_bytes: Counter::default(),
            cleaner_passes: Counter::default(),
            cleaner_failures: Counter::default(),
            cleaner_bytes: Counter::default(),
            cleaner_removed_records: Counter::default(),
            cleaner_seconds: Counter::default(),
            pushed_bytes: Counter::default(),
            reads_hot: Counter::default(),
            reads_cold: Counter::default(),
            flush_failures: Counter::default(),
            // 50 µs to 26 s.
            flush_seconds: Histogram::new(exponential_buckets(50e-6, 2.0, 20)),
            partitions: Gauge::default(),
            partitions_led: Gauge::default(),
            follower_sessions: Gauge::default(),
            partitions_suspect: Gauge::default(),
            corrupt_ranges: Gauge::default(),
            refilled_ranges: Counter::default(),
            group_shards: Gauge::default(),
            group_records: Counter::default(),
            group_joins: Counter::default(),
            group_leaves: Counter::default(),
            group_fenced: Counter::default(),
            group_assignments: Counter::default(),
            group_partitions_moved: Counter::default(),
            // 1 ms to 32 s.
            group_load_seconds: Histogram::new(exponential_buckets(1e-3, 2.0, 16)),
            read_only: Gauge::default(),
            disk_available_bytes: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry.lock();
        registry.register("requests", "requests received, by API", self.requests.clone());
        registry.register("errors", "requests and batches refused, by API and error", self.errors.clone());
        registry.register("connections", "connections that are open", self.connections.clone());
        registry.register("connections_accepted", "connections accepted", self.connections_total.clone());
        registry.register("connections_refused", "connections turned away", self.connections_refused.clone());
        registry.register("subscriptions", "subscriptions that are live", self.subscriptions.clone());
        registry.register("received", "bytes read from clients", self.received_bytes.clone());
        registry.register("sent", "bytes written to clients", self.sent_bytes.clone());
        registry.register("appended_records", "records appended", self.appended_records.clone());
        registry.register("appended_batches", "batches appended", self.appended_batches.clone());
        registry.register("appended_bytes", "bytes of batches appended", self.appended_bytes.clone());
        registry.register(
            "append_writes",
            "vectored writes that appended batches",
            self.append_writes.clone(),
        );
        registry.register(
            "pushed_bytes",
            "bytes of batches pushed to subscribers",
            self.pushed_bytes.clone(),
        );
        registry.register(
            "fetched_batches",
            "batches appended that a leader pushed",
            self.fetched_batches.clone(),
        );
        registry.register("fetched", "bytes of batches that a leader pushed", self.fetched_bytes.clone());
        registry.register("scrubbed", "bytes that scrubbing has verified", self.scrubbed_bytes.clone());
        registry.register("reads_hot", "reads served from memory at once", self.reads_hot.clone());
        registry.register("reads_cold", "reads that went to an I/O thread", self.reads_cold.clone());
        drop(registry);
        self.register_cleaner();
        self.register_partitions();
        self.register_groups();
    }

    fn register_groups(&self) {
        let mut registry = self.registry.lock();
        let text = "shards of groups that this broker coordinates";
        registry.register("group_shards", text, self.group_shards.clone());
        registry.register("group_records", "records about groups written", self.group_records.clone());
        registry.register("group_joins", "members that have joined a group", self.group_joins.clone());
        registry.register("group_leaves", "members that have left a group", self.group_leaves.clone());
        let text = "members removed because they were silent or held partitions up";
        registry.register("group_fenced", text, self.group_fenced.clone());
        let text = "assignments of partitions to members";
        registry.register("group_assignments", text, self.group_assignments.clone());
        let text = "partitions that assignments took from one member and gave to another";
        registry.register("group_partitions_moved", text, self.group_partitions_moved.clone());
        let text = "from the election of a coordinator until it answers";
        registry.register_with_unit("group_load", text, Unit::Seconds, self.group_load_seconds.clone());
    }

    fn register_cleaner(&self) {
        let mut registry = self.registry.lock();
        registry.register("cleaner_passes", "passes of compaction", self.cleaner_passes.clone());
        registry.register(
            "cleaner_failures",
            "passes of compaction that were given up because of an error",
            self.cleaner_failures.clone(),
        );
        registry.register(
            "cleaner_worked",
            "bytes that compaction has worked through",
            self.cleaner_bytes.clone(),
        );
        registry.register(
            "cleaner_removed_records",
            "records that compaction has removed",
            self.cleaner_removed_records.clone(),
        );
        registry.register_with_unit(
            "cleaner",
            "how long passes of compaction took, waits included",
            Unit::Seconds,
            self.cleaner_seconds.clone(),
        );
    }

    fn register_partitions(&self) {
        let mut registry = self.registry.lock();
        registry.register("flush_failures", "flushes that failed", self.flush_failures.clone());
        registry.register_with_unit(
            "flush",
            "from the write of a batch until it is on stable storage",
            Unit::Seconds,
            self.flush_seconds.clone(),
        );
        registry.register("partitions", "partitions that are open", self.partitions.clone());
        registry.register("partitions_led", "partitions that this broker leads", self.partitions_led.clone());
        registry.register(
            "follower_sessions",
            "sessions of followers with partitions that this broker leads",
            self.follower_sessions.clone(),
        );
        registry.register(
            "partitions_suspect",
            "partitions that do not serve because a flush failed",
            self.partitions_suspect.clone(),
        );
        registry.register(
            "corrupt_ranges",
            "ranges of offsets that cannot be read",
            self.corrupt_ranges.clone(),
        );
        registry.register(
            "refilled_ranges",
            "corrupt ranges that were fetched again from another replica",
            self.refilled_ranges.clone(),
        );
        registry.register(
            "read_only",
            "1 while free disk space is below the reserve",
            self.read_only.clone(),
        );
        registry.register(
            "disk_available_bytes",
            "bytes free where the data directory is",
            self.disk_available_bytes.clone(),
        );
    }

    /// Adds metrics that are computed when they are asked for.
    pub fn register_collector(&self, collector: impl Collector) {
        self.registry.lock().register_collector(Box::new(collector));
    }

    /// The counter of requests of one API. Keep it: looking it up takes a lock.
    #[must_use]
    pub fn requests(&self, api: ApiKey) -> Counter {
        self.requests.get_or_create(&ApiLabel { api: api.name() }).clone()
    }

    /// Counts an error. Takes a lock: not for what happens all the time.
    pub fn count_error(&self, api: ApiKey, error: ErrorCode) {
        self.errors.get_or_create(&ErrorLabel { api: api.name(), error: error.name() }).inc();
    }

    /// All metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// When a collector fails.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry.lock())?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_brokers_count_apart_and_names_do_not_clash() {
        let (one, other) = (Metrics::new(), Metrics::new());
        one.requests(ApiKey::PRODUCE).inc();
        one.count_error(ApiKey::PRODUCE, ErrorCode::Busy);
        let text = one.encode().unwrap();
        assert!(text.contains("highwater_requests_total{api=\"produce\"} 1"), "{text}");
        assert!(text.contains("highwater_errors_total{api=\"produce\",error=\"busy\"} 1"), "{text}");
        assert!(!other.encode().unwrap().contains("api=\"produce\""));
        let mut names: Vec<_> = text.lines().filter(|line| line.starts_with("# HELP")).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup_by_key(|line| line.split(' ').nth(2));
        assert_eq!(names.len(), count, "two metrics share a name: {text}");
    }
}
