//! The run of `bench groups`: members join, records flow, one more member joins each group and leaves it again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Admin, Client, GroupMemberDetails, PartitionId, Producer, ProducerRecord};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::acknowledge::{self, Deliveries, Group, Outcome, Since};
use super::connections;
use super::group_board::Board;
use super::group_member::{self, Members, Who};
use super::http::Metrics;
use super::latency::records_in;
use super::machine::{Effort, Generator};
use super::payload::Payloads;
use super::schedule::Schedule;
use super::timer::Timer;
use crate::args::{BenchGroupsArgs, Global};
use crate::output::{Progress, Unit};

/// How long all members may take to join, and everything that was sent to be delivered.
const WITHIN: Duration = Duration::from_secs(60);

/// How often something is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// How often coordinators are asked whether their groups are settled.
const ASK: Duration = Duration::from_millis(50);

/// Steps through which records flow.
const STEPS: u32 = 3;

/// When a step began or ended, and the metrics of a broker then.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) at: Instant,
    pub(super) metrics: Option<Metrics>,
}

/// What came of a run.
pub(super) struct Ran {
    pub(super) members: Rc<Members>,
    /// Where steps with a flow begin, and where the last one ends.
    pub(super) marks: Vec<Mark>,
    /// How many were sent, and given to each group.
    pub(super) records: u64,
    /// Groups that gave the new member nothing.
    pub(super) without: usize,
    pub(super) effort: Effort,
}

/// Members, while they are there.
struct Run<'a> {
    args: &'a BenchGroupsArgs,
    admin: Admin,
    all: Rc<Members>,
    /// Of members that have not joined yet.
    clients: std::vec::IntoIter<Client>,
    members: JoinSet<anyhow::Result<()>>,
    /// Ends all but those that join later.
    stop: CancellationToken,
    marks: Vec<Mark>,
    /// Groups that gave the new member nothing.
    without: usize,
}

/// Runs everything. `None`: not everything was acknowledged, which was said. Must run in a `LocalSet`.
pub(super) async fn run(
    global: &Global,
    client: &Client,
    args: &BenchGroupsArgs,
) -> anyhow::Result<Option<Ran>> {
    let clients = connections::make(global, args.groups * (args.members + 1)).await?.into_iter();
    let board = Board::new(args.groups as usize, args.partitions as usize, "members join", Instant::now())?;
    let all = Rc::new(Members {
        topic: args.topic.clone(),
        prefix: args.topic.clone(),
        board: RefCell::new(board),
        payloads: Payloads::default(),
        schedule: RefCell::new(None),
        joined: Cell::new(0),
        commit_every: args.commit_every,
        session: args.session_timeout,
        memory_bytes: usize::try_from(args.in_flight)?,
    });
    let (members, stop) = (JoinSet::new(), CancellationToken::new());
    let mut run =
        Run { args, admin: client.admin(), all, clients, members, stop, marks: Vec::new(), without: 0 };
    run.everybody_joins().await?;
    let records = records_in(args.duration, args.rate).max(1) * u64::from(STEPS);
    let producer = client.producer().build();
    let generator = Generator::start();
    let schedule = Schedule::new(Instant::now(), args.rate);
    run.begin("steady").await?;
    *run.all.schedule.borrow_mut() = Some(schedule);
    let start = schedule.due(0);
    let mut outcome = Outcome::new(start, 0, args.size.clone())?;
    let (sender, receiver) = acknowledge::channel();
    let flow = async {
        let (waited, collected) =
            tokio::join!(send(&producer, args, schedule, records, sender), outcome.collect(receiver));
        collected?;
        waited
    };
    let (waited, ()) = tokio::try_join!(flow, run.steps(start))?;
    let effort = generator.effort_with(Some(waited));
    if !outcome.is_good() {
        return Ok(None);
    }
    run.everything_is_delivered(records).await?;
    run.everybody_leaves().await?;
    Ok(Some(Ran { members: run.all, marks: run.marks, records, without: run.without, effort }))
}

