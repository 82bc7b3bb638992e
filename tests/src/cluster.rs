//! Brokers as real processes: the `highwater` binary on ports that the system chose, killed, paused and started again.

mod binary;

use std::env;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tempfile::TempDir;

pub use self::binary::highwater;
use crate::resources::{self, Usage};
use crate::wait;

/// How long a broker may take to say where it listens. Debug builds on a busy machine need some of it.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a broker may take to end after it was asked to.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Lines of the log that are shown when a test fails.
const LOG_TAIL_LINES: usize = 60;

/// How a broker is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the data goes; a directory of its own, removed at the end, if absent.
    pub data_directory: Option<PathBuf>,
    /// Further arguments of `highwater broker`.
    pub arguments: Vec<String>,
    /// Further environment variables.
    pub environment: Vec<(String, String)>,
    /// The program; the one of this build if absent.
    pub program: Option<PathBuf>,
    /// How long it may take until the broker listens.
    pub start_limit: Duration,
    /// Listen on the same port after every start, so that clients find the broker again.
    pub keeps_port: bool,
    /// Its id in its cluster.
    pub node_id: u32,
    /// Where it listens; a port of loopback if absent.
    pub listen: Option<SocketAddr>,
    /// A program and its arguments that runs the broker in place of itself, such as in another network namespace.
    pub launcher: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            data_directory: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            program: None,
            start_limit: START_LIMIT,
            keeps_port: false,
            node_id: 1,
            listen: None,
            launcher: Vec::new(),
        }
    }
}

/// Where a broker listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Addresses {
    /// The protocol.
    pub listen: SocketAddr,
    /// Health and metrics.
    pub http: Option<SocketAddr>,
}

/// A broker process. It is killed and its files are removed when this is dropped.
///
/// The methods block the calling thread: the broker is another process, so that nothing here depends on the caller's
/// runtime meanwhile.
#[derive(Debug)]
pub struct BrokerProcess {
    child: Option<Child>,
    addresses: Addresses,
    /// The protocol address asked for; port 0: any.
    listen: SocketAddr,
    options: Options,
    program: PathBuf,
    data_directory: PathBuf,
    /// Holds the log, the port file and, unless given, the data.
    directory: TempDir,
}

impl BrokerProcess {
    /// Starts a broker and waits until it listens.
    ///
    /// # Errors
    /// When the program cannot be built or started, ends, or does not say in time where it listens; with the end of its
    /// log.
    pub fn start(options: Options) -> Result<Self> {
        let mut broker = Self::new(options)?;
        broker.start_again()?;
        Ok(broker)
    }

