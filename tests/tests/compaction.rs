//! Compaction by the real broker: killed at random moments of its passes it loses nothing, and a topic of few keys stays
//! small and is read from its start soon, however many records were written.
//!
//! `HIGHWATER_KILLS=50`, `HIGHWATER_RECORDS=10000000` and `HIGHWATER_SEED` make it longer and different. The seed is printed.
#![cfg(test)]

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwater_client::{BatchDelivery, Client, NewTopic, PartitionId, ProducerRecord};
use highwater_tests::cluster::{BrokerProcess, Options, highwater};
use highwater_tests::keyed_load::{self, KeyedLoad};
use highwater_tests::sim::random::Random;
use highwater_tests::workload::setting;
use highwater_tests::{metrics, segments, wait};

const TOPIC: &str = "accounts";
const KEYS: u64 = 500;
const LIMIT: Duration = Duration::from_secs(60);
/// Records that are written between two kills: some megabytes.
const RECORDS_A_KILL: u64 = 30_000;
/// Longer than a partition waits until it is looked at again.
const NOTHING_TO_DO: Duration = Duration::from_secs(8);
/// What a recovery may say of an append that a kill has cut in two.
const EXPECTED: [&str; 2] = ["cut bad bytes off the log", "the end of the log was cut off"];

/// Bytes of the only partition.
async fn log_bytes(client: &Client) -> Result<u64> {
    let details = client.admin().describe_topics(&[TOPIC]).await?;
    Ok(details.first().context("the topic")?.partitions.first().context("its partition")?.bytes)
}

/// Waits until passes have got through some more bytes: before the first new segment, between two, or after the last; or
/// until there is nothing left to do.
async fn within_a_pass(broker: &BrokerProcess, client: &Client, random: &mut Random) -> Result<()> {
    let http = broker.addresses().http.context("the broker has metrics")?;
    let worked = || metrics::value(http, "highwater_cleaner_worked_total");
    // A pass reads what is new, then everything.
    let enough = worked()? + random.below(log_bytes(client).await? * 2 + 1) as f64;
    let passes = || metrics::value(http, "highwater_cleaner_passes_total");
    // Now and then one comes to its end, and the kill soon after it.
    let (complete, passes_before) = (random.percent(40), passes()?);
    let mut last = (worked()?, Instant::now());
    wait::until("a pass of compaction is under way", LIMIT, || {
        if complete {
            return passes().ok().filter(|now| *now > passes_before).map(drop);
        }
        let now = worked().ok()?;
        if now > last.0 {
            last = (now, Instant::now());
        }
        (now > enough || last.1.elapsed() > NOTHING_TO_DO).then_some(())
    })
}

