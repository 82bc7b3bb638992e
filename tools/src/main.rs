//! Highwater's one binary: the broker, and everything to work with it from a shell.

mod args;
mod bench;
mod broker;
mod cluster;
mod connect;
mod consume;
mod encode;
mod group;
mod interrupt;
mod lines;
mod log;
mod output;
mod parse;
mod produce;
mod quickstart;
mod ranges;
mod topic;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{BenchCommand, Cli, Command};
use crate::output::{Answer, OutputClosed};

/// Appending and fetching are made of short-lived buffers of many sizes, which this allocator gives out fastest.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(answer) => answer.into(),
        // Whoever read the output has what he wanted.
        Err(error) if error.is::<OutputClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format!("error: {}", chain(&error)));
            ExitCode::from(output::FAILED)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<Answer> {
    let global = &cli.global;
    match cli.command {
        Command::Broker(args) => return broker::run(*args),
        Command::Completions { shell } => return completions(shell),
        Command::Log(command) => return log::run(global, command),
        _ => {}
    }
    init_logs()?;
    let runtime = match &cli.command {
        Command::Bench(BenchCommand::Fanout(_)) => connect::runtime_for_many()?,
        _ => connect::runtime()?,
    };
    match cli.command {
        Command::Topic(command) => runtime.block_on(topic::run(global, command)),
        Command::Produce(args) => runtime.block_on(produce::run(global, args)),
        Command::Consume(args) => runtime.block_on(consume::run(global, args)),
        Command::Group(command) => runtime.block_on(group::run(global, command)),
        Command::Cluster(command) => runtime.block_on(cluster::run(global, command)),
        Command::Verify(args) => runtime.block_on(verify::run(global, args)),
        Command::Quickstart(args) => runtime.block_on(quickstart::run(global, args)),
        Command::Bench(command) => runtime.block_on(bench::run(global, command)),
        _ => unreachable!("handled above"),
    }
}

/// Warnings of the client go to standard error; `HIGHWATER_LOG` says what else.
fn init_logs() -> anyhow::Result<()> {
    let filter = std::env::var("HIGHWATER_LOG").unwrap_or_else(|_| "error".to_owned());
    highwater_broker::observe::tracing::init(highwater_broker::observe::tracing::LogFormat::Text, &filter)?;
    Ok(())
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<Answer> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "highwater", &mut script);
    let mut stdout = std::io::stdout().lock();
    output::written(std::io::Write::write_all(&mut stdout, &script))?;
    Ok(Answer::Yes)
}

/// An error and its causes on one line. A cause that the text before it ends in is not said twice.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}
