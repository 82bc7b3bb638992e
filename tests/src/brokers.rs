//! Several brokers as one cluster: real processes on addresses that stay the same, and what each of them says of the
//! others.

mod view;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwater_client::{Client, NewTopic};
use highwater_protocol::messages::DescribeClusterReply;
use tokio::sync::{Semaphore, SemaphorePermit};

pub use self::view::{Place, View};
use crate::cluster::{BrokerProcess, Options, free_port, highwater};
use crate::namespaces::Network;
use crate::wait;
use crate::workload::setting;

/// How long a cluster may take to form, to heal, or to elect: far more than it should, on a busy machine.
pub const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// How long a new client tries.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// The protocol port of brokers that have a network of their own.
const NETWORK_PORT: u16 = 9470;

/// How a cluster is started.
#[derive(Debug, Clone)]
pub struct Setup {
    /// How many brokers, numbered from 1. All of them vote. By default three, or `HIGHWATER_BROKERS`.
    pub count: u32,
    /// Further arguments of every broker.
    pub arguments: Vec<String>,
    /// Where the brokers have their data directories; in temporary directories if absent.
    pub directory: Option<PathBuf>,
}

impl Default for Setup {
    fn default() -> Self {
        let count = u32::try_from(setting("HIGHWATER_BROKERS", 3)).unwrap_or(3);
        Self { count, arguments: Vec::new(), directory: None }
    }
}

/// The brokers of a cluster. They are killed and their files are removed when this is dropped.
#[derive(Debug)]
pub struct Brokers {
    processes: BTreeMap<u32, BrokerProcess>,
    addresses: BTreeMap<u32, SocketAddr>,
    setup: Setup,
    // Dropped after the processes in it.
    network: Option<Network>,
    _turn: SemaphorePermit<'static>,
}

/// One cluster at a time in a process: more of them than a small machine has cores would only wait for each other.
static TURN: Semaphore = Semaphore::const_new(1);

impl Brokers {
    /// Starts the brokers on loopback and waits until each knows the same controller and all brokers.
    ///
    /// # Errors
    /// When a broker does not start, or they do not become a cluster in time; with the ends of their logs.
    pub async fn start(setup: Setup) -> Result<Self> {
        Self::start_in(setup, None).await
    }

    /// As [`Brokers::start`], each broker in a namespace of the network if there is one.
    ///
    /// # Errors
    /// As [`Brokers::start`].
    pub async fn start_in(setup: Setup, network: Option<Network>) -> Result<Self> {
        let mut brokers = Self::unstarted(setup, network).await?;
        brokers.start_all()?;
        brokers.formed().await?;
        Ok(brokers)
    }

    /// Brokers that have their addresses and do not run yet, once no other cluster runs in this process.
    ///
    /// # Errors
    /// When the program cannot be built, or there are no free ports.
    pub async fn unstarted(setup: Setup, network: Option<Network>) -> Result<Self> {
        let nodes = 1..=setup.count;
        let (processes, addresses) = (BTreeMap::new(), BTreeMap::new());
        let turn = TURN.acquire().await.context("wait for the cluster before")?;
        let mut brokers = Self { processes, addresses, setup, network, _turn: turn };
        for node in nodes.clone() {
            let address = brokers.new_address(node)?;
            brokers.addresses.insert(node, address);
        }
        let voters = brokers.voters();
        // One alone is a cluster by itself.
        let arguments: &[&str] = if brokers.setup.count > 1 { &["--voters", &voters] } else { &[] };
        for node in nodes {
            let process = brokers.process(node, arguments)?;
            brokers.processes.insert(node, process);
        }
        Ok(brokers)
    }

