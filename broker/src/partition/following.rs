//! The follower's half of a partition: its session with the leader, what comes of it, and what it says back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::replica::{Ends, FetchedBatch, Input};
use highwater_broker_core::time::Mono;
use highwater_protocol::ids::{LeaderEpoch, NodeId, Offset};
use highwater_protocol::messages::{ReplicaAck, SubscribeReply};
use tracing::{debug, info, warn};

use super::mailbox::LogStart;
use super::worker::{DiskJob, Worker};
use crate::api::ApiError;
use crate::replication::fetched::Fetched;
use crate::replication::links::{Follow, FollowEvent, Follower, Session};
use crate::replication::throttle::Place;

/// Bytes of one write, unless a single push is larger.
const WRITE_BYTES_MAX: u64 = 4 << 20;

/// Bytes that a leader may push ahead of what was appended.
const WINDOW_BYTES: u64 = 4 << 20;

/// The same for a replica that is being added, whose bytes are granted by the throttle.
const MOVE_WINDOW_BYTES: u64 = 256 << 10;

/// The least pause after an append that failed: the disk may be full for long.
const APPEND_PAUSE: Duration = Duration::from_millis(250);

/// The session of a follower with its leader.
#[derive(Debug)]
pub(super) struct Following {
    session: Session,
    leader: NodeId,
    /// Bytes that were appended.
    appended: u64,
    /// Bytes that may be pushed in all, as the leader was told.
    limit: u64,
    /// A limit that the throttle grants later, and its place in the queue.
    later: Option<(Place, u64)>,
}

impl Following {
    fn window(is_added: bool) -> u64 {
        if is_added { MOVE_WINDOW_BYTES } else { WINDOW_BYTES }
    }

    fn grant(&mut self, limit: u64) {
        self.later = None;
        self.limit = limit;
        self.session.credit(limit);
    }
}

impl Worker {
    /// Asks the leader for what comes after this log.
    pub(super) fn subscribe_at(
        &mut self,
        leader: NodeId,
        epoch: LeaderEpoch,
        offset: Offset,
        last_epoch: Option<LeaderEpoch>,
    ) {
        self.unsubscribe();
        let credit = Following::window(self.is_added);
        let partition = self.shared.partition;
        let follow = Follow { leader, partition, epoch, offset, last_epoch, credit };
        debug!(topic = self.shared.topic, %partition, %leader, %epoch, %offset, "asking the leader");
        let follower = Arc::clone(&self.shared) as Arc<dyn Follower>;
        let session = self.services.links.follow(follow, follower);
        self.following = Some(Following { session, leader, appended: 0, limit: credit, later: None });
    }

    /// Whatever was asked of the leader is not wanted any more.
    pub(super) fn unsubscribe(&mut self) {
        self.following = None;
        self.fetched.clear();
        self.ack = None;
        self.reset_asked = None;
        self.pause_following = None;
    }

    /// Takes in what happened to the session with the leader. Pushes that came together become one write.
    pub(super) fn take_followed(&mut self, now: Mono, events: &mut VecDeque<(u64, FollowEvent)>) {
        while let Some((session, event)) = events.pop_front() {
            if !self.is_session(session) {
                continue;
            }
            match event {
                FollowEvent::Pushed(fetched) => self.take_pushes(now, session, fetched, events),
                FollowEvent::Subscribed(reply) => self.subscribed(now, &reply),
                FollowEvent::Refused(error) => self.session_over(now, &error.to_string()),
                FollowEvent::Ended(ended) => self.session_over(now, &ended.message),
                FollowEvent::Lost(why) => self.session_over(now, &why),
            }
        }
    }

    fn is_session(&self, session: u64) -> bool {
        self.following.as_ref().is_some_and(|following| following.session.key() == session)
    }