async fn kill_again_and_again(kills: u64, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    // Slow enough that kills meet every part of a pass.
    let arguments = ["--cleaner-rate", "8MiB"].map(str::to_owned).to_vec();
    let options = Options { keeps_port: true, arguments, ..Options::default() };
    let mut broker = BrokerProcess::start(options)?;
    let client = Client::builder([broker.bootstrap()]).connect().await?;
    let topic = NewTopic::new(TOPIC)
        .config("cleanup", "compact")
        .config("segment_bytes", "128KiB")
        .config("dirty_percent_min", "1")
        .config("tombstone_grace", "2s");
    client.admin().create_topic(topic).await?;
    let load = KeyedLoad::start(&broker.bootstrap(), TOPIC, KEYS, 200, seed).await?;
    let mut compacted = 0;
    for kill in 1..=kills {
        load.allow(RECORDS_A_KILL);
        within_a_pass(&broker, &client, &mut random).await.with_context(|| format!("kill {kill}"))?;
        broker.kill9()?;
        let before = load.known();
        broker.start_again()?;
        let table = keyed_load::read(&client, TOPIC).await.with_context(|| format!("after kill {kill}"))?;
        keyed_load::check(&table, &before, &load.known()).with_context(|| format!("after kill {kill}"))?;
        compacted += u64::from(table.records < table.offsets);
        println!("kill {kill}: {} of {} records are there", table.records, table.offsets);
    }
    let known = load.stop().await?;
    let table = keyed_load::read(&client, TOPIC).await?;
    keyed_load::check(&table, &known, &known)?;
    ensure!(compacted > 0 || kills < 5, "nothing was ever compacted");
    // Offline, after a clean stop, everything is as it should be.
    broker.terminate()?;
    let verified =
        Command::new(highwater()?).args(["log", "verify"]).arg(broker.data_directory()).output()?;
    ensure!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    broker.check_log(&EXPECTED)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_in_the_middle_of_compaction_lose_nothing() {
    let (kills, seed) = (setting("HIGHWATER_KILLS", 3), setting("HIGHWATER_SEED", 1));
    println!("seed {seed}, {kills} kills");
    kill_again_and_again(kills, seed).await.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
}

async fn acknowledged(delivery: BatchDelivery) -> Result<()> {
    let receipt = wait::within("a batch is acknowledged", LIMIT, delivery).await?;
    ensure!(receipt.runs().iter().all(|run| run.result.is_ok()), "{receipt:?}");
    Ok(())
}

/// Writes so many records, the keys in turn.
async fn fill(client: &Client, records: u64, keys: u64) -> Result<()> {
    const CHUNK: u64 = 5000;
    let producer = client.producer().build();
    let mut deliveries = std::collections::VecDeque::new();
    for first in (0..records).step_by(CHUNK as usize) {
        let numbers: Vec<u64> = (first..records.min(first + CHUNK)).collect();
        let keyed: Vec<_> = numbers
            .iter()
            .map(|number| ((number % keys).to_le_bytes(), [(number / keys + 1).to_le_bytes(); 4].concat()))
            .collect();
        let chunk = keyed.iter().map(|(key, value)| ProducerRecord::new(TOPIC).key(key).value(value));
        deliveries.push_back(producer.send_batch(TOPIC, Some(PartitionId(0)), chunk).await?);
        if deliveries.len() > 8
            && let Some(delivery) = deliveries.pop_front()
        {
            acknowledged(delivery).await?;
        }
    }
    for delivery in deliveries {
        acknowledged(delivery).await?;
    }
    producer.close().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_of_few_keys_stays_small_and_is_read_from_its_start_soon() {
    const SEGMENT_BYTES: u64 = 1 << 20;
    let records = setting("HIGHWATER_RECORDS", 400_000);
    let keys = 3000.min(records);
    let mut broker = BrokerProcess::start(Options { keeps_port: true, ..Options::default() }).unwrap();
    let client = Client::builder([broker.bootstrap()]).connect().await.unwrap();
    let topic =
        NewTopic::new(TOPIC).config("cleanup", "compact").config("segment_bytes", SEGMENT_BYTES.to_string());
    client.admin().create_topic(topic).await.unwrap();
    let began = Instant::now();
    fill(&client, records, keys).await.unwrap();
    println!("{records} records of {keys} keys written in {:?}", began.elapsed());
    // What is clean, as much again that is dirty, and what is not sealed.
    let bound = keys * 100 * 2 + 3 * SEGMENT_BYTES;
    wait::until_async("the log is small", LIMIT * 10, || async {
        log_bytes(&client).await.ok().filter(|bytes| *bytes <= bound)
    })
    .await
    .unwrap();
    println!("{:?} later: {} bytes", began.elapsed(), log_bytes(&client).await.unwrap());
    // What a pass has written is listed in the background; what it stands for goes only after that. A kill before that
    // undoes the pass. One more segment is prepared on the disk.
    wait::until("the log is small on the disk", LIMIT, || {
        let there = segments::bytes_of_first_partition(broker.data_directory()).ok();
        there.filter(|bytes| *bytes <= bound + SEGMENT_BYTES)
    })
    .unwrap();
    broker.kill9().unwrap();
    let began = Instant::now();
    let start = broker.start_again().unwrap();
    let table = keyed_load::read(&client, TOPIC).await.unwrap();
    println!("restarted in {start:?}, {} records read {:?} after the start", table.records, began.elapsed());
    assert_eq!((table.offsets, table.values.len() as u64), (records, keys));
    for (key, value) in &table.values {
        assert_eq!(*value, (records - 1 - key) / keys + 1, "key {key}");
    }
    assert!(table.records < records / 2, "{table:?}");
    broker.check_log(&EXPECTED).unwrap();
}
