//! The first start of a broker: what its data directory is for, and how a cluster comes to be.
//!
//! A cluster is initialised only when every listed voter has answered with the same list, each from a directory that has
//! the list on stable storage, and none of them is in a cluster. Whatever does not fit is refused with the way out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{ClusterId, DirectoryId, NodeId};
use highwater_protocol::messages::{BootstrapReply, BootstrapRequest, Voter};
use tokio::time::Instant;
use tracing::{info, warn};

use super::consensus::{Member, Membership, Raft};
use super::core::{Core, Setup};
use super::store::{Formatted, ListedVoter};
use crate::api::ApiError;

/// Between two rounds of questions.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// How long a voter may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// How often an operator is told what is waited for.
const REPORT_PERIOD: Duration = Duration::from_secs(5);
/// How long another voter may contradict before this broker gives up: the others may be about to be started again with
/// the same list.
const CONTRADICTION_MAX: Duration = Duration::from_secs(10);

/// What the data directory is for: as it was formatted, or as it is to be formatted now.
///
/// # Errors
/// Says what does not fit, and what to do.
pub(super) fn plan_format(
    setup: &Setup,
    present: Option<&Formatted>,
    initialised: bool,
    has_old_topics: bool,
) -> Result<Formatted, String> {
    let me = setup.node_id;
    if let Some(present) = present {
        check_owner(setup, present)?;
        if initialised {
            return Ok(present.clone());
        }
    }
    let alone = setup.voters.is_empty() && setup.join.is_none();
    if has_old_topics && !alone {
        return Err(format!(
            "the data directory has topics of broker {me} on its own: start it once without --voters and --join, so that \
             it becomes a cluster of one, and let other brokers join it with --join"
        ));
    }
    if alone && present.is_some_and(|present| present.voters.len() != 1 || present.voters[0].node_id != me) {
        return Err(format!(
            "the data directory was formatted for a cluster that has not started yet{}: start the broker with --voters or \
             --join as before, or with another --data-dir",
            present.map_or_else(String::new, |present| format!(" ({})", list_text(&present.voters)))
        ));
    }
    let voters = if alone {
        vec![ListedVoter { node_id: me, address: setup.address.clone() }]
    } else {
        setup.voters.clone()
    };
    Ok(Formatted { node_id: me, directory_id: setup.directory_id, voters })
}

fn check_owner(setup: &Setup, present: &Formatted) -> Result<(), String> {
    if present.node_id != setup.node_id {
        return Err(format!(
            "the data directory belongs to broker {}, and this is broker {}: start it with --node-id {}, or with the \
             --data-dir of broker {}",
            present.node_id, setup.node_id, present.node_id, setup.node_id
        ));
    }
    if present.directory_id != setup.directory_id {
        return Err(format!(
            "the controller's state in the data directory comes from directory {}, and this is directory {}: put the file \
             'controller' back where it was, or start with an empty --data-dir, a new --node-id and --join",
            present.directory_id, setup.directory_id
        ));
    }
    Ok(())
}

fn list_text(voters: &[ListedVoter]) -> String {
    let mut text = String::from("--voters ");
    for (index, voter) in voters.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _infallible = write!(text, "{comma}{}@{}", voter.node_id, voter.address);
    }
    text
}

impl Core {
    /// What this broker is, for others that come up. Its list is on stable storage before this answers.
    pub(crate) fn bootstrap_reply(&self) -> Result<BootstrapReply, ApiError> {
        let formatted = self.formatted.load_full().ok_or_else(|| {
            ApiError::new(ErrorCode::NoController, "this broker is starting and cannot tell yet what it is")
        })?;
        let view = self.view.borrow().clone();
        let cluster_id = self.image().cluster_id;
        Ok(BootstrapReply {
            node_id: formatted.node_id.get(),
            directory_id: Some(formatted.directory_id.into()),
            voters: formatted.voters.iter().map(to_wire).collect(),
            cluster_id: (!cluster_id.is_absent()).then(|| cluster_id.into()),
            initialised: view.initialised,
            members: view
                .members
                .iter()
                .map(|(id, member)| Voter {
                    node_id: id.get(),
                    address: member.address.clone(),
                    directory_id: Some(member.directory_id.into()),
                })
                .collect(),
        })
    }

    fn question(&self, formatted: &Formatted) -> BootstrapRequest {
        BootstrapRequest {
            node_id: formatted.node_id.get(),
            directory_id: Some(formatted.directory_id.into()),
            voters: formatted.voters.iter().map(to_wire).collect(),
        }
    }
}

fn to_wire(voter: &ListedVoter) -> Voter {
    Voter { node_id: voter.node_id.get(), address: voter.address.clone(), directory_id: None }
}

/// What one voter's answer means for us.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// It has the same list and is in no cluster; this is its directory.
    Same(DirectoryId),
    /// It is in a cluster that counts on us: its controller will call.
    Expected,
    /// It does not fit, maybe not yet.
    Contradicts(String),
    /// It will never fit.
    Refused(String),
}

