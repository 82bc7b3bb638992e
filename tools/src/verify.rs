//! `highwater verify`: are the replicas of a topic the same? While everything runs.

mod compare;
mod tables;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use highwater_client::wire::{Pool, Settings, TcpConnector};
use highwater_client::{Client, ErrorKind, PartitionMetadata, TopicId};
use highwater_protocol::messages::{ReplicaChecksumReply, ReplicaChecksumRequest};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::args::{Global, Output, VerifyArgs};
use crate::connect::connect;
use crate::output::{self, Answer, Progress, Unit};
use compare::{Finding, Replicas, Seen, compare};

/// How often a comparison is begun again because compaction has overtaken it.
const OVERTAKEN_MAX: u32 = 10;

/// How often a replica is asked again that has not heard of the high watermark yet.
const LOOK: Duration = Duration::from_millis(20);

/// Compares the replicas of a topic's partitions. Exit code 1: they are not all there and the same.
pub(crate) async fn run(global: &Global, args: VerifyArgs) -> anyhow::Result<Answer> {
    let client = connect(global).await?;
    let progress = Progress::new(None, Unit::Records);
    let Some(results) = verify(&client, global.timeout, &args.topic, &args.partition, &progress).await?
    else {
        output::note(format!(
            "there is no topic {}; highwater topic list shows those that are there",
            args.topic
        ));
        return Ok(Answer::No);
    };
    progress.finish();
    let equal = results.iter().all(Verified::is_equal);
    match global.output {
        Output::Json => {
            let partitions: Vec<Value> = results.iter().map(Verified::json).collect();
            output::json(&json!({ "topic": args.topic, "equal": equal, "partitions": partitions }))?;
        }
        Output::Table => tell(&args.topic, &results, equal)?,
    }
    Ok(if equal { Answer::Yes } else { Answer::No })
}

/// What was found out about one partition.
#[derive(Debug)]
pub(crate) struct Verified {
    partition: u32,
    /// The last record of each key was compared, because the replicas are compacted: they need not have the same batches.
    by_keys: bool,
    /// Compared, of the first replica.
    range: Range<u64>,
    seen: Seen,
    replicas: Vec<Finding>,
    /// Replicas that could not be asked, and why.
    missing: Vec<(u32, String)>,
}

impl Verified {
    /// Whether all replicas could be asked and none differs.
    pub(crate) fn is_equal(&self) -> bool {
        self.missing.is_empty() && self.replicas.iter().all(Finding::is_equal)
    }

    /// Batches that were compared, or records.
    pub(crate) const fn batches(&self) -> u64 {
        self.seen.batches
    }

    fn json(&self) -> Value {
        let ranges =
            |ranges: &[Range<u64>]| ranges.iter().map(|range| [range.start, range.end]).collect::<Vec<_>>();
        let replica = |finding: &Finding| {
            json!({
                "node_id": finding.node,
                "equal": finding.is_equal(),
                "compared": [finding.range.start, finding.range.end],
                "behind": finding.behind,
                "differs": ranges(&finding.differs),
                "corrupt": ranges(&finding.corrupt),
                "error": Value::Null,
            })
        };
        let missing =
            |(node, error): &(u32, String)| json!({ "node_id": node, "equal": false, "error": error });
        json!({
            "partition": self.partition,
            "equal": self.is_equal(),
            "start": self.range.start,
            "end": self.range.end,
            "batches": self.seen.batches,
            "by_keys": self.by_keys,
            "replicas": self.replicas.iter().map(replica).chain(self.missing.iter().map(missing)).collect::<Vec<_>>(),
        })
    }

    /// What is to be said beside the table, a line each.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let mut say = |node: u32, text: String| {
            remarks.push(format!("partition {}, broker {node}: {text}", self.partition));
        };
        for finding in &self.replicas {
            for range in &finding.differs {
                say(
                    finding.node,
                    format!("offsets {} are not what broker {} has", shown(range), self.replicas[0].node),
                );
            }
            for range in &finding.corrupt {
                say(
                    finding.node,
                    format!("offsets {} cannot be read: they are corrupt on its disk", shown(range)),
                );
            }
            if finding.behind > 0 {
                say(
                    finding.node,
                    format!("{} behind, which could not be compared yet", output::count(finding.behind)),
                );
            }
        }
        for (node, error) in &self.missing {
            say(*node, format!("not compared: {error}"));
        }
        if self.by_keys {
            remarks.push(format!(
                "partition {}: it is compacted, so the last record of each key was compared",
                self.partition
            ));
        }
        remarks
    }
}

