//! Ctrl-C, or SIGTERM: the first one asks a command to end in order, the second one ends it where it stands.

use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::output::FAILED;

/// Watches for Ctrl-C and SIGTERM. What is returned is notified at the first one, and remembers it until somebody looks.
pub(crate) fn watch() -> anyhow::Result<Arc<Notify>> {
    let mut interrupts = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminations = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let asked = Arc::new(Notify::new());
    let first = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _signal = interrupts.recv() => {}
                _signal = terminations.recv() => {}
            }
        };
        next().await;
        first.notify_one();
        next().await;
        // Whatever waits cannot be waited for any longer. A command holds nothing that must be tidied up.
        std::process::exit(i32::from(FAILED));
    });
    Ok(asked)
}
