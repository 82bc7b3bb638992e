//! What the shards of a broker have in common.

use std::sync::Arc;

use highwater_broker_core::group::config::GroupConfig;
use highwater_broker_core::group::topics::Topics;
use tokio::sync::watch;

use super::loader::Loader;
use crate::env::Clock;
use crate::observe::metrics::Metrics;

/// What every shard needs.
#[derive(Debug)]
pub(super) struct GroupServices {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) config: GroupConfig,
    pub(super) loader: Loader,
    /// The topics that groups can read, as the cluster image has them.
    pub(super) topics: watch::Sender<Arc<Topics>>,
}
