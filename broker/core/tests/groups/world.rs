//! Members, a network that delays, loses and reorders, and coordinators that come and go.
//!
//! Members do what `docs/wire.md` says, and no more. What they read is known here, so that it can be compared with what
//! the coordinator believes.

mod judging;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::group::config::GroupConfig;
use highwater_broker_core::group::record::Record;
use highwater_broker_core::group::{Decision, Event, GroupShard, Refusal, Reply, Request};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::TopicPartition;
use highwater_protocol::messages::{
    GroupAction, GroupHeartbeatReply, GroupHeartbeatRequest, GroupSubscription,
};

use crate::bench::{Bench, assignment_of, commit_request, partitions_of, topic};
use crate::dice::Dice;
use crate::oracle::{self, Seen};

pub(crate) const TOPICS: [&str; 4] = ["a-1", "a-2", "b-1", "b-2"];
const SESSION_MS: u64 = 3_000;
const REBALANCE_MS: u64 = 5_000;

/// What one consumer knows.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) id: String,
    instance: Option<String>,
    pub(crate) generation: u32,
    subscription: GroupSubscription,
    /// What it reads, each with the number of the time when it began.
    pub(crate) owned: BTreeMap<TopicPartition, u64>,
    /// What it was told that it may read.
    told: BTreeSet<TopicPartition>,
    /// It has to say everything with its next heartbeat.
    full: bool,
    in_flight: Option<u64>,
    /// It takes the place of a member with its instance id even if that is alive.
    take_over: bool,
    pub(crate) fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Alive,
    /// It reads on, hears nothing and says nothing until the given step.
    Paused(u64),
    /// Its process is gone.
    Gone,
}

#[derive(Debug, Clone)]
enum Asked {
    Heartbeat(GroupHeartbeatRequest),
    /// A commit of a partition that the member began to read at this time.
    Commit {
        id: String,
        generation: u32,
        partition: TopicPartition,
        began: u64,
        offset: u64,
    },
}

#[derive(Debug, Clone)]
struct Question {
    client: usize,
    number: u64,
    asked: Asked,
}

#[derive(Debug)]
struct Answer {
    client: usize,
    number: u64,
    reply: Result<GroupHeartbeatReply, Refusal>,
}

