//! The coordinator of consumer groups, for the groups of one partition of the internal topic.
//!
//! A record machine: what is asked of it is decided by functions that change nothing and answer with records and a reply
//! ([`GroupShard::handle`], [`GroupShard::tick`]); only [`GroupShard::accept`] changes the state, and only by the records.
//! The shell appends them to the partition, in order, before it accepts a decision, and answers when they are committed.
//! So whoever reads the partition from its start has the state, and nobody was told what is not in it.
//!
//! The protocol is in the manner of KIP-848. Each member has a target, made here; it is told to give up what is not in it,
//! and is given what is in it once nobody else may own that any more. What it has before and after never pauses.
//! `docs/groups.md` has the rules and the invariants.

mod assignment;
pub mod assignor;
mod codec;
pub mod config;
mod decision;
mod describe;
mod draft;
mod expiry;
mod heartbeat;
mod join;
mod leave;
mod membership;
mod offsets;
mod pattern;
pub mod record;
mod tick;
mod timers;
pub mod topics;

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_protocol::error_code::ErrorCode;

pub use codec::RecordError;
use config::GroupConfig;
pub use decision::{Decision, Event, FenceReason, Now, Refusal, Reply, Request};
use membership::Membership;
use offsets::Offsets;
use record::{Change, Record};
use timers::{Timer, Timers};
use topics::Topics;

use crate::time::Mono;

/// Groups of one coordinator.
pub const GROUPS_MAX: usize = 50_000;

/// Positions of one group.
pub const GROUP_POSITIONS_MAX: usize = 100_000;

/// The groups of one partition of the internal topic, on the broker that leads it.
#[derive(Debug)]
pub struct GroupShard {
    config: GroupConfig,
    topics: Arc<Topics>,
    groups: BTreeMap<Arc<str>, Group>,
    timers: Timers,
    /// Where the search for expired positions goes on.
    expiry_after: Option<Arc<str>>,
    /// Records are still being read.
    loading: bool,
}

/// A group.
#[derive(Debug, Default)]
struct Group {
    membership: Membership,
    offsets: Offsets,
    /// When an assignment is to be made or checked.
    timer: Option<Mono>,
}

impl Group {
    fn is_nothing(&self) -> bool {
        self.membership.epochs.is_none() && self.membership.member_count() == 0 && self.offsets.is_empty()
    }
}

impl GroupShard {
    /// A coordinator that knows no group yet: records are read with [`GroupShard::replay`], then it starts.
    #[must_use]
    pub fn new(config: GroupConfig, topics: Arc<Topics>) -> Self {
        Self {
            config,
            topics,
            groups: BTreeMap::new(),
            timers: Timers::default(),
            expiry_after: None,
            loading: true,
        }
    }

    /// Reads one record of the partition. In the order of the partition, from its start.
    ///
    /// # Errors
    /// When it is damaged or of a later version: then this broker cannot coordinate these groups.
    pub fn replay(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), RecordError> {
        let record = Record::decode(key, value)?;
        self.apply(Mono::default(), &record);
        Ok(())
    }

    /// Everything is read: members have a full session from now on.
    pub fn start(&mut self, now: Mono) {
        self.loading = false;
        self.timers = Timers::default();
        self.timers.set(now.after(self.config.expiry_interval), Timer::Expiry);
        for (name, group) in &mut self.groups {
            group.membership.start(now);
            group.timer = Some(now);
            self.timers.set(now, Timer::Group(Arc::clone(name)));
            let deadlines: Vec<_> = group
                .membership
                .members()
                .map(|(id, profile, member)| (Arc::clone(id), member.next_look(&self.config, profile, now)))
                .collect();
            for (id, deadline) in deadlines {
                self.timers.set(deadline, Timer::Member(Arc::clone(name), Arc::clone(&id)));
                if let Some(member) = group.membership.member_mut(&id) {
                    member.timer = Some(deadline);
                }
            }
        }
        self.groups.retain(|_, group| !group.is_nothing());
    }

