//! What the README tells a newcomer to type works as it stands there.
//!
//! The `$ highwater …` lines are given to a shell, one after another, in a folder that holds a copy of the README; those
//! that start brokers run in the background, as in terminals of their own. If one of the ports that the README names is
//! taken on this machine, all of them are replaced by free ones. The `cargo …` lines are what `.ci/run` runs.
#![cfg(test)]

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use highwater_tests::cluster::highwater;
use highwater_tests::wait;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

/// The lines of code blocks with this language; the empty one for none.
fn code_lines(text: &str, language: &str) -> Vec<String> {
    let mut inside: Option<bool> = None;
    let mut lines = Vec::new();
    for line in text.lines() {
        if let Some(found) = line.strip_prefix("```") {
            inside = if inside.is_some() { None } else { Some(found == language) };
        } else if inside == Some(true) {
            lines.push(line.to_owned());
        }
    }
    lines
}

/// A shell in a folder of its own, which finds `highwater` as a user's would.
struct Shell {
    folder: TempDir,
    path: String,
    environment: Vec<(&'static str, String)>,
}

impl Shell {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("highwater-readme-").tempdir().unwrap();
        fs::copy(root().join("README.md"), folder.path().join("README.md")).unwrap();
        let program = highwater().unwrap();
        let before = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{before}", program.parent().unwrap().display());
        Self { folder, path, environment: Vec::new() }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("bash");
        // `exec`: a signal is meant for the program, not for the shell.
        command.args(["-c", &format!("exec {line}")]).current_dir(self.folder.path());
        command.env("PATH", &self.path).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> Output {
        let output = self.command(line).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "$ {line}\nended with {}\n{out}\n{err}", output.status);
        output
    }
}

/// The ports that the README names, and by which they are replaced.
struct Ports(Vec<(u16, u16)>);

impl Ports {
    fn of(text: &str) -> Self {
        let mut named: Vec<u16> = text
            .match_indices("127.0.0.1:")
            .filter_map(|(at, found)| text[at + found.len()..].get(..4)?.parse().ok())
            .collect();
        named.sort_unstable();
        named.dedup();
        if named.iter().copied().all(is_free) {
            return Self(named.iter().map(|&port| (port, port)).collect());
        }
        // Below those that the system gives to connections, and others in each process.
        let first = 12_000 + u16::try_from(std::process::id() % 7000).unwrap();
        let mut free = (first..20_000).filter(|port| is_free(*port));
        Self(named.iter().map(|&port| (port, free.next().unwrap())).collect())
    }

    fn replace(&self, line: &str) -> String {
        let address = |port: u16| format!("127.0.0.1:{port}");
        self.0.iter().fold(line.to_owned(), |line, (port, by)| line.replace(&address(*port), &address(*by)))
    }

