//! One member of a group of `bench groups`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Client, Error, GroupConsumer, GroupEvent, GroupPartition, GroupRecord};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::group_board::{Board, Delivered};
use super::payload::Payloads;
use super::schedule::Schedule;

/// What all members share.
pub(super) struct Members {
    pub(super) topic: String,
    /// Group `n` is called like this, a dash and `n`.
    pub(super) prefix: String,
    pub(super) board: RefCell<Board>,
    pub(super) payloads: Payloads,
    /// Set when the flow begins.
    pub(super) schedule: RefCell<Option<Schedule>>,
    /// How many have ever joined.
    pub(super) joined: Cell<u32>,
    pub(super) commit_every: Duration,
    pub(super) session: Duration,
    pub(super) memory_bytes: usize,
}

impl Members {
    /// What a group is called.
    pub(super) fn group_name(&self, group: usize) -> String {
        format!("{}-{group}", self.prefix)
    }
}

/// Which member of which group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    pub(super) group: usize,
    pub(super) member: u32,
}

/// Joins, takes what comes until `stop`, and leaves in order. Must run in a `LocalSet`.
///
/// # Errors
/// When it cannot be a member any longer, or is given what is not its turn.
pub(super) async fn run(
    all: Rc<Members>,
    client: Client,
    who: Who,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let group = all.group_name(who.group);
    let consumer = client
        .group_consumer(&group)
        .topics([all.topic.as_str()])
        .commit_manually()
        .session_timeout(all.session)
        .memory_bytes(all.memory_bytes)
        .build()
        .await
        .with_context(|| format!("join group {group} as member {}", who.member))?;
    all.joined.set(all.joined.get() + 1);
    let member = Member { all, who };
    member.take(consumer, stop).await.with_context(|| format!("member {} of group {group}", who.member))
}

struct Member {
    all: Rc<Members>,
    who: Who,
}

impl Member {
    async fn take(&self, mut consumer: GroupConsumer, stop: CancellationToken) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(self.all.commit_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is at once, and there is nothing yet.
        ticks.tick().await;
        let mut commits = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _tick = ticks.tick() => {
                    let asked = Instant::now();
                    let commit = consumer.commit_async();
                    commits.spawn_local(async move { commit.await.map(|()| asked.elapsed()) });
                }
                Some(done) = commits.join_next() => self.committed(done.context("a commit's task ended")?)?,
                event = consumer.next_event() => {
                    let event = event.context("the consumer ended")?;
                    self.happened(event, &mut consumer).await?;
                }
            }
        }
        while let Some(done) = commits.join_next().await {
            self.committed(done.context("a commit's task ended")?)?;
        }
        self.commit(&mut consumer).await?;
        let partitions = consumer.partitions();
        self.each(&partitions, Board::gone);
        consumer.close().await.context("leave")?;
        Ok(())
    }

    async fn happened(
        &self,
        event: Result<GroupEvent, Error>,
        consumer: &mut GroupConsumer,
    ) -> anyhow::Result<()> {
        match event {
            Ok(GroupEvent::Record(record)) => self.record(&record)?,
            Ok(GroupEvent::Assigned(assigned)) => {
                let partitions: Vec<_> = assigned.into_iter().map(|assigned| assigned.partition).collect();
                self.each(&partitions, Board::assigned);
            }
            Ok(GroupEvent::Revoked(partitions)) => {
                // Still its own until it asks for the next event.
                self.commit(consumer).await?;
                self.each(&partitions, Board::gone);
            }
            Ok(GroupEvent::Lost { partitions, .. }) => self.each(&partitions, Board::lost),
            Ok(_) => {}
            Err(error) if error.is_retriable() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn record(&self, record: &GroupRecord) -> anyhow::Result<()> {
        let now = Instant::now();
        let value = record.value.as_deref().unwrap_or_default();
        let place = || format!("partition {}, offset {}", record.partition, record.offset);
        let sequence = self.all.payloads.check(value).with_context(place)?;
        let schedule = (*self.all.schedule.borrow()).with_context(|| {
            format!("{}: it came before anything was sent; does somebody else write to this topic?", place())
        })?;
        let delivered = Delivered {
            partition: record.partition.get() as usize,
            offset: record.offset.get(),
            bytes: value.len() as u64,
            latency: now.saturating_duration_since(schedule.due(sequence)),
        };
        Ok(self.all.board.borrow_mut().record(self.who.group, delivered, now)?)
    }

    async fn commit(&self, consumer: &mut GroupConsumer) -> anyhow::Result<()> {
        let asked = Instant::now();
        let result = consumer.commit().await;
        self.committed(result.map(|()| asked.elapsed()))
    }

    fn committed(&self, result: Result<Duration, Error>) -> anyhow::Result<()> {
        self.all.board.borrow_mut().committed(result.context("commit")?);
        Ok(())
    }

    fn each(&self, partitions: &[GroupPartition], what: fn(&mut Board, usize, u32, usize, Instant)) {
        let now = Instant::now();
        let mut board = self.all.board.borrow_mut();
        for partition in partitions {
            what(&mut board, self.who.group, self.who.member, partition.partition.get() as usize, now);
        }
    }
}