impl Run<'_> {
    /// A member joins each group.
    fn join(&mut self, member: u32, stop: &CancellationToken) {
        for (group, client) in (0..self.args.groups as usize).zip(self.clients.by_ref()) {
            let member = group_member::run(Rc::clone(&self.all), client, Who { group, member }, stop.clone());
            self.members.spawn_local(member);
        }
    }

    async fn everybody_joins(&mut self) -> anyhow::Result<()> {
        let stop = self.stop.clone();
        for member in 0..self.args.members {
            self.join(member, &stop);
        }
        let deadline = Instant::now() + WITHIN;
        while !self.are_settled(self.args.members).await? {
            anyhow::ensure!(
                Instant::now() < deadline,
                "the groups were not settled {WITHIN:?} after {} members had begun to join them",
                self.args.groups * self.args.members
            );
            self.until(Instant::now() + ASK).await?;
        }
        Ok(())
    }

    /// Whether every group has so many members, and everybody has what he is to have.
    async fn are_settled(&self, members: u32) -> anyhow::Result<bool> {
        // Asked only when it may be: a coordinator may know of a hand-over before the members have told of it.
        if self.all.joined.get() < self.args.groups * members || !self.all.board.borrow().is_all_owned() {
            return Ok(false);
        }
        for group in 0..self.args.groups as usize {
            let name = self.all.group_name(group);
            let details = self.admin.describe_group(&name).await;
            let details = details.with_context(|| format!("describe group {name}"))?;
            let is_settled = |member: &GroupMemberDetails| {
                let (mut has, mut is_to_have) = (member.assigned.clone(), member.target.clone());
                has.sort_unstable();
                is_to_have.sort_unstable();
                member.state == "stable" && has == is_to_have
            };
            if details.members.len() != members as usize || !details.members.iter().all(is_settled) {
                return Ok(false);
            }
        }
        // What was handed over meanwhile has an owner too.
        Ok(self.all.board.borrow().is_all_owned())
    }

    /// Another step begins.
    async fn begin(&mut self, name: &'static str) -> anyhow::Result<()> {
        self.mark().await?;
        self.all.board.borrow_mut().begin(name, Instant::now())
    }

    async fn mark(&mut self) -> anyhow::Result<()> {
        let metrics = match &self.args.metrics {
            None => None,
            Some(address) => Some(Metrics::of(address).await?),
        };
        self.marks.push(Mark { at: Instant::now(), metrics });
        Ok(())
    }

    /// The steps, by the clock.
    async fn steps(&mut self, start: Instant) -> anyhow::Result<()> {
        let newcomer = self.args.members;
        let newcomer_stop = CancellationToken::new();
        self.until(start + self.args.duration).await?;
        self.begin("one more joins").await?;
        self.join(newcomer, &newcomer_stop);
        self.until(start + self.args.duration * 2).await?;
        anyhow::ensure!(
            self.are_settled(newcomer + 1).await?,
            "the groups with a new member were not settled after --duration {:?}: with a --session-timeout of {:?} members \
             may hear of a change only after a third of it, or 3 s; a longer --duration may do",
            self.args.duration,
            self.args.session_timeout
        );
        self.without = self.all.board.borrow().groups_without(newcomer);
        self.begin("it leaves again").await?;
        newcomer_stop.cancel();
        self.until(start + self.args.duration * STEPS).await?;
        anyhow::ensure!(
            self.are_settled(self.args.members).await?,
            "the groups that a member had left were not settled after --duration {:?}: a longer one may do",
            self.args.duration
        );
        Ok(())
    }

    /// Waits for a moment, and looks after members meanwhile.
    async fn until(&mut self, moment: Instant) -> anyhow::Result<()> {
        while Instant::now() < moment {
            self.look().await?;
        }
        Ok(())
    }

    /// A short while; then a member that could not go on is an error.
    async fn look(&mut self) -> anyhow::Result<()> {
        tokio::time::sleep(LOOK).await;
        while let Some(ended) = self.members.try_join_next() {
            ended.context("a member's task ended")??;
        }
        Ok(())
    }

    async fn everything_is_delivered(&mut self, records: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + WITHIN;
        loop {
            let least = self.all.board.borrow().least_delivered();
            if least >= records {
                break;
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "a group was given {least} of {records} records, and no more within {WITHIN:?}"
            );
            self.look().await?;
        }
        self.all.board.borrow_mut().end(Instant::now());
        self.mark().await
    }

    async fn everybody_leaves(&mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        while let Some(ended) = self.members.join_next().await {
            ended.context("a member's task ended")??;
        }
        Ok(())
    }
}

/// Sends evenly, to one partition after another; returns how long it waited for its schedule.
async fn send(
    producer: &Producer,
    args: &BenchGroupsArgs,
    schedule: Schedule,
    records: u64,
    groups: mpsc::Sender<Group>,
) -> anyhow::Result<Duration> {
    let payloads = Payloads::default();
    let mut value = Vec::new();
    let progress = Progress::new(Some(records), Unit::Records);
    let mut timer = Timer::new()?;
    let (mut next, mut waited) = (0, Duration::ZERO);
    while next < records {
        let asked = Instant::now();
        schedule.wait(next, &mut timer).await?;
        let now = Instant::now();
        waited += now - asked;
        let (first, due) = (next, schedule.due_by(now, records).max(next + 1));
        let mut deliveries = Vec::with_capacity((due - first) as usize);
        while next < due {
            value.resize(args.size.at(next) as usize, 0);
            payloads.write(next, &mut value);
            let partition = PartitionId((next % u64::from(args.partitions)) as u32);
            let record = ProducerRecord::new(&args.topic).partition(partition).value(&value);
            deliveries.push(producer.send(record).await.context("send")?);
            next += 1;
        }
        let since = Since::Due(schedule, first);
        // The receiver ends with this sender, so there is always one.
        let _ = groups.send(Group { since, first, deliveries: Deliveries::Each(deliveries) }).await;
        progress.set(next);
        tokio::task::yield_now().await;
    }
    Ok(waited)
}
