//! Two `consume --group` share the lines of a real file; when one is killed, the other goes on with its share.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwater_tests::brokers::{Brokers, Setup};

use crate::reader::{Reader, SESSION, group_is};

const TOPIC: &str = "lines";
const GROUP: &str = "readers";
const PARTITIONS: usize = 8;

/// The documents and sources of this project, line by line.
fn text(folder: &Path, into: &mut Vec<u8>) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), entry.file_name());
        let is_text = path.extension().is_some_and(|extension| extension == "md" || extension == "rs");
        if entry.file_type()?.is_dir() && name != "target" && name != ".git" {
            text(&path, into)?;
        } else if is_text {
            into.extend(fs::read(&path)?);
        }
    }
    Ok(())
}

fn count(lines: &[u8], counts: &mut BTreeMap<Vec<u8>, i64>, by: i64) {
    for line in lines.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        *counts.entry(line.to_vec()).or_default() += by;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_share_a_file_and_one_takes_over_from_the_other() {
    let brokers = Brokers::start(Setup::default()).await.unwrap();
    run(&brokers).await.unwrap();
}

async fn run(brokers: &Brokers) -> Result<()> {
    brokers.create_topic(TOPIC, PARTITIONS as u32).await?;
    let admin = brokers.client().await?.admin();
    let directory = tempfile::tempdir()?;
    let mut lines = Vec::new();
    text(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("find the workspace")?, &mut lines)?;
    let file = directory.path().join("text");
    fs::write(&file, &lines)?;
    let file = file.to_str().context("a path that is text")?;
    let mut first = Reader::start(brokers, (TOPIC, GROUP), 0, &directory, &[])?;
    let mut second = Reader::start(brokers, (TOPIC, GROUP), 1, &directory, &[])?;
    group_is(&admin, GROUP, "they share the partitions", |group| {
        group.members.len() == 2 && group.members.iter().all(|member| member.assigned.len() == PARTITIONS / 2)
    })
    .await?;
    brokers.highwater_ok(&["produce", TOPIC, "--file", file])?;
    let all_read = "everything is read";
    group_is(&admin, GROUP, all_read, |group| group.positions.iter().all(|position| position.lag == Some(0)))
        .await?;
    let shares = [fs::read(&first.output)?.len(), fs::read(&second.output)?.len()];
    ensure!(shares.iter().all(|share| *share > lines.len() / 5), "{shares:?} of {} bytes", lines.len());
    let mut counts = BTreeMap::new();
    count(&lines, &mut counts, 1);
    count(&fs::read(&first.output)?, &mut counts, -1);
    count(&fs::read(&second.output)?, &mut counts, -1);
    let wrong: Vec<_> = counts.iter().filter(|(_, count)| **count != 0).take(5).collect();
    ensure!(wrong.is_empty(), "each line once: {wrong:?}");

    // Once more; the first is killed while it reads.
    let half = fs::metadata(&first.output)?.len();
    brokers.highwater_ok(&["produce", TOPIC, "--file", file])?;
    let killed = Instant::now();
    first.kill()?;
    let group = group_is(&admin, GROUP, "the second has it all and has read it", |group| {
        group.members.len() == 1
            && group.members[0].assigned.len() == PARTITIONS
            && group.positions.iter().all(|position| position.lag == Some(0))
    })
    .await?;
    let took = killed.elapsed();
    ensure!(took < SESSION + Duration::from_secs(10), "it took {took:?}: {group:?}");
    second.stop()?;
    let (mut counts, dead) = (BTreeMap::new(), fs::read(&first.output)?);
    count(&lines, &mut counts, 2);
    count(&dead, &mut counts, -1);
    count(&fs::read(&second.output)?, &mut counts, -1);
    let missing: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).take(5).collect();
    ensure!(missing.is_empty(), "lines that nobody has printed: {missing:?}");
    let twice: i64 = counts.values().filter(|count| **count < 0).map(|count| -count).sum();
    let last_share = dead.len() as u64 - half;
    println!(
        "{} lines, shared as {shares:?} bytes; the killed one had printed {last_share} bytes of the second round, {twice} \
         lines came again, {took:.2?} until the other one had read everything",
        lines.iter().filter(|byte| **byte == b'\n').count(),
    );
    let of_the_dead = dead[half as usize..].iter().filter(|byte| **byte == b'\n').count();
    ensure!(
        twice <= i64::try_from(of_the_dead)?,
        "{twice} lines came again, the killed one had {of_the_dead}"
    );
    brokers.check_no_errors(&[])
}
