//! Who is alive, as the controller judges it.
//!
//! A broker is fenced at once when its process is known dead: its connection is lost and its address refuses twice, or
//! another process answers there. Else it is fenced when its lease ends. A new controller, and one that has slept, probes
//! everybody and gives everybody a fresh lease before it judges: silence that nobody listened to proves nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater_protocol::ids::{BrokerEpoch, NodeId};

use crate::time::Mono;

/// Between the two probes of an address: a process that is just being replaced refuses for a moment too.
pub const PROBE_PAUSE: Duration = Duration::from_millis(20);

/// How many probes have to be refused.
const PROBES: u32 = 2;

/// A fencing that was asked for and is not seen in the image by then is asked for again.
const FENCE_AGAIN: Duration = Duration::from_millis(500);

/// Into how many parts a lease is divided to see whether the controller itself was asleep, and whether a broker is so
/// silent that its address is probed: its connection may have ended where nobody noticed, as with a controller before.
const LEASE_PARTS: u32 = 4;

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// This broker has become the controller.
    Leading,
    /// It is the controller no more.
    NotLeading,
    /// The registrations of the present image, with whether each is fenced.
    Image(Vec<(NodeId, BrokerEpoch, bool)>),
    /// A heartbeat under this registration.
    Heartbeat {
        /// Whose.
        node: NodeId,
        /// Under which registration.
        broker_epoch: BrokerEpoch,
    },
    /// The control connection of a broker has ended.
    ConnectionLost {
        /// Whose.
        node: NodeId,
    },
    /// What came of a probe.
    Probed {
        /// Of whom.
        node: NodeId,
        /// Under which registration it was sought.
        broker_epoch: BrokerEpoch,
        /// What came of it.
        outcome: Probe,
    },
    /// Time has passed.
    Tick,
}

/// What came of a probe of a broker's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Nobody listens there.
    Refused,
    /// That broker answered, under this registration if it has one.
    Answered(Option<BrokerEpoch>),
    /// No answer in time, or somebody else's: it proves nothing.
    Unclear,
}

/// What the shell has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Connect to the broker's address after a pause, and say what came of it.
    Probe {
        /// Whose.
        node: NodeId,
        /// To be given back.
        broker_epoch: BrokerEpoch,
        /// How long to wait first.
        after: Duration,
    },
    /// Propose that the broker is fenced.
    Fence {
        /// Who.
        node: NodeId,
        /// Under which registration.
        broker_epoch: BrokerEpoch,
        /// Why, for the log.
        why: Death,
    },
}

/// How a broker was found to be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// Its address refused.
    Refused,
    /// Another process answers at its address.
    Replaced,
    /// Its lease ended.
    LeaseEnded,
}

impl Death {
    /// For the log.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Refused => "its connection is lost and its address refuses",
            Self::Replaced => "another process answers at its address",
            Self::LeaseEnded => "nothing was heard of it during its lease",
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Member {
    broker_epoch: BrokerEpoch,
    fenced: bool,
    lease_end: Mono,
    /// When its address is probed if nothing is heard of it.
    probe_at: Mono,
    /// Probes under way: how many were refused so far.
    refused: Option<u32>,
    /// When fencing is asked for again, once it was.
    fence_again: Option<Mono>,
}

/// The judgement of the controller about every registered broker.
#[derive(Debug, Clone)]
pub struct Liveness {
    lease: Duration,
    leading: bool,
    members: BTreeMap<NodeId, Member>,
    last_step: Mono,
}

impl Liveness {
    /// Nobody is judged until this broker is the controller. `lease` is above 0.
    #[must_use]
    pub const fn new(lease: Duration) -> Self {
        Self { lease, leading: false, members: BTreeMap::new(), last_step: Mono(0) }
    }

