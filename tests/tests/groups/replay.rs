//! A long history of commits: the internal topic stays bounded, and a broker that starts again reads it soon.
//!
//! Short by default; `HIGHWATER_COMMITS=10000000` is the long form.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use futures_util::future::try_join_all;
use highwater_client::NewTopic;
use highwater_protocol::ids::TopicId;
use highwater_protocol::messages::FetchOffsetsRequest;
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::members::{Coordinators, commit_request};
use highwater_tests::wait;
use highwater_tests::workload::setting;

const TOPIC: &str = "read";
const INTERNAL: &str = "hw-groups";
const PARTITIONS: u32 = 1000;
/// As many as the internal topic has partitions, by default.
const GROUPS: u64 = 16;
const LIMIT: Duration = Duration::from_secs(60);
/// How long the cleaner may take to come to the end of it.
const CLEAN_LIMIT: Duration = Duration::from_secs(180);
/// What is left of the topic for each of its partitions at the most: the segment that is appended to, and what is not dirty
/// enough to be cleaned.
const LEFT_BYTES_MAX: u64 = 20 << 20;
const REPLAY_MAX: Duration = Duration::from_secs(2);
/// Commits from which on the goals are judged, in a release build.
const COMMITS_JUDGED: u64 = 10_000_000;

fn group(number: u64) -> String {
    format!("group-{number}")
}

/// Commits all partitions again and again, one step further each time; the last position.
async fn commit_all(
    coordinators: Arc<Coordinators>,
    topic: TopicId,
    group: String,
    rounds: u64,
) -> Result<u64> {
    for round in 1..=rounds {
        let positions: Vec<_> = (0..PARTITIONS).map(|partition| ((topic, partition), round)).collect();
        let request = commit_request(&group, "", 0, &positions);
        let reply = coordinators.ask(&group, &request, LIMIT).await;
        let reply = reply.map_err(|refused| anyhow!("a commit of {group} is refused: {refused:?}"))?;
        ensure!(reply.results.iter().all(|result| result.error == 0), "{:?}", reply.results.first());
    }
    Ok(rounds)
}

/// Every group is asked where it is, until it answers: how long that takes.
async fn fetch_all(coordinators: &Coordinators, expected: u64) -> Result<Duration> {
    let start = Instant::now();
    let fetch = |number| async move {
        let group = group(number);
        let request = FetchOffsetsRequest { group: group.clone(), ..FetchOffsetsRequest::default() };
        let reply = coordinators.ask(&group, &request, LIMIT).await;
        let reply = reply.map_err(|refused| anyhow!("positions of {group} are refused: {refused:?}"))?;
        ensure!(reply.offsets.len() == PARTITIONS as usize, "{group} has {} positions", reply.offsets.len());
        let wrong = reply.offsets.iter().find(|position| position.offset != Some(expected));
        ensure!(wrong.is_none(), "{group}: {wrong:?}, and {expected} was committed");
        Ok(())
    };
    try_join_all((0..GROUPS).map(fetch)).await?;
    Ok(start.elapsed())
}

/// Bytes that the internal topic has on the broker.
async fn bytes(brokers: &Brokers) -> Result<(u64, u64)> {
    let client = brokers.client().await?;
    let topics = client.admin().describe_topics(&[INTERNAL]).await?;
    let partitions = topics.iter().flat_map(|topic| &topic.partitions);
    let (mut all, mut most) = (0, 0);
    for partition in partitions {
        all += partition.bytes;
        most = most.max(partition.bytes);
    }
    Ok((all, most))
}

async fn run(brokers: &mut Brokers, commits: u64) -> Result<()> {
    let wide = NewTopic::new(TOPIC).partitions(PARTITIONS).config("durability", "os");
    brokers.create(TOPIC, wide).await?;
    let described = brokers.client().await?.admin().describe_topics(&[TOPIC]).await?;
    let topic = described[0].topic_id;
    let coordinators = Coordinators::new(brokers.bootstrap());
    let rounds = (commits / GROUPS / u64::from(PARTITIONS)).max(1);
    let begun = Instant::now();
    let committing = (0..GROUPS).map(|number| {
        let committing = commit_all(Arc::clone(&coordinators), topic, group(number), rounds);
        async { tokio::spawn(committing).await? }
    });
    try_join_all(committing).await?;
    let took = begun.elapsed();
    let (written, _) = bytes(brokers).await?;
    let committed = rounds * GROUPS * u64::from(PARTITIONS);
    println!(
        "{committed} commits in {took:.1?}, {:.0}/s; the internal topic has {:.1} MiB",
        committed as f64 / took.as_secs_f64(),
        written as f64 / 1_048_576.0
    );
    let cleaned = wait::until_async("the internal topic is cleaned", CLEAN_LIMIT, || async {
        bytes(brokers).await.ok().filter(|(_, most)| *most <= LEFT_BYTES_MAX)
    });
    let (left, most) = cleaned.await?;
    println!(
        "after {:.1?} of cleaning it has {:.1} MiB, at most {:.1} MiB a partition",
        begun.elapsed() - took,
        left as f64 / 1_048_576.0,
        most as f64 / 1_048_576.0
    );
    for kill in [false, true] {
        if kill {
            brokers.node(1)?.kill9()?;
        } else {
            brokers.node(1)?.terminate()?;
        }
        let start = brokers.node(1)?.start_again()?;
        let coordinators = Coordinators::new(brokers.bootstrap());
        let replayed = fetch_all(&coordinators, rounds).await?;
        println!("after a {}: ready in {start:.2?}, all groups answer {replayed:.2?} later", how(kill));
        if committed >= COMMITS_JUDGED && !cfg!(debug_assertions) {
            ensure!(replayed <= REPLAY_MAX, "reading the state took {replayed:?}, more than {REPLAY_MAX:?}");
        }
    }
    brokers.check_no_errors(&[])
}

const fn how(kill: bool) -> &'static str {
    if kill { "kill -9" } else { "stop" }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_of_commits_stays_bounded_and_is_read_soon() {
    let commits = setting("HIGHWATER_COMMITS", 160_000);
    let mut brokers = Brokers::start(Setup { count: 1, ..Setup::default() }).await.unwrap();
    run(&mut brokers, commits).await.unwrap_or_else(|error| panic!("{error:?}"));
}