    fn subscribed(&mut self, now: Mono, reply: &SubscribeReply) {
        let (topic, partition) = (self.shared.topic.clone(), self.shared.partition);
        if let Some(divergence) = reply.divergence {
            let (epoch, end_offset) = (LeaderEpoch(divergence.epoch), Offset(divergence.end_offset));
            info!(topic, %partition, %epoch, %end_offset, "the log has left the leader's");
            self.following = None;
            self.step(now, Input::Diverged { epoch, end_offset });
        } else if reply.reset {
            let log_start = Offset(reply.log_start);
            info!(topic, %partition, %log_start, "the leader's log starts above the end of this one");
            // The session is over; the leader is asked once more, for what is needed to start over.
            self.step(now, Input::ResetOffered { log_start });
        } else {
            let (leader_epoch, high_watermark) =
                (LeaderEpoch(reply.leader_epoch), Offset(reply.high_watermark));
            debug!(topic, %partition, epoch = %leader_epoch, "following");
            self.step(now, Input::Following { leader_epoch, high_watermark });
        }
    }

    fn session_over(&mut self, now: Mono, why: &str) {
        debug!(topic = self.shared.topic, partition = %self.shared.partition, why, "not following at the moment");
        self.unsubscribe();
        self.step(now, Input::LinkLost);
    }

    fn take_pushes(
        &mut self,
        now: Mono,
        session: u64,
        first: Fetched,
        events: &mut VecDeque<(u64, FollowEvent)>,
    ) {
        let Fetched { leader_epoch, mut high_watermark, batches, mut bytes } = first;
        self.fetched = batches;
        self.trim_fetched();
        while bytes < WRITE_BYTES_MAX {
            match events.front_mut() {
                Some((next, FollowEvent::Pushed(push)))
                    if *next == session && push.leader_epoch == leader_epoch =>
                {
                    self.fetched.append(&mut push.batches);
                    bytes += push.bytes;
                    high_watermark = high_watermark.max(push.high_watermark);
                    events.pop_front();
                }
                _ => break,
            }
        }
        let batches = self
            .fetched
            .iter()
            .map(|batch| FetchedBatch {
                base_offset: batch.header.leader.base_offset,
                end_offset: batch.header.end_offset(),
                epoch: batch.header.leader.leader_epoch,
                append_time: batch.header.leader.append_time,
            })
            .collect();
        self.step(now, Input::Fetched { batches, leader_epoch, high_watermark });
        // What the machine did not want is dropped.
        self.fetched.clear();
        if self.is_session(session) {
            self.consumed(now, bytes);
        }
    }

    /// A leader that is compacted may have one batch where this log has several: what is here already is cut off.
    fn trim_fetched(&mut self) {
        let (log_end, partition) = (self.log.log_end(), self.shared.partition);
        let Some(first) = self.fetched.first_mut() else { return };
        if first.header.leader.base_offset >= log_end || first.header.end_offset() <= log_end {
            return;
        }
        match first.clone().trimmed(log_end..first.header.end_offset(), partition) {
            Ok(Some(trimmed)) => *first = trimmed,
            Ok(None) => {}
            Err(error) => warn!(
                topic = self.shared.topic, %partition, %log_end, %error,
                "the leader pushed a batch that begins before the log end and cannot be cut"
            ),
        }
    }

    /// The machine has found the batches good: they become one write.
    pub(super) fn append_fetched(&mut self, now: Mono) {
        let batches = std::mem::take(&mut self.fetched);
        let metrics = &self.services.metrics;
        match self.log.append(&batches) {
            Ok(()) => {
                let bytes: u64 = batches.iter().map(|batch| u64::from(batch.header.batch_length)).sum();
                metrics.append_writes.inc();
                metrics.fetched_batches.inc_by(batches.len() as u64);
                metrics.fetched_bytes.inc_by(bytes);
                self.appended_bytes += bytes;
                let (log_end, append_time) = (self.log.log_end(), self.log.last_append_time());
                self.timed.get_or_insert((log_end, now));
                self.step(now, Input::Appended { log_end, append_time });
            }
            Err(error) => {
                warn!(
                    topic = self.shared.topic, partition = %self.shared.partition, %error,
                    "what the leader pushed could not be appended; it is asked for again"
                );
                self.unsubscribe();
                self.pause_following = Some(now.after(APPEND_PAUSE));
            }
        }
    }

