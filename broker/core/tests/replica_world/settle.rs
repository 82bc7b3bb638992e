//! The end of a history: everything works again, and nobody helps.

use std::time::Duration;

use highwater_broker_core::replica::Role;

use super::world::World;

/// Rounds of half a tenth of a second after which the partition has to be whole.
const ROUNDS_MAX: u32 = 600;

impl World {
    /// I7: starts what is down and lets everything arrive, until the partition is whole and takes writes.
    pub(super) fn settle(&mut self) {
        self.network.heal();
        let mut quiet = 0;
        for round in 0..ROUNDS_MAX {
            self.settle_round();
            if self.has_failed() {
                return;
            }
            if round > 3 && self.is_whole() {
                quiet += 1;
                // Whole once may be by chance; whole after another write is not.
                if quiet > 2 {
                    return;
                }
                for node in 0..self.nodes.len() {
                    self.produce(node);
                }
            }
        }
        self.oracle.wrong("I7: the partition is not served again, or not whole".to_owned());
    }

    /// Holds every log against what was acknowledged, and against each other.
    pub(super) fn check_end(&mut self) {
        for node in 0..self.nodes.len() {
            let facts = self.nodes[node].store.facts();
            let log = self.nodes[node].store.read(facts.log_start, usize::MAX);
            self.oracle.check_final(node as u32 + 1, facts.log_start, &log);
        }
    }

    fn settle_round(&mut self) {
        for node in 0..self.nodes.len() {
            self.come_up(node);
            self.come_up(node);
            self.come_up(node);
            self.show_image(node, true);
        }
        if self.controller.image().waits_for_clean_replicas() && self.random.percent(10) {
            let _refused =
                self.controller.apply(&highwater_broker_core::controller::command::Command::ElectDamaged {});
        }
        for _ in 0..12 {
            self.deliver_stream();
            self.push();
            self.deliver_ack();
            self.deliver_request();
            self.close_a_session();
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].store.request_flush();
            self.flush(node);
            self.flush(node);
        }
        self.pass(Duration::from_millis(50));
    }

    /// Whether everybody is in sync, with the same log, all of it committed.
    fn is_whole(&self) -> bool {
        let Some(partition) = self.controller.partition() else { return false };
        let topic = self.controller.image().topic(super::controller::PARTITION.topic_id);
        let wanted = topic.map(|topic| topic.config.durability);
        if partition.in_sync.len() != self.nodes.len() || wanted != Some(partition.durability_effective) {
            return false;
        }
        let Some(leader) = partition.leader else { return false };
        let end = self.nodes[(leader.get() - 1) as usize].store.facts().log_end;
        self.nodes.iter().all(|node| {
            let Some(process) = &node.process else { return false };
            let replica = &process.replica;
            let leads = replica.role() == Role::Leader;
            leads == (node.id == leader)
                && (!leads || replica.is_ready())
                && process.waiters.is_empty()
                && replica.high_watermark().get() == end
                && node.store.facts().log_end == end
        })
    }
}
