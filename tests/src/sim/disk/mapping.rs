//! Mappings of files of the simulated disk, which notice when the bytes that they show are changed.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;

use highwater_broker::storage::file_system::Mapping;

use super::content::PAGE;
use super::names::Inode;
use super::{FaultKind, Shared};

pub(super) struct SimMapping {
    shared: Arc<Shared>,
    incarnation: u64,
    inode: Inode,
    path: String,
    length: u64,
    populated: Mutex<Vec<Range<u64>>>,
}

impl SimMapping {
    pub(super) const fn new(
        shared: Arc<Shared>,
        incarnation: u64,
        inode: Inode,
        path: String,
        length: u64,
    ) -> Self {
        Self { shared, incarnation, inode, path, length, populated: Mutex::new(Vec::new()) }
    }
}

impl fmt::Debug for SimMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimMapping")
            .field("path", &self.path)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl Drop for SimMapping {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if self.incarnation == state.incarnation {
            if let Some(file) = state.files.get_mut(&self.inode) {
                file.mappings = file.mappings.saturating_sub(1);
            }
            state.reclaim(self.inode);
        }
    }
}

impl Mapping for SimMapping {
    fn slice(self: Arc<Self>, range: Range<u64>) -> Bytes {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let mut state = self.shared.state.lock();
        let number = state.new_number();
        let violation = match state.files.get_mut(&self.inode) {
            Some(file) if range.end <= self.length && range.end <= file.data.length() => {
                file.data.cache().read(&mut bytes, range.start);
                if self.incarnation == state.incarnation {
                    state.files.entry(self.inode).or_default().frozen.insert(number, range);
                }
                None
            }
            _ => Some(format!("{}: a slice of {range:?} is not within the file (SIGBUS)", self.path)),
        };
        state.violations.extend(violation);
        drop(state);
        Bytes::from_owner(Slice { bytes, number, mapping: self })
    }

    fn is_resident(&self, range: Range<u64>) -> bool {
        let populated =
            self.populated.lock().iter().any(|there| there.start <= range.start && range.end <= there.end);
        let mut state = self.shared.state.lock();
        let percent = state.chaos.not_resident_percent;
        populated || !state.random.percent(percent)
    }

    fn populate(&self, range: Range<u64>) -> io::Result<()> {
        self.shared.look(self.incarnation, |state| {
            if state.fault(FaultKind::ReadFails, &self.path) {
                return Err(Errno::IO.into());
            }
            let end = state.file(self.inode)?.data.length().min(self.length);
            if range.end.next_multiple_of(PAGE) > end.next_multiple_of(PAGE) {
                Err(Errno::FAULT.into())
            } else {
                Ok(())
            }
        })?;
        self.populated.lock().push(range);
        Ok(())
    }
}

struct Slice {
    bytes: Vec<u8>,
    number: u64,
    mapping: Arc<SimMapping>,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        let mut state = self.mapping.shared.state.lock();
        if let Some(file) = state.files.get_mut(&self.mapping.inode) {
            file.frozen.remove(&self.number);
        }
    }
}
