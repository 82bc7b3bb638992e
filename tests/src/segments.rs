//! The segment files of a broker, as they are on the disk.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use highwater_broker_core::log::directory;

/// The segment files of partition 0 of the only topic on a data directory, oldest first.
///
/// # Errors
/// When there is no topic, or a directory cannot be read.
pub fn of_first_partition(data: &Path) -> Result<Vec<PathBuf>> {
    let topics = fs::read_dir(data.join(directory::TOPICS)).context("read the directory of topics")?;
    let topic = topics.flatten().next().context("there is no topic on the disk")?.path();
    let files = fs::read_dir(topic.join("0")).context("read the directory of the partition")?.flatten();
    let mut segments: Vec<_> = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "segment"))
        .collect();
    segments.sort();
    Ok(segments)
}

/// Bytes of those files together. Files that are removed meanwhile count nothing.
///
/// # Errors
/// As [`of_first_partition`].
pub fn bytes_of_first_partition(data: &Path) -> Result<u64> {
    let lengths = of_first_partition(data)?.into_iter().filter_map(|path| fs::metadata(path).ok());
    Ok(lengths.map(|metadata| metadata.len()).sum())
}
