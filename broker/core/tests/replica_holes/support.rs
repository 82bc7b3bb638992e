//! A replica in the states that the holes begin from.

use highwater_broker_core::durability::Durability;
use highwater_broker_core::log::manifest::EpochStart;
use highwater_broker_core::replica::{
    Assignment, Condition, Ends, Input, Opened, Output, Replica, SubscribeCheck, Subscriber,
};
use highwater_broker_core::time::Mono;
use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, NodeId, Offset};

pub(crate) const ME: NodeId = NodeId(1);
pub(crate) const TWO: NodeId = NodeId(2);
pub(crate) const THREE: NodeId = NodeId(3);
pub(crate) const FSYNC: Durability = Durability::Fsync;
pub(crate) const OS: Durability = Durability::Os;

/// Every broker is registered under ten times its id.
pub(crate) fn registered(node: NodeId) -> BrokerEpoch {
    BrokerEpoch(u64::from(node.get()) * 10)
}

pub(crate) fn epochs(starts: &[(u32, u64)]) -> Vec<EpochStart> {
    let of = |(epoch, start): &(u32, u64)| EpochStart { epoch: LeaderEpoch(*epoch), start: Offset(*start) };
    starts.iter().map(of).collect()
}

/// The replica of a log with everything flushed.
pub(crate) fn replica(log_end: u64, high_watermark: u64, starts: &[(u32, u64)]) -> Replica {
    Replica::open(Opened {
        node: ME,
        log_start: Offset(0),
        log_end: Offset(log_end),
        flushed_end: Offset(log_end),
        high_watermark: Offset(high_watermark),
        log_generation: 1,
        append_time: 0,
        epochs: epochs(starts),
        durability_wanted: FSYNC,
        durability_effective: FSYNC,
    })
}

/// Three replicas, two of which have to be in sync.
pub(crate) fn assignment(leader: NodeId, epoch: u32, in_sync: &[NodeId]) -> Assignment {
    Assignment {
        leader: Some(leader),
        version: u64::from(epoch) * 10,
        replicas: vec![ME, TWO, THREE],
        in_sync: in_sync.iter().map(|node| (*node, registered(*node))).collect(),
        min_in_sync: 2,
        ..Assignment::alone(leader, registered(leader), LeaderEpoch(epoch), FSYNC, FSYNC)
    }
}

pub(crate) fn step_at(replica: &mut Replica, now: Mono, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    replica.step(now, input, &mut out);
    out
}

pub(crate) fn step(replica: &mut Replica, input: Input) -> Vec<Output> {
    step_at(replica, Mono(0), input)
}

pub(crate) fn assign(replica: &mut Replica, assignment: Assignment) -> Vec<Output> {
    step(replica, Input::Assigned { assignment, own_epoch: registered(ME) })
}

/// A leader in epoch 5 whose log ends at 10.
pub(crate) fn leader(in_sync: &[NodeId]) -> Replica {
    let mut leader = replica(10, 6, &[(1, 0), (4, 8)]);
    let led = assign(&mut leader, assignment(ME, 5, in_sync));
    assert_eq!(led[0], Output::StartLeading { epoch: LeaderEpoch(5) });
    leader
}

/// A follower of broker 2 in epoch 5 whose log ends at 10.
pub(crate) fn follower(high_watermark: u64) -> (Replica, Vec<Output>) {
    let mut follower = replica(10, high_watermark, &[(1, 0), (4, 8)]);
    let out = assign(&mut follower, assignment(TWO, 5, &[ME, TWO, THREE]));
    (follower, out)
}

pub(crate) fn opened(session: u64, node: NodeId, log_end: u64) -> Input {
    Input::SessionOpened { session, node, broker_epoch: registered(node), log_end: Offset(log_end) }
}

pub(crate) fn ends(log_end: u64, flushed_end: u64) -> Ends {
    Ends { log_end: Offset(log_end), flushed_end: Offset(flushed_end) }
}

pub(crate) fn acked(session: u64, node: NodeId, ends: Ends) -> Input {
    Input::Acked { session, leader_epoch: LeaderEpoch(5), broker_epoch: registered(node), ends }
}

/// The leader writes and flushes up to `end`.
pub(crate) fn write(leader: &mut Replica, end: u64) {
    step(leader, Input::Appended { log_end: Offset(end), append_time: 1 });
    step(leader, Input::Flushed { log_generation: 1, upto: Offset(end) });
}

pub(crate) fn check(node: NodeId, current: u32, offset: u64, last: Option<u32>) -> SubscribeCheck {
    SubscribeCheck {
        replica: Some(Subscriber { node, broker_epoch: registered(node) }),
        current_epoch: Some(LeaderEpoch(current)),
        offset: Offset(offset),
        last_epoch: last.map(LeaderEpoch),
    }
}

pub(crate) fn committed(replica: &Replica, end: u64) -> bool {
    replica.reached(Condition::Committed(Offset(end))).is_some()
}
