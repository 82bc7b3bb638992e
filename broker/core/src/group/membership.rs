//! Who is in a group, what each member is to have and may own: what its records add up to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use highwater_protocol::ids::TopicPartition;

use super::assignor::Assignor;
use super::config::GroupConfig;
use super::record::{Change, Current, Epochs, Profile, Target};
use crate::time::Mono;

/// The members of a group. Cheap to clone: members are shared until they change.
///
/// Invariants, checked by [`Membership::check`]; the numbers are those of `docs/groups.md`:
/// - G1: no partition is in what two members may own (`assigned` or `revoking`).
/// - G2: what a member may own was given to it in a generation from the one in which it joined to its present one.
/// - G3: no generation is higher than the group's, and `assigned` is not higher than `generation`.
/// - G4: no two members have the same instance id.
#[derive(Debug, Clone, Default)]
pub(super) struct Membership {
    /// Absent: there is no record of the group as a whole, only positions.
    pub(super) epochs: Option<Epochs>,
    members: BTreeMap<Arc<str>, Arc<Member>>,
    instances: BTreeMap<Arc<str>, Arc<str>>,
    owners: Arc<BTreeMap<TopicPartition, Arc<str>>>,
    /// When targets were last made. Not recorded.
    pub(super) assigned_at: Option<Mono>,
    /// When the next member will be fenced that has missed a heartbeat, unless it is heard of. Not recorded.
    pub(super) suspect: Option<Mono>,
}

/// A member of a group, as far as there are records of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Member {
    pub(super) profile: Option<Arc<Profile>>,
    pub(super) target: Option<Target>,
    pub(super) current: Option<Current>,
    /// The last heartbeat. Not recorded.
    pub(super) heard: Mono,
    /// Since when it has had something to give up. Not recorded.
    pub(super) revoking_since: Option<Mono>,
    /// When it is to be looked at. Not recorded.
    pub(super) timer: Option<Mono>,
}

impl Member {
    fn is_nothing(&self) -> bool {
        self.profile.is_none() && self.target.is_none() && self.current.is_none()
    }

    /// When the member is taken for dead, or for one that does not give up what it has to.
    pub(super) fn deadline(&self, profile: &Profile) -> Mono {
        let session = self.heard.after(Duration::from_millis(profile.session_timeout_ms.into()));
        let rebalance = Duration::from_millis(profile.rebalance_timeout_ms.into());
        self.revoking_since.map_or(session, |since| since.after(rebalance).min(session))
    }

    /// When the member is next looked at: once it has missed a heartbeat, and then when its time is up.
    pub(super) fn next_look(&self, config: &GroupConfig, profile: &Profile, now: Mono) -> Mono {
        let (suspected, deadline) = (self.suspected(config, profile), self.deadline(profile));
        if suspected > now { suspected.min(deadline) } else { deadline }
    }

    /// When the member has missed a heartbeat.
    fn suspected(&self, config: &GroupConfig, profile: &Profile) -> Mono {
        self.heard.after(config.suspicion(profile.session_timeout_ms))
    }

    /// What it is to have, if that was decided since it joined and has this subscription, by an assignment that is
    /// complete: `assigned` is the last one that is. A target of a later generation is from a coordinator that died
    /// before it had recorded all of them; another one may decide otherwise under the same number.
    pub(super) fn valid_target(&self, assigned: u32) -> Option<&Target> {
        let from = self.current.as_ref()?.generation.max(self.profile.as_ref()?.subscribed);
        let complete =
            |target: &Target| target.generation <= assigned || cfg!(hw_mutate = "group_half_an_assignment");
        self.target.as_ref().filter(|target| target.generation >= from && complete(target))
    }

    /// It owns what it is to have, and nothing else.
    pub(super) fn is_settled(&self, assigned: u32) -> bool {
        let (Some(current), Some(target)) = (&self.current, self.valid_target(assigned)) else {
            return false;
        };
        current.generation == target.generation
            && current.revoking.is_empty()
            && current.assigned.keys().eq(target.partitions.iter())
    }
}

impl Membership {
    pub(super) fn generation(&self) -> u32 {
        self.epochs.map_or(0, |epochs| epochs.generation)
    }

    /// The last generation whose targets are all there.
    pub(super) fn assigned(&self) -> u32 {
        self.epochs.map_or(0, |epochs| epochs.assigned)
    }

    /// Members, subscriptions or topics have changed since targets were made.
    pub(super) fn is_assignment_due(&self) -> bool {
        self.epochs.is_some_and(|epochs| epochs.assigned < epochs.generation)
    }

    pub(super) fn assignor(&self) -> Option<Assignor> {
        self.epochs.map(|epochs| epochs.assignor)
    }

    /// The members that are known by name, in order.
    pub(super) fn members(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Profile>, &Member)> {
        self.members.iter().filter_map(|(id, member)| Some((id, member.profile.as_ref()?, &**member)))
    }

    pub(super) fn member_count(&self) -> usize {
        // Entries without a profile are there only while records are read.
        self.members.len()
    }

    pub(super) fn member(&self, id: &str) -> Option<(&Arc<str>, &Arc<Profile>, &Member)> {
        let (id, member) = self.members.get_key_value(id)?;
        Some((id, member.profile.as_ref()?, member))
    }

    pub(super) fn member_mut(&mut self, id: &str) -> Option<&mut Member> {
        self.members.get_mut(id).map(Arc::make_mut)
    }

    /// The member with this instance id.
    pub(super) fn instance(&self, instance_id: &str) -> Option<(&Arc<str>, &Arc<Profile>, &Member)> {
        self.member(self.instances.get(instance_id)?)
    }

    /// Who may own the partition now.
    pub(super) fn owner(&self, partition: TopicPartition) -> Option<&Arc<str>> {
        self.owners.get(&partition)
    }