fn shown(range: &Range<u64>) -> String {
    match range.end.saturating_sub(1) {
        last if last <= range.start => range.start.to_string(),
        last => format!("{} to {last}", range.start),
    }
}

fn tell(topic: &str, results: &[Verified], equal: bool) -> anyhow::Result<()> {
    let row = |verified: &Verified| {
        let nodes: Vec<String> = verified.replicas.iter().map(|finding| finding.node.to_string()).collect();
        vec![
            verified.partition.to_string(),
            nodes.join(","),
            format!("{} to {}", verified.range.start, verified.range.end),
            output::count(verified.seen.batches),
            if verified.is_equal() { "equal".to_owned() } else { "NOT EQUAL".to_owned() },
        ]
    };
    output::line(output::table(
        &["PARTITION", "REPLICAS", "OFFSETS", "BATCHES", "RESULT"],
        &["BATCHES"],
        results.iter().map(row).collect(),
    ))?;
    for remark in results.iter().flat_map(Verified::remarks) {
        output::line(remark)?;
    }
    output::line(if equal {
        format!("\nall replicas of topic {topic} are equal")
    } else {
        format!("\nthe replicas of topic {topic} are not all there and equal")
    })
}

/// Compares the replicas of some partitions of a topic, or of all if none is named; `None` if there is no such topic.
pub(crate) async fn verify(
    client: &Client,
    timeout: Duration,
    topic: &str,
    partitions: &[u32],
    progress: &Progress,
) -> anyhow::Result<Option<Vec<Verified>>> {
    let metadata = match client.admin().metadata(&[topic]).await {
        Err(error) if error.kind() == ErrorKind::UnknownTopic => return Ok(None),
        other => other.with_context(|| format!("ask where topic {topic} is"))?,
    };
    let Some(found) = metadata.topics.iter().find(|found| found.name == topic) else { return Ok(None) };
    let addresses =
        metadata.brokers.iter().map(|broker| (broker.node_id.get(), broker.address.clone())).collect();
    let settings = Settings { client_name: "highwater-verify".to_owned(), ..Settings::default() };
    let pool = Pool::new(Arc::new(TcpConnector), settings);
    let asked = Asked { pool, addresses, timeout, topic_id: found.topic_id, partition: 0 };
    for partition in partitions {
        let known = found.partitions.iter().any(|info| info.partition.get() == *partition);
        let count = found.partitions.len();
        anyhow::ensure!(known, "topic {topic} has no partition {partition}: it has {count}, from 0");
    }
    let mut asked = asked;
    let mut results = Vec::new();
    let wanted =
        |info: &&PartitionMetadata| partitions.is_empty() || partitions.contains(&info.partition.get());
    for info in found.partitions.iter().filter(wanted) {
        asked.partition = info.partition.get();
        results.push(verify_partition(&asked, info, progress).await?);
    }
    Ok(Some(results))
}

/// The replicas of one partition, asked over the wire.
struct Asked {
    pool: Pool,
    addresses: BTreeMap<u32, String>,
    timeout: Duration,
    topic_id: TopicId,
    partition: u32,
}

impl Replicas for Asked {
    async fn checksum(
        &self,
        node: u32,
        range: Range<u64>,
        bytes_max: u32,
    ) -> anyhow::Result<ReplicaChecksumReply> {
        self.ask(node, range, bytes_max, None).await
    }

    async fn table(
        &self,
        node: u32,
        range: Range<u64>,
        slices: u32,
        slice: u32,
    ) -> anyhow::Result<ReplicaChecksumReply> {
        self.ask(node, range, 0, Some((slices, slice))).await
    }
}

