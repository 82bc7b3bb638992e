//! Each test compares outputs literally.

use std::time::Duration;

use highwater_protocol::ids::{LeaderEpoch, NodeId, Offset};
use proptest::prelude::*;

use super::*;
use crate::log::manifest::EpochStart;
use crate::time::Wall;

const NODE: NodeId = NodeId(1);
const NOW: Mono = Mono(0);

const OWN: BrokerEpoch = BrokerEpoch(9);

/// What a log says, and the partition that it is of.
struct Start {
    opened: Opened,
    assignment: Assignment,
}

fn start() -> Start {
    start_with(Durability::Fsync)
}

fn start_with(durability: Durability) -> Start {
    let opened = Opened {
        node: NODE,
        log_start: Offset(0),
        log_end: Offset(10),
        flushed_end: Offset(10),
        high_watermark: Offset(7),
        log_generation: 3,
        append_time: 1_000,
        epochs: vec![EpochStart { epoch: LeaderEpoch(4), start: Offset(0) }],
        durability_wanted: durability,
        durability_effective: durability,
    };
    let assignment = Assignment::alone(NODE, OWN, LeaderEpoch(5), durability, durability);
    Start { opened, assignment }
}

fn lead_out(start: Start, out: &mut Vec<Output>) -> Replica {
    let mut replica = Replica::open(start.opened);
    replica.step(NOW, Input::Assigned { assignment: start.assignment, own_epoch: OWN }, out);
    replica
}

fn lead(start: Start) -> Replica {
    lead_out(start, &mut Vec::new())
}

/// The same partition in a later epoch.
fn elect(replica: &mut Replica, epoch: u32) -> Vec<Output> {
    let assignment = Assignment { epoch: LeaderEpoch(epoch), ..replica.assignment().cloned().unwrap() };
    step(replica, Input::Assigned { assignment, own_epoch: OWN })
}

fn step(replica: &mut Replica, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    replica.step(NOW, input, &mut out);
    out
}

fn appended(log_end: u64) -> Input {
    Input::Appended { log_end: Offset(log_end), append_time: 2_000 }
}

fn flushed(upto: u64) -> Input {
    Input::Flushed { log_generation: 3, upto: Offset(upto) }
}

#[test]
fn a_leader_alone_commits_what_recovery_flushed() {
    let mut out = Vec::new();
    let replica = lead_out(start(), &mut out);
    let leading = Output::StartLeading { epoch: LeaderEpoch(5) };
    assert_eq!(out, [leading, Output::HighWatermark(Offset(10))]);
    assert!(replica.is_ready());
}

#[test]
fn h26_under_fsync_nothing_is_acknowledged_or_committed_before_its_flush() {
    let mut replica = lead(start());
    assert_eq!(step(&mut replica, appended(12)), []);
    assert_eq!(replica.reached(Condition::Committed(Offset(12))), None);
    assert_eq!(replica.reached(Condition::LeaderStage(Offset(12))), None);
    assert_eq!(
        step(&mut replica, flushed(12)),
        [Output::FlushedEnd(Offset(12)), Output::HighWatermark(Offset(12))]
    );
    let reached = Some(Reached { stage: Stage::Flushed, replicas_counted: 1, replicas_total: 1 });
    assert_eq!(replica.reached(Condition::Committed(Offset(12))), reached);
    assert_eq!(replica.reached(Condition::LeaderStage(Offset(12))), reached);
}

#[test]
fn under_os_what_is_written_is_committed_and_said_to_be_written() {
    let os = Durability::Os;
    let mut replica = lead(start_with(os));
    assert_eq!(step(&mut replica, appended(12)), [Output::HighWatermark(Offset(12))]);
    let written = Some(Reached { stage: Stage::Written, replicas_counted: 1, replicas_total: 1 });
    assert_eq!(replica.reached(Condition::Committed(Offset(12))), written);
    assert_eq!(step(&mut replica, flushed(12)), [Output::FlushedEnd(Offset(12))]);
    let flushed = Some(Reached { stage: Stage::Flushed, replicas_counted: 1, replicas_total: 1 });
    assert_eq!(replica.reached(Condition::Committed(Offset(12))), flushed);
}

#[test]
fn a_growth_that_is_not_wanted_any_more_is_withdrawn_also_by_a_leader_that_is_alone_again() {
    let (other, other_epoch, os) = (NodeId(2), BrokerEpoch(5), Durability::Os);
    let mut start = start_with(os);
    start.assignment.replicas = vec![NODE, other];
    let mut replica = lead(start);
    let opened =
        Input::SessionOpened { session: 1, node: other, broker_epoch: other_epoch, log_end: Offset(10) };
    let propose = |in_sync: Vec<_>| Output::Propose { version: 0, leader_epoch: LeaderEpoch(5), in_sync };
    assert_eq!(step(&mut replica, opened), [propose(vec![(NODE, OWN), (other, other_epoch)])]);
    step(&mut replica, Input::ProposalRefused { version: 0 });
    let in_sync = replica.in_sync().unwrap();
    assert!(in_sync.maximal().any(|(node, _)| node == other), "it may still be decided");
    let alone = Assignment { replicas: vec![NODE], ..replica.assignment().cloned().unwrap() };
    step(&mut replica, Input::Assigned { assignment: alone, own_epoch: OWN });
    let mut out = Vec::new();
    replica.step(NOW.after(PROPOSAL_PAUSE), Input::Tick, &mut out);
    assert_eq!(out, [propose(vec![(NODE, OWN)])], "a new version makes the growth void");
}

