//! The three brokers of the quickstart, and the ports that they take.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::child::{Broker, Launcher, Plan};
use super::claim::Claim;

/// How many brokers.
pub(super) const BROKERS: u32 = 3;
/// How long the brokers may take until they are one cluster, or one of them is back in it.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(2);
/// The first broker's port; the next one's lies this much higher, and HTTP is the port after each.
const FIRST_PORT: u16 = 9470;
const PORT_STEP: u16 = 10;
/// Where ports are looked for when the usual ones are taken: below those that the system gives to connections.
const OTHER_PORTS: std::ops::Range<u16> = 20_000..32_000;
/// How many sets of ports are tried.
const ATTEMPTS: u16 = 8;

/// The brokers. Those that run end with this value.
#[derive(Debug)]
pub(super) struct Trio {
    pub(super) launcher: Launcher,
    first_port: u16,
    running: Vec<Broker>,
    /// What keeps another quickstart from taking the ports of a broker that is dead for a while. Dropped, and so given up,
    /// after the brokers are gone.
    claim: Option<Claim>,
}

impl Trio {
    /// None runs yet.
    pub(super) const fn new(launcher: Launcher) -> Self {
        Self { launcher, first_port: FIRST_PORT, running: Vec::new(), claim: None }
    }

    /// Starts all of them on the usual ports, or on others if one of those is taken, and waits until they are one
    /// cluster. Brokers that have been here before go back to the ports that they had, which the others know them by.
    pub(super) async fn start(&mut self) -> anyhow::Result<Duration> {
        let kept = self.launcher.directory().join("first-port");
        if let Some(port) = read_port(&kept)? {
            self.first_port = port;
            let started = match Claim::new(port) {
                Ok(claim) => {
                    self.claim = Some(claim);
                    self.start_all().await
                }
                Err(error) => Err(error),
            };
            return started.with_context(|| {
                format!(
                    "start the brokers on ports {port} and up, which they had when {} was made",
                    kept.display()
                )
            });
        }
        let mut tried = 0;
        loop {
            self.first_port = candidate(tried);
            tried += 1;
            match Claim::new(self.first_port) {
                Ok(claim) => self.claim = Some(claim),
                Err(error) if tried == ATTEMPTS => return Err(error),
                Err(_) => continue,
            }
            let fresh: Vec<PathBuf> =
                (1..=BROKERS).map(|node| self.launcher.data(node)).filter(|data| !data.exists()).collect();
            match self.start_all().await {
                Ok(after) => {
                    let port = self.first_port.to_string();
                    fs::write(&kept, port).with_context(|| format!("write {}", kept.display()))?;
                    return Ok(after);
                }
                Err(error) if tried == ATTEMPTS || !is_taken(&error) => return Err(error),
                // Nobody has been told of these brokers: they begin anew, with other addresses.
                Err(_) => {
                    self.running.clear();
                    for data in fresh.iter().filter(|data| data.exists()) {
                        fs::remove_dir_all(data).with_context(|| format!("remove {}", data.display()))?;
                    }
                }
            }
        }
    }

    async fn start_all(&mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        for node_id in 1..=BROKERS {
            let broker = self.launcher.start(&self.plan(node_id))?;
            self.running.push(broker);
        }
        self.ready("the three brokers to be one cluster").await?;
        Ok(began.elapsed())
    }

    /// Starts one again, and waits until it is ready.
    pub(super) async fn start_again(&mut self, node_id: u32) -> anyhow::Result<&mut Broker> {
        let broker = self.launcher.start(&self.plan(node_id))?;
        self.running.push(broker);
        self.ready(&format!("broker {node_id} to be back")).await?;
        self.get(node_id)
    }

