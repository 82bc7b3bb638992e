//! `highwater log …`: a data directory, looked at without a broker. Nothing is ever written.

mod dump;
mod verify;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use highwater_broker_core::controller::image::Defaults;
use highwater_broker_core::controller::{snapshot, topics_file};
use highwater_broker_core::log::directory;
use highwater_broker_core::log::scan::SegmentBytes;
use highwater_broker_core::log::segment_name::SegmentName;
use highwater_protocol::ids::{TopicId, TopicPartition};
use rustix::fs::{FlockOperation, flock};

use crate::args::{Global, LogCommand};
use crate::output::Answer;

/// Bytes of a state file or a manifest at the most.
const STATE_BYTES_MAX: u64 = 128 << 20;
/// The broker's copy of the metadata.
const CONTROLLER: &str = "controller";
/// The state file with the names of topics, of a directory from before the metadata was replicated.
const TOPICS_STATE: &str = "topics";
/// Bytes that are read at a time.
const READ_AHEAD: usize = 1 << 20;

/// Runs one of the commands.
pub(crate) fn run(global: &Global, command: LogCommand) -> anyhow::Result<Answer> {
    match command {
        LogCommand::Dump(args) => dump::run(global, &args),
        LogCommand::Verify(args) => verify::run(global, &args),
    }
}

/// What a path on the command line names.
#[derive(Debug)]
enum Target {
    /// A whole data directory.
    Directory(PathBuf),
    /// One partition of it.
    Partition(PartitionPath),
    /// One segment of a partition.
    Segment(PartitionPath, SegmentName),
}

/// The directory of a partition.
#[derive(Debug, Clone)]
struct PartitionPath {
    partition: TopicPartition,
    path: PathBuf,
}

impl Target {
    fn find(given: &Path) -> anyhow::Result<Self> {
        let path = given.canonicalize().with_context(|| format!("find {}", given.display()))?;
        if path.is_file() {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(SegmentName::parse);
            let parent = path.parent().and_then(PartitionPath::of);
            return match (name, parent) {
                (Some(name), Some(partition)) => Ok(Self::Segment(partition, name)),
                _ => anyhow::bail!(
                    "{} is not a segment where a broker keeps it: topics/TOPIC_ID/PARTITION/*.segment. Its checksums \
                     cover topic and partition, so it cannot be read elsewhere",
                    given.display()
                ),
            };
        }
        if let Some(partition) = PartitionPath::of(&path) {
            return Ok(Self::Partition(partition));
        }
        let marks = [directory::DIRECTORY, directory::TOPICS];
        anyhow::ensure!(
            marks.iter().any(|mark| path.join(mark).exists()),
            "{} is not a data directory: it has neither {}; give what the broker has as --data-dir",
            given.display(),
            marks.join(" nor ")
        );
        Ok(Self::Directory(path))
    }

    /// The data directory that it is in.
    fn root(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
            Self::Partition(partition) | Self::Segment(partition, _) => partition.root(),
        }
    }

    /// The partitions that it names, in order.
    fn partitions(&self) -> anyhow::Result<Vec<PartitionPath>> {
        let root = match self {
            Self::Directory(path) => path.join(directory::TOPICS),
            Self::Partition(partition) | Self::Segment(partition, _) => return Ok(vec![partition.clone()]),
        };
        let mut all = Vec::new();
        for topic in list(&root)? {
            let Some(topic_id) = directory::parse_topic(&topic) else { continue };
            for name in list(&root.join(&topic))? {
                if let Some(partition) = directory::parse_partition(&name) {
                    let path = root.join(&topic).join(&name);
                    all.push(PartitionPath { partition: TopicPartition::new(topic_id, partition), path });
                }
            }
        }
        all.sort_by_key(|partition| partition.partition);
        Ok(all)
    }
}

impl PartitionPath {
    /// The partition whose directory this is, if its names say so.
    fn of(path: &Path) -> Option<Self> {
        let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
        let topic = path.parent()?;
        let partition = directory::parse_partition(&name(path)?)?;
        let topic_id = directory::parse_topic(&name(topic)?)?;
        let partition = TopicPartition::new(topic_id, partition);
        Some(Self { partition, path: path.to_owned() })
    }