#[test]
fn a_flush_of_another_generation_is_dropped() {
    let mut replica = lead(start());
    step(&mut replica, appended(12));
    assert_eq!(step(&mut replica, Input::Flushed { log_generation: 2, upto: Offset(12) }), []);
    assert_eq!(step(&mut replica, Input::FlushFailed { log_generation: 2 }), []);
    assert_eq!(replica.ends().flushed_end, Offset(10));
    assert_eq!(replica.health(), Health::Online);
}

#[test]
fn flushes_that_overtake_each_other_do_no_harm() {
    let mut replica = lead(start());
    step(&mut replica, appended(14));
    step(&mut replica, flushed(14));
    assert_eq!(step(&mut replica, flushed(12)), []);
    assert_eq!(replica.high_watermark(), Offset(14));
}

#[test]
fn h18_after_a_failed_flush_nothing_is_acknowledged_until_the_log_is_verified() {
    let mut replica = lead(start());
    step(&mut replica, appended(12));
    let failed = [Output::VerifyLog, Output::Report(Problem::Suspect), Output::StopLeading];
    assert_eq!(step(&mut replica, Input::FlushFailed { log_generation: 3 }), failed);
    // A second failure and a late success change nothing.
    assert_eq!(step(&mut replica, Input::FlushFailed { log_generation: 3 }), []);
    assert_eq!(step(&mut replica, flushed(12)), []);
    assert_eq!(replica.reached(Condition::Committed(Offset(10))), None);
    assert!(!replica.is_ready());
    let verified = Input::Verified { log_generation: 4, log_end: Offset(11) };
    assert_eq!(step(&mut replica, verified), [Output::Resumed { log_end: Offset(11) }]);
    assert!(!replica.is_ready(), "in this epoch others may have copied what is gone");
    let leading = Output::StartLeading { epoch: LeaderEpoch(6) };
    let whole = Output::Report(Problem::Recovered);
    assert_eq!(elect(&mut replica, 6), [leading, Output::HighWatermark(Offset(11)), whole]);
    assert!(replica.is_ready());
    assert_eq!(step(&mut replica, flushed(12)), [], "a completion of the old generation");
}

#[test]
fn the_watermark_stands_still_without_enough_replicas_in_sync() {
    let mut start = start();
    start.assignment.min_in_sync = 2;
    start.assignment.replicas = vec![NODE, NodeId(2), NodeId(3)];
    let mut replica = lead(start);
    step(&mut replica, appended(12));
    assert_eq!(step(&mut replica, flushed(12)), [Output::FlushedEnd(Offset(12))]);
    assert_eq!(replica.high_watermark(), Offset(7));
    assert!(!replica.is_ready(), "the watermark has not reached the start of the epoch");
    // `acks=leader` says what it means: one of three.
    assert_eq!(
        replica.reached(Condition::LeaderStage(Offset(12))),
        Some(Reached { stage: Stage::Flushed, replicas_counted: 1, replicas_total: 3 })
    );
    assert_eq!(step(&mut replica, Input::MinInSync(1)), [Output::HighWatermark(Offset(12))]);
}

#[test]
fn a_weaker_durability_is_recorded_before_anything_relaxes() {
    let mut replica = lead(start());
    step(&mut replica, appended(12));
    assert_eq!(
        step(&mut replica, Input::DurabilityWanted(Durability::Os)),
        [Output::RecordDurability(Durability::Os)]
    );
    assert_eq!(replica.high_watermark(), Offset(10), "still goes by flushed ends");
    assert_eq!(
        step(&mut replica, Input::DurabilityRecorded(Durability::Os)),
        [Output::FlushBy(Durability::Os), Output::HighWatermark(Offset(12))]
    );
}

#[test]
fn a_stricter_durability_holds_at_once_and_is_recorded_when_flushes_have_reached_the_watermark() {
    let os = Durability::Os;
    let mut replica = lead(start_with(os));
    step(&mut replica, appended(12));
    assert_eq!(
        step(&mut replica, Input::DurabilityWanted(Durability::Fsync)),
        [Output::FlushBy(Durability::Fsync)]
    );
    assert_eq!(step(&mut replica, appended(14)), [], "the watermark waits for flushes from here on");
    assert_eq!(replica.high_watermark(), Offset(12), "and does not move back");
    assert_eq!(replica.durability_effective(), os);
    assert_eq!(step(&mut replica, flushed(11)), [Output::FlushedEnd(Offset(11))]);
    assert_eq!(
        step(&mut replica, flushed(13)),
        [
            Output::FlushedEnd(Offset(13)),
            Output::HighWatermark(Offset(13)),
            Output::RecordDurability(Durability::Fsync)
        ]
    );
    assert_eq!(step(&mut replica, Input::DurabilityRecorded(Durability::Fsync)), []);
    assert_eq!(replica.durability_effective(), Durability::Fsync);
}

