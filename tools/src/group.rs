//! `highwater group …`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use highwater_client::{
    Admin, ErrorKind, GroupDetails, GroupMemberDetails, GroupPartition, GroupPosition, ListedGroup, Offset,
    PartitionId, ResetGroup, ResetOffset, ResetTo,
};
use serde_json::{Value, json};

use crate::args::{Global, GroupCommand, GroupResetArgs, Output};
use crate::connect::connect;
use crate::output::{self, Answer};
use crate::parse::From;

/// Runs one of the commands.
pub(crate) async fn run(global: &Global, command: GroupCommand) -> anyhow::Result<Answer> {
    let client = connect(global).await?;
    let admin = client.admin();
    match command {
        GroupCommand::List => list(global, &admin).await,
        GroupCommand::Describe { names } => describe(global, &admin, names).await,
        GroupCommand::Reset(args) => reset(global, &admin, args).await,
        GroupCommand::Delete { names, if_exists } => delete(global, &admin, &names, if_exists).await,
    }
}

async fn list(global: &Global, admin: &Admin) -> anyhow::Result<Answer> {
    let list = admin.list_groups().await.context("list groups")?;
    for error in &list.unavailable {
        output::note(format!("groups may be missing: {error}"));
    }
    let group = |group: &ListedGroup| {
        json!({
            "group": group.group,
            "state": group.state,
            "members": group.member_count,
            "assignor": group.assignor,
        })
    };
    match global.output {
        Output::Json => {
            let groups: Vec<Value> = list.groups.iter().map(group).collect();
            output::json(&json!({ "groups": groups, "complete": list.unavailable.is_empty() }))?;
        }
        Output::Table if list.groups.is_empty() => {
            output::line("no groups yet; one is made by: highwater consume TOPIC --group NAME")?;
        }
        Output::Table => {
            let row = |group: &ListedGroup| {
                let members = group.member_count.to_string();
                vec![group.group.clone(), group.state.clone(), members, group.assignor.clone()]
            };
            let rows = list.groups.iter().map(row).collect();
            output::line(output::table(&["GROUP", "STATE", "MEMBERS", "ASSIGNOR"], &["MEMBERS"], rows))?;
        }
    }
    Ok(if list.unavailable.is_empty() { Answer::Yes } else { Answer::No })
}

async fn describe(global: &Global, admin: &Admin, names: Vec<String>) -> anyhow::Result<Answer> {
    let names = if names.is_empty() {
        let list = admin.list_groups().await.context("list groups")?;
        list.groups.into_iter().map(|group| group.group).collect()
    } else {
        names
    };
    let mut groups = Vec::with_capacity(names.len());
    let mut answer = Answer::Yes;
    for name in names {
        match admin.describe_group(&name).await {
            Ok(described) => groups.push(described),
            Err(error) if error.kind() == ErrorKind::UnknownGroup => {
                output::note(unknown(&name));
                answer = Answer::No;
            }
            Err(error) => return Err(error).with_context(|| format!("describe group {name}")),
        }
    }
    match global.output {
        Output::Json => {
            let groups: Vec<Value> = groups.iter().map(details_json).collect();
            output::json(&json!({ "groups": groups }))?;
        }
        Output::Table => {
            for (index, group) in groups.iter().enumerate() {
                let gap = if index > 0 { "\n" } else { "" };
                output::line(format!("{gap}{}", details_text(group)))?;
            }
        }
    }
    Ok(answer)
}

async fn reset(global: &Global, admin: &Admin, args: GroupResetArgs) -> anyhow::Result<Answer> {
    let to = reset_to(&args)?;
    let partitions = args.partition.iter().map(|&partition| PartitionId(partition));
    let mut change = ResetGroup::new(&args.group, to).topics(args.topic).partitions(partitions);
    if !args.execute {
        change = change.dry_run();
    }
    let results = match admin.reset_group(change).await {
        Ok(results) => results,
        Err(error) if error.kind() == ErrorKind::UnknownGroup => {
            output::note(format!("{}; --topic says where a new one goes on", unknown(&args.group)));
            return Ok(Answer::No);
        }
        Err(error) => return Err(error).with_context(|| format!("reset group {}", args.group)),
    };
    for error in results.iter().filter_map(|result| result.error.as_ref()) {
        output::note(error.to_string());
    }
    match global.output {
        Output::Json => {
            let changes: Vec<Value> = results.iter().map(reset_json).collect();
            output::json(&json!({ "group": args.group, "executed": args.execute, "positions": changes }))?;
        }
        Output::Table => {
            let head = ["TOPIC", "PARTITION", "BEFORE", "AFTER", "NOTE"];
            let rows = results.iter().map(reset_row).collect();
            output::line(output::table(&head, &["PARTITION", "BEFORE", "AFTER"], rows))?;
            if !args.execute {
                output::line("nothing was changed: --execute does it")?;
            }
        }
    }
    let refused = results.iter().any(|result| result.error.is_some());
    Ok(if refused { Answer::No } else { Answer::Yes })
}

