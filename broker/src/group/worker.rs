//! The task that owns one shard of groups: it leads when its partition is led here, reads the state, decides, writes, and
//! answers.

use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::group::{Decision, GroupShard, Now, Request};
use highwater_broker_core::time::Mono;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::LeaderEpoch;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::events;
use super::journal::{Entry, Journal, barrier};
use super::mailbox::{Mailbox, State, not_coordinator};
use super::question::Question;
use super::shared::GroupServices;
use crate::api::ApiError;
use crate::partition::handle::PartitionHandle;
use crate::partition::worker::Timer;

/// Questions that are decided before what they came to goes on its way.
const QUESTIONS_AT_A_TIME: usize = 256;
/// Things that are due and done before questions have their turn. What is left is done in the next pass.
const TICKS_AT_A_TIME: usize = 64;
/// Before a state that could not be read or written is read again, the first time and at the most.
const RELOAD_PAUSE: Duration = Duration::from_millis(50);
const RELOAD_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The owner of a shard, for as long as the partition is open here.
pub(super) struct Worker {
    services: Arc<GroupServices>,
    handle: PartitionHandle,
    mailbox: Arc<Mailbox>,
    leading: watch::Receiver<Option<LeaderEpoch>>,
}

/// Why a shard is not served any more.
enum End {
    /// Another epoch has begun, or another broker leads.
    Over,
    /// What was decided could not be written: the log says what holds.
    Failed(ApiError),
}

impl Worker {
    /// `None`: the partition is not one of the brokers' own topics.
    pub(super) fn new(
        services: Arc<GroupServices>,
        handle: PartitionHandle,
        mailbox: Arc<Mailbox>,
    ) -> Option<Self> {
        let leading = handle.leading()?;
        Some(Self { services, handle, mailbox, leading })
    }

    /// Coordinates whenever this broker leads, until the partition is closed here.
    pub(super) async fn run(mut self) {
        let mut pause = RELOAD_PAUSE;
        while self.handle.closed().is_none() {
            let Some(epoch) = *self.leading.borrow_and_update() else {
                self.mailbox.set_state(State::Away);
                if self.leading.changed().await.is_err() {
                    break;
                }
                continue;
            };
            let begun = Instant::now();
            match self.lead(epoch).await {
                End::Over => pause = RELOAD_PAUSE,
                End::Failed(error) => {
                    self.mailbox.set_state(State::Loading);
                    if begun.elapsed() > RELOAD_PAUSE_MAX * 2 {
                        pause = RELOAD_PAUSE;
                    }
                    // Earlier if another epoch begins: a batch that was refused because of that is told of first.
                    let _changed = tokio::time::timeout(pause, self.leading.changed()).await;
                    pause = (pause * 2).min(RELOAD_PAUSE_MAX);
                    self.tell(epoch, &error);
                }
            }
        }
        self.mailbox.set_state(State::Away);
    }

    /// Why the state of groups is read again.
    fn tell(&self, epoch: LeaderEpoch, error: &ApiError) {
        let partition = self.handle.partition();
        if self.leads(epoch) {
            warn!(
                %partition, %error,
                "the state of groups is read again: what was decided could not be written, or the log not read"
            );
        } else {
            debug!(%partition, %error, "coordinates no longer");
        }
    }

    /// Coordinates at one leader epoch.
    async fn lead(&mut self, epoch: LeaderEpoch) -> End {
        self.mailbox.set_state(State::Loading);
        let clock = Arc::clone(&self.services.clock);
        let mut journal = Journal::new(self.handle.clone(), Arc::clone(&clock), epoch);
        let begun = clock.mono();
        let mut leading = self.leading.clone();
        let topics = Arc::clone(&self.services.topics.borrow());
        let shard = Box::new(GroupShard::new(self.services.config.clone(), topics));
        let loaded = tokio::select! {
            loaded = self.services.loader.load(&self.handle, &mut journal, epoch, shard) => loaded,
            () = over(&mut leading, epoch) => return End::Over,
        };
        let (mut shard, loaded) = match loaded {
            Ok(loaded) => loaded,
            Err(error) if error.code == ErrorCode::NotLeader => {
                debug!(partition = %self.handle.partition(), %error, "does not coordinate after all");
                return if self.leads(epoch) { End::Failed(error) } else { End::Over };
            }
            Err(error) => return End::Failed(error),
        };
        let metrics = &self.services.metrics;
        metrics.group_load_seconds.observe(clock.mono().since(begun).as_secs_f64());
        metrics.group_shards.inc();
        info!(
            partition = %self.handle.partition(), %epoch, groups = shard.group_count(), records = loaded.records,
            bytes = loaded.bytes, milliseconds = clock.mono().since(begun).as_millis() as u64,
            "coordinates the groups of this partition from here on"
        );
        let end = self.serve(epoch, &mut shard, &mut journal).await;
        self.services.metrics.group_shards.dec();
        self.mailbox.set_state(if matches!(end, End::Over) { State::Away } else { State::Loading });
        journal.abandon(&not_coordinator(self.handle.partition()));
        end
    }
}