impl Asked {
    /// `keys`: how many slices of the keys, and which of them, instead of batches.
    async fn ask(
        &self,
        node: u32,
        range: Range<u64>,
        bytes_max: u32,
        keys: Option<(u32, u32)>,
    ) -> anyhow::Result<ReplicaChecksumReply> {
        let deadline = Instant::now() + self.timeout;
        let address = self
            .addresses
            .get(&node)
            .with_context(|| format!("the address of broker {node} is not known"))?;
        let request = ReplicaChecksumRequest {
            topic_id: Some(self.topic_id.into()),
            partition: self.partition,
            start: range.start,
            end: range.end,
            bytes_max,
            key_slices: keys.map_or(0, |(slices, _)| slices),
            key_slice: keys.map_or(0, |(_, slice)| slice),
        };
        let what = || format!("ask broker {node} about partition {}", self.partition);
        let connecting = tokio::time::timeout_at(deadline, self.pool.get(address));
        let connection = connecting
            .await
            .context("no connection in time")
            .and_then(|made| Ok(made?))
            .with_context(what)?;
        let (reply, _) = connection.request(&request, deadline).await.with_context(what)?;
        Ok(reply)
    }
}

async fn verify_partition(
    asked: &Asked,
    info: &PartitionMetadata,
    progress: &Progress,
) -> anyhow::Result<Verified> {
    // The leader first: the others are held against it.
    let mut nodes: Vec<u32> = info.replicas.iter().map(|node| node.get()).collect();
    let leader = info.leader.map(|node| node.get());
    nodes.sort_by_key(|node| {
        (Some(*node) != leader, !info.in_sync.iter().any(|member| member.get() == *node))
    });
    let mut missing = Vec::new();
    let mut replicas: Vec<Finding> = Vec::new();
    let mut by_keys = false;
    for node in nodes {
        let in_sync = info.in_sync.iter().any(|member| member.get() == node);
        // Whoever is in sync has everything that is committed, and hears of it in a moment.
        let upto = if in_sync { replicas.first().map_or(0, |first| first.range.end) } else { 0 };
        match look(asked, node, upto).await {
            Ok((range, compacted)) => {
                by_keys |= compacted;
                replicas.push(Finding::new(node, range, 0));
            }
            Err(error) => missing.push((node, format!("{error:#}"))),
        }
    }
    let Some((first, others)) = replicas.split_first_mut() else {
        let (range, seen) = (0..0, Seen::default());
        return Ok(Verified { partition: asked.partition, by_keys, range, seen, replicas, missing });
    };
    if by_keys {
        progress.say(format!("partition {}", asked.partition));
        let seen = compare_tables(asked, first, others).await?;
        let range = first.range.clone();
        return Ok(Verified { partition: asked.partition, by_keys, range, seen, replicas, missing });
    }
    for other in others.iter_mut() {
        other.behind = first.range.end.saturating_sub(other.range.end);
        other.range = other.range.start.max(first.range.start)..other.range.end.min(first.range.end);
    }
    let range = first.range.clone();
    let seen = compare(asked, first, others, |seen| {
        progress.set(seen.offset - range.start);
        progress.say(format!("partition {}", asked.partition));
    })
    .await?;
    Ok(Verified { partition: asked.partition, by_keys, range, seen, replicas, missing })
}

/// Compares replicas that are compacted. While they are, compaction may overtake the comparison, which is done again then.
async fn compare_tables(asked: &Asked, first: &mut Finding, others: &mut [Finding]) -> anyhow::Result<Seen> {
    for _ in 0..OVERTAKEN_MAX {
        if let Some(seen) = tables::compare(asked, first, others).await? {
            return Ok(seen);
        }
        (first.range, _) = look(asked, first.node, 0).await?;
        for other in others.iter_mut() {
            (other.range, _) = look(asked, other.node, first.range.end).await?;
        }
    }
    anyhow::bail!(
        "the replicas of partition {} are compacted faster than compared; try again",
        asked.partition
    )
}

/// What a replica has that is committed, once it knows that `upto` is, or the time for that is over; and whether it is
/// compacted.
async fn look(asked: &Asked, node: u32, upto: u64) -> anyhow::Result<(Range<u64>, bool)> {
    let deadline = Instant::now() + asked.timeout;
    loop {
        let reply = asked.checksum(node, 0..0, 1).await?;
        if reply.high_watermark >= upto || Instant::now() >= deadline {
            let range = reply.log_start..reply.high_watermark.max(reply.log_start);
            return Ok((range, reply.compacted));
        }
        tokio::time::sleep(LOOK).await;
    }
}
