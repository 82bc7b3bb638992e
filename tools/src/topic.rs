//! `highwater topic …`.

use anyhow::Context;
use highwater_client::{
    AlterTopic, Client, ConfigSetting, ConfigSource, ErrorKind, NewTopic, PartitionState, ReplicaState,
    TopicDetails,
};
use serde_json::{Value, json};

use crate::args::{Global, Output, TopicAlterArgs, TopicCommand, TopicCreateArgs};
use crate::connect::connect;
use crate::output::{self, Answer};

/// Runs one of the commands.
pub(crate) async fn run(global: &Global, command: TopicCommand) -> anyhow::Result<Answer> {
    let client = connect(global).await?;
    match command {
        TopicCommand::Create(args) => create(global, &client, args).await,
        TopicCommand::List => list(global, &client).await,
        TopicCommand::Describe { names } => describe(global, &client, &names).await,
        TopicCommand::Alter(args) => alter(global, &client, args).await,
        TopicCommand::Delete { names, if_exists } => delete(global, &client, &names, if_exists).await,
    }
}

async fn create(global: &Global, client: &Client, args: TopicCreateArgs) -> anyhow::Result<Answer> {
    let mut topic = NewTopic::new(&args.name)
        .partitions(args.partitions.unwrap_or(0))
        .replication(args.replication.unwrap_or(0));
    for (name, value) in args.config {
        topic = topic.config(name, value);
    }
    let created = match client.admin().create_topic(topic).await {
        Ok(created) => created,
        Err(error) if error.kind() == ErrorKind::TopicExists => {
            let exists = format!("topic {} exists already", args.name);
            match global.output {
                Output::Json => output::json(&json!({ "topic": args.name, "created": false }))?,
                Output::Table if args.if_not_exists => output::line(exists)?,
                Output::Table => output::note(format!("{exists}; --if-not-exists takes that for an answer")),
            }
            return Ok(if args.if_not_exists { Answer::Yes } else { Answer::No });
        }
        Err(error) => return Err(error).with_context(|| format!("create topic {}", args.name)),
    };
    match global.output {
        Output::Json => output::json(&json!({
            "topic": args.name,
            "created": true,
            "topic_id": created.topic_id.map(|id| id.to_string()),
            "partitions": created.partitions,
            "replication": created.replication,
        }))?,
        Output::Table => {
            let partitions = output::plural(u64::from(created.partitions), "partition", "partitions");
            let replicas = output::plural(u64::from(created.replication), "replica", "replicas");
            output::line(format!("created topic {} with {partitions} of {replicas} each", args.name))?;
            if created.replication == 2 {
                output::line(
                    "with 2 replicas both must be in sync: nothing is committed while one of them is away; 3 go on \
                     with 2",
                )?;
            }
        }
    }
    Ok(Answer::Yes)
}

async fn list(global: &Global, client: &Client) -> anyhow::Result<Answer> {
    let topics = client.admin().list_topics().await.context("list topics")?;
    match global.output {
        Output::Json => {
            let topics: Vec<Value> = topics.iter().map(summary_json).collect();
            output::json(&json!({ "topics": topics }))?;
        }
        Output::Table if topics.is_empty() => {
            output::line("no topics yet; make one with: highwater topic create NAME")?;
        }
        Output::Table => {
            let row = |topic: &TopicDetails| {
                vec![
                    topic.name.clone(),
                    topic.partition_count.to_string(),
                    topic.replication.to_string(),
                    setting(topic, "durability").unwrap_or("-").to_owned(),
                    created_at(topic),
                ]
            };
            output::line(output::table(
                &["TOPIC", "PARTITIONS", "REPLICATION", "DURABILITY", "CREATED"],
                &["PARTITIONS", "REPLICATION"],
                topics.iter().map(row).collect(),
            ))?;
        }
    }
    Ok(Answer::Yes)
}

async fn describe(global: &Global, client: &Client, names: &[String]) -> anyhow::Result<Answer> {
    let admin = client.admin();
    let listed: Vec<String>;
    let names = if names.is_empty() {
        listed =
            admin.list_topics().await.context("list topics")?.into_iter().map(|topic| topic.name).collect();
        &listed[..]
    } else {
        names
    };
    let mut topics = Vec::with_capacity(names.len());
    let mut answer = Answer::Yes;
    for name in names {
        match admin.describe_topics(&[name]).await {
            Ok(described) => topics.extend(described),
            Err(error) if error.kind() == ErrorKind::UnknownTopic => {
                output::note(format!(
                    "there is no topic {name}; highwater topic list shows those that are there"
                ));
                answer = Answer::No;
            }
            Err(error) => return Err(error).with_context(|| format!("describe topic {name}")),
        }
    }
    match global.output {
        Output::Json => {
            let topics: Vec<Value> = topics.iter().map(details_json).collect();
            output::json(&json!({ "topics": topics }))?;
        }
        Output::Table => {
            for (index, topic) in topics.iter().enumerate() {
                let gap = if index > 0 { "\n" } else { "" };
                output::line(format!("{gap}{}", details_text(topic)))?;
            }
        }
    }
    Ok(answer)
}