impl Worker {
    /// Decides what comes until the epoch is over.
    async fn serve(&mut self, epoch: LeaderEpoch, shard: &mut GroupShard, journal: &mut Journal) -> End {
        let clock = Arc::clone(&self.services.clock);
        let mut topics = self.services.topics.subscribe();
        let now = clock.mono();
        shard.set_topics(now, Arc::clone(&topics.borrow_and_update()));
        shard.start(now);
        self.mailbox.set_state(State::Serving);
        let mut timer = Timer::default();
        let mut questions = Vec::new();
        loop {
            let has_room = !journal.is_full();
            let deadline = shard.deadline().filter(|_| has_room);
            let now = Arc::clone(&clock);
            tokio::select! {
                changed = self.leading.changed() => {
                    if changed.is_err() || !self.leads(epoch) {
                        return End::Over;
                    }
                }
                committed = journal.committed() => match committed {
                    Ok(_) => {}
                    Err(error) if self.leads(epoch) => return End::Failed(error),
                    Err(_) => return End::Over,
                },
                () = self.mailbox.wait(), if has_room => {}
                () = timer.wait(deadline, move || now.mono()) => {}
                changed = topics.changed() => {
                    if changed.is_err() {
                        return End::Over;
                    }
                    shard.set_topics(clock.mono(), Arc::clone(&topics.borrow_and_update()));
                }
            }
            if journal.is_full() {
                continue;
            }
            self.mailbox.take(QUESTIONS_AT_A_TIME, &mut questions);
            self.decide(shard, journal, &mut questions);
        }
    }

    /// One pass: what is due, and what was asked. All of it goes on its way together.
    fn decide(&self, shard: &mut GroupShard, journal: &mut Journal, questions: &mut Vec<Question>) {
        let now = Now { mono: self.services.clock.mono(), wall: self.services.clock.wall() };
        for _tick in 0..TICKS_AT_A_TIME {
            if shard.deadline().is_none_or(|at| at > now.mono) {
                break;
            }
            let decision = shard.tick(now);
            journal.take(self.carry_out(shard, now.mono, &decision), None);
        }
        for question in questions.drain(..) {
            let (request, answer) = question.split();
            let decision = shard.handle(now, &request);
            let mut records = self.carry_out(shard, now.mono, &decision);
            // Where a group goes on must not be told from a state that another leader has overtaken.
            if records.is_empty() && journal.is_settled() && matches!(request, Request::Fetch(_)) {
                records.push(barrier());
            }
            let outcome = decision.reply.map_err(|refusal| ApiError::new(refusal.code, refusal.message));
            journal.take(records, Some(answer(outcome)));
        }
        self.services.metrics.group_records.inc_by(journal.send());
    }

    /// Makes what was decided true here; it counts when it is committed.
    fn carry_out(&self, shard: &mut GroupShard, now: Mono, decision: &Decision) -> Vec<Entry> {
        shard.accept(now, decision);
        events::note(&decision.events, &self.services.metrics);
        decision.records.iter().map(|record| (record.key(), record.value())).collect()
    }

    fn leads(&self, epoch: LeaderEpoch) -> bool {
        self.handle.closed().is_none() && *self.leading.borrow() == Some(epoch)
    }
}

/// Waits until this broker does not lead at `epoch` any more.
async fn over(leading: &mut watch::Receiver<Option<LeaderEpoch>>, epoch: LeaderEpoch) {
    let _closed = leading.wait_for(|leading| *leading != Some(epoch)).await;
}
