//! The peers' servers as processes of their own, ended when they are dropped.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use highwater_tests::wait;

use super::START_LIMIT;

/// A server that runs.
pub(super) struct Server {
    process: Child,
    pub(super) address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; its directory is removed in either case.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

pub(super) fn version(program: &str) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("run {program}: is it installed?"))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned())
}

pub(super) fn start_redis(directory: &Path, synced: bool) -> Result<Server> {
    let port = free_port()?;
    let sync = if synced { "always" } else { "everysec" };
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "yes"]);
    command.args(["--appendfsync", sync, "--daemonize", "no"]).arg("--dir").arg(directory);
    start(command, port)
}

pub(super) fn start_nats(directory: &Path, synced: bool) -> Result<Server> {
    let port = free_port()?;
    let mut command = Command::new("nats-server");
    command.args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--config"]);
    command.arg(nats_config(directory, synced)?);
    start(command, port)
}

/// Whether the installed version takes these settings.
pub(super) fn nats_accepts(directory: &Path, synced: bool) -> Result<bool> {
    let config = nats_config(directory, synced)?;
    let checked = Command::new("nats-server")
        .arg("--config")
        .arg(config)
        .arg("-t")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("run nats-server: is it installed?")?;
    Ok(checked.success())
}

fn nats_config(directory: &Path, synced: bool) -> Result<std::path::PathBuf> {
    let sync = if synced { "sync_interval: always" } else { "" };
    let path = directory.join("nats.conf");
    let store = directory.join("jetstream");
    std::fs::write(&path, format!("jetstream {{ store_dir: {store:?}\n {sync} }}\n"))?;
    Ok(path)
}

fn start(mut command: Command, port: u16) -> Result<Server> {
    let name = command.get_program().to_string_lossy().into_owned();
    let process = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {name}: is it installed?"))?;
    let mut server = Server { process, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) };
    wait::until(&format!("{name} listens"), START_LIMIT, || {
        let ended = server.process.try_wait().ok().flatten();
        (ended.is_some() || TcpStream::connect(server.address).is_ok()).then_some(())
    })?;
    let ended = server.process.try_wait()?;
    ensure!(ended.is_none(), "{name} has ended: {ended:?}");
    Ok(server)
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
