//! Consumer groups: consumers that share topics, and what keeps them together.

mod consumer;
pub(crate) mod coordinator;
mod driver;
mod member;
mod positions;
mod records;
mod session;
mod tracker;

use std::sync::Arc;
use std::time::Duration;

use highwater_protocol::group_name::{check_group_name, check_instance_id};
use highwater_protocol::limits::{GROUP_PATTERN_BYTES_MAX, GROUP_TOPICS_MAX};
use highwater_protocol::messages::GroupSubscription;
use tokio::sync::oneshot;

pub use self::consumer::{Commit, GroupConsumer, GroupOffset};
pub use self::records::{AssignedPartition, GroupBatch, GroupEvent, GroupPartition, GroupRecord, LossCause};

use self::driver::{Driver, Identity};
use self::member::Timing;
use self::session::Session;
use crate::client::Client;
use crate::consumer::{Reader, Scope, StartAt, now};
use crate::error::{Error, ErrorKind};

/// When a record counts as finished, so that its position may be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finishing {
    /// When the application asks for the next one.
    Next,
    /// When the application says so.
    Explicit,
    /// Before the application has it.
    Before,
}

/// Settings of a [`GroupConsumer`].
#[derive(Debug, Clone)]
#[must_use = "a consumer is made by build()"]
pub struct GroupConsumerBuilder {
    client: Client,
    group: String,
    topics: Vec<String>,
    pattern: Option<String>,
    start: StartAt,
    instance_id: Option<String>,
    take_over: bool,
    rack: Option<String>,
    assignor: Option<String>,
    timing: Timing,
    finishing: Finishing,
    memory_bytes: usize,
    repair_timeout: Duration,
}

impl GroupConsumerBuilder {
    pub(crate) const fn new(client: Client, group: String) -> Self {
        Self {
            client,
            group,
            topics: Vec::new(),
            pattern: None,
            start: StartAt::Earliest,
            instance_id: None,
            take_over: false,
            rack: None,
            assignor: None,
            timing: Timing {
                session: Duration::from_secs(10),
                rebalance: Duration::from_secs(60),
                poll_max: Duration::from_secs(300),
                commit: Some(Duration::from_secs(1)),
            },
            finishing: Finishing::Next,
            memory_bytes: 16 << 20,
            repair_timeout: Duration::from_secs(15),
        }
    }

    /// The topics to read. They may be made later, and so may more partitions of them.
    pub fn topics<I>(mut self, topics: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.topics = topics.into_iter().map(Into::into).collect();
        self
    }

    /// Reads every topic whose whole name matches, also those that are made later: `*` stands for any characters, `?` for
    /// one, and commas separate patterns.
    pub fn pattern(mut self, pattern: impl Into<String>) -> Self {
        self.pattern = Some(pattern.into());
        self
    }

    /// Where to begin in partitions of which the group has no position. Default: [`StartAt::Earliest`], with which nothing
    /// is skipped in a partition that is added later.
    pub const fn from(mut self, start: StartAt) -> Self {
        self.start = start;
        self
    }

    /// Makes it a static member, under a name that it keeps over restarts: if it comes back within the session time-out, it
    /// gets what it had, and nothing moves. Close it with [`GroupConsumer::close_for_restart`].
    pub fn instance(mut self, instance_id: impl Into<String>) -> Self {
        self.instance_id = Some(instance_id.into());
        self
    }

    /// As a static member, takes the place of one of the same name even if that one is alive.
    pub const fn take_over(mut self) -> Self {
        self.take_over = true;
        self
    }

    /// Where the consumer runs: it is rather given partitions that have a replica there.
    pub fn rack(mut self, rack: impl Into<String>) -> Self {
        self.rack = Some(rack.into());
        self
    }

    /// How the group's partitions are shared out: `consistent` (the default of brokers), `range` or `uniform`.
    pub fn assignor(mut self, assignor: impl Into<String>) -> Self {
        self.assignor = Some(assignor.into());
        self
    }

    /// After this long without a sign of life the group takes the consumer for dead. It is also the longest time for which
    /// records are handed out without hearing from the group's coordinator. Default: 10 s.
    pub const fn session_timeout(mut self, timeout: Duration) -> Self {
        self.timing.session = timeout;
        self
    }

    /// How long the consumer may take to give up partitions: longer than the application may be busy with one record.
    /// Default: 60 s.
    pub const fn rebalance_timeout(mut self, timeout: Duration) -> Self {
        self.timing.rebalance = timeout;
        self
    }

    /// How long the application may be busy with what it was given before the consumer leaves the group, so that others go on
    /// with its partitions; it joins again when it is asked for more. Default: 5 min.
    pub const fn max_poll_interval(mut self, interval: Duration) -> Self {
        self.timing.poll_max = interval;
        self
    }

