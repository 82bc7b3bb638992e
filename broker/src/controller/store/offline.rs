//! The cluster image of a data directory in which no broker runs: for tools that look, never for a broker that acts.

use std::io;
use std::ops::Bound;
use std::sync::Arc;

use highwater_broker_core::controller::codec::decode_command;
use highwater_broker_core::controller::image::ClusterImage;
use openraft::EntryPayload;
use parking_lot::Mutex;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, StorageBackend};

use super::{CACHE_BYTES, LOG, RaftStore, Shared, StoreError, log, machine};

/// The image in the bytes of the file `controller`, with everything that the log has beyond the last snapshot: the end
/// of it may not be committed. Works on the copy that it is given, so that a database that has to be repaired first is
/// repaired there.
///
/// # Errors
/// When the bytes are not such a file, or it is damaged.
pub fn offline_image(bytes: &[u8]) -> io::Result<ClusterImage> {
    let backend = InMemoryBackend::new();
    backend.set_len(bytes.len() as u64)?;
    backend.write(0, bytes)?;
    read(backend).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

fn read(backend: InMemoryBackend) -> Result<ClusterImage, StoreError> {
    let database = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)?;
    database.begin_read()?.open_table(LOG)?;
    let shared = Shared { database, flush_failed: Arc::default(), committed: Mutex::default() };
    let store = RaftStore { shared: Arc::new(shared) };
    let (meta, mut image) = machine::load(&store)?;
    let after =
        meta.and_then(|meta| meta.last_log_id).map_or(Bound::Unbounded, |at| Bound::Excluded(at.index));
    for entry in log::read(&store, (after, Bound::Unbounded), usize::MAX)? {
        if let EntryPayload::Normal(change) = entry.payload {
            let command = decode_command(&change.command)
                .map_err(|error| StoreError::Io(io::Error::other(error.to_string())))?;
            // What was refused then is refused now: it changes nothing either way.
            let _outcome = image.apply(&command);
        }
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_database_is_an_error() {
        for bytes in [&b""[..], b"HWCI", &[0; 8192]] {
            assert!(offline_image(bytes).is_err(), "{} bytes", bytes.len());
        }
    }
}
