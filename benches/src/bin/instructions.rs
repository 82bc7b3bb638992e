//! Counts the instructions of the hot paths under callgrind: against the recorded ones, or with and without idempotent
//! producers. `benches/instructions.sh` builds it and runs it.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its findings")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Result, anyhow, ensure};
use clap::{Parser, Subcommand};
use highwater_benches::instructions::baseline::{Baseline, REGRESSION, Verdict};
use highwater_benches::instructions::callgrind::{MadeWith, PARTS, count, profile};
use highwater_benches::path::{self, Path, count_these};
use highwater_benches::sample::median;

// The allocator of `highwater`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(about = "Instructions of the hot paths, counted by callgrind")]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Where the recorded counts are
    #[arg(long, global = true, default_value = "benches/instructions.toml")]
    baseline: PathBuf,
    /// Only paths whose names begin like this
    #[arg(long, global = true, default_value = "")]
    only: String,
    /// How many are counted at the same time
    #[arg(long, global = true, default_value_t = 2)]
    jobs: usize,
    /// How often each is counted; medians count
    #[arg(long, global = true, default_value_t = 1)]
    runs: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
enum What {
    /// Fails when a path takes more instructions than recorded, beyond the bound
    Check,
    /// Records the counts of this code, with this compiler
    Record,
    /// What idempotent producers cost over the whole way of a batch
    Identity,
    /// Counts one path and leaves what callgrind knows in a file, for callgrind_annotate
    Profile {
        /// The path
        path: String,
        /// Where to leave it
        #[arg(default_value = "callgrind.out")]
        out: PathBuf,
    },
    /// Does the work of a path: what runs under callgrind
    #[command(hide = true)]
    Run {
        /// The path
        path: String,
        /// How often in all
        count: u64,
    },
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    match &arguments.what {
        What::Run { path, count } => {
            let mut prepared = (path::named(path)?.prepare)()?;
            // Buffers and tables have their sizes then.
            prepared.repeat(2)?;
            let times = count.div_ceil(PARTS);
            for _ in 0..*count / times {
                count_these(&mut *prepared, times)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        What::Check => check(&arguments),
        What::Record => record(&arguments),
        What::Identity => identity(&arguments),
        What::Profile { path, out } => {
            profile(path::named(path)?, out)?;
            println!("look at it with: callgrind_annotate {}", out.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Every count of each path whose name begins as wanted.
fn count_all(
    arguments: &Arguments,
    wanted: impl Fn(&Path) -> bool,
) -> Result<BTreeMap<&'static str, Vec<f64>>> {
    let paths: Vec<Path> = path::ALL.iter().filter(|path| wanted(path)).copied().collect();
    ensure!(!paths.is_empty(), "no path begins with '{}'", arguments.only);
    let runs = arguments.runs.max(1);
    // The longest last would keep one thread waiting for the other.
    let work: Vec<Path> = paths.iter().rev().flat_map(|path| std::iter::repeat_n(*path, runs)).collect();
    let (left, counts) = (Mutex::new(work.into_iter()), Mutex::new(BTreeMap::<_, Vec<f64>>::new()));
    thread::scope(|scope| {
        let count_some = || -> Result<()> {
            loop {
                let Some(path) = left.lock().unwrap_or_else(PoisonError::into_inner).next() else {
                    return Ok(());
                };
                let counted = count(path)?;
                counts
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(path.name)
                    .or_default()
                    .push(counted);
            }
        };
        let threads: Vec<_> = (0..arguments.jobs.max(1)).map(|_| scope.spawn(count_some)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    Ok(counts.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn check(arguments: &Arguments) -> Result<ExitCode> {
    let recorded = Baseline::read(&arguments.baseline)?;
    let differences = MadeWith::here()?.differences(&recorded.made_with);
    if !differences.is_empty() {
        println!("The recorded instructions were made with other tools, so they are not compared:");
        differences.iter().for_each(|difference| println!("  {difference}"));
        println!(
            "To record them with these, from code that is known to be good: benches/instructions.sh record"
        );
        return Ok(ExitCode::SUCCESS);
    }
    let counts = count_all(arguments, |path| path.name.starts_with(&arguments.only))?;
    println!("{:<26} {:>12} {:>12} {:>8}", "instructions of", "recorded", "now", "");
    let (mut failed, mut better) = (false, false);
    for path in path::ALL {
        let Some(counts) = counts.get(path.name) else { continue };
        let now = median(counts);
        let (verdict, above) = recorded.judge(path.name, now);
        let known = recorded.instructions.get(path.name).map_or_else(|| "-".to_owned(), u64::to_string);
        let remark = match verdict {
            Verdict::Holds => "",
            Verdict::Better => "better",
            Verdict::Worse => "WORSE",
            Verdict::Unknown => "NOT RECORDED",
        };
        failed |= matches!(verdict, Verdict::Worse | Verdict::Unknown);
        better |= verdict == Verdict::Better;
        println!("{:<26} {known:>12} {now:>12.0} {:>+7.1}%  {remark}", path.name, above * 100.0);
    }
    if failed {
        let bound = REGRESSION * 100.0;
        println!("\nA path takes over {bound:.0} % more instructions than recorded, or is not recorded.");
        println!("Where they are: benches/instructions.sh profile PATH && callgrind_annotate callgrind.out");
        println!("If that is meant, record it with the change and say why: benches/instructions.sh record");
    } else if better {
        println!("\nTo hold on to what became better: benches/instructions.sh record");
    }
    Ok(ExitCode::from(u8::from(failed)))
}

fn record(arguments: &Arguments) -> Result<ExitCode> {
    let counts = count_all(arguments, |path| path.name.starts_with(&arguments.only))?;
    let made_with = MadeWith::here()?;
    // What is not counted now stays, if it can be compared with what is.
    let known = Baseline::read(&arguments.baseline).ok().filter(|known| known.made_with == made_with);
    let mut instructions = known.map(|known| known.instructions).unwrap_or_default();
    for (path, counts) in &counts {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts are far below 2^53"
        )]
        let count = median(counts).round() as u64;
        println!("{path:<26} {count:>12}");
        instructions.insert((*path).to_owned(), count);
    }
    Baseline { made_with, instructions }.write(&arguments.baseline)?;
    println!("recorded in {}", arguments.baseline.display());
    Ok(ExitCode::SUCCESS)
}

/// The name of the path that is another one with identities.
const IDEMPOTENT: &str = "-idempotent";

fn identity(arguments: &Arguments) -> Result<ExitCode> {
    let counts = count_all(arguments, |path| {
        path.name.starts_with("produce-") && path.name.starts_with(&arguments.only)
    })?;
    println!("Instructions of the broker for one batch, medians of {} runs\n", arguments.runs.max(1));
    println!(
        "{:<14} {:>10} {:>11} {:>11} {:>7} {:>8}",
        "", "without", "idempotent", "difference", "cost", "spread"
    );
    for path in path::ALL {
        let Some(without) = counts.get(path.name) else { continue };
        let Some(with) = counts.get(format!("{}{IDEMPOTENT}", path.name).as_str()) else { continue };
        let spread = spread(without).max(spread(with)) * 100.0;
        let (without, with) = (median(without), median(with));
        let difference = with - without;
        println!(
            "{:<14} {without:>10.0} {with:>11.0} {difference:>11.0} {:>6.2}% {spread:>7.2}%",
            path.name,
            difference / without * 100.0,
        );
    }
    eprintln!("\nspread: how far the counts of equal runs are apart at the most");
    Ok(ExitCode::SUCCESS)
}

/// How far values are apart, as a part of the smallest.
fn spread(values: &[f64]) -> f64 {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    most / least - 1.0
}