    /// The data directory.
    fn root(&self) -> &Path {
        self.path.ancestors().nth(3).unwrap_or(&self.path)
    }

    /// Its segment files, in the order in which they were made.
    fn segments(&self) -> anyhow::Result<Vec<SegmentName>> {
        let mut names: Vec<SegmentName> =
            list(&self.path)?.iter().filter_map(|name| SegmentName::parse(name)).collect();
        names.sort_unstable();
        Ok(names)
    }
}

/// What topics are called, as far as the data directory tells: the broker's files name them by id only.
#[derive(Debug, Default)]
struct TopicNames(BTreeMap<TopicId, String>);

impl TopicNames {
    /// The names that the broker's copy of the metadata has, or the state file of an earlier version; none if it cannot
    /// be read, which `verify` tells.
    fn read(root: &Path) -> anyhow::Result<Self> {
        if let Some(bytes) = read_small(&root.join(CONTROLLER))? {
            let image = highwater_broker::offline_image(&bytes).unwrap_or_default();
            return Ok(Self(image.topics().map(|topic| (topic.id, topic.name.clone())).collect()));
        }
        let path = root.join(directory::STATE).join(TOPICS_STATE);
        let Some(bytes) = read_small(&path)? else { return Ok(Self::default()) };
        if let Ok(image) = snapshot::decode(&bytes) {
            return Ok(Self(image.topics().map(|topic| (topic.id, topic.name.clone())).collect()));
        }
        Ok(Self(topics_file::decode(&bytes, &Defaults::default()).map_or_else(
            |_damaged| BTreeMap::new(),
            |file| file.topics.into_iter().map(|topic| (topic.id, topic.name)).collect(),
        )))
    }

    /// The name of a partition for people.
    fn of(&self, partition: TopicPartition) -> String {
        match self.0.get(&partition.topic_id) {
            Some(name) => format!("topic {name}, partition {}", partition.partition),
            None => format!("a topic that is not there any more, partition {}", partition.partition),
        }
    }
}

/// Keeps brokers away from a data directory while it is read; they keep readers away in the same manner.
#[derive(Debug)]
struct Lock {
    _file: Option<File>,
}

impl Lock {
    fn take(root: &Path) -> anyhow::Result<Self> {
        let path = root.join(directory::LOCK);
        let file = match File::open(&path) {
            Ok(file) => file,
            // Never used by a broker, or a copy.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { _file: None }),
            Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Self { _file: Some(file) }),
            Err(rustix::io::Errno::WOULDBLOCK) => anyhow::bail!(
                "a broker runs in {}: what it writes would look like damage; stop it, or verify a copy",
                root.display()
            ),
            Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }
}

/// The names in a directory, sorted; none if it is not there.
fn list(path: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {}", path.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", path.display()))?;
        // A broker gives no other names.
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A whole small file; `None` if it is not there.
fn read_small(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("look at {}", path.display())),
    };
    anyhow::ensure!(length <= STATE_BYTES_MAX, "{} has {length} bytes, far too many", path.display());
    fs::read(path).map(Some).with_context(|| format!("read {}", path.display()))
}

/// The bytes of a segment, read ahead through a buffer.
#[derive(Debug)]
struct FileBytes {
    file: File,
    length: u64,
    buffer: Vec<u8>,
    start: u64,
}

impl FileBytes {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file, length, buffer: Vec::new(), start: 0 })
    }
}

impl SegmentBytes for FileBytes {
    type Error = io::Error;

    fn length(&self) -> u64 {
        self.length
    }

    fn view(&mut self, position: u64, length: usize) -> io::Result<&[u8]> {
        let there = usize::try_from(self.length.saturating_sub(position)).unwrap_or(usize::MAX);
        let length = length.min(there);
        let buffered = self.start..self.start + self.buffer.len() as u64;
        if position < buffered.start || position + length as u64 > buffered.end {
            self.buffer.clear();
            self.buffer.resize(length.max(READ_AHEAD).min(there), 0);
            self.file.read_exact_at(&mut self.buffer, position)?;
            self.start = position;
        }
        let from = (position - self.start) as usize;
        Ok(&self.buffer[from..from + length])
    }
}