    /// A broker that has its place and its address, and does not run yet.
    ///
    /// # Errors
    /// When the program cannot be built, or there is no free port.
    pub fn new(options: Options) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("highwater-broker-").tempdir().context("make a directory")?;
        let program = match &options.program {
            Some(program) => program.clone(),
            None => highwater()?,
        };
        let data_directory = options.data_directory.clone().unwrap_or_else(|| directory.path().join("data"));
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listen = match options.listen {
            Some(listen) => listen,
            None => loopback(if options.keeps_port { free_port()? } else { 0 }),
        };
        let addresses = Addresses { listen, http: None };
        Ok(Self { child: None, addresses, listen, options, program, data_directory, directory })
    }

    /// Starts the broker again after it has ended, on the same data, and waits until it listens. Returns how long that
    /// took, from the start of the process.
    ///
    /// # Errors
    /// As [`BrokerProcess::start`], and when the broker is still running.
    pub fn start_again(&mut self) -> Result<Duration> {
        let start = Instant::now();
        self.start_again_unawaited()?;
        self.await_start()?;
        Ok(start.elapsed())
    }

    /// Waits until the broker that was started without waiting listens.
    ///
    /// # Errors
    /// When the broker ends, or does not say in time where it listens; with the end of its log.
    pub fn await_start(&mut self) -> Result<Addresses> {
        let port_file = self.port_file();
        let limit = self.options.start_limit;
        let what = format!("broker {} says where it listens", self.options.node_id);
        let found = wait::until(&what, limit, || self.started(&port_file));
        match found.and_then(|started| started) {
            Ok(addresses) => self.addresses = addresses,
            Err(error) => {
                self.kill9()?;
                bail!("{error:#}; the end of its log:\n{}", self.log_tail());
            }
        }
        Ok(self.addresses)
    }

    /// Where it writes its ports once it is ready.
    fn port_file(&self) -> PathBuf {
        self.directory.path().join("ports.json")
    }

    /// Starts the process without waiting for anything: to kill it while it is starting, or to start others meanwhile.
    ///
    /// # Errors
    /// When the broker is still running, or does not start.
    pub fn start_again_unawaited(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the broker is still running");
        let port_file = self.port_file();
        if let Err(error) = fs::remove_file(&port_file) {
            ensure!(error.kind() == std::io::ErrorKind::NotFound, "remove {}: {error}", port_file.display());
        }
        let log =
            OpenOptions::new().create(true).append(true).open(self.log_path()).context("open the log")?;
        let mut command = match self.options.launcher.split_first() {
            None => Command::new(&self.program),
            Some((launcher, arguments)) => {
                let mut command = Command::new(launcher);
                command.args(arguments).arg(&self.program);
                command
            }
        };
        // Settings of whoever runs the tests are not those of this broker.
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HIGHWATER_")) {
            command.env_remove(name);
        }
        let child = command
            // A test that is killed takes its broker with it: the thread that starts it is the test's own.
            .args(["broker", "--die-with-parent", &std::process::id().to_string()])
            .args(["--node-id", &self.options.node_id.to_string(), "--http", "127.0.0.1:0"])
            .args(["--listen", &self.listen.to_string()])
            .arg("--data-dir")
            .arg(&self.data_directory)
            .arg("--port-file")
            .arg(&port_file)
            .args(&self.options.arguments)
            .envs(self.options.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// The addresses, once they are in the port file; an error once the process has ended without them.
    fn started(&mut self, port_file: &Path) -> Option<Result<Addresses>> {
        if let Ok(text) = fs::read_to_string(port_file) {
            return Some(serde_json::from_str(&text).context("understand the port file"));
        }
        match self.child.as_mut()?.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(Err(anyhow!("the broker ended with {status}"))),
            Err(error) => Some(Err(anyhow!("ask for the state of the broker: {error}"))),
        }
    }

    /// What later starts get as further arguments, instead of what the first one got.
    pub fn set_arguments(&mut self, arguments: Vec<String>) {
        self.options.arguments = arguments;
    }

    /// Where clients connect to, as they take it.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.addresses.listen.to_string()
    }

    /// Where the broker listens.
    #[must_use]
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Where its data is.
    #[must_use]
    pub fn data_directory(&self) -> &Path {
        &self.data_directory
    }

    /// A directory that lives as long as this value, for the files of a test.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// The process id.
    ///
    /// # Errors
    /// When the broker is not running.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the broker is not running")?.id())
    }

    /// What the process uses now.
    ///
    /// # Errors
    /// When the broker is not running.
    pub fn usage(&self) -> Result<Usage> {
        resources::usage(self.pid()?)
    }

    /// Whether the process is alive.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        match &mut self.child {
            None => Ok(false),
            Some(child) => Ok(child.try_wait().context("ask for the state of the broker")?.is_none()),
        }
    }

    /// Ends the process at once, as a crash of it would, and waits until it is gone. Nothing happens if it is not running.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill9(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().context("kill the broker")?;
            child.wait().context("wait for the end of the broker")?;
        }
        Ok(())
    }

    /// Kills the process without waiting for its end, so that others can be killed at the same moment.
    ///
    /// # Errors
    /// When the broker is not running.
    pub fn kill9_unawaited(&self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    /// Waits until the process ends by itself, as after a refused start, and returns how.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn await_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the broker is not running")?;
        let what = format!("broker {} ends by itself", self.options.node_id);
        match wait::until(&what, limit, || child.try_wait().transpose()) {
            Ok(status) => Ok(status?),
            Err(error) => {
                self.child = Some(child);
                bail!("{error:#}; the end of its log:\n{}", self.log_tail())
            }
        }
    }

    /// Asks the process to end (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// When it does not end in time, or is not running.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let mut child = self.child.take().context("the broker is not running")?;
        let ended = wait::until("the broker ends", STOP_LIMIT, || child.try_wait().transpose());
        match ended {
            Ok(status) => Ok(status?),
            Err(error) => {
                self.child = Some(child);
                self.kill9()?;
                bail!("{error:#}; the end of its log:\n{}", self.log_tail())
            }
        }
    }

    /// Stops the process where it is, as a long pause of the machine would.
    ///
    /// # Errors
    /// When the broker is not running.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets the process go on after a pause.
    ///
    /// # Errors
    /// When the broker is not running.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("the broker is not running")?;
        kill_process(Pid::from_child(child), signal).with_context(|| format!("send {signal:?} to the broker"))
    }

    /// What the broker has logged so far, over all starts.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        let bytes = fs::read(self.log_path()).context("read the log")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The lines of the log that a person should have looked at (WARN, ERROR, panics) and that hold none of `expected`.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn alarms(&self, expected: &[&str]) -> Result<Vec<String>> {
        Ok(alarms(&self.log()?, expected))
    }

    /// Fails when there is an alarm that is not expected.
    ///
    /// # Errors
    /// With those lines.
    pub fn check_log(&self, expected: &[&str]) -> Result<()> {
        let found = self.alarms(expected)?;
        ensure!(found.is_empty(), "unexpected lines in the broker's log:\n{}", found.join("\n"));
        Ok(())
    }

    /// Copies the log to where it outlives this value; with `HIGHWATER_KEEP` set, the data stays too.
    fn keep(&mut self) -> Result<PathBuf> {
        let kept = env::temp_dir().join("highwater-failed");
        fs::create_dir_all(&kept)?;
        let kept = kept.join(format!("{}-node-{}.log", std::process::id(), self.options.node_id));
        fs::copy(self.log_path(), &kept)?;
        if env::var_os("HIGHWATER_KEEP").is_some() {
            self.directory.disable_cleanup(true);
        }
        Ok(kept)
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("broker.log")
    }

    /// The last lines of the log, for messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let tail = File::open(self.log_path()).and_then(|mut file| {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(64 << 10)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        });
        let text = tail.unwrap_or_else(|error| format!("(not readable: {error})"));
        let lines: Vec<_> = text.lines().collect();
        let mut shown = String::new();
        for line in lines.iter().skip(lines.len().saturating_sub(LOG_TAIL_LINES)) {
            // Writing to a string cannot fail.
            let _ = writeln!(shown, "{line}");
        }
        shown
    }
}