    /// Takes one input and appends what follows from it to `out`.
    pub fn step(&mut self, now: Mono, input: Input, out: &mut Vec<Output>) {
        if self.leading && now.since(self.last_step) > self.lease / LEASE_PARTS {
            // Nobody can be blamed for what this process did not hear while it slept.
            self.renew_all(now);
        }
        self.last_step = now;
        match input {
            Input::Leading => {
                self.leading = true;
                self.renew_all(now);
                let nodes: Vec<NodeId> = self.members.keys().copied().collect();
                for node in nodes {
                    self.probe(node, out);
                }
            }
            Input::NotLeading => {
                self.leading = false;
                for member in self.members.values_mut() {
                    (member.refused, member.fence_again) = (None, None);
                }
            }
            Input::Image(registrations) => self.follow(now, &registrations),
            Input::Heartbeat { node, broker_epoch } => self.heard(now, node, broker_epoch),
            Input::ConnectionLost { node } => self.probe(node, out),
            Input::Probed { node, broker_epoch, outcome } => {
                self.probed(now, node, broker_epoch, outcome, out)
            }
            Input::Tick => {}
        }
        self.judge(now, out);
    }

    /// When [`Liveness::step`] has to be called although nothing happened. Often enough that sleep is noticed.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        self.leading.then(|| self.last_step.after(self.lease / LEASE_PARTS / 2))
    }

    fn renew_all(&mut self, now: Mono) {
        for member in self.members.values_mut() {
            member.lease_end = now.after(self.lease);
            member.probe_at = now.after(self.lease / LEASE_PARTS);
        }
    }

    fn follow(&mut self, now: Mono, registrations: &[(NodeId, BrokerEpoch, bool)]) {
        let before = std::mem::take(&mut self.members);
        for (node, broker_epoch, fenced) in registrations {
            let known = before.get(node).filter(|member| member.broker_epoch == *broker_epoch).copied();
            let fresh = Member {
                broker_epoch: *broker_epoch,
                fenced: *fenced,
                lease_end: now.after(self.lease),
                probe_at: now.after(self.lease / LEASE_PARTS),
                refused: None,
                fence_again: None,
            };
            let member = match known {
                // Fenced before and not any more: its lease begins anew.
                Some(member) if member.fenced && !fenced => fresh,
                Some(member) => {
                    Member { fenced: *fenced, fence_again: member.fence_again.filter(|_| !fenced), ..member }
                }
                None => fresh,
            };
            self.members.insert(*node, member);
        }
    }

    fn heard(&mut self, now: Mono, node: NodeId, broker_epoch: BrokerEpoch) {
        let (lease_end, probe_at) = (now.after(self.lease), now.after(self.lease / LEASE_PARTS));
        if let Some(member) = self.members.get_mut(&node)
            && member.broker_epoch == broker_epoch
        {
            (member.lease_end, member.probe_at) = (lease_end, probe_at);
            member.refused = None;
        }
    }

    fn probe(&mut self, node: NodeId, out: &mut Vec<Output>) {
        if let Some(member) = self.judged(node)
            && member.refused.is_none()
        {
            member.refused = Some(0);
            out.push(Output::Probe { node, broker_epoch: member.broker_epoch, after: Duration::ZERO });
        }
    }

    fn probed(
        &mut self,
        now: Mono,
        node: NodeId,
        broker_epoch: BrokerEpoch,
        outcome: Probe,
        out: &mut Vec<Output>,
    ) {
        let Some(member) = self.judged(node) else { return };
        // Of an earlier registration, or heard of meanwhile.
        let Some(refused) = member.refused.filter(|_| member.broker_epoch == broker_epoch) else { return };
        member.refused = None;
        match outcome {
            Probe::Refused if refused + 1 < PROBES => {
                member.refused = Some(refused + 1);
                out.push(Output::Probe { node, broker_epoch, after: PROBE_PAUSE });
            }
            Probe::Refused => fence(now, node, member, Death::Refused, out),
            Probe::Answered(Some(epoch)) if epoch == broker_epoch => {}
            Probe::Answered(_) => fence(now, node, member, Death::Replaced, out),
            // The lease decides.
            Probe::Unclear => {}
        }
    }

    fn judge(&mut self, now: Mono, out: &mut Vec<Output>) {
        if !self.leading {
            return;
        }
        let again = now.after(self.lease / LEASE_PARTS);
        for (node, member) in &mut self.members {
            let silent = !member.fenced && member.fence_again.is_none() && member.refused.is_none();
            if silent && member.probe_at <= now {
                member.probe_at = again;
                member.refused = Some(0);
                let broker_epoch = member.broker_epoch;
                out.push(Output::Probe { node: *node, broker_epoch, after: Duration::ZERO });
            }
            let due = match member.fence_again {
                Some(again) => again <= now,
                None => member.lease_end <= now,
            };
            if !member.fenced && due {
                fence(now, *node, member, Death::LeaseEnded, out);
            }
        }
    }