    fn are_those_named(&self) -> bool {
        self.0.iter().all(|(port, by)| port == by)
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// A broker of the README, until it is stopped.
struct Broker {
    child: Child,
    line: String,
    port_file: PathBuf,
    log: PathBuf,
}

impl Broker {
    fn start(shell: &Shell, line: &str, number: usize) -> Self {
        let port_file = shell.folder.path().join(format!("ports-{number}.json"));
        let log = shell.folder.path().join(format!("broker-{number}.log"));
        let output = File::create(&log).unwrap();
        let child = shell
            .command(line)
            // Only to know when it is ready, which a person sees in its terminal.
            .env("HIGHWATER_PORT_FILE", &port_file)
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self { child, line: line.to_owned(), port_file, log }
    }

    fn ready(&mut self) {
        let ready = wait::until("a broker of the README is ready", LIMIT, || {
            let ended = self.child.try_wait().unwrap().map(|status| Err(format!("it ended with {status}")));
            if self.port_file.exists() { Some(Ok(())) } else { ended }
        });
        if let Err(error) = ready.map_err(|error| error.to_string()).flatten() {
            panic!("$ {}\n{error}\n{}", self.line, fs::read_to_string(&self.log).unwrap_or_default());
        }
    }

    /// As Ctrl-C in its terminal would.
    fn interrupt(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
    }

    fn ended(mut self) {
        let status = wait::until("the broker ends", LIMIT, || self.child.try_wait().unwrap()).unwrap();
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        assert!(status.success(), "Ctrl-C ends a broker with {status}\n{log}");
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Already ended, or a test has failed before it did.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_tour_works_as_it_is_written() {
    let lines = code_lines(&readme(), "console");
    let commands: Vec<&str> = lines.iter().map(|line| line.strip_prefix("$ ").unwrap()).collect();
    assert!(commands.len() >= 18, "the README has a tour: {commands:?}");
    let ports = Ports::of(&lines.join("\n"));
    let mut shell = Shell::new();
    if !ports.are_those_named() {
        shell.environment = vec![("HIGHWATER_BOOTSTRAP", ports.replace("127.0.0.1:9470"))];
    }
    let is_broker = |line: &&&str| line.starts_with("highwater broker");
    let started = commands.iter().filter(is_broker).enumerate();
    let mut brokers: Vec<Broker> =
        started.map(|(number, line)| Broker::start(&shell, &ports.replace(line), number)).collect();
    assert_eq!(brokers.len(), 3, "three brokers, one terminal each");
    brokers.iter_mut().for_each(Broker::ready);
    for line in commands.iter().filter(|line| !is_broker(line)) {
        if line.starts_with("highwater log") {
            // The README says that no broker runs while one looks at its directory.
            brokers.iter().for_each(Broker::interrupt);
            brokers.drain(..).for_each(Broker::ended);
        }
        let output = shell.run(line);
        if *line == "highwater consume readme --exit-at-end" {
            assert!(output.stdout == readme().as_bytes(), "this page again, byte for byte");
        }
        if line.contains("--output json") {
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
        }
    }
    assert!(brokers.is_empty(), "the tour ends with the offline commands");
}

#[test]
fn ports_that_are_taken_are_replaced() {
    let ports = Ports(vec![(9470, 15_000), (9471, 15_001)]);
    let line = "highwater broker --listen 127.0.0.1:9470 --http 127.0.0.1:9471 --voters 1@127.0.0.1:9470";
    let replaced =
        "highwater broker --listen 127.0.0.1:15000 --http 127.0.0.1:15001 --voters 1@127.0.0.1:15000";
    assert_eq!(ports.replace(line), replaced);
    assert!(!ports.are_those_named());
    assert_eq!(Ports::of(line).0.iter().map(|(port, _)| *port).collect::<Vec<_>>(), [9470, 9471]);
}

#[test]
fn the_cargo_commands_are_those_that_ci_runs() {
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    let readme = readme();
    let lines: Vec<&str> =
        readme.lines().filter(|line| line.starts_with("cargo ") || line.starts_with("$ cargo ")).collect();
    assert!(lines.contains(&"cargo run --release -- quickstart --exit"), "{lines:?}");
    assert!(lines.contains(&"cargo test --workspace"), "{lines:?}");
    for line in lines {
        assert!(ci.contains(line.trim_start_matches("$ ")), ".ci/run does not run `{line}`");
    }
}

#[test]
fn links_lead_somewhere() {
    let documents = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    let folders = ["docs", "docs/adr"];
    let mut all: Vec<PathBuf> = documents.iter().map(|name| root().join(name)).collect();
    for folder in folders {
        let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        all.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    let mut links = 0;
    for path in all {
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") || link.starts_with('#') {
                continue;
            }
            let target = path.parent().unwrap().join(link.split('#').next().unwrap());
            assert!(target.exists(), "{} links to {link}", path.display());
            links += 1;
        }
    }
    assert!(links > 5);
}

#[test]
fn blocks_are_told_apart() {
    let text = "```\ncargo test\n```\ntext\n```console\n$ a\n$ b\n```\n```rust\nlet x;\n```\n";
    assert_eq!(code_lines(text, "console"), ["$ a", "$ b"]);
    assert_eq!(code_lines(text, ""), ["cargo test"]);
}