    /// The pause after a failed append is over.
    pub(super) fn resume_following(&mut self, now: Mono) {
        if self.pause_following.take_if(|until| *until <= now).is_some() {
            self.step(now, Input::LinkLost);
        }
    }

    /// Bytes were taken in: the leader may push as many more.
    fn consumed(&mut self, now: Mono, bytes: u64) {
        let window = Following::window(self.is_added);
        let Some(following) = &mut self.following else { return };
        following.appended += bytes;
        let promised = following.later.map_or(following.limit, |(_, limit)| limit);
        let limit = following.appended + window;
        // A few large grants instead of one for each push.
        if limit < promised + window / 4 {
            return;
        }
        if self.is_added {
            let place = self.services.moves.ask(now, limit - promised, self.move_bytes_per_second);
            following.later = Some((place, limit));
            self.grant_due(now);
        } else {
            following.grant(limit);
        }
    }

    /// Grants what the throttle has held back long enough.
    pub(super) fn grant_due(&mut self, now: Mono) {
        let Some(following) = &mut self.following else { return };
        let (moves, rate) = (&self.services.moves, self.move_bytes_per_second);
        let is_added = self.is_added;
        let is_due = |place| !is_added || moves.is_granted(now, place, rate);
        if let Some((_, limit)) = following.later.take_if(|(place, _)| is_due(*place)) {
            following.grant(limit);
        }
    }

    /// When [`Worker::grant_due`] or [`Worker::resume_following`] has something to do.
    pub(super) fn follow_deadline(&self) -> Option<Mono> {
        let later = self.following.as_ref().and_then(|following| following.later);
        let granted =
            later.map(|(place, _)| self.services.moves.granted_at(place, self.move_bytes_per_second));
        [granted, self.pause_following].into_iter().flatten().min()
    }

    /// Notes how far this replica is; what was noted in the same pass may be more.
    pub(super) fn note_ack(&mut self, leader_epoch: LeaderEpoch, ends: Ends) {
        let ends = match self.ack {
            Some((_, noted)) => Ends {
                log_end: noted.log_end.max(ends.log_end),
                flushed_end: noted.flushed_end.max(ends.flushed_end),
            },
            None => ends,
        };
        self.ack = Some((leader_epoch, ends));
    }

    /// Tells the leader how far this replica is, once for everything that happened in one pass.
    pub(super) fn send_ack(&mut self) {
        let Some((leader_epoch, Ends { log_end, flushed_end })) = self.ack.take() else { return };
        if let Some(following) = &self.following {
            following.session.acknowledge(ReplicaAck {
                id: 0,
                leader_epoch: leader_epoch.get(),
                broker_epoch: self.own_epoch.get(),
                log_end: log_end.get(),
                flushed_end: flushed_end.get(),
            });
        }
    }

    /// Asks the leader what is needed to start over where its log starts.
    pub(super) fn ask_for_reset(&mut self) {
        let Some(following) = &self.following else { return };
        let session = following.session.key();
        self.reset_asked = Some(session);
        let (leader, epoch) = (following.leader, self.replica.epoch());
        self.services.ask_for_log_start(self.handle(), session, leader, epoch);
    }

    /// The leader has answered where its log starts.
    pub(super) fn reset_at(&mut self, now: Mono, session: u64, start: Result<LogStart, ApiError>) {
        if self.reset_asked.take_if(|asked| *asked == session).is_none() {
            // The session was given up meanwhile, and the replica still waits for its log to be replaced, unless it has
            // asked again.
            if self.reset_asked.is_none() && self.disk_jobs.is_empty() {
                self.step(now, Input::LinkLost);
            }
            return;
        }
        self.following = None;
        match start {
            Ok(start) => self.disk_jobs.push_back(DiskJob::Reset(start)),
            Err(error) => {
                info!(
                    topic = self.shared.topic, partition = %self.shared.partition, %error,
                    "the leader has not said where its log starts; it is asked again"
                );
                self.step(now, Input::LinkLost);
            }
        }
    }
}
