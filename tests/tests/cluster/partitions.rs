//! Brokers that cannot hear each other, in one direction or both, and brokers that are paused: nothing acknowledged is
//! lost, a majority with an in-sync replica goes on serving, and everything is well again by itself afterwards.
//!
//! The network is made by the test: namespaces, cables, and rules that drop packets. Without root or the programs for it
//! only the pauses are tested, and the output says so. `HIGHWATER_FAULTS=50` and `HIGHWATER_SEED` make it longer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwater_client::PartitionId;
use highwater_tests::brokers::{Brokers, Setup, View};
use highwater_tests::namespaces::{Network, say_skipped};
use highwater_tests::sim::random::Random;
use highwater_tests::wait;
use highwater_tests::workload::{self, Steady, SteadyOptions, Watcher, setting};

const TOPIC: &str = "parted";
const PARTITIONS: u32 = 3;
const SERVED_LIMIT: Duration = Duration::from_secs(30);
/// How long a fault lasts after the rest serves again, at most. Longer than a lease, so that everybody notices it.
const FAULT_MAX: Duration = Duration::from_secs(5);

/// Packets that are lost, of a hundred.
const LOST_PERCENT: u32 = 8;

/// Whom a fault meets. The broker is chosen when it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// The leader of partition 0.
    Leader,
    /// One that does not lead partition 0.
    Follower,
    /// The controller.
    Controller,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It hears nobody and nobody hears it; clients reach all.
    Isolated(Target),
    /// The same, and clients do not reach it either: a minority of one against a majority.
    Minority(Target),
    /// The others do not hear it.
    Mute(Target),
    /// It does not hear the others.
    Deaf(Target),
    /// It and one other do not hear each other; the third hears both.
    OneLink(Target),
    /// Some of the packets between it and the others are lost, in both directions.
    Loss(Target),
    /// Nobody hears anybody.
    All,
    /// Its process stands still.
    Paused(Target),
}

/// The first ones are run by default.
const CUTS: [Fault; 14] = [
    Fault::Isolated(Target::Leader),
    Fault::Mute(Target::Controller),
    Fault::All,
    Fault::Deaf(Target::Leader),
    Fault::OneLink(Target::Leader),
    Fault::Isolated(Target::Controller),
    Fault::Loss(Target::Leader),
    Fault::Minority(Target::Leader),
    Fault::Isolated(Target::Follower),
    Fault::Mute(Target::Leader),
    Fault::Mute(Target::Follower),
    Fault::Deaf(Target::Controller),
    Fault::Deaf(Target::Follower),
    Fault::Minority(Target::Controller),
];
const PAUSES: [Fault; 3] =
    [Fault::Paused(Target::Leader), Fault::Paused(Target::Controller), Fault::Paused(Target::Follower)];

impl Target {
    fn node(self, view: &View) -> Result<u32> {
        let leader = view.leader(0)?;
        match self {
            Self::Leader => Ok(leader),
            Self::Follower => {
                view.brokers.iter().copied().find(|node| *node != leader).context("there is no follower")
            }
            Self::Controller => view.controller.context("there is no controller"),
        }
    }
}

impl Fault {
    /// Whether the rest must serve meanwhile.
    fn leaves_service(self) -> bool {
        self != Self::All
    }

    fn strike(self, brokers: &mut Brokers, view: &View) -> Result<()> {
        let all = brokers.nodes();
        let others = |node: u32| all.iter().copied().filter(move |other| *other != node);
        if let Self::Paused(target) = self {
            return brokers.node(target.node(view)?)?.pause();
        }
        let network = brokers.network().context("a cut needs a network")?;
        match self {
            Self::Isolated(target) => network.isolate(target.node(view)?),
            Self::Minority(target) => {
                let node = target.node(view)?;
                network.isolate(node)?;
                network.cut_clients(node)
            }
            Self::Mute(target) => {
                let node = target.node(view)?;
                others(node).try_for_each(|other| network.cut(node, other))
            }
            Self::Deaf(target) => {
                let node = target.node(view)?;
                others(node).try_for_each(|other| network.cut(other, node))
            }
            Self::OneLink(target) => {
                let node = target.node(view)?;
                let other = others(node).next().context("there is no other")?;
                network.cut(node, other)?;
                network.cut(other, node)
            }
            Self::Loss(target) => {
                let node = target.node(view)?;
                others(node).try_for_each(|other| {
                    network.lose(node, other, LOST_PERCENT)?;
                    network.lose(other, node, LOST_PERCENT)
                })
            }
            Self::All => all.iter().try_for_each(|node| network.isolate(*node)),
            Self::Paused(_) => Ok(()),
        }
    }

