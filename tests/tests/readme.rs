//! What the README tells a newcomer to type works as it stands there.
//!
//! The `$ highwater …` lines are given to a shell, one after another, in a folder that holds a copy of the README. Ports
//! are free ones instead of the usual ones, by the environment that the README itself describes. The `cargo …` lines are
//! what `.ci/run` runs.
#![cfg(test)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use highwater_tests::cluster::{Addresses, highwater};
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

/// The broker of the README, until it is stopped.
struct Broker(Child);

impl Broker {
    fn start(shell: &mut Shell, line: &str) -> Self {
        let port_file: PathBuf = shell.folder.path().join("ports.json");
        let log = File::create(shell.folder.path().join("broker.log")).unwrap();
        let child = shell
            .command(line)
            .env("HIGHWATER_LISTEN", "127.0.0.1:0")
            .env("HIGHWATER_HTTP", "127.0.0.1:0")
            .env("HIGHWATER_PORT_FILE", &port_file)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let broker = Self(child);
        let addresses: Addresses = wait::until("the broker of the README listens", LIMIT, || {
            fs::read_to_string(&port_file).ok().map(|text| serde_json::from_str(&text).unwrap())
        })
        .unwrap_or_else(|error| {
            let log = fs::read_to_string(shell.folder.path().join("broker.log")).unwrap_or_default();
            panic!("$ {line}\n{error:#}\n{log}")
        });
        shell.environment = vec![("HIGHWATER_BOOTSTRAP", addresses.listen.to_string())];
        broker
    }

    /// As Ctrl-C in its terminal would.
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::INT).unwrap();
        let status = wait::until("the broker ends", LIMIT, || self.0.try_wait().unwrap()).unwrap();
        assert!(status.success(), "Ctrl-C ends a broker with {status}");
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Already ended, or a test has failed before it did.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_tour_works_as_it_is_written() {
    let lines = code_lines(&readme(), "console");
    let commands: Vec<&str> = lines.iter().map(|line| line.strip_prefix("$ ").unwrap()).collect();
    assert!(commands.len() >= 15, "the README has a tour: {commands:?}");
    let mut shell = Shell::new();
    let mut broker = None;
    for line in commands {
        if line.starts_with("highwater broker") {
            broker = Some(Broker::start(&mut shell, line));
            continue;
        }
        if line.starts_with("highwater log")
            && let Some(running) = broker.take()
        {
            // The README says that no broker runs while one looks at its directory.
            running.stop();
        }
        let output = shell.run(line);
        if line == "highwater consume readme --exit-at-end" {
            assert!(output.stdout == readme().as_bytes(), "this page again, byte for byte");
        }
        if line.contains("--output json") {
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
        }
    }
    assert!(broker.is_none(), "the tour ends with the offline commands");
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
