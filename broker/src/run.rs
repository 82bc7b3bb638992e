//! A broker as a process: runtime, logs, signals.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

use crate::broker::{Broker, ShutdownError, StartError};
use crate::config::Config;
use crate::env::Env;
use crate::observe::tracing::{LogError, init};

/// Why a broker process ended without success.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The logs could not be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The runtime or the signal handlers could not be made.
    #[error("set up the process: {0}")]
    Process(#[from] io::Error),
    /// The broker did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The broker did not stop in order.
    #[error(transparent)]
    Shutdown(#[from] ShutdownError),
}

/// Runs a broker until SIGTERM or Ctrl-C, and shuts it down in order. A second signal ends it at once.
///
/// # Errors
/// When the broker does not start, or does not stop in order.
pub fn run(config: Config) -> Result<(), RunError> {
    init(config.log_format, &config.log)?;
    // On few cores a hop between threads costs more than a second worker gains.
    let runtime = if config.worker_threads == 1 {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?
    } else {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.worker_threads)
            .enable_all()
            .build()?
    };
    let result = runtime.block_on(Box::pin(run_to_signal(config)));
    if let Err(error) = &result {
        error!(%error, "the broker ends");
    }
    result
}

async fn run_to_signal(config: Config) -> Result<(), RunError> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let broker = Broker::launch(config, Env::real()).await?;
    let up_and_failed = async {
        match broker.ready().await {
            Ok(()) => broker.failed().await,
            Err(error) => error,
        }
    };
    let signal = tokio::select! {
        error = up_and_failed => Err(error),
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    };
    if let Ok(name) = signal {
        info!(signal = name, "asked to stop");
    }
    let stopped = tokio::select! {
        stopped = broker.shutdown() => stopped.map_err(RunError::from),
        _ = terminate.recv() => Err(RunError::Process(io::Error::other("a second signal cut the shutdown short"))),
        _ = interrupt.recv() => Err(RunError::Process(io::Error::other("a second signal cut the shutdown short"))),
    };
    signal?;
    stopped
}
