//! The slot file: evidence of the last flush rounds.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use highwater_broker_core::log::directory;
use highwater_broker_core::log::slot::{SLOT_BYTES, Slot};
use highwater_protocol::ids::TopicPartition;
use parking_lot::Mutex;

use super::error::Error;
use super::file_system::{File, FileSystem, OpenMode};
use super::files;

/// Writes flushed ends after each round, to be synced beside the next one.
#[derive(Debug)]
pub(super) struct Slots {
    file: Arc<dyn File>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    image: Vec<u8>,
    places: HashMap<TopicPartition, usize>,
    free: Vec<usize>,
    /// Written since the last sync began.
    dirty: bool,
    /// A sync is in flight.
    syncing: bool,
    /// Writing or syncing failed: no more evidence until the next start.
    failed: bool,
}

/// Slots that are written in one go although others lie between them.
const GAP_SLOTS_MAX: usize = 64;

impl Slots {
    /// Opens or makes the slot file. A damaged slot says nothing.
    pub(super) fn open(fs: &dyn FileSystem, root: &Path) -> Result<Self, Error> {
        let path = root.join(directory::SLOTS);
        let exists = fs.exists(&path).map_err(Error::io("look for file", &path))?;
        let mode = if exists { OpenMode::ReadWrite } else { OpenMode::CreateNew };
        let file = fs.open(&path, mode).map_err(Error::io("open file", &path))?;
        let mut state = State::default();
        let length = file.length().map_err(Error::io("measure file", &path))?;
        // Every partition of a broker fits many times over.
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(64 << 20);
        state.image = vec![0; length - length % SLOT_BYTES];
        files::read_up_to(&*file, &mut state.image, 0, false).map_err(Error::io("read file", &path))?;
        for (number, bytes) in state.image.chunks_exact(SLOT_BYTES).enumerate() {
            let slot = bytes.try_into().ok().and_then(Slot::decode);
            match slot.filter(|slot| !state.places.contains_key(&slot.partition)) {
                Some(slot) => drop(state.places.insert(slot.partition, number)),
                None => state.free.push(number),
            }
        }
        Ok(Self { file, state: Mutex::new(state) })
    }

    /// What is known about a partition.
    pub(super) fn get(&self, partition: TopicPartition) -> Option<Slot> {
        let state = self.state.lock();
        let at = state.places.get(&partition)? * SLOT_BYTES;
        state.image.get(at..at + SLOT_BYTES)?.try_into().ok().and_then(Slot::decode)
    }

    /// Writes new flushed ends.
    pub(super) fn write(&self, slots: &[Slot]) {
        let mut state = self.state.lock();
        if slots.is_empty() || state.failed {
            return;
        }
        let mut changed = Vec::with_capacity(slots.len());
        for slot in slots {
            let number = state.place(slot.partition);
            state.image[number * SLOT_BYTES..][..SLOT_BYTES].copy_from_slice(&slot.encode());
            changed.push(number);
        }
        changed.sort_unstable();
        self.write_changed(&mut state, &changed);
    }

    /// Forgets a partition.
    pub(super) fn remove(&self, partition: TopicPartition) {
        let mut state = self.state.lock();
        if let Some(number) = state.places.remove(&partition) {
            state.image[number * SLOT_BYTES..][..SLOT_BYTES].fill(0);
            state.free.push(number);
            self.write_changed(&mut state, &[number]);
        }
    }

    /// The file, if it has to be synced: it was written since the last sync began, and that one is over.
    /// [`Slots::end_sync`] has to follow.
    pub(super) fn begin_sync(&self) -> Option<Arc<dyn File>> {
        let mut state = self.state.lock();
        if !state.dirty || state.syncing || state.failed {
            return None;
        }
        (state.dirty, state.syncing) = (false, true);
        Some(Arc::clone(&self.file))
    }

    /// The sync is over. After an error there is no more evidence until the next start.
    pub(super) fn end_sync(&self, error: Option<std::io::Error>) {
        let mut state = self.state.lock();
        state.syncing = false;
        if let Some(error) = error.filter(|_| !state.failed) {
            tracing::warn!(%error, "the slot file cannot be written: recovery after a power cut will know less");
            state.failed = true;
        }
    }

    fn write_changed(&self, state: &mut State, changed: &[usize]) {
        let mut rest = changed;
        while let Some(first) = rest.first() {
            let near = rest.windows(2).take_while(|pair| pair[1] - pair[0] <= GAP_SLOTS_MAX).count();
            let last = rest[near];
            rest = &rest[near + 1..];
            let bytes = &state.image[first * SLOT_BYTES..(last + 1) * SLOT_BYTES];
            if let Err(error) = files::write_all(&*self.file, bytes, (first * SLOT_BYTES) as u64) {
                tracing::warn!(%error, "the slot file cannot be written: recovery after a power cut will know less");
                state.failed = true;
                return;
            }
        }
        state.dirty = true;
    }
}

impl State {
    fn place(&mut self, partition: TopicPartition) -> usize {
        if let Some(number) = self.places.get(&partition) {
            return *number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.image.resize(self.image.len() + SLOT_BYTES, 0);
            self.image.len() / SLOT_BYTES - 1
        });
        self.places.insert(partition, number);
        number
    }
}
