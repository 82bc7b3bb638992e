//! What the quickstart has found out, for people and for programs.

use std::time::Duration;

use serde_json::{Value, json};

use super::flow::Flow;
use super::ledger::Verified;
use super::trio::BROKERS;
use crate::connect::stage_name;
use crate::output;

/// What became of the broker that was killed and of the partitions that it led.
#[derive(Debug, Clone)]
pub(super) struct Killed {
    pub(super) node_id: u32,
    pub(super) was_controller: bool,
    /// Partitions that it led.
    pub(super) led: Vec<u32>,
    /// Who leads the first of them now.
    pub(super) next_leader: u32,
    /// From the kill until a record that was sent after it was acknowledged in each of them; absent if none was sent.
    pub(super) fail_over: Option<Duration>,
    /// From its start until it was ready.
    pub(super) ready_after: Duration,
    /// From its start until it was in sync again in every partition.
    pub(super) in_sync_after: Duration,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) verified: Verified,
    pub(super) killed: Killed,
    /// Batches whose copies were compared.
    pub(super) batches_equal: u64,
    pub(super) seconds: f64,
}

/// For programs.
pub(super) fn document(flow: &Flow, facts: &Facts) -> Value {
    let counts = flow.counts.borrow();
    let killed = &facts.killed;
    json!({
        "verified": true,
        "topic": flow.topic,
        "brokers": BROKERS,
        "replication": BROKERS,
        "sent": counts.sent,
        "acknowledged": facts.verified.acknowledged,
        "consumed": counts.consumed,
        "unknown": facts.verified.unknown_there + facts.verified.unknown_not_there,
        "failed": counts.refused,
        "too_long": counts.too_long,
        "stage": counts.durability.map(stage_name),
        "kills": 1,
        "killed": killed.node_id,
        "killed_was_controller": killed.was_controller,
        "killed_led": killed.led,
        "next_leader": killed.next_leader,
        "fail_over_ms": killed.fail_over.map(milliseconds),
        "ready_again_ms": milliseconds(killed.ready_after),
        "in_sync_again_ms": milliseconds(killed.in_sync_after),
        "batches_equal": facts.batches_equal,
        "acknowledged_us": counts.acknowledging.json(),
        "end_to_end_us": counts.end_to_end.json(),
        "seconds": facts.seconds,
    })
}

/// For people, a line each.
pub(super) fn lines(flow: &Flow, facts: &Facts) -> Vec<String> {
    let counts = flow.counts.borrow();
    let mut lines = vec![
        format!(
            "7  Verified: all {} acknowledged records came back exactly once, in order, byte for byte.",
            output::count(facts.verified.acknowledged)
        ),
        format!(
            "   Sent {}, acknowledged {} ({} on every in-sync replica), consumed {}; none of unknown outcome.",
            output::count(counts.sent),
            output::count(facts.verified.acknowledged),
            counts.durability.map_or("no stage", stage_name),
            output::count(counts.consumed),
        ),
        format!(
            "   The {BROKERS} replicas of each partition are the same, by checksum over {}.",
            output::plural(facts.batches_equal, "batch", "batches")
        ),
    ];
    if counts.too_long > 0 {
        let left_out = output::plural(counts.too_long, "line was", "lines were");
        lines.push(format!("   {left_out} left out: too long for a record."));
    }
    lines.push(format!("   Until acknowledged: {}", counts.acknowledging.text()));
    lines.push(format!("   Until consumed:     {}", counts.end_to_end.text()));
    lines
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
