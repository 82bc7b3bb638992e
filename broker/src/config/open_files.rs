//! How many files a broker keeps open when nobody says.

/// The most, however many the process may open: each takes some 2 KB of the kernel's memory, and a host allows 65,530
/// mappings of a process unless it is told otherwise.
const OPEN_FILES_MAX: u64 = 32_768;
/// What a broker within another program keeps open.
pub const OPEN_FILES_DEFAULT: usize = 4096;
/// The least: what [`Config::check`](super::Config) asks for.
pub(super) const OPEN_FILES_MIN: usize = 16;
/// Descriptors for what is neither a log nor a connection.
const OTHERS: u64 = 512;

/// How many files of logs to keep open in a process that may open `limit` descriptors and has up to `connections_max`
/// connections: what these leave, but half of all at the least.
///
/// A partition that is written to keeps its file open until it is flushed. With fewer files than such partitions, those
/// whose `durability` is `os` are flushed by the broker to make room, which costs half of the speed.
#[must_use]
pub fn open_files_within(limit: u64, connections_max: usize) -> usize {
    let rest = limit.saturating_sub(connections_max as u64 + OTHERS);
    let files = rest.max(limit / 2).min(OPEN_FILES_MAX);
    usize::try_from(files).unwrap_or(usize::MAX).max(OPEN_FILES_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_and_files_share_the_descriptors() {
        assert_eq!(open_files_within(524_288, 10_000), OPEN_FILES_MAX as usize);
        assert_eq!(open_files_within(u64::MAX, 10_000), OPEN_FILES_MAX as usize);
        assert_eq!(open_files_within(40_000, 10_000), 29_488, "what connections leave");
        assert_eq!(open_files_within(20_000, 10_000), 10_000, "half, when they would leave less");
        assert_eq!(open_files_within(1024, 10_000), 512);
        assert_eq!(open_files_within(0, 0), OPEN_FILES_MIN);
    }
}
