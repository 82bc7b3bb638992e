//! The broker of the quickstart: a child process that never outlives it.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

/// How long a broker may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long a broker that is asked to end may take.
const END_WITHIN: Duration = Duration::from_secs(10);
/// How often a child is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// Bytes of the broker's log that are shown when it fails.
const LOG_SHOWN: usize = 2000;

/// Where a broker listens.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Addresses {
    pub(crate) listen: String,
    /// Absent when it serves no HTTP.
    pub(crate) http: Option<String>,
}

/// A running broker.
#[derive(Debug)]
pub(crate) struct Broker {
    child: Child,
    pub(crate) addresses: Addresses,
    /// From the start of the process until it was ready.
    pub(crate) ready_after: Duration,
}

/// How brokers are started here.
#[derive(Debug)]
pub(crate) struct Launcher {
    executable: PathBuf,
    /// What the broker and the quickstart keep: `data`, `broker.log`, `ports.json`.
    directory: PathBuf,
}

impl Launcher {
    /// Brokers that keep everything below `directory`, which exists.
    pub(crate) fn new(directory: &Path) -> anyhow::Result<Self> {
        let executable = std::env::current_exe().context("find the executable of highwater")?;
        Ok(Self { executable, directory: directory.to_owned() })
    }

    /// The broker's log.
    pub(crate) fn log_path(&self) -> PathBuf {
        self.directory.join("broker.log")
    }

    /// Starts a broker on the default ports, or on free ones when those are taken.
    pub(crate) async fn start(&self) -> anyhow::Result<Broker> {
        let default =
            Addresses { listen: "127.0.0.1:9470".to_owned(), http: Some("127.0.0.1:9471".to_owned()) };
        if let Ok(broker) = self.start_at(&default).await {
            return Ok(broker);
        }
        let free = Addresses { listen: "127.0.0.1:0".to_owned(), http: Some("127.0.0.1:0".to_owned()) };
        self.start_at(&free).await
    }

    /// Starts a broker at these addresses and waits until it is ready.
    pub(crate) async fn start_at(&self, addresses: &Addresses) -> anyhow::Result<Broker> {
        let ports = self.directory.join("ports.json");
        match fs::remove_file(&ports) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", ports.display()));
            }
            _ => {}
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .with_context(|| format!("open {}", self.log_path().display()))?;
        let started = Instant::now();
        let child = Command::new(&self.executable)
            .args(["broker", "--die-with-parent", &std::process::id().to_string()])
            .args(["--listen", &addresses.listen])
            .args(["--http", addresses.http.as_deref().unwrap_or("off")])
            .arg("--data-dir")
            .arg(self.directory.join("data"))
            .arg("--port-file")
            .arg(&ports)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for the quickstart, which then ends the broker itself.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {} broker", self.executable.display()))?;
        // From here on the child ends with this value, whatever happens.
        let mut broker = Broker { child, addresses: addresses.clone(), ready_after: Duration::ZERO };
        loop {
            if let Some(addresses) = read_ports(&ports)? {
                broker.addresses = addresses;
                broker.ready_after = started.elapsed();
                return Ok(broker);
            }
            if let Some(status) = broker.child.try_wait().context("look after the broker")? {
                anyhow::bail!(
                    "the broker ended with {status} before it was ready; its log ends in:\n{}",
                    self.log_end()
                );
            }
            anyhow::ensure!(
                started.elapsed() < READY_WITHIN,
                "the broker is not ready after {READY_WITHIN:?}; its log ends in:\n{}",
                self.log_end()
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The last lines of the broker's log.
    pub(crate) fn log_end(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        let tail = &bytes[bytes.len().saturating_sub(LOG_SHOWN)..];
        String::from_utf8_lossy(tail).trim_end().to_owned()
    }
}

/// The addresses in a port file, once it is there. It appears whole: the broker renames it into place.
fn read_ports(path: &Path) -> anyhow::Result<Option<Addresses>> {
    match fs::read(path) {
        Ok(bytes) => {
            let addresses = serde_json::from_slice(&bytes);
            addresses.map(Some).with_context(|| format!("read {}", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

impl Broker {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it where it stands, with SIGKILL, and waits until it is gone.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().context("kill the broker")?;
        self.child.wait().context("wait for the killed broker")?;
        Ok(())
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().context("look after the broker")
    }

    /// Asks it to end, and waits until it has.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        // A child that has not been waited for cannot have given its id away.
        if self.child.try_wait().context("look after the broker")?.is_some() {
            return Ok(());
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM).context("ask the broker to end")?;
        let deadline = Instant::now() + END_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().context("wait for the broker")? {
                anyhow::ensure!(status.success(), "the broker ended with {status}");
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        anyhow::bail!("the broker did not end within {END_WITHIN:?} and was killed")
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
