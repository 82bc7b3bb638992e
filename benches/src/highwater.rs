//! The real broker and its own bench, run as a user would run them.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::cluster::{self, BrokerProcess, Options};
use highwater_tests::wait;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// What `highwater bench` prints with `--output json`, as far as it is used here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BenchReport {
    /// Records produced or consumed.
    pub records: u64,
    /// How long it took.
    pub seconds: f64,
    /// Their quotient.
    pub records_per_second: f64,
    /// 10^6 bytes of values a second.
    pub megabytes_per_second: f64,
    /// The durability that was in force.
    #[serde(default)]
    pub durability: Option<String>,
    /// Replicas of each partition.
    #[serde(default)]
    pub replication: Option<u32>,
    /// From sending to acknowledgement, for `produce`.
    #[serde(default)]
    pub latency_us: Option<serde_json::Value>,
}

/// How long a broker may take to be ready.
pub const READY_LIMIT: Duration = Duration::from_secs(60);

/// A broker with an empty data directory of its own.
#[derive(Debug)]
pub struct FreshBroker {
    /// The process.
    pub process: BrokerProcess,
    // Dropped, and so removed, after the process is gone.
    _directory: TempDir,
}

impl FreshBroker {
    /// Starts it with its data below `directory`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(directory: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("broker-").tempdir_in(directory)?;
        let options = Options { data_directory: Some(directory.path().join("data")), ..Options::default() };
        Ok(Self { process: BrokerProcess::start(options)?, _directory: directory })
    }

    /// Waits until it says that it is ready: every partition is open.
    ///
    /// # Errors
    /// When it does not within [`READY_LIMIT`].
    pub fn ready(&self) -> Result<()> {
        let address = self.process.addresses().http.context("the broker has no HTTP address")?;
        wait::until("the broker is ready", READY_LIMIT, || {
            let mut stream = TcpStream::connect(address).ok()?;
            stream.write_all(b"GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            answer.starts_with("HTTP/1.1 200").then_some(())
        })
    }

    /// Runs `highwater bench` against it.
    ///
    /// # Errors
    /// When the bench does not end well, or prints something else than its report.
    pub fn bench<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<BenchReport> {
        self.bench_as(arguments)
    }

    /// Runs a bench of `highwater bench` whose report is another one.
    ///
    /// # Errors
    /// As [`FreshBroker::bench`].
    pub fn bench_as<A: AsRef<OsStr>, R: DeserializeOwned>(&self, arguments: &[A]) -> Result<R> {
        bench(&self.process.bootstrap(), arguments)
    }
}

/// Three brokers that are one cluster, with empty data directories of their own.
#[derive(Debug)]
pub struct FreshCluster {
    /// The processes.
    pub brokers: Brokers,
    // Dropped, and so removed, after the processes are gone.
    _directory: TempDir,
}

impl FreshCluster {
    /// Starts it with its data below `directory`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(directory: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("cluster-").tempdir_in(directory)?;
        let setup = Setup { directory: Some(directory.path().to_owned()), ..Setup::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { brokers: runtime.block_on(Brokers::start(setup))?, _directory: directory })
    }

    /// Runs `highwater bench` against it.
    ///
    /// # Errors
    /// When the bench does not end well, or prints something else than its report.
    pub fn bench<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<BenchReport> {
        bench(&self.brokers.bootstrap().join(","), arguments)
    }
}

fn bench<A: AsRef<OsStr>, R: DeserializeOwned>(bootstrap: &str, arguments: &[A]) -> Result<R> {
    let program: PathBuf = cluster::highwater()?;
    let output = Command::new(&program)
        .args(["--bootstrap", bootstrap, "--output", "json", "bench"])
        .args(arguments)
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.as_ref().to_string_lossy()).collect();
    let arguments = arguments.join(" ");
    ensure!(output.status.success(), "bench {arguments} ended with {}: {errors}", output.status);
    serde_json::from_str(&printed)
        .with_context(|| format!("understand the report of bench {arguments}: {printed}"))
}
