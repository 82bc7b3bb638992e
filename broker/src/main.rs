//! The slim server: a broker and nothing else.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use highwater_broker::config::{Config, Settings};

/// A Highwater broker. Every setting is also a key of the configuration file and an environment variable.
#[derive(Debug, Parser)]
#[command(name = "highwater-broker", version)]
struct Arguments {
    /// A TOML file with settings; flags and environment variables win over it
    #[arg(long, value_name = "FILE", env = "HIGHWATER_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// What the broker can be told.
    #[command(flatten)]
    settings: Settings,
}

#[expect(clippy::print_stderr, reason = "the log may not be there when a start fails")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(arguments.settings, arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    match highwater_broker::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