    /// The cluster image has changed: groups whose topics are affected get another assignment by a [`GroupShard::tick`].
    pub fn set_topics(&mut self, now: Mono, topics: Arc<Topics>) {
        if *self.topics == *topics {
            return;
        }
        self.topics = topics;
        if self.loading {
            return;
        }
        for (name, group) in &mut self.groups {
            if group.membership.member_count() > 0 {
                self.timers.move_group(name, &mut group.timer, now);
            }
        }
    }

    /// Decides what is asked. Changes nothing: that is for [`GroupShard::accept`].
    pub fn handle(&self, now: Now, request: &Request) -> Decision {
        if self.loading {
            let message = "the coordinator is reading the group's state: try again".to_owned();
            return Refusal::new(ErrorCode::CoordinatorLoading, message).into();
        }
        let decided = match request {
            Request::Heartbeat { request, host } => self.heartbeat(now, request, host),
            Request::Commit(request) => self.commit(now, request),
            Request::Fetch(request) => self.fetch(request),
            Request::List => Ok(self.list()),
            Request::Describe(group) => self.describe(now, group),
            Request::Alter(request) => self.alter(now, request),
            Request::Delete(group) => self.delete(group),
        };
        decided.unwrap_or_else(Into::into)
    }

    /// Carries a decision out, once its records are appended: everything that is decided later builds on them.
    pub fn accept(&mut self, now: Mono, decision: &Decision) {
        for record in &decision.records {
            self.apply(now, record);
        }
        if let Some((group, member)) = &decision.heard
            && let Some(group) = self.groups.get_mut(group)
            && let Some(member) = group.membership.member_mut(member)
        {
            member.heard = now;
        }
    }

    /// When the next [`GroupShard::tick`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        self.timers.first()
    }

    /// How many groups there are.
    #[must_use]
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// How many members all groups have.
    #[must_use]
    pub fn member_count(&self) -> usize {
        self.groups.values().map(|group| group.membership.member_count()).sum()
    }

    /// The state as records: who reads them in any order has it.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.groups.iter().flat_map(|(name, group)| {
            let members = group.membership.members().flat_map(|(id, profile, member)| {
                let profile = Change::Member(Arc::clone(id), Some(Arc::clone(profile)));
                let target = member.target.clone().map(|target| Change::Target(Arc::clone(id), Some(target)));
                let current =
                    member.current.clone().map(|current| Change::Current(Arc::clone(id), Some(current)));
                std::iter::once(profile).chain(target).chain(current)
            });
            let epochs = group.membership.epochs.map(|epochs| Change::Group(Some(epochs)));
            let positions = group
                .offsets
                .iter()
                .map(|(partition, position)| Change::Position(*partition, Some(position.clone())));
            epochs.into_iter().chain(members).chain(positions).map(|change| Record::new(name, change))
        })
    }

    /// Checks every invariant of the state. A violation is a defect.
    ///
    /// # Errors
    /// Says which is broken, and where.
    pub fn check_invariants(&self) -> Result<(), String> {
        for (name, group) in &self.groups {
            group.membership.check().map_err(|broken| format!("group {name}: {broken}"))?;
        }
        Ok(())
    }

    fn apply(&mut self, now: Mono, record: &Record) {
        let name = &record.group;
        if !self.groups.contains_key(name) {
            self.groups.insert(Arc::clone(name), Group::default());
        }
        let Some(group) = self.groups.get_mut(name) else { return };
        if let Change::Member(id, None) = &record.change
            && let Some(at) = group.membership.member(id).and_then(|(_, _, member)| member.timer)
        {
            self.timers.clear(at, Timer::Member(Arc::clone(name), Arc::clone(id)));
        }
        match &record.change {
            Change::Position(partition, position) => group.offsets.apply(*partition, position.as_ref()),
            change => group.membership.apply(now, change),
        }
        if !self.loading {
            self.timers.follow(&self.config, now, name, group, &record.change);
        }
        if group.is_nothing() {
            if let Some(at) = group.timer {
                self.timers.clear(at, Timer::Group(Arc::clone(name)));
            }
            self.groups.remove(name);
        }
    }
}
