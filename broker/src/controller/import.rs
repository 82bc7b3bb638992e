//! Takes over the topics of a data directory that is older than the replicated image.

use std::path::PathBuf;
use std::sync::Arc;

use highwater_broker_core::log::envelope;
use highwater_protocol::ids::LeaderEpoch;
use tracing::info;

use super::store::StoreError;
use crate::io_thread;
use crate::storage::file_system::FileSystem;
use crate::storage::store::Store;

/// The state file with the topics of a broker on its own, as earlier versions wrote it.
const TOPICS_STATE: &str = "topics";
/// The state file with the last leader epoch that such a broker gave out.
const EPOCH_STATE: &str = "epoch";
const EPOCH_MAGIC: [u8; 4] = *b"HWEP";
const EPOCH_FORMAT: u16 = 1;

/// What an earlier version has left.
#[derive(Debug, Clone)]
pub(super) struct OldTopics {
    /// The file with the topics.
    pub(super) snapshot: Vec<u8>,
    /// The last leader epoch that was given out.
    pub(super) leader_epoch: LeaderEpoch,
    store: Arc<Store>,
}

/// Looks for the topics of an earlier version.
pub(super) async fn find(
    store: &Arc<Store>,
    file_system: &Arc<dyn FileSystem>,
) -> Result<Option<OldTopics>, StoreError> {
    let reading = Arc::clone(store);
    let read = io_thread::run(&**file_system, move || {
        let Some(snapshot) = reading.read_state(TOPICS_STATE)? else { return Ok(None) };
        Ok(Some((snapshot, reading.read_state(EPOCH_STATE)?)))
    });
    let failed =
        |error: crate::storage::error::Error| StoreError::Io(std::io::Error::other(error.to_string()));
    let Some((snapshot, epoch)) = read.await.ok_or(StoreError::Gone)?.map_err(failed)? else {
        return Ok(None);
    };
    // Every log has its own last epoch too, so that a bad file costs nothing.
    let leader_epoch = epoch
        .as_deref()
        .and_then(|bytes| envelope::unwrap(EPOCH_MAGIC, EPOCH_FORMAT, bytes).ok())
        .and_then(|(_, payload)| payload.first_chunk().copied())
        .map_or(0, u32::from_le_bytes);
    Ok(Some(OldTopics { snapshot, leader_epoch: LeaderEpoch(leader_epoch), store: Arc::clone(store) }))
}

impl OldTopics {
    /// The import is committed: the files get other names, so that they are never taken over again. They are not deleted.
    pub(super) async fn put_aside(&self, file_system: &Arc<dyn FileSystem>) -> Result<(), StoreError> {
        let (fs, directory) = (Arc::clone(file_system), self.store.state_directory());
        let renamed = io_thread::run(&**file_system, move || {
            for name in [TOPICS_STATE, EPOCH_STATE] {
                let from: PathBuf = directory.join(name);
                if fs.exists(&from)? {
                    fs.rename(&from, &directory.join(format!("{name}-imported")))?;
                }
            }
            fs.sync_directory(&directory)
        });
        renamed.await.ok_or(StoreError::Gone)??;
        info!("the topics of this data directory were taken over into the replicated metadata");
        Ok(())
    }
}
