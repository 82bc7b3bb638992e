//! `highwater broker`: the broker itself, in this process.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use highwater_broker::config::{Config, Settings, open_files_within};
use highwater_broker::storage::real::raise_open_files_limit;

use crate::output::Answer;

/// `broker`. Every setting is also a key of the configuration file and an environment variable.
#[derive(Debug, Args)]
pub(crate) struct BrokerArgs {
    /// A TOML file with settings; flags and environment variables win over it
    #[arg(long, value_name = "FILE", env = "HIGHWATER_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// What a broker can be told.
    #[command(flatten)]
    settings: Settings,
    /// End at once when the process with this id, which started this one, ends in whatever way
    #[arg(long, hide = true, value_name = "PID")]
    die_with_parent: Option<u32>,
}

/// Runs a broker until it is told to stop.
pub(crate) fn run(args: BrokerArgs) -> anyhow::Result<Answer> {
    if let Some(parent) = args.die_with_parent {
        let signal = Some(rustix::process::Signal::KILL);
        rustix::process::set_parent_process_death_signal(signal).context("tie the broker to its parent")?;
        // It may have ended before.
        let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        anyhow::ensure!(
            u32::try_from(now) == Ok(parent),
            "process {parent}, which started the broker, has ended"
        );
    }
    let mut config = Config::load(args.settings, args.config.as_deref())?;
    let descriptors = raise_open_files_limit();
    let connections_max = config.connections_max;
    config.open_files_max.get_or_insert_with(|| open_files_within(descriptors, connections_max));
    highwater_broker::run(config)?;
    Ok(Answer::Yes)
}
