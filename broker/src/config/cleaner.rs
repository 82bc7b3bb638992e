//! How much compaction may take.

/// What compaction may take of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CleanerConfig {
    /// Bytes that it may read and write in a second; 0: without a bound.
    pub bytes_per_second: u64,
    /// Bytes of memory for the keys of a log. With more keys than fit, a log is compacted in several passes.
    pub memory_bytes: usize,
}

impl Default for CleanerConfig {
    fn default() -> Self {
        Self { bytes_per_second: 64 << 20, memory_bytes: 32 << 20 }
    }
}