pub(crate) struct World {
    pub(crate) bench: Bench,
    pub(crate) dice: Dice,
    pub(crate) clients: Vec<Client>,
    questions: Vec<Question>,
    answers: Vec<Answer>,
    /// Answers that wait until this many records are committed.
    waiting: Vec<(usize, Answer)>,
    committed: usize,
    /// Who began to read a partition, and when.
    readers: BTreeMap<TopicPartition, Vec<(usize, u64)>>,
    /// Questions that were delivered, and will be once more: they went over two connections.
    echoes: Vec<Question>,
    /// Positions whose commit was answered.
    answered: BTreeMap<TopicPartition, u64>,
    /// Answers to commits that wait, and what they acknowledge.
    waiting_commits: Vec<(usize, TopicPartition, u64)>,
    numbers: u64,
    clients_max: usize,
    pub(crate) step: u64,
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let config = GroupConfig {
            heartbeat_interval: Duration::from_millis(1_000),
            session_timeout_min: Duration::from_millis(100),
            ..GroupConfig::default()
        };
        let mut dice = Dice::new(seed);
        let sizes: Vec<(&str, u32)> =
            TOPICS.iter().take(1 + dice.below(3)).map(|name| (*name, 1 + dice.below(12) as u32)).collect();
        // Few members meet often, many make assignments interesting.
        let clients_max = 2 + dice.below(8);
        Self {
            bench: Bench::with_config(config, &sizes),
            clients_max,
            dice,
            clients: Vec::new(),
            questions: Vec::new(),
            answers: Vec::new(),
            waiting: Vec::new(),
            committed: 0,
            readers: BTreeMap::new(),
            echoes: Vec::new(),
            answered: BTreeMap::new(),
            waiting_commits: Vec::new(),
            numbers: 0,
            step: 0,
            counts: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// One thing happens.
    pub(crate) fn happen(&mut self) {
        self.step += 1;
        match self.dice.below(100) {
            0..25 => self.say(),
            25..50 => self.deliver_question(),
            50..68 => self.deliver_answer(),
            68..76 => self.commit_records(),
            76..80 => self.deliver_echo(),
            80..86 => self.send_commit(),
            86..93 => self.pass_time(),
            93 | 94 => self.client_comes(),
            95 => self.client_goes(),
            96 => self.lose_something(),
            _ => match self.dice.below(8) {
                0 => self.topics_change(),
                1 | 2 => self.subscription_changes(),
                3 | 4 => self.fail_over(),
                _ => self.client_pauses(),
            },
        }
        self.check();
    }

    fn some_client(&mut self) -> Option<usize> {
        let step = self.step;
        for client in &mut self.clients {
            if matches!(client.fate, Fate::Paused(until) if until <= step) {
                client.fate = Fate::Alive;
            }
        }
        let alive: Vec<usize> =
            (0..self.clients.len()).filter(|c| self.clients[*c].fate == Fate::Alive).collect();
        (!alive.is_empty()).then(|| alive[self.dice.below(alive.len())])
    }

    pub(crate) fn client_comes(&mut self) {
        if self.clients.iter().filter(|client| client.fate != Fate::Gone).count() >= self.clients_max {
            return;
        }
        let number = self.number();
        let instance = self.dice.once_in(3).then(|| format!("i{}", self.dice.below(4)));
        let subscription = self.some_subscription();
        let take_over = self.dice.once_in(3);
        self.clients.push(Client {
            id: format!("m{number}"),
            instance,
            generation: 0,
            subscription,
            owned: BTreeMap::new(),
            told: BTreeSet::new(),
            full: true,
            in_flight: None,
            take_over,
            fate: Fate::Alive,
        });
        self.count("joins");
    }

    fn some_subscription(&mut self) -> GroupSubscription {
        match self.dice.below(6) {
            0 => GroupSubscription { topics: vec!["b-1".to_owned()], pattern: Some("a-*".to_owned()) },
            1 => GroupSubscription { topics: vec!["a-1".to_owned()], pattern: None },
            2 => GroupSubscription { topics: Vec::new(), pattern: Some("b-*".to_owned()) },
            _ => GroupSubscription { topics: vec!["a-1".to_owned(), "a-2".to_owned()], pattern: None },
        }
    }

    fn client_goes(&mut self) {
        let Some(index) = self.some_client() else { return };
        let action = match self.dice.below(3) {
            0 => None,
            1 => Some(GroupAction::Leave),
            _ => Some(GroupAction::LeaveForRestart),
        };
        let restarts = self.clients[index].instance.is_some();
        let client = &mut self.clients[index];
        client.fate = Fate::Gone;
        // In order: it has stopped reading before it says so. A crash is no different to the coordinator.
        client.owned.clear();
        let again = client.clone();
        if let Some(action) = action.filter(|action| restarts || *action == GroupAction::Leave) {
            let asked = Asked::Heartbeat(self.request(index, action));
            let number = self.number();
            self.questions.push(Question { client: index, number, asked });
        }
        if restarts && !self.dice.once_in(4) {
            let number = self.number();
            let id = format!("m{number}");
            let told = BTreeSet::new();
            self.clients.push(Client {
                id,
                generation: 0,
                told,
                full: true,
                in_flight: None,
                fate: Fate::Alive,
                ..again
            });
            self.count("restarts");
        }
        self.count("goes");
    }

    fn client_pauses(&mut self) {
        let Some(index) = self.some_client() else { return };
        let until = self.step + 20 + self.dice.below(400) as u64;
        self.clients[index].fate = Fate::Paused(until);
        self.count("pauses");
    }

    fn subscription_changes(&mut self) {
        let Some(index) = self.some_client() else { return };
        self.clients[index].subscription = self.some_subscription();
        self.clients[index].full = true;
        self.count("subscription changes");
    }

    fn topics_change(&mut self) {
        let name = TOPICS[self.dice.below(TOPICS.len())];
        let before = self.bench.topics.named(name).map_or(0, |topic| topic.partitions);
        let added = 1 + self.dice.below(4) as u32;
        self.bench.topics.insert(topic(name, (before + added).min(24)));
        let now = self.bench.now().mono;
        self.bench.shard.set_topics(now, Arc::new(self.bench.topics.clone()));
        self.count("topic changes");
    }

    fn request(&self, index: usize, action: GroupAction) -> GroupHeartbeatRequest {
        let client = &self.clients[index];
        let joins = client.generation == 0;
        GroupHeartbeatRequest {
            group: "g".to_owned(),
            member_id: client.id.clone(),
            generation: client.generation,
            action: action.into(),
            instance_id: client.instance.clone(),
            rack: None,
            client: String::new(),
            session_timeout_ms: SESSION_MS as u32,
            rebalance_timeout_ms: REBALANCE_MS as u32,
            subscription: (joins || client.full).then(|| client.subscription.clone()),
            owned: (!joins && client.full)
                .then(|| assignment_of(&client.owned.keys().copied().collect::<BTreeSet<_>>())),
            assignor: None,
            take_over: client.take_over,
        }
    }

    /// A client gives up what it has to, or sends a heartbeat, if need be instead of one that is not answered.
    fn say(&mut self) {
        let Some(index) = self.some_client() else { return };
        let abandon = self.dice.once_in(6);
        let client = &mut self.clients[index];
        if client.in_flight.is_some() && !abandon {
            return;
        }
        // It finishes what it has of partitions that it is to give up, sooner or later.
        if client.generation > 0 && !self.dice.once_in(4) {
            let told = client.told.clone();
            let before = client.owned.len();
            client.owned.retain(|partition, _| told.contains(partition));
            client.full |= client.owned.len() != before;
        }
        client.full |= client.in_flight.is_some();
        let asked = Asked::Heartbeat(self.request(index, GroupAction::Alive));
        let number = self.number();
        self.clients[index].in_flight = Some(number);
        self.questions.push(Question { client: index, number, asked });
    }

    fn send_commit(&mut self) {
        let Some(index) = self.some_client() else { return };
        let client = &self.clients[index];
        if client.owned.is_empty() {
            return;
        }
        let at = self.dice.below(client.owned.len());
        let (partition, began) = client.owned.iter().nth(at).map(|(p, b)| (*p, *b)).unwrap();
        let (id, generation) = (client.id.clone(), client.generation);
        let number = self.number();
        let asked = Asked::Commit { id, generation, partition, began, offset: number };
        self.questions.push(Question { client: index, number, asked });
    }

    fn lose_something(&mut self) {
        if !self.questions.is_empty() && self.dice.once_in(2) {
            let at = self.dice.below(self.questions.len());
            self.questions.swap_remove(at);
        } else if !self.answers.is_empty() {
            let at = self.dice.below(self.answers.len());
            self.answers.swap_remove(at);
        }
    }

    /// Mostly the oldest, sometimes any: connections are not ordered among each other.
    fn deliver_question(&mut self) {
        if self.questions.is_empty() {
            return;
        }
        let at = if self.dice.once_in(4) { self.dice.below(self.questions.len()) } else { 0 };
        let question = self.questions.remove(at);
        if self.dice.once_in(4) && self.echoes.len() < 16 {
            self.echoes.push(question.clone());
        }
        self.deliver(question);
    }

    fn deliver_echo(&mut self) {
        if !self.echoes.is_empty() {
            let at = self.dice.below(self.echoes.len());
            let question = self.echoes.swap_remove(at);
            self.deliver(question);
        }
    }

    fn deliver(&mut self, Question { client, number, asked }: Question) {
        match asked {
            Asked::Heartbeat(request) => {
                let request = Request::Heartbeat { request: Box::new(request), host: Arc::from("h") };
                let decision = self.decide(&request);
                let reply = decision.reply.map(|reply| match reply {
                    Reply::Heartbeat(reply) => reply,
                    other => panic!("{other:?}"),
                });
                self.waiting.push((self.bench.log.len(), Answer { client, number, reply }));
            }
            Asked::Commit { id, generation, partition, began, offset } => {
                let request = Request::Commit(commit_request("g", &id, generation, &[(partition, offset)]));
                let decision = self.decide(&request);
                let Ok(Reply::Commit(reply)) = &decision.reply else { return self.count("commits refused") };
                if reply.results[0].error != 0 {
                    return self.count("commits refused");
                }
                self.count("commits");
                // The owner commits, and nobody has begun to read since it has.
                let seen = Seen::of(self.bench.shard.records());
                assert!(seen.owns[&id].contains(&partition), "{id} commits {partition} of another");
                let since = self
                    .readers
                    .get(&partition)
                    .into_iter()
                    .flatten()
                    .find(|(reader, at)| *reader != client && *at > began);
                assert_eq!(since, None, "{id} commits {partition}, which another has begun to read since");
                self.waiting_commits.push((self.bench.log.len(), partition, offset));
            }
        }
    }

    /// Decides, and checks that deciding changed nothing.
    fn decide(&mut self, request: &Request) -> Decision {
        let check = self.dice.once_in(16);
        let before: Option<Vec<Record>> = check.then(|| self.bench.shard.records().collect());
        let decision = self.bench.shard.handle(self.bench.now(), request);
        if let Some(before) = before {
            assert_eq!(self.bench.shard.records().collect::<Vec<_>>(), before, "deciding is not changing");
        }
        let was = Seen::of(self.bench.shard.records());
        self.bench.take(&decision);
        self.check_moves(&was, &decision);
        decision
    }

    /// A new assignment moves no partition that could stay within the bound.
    fn check_moves(&mut self, was: &Seen, decision: &Decision) {
        if !decision.events.iter().any(|event| matches!(event, Event::Assigned { .. })) {
            return;
        }
        let is = Seen::of(self.bench.shard.records());
        let wanted = self.wanted(&is);
        oracle::check_complete(&wanted, &is.targets).unwrap();
        oracle::check_bound(&wanted, &is.targets).unwrap();
        // What a static member leaves to its successor stays where it is.
        let mut before = was.targets.clone();
        for event in &decision.events {
            if let Event::Joined { member, instead_of: Some(old), .. } = event
                && let Some(had) = before.remove(&**old)
            {
                before.insert(member.to_string(), had);
            }
        }
        // A coordinator that died in the middle of an assignment leaves targets of two generations behind.
        let all: usize = before.values().map(BTreeSet::len).sum();
        if before.values().flatten().collect::<BTreeSet<_>>().len() != all {
            return self.count("assignments from half an assignment");
        }
        let (least, moved) = (oracle::least_moves(&wanted, &before), oracle::moves(&before, &is.targets));
        assert_eq!(moved, least, "partitions moved that could have stayed");
        self.count("assignments");
        *self.counts.entry("partitions moved").or_default() += moved as u64;
    }

    fn wanted(&self, seen: &Seen) -> BTreeMap<String, BTreeSet<TopicPartition>> {
        let of = |id: &String| (id.clone(), seen.wanted_by(id, &self.bench.topics, &TOPICS));
        seen.wants.keys().map(of).collect()
    }

    /// Some of what was recorded is committed: answers go out.
    fn commit_records(&mut self) {
        let more = self.bench.log.len() - self.committed;
        self.committed += if self.dice.once_in(3) { self.dice.below(more + 1) } else { more };
        let committed = self.committed;
        let (ready, rest) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(at, _)| *at <= committed);
        self.waiting = rest;
        let ready: Vec<(usize, Answer)> = ready;
        self.answers.extend(ready.into_iter().map(|(_, answer)| answer));
        let mut commits = std::mem::take(&mut self.waiting_commits);
        commits.retain(|(at, partition, offset)| {
            if *at <= committed {
                self.answered.insert(*partition, *offset);
            }
            *at > committed
        });
        self.waiting_commits = commits;
    }

