//! Brokers on a network of their own: network namespaces with cables between them, whose packets can be dropped by
//! direction. Needs root, `ip` (iproute2) and `nft` (nftables).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps its namespaces.
const NAMED: &str = "/run/netns";
/// All namespaces of these tests begin with it; then come the process id and a number.
const PREFIX: &str = "highwater";
/// The table that drops packets.
const TABLE: &str = "highwater";
/// The last byte of the clients' address. Brokers have their numbers.
const CLIENTS: u8 = 254;

/// A switch in one namespace, where the test and its clients are, and a namespace for each broker. All are removed when
/// this is dropped.
#[derive(Debug)]
pub struct Network {
    hub: String,
    nodes: BTreeMap<u32, String>,
}

impl Network {
    /// Why there can be no such network here, if so.
    #[must_use]
    pub fn obstacle() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("network namespaces need root".to_owned());
        }
        for program in ["ip", "nft"] {
            if Command::new(program).arg("-V").output().is_err() {
                return Some(format!("{program} is not installed (packages iproute2 and nftables)"));
            }
        }
        // On a thread of its own: it ends up in the namespace.
        let tried = std::thread::spawn(|| Self::create(1).map(drop)).join();
        let failed = tried.unwrap_or_else(|_| Err(anyhow::anyhow!("a panic"))).err();
        failed.map(|error| format!("namespaces cannot be made: {error:#}"))
    }

    /// Makes the network. The calling thread, and every thread and process that it starts later, is then where the
    /// clients are: make runtimes afterwards.
    ///
    /// # Errors
    /// When a command fails.
    pub fn create(count: u32) -> Result<Self> {
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        remove_left_behind()?;
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let base = format!("{PREFIX}-{}-{number}", std::process::id());
        let hub = format!("{base}-hub");
        let mut network = Self { hub: hub.clone(), nodes: BTreeMap::new() };
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "set", "lo", "up"])?;
        ip(&["-n", &hub, "link", "add", "switch", "type", "bridge"])?;
        ip(&["-n", &hub, "address", "add", &format!("10.213.0.{CLIENTS}/24"), "dev", "switch"])?;
        ip(&["-n", &hub, "link", "set", "switch", "up"])?;
        for node in 1..=count {
            network.add(node, format!("{base}-{node}"))?;
        }
        enter(&hub)?;
        Ok(network)
    }

    /// A namespace for one broker, with a cable to the switch and a table that drops nothing yet.
    fn add(&mut self, node: u32, name: String) -> Result<()> {
        ip(&["netns", "add", &name])?;
        self.nodes.insert(node, name.clone());
        let plug = format!("to{node}");
        ip(&["-n", &self.hub, "link", "add", &plug, "type", "veth", "peer", "name", "wire", "netns", &name])?;
        ip(&["-n", &self.hub, "link", "set", &plug, "master", "switch", "up"])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        ip(&["-n", &name, "address", "add", &format!("{}/24", self.address(node)), "dev", "wire"])?;
        ip(&["-n", &name, "link", "set", "wire", "up"])?;
        self.nft(node, &format!("add table inet {TABLE}"))?;
        let chain = "{ type filter hook input priority 0; policy accept; }";
        self.nft(node, &format!("add chain inet {TABLE} input {chain}"))
    }

    /// The address of a broker.
    #[must_use]
    pub fn address(&self, node: u32) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, 0, u8::try_from(node).unwrap_or_default())
    }

    /// What runs a program in the namespace of a broker.
    #[must_use]
    pub fn launcher(&self, node: u32) -> Vec<String> {
        let name = self.nodes.get(&node).cloned().unwrap_or_default();
        ["ip", "netns", "exec"].into_iter().map(str::to_owned).chain([name]).collect()
    }

    /// From now on what `from` sends does not arrive at `to`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn cut(&self, from: u32, to: u32) -> Result<()> {
        self.drop_packets(self.address(from), to)
    }

    /// From now on so many of a hundred packets of `from` do not arrive at `to`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn lose(&self, from: u32, to: u32, percent: u32) -> Result<()> {
        let from = self.address(from);
        let lost = format!("numgen random mod 100 < {percent} drop");
        self.nft(to, &format!("add rule inet {TABLE} input ip saddr {from} {lost}"))
    }

    /// Cuts a broker off from all the others, in both directions.
    ///
    /// # Errors
    /// When a command fails.
    pub fn isolate(&self, node: u32) -> Result<()> {
        for other in self.nodes.keys().copied().filter(|other| *other != node) {
            self.cut(node, other)?;
            self.cut(other, node)?;
        }
        Ok(())
    }

    /// What clients send does not arrive at `node` any more.
    ///
    /// # Errors
    /// When the command fails.
    pub fn cut_clients(&self, node: u32) -> Result<()> {
        self.drop_packets(Ipv4Addr::new(10, 213, 0, CLIENTS), node)
    }

    /// Lets everything pass again.
    ///
    /// # Errors
    /// When a command fails.
    pub fn heal(&self) -> Result<()> {
        self.nodes.keys().try_for_each(|node| self.nft(*node, &format!("flush chain inet {TABLE} input")))
    }

    fn drop_packets(&self, from: Ipv4Addr, at: u32) -> Result<()> {
        self.nft(at, &format!("add rule inet {TABLE} input ip saddr {from} drop"))
    }

    fn nft(&self, node: u32, rule: &str) -> Result<()> {
        let name = self.nodes.get(&node).with_context(|| format!("there is no broker {node}"))?;
        ip(&["netns", "exec", name, "nft", rule])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.nodes.values().chain([&self.hub]) {
            // The next network removes what could not be removed now.
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

/// Says that something was not tested, past what a test runner hides of tests that pass.
pub fn say_skipped(what: &str, obstacle: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}: {obstacle}");
}

/// Moves the calling thread into a namespace.
fn enter(name: &str) -> Result<()> {
    let path = Path::new(NAMED).join(name);
    let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter {name}"))
}

/// Removes namespaces of tests that were killed.
fn remove_left_behind() -> Result<()> {
    let Ok(entries) = fs::read_dir(NAMED) else { return Ok(()) };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-')?.split('-').next());
        if owner.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            ip(&["netns", "delete", &name])?;
        }
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("run ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {} ended with {}: {said}", arguments.join(" "), output.status);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpStream};
    use std::time::Duration;

    use super::*;

    /// Whether a connection to a listener in the namespace of broker 1 comes about soon.
    fn connects(network: &Network) -> bool {
        let address = SocketAddr::from((network.address(1), 9000));
        TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_ok()
    }

    #[test]
    fn packets_pass_until_they_are_cut_and_after_healing() {
        if let Some(obstacle) = Network::obstacle() {
            say_skipped("packets that are dropped", &obstacle);
            return;
        }
        // A thread of its own: it stays in the namespace.
        let test = std::thread::spawn(|| {
            let network = Network::create(2).unwrap();
            let server = std::thread::scope(|scope| {
                let bind = || {
                    enter(&network.nodes[&1]).unwrap();
                    std::net::TcpListener::bind(("0.0.0.0", 9000)).unwrap()
                };
                scope.spawn(bind).join().unwrap()
            });
            assert!(connects(&network), "nothing is cut yet");
            network.cut(2, 1).unwrap();
            assert!(connects(&network), "clients are not cut off");
            network.cut_clients(1).unwrap();
            assert!(!connects(&network), "what clients send is dropped");
            network.heal().unwrap();
            network.lose(2, 1, 50).unwrap();
            let address = SocketAddr::from((network.address(1), 9000));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(30)).unwrap();
            stream.write_all(b"x").unwrap();
            drop(stream);
            drop(server);
            let names: Vec<_> = network.nodes.values().cloned().collect();
            drop(network);
            assert!(names.iter().all(|name| !Path::new(NAMED).join(name).exists()), "all are removed");
        });
        test.join().unwrap();
    }
}
