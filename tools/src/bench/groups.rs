//! `bench groups`: what consumer groups deliver at a steady rate, and what it costs when members join and leave.

use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Client, ErrorKind, NewTopic};
use serde_json::{Map, Value, json};
use tokio::task::LocalSet;

use super::group_board::Phase;
use super::group_run::{self, Mark, Ran};
use super::http::Metrics;
use super::tabular::{Column, Shown, Tabular, column, publish};
use super::topic::{self, TopicFacts};
use crate::args::{BenchGroupsArgs, Global};
use crate::interrupt;
use crate::output::{self, Answer};

/// How long the deletion of groups may take whose members have just left.
const DELETE_WITHIN: Duration = Duration::from_secs(20);

/// How often something is looked at.
const LOOK: Duration = Duration::from_millis(5);

const COLUMNS: &[Column] = &[
    column("step", "STEP", Shown::Text),
    column("settled_us_median", "SETTLED", Shown::Microseconds),
    column("settled_us_max", "LAST", Shown::Microseconds),
    column("moved", "MOVED", Shown::Count),
    column("delivered", "DELIVERED", Shown::Count),
    column("records_per_second", "A SECOND", Shown::Count),
    column("p50_us", "P50", Shown::Microseconds),
    column("p99_us", "P99", Shown::Microseconds),
    column("gap_us_stayed", "GAP, STAYED", Shown::Microseconds),
    column("gap_us_moved", "GAP, MOVED", Shown::Microseconds),
    column("commits", "COMMITS", Shown::Count),
    column("commits_per_second", "COMMITS/S", Shown::Number),
    column("commit_p99_us", "COMMIT P99", Shown::Microseconds),
    column("heartbeats_per_second", "HEARTBEATS/S", Shown::Number),
];

/// Runs the bench.
pub(crate) async fn run(global: &Global, client: &Client, args: BenchGroupsArgs) -> anyhow::Result<Answer> {
    anyhow::ensure!(
        args.partitions > args.members,
        "{} partitions are too few for {} members and one more in each group: more --partitions, or fewer --members",
        args.partitions,
        args.members
    );
    if let Some(address) = &args.metrics {
        Metrics::of(address).await?;
    }
    let facts = create(client, &args).await?;
    let interrupted = interrupt::watch()?;
    let bench = Bench { client, args: &args, facts: &facts };
    let local = LocalSet::new();
    let measured = local
        .run_until(async {
            tokio::select! {
                measured = group_run::run(global, client, &args) => measured,
                () = interrupted.notified() => Err(anyhow::anyhow!("interrupted")),
            }
        })
        .await;
    // Members that are left over give up in it.
    drop(local);
    let deleted = bench.remove(measured.is_ok()).await;
    let measured = measured?;
    deleted?;
    let Some(ran) = measured else { return Ok(Answer::No) };
    let (table, duplicates) = bench.table(ran);
    publish(global, &args.report, &table)?;
    if duplicates > 0 {
        output::note(format!(
            "{} more than once, though every member left in order",
            output::plural(duplicates, "record came", "records came")
        ));
        return Ok(Answer::No);
    }
    Ok(Answer::Yes)
}

async fn create(client: &Client, args: &BenchGroupsArgs) -> anyhow::Result<TopicFacts> {
    let topic = NewTopic::new(&args.topic)
        .partitions(args.partitions)
        .replication(args.replication.unwrap_or(0))
        .config("durability", &args.durability);
    match client.admin().create_topic(topic).await {
        Ok(_) => topic::ask(client, &args.topic).await,
        Err(error) if error.kind() == ErrorKind::TopicExists => anyhow::bail!(
            "topic {} exists: this bench deletes what it made, so delete it yourself or choose another --topic",
            args.topic
        ),
        Err(error) => Err(error).with_context(|| format!("create topic {}", args.topic)),
    }
}

struct Bench<'a> {
    client: &'a Client,
    args: &'a BenchGroupsArgs,
    facts: &'a TopicFacts,
}