    fn deliver_answer(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let at = if self.dice.once_in(4) { self.dice.below(self.answers.len()) } else { 0 };
        let Answer { client: index, number, reply } = self.answers.remove(at);
        let began = self.number();
        let seen = Seen::of(self.bench.shard.records());
        let client = &mut self.clients[index];
        if client.in_flight != Some(number) || client.fate != Fate::Alive {
            return;
        }
        client.in_flight = None;
        match reply {
            Ok(reply) => {
                client.generation = reply.generation;
                let Some(assignment) = reply.assignment else {
                    client.full = false;
                    return;
                };
                client.told = partitions_of(&assignment);
                client.full = true;
                for partition in &client.told {
                    if !client.owned.contains_key(partition) {
                        client.owned.insert(*partition, began);
                        // The answer may be to one that has been fenced since: a zombie, whose reading is for nothing.
                        let zombie =
                            seen.joined.get(&client.id).is_none_or(|joined| *joined > client.generation);
                        if zombie {
                            continue;
                        }
                        self.readers.entry(*partition).or_default().push((index, began));
                    }
                }
            }
            Err(refusal) => match refusal.code {
                ErrorCode::UnknownMember | ErrorCode::FencedGeneration => {
                    client.id = format!("m{began}");
                    client.generation = 0;
                    client.owned.clear();
                    client.told.clear();
                    client.full = true;
                    self.count("fenced");
                }
                ErrorCode::InstanceInUse if client.generation == 0 => client.full = true,
                ErrorCode::InstanceInUse => {
                    client.fate = Fate::Gone;
                    client.owned.clear();
                    self.count("replaced");
                }
                other => panic!("{other}: {refusal}"),
            },
        }
    }

