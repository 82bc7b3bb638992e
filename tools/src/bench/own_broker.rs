//! A broker that a bench starts itself: a child process that never outlives it, on free ports and a directory of its own.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use super::http;

/// How often a child is looked at while it starts.
const LOOK: Duration = Duration::from_micros(500);

/// How long a broker that is asked to end may take.
const END_WITHIN: Duration = Duration::from_secs(60);

/// Looks in a row that must show the same resident bytes before they count as settled.
const SETTLED_LOOKS: u32 = 100;

/// How long resident bytes may take to settle.
const SETTLE_WITHIN: Duration = Duration::from_secs(10);

/// Bytes of a broker's log that are shown when it fails.
const LOG_SHOWN: usize = 1500;

/// Where a broker listens, as its port file says.
#[derive(Debug, serde::Deserialize)]
struct Addresses {
    listen: String,
    http: String,
}

/// A broker that is ready.
#[derive(Debug)]
pub(super) struct OwnBroker {
    child: Child,
    /// `HOST:PORT` of the protocol.
    pub(super) address: String,
    /// From the start of the process until it said that it is ready.
    pub(super) ready_after: Duration,
}

impl OwnBroker {
    /// Starts this program as a broker that keeps everything below `directory`, and waits until it is ready.
    ///
    /// # Errors
    /// When it ends instead, with the end of its log; or is not ready `within` this time.
    pub(super) async fn start(directory: &Path, within: Duration) -> anyhow::Result<Self> {
        let executable = std::env::current_exe().context("find the executable of highwater")?;
        let ports = directory.join("ports.json");
        match fs::remove_file(&ports) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", ports.display()));
            }
            _ => {}
        }
        let log_path = directory.join("broker.log");
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.with_context(|| format!("open {}", log_path.display()))?;
        let started = Instant::now();
        let child = command(&executable, directory, &ports)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {} broker", executable.display()))?;
        // From here on the child ends with this value, whatever happens.
        let mut broker = Self { child, address: String::new(), ready_after: Duration::ZERO };
        loop {
            if let Some(addresses) = broker.ready(&ports).await? {
                broker.ready_after = started.elapsed();
                broker.address = addresses.listen;
                return Ok(broker);
            }
            if let Some(status) = broker.child.try_wait().context("look after the broker")? {
                anyhow::bail!(
                    "the broker ended with {status} before it was ready; its log ends in:\n{}",
                    log_end(&log_path)
                );
            }
            anyhow::ensure!(
                started.elapsed() < within,
                "the broker was not ready within {within:?}; its log ends in:\n{}",
                log_end(&log_path)
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Where it listens, once it says that it is ready.
    async fn ready(&self, ports: &Path) -> anyhow::Result<Option<Addresses>> {
        let bytes = match fs::read(ports) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("read {}", ports.display()))?,
        };
        // It appears whole: the broker renames it into place.
        let addresses: Addresses =
            serde_json::from_slice(&bytes).with_context(|| format!("read {}", ports.display()))?;
        let answer = http::get(&addresses.http, "/health/ready").await;
        Ok(matches!(answer, Ok((200, _))).then_some(addresses))
    }

    /// Bytes of memory that it has, once they do not change any more.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(super) async fn resident_bytes(&self) -> anyhow::Result<u64> {
        let deadline = Instant::now() + SETTLE_WITHIN;
        let (mut last, mut same) = (0, 0);
        loop {
            let now = self.resident_bytes_now()?;
            same = if now == last { same + 1 } else { 0 };
            last = now;
            if same >= SETTLED_LOOKS || Instant::now() >= deadline {
                return Ok(last);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn resident_bytes_now(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kibibytes.map(|kibibytes| kibibytes << 10).with_context(|| format!("{path} has no VmRSS"))
    }

    /// Kills it where it stands, with SIGKILL, and waits until it is gone.
    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().context("kill the broker")?;
        self.child.wait().context("wait for the killed broker")?;
        Ok(())
    }

    /// Asks it to end, and waits until it has.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).context("ask the broker to end")?;
        let deadline = Instant::now() + END_WITHIN;
        loop {
            if let Some(status) = self.child.try_wait().context("look after the broker")? {
                anyhow::ensure!(status.success(), "the broker ended with {status}");
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "the broker did not end within {END_WITHIN:?} and was killed"
            );
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for OwnBroker {
    /// Nothing that the bench started stays behind.
    fn drop(&mut self) {
        // It has ended already, or now it does.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a broker in `directory` keeps its data.
pub(super) fn data(directory: &Path) -> PathBuf {
    directory.join("data")
}

fn command(executable: &Path, directory: &Path, ports: &Path) -> Command {
    let mut command = Command::new(executable);
    // Settings of this shell are for the brokers that its user runs.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HIGHWATER_") {
            command.env_remove(name);
        }
    }
    command
        .args(["broker", "--die-with-parent", &std::process::id().to_string()])
        .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .arg("--data-dir")
        .arg(data(directory))
        .arg("--port-file")
        .arg(ports)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // Ctrl-C is for the bench, which then ends the broker itself.
        .process_group(0);
    command
}

fn log_end(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let tail = &bytes[bytes.len().saturating_sub(LOG_SHOWN)..];
    String::from_utf8_lossy(tail).trim_end().to_owned()
}
