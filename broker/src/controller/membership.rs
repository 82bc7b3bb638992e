//! Who votes: one broker, three or five, never an even number. Every other broker is a learner and has the image too.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::controller::image::{BrokerState, ClusterImage};
use highwater_protocol::ids::NodeId;
use openraft::ChangeMembers;
use tracing::{info, warn};

use super::core::{Core, View};

/// Voters at the most.
const VOTERS_MAX: usize = 5;
/// How long a change of the members may take before the controller looks at other things again.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(2);

/// Remembers which brokers are removed from the cluster, on every broker: whoever is the controller next has to know.
pub(super) async fn watch_removed(core: Arc<Core>) {
    let mut versions = core.shown.versions();
    let mut before: BTreeSet<NodeId> = BTreeSet::new();
    loop {
        versions.borrow_and_update();
        let present: BTreeSet<NodeId> = core.image().brokers().map(|broker| broker.node_id).collect();
        if present != before {
            let mut removed = core.removed.lock();
            removed.extend(before.difference(&present));
            removed.retain(|node| !present.contains(node));
        }
        before = present;
        if versions.changed().await.is_err() {
            return;
        }
    }
}

/// A change of the members that is due.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Voters(BTreeSet<u64>),
    /// They are no brokers of the cluster any more.
    Forget(BTreeSet<u64>),
}

/// Brings the members in line with the brokers: one change at a time.
pub(super) async fn settle(core: &Arc<Core>) {
    let change = {
        let view = core.view.borrow();
        if !view.serves {
            return;
        }
        due(core.setup.node_id, &view, &core.image(), &core.removed.lock())
    };
    let (Some(change), Ok(raft)) = (change, core.engine()) else { return };
    let (what, changed) = match change {
        Change::Voters(voters) => (
            format!("voters {voters:?}"),
            raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), true),
        ),
        Change::Forget(nodes) => {
            (format!("without {nodes:?}"), raft.change_membership(ChangeMembers::RemoveNodes(nodes), true))
        }
    };
    match tokio::time::timeout(CHANGE_TIMEOUT, changed).await {
        Ok(Ok(_)) => info!(what, "the members of consensus were changed"),
        Ok(Err(error)) => warn!(what, %error, "the members of consensus could not be changed yet"),
        Err(_) => warn!(what, "the change of the members of consensus takes long"),
    }
}

fn due(me: NodeId, view: &View, image: &ClusterImage, removed: &BTreeSet<NodeId>) -> Option<Change> {
    let active =
        |node: &NodeId| image.broker(*node).is_some_and(|broker| broker.state == BrokerState::Active);
    let voters: BTreeSet<NodeId> = view.voters.iter().copied().collect();
    let is_removed = |node: &NodeId| removed.contains(node) && image.broker(*node).is_none();
    let leave = voters.iter().any(is_removed);
    let spare: Vec<NodeId> =
        view.members.keys().copied().filter(|node| !voters.contains(node) && active(node)).collect();
    let mut wanted: BTreeSet<NodeId> = voters.iter().copied().filter(|voter| !is_removed(voter)).collect();
    let mut spare = spare.into_iter();
    while leave && wanted.len() < voters.len() {
        match spare.next() {
            Some(node) => wanted.insert(node),
            None => break,
        };
    }
    while wanted.len() + 2 <= VOTERS_MAX && spare.len() >= 2 {
        wanted.extend(spare.by_ref().take(2));
    }
    if wanted.len().is_multiple_of(2) {
        // The broker that leads stays.
        let last = wanted.iter().rev().copied().find(|node| *node != me);
        if let Some(last) = last {
            wanted.remove(&last);
        }
    }
    if wanted != voters && !wanted.is_empty() {
        return Some(Change::Voters(ids(wanted)));
    }
    let forgotten =
        ids(view.members.keys().copied().filter(|node| !voters.contains(node) && is_removed(node)));
    (!forgotten.is_empty()).then_some(Change::Forget(forgotten))
}

fn ids(nodes: impl IntoIterator<Item = NodeId>) -> BTreeSet<u64> {
    nodes.into_iter().map(|node| u64::from(node.get())).collect()
}