#[test]
fn a_durability_that_changes_while_it_is_recorded_is_recorded_next() {
    let mut replica = lead(start());
    let interval = Durability::Interval(Duration::from_millis(5));
    step(&mut replica, Input::DurabilityWanted(Durability::Os));
    assert_eq!(step(&mut replica, Input::DurabilityWanted(interval)), []);
    assert_eq!(
        step(&mut replica, Input::DurabilityRecorded(Durability::Os)),
        [Output::FlushBy(interval), Output::RecordDurability(interval)]
    );
    assert_eq!(step(&mut replica, Input::DurabilityRecorded(interval)), []);
    assert_eq!(replica.durability_gate(), interval);
}

#[test]
fn stamps_follow_each_other_and_carry_what_the_leader_knows() {
    let mut replica = lead(start());
    step(&mut replica, appended(12));
    let mut stamper = replica.stamper(Wall(1_500));
    let first = stamper.next(3).unwrap();
    let second = stamper.next(1).unwrap();
    assert_eq!(first.base_offset, Offset(12));
    assert_eq!(second.base_offset, Offset(15));
    assert_eq!(stamper.end(), Offset(16));
    assert_eq!(first.leader_epoch, LeaderEpoch(5));
    assert_eq!(first.durable_end, Offset(10), "what is written but not flushed is not durable");
    assert_eq!(first.append_time, 2_000, "a clock that went back does not take the append time with it");
    assert_eq!(stamper.next(u64::MAX), None);
}

#[derive(Debug, Clone)]
enum Act {
    Append(u64),
    Flush(u64),
    StaleFlush(u64),
    Want(u8),
    Record,
    Fail,
    Verify(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1..5u64).prop_map(Act::Append),
        4 => (0..5u64).prop_map(Act::Flush),
        1 => (0..50u64).prop_map(Act::StaleFlush),
        2 => (0..3u8).prop_map(Act::Want),
        2 => Just(Act::Record),
        1 => Just(Act::Fail),
        1 => (0..3u64).prop_map(Act::Verify),
    ]
}

fn durability(number: u8) -> Durability {
    [Durability::Fsync, Durability::Interval(Duration::from_millis(10)), Durability::Os][usize::from(number)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever happens: while both wanted and effective are `fsync`, an acknowledgement is of flushed records; and the
    /// watermark moves back only where a verification found records gone.
    #[test]
    fn acknowledgements_never_promise_more_than_the_gate(acts in prop::collection::vec(act(), 1..60)) {
        let mut replica = lead(start());
        let mut recording = None;
        for act in acts {
            let before = replica.high_watermark();
            let input = match act {
                Act::Append(_) if replica.health() == Health::Suspect => continue,
                Act::Append(count) => appended(replica.ends().log_end.0 + count),
                Act::Flush(short) => {
                    let upto = Offset(replica.ends().log_end.0.saturating_sub(short));
                    Input::Flushed { log_generation: replica.log_generation(), upto }
                }
                Act::StaleFlush(upto) => {
                    Input::Flushed { log_generation: replica.log_generation() + 1, upto: Offset(upto) }
                }
                Act::Want(number) => Input::DurabilityWanted(durability(number)),
                Act::Record => match recording.take() {
                    Some(recorded) => Input::DurabilityRecorded(recorded),
                    None => continue,
                },
                Act::Fail => Input::FlushFailed { log_generation: replica.log_generation() },
                Act::Verify(_) if replica.health() == Health::Online => continue,
                Act::Verify(lost) => {
                    let ends = replica.ends();
                    Input::Verified {
                        log_generation: replica.log_generation() + 1,
                        log_end: Offset(ends.log_end.0.saturating_sub(lost)).max(ends.flushed_end),
                    }
                }
            };
            let verifying = matches!(input, Input::Verified { .. });
            let mut out = step(&mut replica, input);
            if verifying {
                let next = replica.epoch().next().0;
                out.extend(elect(&mut replica, next));
            }
            for output in out {
                if let Output::RecordDurability(durability) = output {
                    recording = Some(durability);
                }
            }
            prop_assert!(verifying || replica.high_watermark() >= before);
            let end = replica.ends().log_end;
            if let Some(reached) = replica.reached(Condition::LeaderStage(end)) {
                prop_assert_eq!(reached.stage == Stage::Flushed, replica.ends().flushed_end >= end);
                if replica.durability_gate() == Durability::Fsync {
                    prop_assert_eq!(reached.stage, Stage::Flushed);
                }
            }
            if replica.health() == Health::Suspect {
                prop_assert_eq!(replica.reached(Condition::Committed(Offset(0))), None);
            }
        }
    }
}
