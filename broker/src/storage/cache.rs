//! The bounded cache of open files and mappings.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::file_system::{File, FileSystem, Mapping, OpenMode};
use super::segment::{Handle, SegmentFile};

/// Opens segment files and maps them when they are needed, and closes those that were not used for the longest time, but
/// never one with unflushed bytes.
#[derive(Debug)]
pub(super) struct FileCache {
    fs: Arc<dyn FileSystem>,
    files_max: usize,
    /// Open segments, in the order in which they are looked at next (second chance).
    open: Mutex<VecDeque<Weak<SegmentFile>>>,
}

/// Files that are looked at for one to close.
const LOOKS_MAX: usize = 16;

impl FileCache {
    pub(super) fn new(fs: Arc<dyn FileSystem>, files_max: usize) -> Self {
        Self { fs, files_max: files_max.max(1), open: Mutex::new(VecDeque::new()) }
    }

    /// Files that are open, pinned ones included.
    pub(super) fn open_count(&self) -> usize {
        self.open.lock().len()
    }

    /// Whether more files are open than should be, because they are pinned.
    pub(super) fn is_crowded(&self) -> bool {
        self.open_count() > self.files_max
    }

    /// Creates the file of a new segment.
    pub(super) fn create(&self, segment: &Arc<SegmentFile>) -> io::Result<Arc<dyn File>> {
        self.open_with(segment, OpenMode::CreateNew)
    }

    /// The open file of a segment.
    pub(super) fn file(&self, segment: &Arc<SegmentFile>) -> io::Result<Arc<dyn File>> {
        self.open_with(segment, OpenMode::ReadWrite)
    }

    fn open_with(&self, segment: &Arc<SegmentFile>, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        segment.used.store(true, Ordering::Relaxed);
        let mut handle = segment.handle.lock();
        if let Some(file) = &handle.file {
            return Ok(Arc::clone(file));
        }
        let file = self.fs.open(&segment.path, mode)?;
        handle.file = Some(Arc::clone(&file));
        drop(handle);
        self.make_room();
        self.open.lock().push_back(Arc::downgrade(segment));
        Ok(file)
    }

    /// A mapping of at least the first `needed` bytes of a segment; a new one maps `wanted`.
    pub(super) fn mapping(
        &self,
        segment: &Arc<SegmentFile>,
        needed: u64,
        wanted: u64,
    ) -> io::Result<Arc<dyn Mapping>> {
        if let Some(mapping) = self.present_mapping(segment, needed) {
            return Ok(mapping);
        }
        let file = self.file(segment)?;
        let length = needed.max(wanted);
        let mapping = file.map(length)?;
        segment.handle.lock().mapping = Some((Arc::clone(&mapping), length));
        Ok(mapping)
    }

    /// The mapping of a segment if it is there and long enough.
    pub(super) fn present_mapping(&self, segment: &SegmentFile, needed: u64) -> Option<Arc<dyn Mapping>> {
        segment.used.store(true, Ordering::Relaxed);
        let handle = segment.handle.lock();
        match &handle.mapping {
            Some((mapping, length)) if *length >= needed => Some(Arc::clone(mapping)),
            _ => None,
        }
    }

    /// Closes files that are too many: some were pinned when others were opened.
    pub(super) fn trim(&self) {
        self.close_down_to(self.files_max);
    }

    fn make_room(&self) {
        self.close_down_to(self.files_max - 1);
    }

    fn close_down_to(&self, count_max: usize) {
        let mut closed = Vec::new();
        {
            let mut open = self.open.lock();
            // A few at a time: while thousands are pinned, looking at all of them again and again would cost more than
            // some files too many.
            let mut looks = LOOKS_MAX.min(open.len() * 2);
            while open.len() > count_max && looks > 0 {
                looks -= 1;
                let Some(oldest) = open.pop_front() else { break };
                let Some(segment) = oldest.upgrade() else { continue };
                if segment.is_pinned() || segment.used.swap(false, Ordering::Relaxed) {
                    open.push_back(oldest);
                } else {
                    closed.push(segment);
                }
            }
        }
        for segment in closed {
            // A segment that was pinned just now keeps its own reference to the file.
            *segment.handle.lock() = Handle::default();
        }
    }
}
