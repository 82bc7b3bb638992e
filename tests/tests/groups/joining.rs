//! A group that was begun on one broker alone: when others join, its coordinator's topic gets more replicas by itself, and the
//! first broker can be lost.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use highwater_protocol::messages::FetchOffsetsRequest;
use highwater_tests::brokers::{Brokers, SETTLE_LIMIT, Setup};
use highwater_tests::members::{Coordinators, commit_request};
use highwater_tests::wait;

const TOPIC: &str = "read";
const INTERNAL: &str = "hw-groups";
const GROUP: &str = "readers";
const LIMIT: Duration = Duration::from_secs(30);

/// Waits until the internal topic has so many replicas, all of them in sync.
async fn replicated(brokers: &Brokers, replication: u32) -> Result<()> {
    let what = format!("the internal topic has {replication} replicas");
    wait::until_async(&what, SETTLE_LIMIT, || async {
        let client = brokers.client().await.ok()?;
        let topics = client.admin().describe_topics(&[INTERNAL]).await.ok()?;
        topics.first().filter(|topic| topic.replication == replication).map(drop)
    })
    .await?;
    brokers.in_sync(INTERNAL).await.map(drop)
}

async fn run(brokers: &mut Brokers) -> Result<()> {
    brokers.create_topic(TOPIC, 1).await?;
    let described = brokers.client().await?.admin().describe_topics(&[TOPIC]).await?;
    let topic = described[0].topic_id;
    let coordinators = Coordinators::new(brokers.bootstrap());
    let commit = commit_request(GROUP, "", 0, &[((topic, 0), 42)]);
    let reply = coordinators.ask(GROUP, &commit, LIMIT).await.map_err(|refused| anyhow!("{refused:?}"))?;
    ensure!(reply.results.iter().all(|result| result.error == 0), "{:?}", reply.results);
    replicated(brokers, 1).await?;
    brokers.join(2).await?;
    replicated(brokers, 2).await?;
    brokers.join(3).await?;
    replicated(brokers, 3).await?;
    wait::until_async("three brokers vote", SETTLE_LIMIT, || async {
        let status = brokers.status().await.ok()?;
        (status.voters.len() == 3).then_some(())
    })
    .await?;
    brokers.node(1)?.kill9()?;
    let coordinators = Coordinators::new(brokers.bootstrap());
    let fetch = FetchOffsetsRequest { group: GROUP.to_owned(), ..FetchOffsetsRequest::default() };
    let reply = coordinators.ask(GROUP, &fetch, LIMIT).await.map_err(|refused| anyhow!("{refused:?}"))?;
    let position = reply.offsets.first().context("the position is lost")?;
    ensure!(position.offset == Some(42), "{position:?}");
    brokers.check_no_errors(&[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_broker_of_a_group_can_be_lost_once_others_have_joined() {
    let mut brokers = Brokers::start(Setup { count: 1, ..Setup::default() }).await.unwrap();
    run(&mut brokers).await.unwrap_or_else(|error| panic!("{error:?}"));
}
