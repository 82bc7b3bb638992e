//! A topic that one broker has created is there for all: no broker says that it does not exist because it has not heard of
//! it yet.
//!
//! `HIGHWATER_TOPICS=500` makes it longer.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwater_client::NewTopic;
use highwater_protocol::api::Request;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::{DescribeTopicsRequest, MetadataRequest};
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::peer::{self, PeerReader, PeerWriter};
use highwater_tests::wait;
use highwater_tests::workload::setting;

const LIMIT: Duration = Duration::from_secs(10);

/// A connection to one broker, which nobody replaces by one to another.
struct Asker {
    node: u32,
    writer: PeerWriter,
    reader: PeerReader,
}

impl Asker {
    async fn new(node: u32, address: SocketAddr) -> Result<Self> {
        let (writer, reader, _) = peer::connect(address, "asker").await?;
        Ok(Self { node, writer, reader })
    }

    async fn ask<R: Request>(&mut self, request: &R) -> Result<R::Response> {
        self.writer.request(request, &[]).await?;
        let frame = wait::within("a broker answers", LIMIT, self.reader.next()).await??;
        peer::reply_to::<R>(&frame.context("the connection ended")?)
    }

    /// What this broker says of a topic, asked in both ways.
    async fn told(&mut self, topic: &str) -> Result<[ErrorCode; 2]> {
        let names = vec![topic.to_owned()];
        let routed =
            self.ask(&MetadataRequest { names: names.clone(), ..MetadataRequest::default() }).await?;
        let described = self.ask(&DescribeTopicsRequest { names, summary: true }).await?;
        let routed = routed.topics.first().context("an answer")?.error;
        let described = described.topics.first().context("an answer")?.error;
        Ok([routed, described].map(ErrorCode::from_code))
    }
}

async fn created_topics_are_known(brokers: &Brokers, topics: u64) -> Result<()> {
    let admin = brokers.client().await?.admin();
    let mut askers = Vec::new();
    for node in brokers.nodes() {
        askers.push(Asker::new(node, brokers.address(node)?).await?);
    }
    for number in 1..=topics {
        let topic = format!("topic-{number}");
        admin.create_topic(NewTopic::new(&topic)).await?;
        for asker in &mut askers {
            let told = asker.told(&topic).await?;
            ensure!(told == [ErrorCode::None; 2], "broker {} says of {topic}: {told:?}", asker.node);
        }
    }
    for asker in &mut askers {
        let told = asker.told("never-created").await?;
        ensure!(told == [ErrorCode::UnknownTopic; 2], "broker {} says {told:?}", asker.node);
    }
    Ok(())
}

/// Without a majority nobody knows whether another broker has created it.
async fn nobody_is_sure_alone(brokers: &mut Brokers) -> Result<()> {
    let controller = brokers.formed().await?;
    let alone = brokers.nodes().into_iter().find(|node| *node != controller).context("a follower")?;
    for node in brokers.nodes().into_iter().filter(|node| *node != alone) {
        brokers.node(node)?.kill9()?;
    }
    let mut asker = Asker::new(alone, brokers.address(alone)?).await?;
    ensure!(asker.told("topic-1").await? == [ErrorCode::None; 2], "what is known is told");
    let told = asker.told("never-created").await?;
    ensure!(told == [ErrorCode::NoController; 2], "{told:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_broker_created_no_other_calls_unknown() {
    let mut brokers = Brokers::start(Setup::default()).await.unwrap();
    created_topics_are_known(&brokers, setting("HIGHWATER_TOPICS", 40)).await.unwrap();
    nobody_is_sure_alone(&mut brokers).await.unwrap();
}
