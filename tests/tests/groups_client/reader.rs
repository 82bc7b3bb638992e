//! `highwater consume --group` as a process, and what it has printed.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwater_client::{Admin, GroupDetails};
use highwater_tests::brokers::Brokers;
use highwater_tests::cluster::highwater;
use highwater_tests::wait;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take before a test is given up.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);
/// The session time-out of all readers.
pub(crate) const SESSION: Duration = Duration::from_secs(5);

/// What was done to a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing, or it was asked to end.
    Well,
    Killed,
    /// It was stopped for longer than its session, and went on.
    Paused,
    /// Nobody did anything to it, and it was taken for dead all the same: the machine had no time for it.
    Starved,
}

/// A member of a group in a process of its own. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Reader {
    child: Child,
    pub(crate) number: usize,
    pub(crate) fate: Fate,
    pub(crate) output: PathBuf,
    errors: PathBuf,
    pub(crate) ended: bool,
}

impl Reader {
    /// Starts one; what it prints goes to a file in `directory`.
    pub(crate) fn start(
        brokers: &Brokers,
        (topic, group): (&str, &str),
        number: usize,
        directory: &TempDir,
        further: &[&str],
    ) -> Result<Self> {
        let output = directory.path().join(format!("{number}.out"));
        let errors = directory.path().join(format!("{number}.err"));
        let session = format!("{}s", SESSION.as_secs());
        let child = Command::new(highwater()?)
            .args(["--bootstrap", &brokers.bootstrap().join(","), "consume", topic, "--group", group])
            .args(["--session-timeout", &session])
            .args(further)
            .env("HIGHWATER_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(File::create(&errors)?)
            .spawn()
            .context("start a reader")?;
        Ok(Self { child, number, fate: Fate::Well, output, errors, ended: false })
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).context("send a signal to a reader")
    }

    /// Asks it to end, and waits until it has: it commits and leaves.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.signal(Signal::INT)?;
        let status = self.wait()?;
        ensure!(status.success(), "reader {} ended with {status}: {}", self.number, self.errors()?);
        Ok(())
    }

    /// Kills it where it stands.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.fate = Fate::Killed;
        self.wait().map(drop)
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let what = format!("reader {} ends", self.number);
        let status = wait::until(&what, LIMIT, || self.child.try_wait().transpose())??;
        self.ended = true;
        Ok(status)
    }

    /// Fails when it has ended by itself.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()?.filter(|_| !self.ended) {
            anyhow::bail!("reader {} ended by itself with {status}: {}", self.number, self.errors()?);
        }
        Ok(())
    }

    /// Whether it says that it has lost partitions.
    pub(crate) fn has_lost(&self) -> Result<bool> {
        Ok(self.errors()?.contains("partitions are lost"))
    }

    pub(crate) fn errors(&self) -> Result<String> {
        fs::read_to_string(&self.errors).context("read what a reader has said")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Already ended, or a test has failed before it did.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until the group is as it should be.
pub(crate) async fn group_is(
    admin: &Admin,
    group: &str,
    what: &str,
    is_so: impl Fn(&GroupDetails) -> bool,
) -> Result<GroupDetails> {
    let waited =
        wait::until_async(what, LIMIT, || async { admin.describe_group(group).await.ok().filter(&is_so) });
    match waited.await {
        Ok(details) => Ok(details),
        Err(error) => Err(error.context(format!("{:#?}", admin.describe_group(group).await))),
    }
}