async fn alter(global: &Global, client: &Client, args: TopicAlterArgs) -> anyhow::Result<Answer> {
    let name = args.name;
    let mut change = AlterTopic::new(&name).partitions(args.partitions.unwrap_or(0));
    for (setting, value) in args.config {
        change = change.set(setting, value);
    }
    for setting in args.unset {
        change = change.unset(setting);
    }
    let altered = match client.admin().alter_topic(change).await {
        Ok(altered) => altered,
        Err(error) if error.kind() == ErrorKind::UnknownTopic => {
            output::note(format!(
                "there is no topic {name}; highwater topic list shows those that are there"
            ));
            return Ok(Answer::No);
        }
        Err(error) => return Err(error).with_context(|| format!("alter topic {name}")),
    };
    match global.output {
        Output::Json => {
            output::json(&json!({ "topic": name, "altered": true, "partitions": altered.partitions }))?
        }
        Output::Table => {
            output::line(format!("altered topic {name}"))?;
            if args.partitions.is_some() {
                output::line(format!(
                    "it has {} now: keys map to other partitions than before",
                    output::plural(u64::from(altered.partitions), "partition", "partitions")
                ))?;
            }
        }
    }
    Ok(Answer::Yes)
}

async fn delete(
    global: &Global,
    client: &Client,
    names: &[String],
    if_exists: bool,
) -> anyhow::Result<Answer> {
    let mut answer = Answer::Yes;
    for name in names {
        let deleted = match client.admin().delete_topic(name).await {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::UnknownTopic => false,
            Err(error) => return Err(error).with_context(|| format!("delete topic {name}")),
        };
        if !deleted && !if_exists {
            answer = Answer::No;
        }
        match global.output {
            Output::Json => output::json(&json!({ "topic": name, "deleted": deleted }))?,
            Output::Table if deleted => output::line(format!("deleted topic {name}"))?,
            Output::Table if if_exists => output::line(format!("there is no topic {name}"))?,
            Output::Table => {
                output::note(format!("there is no topic {name}; --if-exists takes that for an answer"))
            }
        }
    }
    Ok(answer)
}

/// The value of a setting of a topic.
pub(crate) fn setting<'a>(topic: &'a TopicDetails, name: &str) -> Option<&'a str> {
    topic.config.iter().find(|setting| setting.name == name).map(|setting| setting.value.as_str())
}

fn created_at(topic: &TopicDetails) -> String {
    let since_epoch = std::time::Duration::from_micros(u64::try_from(topic.created_at_us).unwrap_or(0));
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since_epoch).to_string()
}

const fn source_name(setting: &ConfigSetting) -> &'static str {
    match setting.source {
        ConfigSource::Default => "default",
        ConfigSource::Topic => "topic",
    }
}

fn summary_json(topic: &TopicDetails) -> Value {
    let config = |setting: &ConfigSetting| {
        (setting.name.clone(), json!({ "value": setting.value, "source": source_name(setting) }))
    };
    json!({
        "topic": topic.name,
        "topic_id": topic.topic_id.to_string(),
        "partitions": topic.partition_count,
        "replication": topic.replication,
        "created_at": created_at(topic),
        "config": topic.config.iter().map(config).collect::<serde_json::Map<_, _>>(),
    })
}

fn details_json(topic: &TopicDetails) -> Value {
    let mut document = summary_json(topic);
    document["partition_states"] = topic.partitions.iter().map(partition_json).collect();
    document
}

fn partition_json(partition: &PartitionState) -> Value {
    let metadata = &partition.metadata;
    let nodes = |nodes: &[highwater_client::NodeId]| nodes.iter().map(|node| node.get()).collect::<Vec<_>>();
    let corrupt = |range: &std::ops::Range<highwater_client::Offset>| [range.start.get(), range.end.get()];
    json!({
        "partition": metadata.partition.get(),
        "leader": metadata.leader.map(|node| node.get()),
        "leader_epoch": metadata.leader_epoch.get(),
        "replicas": nodes(&metadata.replicas),
        "in_sync": nodes(&metadata.in_sync),
        "eligible": nodes(&metadata.eligible),
        "error": partition.error.as_ref().map(ToString::to_string),
        "log_start": partition.log_start.get(),
        "high_watermark": partition.high_watermark.get(),
        "flushed_end": partition.flushed_end.get(),
        "log_end": partition.log_end.get(),
        "bytes": partition.bytes,
        "segments": partition.segment_count,
        "durability": partition.durability,
        "state": partition.state,
        "corrupt": partition.corrupt.iter().map(corrupt).collect::<Vec<_>>(),
        "replica_states": partition.replicas.iter().map(|replica| replica_json(partition, replica)).collect::<Vec<_>>(),
    })
}