    async fn ready(&mut self, what: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let mut waiting = Vec::new();
            for broker in &mut self.running {
                if broker.ready_after()?.is_none() {
                    waiting.push(broker.node_id.to_string());
                }
            }
            if waiting.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "waited {READY_WITHIN:?} for {what}: not ready: broker {}",
                waiting.join(", ")
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    fn plan(&self, node_id: u32) -> Plan {
        let port = |node: u32| self.first_port + PORT_STEP * (node as u16 - 1);
        let voters: Vec<String> =
            (1..=BROKERS).map(|node| format!("{node}@127.0.0.1:{}", port(node))).collect();
        Plan {
            node_id,
            listen: format!("127.0.0.1:{}", port(node_id)),
            http: format!("127.0.0.1:{}", port(node_id) + 1),
            voters: voters.join(","),
        }
    }

    /// Where all of them listen, running or not.
    pub(super) fn addresses(&self) -> Vec<String> {
        (1..=BROKERS).map(|node| self.plan(node).listen).collect()
    }

    /// Whether they have the usual ports.
    pub(super) const fn has_usual_ports(&self) -> bool {
        self.first_port == FIRST_PORT
    }

    /// Those that run, by id.
    pub(super) fn running(&mut self) -> &[Broker] {
        self.running.sort_by_key(|broker| broker.node_id);
        &self.running
    }

    /// One that runs.
    pub(super) fn get(&mut self, node_id: u32) -> anyhow::Result<&mut Broker> {
        let found = self.running.iter_mut().find(|broker| broker.node_id == node_id);
        found.with_context(|| format!("broker {node_id} does not run"))
    }

    /// Kills one where it stands, and waits until it is gone.
    pub(super) fn kill(&mut self, node_id: u32) -> anyhow::Result<()> {
        let index = self.running.iter().position(|broker| broker.node_id == node_id);
        self.running.swap_remove(index.with_context(|| format!("broker {node_id} does not run"))?).kill()
    }

    /// Fails if one that should run has ended.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        for broker in &mut self.running {
            if let Some(status) = broker.ended()? {
                anyhow::bail!("broker {} ended with {status}", broker.node_id);
            }
        }
        Ok(())
    }

    /// Asks all of them to end, and waits until they have.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        for broker in &mut self.running {
            broker.ask_to_end()?;
        }
        for broker in std::mem::take(&mut self.running) {
            broker.wait_for_end().await?;
        }
        Ok(())
    }

    /// What the brokers said last.
    pub(super) fn log_ends(&self) -> String {
        let end = |node: u32| Some(format!("broker {node}:\n{}", self.launcher.log_end(node)?));
        (1..=BROKERS).filter_map(end).collect::<Vec<_>>().join("\n\n")
    }
}

/// The first port of an attempt: the usual one, then others that differ from process to process.
fn candidate(attempt: u16) -> u16 {
    if attempt == 0 {
        return FIRST_PORT;
    }
    let span = PORT_STEP * BROKERS as u16;
    let sets = (OTHER_PORTS.end - OTHER_PORTS.start) / span;
    let set = (std::process::id() % u32::from(sets)) as u16;
    OTHER_PORTS.start + (set + attempt * 17) % sets * span
}

/// Whether somebody else is where new brokers are to be: on the port of one, or, with that one dead, on those of the others,
/// who then tell of another broker with its id.
fn is_taken(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    text.contains("already in use") || text.contains("has data directory")
}

fn read_port(path: &std::path::Path) -> anyhow::Result<Option<u16>> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let port = text.trim().parse();
            port.map(Some).with_context(|| format!("{} has no port in it", path.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_do_not_overlap_and_begin_with_the_usual_ones() {
        assert_eq!(candidate(0), 9470);
        for attempt in 1..ATTEMPTS {
            let first = candidate(attempt);
            assert!(OTHER_PORTS.contains(&first) && first + PORT_STEP * BROKERS as u16 <= OTHER_PORTS.end);
            let distance = first.abs_diff(candidate(attempt - 1));
            assert!(distance >= PORT_STEP * BROKERS as u16, "{attempt}");
        }
    }

    #[test]
    fn new_brokers_go_elsewhere_when_somebody_is_there() {
        let taken = |text: &str| is_taken(&anyhow::anyhow!("{text}").context("broker 1 ended"));
        assert!(taken("listen on 127.0.0.1:9470: Address already in use (os error 98)"));
        assert!(taken("broker 1 of cluster 2361 has data directory 96a7, and this one is 2cf1"));
        assert!(!taken("No space left on device"));
    }
}