    /// Everything that somebody may own now.
    pub(super) fn owned(&self) -> impl Iterator<Item = (&TopicPartition, &Arc<str>)> {
        self.owners.iter()
    }

    /// Carries out a change. Positions are not kept here.
    pub(super) fn apply(&mut self, now: Mono, change: &Change) {
        match change {
            Change::Group(epochs) => {
                let assigned = |epochs: Option<Epochs>| epochs.map_or(0, |epochs| epochs.assigned);
                if assigned(*epochs) > assigned(self.epochs) && !self.members.is_empty() {
                    self.assigned_at = Some(now);
                }
                self.epochs = *epochs;
            }
            Change::Member(id, profile) => self.apply_profile(now, id, profile.as_ref()),
            Change::Target(id, target) => self.entry(id, |member| member.target.clone_from(target)),
            Change::Current(id, current) => self.apply_current(now, id, current.as_ref()),
            Change::Position(..) => {}
        }
    }

    fn entry(&mut self, id: &Arc<str>, change: impl FnOnce(&mut Member)) {
        let member = Arc::make_mut(self.members.entry(Arc::clone(id)).or_default());
        change(member);
        if member.is_nothing() {
            self.members.remove(id);
        }
    }

    fn apply_profile(&mut self, now: Mono, id: &Arc<str>, profile: Option<&Arc<Profile>>) {
        let before = self.members.get(id).and_then(|member| member.profile.clone());
        let instance = |profile: &Arc<Profile>| profile.instance_id.clone();
        if let Some(instance) = before.as_ref().and_then(instance)
            && self.instances.get(&instance) == Some(id)
        {
            self.instances.remove(&instance);
        }
        if let Some(instance) = profile.and_then(instance) {
            self.instances.insert(instance, Arc::clone(id));
        }
        self.entry(id, |member| {
            member.profile = profile.cloned();
            member.heard = now;
        });
    }

    fn apply_current(&mut self, now: Mono, id: &Arc<str>, current: Option<&Current>) {
        let before = self.members.get(id).and_then(|member| member.current.clone()).unwrap_or_default();
        let nothing = Current::default();
        let after = current.unwrap_or(&nothing);
        let has = |current: &Current, partition| {
            current.assigned.contains_key(partition) || current.revoking.contains_key(partition)
        };
        let owners = Arc::make_mut(&mut self.owners);
        for partition in before.assigned.keys().chain(before.revoking.keys()) {
            if !has(after, partition) && owners.get(partition) == Some(id) {
                owners.remove(partition);
            }
        }
        for partition in after.assigned.keys().chain(after.revoking.keys()) {
            if !has(&before, partition) {
                owners.insert(*partition, Arc::clone(id));
            }
        }
        self.entry(id, |member| {
            let since = member.revoking_since.unwrap_or(now);
            member.revoking_since = current.filter(|current| !current.revoking.is_empty()).map(|_| since);
            member.current = current.cloned();
        });
    }

    /// Looks again for members that have missed a heartbeat.
    pub(super) fn find_suspect(&mut self, config: &GroupConfig, now: Mono) {
        let silent = self.members().filter(|(_, profile, member)| member.suspected(config, profile) <= now);
        self.suspect = silent.map(|(_, profile, member)| member.deadline(profile)).min();
    }

    /// A member has missed a heartbeat.
    pub(super) fn suspect(&mut self, deadline: Mono, now: Mono) {
        let others = self.suspect.filter(|others| *others >= now);
        self.suspect = Some(others.map_or(deadline, |others| others.min(deadline)));
    }

    /// After a load: whoever has no profile is nobody, whatever else is recorded of it; everybody has a full session.
    pub(super) fn start(&mut self, now: Mono) {
        let strangers: Vec<Arc<str>> = self
            .members
            .iter()
            .filter(|(_, member)| member.profile.is_none())
            .map(|(id, _)| Arc::clone(id))
            .collect();
        for id in strangers {
            self.apply_current(now, &id, None);
            self.members.remove(&id);
        }
        for member in self.members.values_mut() {
            let member = Arc::make_mut(member);
            member.heard = now;
            member.revoking_since = member.revoking_since.map(|_| now);
        }
        self.assigned_at = None;
    }

    /// What is wrong with the state, if anything.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut owners: BTreeMap<&TopicPartition, &str> = BTreeMap::new();
        let mut instances: BTreeMap<&str, &str> = BTreeMap::new();
        let generation = self.generation();
        if self.epochs.is_some_and(|epochs| epochs.assigned > epochs.generation) {
            return Err("G3: targets were made for a generation that has not been".to_owned());
        }
        for (id, profile, member) in self.members() {
            if let Some(other) =
                profile.instance_id.as_deref().and_then(|instance| instances.insert(instance, id))
            {
                return Err(format!("G4: {id} and {other} have the same instance id"));
            }
            let Some(current) = &member.current else { continue };
            if current.generation > generation {
                return Err(format!(
                    "G3: {id} is in generation {}, the group in {generation}",
                    current.generation
                ));
            }
            for (partition, since) in current.assigned.iter().chain(&current.revoking) {
                if let Some(other) = owners.insert(partition, id) {
                    return Err(format!("G1: {partition} may be owned by {id} and by {other}"));
                }
                if *since < profile.joined || *since > current.generation {
                    return Err(format!("G2: {id} has {partition} since generation {since}"));
                }
            }
        }
        let recorded = self.owners.iter().map(|(partition, owner)| (partition, &**owner));
        if !recorded.eq(owners.iter().map(|(partition, owner)| (*partition, *owner))) {
            return Err("the index of owners differs from what members may own".to_owned());
        }
        Ok(())
    }
}