fn replica_json(partition: &PartitionState, replica: &ReplicaState) -> Value {
    json!({
        "node_id": replica.node_id.get(),
        "leader": partition.metadata.leader == Some(replica.node_id),
        "in_sync": replica.in_sync,
        "connected": replica.connected,
        "log_end": replica.log_end.get(),
        "flushed_end": replica.flushed_end.get(),
        "lag": lag(partition, replica),
    })
}

/// Offsets of the leader's log that a replica does not have.
fn lag(partition: &PartitionState, replica: &ReplicaState) -> u64 {
    partition.log_end.get().saturating_sub(replica.log_end.get())
}

/// How far each replica is, for people; nothing where there is one replica only.
fn replicas_text(topic: &TopicDetails) -> Option<String> {
    let mut rows = Vec::new();
    for partition in topic.partitions.iter().filter(|partition| partition.replicas.len() > 1) {
        for replica in &partition.replicas {
            let eligible = partition.metadata.eligible.contains(&replica.node_id);
            let state = match (replica.in_sync, replica.connected) {
                (true, true) => "in sync",
                (true, false) => "in sync, not connected",
                (false, _) if eligible => "eligible",
                (false, true) => "catching up",
                (false, false) => "away",
            };
            let leads = partition.metadata.leader == Some(replica.node_id);
            rows.push(vec![
                partition.metadata.partition.to_string(),
                replica.node_id.to_string(),
                if leads { "leader" } else { "follower" }.to_owned(),
                state.to_owned(),
                replica.log_end.to_string(),
                replica.flushed_end.to_string(),
                output::count(lag(partition, replica)),
            ]);
        }
    }
    let head = ["PARTITION", "NODE", "ROLE", "STATE", "LOG END", "FLUSHED END", "LAG"];
    (!rows.is_empty()).then(|| output::table(&head, &["LOG END", "FLUSHED END", "LAG"], rows))
}

const PARTITION_COLUMNS: [&str; 14] = [
    "PARTITION",
    "LEADER",
    "EPOCH",
    "REPLICAS",
    "IN SYNC",
    "ELIGIBLE",
    "LOG START",
    "HIGH WATERMARK",
    "FLUSHED END",
    "LOG END",
    "SIZE",
    "SEGMENTS",
    "DURABILITY",
    "STATE",
];

fn details_text(topic: &TopicDetails) -> String {
    let mut text = format!(
        "topic {} ({}), {}, replication {}, created {}\n\n",
        topic.name,
        topic.topic_id,
        output::plural(u64::from(topic.partition_count), "partition", "partitions"),
        topic.replication,
        created_at(topic),
    );
    let settings = topic
        .config
        .iter()
        .map(|setting| vec![setting.name.clone(), setting.value.clone(), source_name(setting).to_owned()]);
    text.push_str(&output::table(&["SETTING", "VALUE", "FROM"], &[], settings.collect()));
    text.push_str("\n\n");
    let row = |partition: &PartitionState| {
        let metadata = &partition.metadata;
        let nodes = |nodes: &[highwater_client::NodeId]| match nodes {
            [] => "-".to_owned(),
            nodes => nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        };
        vec![
            metadata.partition.to_string(),
            metadata.leader.map_or_else(|| "-".to_owned(), |node| node.to_string()),
            metadata.leader_epoch.to_string(),
            nodes(&metadata.replicas),
            nodes(&metadata.in_sync),
            nodes(&metadata.eligible),
            partition.log_start.to_string(),
            partition.high_watermark.to_string(),
            partition.flushed_end.to_string(),
            partition.log_end.to_string(),
            output::bytes(partition.bytes),
            partition.segment_count.to_string(),
            partition.durability.clone(),
            partition.error.as_ref().map_or_else(|| partition.state.clone(), ToString::to_string),
        ]
    };
    text.push_str(&output::table(
        &PARTITION_COLUMNS,
        &["LOG START", "HIGH WATERMARK", "FLUSHED END", "LOG END", "SIZE", "SEGMENTS"],
        topic.partitions.iter().map(row).collect(),
    ));
    if let Some(replicas) = replicas_text(topic) {
        text.push_str("\n\n");
        text.push_str(&replicas);
    }
    for partition in &topic.partitions {
        for range in &partition.corrupt {
            text.push_str(&format!(
                "\n\npartition {}: offsets {} to {} cannot be read, their bytes are corrupt on the disk",
                partition.metadata.partition,
                range.start,
                range.end.get().saturating_sub(1),
            ));
        }
    }
    text
}
