//! What a process takes from the machine, read from `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// The unit of processor time in `/proc`: `USER_HZ` is 100 on all architectures that run this.
const TICK: Duration = Duration::from_millis(10);

/// A process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory, in bytes, mapped files included.
    pub resident_bytes: u64,
    /// Resident memory that is not backed by files, in bytes.
    pub anonymous_bytes: u64,
    /// The most that was ever resident, in bytes.
    pub peak_resident_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Processor time of all threads, in user space and in the kernel.
    pub cpu: Duration,
}

/// What the process `pid` uses now.
///
/// # Errors
/// When there is no such process, or the kernel writes its figures in another way than expected.
pub fn usage(pid: u32) -> Result<Usage> {
    let status_path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&status_path).with_context(|| format!("read {status_path}"))?;
    let stat_path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&stat_path).with_context(|| format!("read {stat_path}"))?;
    let kibibytes = |name| field(&status, name).map(|value| value * 1024);
    Ok(Usage {
        resident_bytes: kibibytes("VmRSS")?,
        anonymous_bytes: kibibytes("RssAnon")?,
        peak_resident_bytes: kibibytes("VmHWM")?,
        threads: field(&status, "Threads")?,
        cpu: cpu(&stat).with_context(|| format!("understand {stat_path}"))?,
    })
}

/// The number after `name:` in a status file.
fn field(status: &str, name: &str) -> Result<u64> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("no {name} in the status of the process"))
}

/// User and system time of a stat line: fields 14 and 15, of which the second, the name in parentheses, may hold spaces.
fn cpu(stat: &str) -> Result<Duration> {
    let (_, after_name) = stat.rsplit_once(')').context("no name in parentheses")?;
    let mut fields = after_name.split_whitespace().skip(11).map(str::parse::<u64>);
    let mut next = || fields.next().context("too few fields")?.context("not a number");
    let ticks = next()? + next()?;
    Ok(TICK * u32::try_from(ticks).context("an absurd time")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait;

    #[test]
    fn this_process_is_using_something() {
        let before = usage(std::process::id()).unwrap();
        assert!(before.resident_bytes > 100 << 10, "{before:?}");
        assert!(before.anonymous_bytes <= before.resident_bytes, "{before:?}");
        assert!(before.resident_bytes <= before.peak_resident_bytes, "{before:?}");
        assert!(before.threads >= 1, "{before:?}");
        let spun = wait::until("processor time passes", Duration::from_secs(60), || {
            (0..1_000_000_u64).for_each(|value| {
                std::hint::black_box(value);
            });
            usage(std::process::id()).ok().filter(|now| now.cpu > before.cpu)
        });
        assert!(spun.unwrap().cpu > before.cpu);
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_is_skipped() {
        let line = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 3 0";
        assert_eq!(cpu(line).unwrap(), Duration::from_secs(2));
        assert!(cpu("7 (short) S 1").is_err());
        assert!(field("VmRSS:\t12 kB\n", "VmHWM").is_err());
    }
}
