//! Bytes of a replica's log flipped on the disk under traffic: they are found, fetched again from another replica, and
//! nothing wrong is served meanwhile. On a follower and on the leader.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwater_client::{NewTopic, PartitionId};
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::sim::random::Random;
use highwater_tests::workload::{self, Steady, SteadyOptions, Watcher, setting};
use highwater_tests::{segments, wait};

const TOPIC: &str = "rotten";
const PARTITIONS: u32 = 1;
const LIMIT: Duration = Duration::from_secs(60);
/// Damage that is done to each replica.
const WOUNDS: usize = 3;
/// Bytes of the log before it is damaged: several segments.
const LOG_BYTES: u64 = 3 << 20;

/// Flips a few bytes in the middle of all but the last segment; says where.
fn wound(data: &Path, random: &mut Random) -> Result<Vec<(PathBuf, u64)>> {
    let segments = segments::of_first_partition(data)?;
    let (_, sealed) = segments.split_last().context("there is no segment")?;
    ensure!(!sealed.is_empty(), "there is only one segment: {segments:?}");
    let mut wounds = Vec::new();
    for _ in 0..WOUNDS {
        let path = random.pick(sealed).context("there is no segment")?;
        // Behind the last batch there may be reserved room, all zeroes: damage there is none of anybody's records.
        let written = fs::read(path)?.iter().rposition(|byte| *byte != 0).context("an empty segment")? as u64;
        let place = random.within(written / 4..written / 2);
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, place)?;
        file.write_all_at(&bytes.map(|byte| byte ^ 0x5a), place)?;
        file.sync_data()?;
        wounds.push((path.clone(), place));
    }
    Ok(wounds)
}

/// Waits until all replicas are the same and none has a bad range, as the command line says it.
async fn healed(brokers: &Brokers) -> Result<()> {
    let last = std::cell::RefCell::new(String::new());
    let verified = wait::until_async("highwater verify finds all replicas equal", LIMIT, || async {
        let output = brokers.highwater(&["verify", TOPIC]).ok()?;
        *last.borrow_mut() = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(())
    });
    verified.await.with_context(|| last.borrow().clone())
}

async fn wound_and_heal(brokers: &mut Brokers, on_leader: bool, random: &mut Random) -> Result<()> {
    let new = NewTopic::new(TOPIC).partitions(PARTITIONS).config("segment_bytes", "1MiB");
    brokers.create(TOPIC, new).await?;
    let client = brokers.client().await?;
    let mut options = SteadyOptions::new(TOPIC, PARTITIONS);
    (options.producers, options.interval) = (8, Duration::from_millis(1));
    let load = Steady::start(&brokers.bootstrap(), options).await?;
    let watcher = Watcher::start(&client, TOPIC, PartitionId(0)).await?;
    wait::until_async("the log is long enough to be damaged", LIMIT, || async {
        let described = client.admin().describe_topics(&[TOPIC]).await.ok()?;
        let partition = described.first()?.partitions.first()?;
        (partition.bytes >= LOG_BYTES).then_some(())
    })
    .await?;
    let view = brokers.in_sync(TOPIC).await?;
    let leader = view.leader(0)?;
    let follower = brokers.nodes().into_iter().find(|node| *node != leader).context("no follower")?;
    let victim = if on_leader { leader } else { follower };

    let logged = brokers.node(victim)?.log()?.len();
    let wounds = wound(brokers.node(victim)?.data_directory(), random)?;
    println!("broker {victim}, the leader is {leader}: {wounds:?}");
    // Somebody reads it all meanwhile: what comes is right, or does not come.
    let second = Watcher::start(&client, TOPIC, PartitionId(0)).await?;
    wait::until_async("the damage is found", LIMIT, || async {
        let log = brokers.log(victim).ok()?;
        log.get(logged..)?.contains("corrupt").then_some(())
    })
    .await?;
    healed(brokers).await?;
    load.served_since(&load.partitions(), Instant::now(), LIMIT).await?;
    let failures = load.failures();
    let sent = load.stop().await?;
    healed(brokers).await?;
    brokers.in_sync(TOPIC).await?;
    let passes = BTreeMap::from([(0, vec![watcher.stop().await?.pass, second.stop().await?.pass])]);
    let summary = workload::judge(&client, TOPIC, sent.clone(), passes).await?;
    println!("{summary:?}");
    ensure!(summary.refused == 0 && failures.is_empty(), "sends failed: {failures:?}");

    // What was healed is so on the disk, too.
    brokers.node(victim)?.terminate()?;
    brokers.node(victim)?.start_again()?;
    brokers.in_sync(TOPIC).await?;
    healed(brokers).await?;
    workload::judge(&client, TOPIC, sent, BTreeMap::new()).await?;
    brokers.check_no_errors(&["corrupt"])
}

async fn run(on_leader: bool) {
    let mut random = Random::new(setting("HIGHWATER_SEED", 1));
    let arguments = vec!["--scrub-interval".to_owned(), "1s".to_owned()];
    let mut brokers = Brokers::start(Setup { arguments, ..Setup::default() }).await.unwrap();
    wound_and_heal(&mut brokers, on_leader, &mut random).await.unwrap_or_else(|error| panic!("{error:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_follower_is_found_and_healed() {
    run(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_leader_is_found_and_healed() {
    run(true).await;
}