fn reset_to(args: &GroupResetArgs) -> anyhow::Result<ResetTo> {
    Ok(match (args.to, args.by_duration) {
        (Some(From::Earliest), _) => ResetTo::Earliest,
        (Some(From::Latest), _) => ResetTo::Latest,
        (Some(From::Offset(offset)), _) => ResetTo::Offset(Offset(offset)),
        (Some(From::Time(milliseconds)), _) => ResetTo::Time(milliseconds),
        (None, Some(ago)) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?;
            let then = now.saturating_sub(ago).as_millis();
            ResetTo::Time(i64::try_from(then).context("read the clock")?)
        }
        // One of the flags is required.
        (None, None) => ResetTo::Forget,
    })
}

async fn delete(global: &Global, admin: &Admin, names: &[String], if_exists: bool) -> anyhow::Result<Answer> {
    let mut answer = Answer::Yes;
    for name in names {
        let (deleted, refusal) = match admin.delete_group(name).await {
            Ok(()) => (true, None),
            Err(error) if error.kind() == ErrorKind::UnknownGroup && if_exists => (false, None),
            Err(error) if error.kind() == ErrorKind::UnknownGroup => (false, Some(unknown(name))),
            Err(error) if error.kind() == ErrorKind::GroupNotEmpty => (false, Some(error.to_string())),
            Err(error) => return Err(error).with_context(|| format!("delete group {name}")),
        };
        if let Some(refusal) = refusal {
            output::note(refusal);
            answer = Answer::No;
        }
        match global.output {
            Output::Json => output::json(&json!({ "group": name, "deleted": deleted }))?,
            Output::Table if deleted => output::line(format!("deleted group {name}"))?,
            Output::Table => {}
        }
    }
    Ok(answer)
}

fn unknown(group: &str) -> String {
    format!("there is no group {group}; highwater group list shows those that are there")
}

/// A number that may not be known.
fn known<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn partitions_text(partitions: &[GroupPartition]) -> String {
    let mut text = String::new();
    let mut topic: Option<&str> = None;
    for partition in partitions {
        if topic == Some(&*partition.topic) {
            text.push_str(&format!(",{}", partition.partition));
        } else {
            let gap = if text.is_empty() { "" } else { " " };
            text.push_str(&format!("{gap}{}:{}", partition.topic, partition.partition));
            topic = Some(&*partition.topic);
        }
    }
    if text.is_empty() { "-".to_owned() } else { text }
}

fn details_text(group: &GroupDetails) -> String {
    let members = output::plural(group.members.len() as u64, "member", "members");
    let lag: Option<u64> = group.positions.iter().map(|position| position.lag).sum();
    let behind =
        lag.map_or_else(String::new, |lag| format!(", {} behind", output::plural(lag, "record", "records")));
    let mut text = format!(
        "group {}: {}, {members}, generation {}, assigned by {}, coordinated by broker {}{behind}",
        group.group, group.state, group.generation, group.assignor, group.coordinator
    );
    if !group.members.is_empty() {
        let head = ["MEMBER", "INSTANCE", "CLIENT", "HOST", "STATE", "LAG", "PARTITIONS"];
        let row = |member: &GroupMemberDetails| {
            vec![
                member.member_id.clone(),
                known(member.instance_id.as_ref()),
                member.client.clone(),
                member.host.clone(),
                member.state.clone(),
                known(lag_of(group, member)),
                partitions_text(&member.assigned),
            ]
        };
        text.push_str("\n\n");
        text.push_str(&output::table(&head, &["LAG"], group.members.iter().map(row).collect()));
    }
    if !group.positions.is_empty() {
        let head =
            ["TOPIC", "PARTITION", "COMMITTED", "LOG START", "HIGH WATERMARK", "LAG", "PER MINUTE", "MEMBER"];
        let row = |position: &GroupPosition| {
            vec![
                position.partition.topic.to_string(),
                position.partition.partition.to_string(),
                known(position.committed),
                known(position.log_start),
                known(position.high_watermark),
                known(position.lag),
                known(position.offsets_per_minute),
                known(position.member_id.as_ref()),
            ]
        };
        text.push_str("\n\n");
        text.push_str(&output::table(&head, &head[1..7], group.positions.iter().map(row).collect()));
    }
    text
}

