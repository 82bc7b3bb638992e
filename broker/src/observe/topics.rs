//! What each topic holds, computed when it is asked for: the hot path counts nothing by topic.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

use crate::partition::manager::Partitions;

/// Gauges with a topic label.
#[derive(Debug)]
pub(crate) struct TopicMetrics {
    partitions: Arc<Partitions>,
}

/// Sums over the partitions of a topic on this broker.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Sums {
    log_end: u64,
    unflushed: u64,
    uncommitted: u64,
    bytes: u64,
}

/// A gauge: its name, what it is, and which sum it shows.
type Shown = (&'static str, &'static str, fn(&Sums) -> u64);

const SHOWN: [Shown; 4] = [
    ("topic_log_end", "offsets given out, over all partitions of the topic", |sums| sums.log_end),
    ("topic_unflushed", "offsets that are not on stable storage", |sums| sums.unflushed),
    ("topic_uncommitted", "offsets that are not committed", |sums| sums.uncommitted),
    ("topic_bytes", "bytes of batches in the log", |sums| sums.bytes),
];

impl TopicMetrics {
    pub(crate) const fn new(partitions: Arc<Partitions>) -> Self {
        Self { partitions }
    }

    fn sums(&self) -> BTreeMap<String, Sums> {
        let mut topics: BTreeMap<String, Sums> = BTreeMap::new();
        for handle in self.partitions.open() {
            let status = handle.status();
            let sums = topics.entry(handle.topic().to_owned()).or_default();
            sums.log_end += status.log_end.get();
            sums.unflushed += status.log_end.count_since(status.flushed_end);
            sums.uncommitted += status.log_end.count_since(status.high_watermark);
            sums.bytes += status.bytes;
        }
        topics
    }
}

impl Collector for TopicMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let topics = self.sums();
        for (name, help, value) in SHOWN {
            let gauge = ConstGauge::new(0_i64);
            let mut family = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            for (topic, sums) in &topics {
                let labels = [("topic", topic.as_str())];
                let gauge = ConstGauge::new(i64::try_from(value(sums)).unwrap_or(i64::MAX));
                gauge.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