    /// A member that a judgement would mean something for.
    fn judged(&mut self, node: NodeId) -> Option<&mut Member> {
        let leading = self.leading;
        self.members.get_mut(&node).filter(|member| leading && !member.fenced && member.fence_again.is_none())
    }
}

fn fence(now: Mono, node: NodeId, member: &mut Member, why: Death, out: &mut Vec<Output>) {
    member.fence_again = Some(now.after(FENCE_AGAIN));
    member.refused = None;
    out.push(Output::Fence { node, broker_epoch: member.broker_epoch, why });
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(2);
    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    struct World {
        machine: Liveness,
        now: Mono,
    }

    impl World {
        fn leading() -> Self {
            let mut world = Self { machine: Liveness::new(LEASE), now: Mono(0) };
            world.step(image(false));
            let probes = world.step(Input::Leading);
            assert_eq!(probes, [probe(A, 7, 0), probe(B, 8, 0)], "a new controller probes before it judges");
            for (node, epoch) in [(A, 7), (B, 8)] {
                assert_eq!(world.probed(node, epoch, Probe::Answered(Some(BrokerEpoch(epoch)))), []);
            }
            world
        }

        fn step(&mut self, input: Input) -> Vec<Output> {
            let mut out = Vec::new();
            self.machine.step(self.now, input, &mut out);
            out
        }

        fn probed(&mut self, node: NodeId, epoch: u64, outcome: Probe) -> Vec<Output> {
            self.step(Input::Probed { node, broker_epoch: BrokerEpoch(epoch), outcome })
        }

        /// Ticks as often as the machine asks for.
        fn pass(&mut self, time: Duration, beating: &[(NodeId, u64)]) -> Vec<Output> {
            let end = self.now.after(time);
            let mut all = Vec::new();
            while let Some(next) = self.machine.next_deadline().filter(|next| *next < end) {
                self.now = next;
                for (node, epoch) in beating {
                    all.extend(
                        self.step(Input::Heartbeat { node: *node, broker_epoch: BrokerEpoch(*epoch) }),
                    );
                }
                all.extend(self.step(Input::Tick));
            }
            self.now = end;
            all.extend(self.step(Input::Tick));
            all
        }
    }

    fn image(fenced: bool) -> Input {
        Input::Image(vec![(A, BrokerEpoch(7), fenced), (B, BrokerEpoch(8), false)])
    }

    fn probe(node: NodeId, epoch: u64, millis: u64) -> Output {
        Output::Probe { node, broker_epoch: BrokerEpoch(epoch), after: Duration::from_millis(millis) }
    }

    fn fence(node: NodeId, epoch: u64, why: Death) -> Output {
        Output::Fence { node, broker_epoch: BrokerEpoch(epoch), why }
    }

    fn fences(out: Vec<Output>) -> Vec<Output> {
        out.into_iter().filter(|output| matches!(output, Output::Fence { .. })).collect()
    }

    #[test]
    fn a_broker_is_fenced_when_its_lease_ends_and_not_before() {
        let mut world = World::leading();
        assert_eq!(world.pass(LEASE * 3, &[(A, 7), (B, 8)]), []);
        assert_eq!(fences(world.pass(LEASE - Duration::from_millis(300), &[(B, 8)])), []);
        let out = world.pass(Duration::from_millis(600), &[(B, 8)]);
        assert!(out.contains(&fence(A, 7, Death::LeaseEnded)), "{out:?}");
        assert!(!out.iter().any(|output| matches!(output, Output::Fence { node: B, .. })));
        // A heartbeat of another registration is nobody's.
        let mut world = World::leading();
        let out = world.pass(LEASE * 2, &[(A, 6), (B, 8)]);
        assert!(out.contains(&fence(A, 7, Death::LeaseEnded)));
    }

    #[test]
    fn a_silent_broker_is_probed_long_before_its_lease_ends() {
        let mut world = World::leading();
        let out = world.pass(LEASE / 3, &[(B, 8)]);
        assert_eq!(out, [probe(A, 7, 0)], "nobody has noticed that its connection ended");
        world.probed(A, 7, Probe::Refused);
        assert_eq!(world.probed(A, 7, Probe::Refused), [fence(A, 7, Death::Refused)]);
        // One that answers is probed again, and judged by its lease.
        let mut world = World::leading();
        world.pass(LEASE / 3, &[(B, 8)]);
        world.probed(A, 7, Probe::Answered(Some(BrokerEpoch(7))));
        let out = world.pass(LEASE / 3, &[(B, 8)]);
        assert_eq!(out, [probe(A, 7, 0)]);
    }

    #[test]
    fn a_dead_process_is_fenced_at_once_after_two_refusals() {
        let mut world = World::leading();
        assert_eq!(world.step(Input::ConnectionLost { node: A }), [probe(A, 7, 0)]);
        assert_eq!(world.step(Input::ConnectionLost { node: A }), [], "a probe is under way");
        assert_eq!(world.probed(A, 7, Probe::Refused), [probe(A, 7, 20)]);
        assert_eq!(world.probed(A, 7, Probe::Refused), [fence(A, 7, Death::Refused)]);
        assert_eq!(world.probed(A, 7, Probe::Refused), [], "once");
        world.step(image(true));
        assert_eq!(world.pass(LEASE * 4, &[(B, 8)]), [], "it is fenced");
    }

    #[test]
    fn one_refusal_or_a_lost_connection_alone_proves_nothing() {
        let mut world = World::leading();
        world.step(Input::ConnectionLost { node: A });
        world.probed(A, 7, Probe::Refused);
        world.step(Input::Heartbeat { node: A, broker_epoch: BrokerEpoch(7) });
        assert_eq!(world.probed(A, 7, Probe::Refused), [], "it was heard of meanwhile");
        world.step(Input::ConnectionLost { node: A });
        assert_eq!(world.probed(A, 7, Probe::Unclear), []);
        assert_eq!(world.probed(A, 7, Probe::Refused), [], "nobody asked");
        world.step(Input::ConnectionLost { node: A });
        assert_eq!(world.probed(A, 7, Probe::Answered(Some(BrokerEpoch(7)))), []);
    }

    #[test]
    fn a_process_in_its_place_proves_it_dead() {
        for answer in [None, Some(BrokerEpoch(9))] {
            let mut world = World::leading();
            world.step(Input::ConnectionLost { node: A });
            assert_eq!(world.probed(A, 7, Probe::Answered(answer)), [fence(A, 7, Death::Replaced)]);
        }
    }

    #[test]
    fn a_controller_that_slept_judges_nobody_by_that_time() {
        let mut world = World::leading();
        world.now = world.now.after(LEASE * 10);
        assert_eq!(world.step(Input::Tick), []);
        assert_eq!(fences(world.pass(LEASE - Duration::from_millis(10), &[])), []);
        let out = fences(world.pass(Duration::from_millis(300), &[]));
        assert_eq!(out.len(), 2, "{out:?}");
    }

    #[test]
    fn only_the_controller_judges_and_a_new_registration_has_a_fresh_lease() {
        let mut world = World { machine: Liveness::new(LEASE), now: Mono(0) };
        world.step(image(false));
        assert_eq!(world.machine.next_deadline(), None);
        world.now = Mono(0).after(LEASE * 5);
        assert_eq!(world.step(Input::Tick), []);
        assert_eq!(world.step(Input::ConnectionLost { node: A }), []);
        let mut world = World::leading();
        world.pass(LEASE - Duration::from_millis(300), &[(B, 8)]);
        world.step(Input::Image(vec![(A, BrokerEpoch(12), false), (B, BrokerEpoch(8), false)]));
        assert_eq!(fences(world.pass(Duration::from_millis(600), &[(B, 8)])), []);
        world.step(Input::NotLeading);
        assert_eq!(world.pass(LEASE * 2, &[]), []);
    }

    #[test]
    fn a_fencing_that_does_not_come_is_asked_for_again() {
        let mut world = World::leading();
        world.step(Input::ConnectionLost { node: A });
        world.probed(A, 7, Probe::Refused);
        world.probed(A, 7, Probe::Refused);
        let out = world.pass(Duration::from_millis(1100), &[(B, 8)]);
        assert_eq!(out.len(), 2, "{out:?}");
    }
}
