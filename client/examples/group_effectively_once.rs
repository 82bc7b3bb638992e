//! Counts the records of each key, each of them exactly once whatever crashes: counts and offsets are stored together, in one
//! file that is replaced as a whole, and reading goes on at the stored offset. The positions of the group play no part.
//!
//! `cargo run -p highwater-client --example group_effectively_once -- TOPIC [DIRECTORY] [ADDRESS]`

#![allow(clippy::print_stdout, reason = "a program for the command line")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use highwater_client::{Client, GroupEvent, GroupRecord, Offset, StartAt};

/// Records between two stores. What is done after the last one is done again after a crash, and counted once.
const STORE_EVERY: u64 = 1000;

/// The counts of one partition and how far they go.
struct Counts {
    path: PathBuf,
    next: u64,
    of_key: BTreeMap<String, u64>,
    unstored: u64,
}

impl Counts {
    fn load(directory: &Path, partition: u32) -> Result<Self, Box<dyn Error>> {
        let path = directory.join(partition.to_string());
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut lines = text.lines();
        let next = lines.next().map_or(Ok(0), str::parse)?;
        let mut of_key = BTreeMap::new();
        for (count, key) in lines.filter_map(|line| line.split_once(' ')) {
            of_key.insert(key.to_owned(), count.parse()?);
        }
        Ok(Self { path, next, of_key, unstored: 0 })
    }

    fn count(&mut self, record: &GroupRecord) -> Result<(), Box<dyn Error>> {
        let key = record.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        *self.of_key.entry(key.replace('\n', " ")).or_default() += 1;
        self.next = record.offset.next().get();
        self.unstored += 1;
        if self.unstored >= STORE_EVERY { self.store() } else { Ok(()) }
    }

    /// Counts and offset in one step: a reader of the file finds both or neither.
    fn store(&mut self) -> Result<(), Box<dyn Error>> {
        let mut text = format!("{}\n", self.next);
        for (key, count) in &self.of_key {
            text.push_str(&format!("{count} {key}\n"));
        }
        let new = self.path.with_extension("new");
        fs::write(&new, text)?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, &self.path)?;
        self.unstored = 0;
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let topic = arguments.next().ok_or("usage: group_effectively_once TOPIC [DIRECTORY] [ADDRESS]")?;
    let directory = PathBuf::from(arguments.next().unwrap_or_else(|| "counts".to_owned()));
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:9470".to_owned());
    fs::create_dir_all(&directory)?;

    let client = Client::builder([address]).name("counter").connect().await?;
    let mut consumer = client.group_consumer("counters").topics([&topic]).commit_manually().build().await?;
    let mut counts: BTreeMap<u32, Counts> = BTreeMap::new();
    while let Some(event) = consumer.next_event().await {
        match event? {
            GroupEvent::Assigned(partitions) => {
                for assigned in partitions {
                    let partition = assigned.partition.partition;
                    let stored = Counts::load(&directory, partition.get())?;
                    // Before the first record comes.
                    consumer.seek(&topic, partition, StartAt::Offset(Offset(stored.next))).await?;
                    counts.insert(partition.get(), stored);
                }
            }
            GroupEvent::Record(record) => {
                if let Some(counts) = counts.get_mut(&record.partition.get()) {
                    counts.count(&record)?;
                }
            }
            GroupEvent::Revoked(partitions) => {
                // They are still this member's own until the next event is asked for.
                for partition in partitions {
                    if let Some(mut counts) = counts.remove(&partition.partition.get()) {
                        counts.store()?;
                    }
                }
            }
            GroupEvent::Lost { partitions, .. } => {
                // Others have them: what was not stored is theirs to count.
                for partition in partitions {
                    counts.remove(&partition.partition.get());
                }
            }
            other => println!("{other:?}"),
        }
    }
    Ok(())
}
