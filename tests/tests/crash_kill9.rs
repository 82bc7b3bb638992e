//! `kill -9` of the real broker at random moments under load: no loss, no duplicate offset, no reorder, no offset reused.
//!
//! Six kills by default; `HIGHWATER_KILLS=200` and `HIGHWATER_SEED` make it longer and different. The seed is printed.
#![cfg(test)]

use std::collections::BTreeMap;
use std::env;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwater_client::{Client, NewTopic, PartitionId, ProducerRecord, StartAt};
use highwater_tests::cluster::{BrokerProcess, Options};
use highwater_tests::oracle::{self, History, Pass, Summary};
use highwater_tests::sim::random::Random;
use highwater_tests::wait;
use highwater_tests::workload::{self, Load, LoadOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Topic and durability. What a broker acknowledged as written survives its own death too.
const TOPICS: [(&str, &str); 2] = [("safe", "fsync"), ("fast", "os")];
const PARTITIONS: u32 = 2;
/// Offsets below the last known end that are read again after a kill.
const OVERLAP: u64 = 500;
const LIMIT: Duration = Duration::from_secs(60);
/// What a recovery may say of an append that a kill has cut in two.
const EXPECTED: [&str; 2] = ["cut bad bytes off the log", "the end of the log was cut off"];

fn setting(name: &str, default: u64) -> u64 {
    env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Reads a partition all the time, over all crashes, until told to stop.
struct Follower {
    task: JoinHandle<Result<Pass>>,
    stop: watch::Sender<bool>,
}

impl Follower {
    async fn start(bootstrap: &str, topic: &'static str, partition: PartitionId) -> Result<Self> {
        let client = Client::builder([bootstrap]).connect().await?;
        let builder = client.consumer(topic).from(StartAt::Earliest).partitions([partition]);
        let mut consumer = builder.build().await?;
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut pass = Pass::new();
            loop {
                tokio::select! {
                    batch = consumer.next_batch() => {
                        let batch = batch.context("the stream ended")?.context("follow")?;
                        workload::note(&batch, &mut pass)?;
                    }
                    _ = stopped.wait_for(|stop| *stop) => return Ok(pass),
                }
            }
        });
        Ok(Self { task, stop })
    }

    async fn stop(self) -> Result<Pass> {
        self.stop.send_replace(true);
        self.task.await?
    }
}

/// Kills the broker once, at a random moment, and brings it back.
async fn kill_once(broker: &mut BrokerProcess, load: &[Load], random: &mut Random) -> Result<()> {
    let before: Vec<_> = load.iter().map(Load::acknowledged).collect();
    wait::until_async("every topic acknowledges again", LIMIT, || async {
        load.iter().zip(&before).all(|(load, before)| load.acknowledged() > *before).then_some(())
    })
    .await?;
    tokio::time::sleep(Duration::from_micros(random.below(150_000))).await;
    broker.kill9()?;
    // Some crashes hit a broker that is recovering from the one before.
    while random.percent(25) {
        broker.start_again_unawaited()?;
        tokio::time::sleep(Duration::from_micros(random.below(40_000))).await;
        broker.kill9()?;
    }
    broker.start_again()?;
    Ok(())
}

/// Who is stuck, for messages: whether the broker takes records from a new client, and what it last logged.
async fn state(broker: &BrokerProcess, load: &[Load]) -> String {
    let acknowledged: Vec<_> = load.iter().map(Load::acknowledged).collect();
    let mut state = format!("acknowledged by topic: {acknowledged:?}\n");
    for (topic, _) in TOPICS {
        for partition in 0..PARTITIONS {
            let probe = async {
                let client = Client::builder([broker.bootstrap()]).connect().await?;
                let producer = client.producer().delivery_timeout(Duration::from_secs(5)).build();
                let record = ProducerRecord::new(topic).partition(PartitionId(partition)).value("probe");
                producer.send(record).await?.await
            };
            let result = wait::within("a new client is answered", LIMIT, probe).await;
            state.push_str(&format!("{topic} {partition}, a new client: {result:?}\n"));
        }
    }
    state.push_str(&broker.log_tail());
    state
}

