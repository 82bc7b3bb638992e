//! A coordinator that assigns partitions.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use highwater_broker_core::group::config::GroupConfig;
use highwater_broker_core::group::topics::{Topic, Topics};
use highwater_broker_core::group::{Decision, Event, GroupShard, Now, Reply, Request};
use highwater_broker_core::time::Mono;
use highwater_protocol::ids::TopicId;
use highwater_protocol::messages::{GroupHeartbeatRequest, GroupSubscription};

use super::{Each, Repeat};

/// Members after the join that is counted.
const MEMBERS: u32 = 12;
const TOPICS: u32 = 10;
const PARTITIONS_EACH: u32 = 100;

/// Between two joins: no assignment waits for others to come.
const LATER: Duration = Duration::from_secs(60);

fn name(topic: u32) -> String {
    format!("topic-{topic}")
}

/// Member `number` joins and wants everything.
fn join_of(number: u32) -> Request {
    let subscription =
        GroupSubscription { topics: (0..TOPICS).map(name).collect(), ..GroupSubscription::default() };
    let request = GroupHeartbeatRequest {
        group: "group".to_owned(),
        member_id: format!("member-{number:02}"),
        client: "bench".to_owned(),
        session_timeout_ms: 1_800_000,
        subscription: Some(subscription),
        ..GroupHeartbeatRequest::default()
    };
    Request::Heartbeat { request: Box::new(request), host: Arc::from("127.0.0.1") }
}

/// How many members get another target by a decision.
fn changed(decision: &Decision) -> Result<usize> {
    let Reply::Heartbeat(_) = decision.reply.as_ref().map_err(|refusal| anyhow!("{refusal}"))? else {
        bail!("a join was answered with something else");
    };
    let assigned = decision.events.iter().find_map(|event| match event {
        Event::Assigned { members, .. } => Some(*members),
        _ => None,
    });
    assigned.context("a join assigned nothing")
}

pub(super) fn join() -> Result<Box<dyn Repeat>> {
    let mut topics = Topics::default();
    for number in 0..TOPICS {
        topics.insert(Topic {
            id: TopicId(u128::from(number) + 1),
            name: Arc::from(name(number)),
            partitions: PARTITIONS_EACH,
            racks: Vec::new(),
            internal: false,
        });
    }
    let mut shard = GroupShard::new(GroupConfig::default(), Arc::new(topics));
    let mut now = Now { mono: Mono(1), ..Now::default() };
    shard.start(now.mono);
    for number in 1..MEMBERS {
        now.mono = now.mono.after(LATER);
        let decision = shard.handle(now, &join_of(number));
        changed(&decision)?;
        shard.accept(now.mono, &decision);
    }
    now.mono = now.mono.after(LATER);
    let last = join_of(MEMBERS);
    // Deciding changes nothing, so that it can be asked again and again.
    Ok(Box::new(Each(move || {
        let decision = shard.handle(now, &last);
        // Everybody gives something to the new one, and nobody has more than their share.
        ensure!(changed(&decision)? == MEMBERS as usize, "not every member has another target");
        Ok(decision)
    })))
}
