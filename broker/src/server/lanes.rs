//! Where a connection's batches go, and in which order.

use std::collections::HashMap;
use std::sync::Arc;

use highwater_protocol::ids::TopicPartition;

use crate::api::ApiError;
use crate::partition::handle::{Lane, PartitionHandle};
use crate::partition::manager::Partitions;

/// The partitions that a connection has produced to: their handles, so that they are looked up once, and the order of
/// its batches in each.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    lanes: HashMap<TopicPartition, (PartitionHandle, Arc<Lane>)>,
}

impl Lanes {
    /// The handle of a partition and this connection's lane into it.
    pub(crate) fn find(
        &mut self,
        partition: TopicPartition,
        partitions: &Partitions,
    ) -> Result<&(PartitionHandle, Arc<Lane>), ApiError> {
        use std::collections::hash_map::Entry;
        match self.lanes.entry(partition) {
            Entry::Occupied(entry) => {
                let found = entry.into_mut();
                // Moved away, it may have come back as another one. The order of this connection's batches goes on: what
                // the one that was closed did not append is next.
                if found.0.closed().is_some()
                    && let Ok(handle) = partitions.find(partition)
                {
                    found.0 = handle;
                }
                Ok(found)
            }
            Entry::Vacant(entry) => {
                let handle = partitions.find(partition)?;
                Ok(entry.insert((handle, Arc::default())))
            }
        }
    }
}