/// How far a member is behind in what it owns; `None` when that is not known of all of it.
fn lag_of(group: &GroupDetails, member: &GroupMemberDetails) -> Option<u64> {
    let own = |position: &&GroupPosition| position.member_id.as_ref() == Some(&member.member_id);
    group.positions.iter().filter(own).map(|position| position.lag).sum()
}

fn names_json(partitions: &[GroupPartition]) -> Vec<Value> {
    let name = |one: &GroupPartition| json!({ "topic": &*one.topic, "partition": one.partition.get() });
    partitions.iter().map(name).collect()
}

fn details_json(group: &GroupDetails) -> Value {
    let member = |member: &GroupMemberDetails| {
        json!({
            "member_id": member.member_id,
            "instance_id": member.instance_id,
            "rack": member.rack,
            "client": member.client,
            "host": member.host,
            "generation": member.generation,
            "state": member.state,
            "assigned": names_json(&member.assigned),
            "target": names_json(&member.target),
            "topics": member.topics,
            "pattern": member.pattern,
            "heard_ms_ago": member.heard_ms_ago,
            "session_timeout_ms": member.session_timeout_ms,
            "lag": lag_of(group, member),
        })
    };
    let position = |position: &GroupPosition| {
        json!({
            "topic": &*position.partition.topic,
            "partition": position.partition.partition.get(),
            "committed": position.committed.map(Offset::get),
            "log_start": position.log_start.map(Offset::get),
            "high_watermark": position.high_watermark.map(Offset::get),
            "lag": position.lag,
            "offsets_per_minute": position.offsets_per_minute,
            "member_id": position.member_id,
            "metadata": position.metadata,
            "committed_at": position.commit_time_ms.map(time_text),
        })
    };
    json!({
        "group": group.group,
        "state": group.state,
        "generation": group.generation,
        "assignor": group.assignor,
        "coordinator": group.coordinator.get(),
        "lag": group.positions.iter().map(|position| position.lag).sum::<Option<u64>>(),
        "members": group.members.iter().map(member).collect::<Vec<_>>(),
        "positions": group.positions.iter().map(position).collect::<Vec<_>>(),
    })
}

fn time_text(milliseconds: i64) -> String {
    let since_epoch = Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0));
    humantime::format_rfc3339_millis(UNIX_EPOCH + since_epoch).to_string()
}

fn reset_json(result: &ResetOffset) -> Value {
    json!({
        "topic": &*result.partition.topic,
        "partition": result.partition.partition.get(),
        "before": result.before.map(Offset::get),
        "after": result.after.map(Offset::get),
        "clamped_from": result.clamped_from.map(Offset::get),
        "error": result.error.as_ref().map(ToString::to_string),
    })
}

fn reset_row(result: &ResetOffset) -> Vec<String> {
    let note = match (&result.error, result.clamped_from) {
        (Some(_), _) => "refused".to_owned(),
        (None, Some(asked)) => format!("{asked} is not in the log"),
        (None, None) => String::new(),
    };
    let place = &result.partition;
    let (before, after) = (known(result.before), known(result.after));
    vec![place.topic.to_string(), place.partition.to_string(), before, after, note]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_named_by_topic() {
        let at = |topic: &str, partition| GroupPartition {
            topic: topic.into(),
            partition: PartitionId(partition),
        };
        assert_eq!(partitions_text(&[at("a", 0), at("a", 3), at("b", 1)]), "a:0,3 b:1");
        assert_eq!(partitions_text(&[]), "-");
    }

    #[test]
    fn times_of_commits() {
        assert_eq!(time_text(1500), "1970-01-01T00:00:01.500Z");
    }
}
