//! What has to be true of a world, at every moment and in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use highwater_broker_core::group::{Reply, Request};
use highwater_protocol::ids::TopicPartition;
use highwater_protocol::messages::GroupAction;

use super::{Answer, Asked, Fate, Question, World};
use crate::oracle::{self, Seen};

impl World {
    /// What must be true at every moment.
    pub(super) fn check(&mut self) {
        self.bench.shard.check_invariants().unwrap();
        let seen = Seen::of(self.bench.shard.records());
        let mut readers: BTreeMap<TopicPartition, &str> = BTreeMap::new();
        for client in &self.clients {
            let Some(owns) = seen.owns.get(&client.id) else { continue };
            // A zombie whose old join came late: its id is there again, what it says and commits does not count.
            if client.generation < seen.joined[&client.id] {
                continue;
            }
            for partition in client.owned.keys() {
                assert!(
                    owns.contains(partition),
                    "step {}: {} reads {partition}, and the coordinator does not know",
                    self.step,
                    client.id
                );
                if let Some(other) = readers.insert(*partition, &client.id) {
                    panic!("step {}: {other} and {} read {partition}", self.step, client.id);
                }
            }
        }
    }

    /// Nothing more goes wrong: the group comes to rest, and everything that is wanted is read by one.
    pub(crate) fn heal(&mut self) {
        self.questions.clear();
        self.echoes.clear();
        self.answers.clear();
        self.waiting.clear();
        self.waiting_commits.clear();
        self.committed = self.bench.log.len();
        for client in &mut self.clients {
            if matches!(client.fate, Fate::Paused(_)) {
                client.fate = Fate::Alive;
            }
            client.full = true;
            client.in_flight = None;
        }
        for _ in 0..100 {
            for index in 0..self.clients.len() {
                if self.clients[index].fate != Fate::Alive {
                    continue;
                }
                let told = self.clients[index].told.clone();
                self.clients[index].owned.retain(|partition, _| told.contains(partition));
                self.clients[index].in_flight = None;
                self.clients[index].full = true;
                let asked = Asked::Heartbeat(self.request(index, GroupAction::Alive));
                let number = self.number();
                self.clients[index].in_flight = Some(number);
                self.questions.push(Question { client: index, number, asked });
                self.deliver_oldest();
            }
            self.let_pass(60);
        }
        self.check();
        let seen = Seen::of(self.bench.shard.records());
        let alive = self.clients.iter().filter(|client| client.fate == Fate::Alive && client.generation > 0);
        let reads: BTreeMap<String, BTreeSet<TopicPartition>> =
            alive.map(|client| (client.id.clone(), client.owned.keys().copied().collect())).collect();
        let wanted = self.wanted(&seen);
        assert_eq!(
            reads.keys().collect::<Vec<_>>(),
            wanted.keys().collect::<Vec<_>>(),
            "who is in the group"
        );
        oracle::check_complete(&wanted, &reads).unwrap();
        oracle::check_bound(&wanted, &reads).unwrap();
        assert_eq!(reads, seen.targets);
        for (index, client) in self.clients.iter().enumerate() {
            if client.fate == Fate::Alive && client.generation > 0 {
                let (listed, pattern) = &seen.wants[&client.id];
                let said: BTreeSet<&String> = client.subscription.topics.iter().collect();
                assert_eq!(
                    (listed.iter().collect(), pattern),
                    (said, &client.subscription.pattern),
                    "{index}"
                );
            }
        }
    }

    fn deliver_oldest(&mut self) {
        while !self.questions.is_empty() {
            let Question { client, number, asked } = self.questions.remove(0);
            let Asked::Heartbeat(request) = asked else { continue };
            let request = Request::Heartbeat { request: Box::new(request), host: Arc::from("h") };
            let decision = self.decide(&request);
            let reply = decision.reply.map(|reply| match reply {
                Reply::Heartbeat(reply) => reply,
                other => panic!("{other:?}"),
            });
            self.committed = self.bench.log.len();
            self.answers = vec![Answer { client, number, reply }];
            self.deliver_answer();
        }
    }
}
