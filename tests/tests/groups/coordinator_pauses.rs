//! The broker that coordinates a group stands still until another one has taken over, and goes on: what it is asked in the
//! moment in which it wakes is not answered from what it remembers.
//!
//! Few pauses by default; `HIGHWATER_FAULTS=20` makes it longer.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::TopicId;
use highwater_protocol::messages::{CommitOffsetsRequest, FetchOffsetsRequest};
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::members::{Coordinators, commit_request};
use highwater_tests::peer::{self, reply_to};
use highwater_tests::wait;
use highwater_tests::workload::setting;

const TOPIC: &str = "read";
const INTERNAL: &str = "hw-groups";
const GROUP: &str = "readers";
const LIMIT: Duration = Duration::from_secs(30);
/// Commits that the next coordinator takes before the first one goes on.
const COMMITS: u64 = 3;

fn fetch() -> FetchOffsetsRequest {
    FetchOffsetsRequest { group: GROUP.to_owned(), ..FetchOffsetsRequest::default() }
}

async fn commit(coordinators: &Coordinators, topic: TopicId, offset: u64) -> Result<()> {
    let reply = coordinators.ask(GROUP, &commit_request(GROUP, "", 0, &[((topic, 0), offset)]), LIMIT).await;
    let reply = reply.map_err(|refused| anyhow!("a commit of {offset} is refused: {refused:?}"))?;
    ensure!(reply.results.iter().all(|result| result.error == 0), "{:?}", reply.results);
    Ok(())
}

async fn position(coordinators: &Coordinators) -> Result<u64> {
    let reply = coordinators.ask(GROUP, &fetch(), LIMIT).await;
    let reply = reply.map_err(|refused| anyhow!("positions are refused: {refused:?}"))?;
    Ok(reply.offsets.first().and_then(|position| position.offset).unwrap_or(0))
}

/// What a coordinator that has just woken says.
#[derive(Debug, Default)]
struct Answers {
    refused: u64,
    up_to_date: u64,
}

async fn pause_once(
    brokers: &mut Brokers,
    coordinators: &Coordinators,
    topic: TopicId,
    from: u64,
    answers: &mut Answers,
) -> Result<u64> {
    brokers.in_sync(INTERNAL).await?;
    let address = coordinators.find(GROUP).await.map_err(|refused| anyhow!("{refused:?}"))?;
    let mut nodes = brokers.nodes().into_iter();
    let is_it = |node: &u32| brokers.address(*node).is_ok_and(|known| known.to_string() == address);
    let sleeper = nodes.find(is_it).with_context(|| format!("no broker listens on {address}"))?;
    let (mut writer, mut reader, _) = peer::connect(address.parse()?, "sleeper").await?;
    brokers.node(sleeper)?.pause()?;
    for offset in from + 1..=from + COMMITS {
        commit(coordinators, topic, offset)
            .await
            .with_context(|| format!("broker {sleeper} stands still"))?;
    }
    let acknowledged = from + COMMITS;
    // Both are there when it wakes, before anything that tells it of the others.
    let asked = writer.request(&fetch(), &[]).await?;
    let late = commit_request(GROUP, "", 0, &[((topic, 0), acknowledged + 1)]);
    let told = writer.request(&late, &[]).await?;
    brokers.node(sleeper)?.resume()?;
    let mut committed = acknowledged;
    for _answer in [asked, told] {
        let frame = wait::within("the broker that has woken answers", LIMIT, reader.next()).await??;
        // It may have given the connection up.
        let Some(frame) = frame else { break };
        if frame.header.correlation_id.get() == asked {
            match reply_to::<FetchOffsetsRequest>(&frame) {
                Ok(reply) => {
                    let at = reply.offsets.first().and_then(|position| position.offset).unwrap_or(0);
                    ensure!(
                        at >= acknowledged,
                        "{at} is told, and {acknowledged} was acknowledged elsewhere"
                    );
                    answers.up_to_date += 1;
                }
                Err(_) => answers.refused += 1,
            }
        } else if let Ok(reply) = reply_to::<CommitOffsetsRequest>(&frame)
            && reply.results.iter().all(|result| result.error == ErrorCode::None.code())
        {
            committed = acknowledged + 1;
        }
    }
    let at = position(coordinators).await?;
    ensure!(at >= committed, "the group is at {at}, and {committed} was acknowledged");
    Ok(at)
}

async fn run(brokers: &mut Brokers, pauses: u64) -> Result<()> {
    brokers.create_topic(TOPIC, 1).await?;
    let described = brokers.client().await?.admin().describe_topics(&[TOPIC]).await?;
    let topic = described[0].topic_id;
    let coordinators = Coordinators::new(brokers.bootstrap());
    let mut answers = Answers::default();
    let mut at = 1;
    commit(&coordinators, topic, at).await?;
    for pause in 1..=pauses {
        let paused = pause_once(brokers, &coordinators, topic, at, &mut answers).await;
        at = paused.with_context(|| format!("pause {pause}"))?;
    }
    println!("{pauses} pauses of the coordinator's broker, the group is at {at}; when it woke: {answers:?}");
    brokers.check_no_errors(&[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_was_overtaken_does_not_answer_from_memory() {
    let pauses = setting("HIGHWATER_FAULTS", 2);
    let mut brokers = Brokers::start(Setup::default()).await.unwrap();
    run(&mut brokers, pauses).await.unwrap_or_else(|error| panic!("{error:?}"));
}