    fn pass_time(&mut self) {
        let ms = if self.dice.once_in(40) { SESSION_MS } else { 1 + self.dice.below(60) as u64 };
        self.let_pass(ms);
    }

    fn let_pass(&mut self, ms: u64) {
        let end = self.bench.now().mono.after(Duration::from_millis(ms));
        while let Some(due) = self.bench.shard.deadline().filter(|due| *due <= end) {
            let now = self.bench.now().mono;
            self.bench.pass(due.since(now));
            let was = Seen::of(self.bench.shard.records());
            let decision = self.bench.shard.tick(self.bench.now());
            self.bench.take(&decision);
            if decision.events.len() == 1 {
                self.check_moves(&was, &decision);
            }
        }
        let now = self.bench.now().mono;
        self.bench.pass(end.since(now));
    }

    /// The coordinator dies. What was committed survives, what was appended after that in part, and a cleaner may have been
    /// there.
    fn fail_over(&mut self) {
        let survives = self.committed + self.dice.below(self.bench.log.len() - self.committed + 1);
        self.bench.log.truncate(survives);
        self.committed = survives;
        self.waiting.retain(|(at, _)| *at <= survives);
        self.waiting_commits.retain(|(at, ..)| *at <= survives);
        let cleaned = cleaned(&self.bench.log, self.dice.below(survives + 1));
        self.bench.fail_over();
        let whole: Vec<Record> = self.bench.shard.records().collect();
        self.bench.fail_over_with(&cleaned);
        assert_eq!(self.bench.shard.records().collect::<Vec<_>>(), whole, "a cleaned log is as good");
        // Positions that were acknowledged are there, or later ones.
        self.commit_records();
        let seen = Seen::of(self.bench.shard.records());
        for (partition, offset) in &self.answered {
            assert!(seen.positions.contains_key(partition), "the position of {partition} is lost ({offset})");
        }
        self.count("fail-overs");
    }
}

/// The log after a cleaner was at its first `cleaned` records: of each key the last value, and no tombstone.
fn cleaned(log: &[Record], cleaned: usize) -> Vec<Record> {
    let last: BTreeMap<Vec<u8>, usize> =
        log[..cleaned].iter().enumerate().map(|(index, record)| (record.key(), index)).collect();
    let keep = |(index, record): &(usize, &Record)| {
        *index >= cleaned || (last[&record.key()] == *index && record.value().is_some())
    };
    log.iter().enumerate().filter(keep).map(|(_, record)| record.clone()).collect()
}

/// A coordinator that has read these records.
pub(crate) fn read(world: &World, log: &[Record]) -> GroupShard {
    let mut shard = GroupShard::new(world.bench.config.clone(), Arc::new(world.bench.topics.clone()));
    for record in log {
        shard.replay(&record.key(), record.value().as_deref()).unwrap();
    }
    shard.start(world.bench.now().mono);
    shard
}
