//! Highwater beside NATS JetStream and Redis streams of the distribution, in turn on the same machine.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its findings")]

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use highwater_benches::ceiling::settle;
use highwater_benches::highwater::FreshBroker;
use highwater_benches::peer::{Load, Peer};
use highwater_benches::sample::median;

#[derive(Debug, Parser)]
#[command(
    about = "Highwater beside NATS JetStream and Redis streams: 1 partition or stream, 1 connection, in turn"
)]
struct Arguments {
    /// How often everything is run, one after the other; medians count
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// MiB of values produced and consumed in each run with records of 1 KiB
    #[arg(long, default_value_t = 256)]
    mebibytes: u64,
    /// Records produced and consumed in each run with records of 100 bytes
    #[arg(long, default_value_t = 1_000_000)]
    records: u64,
    /// Records that may be unacknowledged
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(2..))]
    in_flight: u64,
    /// Where the files are made and removed
    #[arg(long, default_value = ".")]
    directory: PathBuf,
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Peer(Peer),
    /// With this durability and the client's default settings, or with as many records in flight as the others have.
    Highwater {
        durability: &'static str,
        limited: bool,
    },
}

impl Who {
    fn name(self) -> String {
        match self {
            Self::Peer(peer) => peer.name().to_owned(),
            Self::Highwater { durability, limited } => {
                let client =
                    if limited { "as much in flight as the others" } else { "8 MiB in flight (default)" };
                format!("Highwater, durability={durability}, {client}")
            }
        }
    }

    /// Whether an acknowledged record is on stable storage.
    fn is_synced(self) -> bool {
        match self {
            Self::Peer(peer) => peer.is_synced(),
            Self::Highwater { durability, .. } => durability == "fsync",
        }
    }

    /// Records a second produced and consumed.
    fn run(self, directory: &Path, load: Load) -> Result<(f64, f64)> {
        match self {
            Self::Peer(peer) => {
                let times = peer.run(directory, load)?;
                #[expect(clippy::cast_precision_loss, reason = "a speed needs no more than 53 bits")]
                let records = load.records as f64;
                Ok((records / times.produced.as_secs_f64(), records / times.consumed.as_secs_f64()))
            }
            Self::Highwater { durability, limited } => {
                let broker = FreshBroker::start(directory)?;
                settle(directory, load.records * load.size as u64 * 2)?;
                let (records, size) = (load.records.to_string(), load.size.to_string());
                let in_flight = (load.in_flight * load.size as u64).to_string();
                let mut produce = vec!["produce", "--create", "--durability", durability];
                produce.extend(["--records", &records, "--size", &size]);
                if limited {
                    produce.extend(["--in-flight", &in_flight]);
                }
                let produced = broker.bench(&produce)?;
                let consumed = broker.bench(&["consume", "--size", &size])?;
                ensure!(
                    consumed.records == load.records,
                    "{} of {records} records came back",
                    consumed.records
                );
                Ok((produced.records_per_second, consumed.records_per_second))
            }
        }
    }
}

/// Records a second of every round.
#[derive(Debug, Default)]
struct Line {
    produced: [Vec<f64>; 2],
    consumed: [Vec<f64>; 2],
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let directory = tempfile::Builder::new()
        .prefix("highwater-peers-")
        .tempdir_in(&arguments.directory)
        .with_context(|| format!("make a directory in {}", arguments.directory.display()))?;
    let directory = directory.path();
    let mut all = Vec::new();
    for durability in ["os", "fsync"] {
        all.extend([false, true].map(|limited| Who::Highwater { durability, limited }));
    }
    for peer in Peer::ALL {
        if peer.is_possible(directory)? {
            all.push(Who::Peer(peer));
        } else {
            eprintln!("{} cannot be run: {} does not know the setting", peer.name(), peer.version()?);
        }
    }
    let in_flight = arguments.in_flight;
    let loads = [
        Load { records: arguments.mebibytes << 10, size: 1024, in_flight },
        Load { records: arguments.records, size: 100, in_flight },
    ];
    let mut lines: Vec<Line> = all.iter().map(|_| Line::default()).collect();
    for round in 1..=arguments.rounds {
        for (index, load) in loads.iter().enumerate() {
            for (who, line) in all.iter().zip(&mut lines) {
                eprintln!("round {round} of {}, {} bytes: {}", arguments.rounds, load.size, who.name());
                let (produced, consumed) = who.run(directory, *load).with_context(|| who.name())?;
                for (rates, rate) in [(&mut line.produced, produced), (&mut line.consumed, consumed)] {
                    rates.get_mut(index).context("a load without a place")?.push(rate);
                }
            }
        }
    }
    println!("{}; {}", Peer::Nats.version()?, Peer::Redis.version()?);
    println!(
        "{} MiB and {} records a run, {in_flight} records in flight, medians of {} rounds (least to most)\n",
        arguments.mebibytes, arguments.records, arguments.rounds
    );
    println!(
        "| | on disk when acknowledged | produce 1 KiB, MB/s | produce 100 B, M/s | consume 1 KiB, MB/s | consume 100 B, M/s |"
    );
    println!("|---|---|---|---|---|---|");
    for (who, Line { produced: [large, small], consumed: [read_large, read_small] }) in all.iter().zip(&lines)
    {
        let megabytes = 1024.0 / 1e6;
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            who.name(),
            if who.is_synced() { "yes" } else { "no" },
            cell(large, megabytes, 0),
            cell(small, 1e-6, 2),
            cell(read_large, megabytes, 0),
            cell(read_small, 1e-6, 2),
        );
    }
    Ok(())
}

/// The median of `rates` times `scale`, and how far they spread.
fn cell(rates: &[f64], scale: f64, digits: usize) -> String {
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min) * scale;
    let most = rates.iter().copied().fold(0.0, f64::max) * scale;
    format!("{:.digits$} ({least:.digits$} to {most:.digits$})", median(rates) * scale)
}