impl Bench<'_> {
    /// The report, and how many records came more than once.
    fn table(&self, ran: Ran) -> (Tabular, u64) {
        let args = self.args;
        let board = ran.members.board.borrow();
        let duplicates = board.duplicates();
        let even = (1e6 * f64::from(args.partitions) / args.rate as f64).round() as u64;
        let lost: u64 = board.phases().iter().map(|phase| phase.lost).sum();
        let mut more = self.settings();
        more.insert("records".to_owned(), json!(ran.records));
        more.insert("duplicates".to_owned(), json!(duplicates));
        more.insert("even_gap_us".to_owned(), json!(even));
        more.insert("lost_partitions".to_owned(), json!(lost));
        more.insert("groups_that_gave_nothing".to_owned(), json!(ran.without));
        let mut lines = Vec::new();
        if duplicates == 0 {
            let records = output::plural(ran.records, "record", "records");
            lines.push(format!("every group was given each of {records} once, in order"));
        }
        lines.push(format!(
            "gaps are between two records of a partition, which come every {} on average",
            output::microseconds(even)
        ));
        if ran.without > 0 {
            lines.push(format!(
                "{} of {} groups gave the new member nothing: the assignor moves no more than it has to, and nobody had more \
                 than an even share, rounded up",
                ran.without, args.groups
            ));
        }
        let rows = board.phases().iter().enumerate();
        let rows = rows.map(|(index, phase)| row(phase, index, &ran.marks)).collect();
        let table = Tabular {
            bench: "groups",
            promises: String::new(),
            more,
            columns: COLUMNS,
            rows,
            lines,
            effort: Some(ran.effort),
        };
        (table, duplicates)
    }

    fn settings(&self) -> Map<String, Value> {
        let args = self.args;
        let mut more = Map::new();
        let mut insert = |name: &str, value: Value| more.insert(name.to_owned(), value);
        insert("topic", json!(args.topic));
        insert("groups", json!(args.groups));
        insert("members", json!(args.members));
        insert("partitions", json!(self.facts.partitions));
        insert("replication", json!(self.facts.replication));
        insert("durability", json!(self.facts.durability));
        insert("rate", json!(args.rate));
        insert("size", json!(args.size.to_string()));
        insert("duration_seconds", json!(output::seconds(args.duration)));
        insert("commit_every_seconds", json!(output::seconds(args.commit_every)));
        insert("session_timeout_seconds", json!(output::seconds(args.session_timeout)));
        insert("in_flight_bytes", json!(args.in_flight));
        more
    }

    /// Removes the topic and the groups. After a failure members may still be there, so groups may stay.
    async fn remove(&self, members_left: bool) -> anyhow::Result<()> {
        let admin = self.client.admin();
        let deleted = admin.delete_topic(&self.args.topic).await;
        let deadline = Instant::now() + if members_left { DELETE_WITHIN } else { Duration::ZERO };
        for group in 0..self.args.groups {
            let name = format!("{}-{group}", self.args.topic);
            loop {
                match admin.delete_group(&name).await {
                    Ok(()) => break,
                    Err(error) if error.kind() == ErrorKind::UnknownGroup => break,
                    Err(error) if error.kind() == ErrorKind::GroupNotEmpty && Instant::now() < deadline => {
                        tokio::time::sleep(LOOK).await;
                    }
                    Err(error) if members_left => {
                        return Err(error).with_context(|| format!("delete group {name}"));
                    }
                    Err(error) => {
                        output::note(format!("group {name} stays: {error}"));
                        break;
                    }
                }
            }
        }
        deleted.with_context(|| format!("delete topic {}", self.args.topic))
    }
}

/// The row of a phase. Marks are where phases after the first begin, and where the last one ends.
fn row(phase: &Phase, index: usize, marks: &[Mark]) -> Vec<Value> {
    let has_flow = index > 0;
    let seconds = phase.length.as_secs_f64().max(1e-9);
    let flow = |value: Value| if has_flow { value } else { Value::Null };
    let settled = phase.settled_us();
    let gap = |gap: Duration| {
        if gap.is_zero() { Value::Null } else { json!(u64::try_from(gap.as_micros()).unwrap_or(u64::MAX)) }
    };
    let heartbeats = index.checked_sub(1).and_then(|mark| {
        let (since, until) = (marks.get(mark)?, marks.get(mark + 1)?);
        let (before, after) = (since.metrics.as_ref()?, until.metrics.as_ref()?);
        let grown = before.grown(after, "highwater_requests_total", "api=\"group_heartbeat\"")?;
        Some(grown as f64 / (until.at - since.at).as_secs_f64().max(1e-9))
    });
    vec![
        json!(phase.name),
        json!(settled.map(|settled| settled.median as u64)),
        json!(settled.map(|settled| settled.most as u64)),
        json!(phase.moved),
        flow(json!(phase.delivered)),
        flow(json!(phase.delivered as f64 / seconds)),
        flow(json!(phase.latencies.at(0.5))),
        flow(json!(phase.latencies.at(0.99))),
        gap(phase.gap_stayed),
        gap(phase.gap_moved),
        flow(json!(phase.commits.count())),
        flow(json!(phase.commits.count() as f64 / seconds)),
        flow(json!(phase.commits.at(0.99))),
        json!(heartbeats),
    ]
}