fn judge(me: &Formatted, asked: &ListedVoter, reply: &BootstrapReply) -> Answer {
    if reply.node_id != asked.node_id.get() {
        return Answer::Contradicts(format!(
            "at {} is broker {}, and the list of voters says that it is broker {}: correct --voters, the same for all \
             brokers",
            asked.address, reply.node_id, asked.node_id
        ));
    }
    if reply.initialised {
        return judge_member(me, asked, reply);
    }
    let theirs: Vec<(u32, &str)> = reply.voters.iter().map(|v| (v.node_id, v.address.as_str())).collect();
    let ours: Vec<(u32, &str)> = me.voters.iter().map(|v| (v.node_id.get(), v.address.as_str())).collect();
    if theirs != ours {
        let theirs = reply
            .voters
            .iter()
            .map(|voter| ListedVoter { node_id: NodeId(voter.node_id), address: voter.address.clone() })
            .collect::<Vec<_>>();
        let theirs = if theirs.is_empty() { "--join".to_owned() } else { list_text(&theirs) };
        return Answer::Contradicts(format!(
            "broker {} at {} was started with {theirs}, this broker with {}: start all of them with the same list",
            asked.node_id,
            asked.address,
            list_text(&me.voters)
        ));
    }
    match reply.directory_id {
        Some(directory_id) => Answer::Same(directory_id.into()),
        None => Answer::Contradicts(format!("broker {} does not tell its directory id", asked.node_id)),
    }
}

/// It is in a cluster already: does that cluster know us?
fn judge_member(me: &Formatted, asked: &ListedVoter, reply: &BootstrapReply) -> Answer {
    let cluster = reply.cluster_id.map(ClusterId::from);
    let cluster = cluster.map_or_else(|| "a cluster".to_owned(), |id| format!("cluster {id}"));
    let known = reply.members.iter().find(|member| member.node_id == me.node_id.get());
    match known.and_then(|member| member.directory_id).map(DirectoryId::from) {
        Some(directory_id) if directory_id == me.directory_id => Answer::Expected,
        Some(directory_id) => {
            Answer::Refused(other_directory(me.node_id, &cluster, directory_id, me.directory_id))
        }
        None => Answer::Refused(format!(
            "broker {} at {} is in {cluster} already, and broker {} is not: start this broker with --join {} instead of \
             --voters",
            asked.node_id, asked.address, me.node_id, asked.address
        )),
    }
}

/// The text for a broker whose directory is not the one that its node id is known with.
pub(super) fn other_directory(node: NodeId, cluster: &str, known: DirectoryId, ours: DirectoryId) -> String {
    format!(
        "broker {node} of {cluster} has data directory {known}, and this one is {ours}: start it with the --data-dir that \
         it had; if that is lost, start this one with a new --node-id and --join, then run `highwater cluster remove {node}`"
    )
}

/// Comes up as a broker that is in no cluster yet: makes one together with the other voters, or waits to be called into
/// one. Returns when the engine has something to go on.
///
/// # Errors
/// Says why this broker can never come up like that, and what to do.
pub(super) async fn come_up(core: &Arc<Core>, raft: &Raft, formatted: &Formatted) -> Result<(), String> {
    let mut view = core.view.subscribe();
    let mut waiting = Waiting::default();
    loop {
        if view.borrow_and_update().initialised {
            return Ok(());
        }
        if formatted.voters.is_empty() {
            // Whoever joins registers, and is called by the controller then.
            let _changed = view.changed().await;
            continue;
        }
        match ask_all(core, formatted).await {
            Round::Complete(members) => {
                // One is enough, and who it is does not matter.
                if members.keys().next() == Some(&formatted.node_id) {
                    initialise(raft, members).await;
                }
            }
            Round::Waits(why) => waiting.report(core, &why),
            Round::Contradiction(why) => {
                waiting.report(core, &why);
                if waiting.contradicted_for_too_long() {
                    return Err(why);
                }
                pause(&mut view).await;
                continue;
            }
            Round::Refused(why) => return Err(why),
        }
        waiting.contradicted_since = None;
        pause(&mut view).await;
    }
}

async fn pause(view: &mut tokio::sync::watch::Receiver<super::core::View>) {
    let _changed_or_not = tokio::time::timeout(ROUND_PAUSE, view.changed()).await;
}

#[derive(Default)]
struct Waiting {
    contradicted_since: Option<Instant>,
    reported_at: Option<Instant>,
}

impl Waiting {
    fn report(&mut self, core: &Core, why: &str) {
        *core.waits_for.lock() = Some(format!("the cluster has not started yet: {why}"));
        if self.reported_at.is_none_or(|at| at.elapsed() >= REPORT_PERIOD) {
            self.reported_at = Some(Instant::now());
            warn!("the cluster has not started yet: {why}");
        }
    }

    fn contradicted_for_too_long(&mut self) -> bool {
        self.contradicted_since.get_or_insert_with(Instant::now).elapsed() >= CONTRADICTION_MAX
    }
}