    fn end(self, brokers: &mut Brokers, view: &View) -> Result<()> {
        match self {
            Self::Paused(target) => brokers.node(target.node(view)?)?.resume(),
            _ => brokers.network().context("a cut needs a network")?.heal(),
        }
    }
}

async fn meet(fault: Fault, brokers: &mut Brokers, load: &Steady, random: &mut Random) -> Result<()> {
    let view = brokers.in_sync(TOPIC).await?;
    let struck = Instant::now();
    fault.strike(brokers, &view)?;
    if fault.leaves_service() {
        let times = load.served_since(&load.partitions(), struck, SERVED_LIMIT).await?;
        let slowest = times.iter().max().copied().unwrap_or_default();
        println!("{fault:?}: the slowest partition was served again after {slowest:.3?}");
    }
    // The fault goes on for a random time: this is about what happens in it, not a wait for something.
    wait::random_moment(random, FAULT_MAX).await;
    fault.end(brokers, &view)?;
    let ended = Instant::now();
    load.served_since(&load.partitions(), ended, SERVED_LIMIT).await?;
    brokers.in_sync(TOPIC).await?;
    println!("{fault:?}: all in sync {:.3?} after its end", ended.elapsed());
    Ok(())
}

async fn run(brokers: &mut Brokers, faults: &[Fault], seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    brokers.create_topic(TOPIC, PARTITIONS).await?;
    let client = brokers.client().await?;
    let load = Steady::start(&brokers.bootstrap(), SteadyOptions::new(TOPIC, PARTITIONS)).await?;
    let watcher = Watcher::start(&client, TOPIC, PartitionId(0)).await?;
    load.served_since(&load.partitions(), Instant::now(), SERVED_LIMIT).await?;
    for fault in faults {
        let met = meet(*fault, brokers, &load, &mut random).await;
        met.with_context(|| format!("{fault:?}; failed sends: {:?}", load.failures()))?;
    }
    let sent = load.stop().await?;
    let passes = BTreeMap::from([(0, vec![watcher.stop().await?.pass])]);
    let summary = workload::judge(&client, TOPIC, sent, passes).await?;
    println!("{} faults: {summary:?}", faults.len());
    ensure!(summary.acknowledged > 0, "{summary:?}");
    brokers.check_no_errors(&[])
}

/// As many of the faults as were asked for, again and again if need be.
fn chosen(faults: &[Fault], default: u64) -> Vec<Fault> {
    let count = setting("HIGHWATER_FAULTS", default);
    faults.iter().cycle().take(usize::try_from(count).unwrap_or(usize::MAX)).copied().collect()
}

/// Runs the test on a runtime whose threads are where the calling thread is.
fn on_this_network(network: Option<Network>, faults: &[Fault]) {
    let seed = setting("HIGHWATER_SEED", 1);
    println!("seed {seed}, {faults:?}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut brokers = Brokers::start_in(Setup::default(), network).await.unwrap();
        run(&mut brokers, faults, seed).await.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
    });
}

#[test]
fn cuts_of_the_network_lose_nothing_and_a_majority_goes_on() {
    if let Some(obstacle) = Network::obstacle() {
        return say_skipped("brokers on a network that is cut", &obstacle);
    }
    // A thread of its own: it moves into a namespace, and brokers end with the thread that started them.
    let test = std::thread::spawn(|| {
        let network = Network::create(3).unwrap();
        on_this_network(Some(network), &chosen(&CUTS, 3));
    });
    test.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn paused_brokers_lose_nothing_and_the_others_go_on() {
    on_this_network(None, &chosen(&PAUSES, 2));
}
