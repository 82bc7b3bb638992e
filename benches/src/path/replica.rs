//! A leader's machine and what its log and its two followers tell it.

use std::time::Duration;

use anyhow::{Result, ensure};
use highwater_broker_core::durability::Durability;
use highwater_broker_core::replica::{Assignment, Condition, Ends, Input, Opened, Output, Replica};
use highwater_broker_core::time::Mono;
use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, NodeId, Offset};

use super::{Each, Repeat};

const EPOCH: LeaderEpoch = LeaderEpoch(5);
const LEADER: (NodeId, BrokerEpoch) = (NodeId(1), BrokerEpoch(9));
/// Each with its session.
const FOLLOWERS: [(NodeId, BrokerEpoch, u64); 2] =
    [(NodeId(2), BrokerEpoch(10), 1), (NodeId(3), BrokerEpoch(11), 2)];

/// Records of a batch.
const RECORDS: u64 = 64;

struct Leading {
    replica: Replica,
    now: Mono,
    end: u64,
    out: Vec<Output>,
}

impl Leading {
    fn new() -> Self {
        let replica = Replica::open(Opened {
            node: LEADER.0,
            log_start: Offset::ZERO,
            log_end: Offset::ZERO,
            flushed_end: Offset::ZERO,
            high_watermark: Offset::ZERO,
            log_generation: 1,
            append_time: 0,
            epochs: Vec::new(),
            durability_wanted: Durability::Fsync,
            durability_effective: Durability::Fsync,
        });
        let mut leading = Self { replica, now: Mono(1), end: 0, out: Vec::new() };
        let followers = FOLLOWERS.map(|(node, broker_epoch, _)| (node, broker_epoch));
        let assignment = Assignment {
            replicas: [LEADER.0].into_iter().chain(followers.map(|(node, _)| node)).collect(),
            in_sync: [LEADER].into_iter().chain(followers).collect(),
            min_in_sync: 2,
            ..Assignment::alone(LEADER.0, LEADER.1, EPOCH, Durability::Fsync, Durability::Fsync)
        };
        leading.step(Input::Assigned { assignment, own_epoch: LEADER.1 });
        for (node, broker_epoch, session) in FOLLOWERS {
            leading.step(Input::SessionOpened { session, node, broker_epoch, log_end: Offset::ZERO });
        }
        leading
    }

    fn step(&mut self, input: Input) {
        self.now = self.now.after(Duration::from_micros(10));
        self.replica.step(self.now, input, &mut self.out);
    }

    fn commit(&mut self) -> Result<()> {
        self.out.clear();
        self.end += RECORDS;
        let end = Offset(self.end);
        self.step(Input::Appended { log_end: end, append_time: self.end.cast_signed() });
        self.step(Input::Flushed { log_generation: 1, upto: end });
        for (_, broker_epoch, session) in FOLLOWERS {
            let ends = Ends { log_end: end, flushed_end: end };
            self.step(Input::Acked { session, leader_epoch: EPOCH, broker_epoch, ends });
        }
        let reached = self.replica.reached(Condition::Committed(end));
        ensure!(reached.is_some_and(|reached| reached.replicas_counted == 3), "{end} is not committed");
        ensure!(self.out.contains(&Output::HighWatermark(end)), "the watermark stays below {end}");
        Ok(())
    }
}

pub(super) fn commit() -> Result<Box<dyn Repeat>> {
    let mut leading = Leading::new();
    Ok(Box::new(Each(move || leading.commit())))
}