impl Drop for BrokerProcess {
    #[expect(
        clippy::print_stderr,
        reason = "the log is gone with the directory, and whoever reads a failure needs it"
    )]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let node = self.options.node_id;
            eprintln!("--- the end of the log of broker {node} ---\n{}---", self.log_tail());
            match self.keep() {
                Ok(kept) => eprintln!("the whole log of broker {node} is in {}", kept.display()),
                Err(error) => eprintln!("the log of broker {node} is lost: {error:#}"),
            }
        }
        if let Err(error) = self.kill9() {
            eprintln!("the broker may be left behind: {error:#}");
        }
    }
}

/// A port that nobody uses, below those that the system gives to outgoing connections: a client that keeps connecting to
/// one of those would in the end be connected to itself.
///
/// # Errors
/// When a thousand ports were tried in vain.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 10_000).unwrap_or_default();
    (0..1000)
        .map(|_| 20_000 + (first + NEXT.fetch_add(7, Ordering::Relaxed) % 10_000) % 12_000)
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .context("find a free port")
}

/// See [`BrokerProcess::alarms`].
fn alarms(log: &str, expected: &[&str]) -> Vec<String> {
    let is_alarm = |line: &str| {
        line.split_whitespace().any(|word| matches!(word, "WARN" | "ERROR")) || line.contains("panicked at")
    };
    log.lines()
        .filter(|line| is_alarm(line) && !expected.iter().any(|text| line.contains(text)))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_found_and_expected_ones_are_not() {
        let log = "2026-01-01T00:00:00Z  INFO highwater: ready\n\
                   2026-01-01T00:00:00Z  WARN highwater: a torn tail was cut\n\
                   2026-01-01T00:00:00Z ERROR highwater: the disk is full\n\
                   thread 'main' panicked at broker.rs:1\n";
        assert_eq!(alarms(log, &[]).len(), 3);
        assert_eq!(alarms(log, &["torn tail", "disk is full"]), ["thread 'main' panicked at broker.rs:1"]);
    }

    #[test]
    fn a_program_that_ends_at_once_is_reported_with_its_log() {
        let options = Options { program: Some(PathBuf::from("/bin/ls")), ..Options::default() };
        let error = BrokerProcess::start(options).unwrap_err().to_string();
        assert!(error.contains("ended with"), "{error}");
        assert!(error.contains("option") || error.contains("ls:"), "{error}");
    }
}