/// What all voters together say.
enum Round {
    Complete(BTreeMap<NodeId, Member>),
    Waits(String),
    Contradiction(String),
    Refused(String),
}

async fn ask_all(core: &Arc<Core>, formatted: &Formatted) -> Round {
    let mut members = BTreeMap::new();
    let (mut waits, mut contradiction) = (None, None);
    for voter in &formatted.voters {
        let directory_id = if voter.node_id == formatted.node_id {
            formatted.directory_id
        } else {
            let deadline = Instant::now() + ANSWER_TIMEOUT;
            let answer = core.links.request(&voter.address, &core.question(formatted), deadline).await;
            match answer.map(|reply| judge(formatted, voter, &reply)) {
                Ok(Answer::Same(directory_id)) => directory_id,
                Ok(Answer::Expected) => {
                    waits = Some(
                        "the cluster counts on this broker, and its controller has not called yet".to_owned(),
                    );
                    continue;
                }
                Ok(Answer::Refused(why)) => return Round::Refused(why),
                Ok(Answer::Contradicts(why)) => {
                    contradiction = Some(why);
                    continue;
                }
                Err(error) if error.code == Some(ErrorCode::NotAuthorized) => {
                    contradiction = Some(format!("broker {} refuses: {error}", voter.node_id));
                    continue;
                }
                Err(error) => {
                    waits = Some(format!("voter {} does not answer: {error}", voter.node_id));
                    continue;
                }
            }
        };
        members.insert(voter.node_id, Member { address: voter.address.clone(), directory_id });
    }
    match (contradiction, waits) {
        (Some(why), _) => Round::Contradiction(why),
        (None, Some(why)) => Round::Waits(why),
        (None, None) => Round::Complete(members),
    }
}

async fn initialise(raft: &Raft, members: BTreeMap<NodeId, Member>) {
    let members: BTreeMap<u64, Member> =
        members.into_iter().map(|(id, member)| (u64::from(id.get()), member)).collect();
    let voters = members.len();
    match raft.initialize(members).await {
        Ok(()) => info!(voters, "the cluster is initialised"),
        // Somebody was faster, or the engine has failed, which shows elsewhere.
        Err(error) => info!(%error, "the cluster was not initialised by this broker"),
    }
}

/// Refuses to start beside another process that runs with a copy of this very directory.
///
/// # Errors
/// Says where the other one is.
pub(super) async fn check_not_started_twice(core: &Core, membership: &Membership) -> Result<(), String> {
    let (me, image) = (&core.setup, core.image());
    // A cluster of its own: there is nobody whom a copy could disturb.
    if membership.membership().nodes().count() <= 1 {
        return Ok(());
    }
    let mut others: Vec<String> = Vec::new();
    others.extend(image.broker(me.node_id).map(|broker| broker.address.clone()));
    let member = membership.membership().get_node(&u64::from(me.node_id.get()));
    others.extend(member.map(|member| member.address.clone()));
    others.sort_unstable();
    others.dedup();
    if !others.contains(&me.address) {
        others.push(me.address.clone());
    }
    for address in others {
        let Ok(answering) = core.links.probe(&address).await else { continue };
        // At our own address we may answer ourselves, but then as a broker that is not registered: we are not.
        let another = address != me.address || answering.broker_epoch.get() != 0;
        if another && answering.node_id == me.node_id && answering.directory_id == me.directory_id {
            return Err(format!(
                "broker {} is running already at {address}, with a data directory of which this one is a copy: stop that one \
                 first, or start this one with an empty --data-dir, a new --node-id and --join",
                me.node_id
            ));
        }
    }
    Ok(())
}

/// Refuses to start with the directory of another cluster than the one that this broker is told about.
///
/// # Errors
/// Says whose directory it is.
pub(super) async fn check_same_cluster(core: &Arc<Core>, formatted: &Formatted) -> Result<(), String> {
    let (me, cluster_id) = (&core.setup, core.image().cluster_id);
    let listed = me.voters.iter().filter(|voter| voter.node_id != me.node_id).map(|voter| &voter.address);
    let mut asking = tokio::task::JoinSet::new();
    for address in listed.chain(me.join.as_ref()).cloned() {
        let (core, question) = (Arc::clone(core), core.question(formatted));
        asking.spawn(async move {
            let answer = core.links.request(&address, &question, Instant::now() + ANSWER_TIMEOUT).await;
            (address, answer)
        });
    }
    while let Some(asked) = asking.join_next().await {
        // Whoever does not answer now is found out later: it speaks to no broker of another cluster.
        if let Ok((address, Err(error))) = asked
            && error.code == Some(ErrorCode::WrongCluster)
        {
            return Err(format!(
                "the data directory belongs to cluster {cluster_id}, and the broker at {address} does not: start this \
                 broker with the --data-dir that it has in that cluster, or with an empty one, a new --node-id and --join \
                 ({error})"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
