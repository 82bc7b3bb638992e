//! The topic of a bench: made when asked for, and asked about what it promises.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Context;
use highwater_client::{Client, ErrorKind, ListedOffset, NewTopic, Offset, PartitionId, StartAt};

use crate::args::BenchTopicArgs;
use crate::topic::setting;

/// What the broker says about a topic.
#[derive(Debug, Clone)]
pub(crate) struct TopicFacts {
    pub(crate) name: String,
    pub(crate) partitions: u32,
    pub(crate) replication: u32,
    /// What holds now, which follows the setting after a change.
    pub(crate) durability: String,
}

/// Makes the topic if asked to, and asks the broker about it.
pub(crate) async fn prepare(client: &Client, args: &BenchTopicArgs) -> anyhow::Result<TopicFacts> {
    if args.create {
        let topic = NewTopic::new(&args.topic)
            .partitions(args.partitions)
            .replication(args.replication.unwrap_or(0))
            .config("durability", &args.durability);
        match client.admin().create_topic(topic).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::TopicExists => {
                let facts = ask(client, &args.topic).await?;
                anyhow::ensure!(
                    facts.partitions == args.partitions
                        && args.replication.is_none_or(|replication| facts.replication == replication)
                        && same_durability(&facts.durability, &args.durability),
                    "topic {} exists with {} partitions, replication {} and durability {}; leave out --create to use \
                     it, or delete it",
                    facts.name,
                    facts.partitions,
                    facts.replication,
                    facts.durability,
                );
            }
            Err(error) => return Err(error).with_context(|| format!("create topic {}", args.topic)),
        }
    }
    ask(client, &args.topic).await
}

/// Asks the broker about a topic.
pub(crate) async fn ask(client: &Client, name: &str) -> anyhow::Result<TopicFacts> {
    let described = match client.admin().describe_topics(&[name]).await {
        Err(error) if error.kind() == ErrorKind::UnknownTopic => {
            anyhow::bail!("there is no topic {name}; --create makes it, or: highwater topic create {name}")
        }
        other => other.with_context(|| format!("describe topic {name}"))?,
    };
    let topic =
        described.into_iter().next().with_context(|| format!("the broker did not describe topic {name}"))?;
    let mut effective: Vec<&str> = topic
        .partitions
        .iter()
        .filter(|partition| partition.error.is_none() && !partition.durability.is_empty())
        .map(|partition| partition.durability.as_str())
        .collect();
    effective.sort_unstable();
    effective.dedup();
    let durability = match effective.as_slice() {
        [] => setting(&topic, "durability").unwrap_or("unknown").to_owned(),
        several => several.join(" and "),
    };
    Ok(TopicFacts {
        name: topic.name.clone(),
        partitions: topic.partition_count,
        replication: topic.replication,
        durability,
    })
}

/// Records in all partitions of a topic that was not compacted.
pub(crate) async fn records_there(client: &Client, topic: &str) -> anyhow::Result<u64> {
    Ok(offsets_in(&ranges(client, topic).await?))
}

/// A partition, and from where to where it can be read.
pub(crate) type Readable = (PartitionId, Range<Offset>);

/// How many offsets there are in all.
pub(crate) fn offsets_in(ranges: &[Readable]) -> u64 {
    ranges.iter().map(|(_, range)| range.end.get() - range.start.get()).sum()
}

/// From where to where the partitions of a topic can be read, in order.
pub(crate) async fn ranges(client: &Client, topic: &str) -> anyhow::Result<Vec<Readable>> {
    let admin = client.admin();
    let starts = admin.list_offsets(topic, &[], StartAt::Earliest).await?;
    let ends = admin.list_offsets(topic, &[], StartAt::Latest).await?;
    let starts: BTreeMap<PartitionId, Offset> =
        starts.into_iter().map(|listed| (listed.partition, listed.offset)).collect();
    let range = |listed: &ListedOffset| {
        let start = starts.get(&listed.partition).copied().unwrap_or(Offset::ZERO);
        (listed.partition, start..listed.offset.max(start))
    };
    Ok(ends.iter().map(range).collect())
}

fn same_durability(one: &str, other: &str) -> bool {
    let parse = |text: &str| text.parse::<highwater_broker_core::durability::Durability>().ok();
    parse(one).is_some() && parse(one) == parse(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durability_is_compared_by_meaning() {
        assert!(same_durability("interval(1s)", "interval(1000ms)"));
        assert!(!same_durability("os", "fsync"));
        assert!(!same_durability("unknown", "unknown"));
    }
}