    /// How often finished records are committed by themselves. They also are when partitions are given up and when the
    /// consumer is closed. Default: 1 s.
    pub const fn commit_every(mut self, interval: Duration) -> Self {
        self.timing.commit = Some(interval);
        self
    }

    /// Commits only when the application says so: [`GroupConsumer::commit`] and its like.
    pub const fn commit_manually(mut self) -> Self {
        self.timing.commit = None;
        self
    }

    /// A record counts as finished only when the application says so, by [`GroupConsumer::finish`] in any order or by
    /// [`GroupConsumer::finish_before`]: for applications that work on several records at once. Otherwise it does when
    /// the next one is asked for.
    pub const fn finish_explicitly(mut self) -> Self {
        self.finishing = Finishing::Explicit;
        self
    }

    /// Every record at most once: its position is committed before it is handed out. What an application has in hand when it
    /// dies is not seen by anybody. Otherwise every record comes at least once.
    pub const fn at_most_once(mut self) -> Self {
        self.finishing = Finishing::Before;
        self
    }

    /// Bytes of batches that brokers may send ahead of the application, over all partitions, which have equal shares
    /// of at least 16 KiB. Each partition may exceed its share by one batch. Default: 16 MiB.
    pub const fn memory_bytes(mut self, bytes: usize) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// As [`ConsumerBuilder::repair_timeout`](crate::ConsumerBuilder::repair_timeout). Default: 15 s.
    pub const fn repair_timeout(mut self, timeout: Duration) -> Self {
        self.repair_timeout = timeout;
        self
    }

    /// Joins the group. When it returns the consumer is a member; partitions come when others have given them up. Must be
    /// called in a tokio runtime.
    ///
    /// Cancel safe: cancelled, what had joined leaves again.
    ///
    /// # Errors
    /// `InvalidArgument` for a name or time that cannot be, `Conflict` when the group is full or the instance is alive
    /// elsewhere, or what kept the group's coordinator from answering within the request timeout.
    pub async fn build(self) -> Result<GroupConsumer, Error> {
        self.check().map_err(|error| error.with_group(&self.group))?;
        let group: Arc<str> = self.group.into();
        let reader = Reader::start(self.client.clone(), Scope::Group, self.memory_bytes, self.repair_timeout);
        let session = Arc::new(Session::new(Arc::clone(&group), reader.supply(), now()));
        let identity = Identity {
            subscription: GroupSubscription { topics: self.topics, pattern: self.pattern },
            instance_id: self.instance_id,
            rack: self.rack,
            assignor: self.assignor,
            take_over: self.take_over,
            start: self.start,
        };
        let (done, joined) = oneshot::channel();
        let deadline = self.client.deadline();
        let driver = Driver::new(self.client, Arc::clone(&session), identity, self.timing, done);
        tokio::spawn(driver.run());
        // Dropped before it is returned, it leaves.
        let consumer = GroupConsumer::new(reader, session, self.finishing);
        match tokio::time::timeout_at(deadline, joined).await {
            Ok(Ok(Ok(()))) => Ok(consumer),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(Error::new(ErrorKind::Closed, "the consumer has ended").with_group(&group)),
            Err(_) => {
                let text = "the group's coordinator did not let the consumer join in time";
                Err(Error::new(ErrorKind::TimedOut, text).with_group(&group))
            }
        }
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
        if let Err(error) = check_group_name(&self.group) {
            return wrong(error.to_string());
        }
        if let Some(Err(error)) = self.instance_id.as_deref().map(check_instance_id) {
            return wrong(error.to_string());
        }
        if self.topics.is_empty() && self.pattern.is_none() {
            return wrong(String::from("a member of a group needs topics or a pattern"));
        }
        if self.topics.len() > GROUP_TOPICS_MAX {
            let text =
                format!("{} topics, more than {GROUP_TOPICS_MAX}; a pattern may do", self.topics.len());
            return wrong(text);
        }
        let pattern_bytes = self.pattern.as_ref().map_or(0, String::len);
        if pattern_bytes > GROUP_PATTERN_BYTES_MAX {
            return wrong(format!(
                "the pattern has {pattern_bytes} bytes, more than {GROUP_PATTERN_BYTES_MAX}"
            ));
        }
        let timing = self.timing;
        let times =
            [timing.session, timing.rebalance, timing.poll_max, timing.commit.unwrap_or(timing.session)];
        if times.iter().any(|time| time.as_millis() == 0 || time.as_millis() > u128::from(u32::MAX)) {
            return wrong(String::from("the times of a member are between a millisecond and 49 days"));
        }
        Ok(())
    }
}