    fn new_address(&self, node: u32) -> Result<SocketAddr> {
        Ok(match &self.network {
            Some(network) => SocketAddr::from((network.address(node), NETWORK_PORT)),
            None => SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)),
        })
    }

    fn process(&self, node: u32, arguments: &[&str]) -> Result<BrokerProcess> {
        let mut all: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        all.extend(self.setup.arguments.iter().cloned());
        BrokerProcess::new(Options {
            node_id: node,
            listen: Some(self.address(node)?),
            data_directory: self.setup.directory.as_ref().map(|root| root.join(node.to_string())),
            arguments: all,
            launcher: self.network.as_ref().map(|network| network.launcher(node)).unwrap_or_default(),
            ..Options::default()
        })
    }

    /// The list of voters as `--voters` takes it.
    #[must_use]
    pub fn voters(&self) -> String {
        let listed: Vec<_> = self
            .addresses
            .iter()
            .take(self.setup.count as usize)
            .map(|(node, address)| format!("{node}@{address}"))
            .collect();
        listed.join(",")
    }

    /// Adds a broker that joins by itself, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn join(&mut self, node: u32) -> Result<()> {
        let (_, known) = self.addresses.first_key_value().context("no broker to join")?;
        let known = known.to_string();
        let address = self.new_address(node)?;
        self.addresses.insert(node, address);
        let process = self.process(node, &["--join", &known])?;
        self.processes.entry(node).or_insert(process).start_again()?;
        self.formed().await.map(drop)
    }

    /// The broker, to kill, pause or start it.
    ///
    /// # Errors
    /// When there is none of this number.
    pub fn node(&mut self, node: u32) -> Result<&mut BrokerProcess> {
        self.processes.get_mut(&node).with_context(|| format!("there is no broker {node}"))
    }

    /// What it has logged so far.
    ///
    /// # Errors
    /// When there is none of this number, or its log cannot be read.
    pub fn log(&self, node: u32) -> Result<String> {
        self.processes.get(&node).with_context(|| format!("there is no broker {node}"))?.log()
    }

    /// Its protocol address.
    ///
    /// # Errors
    /// When there is none of this number.
    pub fn address(&self, node: u32) -> Result<SocketAddr> {
        self.addresses.get(&node).copied().with_context(|| format!("there is no broker {node}"))
    }

    /// All numbers.
    #[must_use]
    pub fn nodes(&self) -> Vec<u32> {
        self.processes.keys().copied().collect()
    }

    /// The network, when the brokers have one of their own.
    #[must_use]
    pub const fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// The addresses of all, as a client takes them.
    #[must_use]
    pub fn bootstrap(&self) -> Vec<String> {
        self.addresses.values().map(ToString::to_string).collect()
    }

    /// A client of the cluster.
    ///
    /// # Errors
    /// When no broker answers.
    pub async fn client(&self) -> Result<Client> {
        let builder = Client::builder(self.bootstrap()).connect_timeout(CONNECT_LIMIT);
        builder.request_timeout(CONNECT_LIMIT).connect().await.context("connect to the cluster")
    }

    /// Creates a topic with three replicas, or one on each of fewer brokers, and waits until all are in sync.
    ///
    /// # Errors
    /// When it is not created, or not in sync in time.
    pub async fn create_topic(&self, name: &str, partitions: u32) -> Result<()> {
        self.create(name, NewTopic::new(name).partitions(partitions)).await
    }

    /// As [`Brokers::create_topic`], with settings.
    ///
    /// # Errors
    /// As [`Brokers::create_topic`].
    pub async fn create(&self, name: &str, new: NewTopic) -> Result<()> {
        let replication = u32::try_from(self.processes.len())?.min(3);
        let new = new.replication(replication);
        self.client().await?.admin().create_topic(new).await.with_context(|| format!("create {name}"))?;
        self.in_sync(name).await.map(drop)
    }

    /// Starts all that do not run, at once, and waits until they listen.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start_all(&mut self) -> Result<()> {
        let mut started = Vec::new();
        for (node, process) in &mut self.processes {
            if !process.is_running()? {
                process.kill9()?;
                process.start_again_unawaited()?;
                started.push(*node);
            }
        }
        for node in started {
            self.node(node)?.await_start()?;
        }
        Ok(())
    }

    /// Kills all at once.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill_all(&mut self) -> Result<()> {
        for process in self.processes.values() {
            process.kill9_unawaited()?;
        }
        self.processes.values_mut().try_for_each(BrokerProcess::kill9)
    }

    /// Runs `highwater` against the cluster, with JSON output.
    ///
    /// # Errors
    /// When the program does not run.
    pub fn highwater(&self, arguments: &[&str]) -> Result<Output> {
        let bootstrap = self.bootstrap().join(",");
        let mut command = Command::new(highwater()?);
        command.args(["--bootstrap", &bootstrap, "--output", "json"]).args(arguments);
        command.output().with_context(|| format!("run highwater {}", arguments.join(" ")))
    }

    /// As [`Brokers::highwater`], for what must succeed; returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn highwater_ok(&self, arguments: &[&str]) -> Result<String> {
        let output = self.highwater(arguments)?;
        let (printed, said) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let call = arguments.join(" ");
        ensure!(output.status.success(), "highwater {call} ended with {}: {said}{printed}", output.status);
        Ok(printed.into_owned())
    }

    /// What a broker says of the cluster and of a topic; none when it does not answer soon.
    pub async fn view(&self, node: u32, topic: Option<&str>) -> Option<View> {
        view::of(self.address(node).ok()?, topic).await.ok()
    }

    /// What all that answer say, newest first.
    async fn views(&self, topic: Option<&str>) -> Vec<View> {
        let asked = self.processes.keys().map(|node| self.view(*node, topic));
        let mut views: Vec<_> = futures_util::future::join_all(asked).await.into_iter().flatten().collect();
        views.sort_by_key(|view| std::cmp::Reverse(view.version));
        views
    }

    /// The newest of what the brokers say.
    ///
    /// # Errors
    /// When none answers in time.
    pub async fn newest(&self, topic: &str) -> Result<View> {
        wait::until_async("a broker tells about the cluster", SETTLE_LIMIT, || async {
            self.views(Some(topic)).await.into_iter().next()
        })
        .await
    }

    /// The state of the cluster, moves included, as the broker tells it that has the newest image.
    ///
    /// # Errors
    /// When none answers in time.
    pub async fn status(&self) -> Result<DescribeClusterReply> {
        wait::until_async("a broker describes the cluster", SETTLE_LIMIT, || async {
            let asked = self.addresses.values().map(|address| view::status(*address));
            let told = futures_util::future::join_all(asked).await.into_iter().flatten();
            told.max_by_key(|status| status.version)
        })
        .await
    }

    /// Stops a broker in order and forgets it, as when it was removed from the cluster.
    ///
    /// # Errors
    /// When it does not stop in order.
    pub fn leave(&mut self, node: u32) -> Result<()> {
        let status = self.node(node)?.terminate()?;
        ensure!(status.success(), "broker {node} ended with {status}");
        self.processes.remove(&node);
        self.addresses.remove(&node);
        Ok(())
    }

    /// Waits until every running broker names the same controller and knows all of them; returns the controller.
    ///
    /// # Errors
    /// When they do not in time, with what each said last.
    pub async fn formed(&self) -> Result<u32> {
        let count = self.processes.len();
        let formed = wait::until_async("the brokers are one cluster", SETTLE_LIMIT, || async {
            let views = self.views(None).await;
            let controller = views.first()?.controller.filter(|node| self.processes.contains_key(node))?;
            let agreed = views.len() == count
                && views
                    .iter()
                    .all(|view| view.controller == Some(controller) && view.brokers.len() == count);
            agreed.then_some(controller)
        })
        .await;
        self.explained(formed, None).await
    }

    /// Waits until a running broker other than `besides` is the controller in the eyes of most; returns it.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn controller_besides(&self, besides: Option<u32>) -> Result<u32> {
        let found = wait::until_async("there is a controller", SETTLE_LIMIT, || async {
            let mut votes: BTreeMap<u32, usize> = BTreeMap::new();
            for controller in self.views(None).await.iter().filter_map(|view| view.controller) {
                *votes.entry(controller).or_default() += 1;
            }
            let (controller, _) =
                votes.into_iter().find(|(_, count)| 2 * count > self.setup.count as usize)?;
            (Some(controller) != besides).then_some(controller)
        })
        .await;
        self.explained(found, None).await
    }

    /// Waits until every partition of the topic has a leader and all its replicas in sync, in the eyes of every broker;
    /// returns that view.
    ///
    /// # Errors
    /// When it takes too long, with what each broker said last.
    pub async fn in_sync(&self, topic: &str) -> Result<View> {
        let what = format!("all replicas of {topic} are in sync");
        let found = wait::until_async(&what, SETTLE_LIMIT, || async {
            let views = self.views(Some(topic)).await;
            let all = views.len() == self.processes.len() && views.iter().all(View::is_in_sync);
            all.then(|| views.into_iter().next()).flatten()
        })
        .await;
        self.explained(found, Some(topic)).await
    }

    /// Adds to an error what the brokers say and have logged.
    async fn explained<T>(&self, result: Result<T>, topic: Option<&str>) -> Result<T> {
        let Err(error) = result else { return result };
        let mut text = String::new();
        for (node, process) in &self.processes {
            let view = self.view(*node, topic).await;
            text.push_str(&format!(
                "broker {node} says {view:?}; the end of its log:\n{}",
                process.log_tail()
            ));
        }
        Err(error.context(text))
    }

    /// Fails when a log has a panic, or an alarm that is not expected.
    ///
    /// # Errors
    /// With those lines.
    pub fn check_logs(&self, expected: &[&str]) -> Result<()> {
        for (node, process) in &self.processes {
            process.check_log(expected).with_context(|| format!("broker {node}"))?;
        }
        Ok(())
    }

    /// Fails when a broker has panicked, or has logged an error (warnings are the trace of what a test does to it).
    ///
    /// # Errors
    /// With those lines.
    pub fn check_no_errors(&self, expected: &[&str]) -> Result<()> {
        for (node, process) in &self.processes {
            let mut found = process.alarms(expected)?;
            found.retain(|line| !line.split_whitespace().any(|word| word == "WARN"));
            ensure!(found.is_empty(), "unexpected lines in the log of broker {node}:\n{}", found.join("\n"));
        }
        Ok(())
    }
}