/// What was read of each partition after each kill, and where the reading ended.
type Histories = BTreeMap<(&'static str, u32), (History, u64)>;

/// Reads the end of every partition again.
async fn read_ends(client: &Client, histories: &mut Histories) -> Result<()> {
    for ((topic, partition), (history, end)) in histories {
        let from = end.saturating_sub(OVERLAP);
        let pass = workload::read(client, topic, PartitionId(*partition), Some(from)).await?;
        let read_to = pass.last().map_or(from, |(offset, _)| offset + 1);
        ensure!(
            read_to >= *end,
            "{topic} {partition}: ended at {end} before the kill and at {read_to} after it"
        );
        *end = read_to;
        history.passes.push(pass);
    }
    Ok(())
}

async fn run(kills: u64, seed: u64) -> Result<Summary> {
    let mut random = Random::new(seed);
    let mut broker = BrokerProcess::start(Options { keeps_port: true, ..Options::default() })?;
    let client = Client::builder([broker.bootstrap()]).connect().await?;
    let (mut load, mut followers, mut histories) = (Vec::new(), Vec::new(), Histories::new());
    for (index, (topic, durability)) in (0..).zip(TOPICS) {
        let new = NewTopic::new(topic).partitions(PARTITIONS).config("durability", durability);
        // Small segments, so that crashes meet the rolling of segments too.
        client.admin().create_topic(new.config("segment_bytes", "1MiB")).await?;
        let producers = index * 2..index * 2 + 2;
        let options =
            LoadOptions { topic: topic.to_owned(), partitions: PARTITIONS, producers, in_flight: 64 };
        load.push(Load::start(&broker.bootstrap(), options).await?);
        followers.push((topic, Follower::start(&broker.bootstrap(), topic, PartitionId(0)).await?));
        histories.extend((0..PARTITIONS).map(|partition| ((topic, partition), (History::default(), 0))));
    }
    for kill in 1..=kills {
        if let Err(error) = kill_once(&mut broker, &load, &mut random).await {
            let state = state(&broker, &load).await;
            return Err(error.context(format!("kill {kill}\n{state}")));
        }
        read_ends(&client, &mut histories).await.with_context(|| format!("after kill {kill}"))?;
        if kill % 20 == 0 {
            println!("{kill} kills, {} acknowledged", load.iter().map(Load::acknowledged).sum::<u64>());
        }
    }
    for ((topic, _), load) in TOPICS.iter().zip(load) {
        for (partition, outcomes) in load.stop().await? {
            histories.get_mut(&(*topic, partition)).context("a partition that nobody made")?.0.sent =
                outcomes;
        }
    }
    for (topic, follower) in followers {
        let pass = follower.stop().await.with_context(|| format!("follow {topic}"))?;
        histories.get_mut(&(topic, 0)).context("a topic that nobody made")?.0.passes.push(pass);
    }
    let summary = judge(&client, histories).await?;
    broker.check_log(&EXPECTED)?;
    Ok(summary)
}

/// Reads everything once more and asks the oracle.
async fn judge(client: &Client, histories: Histories) -> Result<Summary> {
    let mut summary = Summary::default();
    for ((topic, partition), (mut history, _)) in histories {
        let pass = workload::read(client, topic, PartitionId(partition), None).await?;
        history.passes.push(pass);
        match oracle::check(&history) {
            Ok(counts) => summary += counts,
            Err(found) => {
                let shown: Vec<_> = found.iter().take(20).map(ToString::to_string).collect();
                anyhow::bail!("{topic} {partition}: {} violations:\n{}", found.len(), shown.join("\n"));
            }
        }
    }
    Ok(summary)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_moved_by_kills_at_random_moments() {
    let (kills, seed) = (setting("HIGHWATER_KILLS", 6), setting("HIGHWATER_SEED", 1));
    println!("seed {seed}, {kills} kills");
    let summary = run(kills, seed).await.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
    println!("{kills} kills: {summary:?}");
    assert!(summary.acknowledged > 0, "{summary:?}");
}
