//! A broker of the quickstart: a child process that never outlives it.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

/// How long a broker that is asked to end may take.
const END_WITHIN: Duration = Duration::from_secs(15);
/// How long it may itself wait for what is under way: the last of them has no majority left to ask for anything.
const DRAIN_TIMEOUT: &str = "3s";
/// How often a child is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// Bytes of a broker's log that are shown when it fails.
const LOG_SHOWN: usize = 1500;

/// Where a broker listens.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub(super) struct Addresses {
    pub(super) listen: String,
    /// Absent when it serves no HTTP.
    pub(super) http: Option<String>,
}

/// How a broker is started.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) node_id: u32,
    /// `127.0.0.1:PORT` of the protocol, and of HTTP.
    pub(super) listen: String,
    pub(super) http: String,
    /// The list of the first brokers, the same for all of them.
    pub(super) voters: String,
}

/// Starts brokers in a directory: `broker-1`, `broker-1.log`, `broker-1.json` and so on.
#[derive(Debug)]
pub(super) struct Launcher {
    executable: PathBuf,
    directory: PathBuf,
}

impl Launcher {
    /// Brokers that keep everything below `directory`, which exists.
    pub(super) fn new(directory: &Path) -> anyhow::Result<Self> {
        let executable = std::env::current_exe().context("find the executable of highwater")?;
        Ok(Self { executable, directory: directory.to_owned() })
    }

    /// Where all of it is.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where a broker keeps its data.
    pub(super) fn data(&self, node_id: u32) -> PathBuf {
        self.directory.join(format!("broker-{node_id}"))
    }

    fn log_path(&self, node_id: u32) -> PathBuf {
        self.directory.join(format!("broker-{node_id}.log"))
    }

    /// Starts a broker, and does not wait for it.
    pub(super) fn start(&self, plan: &Plan) -> anyhow::Result<Broker> {
        let node_id = plan.node_id;
        let ports = self.directory.join(format!("broker-{node_id}.json"));
        match fs::remove_file(&ports) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", ports.display()));
            }
            _ => {}
        }
        let log_path = self.log_path(node_id);
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.with_context(|| format!("open {}", log_path.display()))?;
        let child = Command::new(&self.executable)
            .args(["broker", "--die-with-parent", &std::process::id().to_string()])
            .args(["--node-id", &node_id.to_string(), "--voters", &plan.voters])
            .args(["--listen", &plan.listen, "--http", &plan.http])
            .args(["--drain-timeout", DRAIN_TIMEOUT])
            .arg("--data-dir")
            .arg(self.data(node_id))
            .arg("--port-file")
            .arg(&ports)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for the quickstart, which then ends the brokers itself.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {} broker", self.executable.display()))?;
        // From here on the child ends with this value, whatever happens.
        let addresses = Addresses { listen: plan.listen.clone(), http: Some(plan.http.clone()) };
        Ok(Broker { child, node_id, addresses, ports, log_path, started: Instant::now(), ready_after: None })
    }

    /// The last lines of the log of a broker, if it has one.
    pub(super) fn log_end(&self, node_id: u32) -> Option<String> {
        log_end(&self.log_path(node_id))
    }
}

fn log_end(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let tail = &bytes[bytes.len().saturating_sub(LOG_SHOWN)..];
    Some(String::from_utf8_lossy(tail).trim_end().to_owned())
}

/// A running broker.
#[derive(Debug)]
pub(super) struct Broker {
    child: Child,
    pub(super) node_id: u32,
    pub(super) addresses: Addresses,
    ports: PathBuf,
    log_path: PathBuf,
    started: Instant,
    ready_after: Option<Duration>,
}

impl Broker {
    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// From the start of the process until it was ready, once it is.
    ///
    /// # Errors
    /// When it has ended before.
    pub(super) fn ready_after(&mut self) -> anyhow::Result<Option<Duration>> {
        if self.ready_after.is_none() {
            if let Some(addresses) = read_ports(&self.ports)? {
                self.addresses = addresses;
                self.ready_after = Some(self.started.elapsed());
            } else if let Some(status) = self.ended()? {
                let log = log_end(&self.log_path).unwrap_or_default();
                anyhow::bail!(
                    "broker {} ended with {status} before it was ready; its log ends in:\n{log}",
                    self.node_id
                );
            }
        }
        Ok(self.ready_after)
    }

    /// Kills it where it stands, with SIGKILL, and waits until it is gone.
    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().context("kill the broker")?;
        self.child.wait().context("wait for the killed broker")?;
        Ok(())
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().context("look after the broker")
    }

    /// Asks it to end.
    pub(super) fn ask_to_end(&mut self) -> anyhow::Result<()> {
        // A child that has not been waited for cannot have given its id away.
        if self.ended()?.is_none() {
            kill_process(Pid::from_child(&self.child), Signal::TERM).context("ask the broker to end")?;
        }
        Ok(())
    }

    /// Waits until it has ended, after it was asked to.
    pub(super) async fn wait_for_end(mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + END_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.ended()? {
                anyhow::ensure!(status.success(), "broker {} ended with {status}", self.node_id);
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        anyhow::bail!("broker {} did not end within {END_WITHIN:?} and was killed", self.node_id)
    }
}

/// The addresses in a port file, once it is there. It appears whole: the broker renames it into place.
fn read_ports(path: &Path) -> anyhow::Result<Option<Addresses>> {
    match fs::read(path) {
        Ok(bytes) => {
            let addresses = serde_json::from_slice(&bytes);
            addresses.map(Some).with_context(|| format!("read {}", path.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

impl Drop for Broker {
    /// Nothing that the quickstart started stays behind.
    fn drop(&mut self) {
        // It has ended already, or now it does.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
