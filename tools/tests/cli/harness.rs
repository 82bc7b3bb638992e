//! The real binary: run to its end, or a broker of it in the background.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long a command may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The binary, with nothing of this environment that could change what it does.
pub(crate) fn highwater() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_highwater"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HIGHWATER_") || name == "COLUMNS" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A child that does not outlive its test.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    what: String,
}

impl Running {
    /// Starts it.
    pub(crate) fn start(mut command: Command) -> Self {
        let what = format!("{:?}", command.get_args().collect::<Vec<_>>());
        let child = command.spawn().unwrap_or_else(|error| panic!("start {what}: {error}"));
        Self { child, what }
    }

    /// Its standard input.
    pub(crate) fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().expect("standard input is piped")
    }

    /// Its standard output.
    pub(crate) fn stdout(&mut self) -> std::process::ChildStdout {
        self.child.stdout.take().expect("standard output is piped")
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end, and has what it printed if nobody took that.
    pub(crate) fn finish(mut self) -> Output {
        let stdout = collect(self.child.stdout.take());
        let stderr = collect(self.child.stderr.take());
        let status = self.wait();
        Output { status, stdout: received(&stdout), stderr: received(&stderr) }
    }

    fn wait(&mut self) -> ExitStatus {
        wait_for(&format!("the end of {}", self.what), || self.child.try_wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads on a thread of its own, so that a full pipe holds nobody up.
fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}

fn received(receiver: &mpsc::Receiver<Vec<u8>>) -> Vec<u8> {
    receiver.recv_timeout(PATIENCE).expect("the pipe ends with its process")
}

/// Runs a command to its end.
pub(crate) fn run(command: Command) -> Output {
    Running::start(command).finish()
}

/// Asks again and again until there is an answer.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// A broker on free ports, with a directory of its own.
#[derive(Debug)]
pub(crate) struct Broker {
    running: Option<Running>,
    pub(crate) directory: TempDir,
    /// Where it listens; the same after a restart.
    pub(crate) address: String,
    /// Where it serves HTTP, or `off`.
    pub(crate) http: String,
}

impl Broker {
    /// Starts a broker and waits until it is ready.
    pub(crate) fn start() -> Self {
        Self::start_with_http("off")
    }

    /// As [`Broker::start`], with HTTP at this address.
    pub(crate) fn start_with_http(http: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = "127.0.0.1:0".to_owned();
        let mut broker = Self { running: None, directory, address, http: http.to_owned() };
        broker.restart();
        broker
    }

    /// Its data.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Starts it again after `kill` or `stop`.
    pub(crate) fn restart(&mut self) {
        let ports = self.directory.path().join("ports.json");
        let _ = fs::remove_file(&ports);
        let mut command = highwater();
        command.args(["broker", "--http", &self.http, "--listen", &self.address]);
        command.arg("--data-dir").arg(self.data()).arg("--port-file").arg(&ports);
        let log = fs::File::options().create(true).append(true).open(self.log()).unwrap();
        command.stdout(Stdio::null()).stderr(log);
        let mut running = Running::start(command);
        self.address = wait_for("the broker", || {
            if let Some(status) = running.child.try_wait().unwrap() {
                panic!("the broker ended with {status}: {}", fs::read_to_string(self.log()).unwrap());
            }
            let ports: Value = serde_json::from_slice(&fs::read(&ports).ok()?).unwrap();
            if let Some(http) = ports["http"].as_str() {
                http.clone_into(&mut self.http);
            }
            Some(ports["listen"].as_str().unwrap().to_owned())
        });
        self.running = Some(running);
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("broker.log")
    }

    /// Kills it where it stands.
    pub(crate) fn kill(&mut self) {
        drop(self.running.take().expect("the broker runs"));
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(&mut self) {
        let running = self.running.take().expect("the broker runs");
        running.signal(rustix::process::Signal::TERM);
        let output = running.finish();
        assert!(output.status.success(), "{}: {}", output.status, fs::read_to_string(self.log()).unwrap());
    }

    /// The binary, told of this broker.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = highwater();
        command.env("HIGHWATER_BOOTSTRAP", &self.address).args(arguments);
        command
    }

    /// Runs a command and returns its standard output; it must end with 0.
    pub(crate) fn good(&self, arguments: &[&str]) -> Vec<u8> {
        let output = run(self.command(arguments));
        check(&output, 0, arguments);
        output.stdout
    }

    /// Runs a command with `--output json` and returns what it printed; it must end with 0.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let all: Vec<&str> = arguments.iter().copied().chain(["--output", "json"]).collect();
        let printed = self.good(&all);
        serde_json::from_slice(&printed).unwrap_or_else(|error| {
            panic!("{arguments:?} printed no JSON document: {error}: {}", String::from_utf8_lossy(&printed))
        })
    }

    /// Runs a command with this standard input.
    pub(crate) fn feed(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped());
        let mut running = Running::start(command);
        let mut stdin = running.stdin();
        let input = input.to_vec();
        let writer = thread::spawn(move || stdin.write_all(&input));
        let output = running.finish();
        // A command may end before it has read everything.
        let _ = writer.join().unwrap();
        output
    }
}

/// Checks how a command ended.
#[track_caller]
pub(crate) fn check(output: &Output, code: i32, what: &[&str]) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "{what:?} ended with {}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Compares with a golden file, or writes it with `UPDATE_EXPECT=1`.
#[track_caller]
pub(crate) fn expect(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{name} differs; UPDATE_EXPECT=1 rewrites it if that is meant. Now:\n{text}");
}
